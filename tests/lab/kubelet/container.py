# SPDX-License-Identifier: Apache-2.0
"""One container: started, probed, restarted with back-off and stopped, as a kubelet would.

It knows its process and its probes; volumes, environment and status documents are the pod's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from autoscaler.adapters.local.process import ChildProcess, Exit, last_words
from autoscaler.errors import GiveUp, RetryLater
from tests.lab.kubelet.env import NotYet
from tests.lab.kubelet.probes import Answer, RunInside, Target, Threshold, ask
from tests.lab.rest import Object

log = structlog.get_logger(__name__)

BACKOFF_MAX_S = 300.0
BACKOFF_FORGOTTEN_S = 2 * BACKOFF_MAX_S  # a run as long as this starts the back-off anew
RETRY_START_S = 1.0
TERM_AT_LEAST_S = 2.0  # what SIGTERM gets however long preStop took
LOG_LOOKED_AT_S = 10.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a container needs of its pod."""

    address: Callable[[], str]
    # Starts the process; raises NotYet, RetryLater or GiveUp.
    start: Callable[[Object], Awaitable[ChildProcess]]
    inside: Callable[[int], RunInside]  # by the process id
    changed: Callable[[], None]  # the status is another
    backoff_s: float
    grace_s: float  # what a pod is given to end


