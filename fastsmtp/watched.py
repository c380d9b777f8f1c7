"""Classes and parameters that may be changed while connections run, as tests and subclasses of aiosmtpd's ``SMTP`` do.

Knows when something was changed that terms depend on. Refuses to know what terms are.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from typing import Any


class Term:
    """A parameter that may be changed on the class, in a subclass, and on a connection while it runs."""

    def __init__(self, default: Any = None) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.default if instance is None else instance.__dict__.get(self.name, self.default)

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value
        instance._agree()


class Watched(ABCMeta):
    """The class of classes that tell when one of their attributes is set: what was made of them is forgotten.

    An ``ABCMeta``, so that a subclass may have abstract bases, too.
    """

    forget: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **arguments: Any
    ) -> None:
        super().__init__(name, bases, namespace, **arguments)
        for attribute, value in namespace.items():
            term = cls._term(attribute, value)
            if term is not value:
                super().__setattr__(attribute, term)

    def _term(cls, attribute: str, value: Any) -> Any:
        """``value``, as a term if that is what a base has under this name."""
        known = any(isinstance(vars(base).get(attribute), Term) for base in cls.__mro__)
        if not known or isinstance(value, Term):
            return value
        term = Term(value)
        term.__set_name__(cls, attribute)
        return term

    def __setattr__(cls, attribute: str, value: Any) -> None:
        super().__setattr__(attribute, cls._term(attribute, value))
        Watched.forget()

    def __delattr__(cls, attribute: str) -> None:
        super().__delattr__(attribute)
        Watched.forget()
