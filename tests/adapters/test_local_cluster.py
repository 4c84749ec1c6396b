# SPDX-License-Identifier: Apache-2.0
"""The local platform with real processes: from asked for to gone, and each fault in between."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from autoscaler import schedule
from autoscaler.adapters.local import cluster as cluster_module
from autoscaler.adapters.local.cluster import LocalCluster
from autoscaler.adapters.local.replicas import LocalService, Site
from autoscaler.adapters.plain_http import At
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.routes import Demand
from autoscaler.core.signals import NoReading
from autoscaler.errors import BadInput, GiveUp
from tests.adapters.builders import a_local_service, a_service_id
from tests.adapters.machine import BRISK, TOY, Machine, alive, eventually, in_group
from tests.fakes import FakeActivators, WallClock


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


STARTING, READY = ReplicaState.STARTING, ReplicaState.READY
DRAINING, FAILED = ReplicaState.DRAINING, ReplicaState.FAILED


async def test_a_replica_starts_serves_and_is_gone_again(machine: Machine) -> None:
    """Scaling 0 -> 1 -> 0 leads through starting, ready, draining, and leaves no process."""
    await machine.up(a_local_service(*TOY, slots=3))
    assert machine.states() == []

    assert await machine.scale(1) is None
    assert machine.states() == [STARTING]
    (replica,) = await machine.until(READY)
    assert replica.ready_at_s is not None
    assert replica.ready_at_s > replica.asked_at_s
    assert replica.why == ""
    (endpoint,) = machine.endpoints().values()
    assert (endpoint.id, endpoint.slots, endpoint.draining) == (replica.id, 3, False)

    pid = machine.cluster.pids()[replica.id]
    assert await machine.scale(0) is None
    assert machine.states() == [DRAINING]
    assert machine.endpoints()[replica.id].draining
    await machine.until()
    assert machine.endpoints() == {}
    assert in_group(pid) == []
    assert set(machine.changes) == {a_service_id()}


async def test_a_replica_is_told_where_to_listen_and_who_it_is(
    machine: Machine, tmp_path: Path
) -> None:
    """Its environment is the user's and PORT, HOST and names; placeholders in the command too."""
    told = tmp_path / "told"
    env = {"MODEL": "iris", "PORT": "not this one"}
    command = (*TOY, "--env-file", str(told), "--port", "{port}")
    await machine.up(a_local_service(*command, env=env))
    await machine.scale(1)
    (replica,) = await machine.until(READY)

    (endpoint,) = machine.endpoints().values()
    lines = set(told.read_text().splitlines())
    assert {
        "MODEL=iris",
        f"PORT={endpoint.port}",
        f"HOST={endpoint.host}",
        "TIDEGATE_SERVICE=toy",
        f"TIDEGATE_REPLICA={replica.id}",
    } <= lines


async def test_a_service_begins_with_its_initial_replicas(machine: Machine) -> None:
    """`initial-replicas` is the first count, before any decision."""
    await machine.up(a_local_service(*TOY, initial_replicas=2))
    await machine.until(READY, READY)
    assert machine.view().scale == 2


async def test_a_killed_replica_fails_and_starts_again(machine: Machine) -> None:
    """After `kill -9` it is out of the routes, says why, and comes back as a new start."""
    await machine.up(a_local_service(*TOY, "--say", "about to serve"))
    await machine.scale(1)
    (first,) = await machine.until(READY)
    generation = machine.view().generation

    os.kill(machine.cluster.pids()[first.id], signal.SIGKILL)
    (failed,) = await machine.until(FAILED)
    assert failed.why == "killed by SIGKILL: about to serve"
    assert machine.endpoints() == {}
    (again,) = await machine.until(READY)
    assert again.id != first.id
    assert again.asked_at_s > first.asked_at_s
    assert list(machine.endpoints()) == [again.id]
    assert machine.view().generation == generation, "a crash is no change of the scale"


