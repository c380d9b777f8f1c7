"""The supervisor, with real forks of tiny workers: what it starts, replaces, drains, rolls and kills."""

import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_workers import Load, Server, Start

from fastsmtp.block import Block
from fastsmtp.supervisor import RETRIES, Supervisor


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Server:
            server = Server(tmp_path, **options)
            stack.callback(server.close)
            return server

        yield start


# --- start --------------------------------------------------------------------------------------------------


def test_all_workers_serve_one_socket_and_ready_is_told_once(start: Start) -> None:
    server = start(workers=3)
    pids = server.expect_ready()
    assert sorted(pids) == [0, 1, 2]
    for worker, pid in pids.items():
        client = server.connect_to(pid)
        assert client.ask() == (worker, pid)
        client.close()
    assert server.end(signal.SIGTERM) == 0
    assert server.output.count("listening") == 1
    assert server.output.count("buffered") == 1


def test_a_worker_holds_its_end_of_two_pipes_and_nobody_elses(start: Start) -> None:
    server = start(workers=3, report_pipes=True)
    pids = server.expect_ready()
    os.kill(pids[1], signal.SIGKILL)
    server.expect(r"worker 1 .* accepts")
    found = re.findall(r"pipes (.*)", server.output)
    assert found == ['["read", "write"]'] * 4
    assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("3", "ended with status 3"),
        ("exception", f"ended with status {os.EX_SOFTWARE}"),
    ],
)
def test_a_first_worker_that_fails_before_it_accepts_stops_everything(
    start: Start, tmp_path: Path, fault: str, how: str
) -> None:
    for worker in range(4):
        (tmp_path / f"fail-{worker}").write_text(fault)
    server = start(workers=4)
    assert server.end() == 1
    lines = re.findall(r"worker \d \(pid \d+\) (.* before it could accept.*)", server.output)
    assert lines == [f"{how} before it could accept; no worker accepts, so the server ends"]
    assert len(re.findall(r"start \d", server.output)) <= 4  # no respawn
    assert "listening" not in server.output


def test_what_a_first_worker_finds_wrong_with_its_configuration_is_said_once(
    start: Start, tmp_path: Path
) -> None:
    for worker in range(4):
        (tmp_path / f"fail-{worker}").write_text("config")
    server = start(workers=4)
    assert server.end() == 1
    assert server.output.count("cannot open the mailbox") == 1
    assert re.search(r"complaint: cannot open the mailbox ./mail: make it$", server.output, re.M)
    assert "before it could accept" not in server.output
    assert "Traceback" not in server.output


def test_a_worker_that_hangs_at_start_does_not_outlive_a_failed_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fail-0").write_text("hang")
    (tmp_path / "fail-1").write_text("3")
    assert start().end() == 1


def test_sigterm_before_any_worker_accepts_ends_all(start: Start) -> None:
    server = start(workers=3, terminate_at_start=True)
    assert server.end() == 0
    assert "Traceback" not in server.output


def test_a_fault_in_a_callback_leaves_no_process_behind(start: Start) -> None:
    server = start(on_ready_raises=True)
    assert server.end() == 1
    assert "RuntimeError: a fault in on_ready" in server.output


def test_a_block_for_another_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="the block is for 2 workers, not for 3"):
        Supervisor(lambda _: 0, workers=3, block=Block(2), drain_timeout=1)


# --- death and replacement ----------------------------------------------------------------------------------


def test_kill_9_of_a_worker_leaves_the_others_connections_alone_and_the_port_open(start: Start) -> None:
    server = start()
    pids = server.expect_ready()
    kept, lost = server.connect_to(pids[0]), server.connect_to(pids[1])
    with Load(server) as load:
        os.kill(pids[1], signal.SIGKILL)
        server.expect(rf"worker 1 \(pid {pids[1]}\) was killed by SIGKILL; replaced at once")
        assert kept.ask() == (0, pids[0])
        server.expect(r"worker 1 .* accepts")
        server.connect_to(server.pids()[1]).close()
        assert kept.ask() == (0, pids[0])
    assert lost.at_end()
    assert load.refused == 0
    assert load.answered > load.broken
    kept.close()
    assert server.end(signal.SIGTERM) == 0


