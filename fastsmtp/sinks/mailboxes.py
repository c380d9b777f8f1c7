"""Mailboxes: the path of a Maildir, and which folder of it a recipient has.

Knows the placeholders {local} and {domain}, and how an address becomes a folder's name that cannot leave its
place or meet another address's, however its domain is written. Does not look into the folders.
"""

import difflib
import hashlib
import os
import re
import unicodedata
from functools import lru_cache

from fastsmtp.errors import ConfigError

_PLACEHOLDERS = ("{local}", "{domain}")
_SAFE = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*", re.ASCII)
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+=-")
_SEPARATOR = re.compile(r"[!-$&-*,:-<>-@\[-^`{-}\x7f]")  # ASCII that no encoded name holds
_MAX_NAME = 255  # octets: NAME_MAX of every common file system
_LEAST_SHARE = 64
_MARK = b"%~"  # in no encoded name, as two hexadecimal digits follow a "%" there


class Mailboxes:
    """The mailbox folders of one template. All paths are absolute bytes, in UTF-8 whatever the locale."""

    def __init__(self, template: str, hostname: str) -> None:
        """``hostname`` is the domain of a recipient without one (Postmaster). Raises ConfigError."""
        template = os.path.abspath(os.path.expanduser(template))
        self.template = template
        self._hostname = hostname
        levels = [_level(component, template) for component in template.split("/")[1:]]
        fixed = [len(level) == 1 for level in levels]
        depth = fixed.index(False) if False in fixed else len(levels)
        self.root: bytes = b"/" + b"/".join(_octets(level[0]) for level in levels[:depth])
        """The folder that is there from the start: the mailbox, or what lies before the placeholders."""
        self.per_recipient = depth < len(levels)
        self._levels = levels[depth:]
        if self.per_recipient:
            _fold("é")  # its tables, 2 MB, are read before the workers are forked
        self.folder = lru_cache(4096)(self._folder)
        """folder(recipient) -> bytes: the recipient's mailbox."""

    def _folder(self, recipient: str) -> bytes:
        path = self.root
        if self._levels:
            local, domain = split_address(recipient)
            values = {"{local}": _encode(local), "{domain}": _encode(_fold(domain or self._hostname))}
            for level in self._levels:
                path = os.path.join(path, _name(level, values))
        return path


def split_address(address: str) -> tuple[str, str]:
    """Local-part and domain ("" if none), the local-part as it is meant: unquoted, Postmaster in lower case.

    RFC 5321 4.1.2: ``"ann"@a.example`` and ``ann@a.example`` are one address.
    """
    if address.startswith('"'):
        quoted = re.match(r'"((?:[^"\\]|\\.)*)"', address, re.DOTALL)
        if quoted:
            local = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)
            domain = address[quoted.end() :].removeprefix("@")
        else:
            local, domain = address, ""
    else:
        local, _, domain = address.partition("@")
    if local.isascii() and local.lower() == "postmaster":  # 4.5.1: in any case
        local = "postmaster"
    return local, domain


def _level(component: str, template: str) -> list[str]:
    """A folder's name, cut into text (even positions) and placeholders (odd ones)."""
    parts = re.split(r"(\{[^{}]*\})", component)
    for i, part in enumerate(parts):
        if i % 2 and part not in _PLACEHOLDERS:
            close = difflib.get_close_matches(part, _PLACEHOLDERS, n=1, cutoff=0.3)
            hint = f"did you mean {close[0]}?" if close else "there are {local} and {domain}"
            raise ConfigError(f"maildir {template}: unknown placeholder {part}; {hint}")
        if not i % 2 and ("{" in part or "}" in part):
            raise ConfigError(
                f"maildir {template}: a brace without its partner; write {{local}} or {{domain}}"
            )
    # "{domain}-{local}" would give c@a-b and b-c@a one folder; "@" is in no encoded name.
    if not all(_SEPARATOR.search(text) for text in parts[2:-1:2]):
        raise ConfigError(
            f"maildir {template}: two placeholders in {component!r} could make one name of two addresses; "
            "write / or @ between them"
        )
    if len(parts) > 1 and _share(parts) < _LEAST_SHARE:
        raise ConfigError(f"maildir {template}: {component!r} leaves no room for an address; make it shorter")
    return parts


def _share(level: list[str]) -> int:
    """The octets that each placeholder of a level may take."""
    return (_MAX_NAME - sum(len(_octets(text)) for text in level[::2])) // (len(level) // 2)


def _name(level: list[str], values: dict[str, bytes]) -> bytes:
    if len(level) == 1:
        return _octets(level[0])
    share = _share(level)
    return b"".join(_shorten(values[part], share) if i % 2 else _octets(part) for i, part in enumerate(level))


def _encode(text: str) -> bytes:
    """A name for ``text`` and no other: what is not plain is %XX. Letters stay; the empty text is %~."""
    if _SAFE.fullmatch(text):
        return text.encode()
    out = bytearray()
    for c in text:
        if c in _PLAIN or (c == "." and out) or (not c.isascii() and unicodedata.category(c)[0] in "LMN"):
            out += c.encode()
        else:
            out += b"".join(b"%%%02X" % octet for octet in _octets(c))
    return bytes(out) or _MARK


def _shorten(name: bytes, room: int) -> bytes:
    if len(name) <= room:
        return name
    digest = _MARK + hashlib.sha256(name).hexdigest()[:40].encode()
    start = name[: room - len(digest)].decode(errors="ignore").encode()
    return start + digest


def _fold(domain: str) -> str:
    """The one name of a domain: in ASCII, by UTS 46, in lower case and without the dot of the root."""
    if not domain.isascii():
        import idna

        try:
            # Non-transitional: straße.example and strasse.example are two domains. What IDNA 2008 makes of symbols does
            # not count, as there are domains of them.
            mapped = idna.uts46_remap(domain, std3_rules=False, transitional=False)
            domain = ".".join(map(_label, mapped.split(".")))
        except UnicodeError:
            domain = unicodedata.normalize("NFC", domain)
    return domain.lower().removesuffix(".")


def _label(label: str) -> str:
    return label if label.isascii() else f"xn--{label.encode('punycode').decode()}"


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
