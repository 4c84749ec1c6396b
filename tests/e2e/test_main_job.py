# SPDX-License-Identifier: Apache-2.0
"""The main job on one machine: real controller, activator and workers, by `tidegate run`."""

import asyncio
import signal
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import TIDEGATE, Running

pytestmark = pytest.mark.slow


def ready(status: dict[str, dict[str, int]]) -> int:
    return status["replicas"]["ready"]


async def test_from_zero_to_many_and_back_without_losing_a_request(running: Running) -> None:
    """Requests at zero are held and answered, replicas rise with them, and idle ends at zero."""
    await running.until(lambda s: s["state"] == "asleep", "asleep at first")
    answers = await asyncio.gather(*(running.work(0.3) for _ in range(30)))
    assert [answer.status_code for answer in answers] == [200] * 30
    assert answers[0].headers["X-Cold-Start"] == "true"
    assert len({answer.json()["pid"] for answer in answers}) >= 2
    status = await running.until(lambda s: s["state"] == "asleep", "asleep again")
    assert status["cold_starts"] >= 2
    await running.until(lambda s: not any(s["replicas"].values()), "no process left")


async def test_a_second_wake_is_like_the_first(running: Running) -> None:
    """Zero is not a dead end: cycle after cycle every request is answered."""
    for _ in range(3):
        answer = await running.work(0)
        assert answer.status_code == 200
        await running.until(
            lambda s: s["state"] == "asleep" and not any(s["replicas"].values()), "asleep"
        )


@pytest.mark.parametrize(
    "running", [{"scale-to-zero-after": "1h", "max-replicas": 2}], indirect=True
)
async def test_a_worker_killed_in_flight_costs_its_own_requests_only(running: Running) -> None:
    """kill -9: what it had gets a clean 502 or 503, everybody else an answer; it comes back."""
    await asyncio.gather(*(running.work(0.5) for _ in range(8)))
    await running.until(
        lambda s: ready(s) == 2 and s["measures"]["in_flight"] == 0, "two replicas at rest"
    )
    asked = [asyncio.create_task(running.work(2)) for _ in range(4)]
    await running.until(lambda s: s["measures"]["in_flight"] == 4, "all four in flight")
    victim = (await _pids(running))[0]
    dying = psutil.Process(victim)
    dying.kill()
    # Until its sockets are closed, its kernel still takes what nobody will read.
    await running.until(lambda s: not dying.is_running(), "the victim is gone")
    later = asyncio.create_task(running.work(0.1))
    codes = sorted(answer.status_code for answer in await asyncio.gather(*asked))
    assert codes[:2] == [200, 200]
    assert set(codes[2:]) <= {502, 503}
    assert (await later).status_code == 200, (await later).text
    await running.until(lambda s: ready(s) == 2, "the killed one is back")


async def test_sigterm_answers_what_is_held_and_in_flight_and_leaves_no_orphan(
    running: Running,
) -> None:
    """A controller that is told to stop finishes the work first; afterwards nothing of it runs."""
    asked = [asyncio.create_task(running.work(1)) for _ in range(6)]
    await running.until(lambda s: ready(s) >= 1, "one replica")
    processes = running.processes()
    code = await running.stop()
    answers = await asyncio.gather(*asked)
    assert code == 0
    assert [answer.status_code for answer in answers] == [200] * 6
    assert not [process for process in processes if process.is_running()]


async def test_a_second_signal_ends_everything_at_once(running: Running) -> None:
    """Who does not want to wait for the last requests need not; no process stays behind."""
    work = asyncio.create_task(running.work(60))
    await running.until(lambda s: s["measures"].get("in_flight") == 1, "it is being answered")
    everyone = running.processes()
    running.process.send_signal(signal.SIGTERM)
    await running.until(lambda s: "stopping: requests may finish" in running.log(), "it heard")
    assert await running.stop() == 128 + signal.SIGTERM
    _, alive = await asyncio.to_thread(psutil.wait_procs, everyone, timeout=20)
    assert not alive
    with pytest.raises(httpx.TransportError):
        await work