async def test_a_replica_that_ends_at_once_says_its_exit_code_and_last_words(
    machine: Machine,
) -> None:
    """What a person needs to mend it stands in `why`, also while it is started again."""
    await machine.up(a_local_service(*TOY, "--say", "no such model: iris", "--exit", "3"))
    await machine.scale(1)
    (failed,) = await machine.until(FAILED)
    assert failed.why == "exit code 3: no such model: iris"
    (starting,) = await machine.until(STARTING)
    assert starting.why.endswith("; the start before: exit code 3: no such model: iris")


async def test_a_command_that_does_not_exist_is_named(machine: Machine) -> None:
    """A command that cannot be found fails the replica with a clear reason and a remedy."""
    await machine.up(a_local_service("no-such-server"))
    await machine.scale(1)
    (failed,) = await machine.until(FAILED)
    assert failed.why == (
        "cannot start 'no-such-server': no such command; give its full path or mend PATH"
    )


async def test_a_working_directory_that_does_not_exist_is_named(
    machine: Machine, tmp_path: Path
) -> None:
    """The missing directory is blamed, not the command."""
    await machine.up(a_local_service(*TOY, cwd=tmp_path / "gone"))
    await machine.scale(1)
    (failed,) = await machine.until(FAILED)
    assert f"its working directory {tmp_path / 'gone'} does not exist" in failed.why


async def test_a_replica_that_is_never_ready_says_why_and_fails_in_the_end(
    machine: Machine, tmp_path: Path
) -> None:
    """It stays starting with the probe's answer as reason until the cold-start timeout."""
    never = ("--ready-file", str(tmp_path / "never"))
    await machine.up(a_local_service(*TOY, *never, cold_start_timeout_s=1.0))
    await machine.scale(1)
    await eventually(
        lambda: machine.replicas()[0].why.endswith("/v2/health/ready answered 503"),
        what="the probe's answer as the reason",
    )
    assert machine.states() == [STARTING]
    assert machine.endpoints() == {}
    (pid,) = machine.cluster.pids().values()
    (failed,) = await machine.until(FAILED)
    assert failed.why.startswith("not ready within cold-start-timeout=1s: ")
    await eventually(lambda: in_group(pid) == [], what="the overdue process is gone")


async def test_a_ready_replica_that_falls_silent_gets_no_requests_until_it_answers(
    machine: Machine, tmp_path: Path
) -> None:
    """Its endpoint drains while it does not answer, and serves again once it does."""
    mute = tmp_path / "mute"
    await machine.up(a_local_service(*TOY, "--mute-file", str(mute)))
    await machine.scale(1)
    (ready,) = await machine.until(READY)
    mute.touch()
    (silent,) = await machine.until(STARTING)
    assert silent.why.startswith("3 readiness probes in a row failed: http://127.0.0.1:")
    assert silent.why.endswith("/v2/health/ready was not answered within 0.5s")
    assert machine.endpoints()[ready.id].draining
    mute.unlink()
    (back,) = await machine.until(READY)
    assert back == ready, "the same process with the lead time that it had"
    assert not machine.endpoints()[ready.id].draining


async def test_a_replica_that_ignores_sigterm_is_killed_after_the_grace(machine: Machine) -> None:
    """SIGTERM, the grace, SIGKILL; nothing outlives that."""
    await machine.up(a_local_service(*TOY, "--ignore-term", stop_grace_s=0.3))
    await machine.scale(1)
    await machine.until(READY)
    (pid,) = machine.cluster.pids().values()
    await machine.scale(0)
    await machine.until()
    assert in_group(pid) == []


async def test_a_draining_replica_waits_for_its_last_request(machine: Machine) -> None:
    """It is stopped when the activator reports nothing in flight, and not before."""
    await machine.up(a_local_service(*TOY))
    await machine.scale(1)
    (replica,) = await machine.until(READY)
    service = str(a_service_id())
    machine.activators.demands[service] = Demand(service, in_flight_by_endpoint={replica.id: 1})
    await machine.scale(0)
    asked = machine.activators.asked
    await eventually(lambda: machine.activators.asked > asked + 20, what="it looked often")
    assert machine.states() == [DRAINING]
    assert alive(machine.cluster.pids()[replica.id])

    machine.activators.demands[service] = Demand(service)
    await machine.until()


