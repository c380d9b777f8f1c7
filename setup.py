"""Builds the compiled core; everything else about the package stands in pyproject.toml.

The sources lie in ``src_ext/``, which mirrors the package. The environment chooses the kind of build:

* ``FASTSMTP_SANITIZE=1``: AddressSanitizer and UndefinedBehaviorSanitizer (``make sanitize``)
* ``FASTSMTP_COVERAGE=1``: line tracing, for ``make coverage``
* ``FASTSMTP_CFLAGS``: more flags for the C compiler; ``-g`` keeps debug information, for gdb and ``perf annotate``

Without ``-g`` there is none: it is five sixths of a wheel. A wheel has no symbol table either; a build in place keeps
its own, so that perf and callgrind name functions.
"""

import os
import shlex
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src_ext/fastsmtp")
MODULES = {
    "_rules": [],
    "_engine": [],
    "_envelope": [],
    "_reception": ["content.c", "scan.c"],
    "_wire": [],
    "_secure": [],
    "_stream": [],
    "_commands": ["command.c", "grammar.c"],
    "_core": [],
    "_signals": ["orphan.c"],
    "_load": [],
}

sanitize = os.environ.get("FASTSMTP_SANITIZE") == "1"
coverage = os.environ.get("FASTSMTP_COVERAGE") == "1"

more_args = shlex.split(os.environ.get("FASTSMTP_CFLAGS", ""))
debug = sanitize or coverage or any(flag.startswith("-g") and flag != "-g0" for flag in more_args)

compile_args = ["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fno-strict-aliasing"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if sanitize:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args = ["-O1", "-g", *compile_args[1:], *flags]
    link_args = flags
if coverage:
    macros.append(("CYTHON_TRACE", "1"))
if not debug:
    compile_args.append("-g0")  # Python's own flags have -g
compile_args += more_args


class BuildExtensions(build_ext):
    """Strips what goes into a wheel."""

    def build_extensions(self) -> None:
        in_place = self.inplace or self.editable_mode
        if sys.platform == "linux" and not debug and not in_place:
            for extension in self.extensions:
                extension.extra_link_args.append("-s")
        super().build_extensions()


extensions = [
    Extension(
        f"fastsmtp.{name}",
        [str(SOURCES / f"{name}.pyx"), *(str(SOURCES / source) for source in sources)],
        include_dirs=[str(SOURCES)],
        depends=[str(path) for path in sorted(SOURCES.glob("*.[h]")) + sorted(SOURCES.glob("*.pxd"))],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for name, sources in MODULES.items()
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["src_ext"],
        compiler_directives={"language_level": 3, "linetrace": coverage},
    ),
    cmdclass={"build_ext": BuildExtensions},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