def test_workers_that_die_at_the_same_time_are_all_replaced(start: Start) -> None:
    server = start(workers=4)
    pids = server.expect_ready()
    server.send(signal.SIGSTOP)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    server.send(signal.SIGCONT)  # finds one SIGCHLD for four deaths
    for _ in pids:
        server.expect("accepts")
    assert set(server.pids().values()).isdisjoint(pids.values())
    assert server.end(signal.SIGTERM) == 0


def _kill(server: Server, worker: int) -> str:
    """Kills a worker once it accepts, and returns when its replacement starts."""
    os.kill(server.pids()[worker], signal.SIGKILL)
    return server.expect(rf"worker {worker} .* replaced (at once|in .* s)").group(1)


def test_back_off_grows_up_to_its_limit_while_another_serves(start: Start) -> None:
    server = start(timing={"settled": 60.0})
    server.expect_ready()
    waits = []
    for _ in range(5):
        waits.append(_kill(server, 1))
        server.expect("worker 1 .* accepts")
    assert waits == ["at once", "in 0.02 s", "in 0.04 s", "in 0.08 s", "in 0.1 s"]
    assert server.end(signal.SIGTERM) == 0


def test_a_worker_that_lived_a_while_is_replaced_at_once_again(start: Start) -> None:
    server = start(timing={"settled": 0.0})
    server.expect_ready()
    for _ in range(3):
        assert _kill(server, 1) == "at once"
        server.expect("worker 1 .* accepts")
    assert server.end(signal.SIGTERM) == 0


def test_nine_deaths_of_each_leave_the_socket_served(start: Start) -> None:
    server = start(timing={"backoff": 60.0, "backoff_limit": 60.0})
    server.expect_ready()
    waits = []
    for _ in range(18):
        victim = server.connect().ask()[1]
        os.kill(victim, signal.SIGKILL)
        server.expect(rf"worker \d \(pid {victim}\) was killed by SIGKILL; replaced")
        began = time.monotonic()
        server.connect().ask()
        waits.append(time.monotonic() - began)
    assert max(waits) < 2
    assert "replaced in 60 s" in server.output  # one of them waits while the other serves
    for client in server.clients:
        client.close()
    assert server.end(signal.SIGTERM) == 0


def test_a_last_place_that_dies_before_it_accepts_waits_for_no_longer_than_the_first_step(
    start: Start,
) -> None:
    server = start(workers=1, timing={"backoff": 0.05, "backoff_limit": 60.0})
    pids = server.expect_ready()
    server.fault(0, "4")
    os.kill(pids[0], signal.SIGKILL)
    assert server.end() == 1
    assert re.findall(r"replaced (at once|in .* s)", server.output) == ["at once"] * 2 + ["in 0.05 s"] * 4


def test_a_replacement_that_never_accepts_is_given_up_and_the_others_go_on(start: Start) -> None:
    server = start()
    pids = server.expect_ready()
    kept = server.connect_to(pids[0])
    server.fault(1, "4")
    os.kill(pids[1], signal.SIGKILL)
    times = RETRIES + 1
    server.expect(
        rf"worker 1 \(pid \d+\) ended with status 4 before it could accept, {times} times in a row; "
        r"given up, 1 of 2 workers go on; SIGHUP tries again"
    )
    assert server.output.count("start 1") == 1 + times
    assert kept.ask() == (0, pids[0])
    kept.close()
    assert server.end(signal.SIGTERM) == 0


def test_without_any_worker_left_the_server_ends(start: Start) -> None:
    server = start(workers=1, timing={"backoff": 0.001})
    pids = server.expect_ready()
    server.fault(0, "4")
    os.kill(pids[0], signal.SIGKILL)
    assert server.end() == 1
    assert re.search("given up, and no worker is left$", server.output, re.M)


