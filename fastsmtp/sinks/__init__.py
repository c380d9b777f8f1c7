"""Sinks by URL: ``discard:``, ``maildir:PATH``.

Knows the schemes and how a URL is read. Refuses to know how any of them delivers.
"""

import difflib
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote

from fastsmtp.errors import ConfigError
from fastsmtp.sinks.base import Sink
from fastsmtp.sinks.discard import Discard
from fastsmtp.sinks.maildir import Maildir

__all__ = ["SCHEMES", "Sink", "make_sink"]

SCHEMES: dict[str, type[Sink]] = {"discard": Discard, "maildir": Maildir}


def make_sink(url: str, *, hostname: str) -> Sink:
    """The sink of ``scheme:path?option=value&...``; ``hostname`` is what this server calls itself.

    Octets of the path may be percent-encoded; a ``?`` or ``%`` must be. Raises ConfigError.
    """
    scheme, colon, rest = url.partition(":")
    if not colon:
        raise ConfigError(f"{url!r} is not a sink URL; write for example maildir:./mail or discard:")
    if scheme not in SCHEMES:
        raise ConfigError(f"{scheme!r} in {url!r} is not a kind of sink; {_nearest(scheme, SCHEMES)}")
    sink = SCHEMES[scheme]
    path, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in sink.options:
            raise ConfigError(f"{scheme}: has no option {name!r}; {_nearest(name, sink.options)}")
        if name in options:
            raise ConfigError(f"option {name!r} stands twice in {url!r}; remove one")
        options[name] = value
    return sink.of(_path(unquote(path, errors="surrogateescape"), url), options, hostname)


def _path(path: str, url: str) -> str:
    if "\0" in path:
        raise ConfigError(f"the path in {url!r} holds a NUL; remove it")
    if path.startswith("//"):
        if not path.startswith("///"):
            raise ConfigError(f"{url!r} names a host; write one slash, or three, before an absolute path")
        return path[2:]
    return path


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not names:
        return "it takes none"
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
