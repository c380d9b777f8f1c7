"""Errors are words: an ``SMTPError`` is a reply, a ``ConfigError`` is one line for the operator.

Knows how an error reads. Refuses to know who raises it, or what is done with it.
"""


class SMTPError(Exception):
    """A reply, raised: ``code`` and ``enhanced`` as RFC 5321 and RFC 3463 number it, ``text`` for people.

    A handler or a sink raises it to refuse: 4yz asks the client to try again later, 5yz never to.
    """

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(code, enhanced, text)
        self.code = code
        self.enhanced = enhanced
        self.text = text

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


class ConfigError(Exception):
    """What is wrong with the configuration or the environment, where, and what to do, in one line."""
