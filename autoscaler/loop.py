# SPDX-License-Identifier: Apache-2.0
"""One tick: observe, decide, check again, act, record.

The loop knows no clock, network or platform of its own; all of them come in by `ports.py`, so the
simulator runs this same file in virtual time. It is the only caller of `Cluster.scale`.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog

from autoscaler.core.decide import Decision, ServiceMemory, decide, first_memory
from autoscaler.core.lead_time import LeadTimes, StartsSeen
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.proposal import Bound
from autoscaler.core.recall import Past, recalled
from autoscaler.core.signals import (
    Measures,
    ServiceId,
    ServiceSnapshot,
    first_told,
)
from autoscaler.core.zero import ZeroState
from autoscaler.errors import RetryLater
from autoscaler.ports import (
    Clock,
    Cluster,
    MemoryStore,
    Refusal,
    RouteTable,
    ServiceView,
    SignalSource,
)

log = structlog.get_logger(__name__)

DECISIONS_KEPT = 256  # per service; of those in a row that say the same, the first and the last


@dataclass(frozen=True, slots=True)
class Record:
    """A decision, what it was made from, and what became of it."""

    decision: Decision
    snapshot: ServiceSnapshot
    policy: ServicePolicy
    refused: str | None = None

    @property
    def gist(self) -> tuple[object, ...]:
        """All but when, and the numbers that led there."""
        said = self.decision
        return (said.current, said.replicas, said.state, said.why, said.acts, self.refused)


class ControlLoop:
    """Runs ticks over all services; keeps each one's memory and its last decisions.

    `on_record(record)` is told of every decision, whatever became of it.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        sources: Sequence[SignalSource],
        routes: RouteTable,
        store: MemoryStore,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self.sources = tuple(sources)  # the one that counts for most first
        self._routes = routes
        self._store = store
        self._clock = clock
        self.on_record: Callable[[Record], None] = lambda record: None
        self._memories: dict[ServiceId, ServiceMemory] = {}
        self._learned: Mapping[ServiceId, LeadTimes] | None = None  # by earlier controllers
        self._saved: Mapping[ServiceId, LeadTimes] = {}
        self.records: dict[ServiceId, deque[Record]] = {}
        # How often which rule bound a service's count.
        self.decided: defaultdict[ServiceId, Counter[Bound]] = defaultdict(Counter)

    async def tick(self, only: Collection[ServiceId] | None = None) -> tuple[Decision, ...]:
        """Decide and act once for every service, or for those in `only`.

        A platform that cannot be asked costs this tick and nothing else: no count moves.
        """
        # 1. Observe: every source once, for all services together.
        try:
            if self._learned is None:
                self._learned = await self._store.load()
            views = await self._cluster.services()
        except RetryLater as trouble:
            log.warning("platform not read; nothing changes", why=str(trouble))
            return ()
        asked = dict(views) if only is None else {s: views[s] for s in only if s in views}
        self._forget(list(self._memories) if only is None else only, views)
        measures = await self._measure(asked)
        decisions = []
        for sid, view in asked.items():
            snapshot = await self._snapshot(view, measures[sid])
            # 2. Decide: pure.
            decision = self._decide(snapshot, view)
            # 3. and 4. Act; the cluster checks again that the generation is still the snapshot's.
            refusal = await self._act(decision)
            # 5. Record.
            why = refusal.why if refusal else None
            self._record(Record(decision, snapshot, view.policy, why))
            decisions.append(decision)
        await self._save(asked)
        return tuple(decisions)

    def lead_times(self, service: ServiceId) -> LeadTimes:
        """What has been learned of a service's lead time so far."""
        memory = self._memories.get(service)
        return memory.lead_times if memory else LeadTimes()

    def starts(self, service: ServiceId) -> StartsSeen:
        """The starts of a service's replicas that ended since this loop began."""
        memory = self._memories.get(service)
        return memory.starts_seen if memory else StartsSeen()

    def remembers(self, service: ServiceId) -> ServiceMemory | None:
        """What deciding remembers of a service; None: it was never seen."""
        return self._memories.get(service)

    def recall(self, service: ServiceId, past: Past, *, gap_s: float) -> None:
        """Take in what somebody else remembers of a service's signals; see `core/recall.py`."""
        memory, records = self._memories.get(service), self.records.get(service)
        if memory is not None and records:
            self._memories[service] = recalled(
                memory, records[-1].policy, past, now_s=self._clock.now_s(), gap_s=gap_s
            )

    async def _measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        told = [await source.measure(services) for source in self.sources]
        return {sid: first_told(of.get(sid, {}) for of in told) for sid in services}

    async def _snapshot(self, view: ServiceView, measures: Measures) -> ServiceSnapshot:
        memory = self._memories.get(view.service)
        # An active service needs no proof that the activator receives its requests; one that is
        # not acted upon is to keep its path as well.
        wants_path = memory is not None and memory.state is not ZeroState.ACTIVE
        wants_path = wants_path and not (view.policy.paused or view.policy.dry_run)
        return ServiceSnapshot(
            service=view.service,
            at_s=self._clock.now_s(),
            generation=view.generation,
            scale=view.scale,
            replicas=view.replicas,
            measures=measures,
            path_held=wants_path and await self._routes.hold(view.service),
            in_path=self._routes.in_path(view.service),
            written_by=view.written_by,
        )

    def _decide(self, snapshot: ServiceSnapshot, view: ServiceView) -> Decision:
        sid = view.service
        memory = self._memories.get(sid)
        if memory is None:
            learned = (self._learned or {}).get(sid, LeadTimes())
            memory = first_memory(snapshot, learned)
        decision, self._memories[sid] = decide(snapshot, view.policy, memory, snapshot.at_s)
        return decision

    async def _act(self, decision: Decision) -> Refusal | None:
        refusal = None
        if decision.changes:
            refusal = await self._cluster.scale(
                decision.service, decision.replicas, generation=decision.generation
            )
        await self._routes.announce(decision.service, state=decision.state, why=decision.why)
        if decision.acts and decision.in_path is None:
            await self._routes.release(decision.service)
        elif decision.acts:
            await self._routes.hold(decision.service)
        return refusal

    def _record(self, record: Record) -> None:
        decision = record.decision
        self.decided[decision.service][decision.bound_by] += 1
        records = self.records.setdefault(decision.service, deque(maxlen=DECISIONS_KEPT))
        before = records[-1].decision if records else None
        if len(records) > 1 and records[-2].gist == records[-1].gist == record.gist:
            records.pop()
        records.append(record)
        self.on_record(record)
        if decision.changes or before is None or before.state is not decision.state:
            log.info(
                "decided",
                service=str(decision.service),
                state=str(decision.state),
                replicas_from=decision.current,
                replicas_to=decision.replicas,
                because="; ".join(decision.because),
                why=decision.why,
                refused=record.refused,
            )

    def _forget(self, among: Collection[ServiceId], views: Mapping[ServiceId, ServiceView]) -> None:
        for service in among:
            if service not in views:
                self._memories.pop(service, None)
                self.records.pop(service, None)
                self.decided.pop(service, None)

    async def _save(self, asked: Collection[ServiceId]) -> None:
        new = any(self._memories[sid].lead_times != self._saved.get(sid) for sid in asked)
        if not new and len(self._memories) == len(self._saved):
            return
        learned = {sid: memory.lead_times for sid, memory in self._memories.items()}
        try:
            await self._store.save({**(self._learned or {}), **learned})
        except RetryLater as trouble:
            log.warning("lead times not saved; trying again at the next tick", why=str(trouble))
        else:
            self._saved = learned
