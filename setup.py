"""Builds the compiled core; everything else about the package stands in pyproject.toml.

The sources lie in ``src_ext/``, which mirrors the package. The environment chooses the kind of build:

* ``FASTSMTP_SANITIZE=1``: AddressSanitizer and UndefinedBehaviorSanitizer (``make sanitize``)
* ``FASTSMTP_COVERAGE=1``: line tracing, for ``make coverage``
* ``FASTSMTP_CFLAGS``: more flags for the C compiler
"""

import os
import shlex
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

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
    "_load": [],
}

sanitize = os.environ.get("FASTSMTP_SANITIZE") == "1"
coverage = os.environ.get("FASTSMTP_COVERAGE") == "1"

compile_args = ["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fno-strict-aliasing"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if sanitize:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args = ["-O1", "-g", *compile_args[1:], *flags]
    link_args = flags
if coverage:
    macros.append(("CYTHON_TRACE", "1"))
compile_args += shlex.split(os.environ.get("FASTSMTP_CFLAGS", ""))

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
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
