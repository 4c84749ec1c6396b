# SPDX-License-Identifier: Apache-2.0
"""The status API: which services there are, how they stand, and why. It changes nothing."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel

from autoscaler.core.replicas import ReplicaState
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.loop import ControlLoop, Record


class ReplicaStatus(BaseModel):
    id: str
    state: str
    age_s: float
    lead_time_s: float | None
    why: str


class ServiceStatus(BaseModel):
    """One service as of its last decision."""

    service: str
    state: str
    why: str
    replicas: dict[str, int]
    wanted: int
    because: list[str]
    measures: dict[str, float | None]
    absent: dict[str, str]
    lead_time_s: dict[str, float | None]
    cold_starts: int
    replica_list: list[ReplicaStatus]


class DecisionStatus(BaseModel):
    at_s: float
    state: str
    replicas_from: int
    replicas_to: int
    why: str
    because: list[str]
    candidates: list[dict[str, Any]]
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

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

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
        wanted=decision.replicas,
        because=list(decision.because),
        measures={
            str(quantity): None if isinstance(seen, NoReading) else seen.value
            for quantity, seen in snapshot.measures.items()
        },
        absent={
            str(quantity): seen.why
            for quantity, seen in snapshot.measures.items()
            if isinstance(seen, NoReading)
        },
        lead_time_s={"p50": lead_times.quantile(0.5), "p95": lead_times.quantile(0.95)},
        cold_starts=loop.cold_starts(service),
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


def _decision(record: Record) -> DecisionStatus:
    decision = record.decision
    return DecisionStatus(
        at_s=round(decision.at_s, 3),
        state=decision.state,
        replicas_from=decision.current,
        replicas_to=decision.replicas,
        why=decision.why,
        because=list(decision.because),
        candidates=[
            {"signal": c.signal, "exact": c.exact, "because": c.because}
            for c in decision.candidates
        ],
        refused=record.refused,
    )
