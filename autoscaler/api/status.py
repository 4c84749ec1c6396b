# SPDX-License-Identifier: Apache-2.0
"""The status API: which services there are, how they stand, and why. It changes nothing."""

from collections import Counter
from collections.abc import Callable

from fastapi import FastAPI, HTTPException, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from pydantic import BaseModel

from autoscaler.api.metrics import exposition
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.signals import (
    MEASURES,
    RATIOS,
    SIGNALS,
    Measure,
    NoReading,
    Quantity,
    Reading,
    ServiceId,
    Signal,
)
from autoscaler.loop import ControlLoop, Record
from autoscaler.ports import SourceHealth


class ReplicaStatus(BaseModel):
    id: str
    state: str
    age_s: float
    lead_time_s: float | None
    why: str


class ReadingStatus(BaseModel):
    """One quantity as a source handed it over.

    `share_ratio`: the part of the replicas that it speaks for. `unit` is null for a user's query.
    """

    value: float
    unit: str | None
    age_s: float
    source: str
    share_ratio: float


class SignalStatus(BaseModel):
    """One signal as the last decision saw it; `why`: why it could not be told, else null."""

    value: float | None
    unit: str | None
    source: str | None
    share_ratio: float
    why: str | None


class ServiceStatus(BaseModel):
    """One service as of its last decision.

    `readings` and `absent` are what sources handed over, `signals` what was made of it over the
    signal window, as one sum over all replicas.
    """

    service: str
    state: str
    why: str
    replicas: dict[str, int]
    wished: int
    wanted: int
    bound_by: str
    because: list[str]
    measures: dict[str, float | None]
    readings: dict[str, ReadingStatus]
    absent: dict[str, str]
    signals: dict[str, SignalStatus]
    lead_time_s: dict[str, float | None]
    cold_starts: int
    replica_list: list[ReplicaStatus]


class SourceStatus(BaseModel):
    """How one source of numbers fares.

    `age_s`: since it last answered, null: never. `asked`, `failed`: since the controller's start,
    in the source's own units (scrapes, queries).
    """

    name: str
    ok: bool
    why: str | None
    age_s: float | None
    asked: int
    failed: int


class CandidateStatus(BaseModel):
    """What one target asks for; `exact` is null where its signal could not be read."""

    signal: str
    exact: float | None
    share_ratio: float
    because: str


class DecisionStatus(BaseModel):
    """One decision; `wished` is the policy's word, `bound_by` what made `replicas_to` of it."""

    at_s: float
    state: str
    replicas_from: int
    replicas_to: int
    wished: int
    bound_by: str
    why: str
    because: list[str]
    candidates: list[CandidateStatus]
    refused: str | None


