"""Another build of fastsmtp, as a contender: one run with both in turn shows the effect of a change.

It knows how a program is made to import the package of another tree. It refuses to know what the program is.
"""

from collections.abc import Iterator
from pathlib import Path

from .contender import Contender, Setup, first_line
from .process import ROOT, Server


class Beside(Contender):
    """A contender of ours with the package that was built in `tree`."""

    def __init__(self, contender: Contender, tree: Path) -> None:
        self.name = f"{contender.name}-beside"
        self.title = f"{contender.title}, of the other build"
        self.share = contender.share
        self.can = contender.can
        self._contender = contender
        self._tree = tree.resolve()

    @property
    def like(self) -> str:
        return self._contender.name

    def missing(self) -> str | None:
        if not list(self._tree.glob("fastsmtp/_core.*.so")):
            return f"there is no built package in {self._tree}: python setup.py build_ext --inplace makes one"
        return self._contender.missing()

    def version(self) -> str:
        return first_line("git", "-C", str(self._tree), "rev-parse", "--short", "HEAD")

    def command(self, setup: Setup) -> list[str]:
        python, *rest = self._contender.command(setup)
        # Without -P the folder that it is started in would come before the path.
        return ["/usr/bin/env", f"PYTHONPATH={self._tree}:{ROOT}", python, "-P", *rest]

    def count(self, server: Server, setup: Setup) -> int | None:
        return self._contender.count(server, setup)

    def worker(self, server: Server) -> int:
        return self._contender.worker(server)

    def kept(self, setup: Setup) -> Iterator[bytes] | None:
        return self._contender.kept(setup)