@pytest.mark.parametrize(
    ("demand", "share"),
    [
        pytest.param(NoReading("no activator reports"), 0.0, id="no word"),
        pytest.param(Demand("local/toy"), 0.5, id="the word of one of two activators"),
    ],
)
async def test_a_draining_replica_does_not_take_silence_for_idleness(
    machine: Machine, demand: Demand | NoReading, share: float
) -> None:
    """What is not known to be idle is kept until the grace is over (rule D1), and no longer."""
    await machine.up(a_local_service(*TOY, drain_grace_s=1.0))
    await machine.scale(1)
    (replica,) = await machine.until(READY)
    machine.activators.demands[str(a_service_id())] = demand
    machine.activators.share = share
    await machine.scale(0)
    asked = machine.activators.asked
    await eventually(lambda: machine.activators.asked > asked + 20, what="it looked often")
    assert alive(machine.cluster.pids()[replica.id])
    await machine.until()


async def test_a_draining_replica_waits_until_the_activators_know_of_it(machine: Machine) -> None:
    """An activator that stalls may send it one more request than it has told of."""
    await machine.up(a_local_service(*TOY))
    await machine.scale(1)
    (replica,) = await machine.until(READY)
    machine.activators.follows = False
    await machine.scale(0)
    asked = machine.activators.asked
    await eventually(lambda: machine.activators.asked > asked + 20, what="it looked often")
    assert alive(machine.cluster.pids()[replica.id])

    machine.activators.follows = True
    await machine.until()


async def test_a_replica_too_busy_to_answer_is_not_overdue(
    machine: Machine, tmp_path: Path
) -> None:
    """A request may keep it from answering probes: the cold-start timeout waits for its end."""
    mute = tmp_path / "mute"
    service = str(a_service_id())
    await machine.up(a_local_service(*TOY, "--mute-file", str(mute), cold_start_timeout_s=0.2))
    await machine.scale(1)
    (replica,) = await machine.until(READY)
    machine.activators.demands[service] = Demand(service, in_flight_by_endpoint={replica.id: 1})
    mute.touch()
    await machine.until(STARTING)
    asked = machine.activators.asked
    await eventually(lambda: machine.activators.asked > asked + 3, what="it is long overdue")
    assert machine.states() == [STARTING]

    machine.activators.demands[service] = Demand(service)
    (failed,) = await machine.until(FAILED)
    assert failed.why.startswith("not ready within cold-start-timeout=0.2s: ")


async def test_no_request_outlives_the_activators(machine: Machine) -> None:
    """Once every activator is gone a replica need not wait for requests: there are none."""
    cluster = await machine.up(a_local_service(*TOY, drain_grace_s=600.0))
    activator = cluster.keep("activator", ("sleep", "600"))
    await machine.scale(1)
    await machine.until(READY)
    machine.activators.demands[str(a_service_id())] = NoReading("no activator is connected")
    await machine.scale(0)
    assert machine.states() == [DRAINING]
    await activator.stop()
    await machine.until()


async def test_a_draining_replica_is_recalled_when_the_count_rises_again(machine: Machine) -> None:
    """What is warm already is used again instead of starting a cold one."""
    await machine.up(a_local_service(*TOY))
    await machine.scale(1)
    (replica,) = await machine.until(READY)
    service = str(a_service_id())
    machine.activators.demands[service] = Demand(service, in_flight_by_endpoint={replica.id: 1})
    await machine.scale(0)
    await machine.scale(1)
    (recalled,) = await machine.until(READY)
    assert recalled == replica
    assert not machine.endpoints()[replica.id].draining


