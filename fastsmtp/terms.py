"""The terms on which an ``SMTP`` of aiosmtpd's interface serves: rules, hooks and mechanisms, made once for all
connections that are alike.

Knows aiosmtpd's hooks and parameters, and what they mean to the dialogue. Refuses to know connections: a call
finds the handler on the connection that makes it, so that terms hold for every handler of the same class.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from fastsmtp._rules import ASKS, HOOKS, VERB_BITS, Rules
from fastsmtp._wire import Wire
from fastsmtp.hooks import Plan, adapt, blocking, misfit, settled
from fastsmtp.maillog import Wanted
from fastsmtp.replies import aiosmtpd, as_status
from fastsmtp.sasl import MISSING, mechanism_names

_BUILT_IN = "__fastsmtp_built_in__"
_HOOKS = ("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY")
# EHLO's is looked at by its arity.
_CALLED = frozenset(f"handle_{name}" for name in (*_HOOKS, "STARTTLS", "AUTH", "PROXY", "exception")) - {
    "handle_EHLO"
}
_PLAIN = ("DATA", "RSET", "QUIT")  # hooks without an argument of their own
_ASKED_IF_THERE = ("EHLO", "DATA")
_RECEIVING = ("get_buffer", "buffer_updated")
_OK = "250 OK"
_LONGEST_COMMAND = 16 * 1024  # octets; more than command_size_limit is refused all the same
_ANY_LENGTH = 2**31
# aiosmtpd has no such limits, and one client could fill the memory with recipients, or a disk with replies.
_MOST_RECIPIENTS = 20_000
_MOST_JUNK = 1_000  # commands, and empty lines, without a message
_LEAST_RATE = 100  # octets of content a second

# As ``hooks.Call``, but what it is called with is an ``SMTP``.
Call: TypeAlias = "Callable[[Any, Any, Any], Any]"


class Parameters(NamedTuple):
    """What terms depend on. ``hooks`` are the hooks that the handler itself has, beyond those of its class, whose
    size tells whether it was given some since.
    """

    server: type[Any]
    handler: type
    hooks: frozenset[str]
    handler_size: int
    ehlo_arity: int
    data_size_limit: int
    smtputf8: bool
    decode_data: bool
    hostname: str
    ident: str
    starttls: bool
    require_starttls: bool
    timeout: float
    auth_required: bool
    auth_require_tls: bool
    auth_exclude_mechanism: frozenset[str]
    command_call_limit: tuple[tuple[str, int], ...] | None
    line_length_limit: int
    command_size_limit: int
    command_size_limits: tuple[tuple[str, int], ...]
    local_part_limit: int
    calls_hooks: bool
    makes_facts: bool
    traced: bool
    log_mail: Wanted
    esmtp_parameters: str


@dataclass(frozen=True, eq=False)
class Terms:
    """What follows from parameters. ``mechanisms`` says of each whether the server has it, and in which method;
    ``commands`` gives the method's name by verb. ``takes_streams`` is not so where the class receives or begins TLS by
    itself, for which it needs a transport of the loop.
    """

    rules: Rules
    plan: Plan
    mechanisms: dict[str, tuple[bool, str]]
    commands: dict[str, str]
    old_ehlo: bool
    takes_streams: bool


def built_in(method: Any) -> Any:
    """Marks a command that the dialogue does itself unless a subclass has another."""
    setattr(method, _BUILT_IN, True)
    return method


def hooks_of(handler: object) -> frozenset[str]:
    """The names of the hooks that ``handler`` itself was given."""
    own = getattr(handler, "__dict__", None)
    return frozenset(name for name in own if name.startswith(("handle_", "auth_"))) if own else frozenset()


def check_hook(owner: object, name: str) -> None:
    """Raises ``TypeError`` if ``owner``, an object or a class of them, has a hook or mechanism of this name that cannot
    be called with its arguments.
    """
    mechanism = name.startswith("auth_")
    if (mechanism or name in _CALLED) and callable(getattr(owner, name)):
        wrong = misfit(owner, name, ("server", "args") if mechanism else None)
        if wrong:
            kind = owner if isinstance(owner, type) else type(owner)
            raise TypeError(f"{kind.__module__}.{kind.__qualname__}: {wrong}")


def ehlo_arity(handler: object) -> int:
    """How many arguments the EHLO hook takes: 4 or 5, or 0 without one. Raises ``RuntimeError`` for another."""
    if not hasattr(type(handler), "handle_EHLO") and "handle_EHLO" not in getattr(handler, "__dict__", ()):
        return 0
    hook = handler.handle_EHLO  # type: ignore[attr-defined]
    function = getattr(hook, "__func__", None)
    arity = len(inspect.signature(hook).parameters) if function is None else _arity(function) - 1
    if arity not in (4, 5):
        raise RuntimeError("Unsupported EHLO Hook")
    return arity


@lru_cache(maxsize=256)
def _arity(function: Callable[..., Any]) -> int:
    return len(inspect.signature(function).parameters)


@lru_cache(maxsize=256)
def agree(parameters: Parameters) -> Terms:
    """The terms that follow from ``parameters``."""
    mechanisms = {name: (True, method) for name, method in mechanism_names(parameters.server).items()}
    methods = {*dir(parameters.handler), *parameters.hooks}
    for name, method in mechanism_names(parameters.handler).items():
        mechanisms[name] = (False, method)
    for method in parameters.hooks:
        if method.startswith("auth_"):
            mechanisms[method.removeprefix("auth_").replace("__", "-")] = (False, method)
    for name in parameters.auth_exclude_mechanism:
        mechanisms.pop(name, None)
    commands = {
        name.removeprefix("smtp_"): name
        for name in dir(parameters.server)
        if name.startswith("smtp_") and callable(getattr(parameters.server, name))
    }
    own = {
        verb for verb, name in commands.items() if not hasattr(getattr(parameters.server, name), _BUILT_IN)
    }
    if not parameters.calls_hooks:
        for name in methods - parameters.hooks:
            check_hook(parameters.handler, name)
        for ours, method in mechanisms.values():
            if ours:
                check_hook(parameters.server, method)
    old_ehlo = parameters.ehlo_arity == 4
    calls = _calls(parameters, methods, old_ehlo)
    return Terms(
        rules=_rules(parameters, mechanisms, commands, own, calls),
        plan=_plan(methods, calls),
        mechanisms=mechanisms,
        commands=commands,
        old_ehlo=old_ehlo,
        takes_streams="STARTTLS" not in own
        and all(getattr(parameters.server, name) is getattr(Wire, name) for name in _RECEIVING),
    )


def _rules(
    parameters: Parameters,
    mechanisms: dict[str, tuple[bool, str]],
    commands: dict[str, str],
    own: set[str],
    calls: dict[str, Call],
) -> Rules:
    limits = None
    if parameters.command_call_limit is not None:
        limits = dict(parameters.command_call_limit)
    return Rules(
        book=aiosmtpd(
            parameters.hostname,
            parameters.ident,
            max_message_size=parameters.data_size_limit,
            eight_bit=not parameters.decode_data,
            smtputf8=parameters.smtputf8,
            starttls=parameters.starttls,
            mechanisms=mechanisms,
            auth_in_clear=not parameters.auth_require_tls,
        ),
        hooks=sum(HOOKS[name] for name in calls),
        verbs=sum(VERB_BITS.get(verb, 0) for verb in commands),
        lenient=True,
        lmtp=parameters.server.replies_to_each,
        bare_newline="keep",
        smtputf8=parameters.smtputf8,
        eight_bit=not parameters.decode_data,
        starttls=parameters.starttls,
        require_starttls=parameters.require_starttls,
        require_auth=parameters.auth_required,
        auth_in_clear=not parameters.auth_require_tls,
        mechanisms=mechanisms,
        pass_parameters=parameters.esmtp_parameters == "pass",
        whole=sum(VERB_BITS[verb] for verb in own if verb in VERB_BITS),
        own_verbs=own - VERB_BITS.keys(),
        makes_facts=parameters.makes_facts,
        traced=parameters.traced,
        log_mail=parameters.log_mail,
        max_message_size=parameters.data_size_limit,
        max_recipients=_MOST_RECIPIENTS,
        max_command_line=min(parameters.line_length_limit or _LONGEST_COMMAND, _LONGEST_COMMAND),
        max_command=parameters.command_size_limit,
        max_commands=dict(parameters.command_size_limits) or None,
        max_line_length=min(max(0, parameters.line_length_limit - 2), _ANY_LENGTH),
        max_local_part=parameters.local_part_limit,
        max_errors=5,
        max_junk_commands=_MOST_JUNK,
        min_data_rate=_LEAST_RATE,
        call_limits=limits,
        idle_timeout=parameters.timeout,
        transaction_timeout=max(3600.0, parameters.timeout),
        handler_timeout=parameters.timeout,
    )


def _plan(methods: set[str], calls: dict[str, Call]) -> Plan:
    """A plan of these calls; the handler is not looked at, since another may come in its place."""
    plan = Plan(None, discard=True)
    for name, call in calls.items():
        plan.calls[ASKS.index(name)] = call
    if "handle_STARTTLS" in methods:
        plan.starttls = _hook("STARTTLS")
    return plan


def _calls(parameters: Parameters, methods: set[str], old_ehlo: bool) -> dict[str, Call]:
    server = parameters.server
    calls: dict[str, Call] = {
        "AUTH": lambda server, words, options: server._authenticate_by(words),
        "COMMAND": lambda server, command, options: server._begin_command(*command),
    }
    for name in _HOOKS:
        if parameters.calls_hooks and (name not in _ASKED_IF_THERE or f"handle_{name}" in methods):
            calls[name] = _by_the_server(name)
        elif f"handle_{name}" in methods:
            waits = hasattr(getattr(parameters.handler, f"handle_{name}", None), "__fastsmtp_blocking__")
            calls[name] = _hook(name, waits=waits)
    if "handle_NOOP" in methods and not parameters.calls_hooks:
        calls["NOOP"] = _none_if_empty(calls["NOOP"])
    if old_ehlo:
        calls["EHLO"] = _old_ehlo
    if "DATA" not in calls and "process_message" in methods:
        calls["DATA"] = _process_message
    if parameters.decode_data:
        calls["DATA"] = _decoded(calls.get("DATA"))
    for hook, name in (("ehlo_hook", "EHLO"), ("rset_hook", "RSET")):
        if hasattr(server, hook):
            calls[name] = _after_old_hook(hook, name, calls.get(name))
    return calls


def _hook(name: str, *, waits: bool = False) -> Call:
    """A hook of whatever handler the connection has; one that ``waits`` is run in a thread."""
    method = f"handle_{name}"
    if name == "DATA" and not waits:  # the way of every message: a call less
        return lambda server, argument, options: server._handler.handle_DATA(
            server, server.session, server.envelope
        )

    def hook(server: Any, *arguments: Any) -> Any:
        return getattr(server._handler, method)(server, *arguments)

    return adapt(method, blocking(hook) if waits else hook)


def _none_if_empty(call: Call) -> Call:
    return lambda server, argument, options: call(server, argument or None, options)


def _by_the_server(name: str) -> Call:
    """A hook that the server calls in a way of its own, also where the handler has none."""

    async def call(server: Any, argument: Any, options: Any) -> Any:
        arguments = [] if name in _PLAIN else [argument or None]
        if name in ("MAIL", "RCPT"):
            arguments.append(options)
        elif name == "EHLO":
            arguments.append(server.ehlo_lines)
        status = await settled(server._call_handler_hook(name, *arguments))
        if status is not MISSING:
            return status
        if name == "MAIL":
            server.envelope.mail_from = argument
            server.envelope.mail_options.extend(options)
        elif name == "RCPT":
            server.envelope.rcpt_tos.append(argument)
            server.envelope.rcpt_options.extend(options)
        elif name == "EHLO":
            return server.ehlo_lines
        return as_status(server.rules.book, "ACCEPTED" if name == "DATA" else name)

    return call


async def _old_ehlo(server: Any, argument: Any, options: Any) -> Any:
    """The 4-argument hook, which gives only the last line and may push some before."""
    lines = server.ehlo_lines[:-1]
    server._foreword = "".join(f"{line}\r\n" for line in lines).encode()
    try:
        status = await settled(server._handler.handle_EHLO(server, server.session, server.envelope, argument))
        said = not server._foreword
    finally:
        server._foreword = b""
    accepted = isinstance(status, (str, bytes)) and status[:3] in ("250", b"250")
    if said and not accepted:
        server.end()  # the reply was begun with 250-, and nothing that refuses can end it
    return [*lines, status] if accepted and not said else status


async def _process_message(server: Any, argument: Any, options: Any) -> Any:
    warnings.warn("Use handler.handle_DATA() instead of .process_message()", DeprecationWarning, stacklevel=2)
    session, envelope = server.session, server.envelope
    status = await settled(
        server._handler.process_message(session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content)
    )
    return _OK if status is None else status


def _decoded(call: Call | None) -> Call:
    """A call for content as text."""

    def decoded(server: Any, argument: Any, options: Any) -> Any:
        envelope = server.envelope
        try:
            if server.enable_SMTPUTF8:
                envelope.content = envelope.original_content.decode("utf-8", "surrogateescape")
            else:
                envelope.content = envelope.original_content.decode("ascii")
        except UnicodeDecodeError:
            return as_status(server.rules.book, "NOT_ASCII")
        return _OK if call is None else call(server, argument, options)

    return decoded


def _after_old_hook(hook: str, name: str, call: Call | None) -> Call:
    """What aiosmtpd's oldest subclasses have: a method that is called before the reply."""

    async def after(server: Any, argument: Any, options: Any) -> Any:
        warnings.warn(f"Use handler.handle_{name}() instead of .{hook}()", DeprecationWarning, stacklevel=2)
        await settled(getattr(server, hook)())
        if call is not None:
            return await settled(call(server, argument, options))
        return server.ehlo_lines if name == "EHLO" else _OK

    return after
