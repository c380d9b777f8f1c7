"""The command line. It alone reads argv and exits, and hands environment and files to the configuration.

Makes the flags of the configuration's declaration. A failure is one line and a status: 2 for usage and configuration,
1 for a fault outside, such as a port that is in use.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from fastsmtp import config
from fastsmtp._version import __version__
from fastsmtp.config import Config
from fastsmtp.errors import ConfigError
from fastsmtp.sockets import ListenError

NAME = "fastsmtp"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status; every failure that has a cause outside is one line."""
    try:
        # Not standalone: click would print usage errors in its own three lines, and exit.
        result = program.main(arguments, prog_name=NAME, standalone_mode=False)
        return int(result or 0)
    except ListenError as error:
        return _fail(str(error), 1)
    except ConfigError as error:
        return _fail(str(error), 2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else NAME
        text = error.format_message().rstrip(".")
        return _fail(f"{text[:1].lower()}{text[1:]} (see {path} --help)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except click.Abort:
        return 130  # 128 + SIGINT, as shells have it


class _Program(click.Group):
    """The commands; bench is imported when it is wanted, so that serve does not carry a load generator."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "bench"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "bench":
            from fastsmtp.bench import bench

            return bench
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Program, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message=f"{NAME} %(version)s")
def program() -> None:
    """Takes in mail over SMTP: fast, safe, in as many processes as wanted."""


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --config, --set and a flag for every setting."""
    options = [
        click.option(
            "--config", "path", metavar="FILE", type=click.Path(path_type=Path), help="A TOML file."
        ),
        click.option(
            "--set", "pairs", metavar="KEY=VALUE", multiple=True, help="Any setting by its key; repeatable."
        ),
    ]
    for key, field in Config.model_fields.items():
        names = config.flag_names(key, field)
        default = config.default_text(field)
        options.append(
            click.option(
                "/".join(names),
                key,
                # Values stay text here: the declaration checks them, and its messages name the flag.
                type=bool if len(names) > 1 else str,
                metavar=config.form(field).metavar or None,
                multiple=config.is_list(field),
                default=None,
                help=f"{field.description}{f'  [default: {default}]' if default else ''}".replace("`", ""),
            )
        )
    for option in reversed(options):
        command = option(command)
    return command


@program.command()
@_with_settings
def serve(path: Path | None, pairs: tuple[str, ...], **flags: object) -> int:
    """Serves until SIGTERM or SIGINT; a second one ends it at once."""
    settings = _load(path, pairs, flags)
    # Imported here: uvloop and prometheus_client cost --version and --help a tenth of a second.
    from fastsmtp import service

    return service.run_service(settings, ends_process=True)


@program.command("check-config")
@_with_settings
def check_config(path: Path | None, pairs: tuple[str, ...], **flags: object) -> None:
    """Checks all that serve would, and prints the configuration in effect as TOML."""
    settings = _load(path, pairs, flags)
    # Imported here for the same reason.
    from fastsmtp import service

    service.check(settings)
    click.echo(settings.as_toml(), nl=False)


@program.command("config-docs", hidden=True)
def config_docs() -> None:
    """Prints docs/configuration.md."""
    click.echo(documentation(), nl=False)


def documentation() -> str:
    """``docs/configuration.md``: every setting, made from the declaration."""
    parts = [_HEAD]
    for key, field in Config.model_fields.items():
        parts.append(
            f"## {key}\n\n{field.description}\n\n"
            f"* allowed: {config.allowed(field)}\n"
            f"* default: {config.default_text(field) or 'not set'}\n"
            f"* flag `{' / '.join(config.flag_names(key, field))}`, variable `{config.PREFIX}{key.upper()}`\n"
        )
    return "\n".join(parts)


def _load(path: Path | None, pairs: Sequence[str], flags: dict[str, object]) -> Config:
    overrides: dict[str, object] = {
        # A flag given several times reads like a variable: parts between commas.
        key: ",".join(value) if isinstance(value, tuple) else value
        for key, value in flags.items()
        if value not in (None, ())
    }
    names = {key: config.flag_names(key, Config.model_fields[key])[0] for key in overrides}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f'--set: "{pair}" is not KEY=VALUE')
        if key in overrides:
            raise ConfigError(f"{key} is given twice, by {names[key]} and by --set; keep one")
        overrides[key] = value
        names[key] = "--set" if key not in Config.model_fields else f"--set {key}"
    return config.load(path, overrides, flags=names, warn=lambda text: _say(f"warning: {text}"))


def _fail(text: str, status: int) -> int:
    _say(text)
    return status


def _say(text: str) -> None:
    # What people typed stands in the text: a line end or an escape sequence must not reach the terminal.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    print(f"{NAME}: {line}", file=sys.stderr)


_HEAD = f"""\
<!-- Made from fastsmtp/config.py by `fastsmtp config-docs`; do not edit. -->
# Configuration

A setting has one name everywhere: `idle_timeout` is `idle_timeout = 60` in the TOML file,
`{config.PREFIX}IDLE_TIMEOUT=60` in the environment, `--idle-timeout 60` or `--set idle_timeout=60` on the
command line, and `idle_timeout=60` in Python. A flag wins over the environment, that over the file
(`--config FILE`), that over the default. An empty variable counts as not set; `""` in the file, or an empty
flag, unsets a setting that may be unset. File names are relative to the folder in which the server starts.

The file has no sections: all keys stand at the top level.

An unknown key or flag, a value that is not allowed and a file that is missing stop the server with one line that
says which and where. A `{config.PREFIX}*` variable that resembles a setting, such as `{config.PREFIX}WORKER`, is
taken for a typing error and stops it too. Any other, such as `{config.PREFIX}HOME`, may belong to another program:
the server ignores it, with a warning.

`fastsmtp check-config` takes what `fastsmtp serve` takes, checks it, and prints the whole configuration as TOML.
"""
