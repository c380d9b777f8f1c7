"""The version, written once: the package, the build and the greeting take it from here."""

__version__ = "0.1.0"
