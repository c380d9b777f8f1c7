"""The certificate: makes the server's TLS context of the settings ``tls_certificate`` and ``tls_key``.

If OpenSSL cannot use their files, one line says what is wrong with which of them.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from fastsmtp.errors import ConfigError

if TYPE_CHECKING:
    from fastsmtp.config import Config


def tls_context(config: Config) -> ssl.SSLContext | None:
    """The server's TLS context, or ``None`` without a certificate. Raises ``ConfigError``."""
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have it done over and over
    context.num_tickets = 1  # OpenSSL makes two for each new session, and mail clients use none or one
    try:
        # Without a password of our own OpenSSL would ask for it on the terminal, and the server would hang.
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError, ConfigError) as error:
        setting, text = _fault(error, certificate, key)
        with config.naming(setting):
            raise ConfigError(text) from None
    return context


def _no_password() -> str:
    raise ConfigError("the private key is encrypted")


def _fault(error: Exception, certificate: Path, key: Path | None) -> tuple[str, str]:
    """The setting that is to blame, and what to do: OpenSSL says "[SSL] PEM lib" of nearly everything."""
    key_setting, key_file = ("tls_certificate", certificate) if key is None else ("tls_key", key)
    if isinstance(error, ConfigError):
        return key_setting, f"the private key in {key_file} is encrypted; write it without a password"
    if not _holds(certificate, b"CERTIFICATE-----"):
        return "tls_certificate", f"{certificate} has no certificate; name a PEM file with the whole chain"
    if not _holds(key_file, b"PRIVATE KEY-----"):
        advice = "set tls_key" if key is None else "name the PEM file that has it"
        return key_setting, f"{key_file} has no private key; {advice}"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return key_setting, f"the private key in {key_file} is not that of the certificate in {certificate}"
    return "tls_certificate", f"cannot use {certificate} with the private key in {key_file}: {error}"


def _holds(file: Path, mark: bytes) -> bool:
    """Whether a PEM file has such a block; of a file that cannot be read again this is not known: yes."""
    try:
        return mark in file.read_bytes()
    except OSError:
        return True