async def test_the_idlest_replica_goes_first(machine: Machine) -> None:
    """Of three ready ones the one without requests is drained."""
    await machine.up(a_local_service(*TOY))
    await machine.scale(3)
    one, two, three = await machine.until(READY, READY, READY)
    service = str(a_service_id())
    machine.activators.demands[service] = Demand(
        service, in_flight_by_endpoint={one.id: 2, two.id: 0, three.id: 1}
    )
    await machine.scale(2)
    assert machine.endpoints()[two.id].draining
    left = await machine.until(READY, READY)
    assert {replica.id for replica in left} == {one.id, three.id}


async def test_a_decision_on_an_older_generation_is_refused(machine: Machine) -> None:
    """What was decided before the last change is not carried out."""
    cluster = await machine.up(a_local_service(*TOY))
    before = machine.view()
    assert await cluster.scale(before.service, 1, generation=before.generation) is None
    refusal = await cluster.scale(before.service, 2, generation=before.generation)
    assert refusal is not None
    assert refusal.why == "decided on generation 1, it is 2 by now"
    assert machine.view().scale == 1


async def test_asking_for_the_count_that_is_there_changes_nothing(machine: Machine) -> None:
    """The generation stays, so that a decision made meanwhile still holds."""
    await machine.up(a_local_service(*TOY))
    before = machine.view()
    assert await machine.scale(0) is None
    assert machine.view() == before


async def test_impossible_scales_are_refused(machine: Machine) -> None:
    """An unknown service and a negative count are values, not errors."""
    cluster = await machine.up(a_local_service(*TOY))
    unknown = await cluster.scale(a_service_id("other"), 1, generation=1)
    assert unknown is not None
    assert unknown.why == "no service local/other on this machine"
    negative = await machine.scale(-1)
    assert negative is not None
    assert negative.why == "-1 replicas cannot be"


async def test_what_the_controller_says_reaches_the_routes(machine: Machine) -> None:
    """State and reason are published when they change, and only then."""
    cluster = await machine.up(a_local_service(*TOY))
    await cluster.announce(a_service_id(), state="waking", why="2 requests are held")
    route = machine.activators.route(str(a_service_id()))
    assert (route.state, route.why) == ("waking", "2 requests are held")
    published = len(machine.activators.published)
    await cluster.announce(a_service_id(), state="waking", why="2 requests are held")
    assert len(machine.activators.published) == published


async def test_the_path_is_held_once_an_activator_says_so(machine: Machine) -> None:
    """On one machine the activator is always in the path; it must only be up."""
    cluster = await machine.up(a_local_service(*TOY))
    assert not await cluster.hold(a_service_id())
    machine.activators.holding.add(str(a_service_id()))
    assert await cluster.hold(a_service_id())


async def test_close_leaves_no_process(machine: Machine, tmp_path: Path) -> None:
    """Whatever a replica does or has started, `close()` ends it within the grace."""
    before = psutil.Process().children()
    starting = a_local_service(*TOY, "--ready-file", str(tmp_path / "never"), name="slow")
    stubborn = a_local_service(*TOY, "--ignore-term", name="stubborn", port=8002)
    parent = a_local_service(
        *TOY, "--child-pid-file", str(tmp_path / "child"), name="parent", port=8003
    )
    cluster = await machine.up(starting, stubborn, parent)
    kept = cluster.keep("activator", ("sleep", "600"))
    for name in ("slow", "stubborn", "parent"):
        await machine.scale(1, name=name)
    await machine.until(READY, name="stubborn")
    await machine.until(READY, name="parent")
    groups = [*cluster.pids().values(), kept.pid]
    assert len(groups) == 4
    assert alive(int((tmp_path / "child").read_text()))

    await cluster.close(grace_s=1.0)
    assert [pid for group in groups if group for pid in in_group(group)] == []
    assert psutil.Process().children() == before, "nor a zombie, nor the guard"
    assert await machine.scale(1, name="slow") is not None, "nothing starts after close"