@pytest.mark.parametrize("running", [{"log": "/dev/full"}], indirect=True)
async def test_a_full_disk_under_the_log_costs_lines_and_no_request(running: Running) -> None:
    """Who redirects the log to a disk that fills up still has a controller."""
    assert (await running.work(0)).status_code == 200
    await running.until(lambda s: s["state"] == "asleep" and not s["wanted"], "asleep again")
    assert (await running.work(0)).status_code == 200
    assert await running.stop() == 0


async def test_kill_9_of_the_controller_leaves_no_orphan(running: Running) -> None:
    """Even a controller that had no chance to clean up takes its processes with it."""
    await running.work(0)
    processes = running.processes()
    assert len(processes) >= 3
    await running.stop(signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=20)
    assert not alive


@pytest.mark.parametrize(
    "running",
    [
        {
            "command": ["python3", "-c", "import time; print('no weights'); time.sleep(600)"],
            "hold-timeout": "2s",
        }
    ],
    indirect=True,
)
async def test_a_worker_that_never_becomes_ready_ends_in_504_that_says_why(
    running: Running,
) -> None:
    """The wait ends at the hold timeout, and the answer says how the service stands."""
    answer = await running.http.post(f"{running.url}/v1/models/slow:predict", content=b"{}")
    assert answer.status_code == 504
    assert "waking" in answer.json()["error"]


@pytest.mark.parametrize("running", [{"processes": 2}], indirect=True)
async def test_two_activator_processes_share_the_port(running: Running) -> None:
    """With several processes nothing is lost either, and the slots still hold in sum."""
    answers = await asyncio.gather(*(running.work(0.1) for _ in range(40)))
    assert [answer.status_code for answer in answers] == [200] * 40


async def test_an_activator_that_dies_is_started_again(running: Running) -> None:
    """After a crash of the activator the service can be reached again, and still wakes."""
    (activator,) = [p for p in running.processes() if "--channel" in p.cmdline()]
    activator.kill()
    await asyncio.to_thread(activator.wait, 20)

    async def reached() -> int:
        while True:
            try:
                return (await running.work(0)).status_code
            except httpx.ConnectError:
                await asyncio.sleep(0.05)

    assert await asyncio.wait_for(reached(), 30) == 200


async def test_a_second_controller_is_refused(running: Running) -> None:
    """Two controllers on one state folder would write each other's replicas: exit 2, one line."""
    second = await asyncio.create_subprocess_exec(
        *(*TIDEGATE, "run", "--config", str(running.folder / "tidegate.toml")),
        stderr=subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(second.communicate(), 30)
    assert second.returncode == 2
    assert stderr.decode().count("\n") == 1
    assert str(running.process.pid) in stderr.decode()


async def test_metrics_and_decisions_are_there(running: Running) -> None:
    """What happened can be read: decisions with their reasons, and metrics for Prometheus."""
    await running.work(0)
    told = {"requests_total": 1, "held": 0, "in_flight": 0}
    await running.until(
        lambda s: ready(s) >= 1 and told.items() <= s["measures"].items(), "the answer is counted"
    )
    changes = await running.http.get(
        f"{running.api}/v1/services/local/slow/decisions", params={"changes_only": True}
    )
    (first, *_) = changes.json()["decisions"]
    assert (first["replicas_from"], first["state"]) == (0, "waking")
    assert "concurrency=1/2" in first["because"][0]
    labels = 'name="slow",namespace="local"'
    await running.until_metric(f'requests_ended_total{{{labels},outcome="answered"}} 1.0')
    await running.until_metric(f"cold_starts_total{{{labels}}} 1.0")
    unknown = await running.http.get(f"{running.api}/v1/services/local/fast")
    assert unknown.status_code == 404
    assert "local/slow" in unknown.json()["detail"]


def test_a_wrong_key_ends_with_2_and_one_line(tmp_path: Path) -> None:
    """The line names the file, the key and the nearest spelling; nothing is started."""
    config = tmp_path / "tidegate.toml"
    config.write_text('[services.a]\nlisten = "127.0.0.1:1"\ncommand = ["x"]\nmax-replcas = 3\n')
    done = subprocess.run(  # noqa: S603  our own command
        [*TIDEGATE, "run", "--config", str(config)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "services.a.max-replcas" in line
    assert "did you mean 'max-replicas'?" in line


async def _pids(running: Running) -> list[int]:
    return [p.pid for p in running.processes() if "slow_server" in " ".join(p.cmdline())]