def test_a_first_worker_that_fails_while_another_accepts_is_retried(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fail-1").write_text("4")
    server = start(timing={"backoff": 0.001})
    outcome = server.expect("given up, 1 of 2 workers go on|no worker accepts").group()
    if "given up" in outcome:  # worker 0 was ready first
        assert sorted(server.expect_ready()) == [0]
        assert server.end(signal.SIGTERM) == 0
    else:
        assert server.end() == 1


# --- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_lets_connections_end_and_takes_no_new_ones(start: Start, number: signal.Signals) -> None:
    server = start()
    pids = server.expect_ready()
    clients = [server.connect_to(pid) for pid in pids.values()]
    server.send(number)
    server.expect("draining")
    server.expect("draining")
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    assert [client.ask()[1] for client in clients] == list(pids.values())
    for client in clients:
        client.close()
    assert server.end() == 0
    assert "SIGKILL" not in server.output


def test_ctrl_c_reaches_the_whole_group_and_means_one_drain(start: Start) -> None:
    server = start()
    client = server.connect_to(server.expect_ready()[0])
    os.killpg(server.process.pid, signal.SIGINT)
    server.expect("draining")
    server.expect("draining")
    assert client.ask()
    client.close()
    assert server.end() == 0


def test_who_does_not_drain_in_time_is_killed(start: Start) -> None:
    server = start(workers=1, stubborn=True, drain_timeout=0.1, timing={"drain_margin": 0.1})
    pids = server.expect_ready()
    began = time.monotonic()
    assert server.end(signal.SIGTERM) == 1
    assert 0.2 <= time.monotonic() - began < 5
    assert re.search(rf"worker 0 \(pid {pids[0]}\) did not end in time; SIGKILL", server.output)


def test_a_second_sigterm_ends_the_workers_now(start: Start) -> None:
    server = start(drain_timeout=60)
    client = server.connect_to(server.expect_ready()[1])
    server.send(signal.SIGTERM)
    server.expect("draining 1")
    server.send(signal.SIGINT)
    assert client.at_end()
    assert server.end() == 0


def test_a_worker_that_ignores_the_second_sigterm_is_killed_after_a_grace(start: Start) -> None:
    server = start(workers=1, stubborn=True, drain_timeout=60, timing={"grace": 0.1})
    server.expect_ready()
    server.send(signal.SIGTERM)
    server.expect("SIGTERM: the workers drain, at most 60 s")
    server.send(signal.SIGTERM)
    assert server.end() == 1
    assert "SIGTERM again: the workers end now" in server.output
    assert "did not end in time; SIGKILL" in server.output


def test_a_worker_that_fails_while_draining_makes_the_status_1(start: Start) -> None:
    server = start(drained_status=5)
    server.expect_ready()
    assert server.end(signal.SIGTERM) == 1
    assert server.output.count("ended with status 5 while it was draining") == 2


def test_a_worker_that_dies_during_a_drain_is_not_replaced(start: Start) -> None:
    server = start()
    pids = server.expect_ready()
    clients = [server.connect_to(pid) for pid in pids.values()]
    server.send(signal.SIGTERM)
    server.expect("draining")
    server.expect("draining")
    os.kill(pids[0], signal.SIGKILL)
    server.expect(r"worker 0 .* was killed by SIGKILL while it was draining")
    clients[1].close()
    assert server.end() == 1
    assert server.output.count("start ") == 2


def test_all_children_end_when_the_supervisor_is_killed(start: Start) -> None:
    server = start(exporter="serves")
    pids = server.expect_ready()
    clients = [server.connect_to(pid) for pid in pids.values()]
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    assert sorted(re.findall(r"orphaned (\d)", server.output)) == ["0", "1"]
    assert all(client.at_end() for client in clients)


# --- the exporter -------------------------------------------------------------------------------------------


def test_counts_of_a_killed_worker_stay_in_a_scrape_and_its_gauges_go(start: Start) -> None:
    server = start(exporter="serves")
    pids = server.expect_ready()
    for pid in pids.values():
        server.connect_to(pid)
    before = server.scrape_until("fastsmtp_connections_active", 2)
    assert before["fastsmtp_connections_total"] >= 2
    assert before["fastsmtp_workers"] == before["fastsmtp_worker_up0"] + before["fastsmtp_worker_up1"] == 2

    os.kill(pids[1], signal.SIGKILL)
    server.expect(r"worker 1 .* accepts")
    after = server.scrape()
    assert after["fastsmtp_connections_total"] == before["fastsmtp_connections_total"]
    assert after["fastsmtp_connections_active"] == 1
    assert after["fastsmtp_worker_restarts_total"] == before["fastsmtp_worker_restarts_total"] + 1 == 1
    assert after["fastsmtp_worker_up1"] == 1
    assert server.end(signal.SIGKILL) == -signal.SIGKILL


def test_an_exporter_that_dies_is_replaced_and_the_workers_do_not_notice(start: Start) -> None:
    server = start(exporter="serves")
    pids = server.expect_ready()
    client = server.connect_to(pids[0])
    server.scrape()  # it runs
    server.seen = 0
    pid = int(server.expect(r"exporter (\d+)").group(1))
    os.kill(pid, signal.SIGKILL)
    server.expect(rf"exporter \(pid {pid}\) was killed by SIGKILL; replaced at once")
    server.expect(r"exporter \d+")
    assert server.scrape()["fastsmtp_worker_restarts_total"] == 0
    assert client.ask() == (0, pids[0])
    assert server.pids() == pids
    client.close()
    assert server.end(signal.SIGTERM) == 0


def test_an_exporter_that_always_fails_is_tried_at_growing_intervals_for_ever(start: Start) -> None:
    server = start(exporter="fails")
    server.expect_ready()
    for _ in range(RETRIES + 3):
        server.expect(r"exporter .* ended with status 9; replaced (at once|in 0\.\d+ s)")
    server.connect().close()
    assert server.end(signal.SIGTERM) == 0


def test_the_exporter_shows_the_drain_to_its_end(start: Start) -> None:
    server = start(exporter="serves")
    client = server.connect_to(server.expect_ready()[0])
    server.send(signal.SIGTERM)
    server.expect("draining 0")
    server.scrape_until("fastsmtp_connections_active", 1)
    client.close()
    assert server.end() == 0


# --- rolling ------------------------------------------------------------------------------------------------


def test_sighup_replaces_each_worker_before_it_drains_the_old_one(start: Start) -> None:
    server = start(exporter="serves")
    pids = server.expect_ready()
    kept = server.connect_to(pids[0])
    with Load(server) as load:
        server.send(signal.SIGHUP)
        server.expect("all workers are replaced")
        assert set(server.pids().values()).isdisjoint(pids.values())
        assert kept.ask() == (0, pids[0])  # the old worker serves it to its end
        kept.close()
        # Both slots of an index are used in turn.
        second = server.pids()
        server.send(signal.SIGHUP)
        server.expect("all workers are replaced")
        assert set(server.pids().values()).isdisjoint(second.values())
    assert (load.refused, load.broken) == (0, 0)
    assert load.answered > 0
    samples = server.scrape()
    assert samples["fastsmtp_connections_total"] >= load.answered
    assert samples["fastsmtp_worker_restarts_total"] == 0
    assert server.end(signal.SIGTERM) == 0


def test_a_roll_whose_replacement_fails_keeps_the_old_workers(start: Start) -> None:
    server = start()
    pids = server.expect_ready()
    server.fault(0, "3")
    server.send(signal.SIGHUP)
    server.expect(r"worker 0 .* ended with status 3 before it could accept; the workers that .* go on")
    for pid in pids.values():
        server.connect_to(pid).close()
    assert server.end(signal.SIGTERM) == 0


def test_a_worker_that_dies_while_its_replacement_starts_is_replaced_by_it(start: Start) -> None:
    server = start(workers=1)
    pids = server.expect_ready()
    server.fault(0, "hang")
    server.send(signal.SIGHUP)
    server.expect("start 0")
    os.kill(pids[0], signal.SIGKILL)
    server.expect("its replacement has been started already")
    assert server.end(signal.SIGTERM) == 0


ORDERS = [
    order
    for events in (
        ("term", "ready"),
        ("term", "ready", "old"),
        ("term", "ready", "new"),
        ("ready", "old", "new"),
    )
    for order in itertools.permutations(events)
]


@pytest.mark.parametrize("together", [True, False], ids=["together", "one-by-one"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_whatever_comes_during_a_roll_in_whatever_order(
    start: Start, order: tuple[str, ...], together: bool
) -> None:
    """SIGTERM, the word that the successor is ready, and two deaths; the supervisor may find all at the same time."""
    server = start(workers=1)
    old = server.expect_ready()[0]
    kept = server.connect()
    assert kept.ask() == (0, old)
    gate = server.gate(0)
    server.send(signal.SIGHUP)
    new = int(server.expect(r"forked 0 (\d+)").group(1))
    if together:
        server.send(signal.SIGSTOP)
    for event in order:
        if event == "term":
            server.send(signal.SIGTERM)
            if not together:
                server.expect("SIGTERM: the workers drain")
        elif event == "ready":
            gate.unlink()
            if "new" not in order[: order.index("ready")]:
                server.expect(rf"reported 0 {new}")
        else:
            with contextlib.suppress(ProcessLookupError):  # it had nothing to drain
                os.kill(old if event == "old" else new, signal.SIGKILL)
    gate.unlink(missing_ok=True)
    server.send(signal.SIGCONT)
    if "term" not in order:
        server.expect(rf"worker 0 \(pid (?!{old}|{new})\d+\) accepts")  # somebody serves in the end
        assert server.connect().ask()[1] not in (old, new)
    if "old" not in order:
        assert kept.ask() == (0, old)
    for client in server.clients:
        client.close()
    status = server.end(None if "term" in order else signal.SIGTERM)
    killed = len(order) == 3
    if together or not killed:
        # A worker that is killed while the server drains makes it 1.
        assert status == ("term" in order and killed)
    assert "SIGTERM: the workers drain" in server.output
    assert "Traceback" not in server.output
    assert "did not end in time" not in server.output


def test_a_second_sighup_within_a_roll_replaces_also_who_has_just_started(start: Start) -> None:
    server = start(workers=1)
    server.expect_ready()
    gate = server.gate(0)
    server.send(signal.SIGHUP)
    first = server.expect(r"forked 0 (\d+)").group(1)
    server.send(signal.SIGHUP)
    server.expect("SIGHUP: ")
    gate.unlink()
    server.expect("all workers are replaced")
    assert first != str(server.pids()[0])
    assert server.end(signal.SIGTERM) == 0


def test_sigterm_during_a_roll_is_no_second_sigterm_for_the_old_worker(start: Start) -> None:
    server = start(workers=1)
    kept = server.connect_to(server.expect_ready()[0])
    server.send(signal.SIGHUP)
    server.expect("all workers are replaced")
    server.send(signal.SIGTERM)
    server.expect("SIGTERM: the workers drain")
    assert kept.ask()
    kept.close()
    assert server.end() == 0


def test_sighup_tries_a_worker_again_that_was_given_up(start: Start) -> None:
    server = start(timing={"backoff": 0.001})
    pids = server.expect_ready()
    server.fault(1, "4")
    os.kill(pids[1], signal.SIGKILL)
    server.expect("given up")
    (server.folder / "fail-1").unlink()
    server.send(signal.SIGHUP)
    server.expect("worker 1 .* accepts")
    assert server.end(signal.SIGTERM) == 0