def create_api(
    loop: ControlLoop,
    *,
    registry: CollectorRegistry,
    now_s: Callable[[], float],
    why_unready: Callable[[], str | None] = lambda: None,
) -> FastAPI:
    """The app that serves what `loop` has recorded; times are seconds on the controller's clock.

    All coroutines: a plain function would run on a thread, beside ticks that change what it reads.
    """
    api = FastAPI(title="Tidegate", docs_url="/docs", redoc_url=None)

    def known(namespace: str, name: str) -> ServiceId:
        service = ServiceId(namespace, name)
        if service not in loop.records:
            there = ", ".join(sorted(map(str, loop.records))) or "none yet"
            raise HTTPException(404, f"no service {service}; there are: {there}")
        return service

    @api.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether this controller could act; one that stands by is ready as well."""
        why = why_unready()
        if why is not None:
            raise HTTPException(503, why)
        return {"status": "ok"}

    @api.get("/v1/services")
    async def services() -> dict[str, list[ServiceStatus]]:
        """Every service, as of its last decision."""
        return {
            "services": [
                _status(loop, service, now_s()) for service in sorted(loop.records, key=str)
            ]
        }

    @api.get("/v1/services/{namespace}/{name}")
    async def service(namespace: str, name: str) -> ServiceStatus:
        """One service, as of its last decision."""
        return _status(loop, known(namespace, name), now_s())

    @api.get("/v1/services/{namespace}/{name}/decisions")
    async def decisions(
        namespace: str,
        name: str,
        limit: int = Query(50, ge=1, le=256),
        changes_only: bool = False,
    ) -> dict[str, list[DecisionStatus]]:
        """The last decisions, newest first, each with its candidates and the reasons."""
        records = list(loop.records[known(namespace, name)])[::-1]
        if changes_only:
            records = [record for record in records if record.decision.changes]
        return {"decisions": [_decision(record) for record in records[:limit]]}

    @api.get("/v1/sources")
    async def sources() -> dict[str, list[SourceStatus]]:
        """Where the numbers come from, the source that counts for most first."""
        return {"sources": [_source(source.health()) for source in loop.sources]}

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(await exposition(registry), media_type=CONTENT_TYPE_LATEST)

    return api


def _status(loop: ControlLoop, service: ServiceId, now_s: float) -> ServiceStatus:
    record = loop.records[service][-1]
    decision, snapshot = record.decision, record.snapshot
    lead_times = loop.lead_times(service)
    counts = Counter(str(replica.state) for replica in snapshot.replicas)
    return ServiceStatus(
        service=str(service),
        state=decision.state,
        why=decision.why,
        replicas={state: counts[state] for state in ReplicaState},
        wished=decision.wished,
        wanted=decision.replicas,
        bound_by=decision.bound_by,
        because=list(decision.because),
        measures={
            str(quantity): None if isinstance(seen, NoReading) else seen.value
            for quantity, seen in snapshot.measures.items()
        },
        readings={
            str(quantity): _reading(quantity, seen, now_s)
            for quantity, seen in snapshot.measures.items()
            if isinstance(seen, Reading)
        },
        absent={
            str(quantity): seen.why
            for quantity, seen in snapshot.measures.items()
            if isinstance(seen, NoReading)
        },
        signals={str(signal): _signal(signal, seen) for signal, seen in decision.signals.items()},
        lead_time_s={"p50": lead_times.quantile(0.5), "p95": lead_times.quantile(0.95)},
        cold_starts=loop.starts(service).total,
        replica_list=[
            ReplicaStatus(
                id=replica.id,
                state=replica.state,
                age_s=round(now_s - replica.asked_at_s, 3),
                lead_time_s=None
                if replica.ready_at_s is None
                else round(replica.ready_at_s - replica.asked_at_s, 3),
                why=replica.why,
            )
            for replica in snapshot.replicas
        ],
    )


def _reading(quantity: Quantity, seen: Reading, now_s: float) -> ReadingStatus:
    return ReadingStatus(
        value=seen.value,
        unit=_unit(quantity),
        age_s=max(round(now_s - seen.at_s, 3), 0.0),
        source=seen.source,
        share_ratio=seen.share_ratio,
    )


def _signal(signal: Quantity, seen: Reading | NoReading) -> SignalStatus:
    unit = _unit(signal)
    if isinstance(seen, NoReading):
        return SignalStatus(value=None, unit=unit, source=None, share_ratio=0.0, why=seen.why)
    return SignalStatus(
        value=seen.value, unit=unit, source=seen.source, share_ratio=seen.share_ratio, why=None
    )


def _unit(quantity: Quantity) -> str | None:
    if isinstance(quantity, Measure):
        return MEASURES[quantity].unit
    if isinstance(quantity, Signal):
        # A target is the part that one replica may use; a reading is the sum of all those parts.
        return "replicas" if quantity in RATIOS else SIGNALS[quantity].unit
    return None


def _source(health: SourceHealth) -> SourceStatus:
    return SourceStatus(
        name=health.name,
        ok=health.why is None,
        why=health.why,
        age_s=None if health.age_s is None else round(health.age_s, 3),
        asked=health.asked,
        failed=health.failed,
    )


def _decision(record: Record) -> DecisionStatus:
    decision = record.decision
    return DecisionStatus(
        at_s=round(decision.at_s, 3),
        state=decision.state,
        replicas_from=decision.current,
        replicas_to=decision.replicas,
        wished=decision.wished,
        bound_by=decision.bound_by,
        why=decision.why,
        because=list(decision.because),
        candidates=[
            CandidateStatus(
                signal=candidate.signal,
                exact=candidate.exact,
                share_ratio=candidate.share_ratio,
                because=candidate.because,
            )
            for candidate in decision.candidates
        ],
        refused=record.refused,
    )