async def test_what_a_replica_started_goes_with_it(machine: Machine, tmp_path: Path) -> None:
    """The whole group is stopped, also when its leader was killed."""
    child_pid_file = tmp_path / "child"
    await machine.up(a_local_service(*TOY, "--child-pid-file", str(child_pid_file)))
    await machine.scale(1)
    (replica,) = await machine.until(READY)
    child = int(child_pid_file.read_text())
    os.kill(machine.cluster.pids()[replica.id], signal.SIGKILL)
    await eventually(lambda: not alive(child), what="the child of a killed replica is gone")


async def test_a_replica_whose_port_was_taken_comes_up_on_another(
    machine: Machine, tmp_path: Path
) -> None:
    """A worker that cannot bind ends; its next start is given another port."""
    with taken_port() as port:
        script = f'if mkdir "$0" 2>/dev/null; then PORT={port}; fi; export PORT; exec "$@"'
        await machine.up(a_local_service("sh", "-c", script, str(tmp_path / "tried"), *TOY))
        await machine.scale(1)
        (failed,) = await machine.until(FAILED)
        assert "Address already in use" in failed.why
        await machine.until(READY)
        (endpoint,) = machine.endpoints().values()
        assert endpoint.port != port


async def test_a_crash_loop_slows_down_and_keeps_few_logs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start has a log of its own; only the last ones stay on disk."""
    monkeypatch.setattr(cluster_module, "LOGS_KEPT", 3)
    await machine.up(a_local_service(*TOY, "--say", "no model", "--exit", "3"))
    await machine.scale(1)
    await eventually(lambda: machine.replicas()[0].id == "toy-8", what="it failed seven times")
    logs = {path.stem for path in (machine.log_dir / "toy").iterdir()}
    assert {"toy-6", "toy-7"} <= logs
    assert len(logs) <= 3 + 2, "beside the kept ones the last end's and the present one's"
    assert machine.view().scale == 1


@pytest.mark.parametrize("in_the_way", ["logs", "logs.previous"])
async def test_a_file_where_the_logs_should_be_is_named(machine: Machine, in_the_way: str) -> None:
    """Before anything is started that could say nothing anywhere."""
    if in_the_way != "logs":
        machine.log_dir.mkdir()
    machine.log_dir.with_name(in_the_way).touch()
    with pytest.raises(GiveUp, match="remove what is in the way"):
        await machine.up(a_local_service(*TOY))


async def test_logs_of_the_last_run_are_kept_aside(machine: Machine) -> None:
    """What a run before this one said can still be read, and that of one run only."""
    for run in ("before", "last"):
        (machine.log_dir / "toy").mkdir(parents=True)
        (machine.log_dir / "toy" / "toy-1.log").write_text(run)
        cluster = await machine.up(a_local_service(*TOY))
        await cluster.close()
    kept = machine.state_dir / "logs.previous" / "toy" / "toy-1.log"
    assert kept.read_text() == "last"
    assert not machine.log_dir.exists()


async def test_metrics_are_asked_of_replicas_that_may_hold_a_queue(
    machine: Machine, tmp_path: Path
) -> None:
    """Those that are or were ready, of services that have metrics."""
    mute = tmp_path / "mute"
    never = ("--ready-file", str(tmp_path / "never"))
    cluster = await machine.up(
        a_local_service(*TOY, "--mute-file", str(mute), metrics_path="/metrics"),
        a_local_service(*TOY, *never, name="slow", port=8002, metrics_path="/m"),
        a_local_service(*TOY, name="plain", port=8003),
    )
    for name in ("toy", "slow", "plain"):
        await machine.scale(1, name=name)
    (replica,) = await machine.until(READY)
    await machine.until(READY, name="plain")
    endpoint = machine.endpoints()[replica.id]
    there = {replica.id: At("127.0.0.1", endpoint.port, "/metrics")}
    assert cluster.metrics_places() == {a_service_id(): there, a_service_id("slow"): {}}
    mute.touch()
    await machine.until(STARTING)
    assert cluster.metrics_places()[a_service_id()] == there
    mute.unlink()


async def test_of_replicas_whose_load_is_unknown_the_youngest_goes(machine: Machine) -> None:
    """Without a word from the activator the count still falls, as it was decided."""
    await machine.up(a_local_service(*TOY, drain_grace_s=0.1))
    await machine.scale(1)
    (old,) = await machine.until(READY)
    await machine.scale(2)
    await machine.until(READY, READY)
    machine.activators.demands[str(a_service_id())] = NoReading("no activator reports")
    await machine.scale(1)
    assert await machine.until(READY) == (old,)


async def test_a_change_is_told_when_its_route_is_published(machine: Machine) -> None:
    """Whoever is woken by a change finds the routes as they are after it."""
    routes_seen: list[int] = []
    cluster = LocalCluster(
        [a_local_service(*TOY)],
        site=Site(clock=WallClock(), log_dir=machine.log_dir, timings=BRISK),
        activators=machine.activators,
        on_change=lambda service: routes_seen.append(len(machine.endpoints())),
    )
    await cluster.start()
    await cluster.scale(a_service_id(), 1, generation=cluster.view(a_service_id()).generation)
    await eventually(lambda: 1 in routes_seen, what="its readiness was told")
    await cluster.close(grace_s=1.0)
    assert routes_seen[-1] == 0


def test_a_schedule_holds_by_the_clock_that_is_given(machine: Machine) -> None:
    """Inside its window a service has the window's bounds, outside its own."""
    policy = a_local_service(*TOY).policy
    windows = schedule.read("Mon-Fri 08:00-20:00 UTC min=2 max=3")
    monday = datetime(2026, 11, 23, 19, 59, tzinfo=UTC)
    times = [monday, monday.replace(hour=20)]
    cluster = LocalCluster(
        [replace(a_local_service(*TOY), policy=replace(policy, schedule=windows))],
        site=Site(clock=WallClock(), log_dir=machine.log_dir, timings=BRISK),
        activators=machine.activators,
        now=iter(times).__next__,
    )
    inside, outside = (cluster.view(a_service_id()).policy for _ in times)
    assert (inside.min_replicas, inside.max_replicas) == (2, 3)
    assert (outside.min_replicas, outside.max_replicas) == (
        policy.min_replicas,
        policy.max_replicas,
    )


