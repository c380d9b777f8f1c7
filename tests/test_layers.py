"""The layers: each module imports only from those below it in the plan, and says what it is for."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastsmtp

PACKAGE = Path(fastsmtp.__file__).parent

# From the ground up. A module imports from the layers before its own, and from its own without a circle.
LAYERS = (
    ("_version", "errors", "logs"),
    (
        "_rules",
        "_envelope",
        "_engine",
        "_reception",
        "_wire",
        "_secure",
        "_stream",
        "_commands",
        "_core",
        "_signals",
        "_load",
    ),
    ("replies", "body", "proxy_protocol", "maillog"),
    ("envelope", "sockets", "block", "metrics", "config"),
    ("hooks", "sasl", "certificate", "proxied", "sinks", "spills"),
    ("connection", "guests"),
    ("accepting", "streams", "children", "worker", "supervisor", "exporter", "forking"),
    ("service",),
    ("requests", "reloading"),
    ("server",),
    ("application", "testing"),
    ("terms", "house"),
    ("authentication", "introduced", "pushing", "watched"),
    ("legacy", "verbs"),
    ("smtp",),
    ("lmtp", "handlers"),
    ("controller",),
    ("load",),
    ("generator", "display"),
    ("bench",),
    ("", "cli"),  # "" is the package itself
    ("__main__",),
)
RELATIVE = "a relative import"
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MODULES = {
    str(path.relative_to(PACKAGE).with_suffix(""))
    .replace(os.sep, ".")
    .removesuffix("__init__")
    .rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def _layer_of(module: str) -> str:
    return module.partition(".")[0]


def _imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of all that is imported at run time, also inside functions; ``fastsmtp.`` is cut off."""
    match node:
        case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for part in node.orelse:
                yield from _imports(part)
        case ast.Import(names=names):
            for alias in names:
                if alias.name.partition(".")[0] == "fastsmtp":
                    yield node.lineno, alias.name.partition(".")[2]
        case ast.ImportFrom(level=relative) if relative:
            yield node.lineno, RELATIVE
        case ast.ImportFrom(module="fastsmtp", names=names):
            for alias in names:
                # `from fastsmtp import service` takes a module, `from fastsmtp import run` the package.
                yield node.lineno, alias.name if alias.name in LEVEL else ""
        case ast.ImportFrom(module=str(module)) if module.startswith("fastsmtp."):
            yield node.lineno, module.removeprefix("fastsmtp.")
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _imports(child)


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def test_every_module_has_its_layer() -> None:
    compiled = {path.name.partition(".")[0] for path in PACKAGE.glob("*.pyi")}
    assert {_layer_of(module) for module in MODULES} | compiled == set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "fastsmtp")
def test_a_module_imports_only_from_layers_below(module: str) -> None:
    own = _layer_of(module)
    wrong = [
        f"line {line}: {own or 'fastsmtp'} imports {name or 'fastsmtp'}"
        for line, name in _imports(_tree(module))
        if name == RELATIVE or LEVEL[_layer_of(name)] > LEVEL[own]
    ]
    assert wrong == []


def test_no_circle_within_a_layer() -> None:
    uses = {module: {name for _, name in _imports(_tree(module)) if name in MODULES} for module in MODULES}
    left = dict(uses)
    while free := [module for module, used in left.items() if not used & set(left) - {module}]:
        for module in free:
            del left[module]
    assert left == {}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "fastsmtp")
def test_a_module_opens_with_a_paragraph(module: str) -> None:
    assert ast.get_docstring(_tree(module))


def test_the_walk_sees_every_form_of_import() -> None:
    code = """
import fastsmtp.config, os
from fastsmtp import sockets, SMTPError
from fastsmtp.sinks.base import Sink
if TYPE_CHECKING:
    from fastsmtp import worker
else:
    import fastsmtp.errors
def late():
    try:
        from fastsmtp.cli import main
    except ImportError:
        from . import service
"""
    names = [name for _, name in _imports(ast.parse(code))]
    assert names == ["config", "sockets", "", "sinks.base", "errors", "cli", RELATIVE]