class Container:
    """`spec` as in the pod; `policy` is Always, OnFailure or Never."""

    def __init__(self, spec: Object, runtime: Runtime, *, policy: str, restarts: int = 0) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.policy = policy
        self.state: Object = waiting("ContainerCreating")
        self.last_state: Object = {}
        self.restarts = restarts
        self.ready = False
        self.id = ""
        self.ended = asyncio.Event()  # it will not run again
        self.ever_started = asyncio.Event()  # its startup probe, if any, has succeeded once
        self._runtime = runtime
        self._child: ChildProcess | None = None
        self._started = asyncio.Event()  # its startup probe, if any, has succeeded in this run
        self._stopping = asyncio.Event()
        self._probing: list[asyncio.Task[None]] = []
        self._backoff_s = 0.0

    @property
    def started(self) -> bool:
        return self._started.is_set()

    async def run(self) -> None:
        """Run until it is not to run again: by its restart policy, or because of `stop`."""
        try:
            while not self._stopping.is_set():
                child = await self._start()
                if child is None:
                    break
                began_s = time.monotonic()
                code = await self._live(child)
                if self._stopping.is_set() or self.policy == "Never":
                    break
                if self.policy == "OnFailure" and code == 0:
                    break
                await self._back_off(ran_s=time.monotonic() - began_s)
        finally:
            self.ended.set()
            self._runtime.changed()

    async def stop(self, *, grace_s: float) -> None:
        """For good: preStop and SIGTERM within the grace, then SIGKILL. Returns when it ended."""
        self._stopping.set()
        while not self.ended.is_set():  # a start that was under way may bring one more process
            await self._end(grace_s=grace_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 0.1)

    def kill(self) -> None:
        """At once."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()

    async def _start(self) -> ChildProcess | None:
        """The process; None if it was stopped before it could start."""
        while not self._stopping.is_set():
            try:
                self._child = await self._runtime.start(self.spec)
                return self._child
            except NotYet as error:
                self._wait(error.reason, str(error))
            except RetryLater as error:
                self._wait("ContainerCreating", str(error))
            except GiveUp as error:
                self._wait("CreateContainerError", str(error))
            await self._pause(RETRY_START_S)
        return None

    async def _live(self, child: ChildProcess) -> int:
        """From the start of the process to its end; the exit code."""
        self.id = f"lab://{self.name}-{child.pid}"
        began = now()
        self.state = {"running": {"startedAt": began}}
        if "startupProbe" not in self.spec:
            self._start_up()
        self._runtime.changed()
        self._probing = self._probe(child)
        try:
            await self._post_start(child)
            while not child.exit.done():
                await asyncio.wait({child.exit}, timeout=LOG_LOOKED_AT_S)
                child.bound_log()
        finally:
            for task in self._probing:
                task.cancel()
        ended = child.exit.result()
        self._child = None
        self._started.clear()
        self.ready = False
        self.state = {"terminated": self._obituary(ended, began=began, log_of=child)}
        self._runtime.changed()
        return exit_code(ended)

    def _obituary(self, ended: Exit, *, began: str, log_of: ChildProcess) -> Object:
        code = exit_code(ended)
        reason = {0: "Completed", 128: "StartError"}.get(code, "Error")
        message = {"message": last_words(log_of.log)} if code else {}
        times = {"startedAt": began, "finishedAt": now()}
        return {"exitCode": code, "reason": reason, "containerID": self.id, **times, **message}

    async def _back_off(self, *, ran_s: float) -> None:
        self.last_state = self.state
        if ran_s >= BACKOFF_FORGOTTEN_S:
            self._backoff_s = 0.0
        if self._backoff_s > 0.0:
            why = f"back-off {self._backoff_s:g}s restarting failed container={self.name}"
            self._wait("CrashLoopBackOff", why)
            await self._pause(self._backoff_s)
        self._backoff_s = min(self._backoff_s * 2 or self._runtime.backoff_s, BACKOFF_MAX_S)
        self.restarts += 1

    def _wait(self, reason: str, message: str) -> None:
        told = waiting(reason, message)
        if self.state != told:
            self.state = told
            self._runtime.changed()

    async def _pause(self, for_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), for_s)

    async def _post_start(self, child: ChildProcess) -> None:
        hook = self.spec.get("lifecycle", {}).get("postStart")
        if hook and not (answer := await self._hook(hook, child)).ok:
            log.info("post_start_failed", container=self.name, why=answer.why)
            await self._end(grace_s=self._grace_s({}))

    async def _end(self, *, grace_s: float) -> None:
        child = self._child
        if child is None or child.ended:
            return
        until_s = time.monotonic() + grace_s
        hook = self.spec.get("lifecycle", {}).get("preStop")
        if hook and grace_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._hook(hook, child)
        if not child.ended:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)  # to the first process alone, as runtimes do
        left_s = until_s - time.monotonic()
        if grace_s > 0:
            await asyncio.wait({child.exit}, timeout=max(left_s, TERM_AT_LEAST_S))
        child.kill()
        await asyncio.shield(child.exit)

    async def _hook(self, hook: Object, child: ChildProcess) -> Answer:
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
            return Answer(True)
        return await ask({**hook, "timeoutSeconds": 3600}, self._target(child))

    def _target(self, child: ChildProcess) -> Target:
        return Target(self._runtime.address(), self.spec, self._runtime.inside(child.pid))

    def _probe(self, child: ChildProcess) -> list[asyncio.Task[None]]:
        kinds = {
            "startupProbe": (None, self._on_startup),
            "livenessProbe": (True, self._on_liveness),
            "readinessProbe": (False, self._on_readiness),
        }
        return [
            asyncio.create_task(
                self._watch(Threshold(self.spec[kind], begins), child, kind=kind, then=then)
            )
            for kind, (begins, then) in kinds.items()
            if kind in self.spec
        ]

    async def _watch(
        self,
        threshold: Threshold,
        child: ChildProcess,
        *,
        kind: str,
        then: Callable[[Threshold, str], None],
    ) -> None:
        """Ask every period. A startup probe that has not succeeded holds back the others."""
        probe = threshold.probe
        began_s = time.monotonic()
        while True:
            due = time.monotonic() - began_s >= probe.get("initialDelaySeconds", 0)
            if kind == "startupProbe" and self.started:
                return
            if due and (self.started or kind == "startupProbe"):
                answer = await ask(probe, self._target(child))
                if threshold.count(answer.ok):
                    then(threshold, answer.why)
                    if kind != "readinessProbe" and not answer.ok:
                        return  # the container is being ended; the next one is probed anew
            if kind != "startupProbe" and not self.started:
                await self._started.wait()
            else:
                await asyncio.sleep(self._next_in_s(probe, began_s))

    def _next_in_s(self, probe: Object, began_s: float) -> float:
        delay_s = probe.get("initialDelaySeconds", 0) - (time.monotonic() - began_s)
        return float(delay_s if delay_s > 0 else probe.get("periodSeconds", 10))

    def _on_startup(self, threshold: Threshold, why: str) -> None:
        if threshold.result:
            self._start_up()
            self._runtime.changed()
        else:
            self._condemn(threshold.probe, f"startup probe failed: {why}")

    def _start_up(self) -> None:
        self._started.set()
        self.ever_started.set()
        self.ready = "readinessProbe" not in self.spec

    def _on_liveness(self, threshold: Threshold, why: str) -> None:
        if not threshold.result:
            self._condemn(threshold.probe, f"liveness probe failed: {why}")

    def _on_readiness(self, threshold: Threshold, why: str) -> None:
        if self.ready != threshold.result:
            log.info("readiness", container=self.name, ready=threshold.result, why=why)
            self.ready = bool(threshold.result)
            self._runtime.changed()

    def _condemn(self, probe: Object, why: str) -> None:
        if self._stopping.is_set():  # a pod that is leaving is probed for readiness only
            return
        log.info("container_killed", container=self.name, why=why)
        self._dying = asyncio.create_task(self._end(grace_s=self._grace_s(probe)))

    def _grace_s(self, probe: Object) -> float:
        return float(probe.get("terminationGracePeriodSeconds", self._runtime.grace_s))


def exit_code(ended: Exit) -> int:
    """As a container runtime gives it: 128 and the signal's number for a killed process."""
    if ended.code is not None:
        return ended.code
    number = getattr(signal, ended.by, 0) if ended.by.startswith("SIG") else ended.by.split()[-1]
    return 128 + int(number)


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
