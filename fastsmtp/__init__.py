"""fastsmtp: the fastest and safest way to take in mail with Python.

``serve`` takes mail in one's own event loop, ``run`` with worker processes; ``blocking`` marks a hook that
waits, ``SMTPError`` is a reply to raise. See docs/ for handlers, sinks, configuration and metrics.
"""

from typing import TYPE_CHECKING

from fastsmtp._version import __version__
from fastsmtp.envelope import Envelope, Session
from fastsmtp.errors import ConfigError, SMTPError
from fastsmtp.hooks import blocking

if TYPE_CHECKING:
    from fastsmtp.service import run, serve

__all__ = ["ConfigError", "Envelope", "SMTPError", "Session", "__version__", "blocking", "run", "serve"]


def __getattr__(name: str) -> object:
    # The service brings the configuration and the metrics with it, a quarter of a second that a module with
    # handlers alone, or `fastsmtp --version`, need not wait for.
    if name in ("run", "serve"):
        from fastsmtp import service

        return getattr(service, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