@pytest.mark.parametrize(
    ("services", "problems"),
    [
        pytest.param(
            [replace(a_local_service(name="../up", port=0), command=())],
            [
                "service '../up': a name is made of letters, digits, '.', '_' and '-'",
                "service '../up': port=0 must be its own, 1 to 65535",
                "service '../up': command is empty; say how to start a replica",
            ],
            id="all problems of one service at once",
        ),
        pytest.param(
            [a_local_service(port=8001), a_local_service(name="other", port=8001)],
            [
                "service 'toy': port=8001 must be its own, 1 to 65535",
                "service 'other': port=8001 must be its own, 1 to 65535",
            ],
            id="one port for two",
        ),
        pytest.param(
            [a_local_service(port=8001), a_local_service(port=8002)],
            ["service 'toy': there are two of this name; rename one"],
            id="one name for two",
        ),
        pytest.param(
            [a_local_service(metrics_path="metrics")],
            ["service 'toy': metrics-path='metrics' must begin with '/'"],
            id="a path that is none",
        ),
    ],
)
def test_services_that_cannot_be_are_refused(
    services: list[LocalService], problems: list[str], tmp_path: Path
) -> None:
    """Every problem with its remedy, before anything is started."""
    site = Site(clock=WallClock(), log_dir=tmp_path)
    with pytest.raises(BadInput) as refused:
        LocalCluster(services, site=site, activators=FakeActivators())
    assert list(refused.value.problems) == problems
