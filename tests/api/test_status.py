# SPDX-License-Identifier: Apache-2.0
"""The status API says where every number comes from, how old it is, and what was made of it."""

from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from autoscaler.api.metrics import LoopCollector
from autoscaler.api.status import create_api
from autoscaler.core.policy import RateRule, Target
from autoscaler.core.signals import Measure, Measures, NoReading, Query, Reading, Signal
from tests.api.builders import ASource, Stage, a_health

SERVICE = "/v1/services/local/iris"
QUERY = Query("sum(jobs_waiting)")


async def test_metrics_are_served_as_text() -> None:
    """A scrape gets what was collected at that moment."""
    stage, registry = Stage(ASource(a_health())), CollectorRegistry()
    registry.register(LoopCollector(stage.loop, demand=lambda _: NoReading("no activator")))
    await stage.tick_at(0.0)
    async with connected(stage, registry) as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'tidegate_wanted_replicas{name="iris",namespace="local"} 4.0' in answer.text


def connected(stage: Stage, registry: CollectorRegistry) -> httpx.AsyncClient:
    api = create_api(stage.loop, registry=registry, now_s=stage.clock.now_s)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://api")


async def asked(stage: Stage, path: str) -> Any:
    """The answer's JSON."""
    async with connected(stage, CollectorRegistry()) as client:
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def test_every_source_says_how_it_fares_in_the_order_that_counts() -> None:
    """One that is well, one that fails for some, and one that never answered."""
    stage = Stage(
        ASource(a_health("engines", age_s=0.25, asked=100)),
        ASource(a_health("prometheus", why="503 from http://prom", age_s=61.5, asked=9, failed=3)),
        ASource(a_health("nvml", why="no driver", age_s=None, asked=1, failed=1)),
    )
    assert await asked(stage, "/v1/sources") == {
        "sources": [
            {"name": "engines", "ok": True, "why": None, "age_s": 0.25, "asked": 100, "failed": 0},
            {
                "name": "prometheus",
                "ok": False,
                "why": "503 from http://prom",
                "age_s": 61.5,
                "asked": 9,
                "failed": 3,
            },
            {
                "name": "nvml",
                "ok": False,
                "why": "no driver",
                "age_s": None,
                "asked": 1,
                "failed": 1,
            },
        ]
    }


async def test_a_reading_carries_its_source_its_age_and_whom_it_speaks_for() -> None:
    """What is absent is named with the reason, and has no value anywhere."""
    told: Measures = {
        Measure.KV_USED: Reading(2.5, 97.0, "engines", 0.75),
        Measure.WAITING: NoReading("2 of 4 pods: timed out"),
        QUERY: Reading(12.0, 90.0, "prometheus"),
    }
    stage = Stage(ASource(a_health(), told), targets=(Target(Signal.KV, 0.5), Target(QUERY, 4.0)))
    await stage.tick_at(100.0)
    stage.clock.at_s = 100.5
    status = await asked(stage, SERVICE)
    assert status["readings"] == {
        "kv_used": {
            "value": 2.5,
            "unit": "replicas",
            "age_s": 3.5,
            "source": "engines",
            "share_ratio": 0.75,
        },
        "prometheus(sum(jobs_waiting))": {
            "value": 12.0,
            "unit": None,
            "age_s": 10.5,
            "source": "prometheus",
            "share_ratio": 1.0,
        },
    }
    assert status["absent"] == {"waiting": "2 of 4 pods: timed out"}
    assert status["measures"] == {
        "kv_used": 2.5,
        "waiting": None,
        "prometheus(sum(jobs_waiting))": 12.0,
    }


async def test_signals_are_what_the_decision_saw() -> None:
    """A value over the window with its share, or why there is none; never 0 for unknown."""
    told: Measures = {
        Measure.KV_USED: Reading(2.5, 100.0, "engines", 0.75),
        Measure.WAITING: NoReading("timed out"),
    }
    stage = Stage(ASource(a_health(), told), targets=(Target(Signal.KV, 0.5),))
    await stage.tick_at(100.0)
    signals = (await asked(stage, SERVICE))["signals"]
    assert signals["kv"] == {
        "value": 2.5,
        "unit": "replicas",
        "source": "engines",
        "share_ratio": 0.75,
        "why": None,
    }
    assert signals["queue"] == {
        "value": None,
        "unit": "requests",
        "source": None,
        "share_ratio": 0.0,
        "why": "timed out",
    }
    assert set(signals) == set(Signal)


async def test_a_decision_shows_the_wish_what_bound_it_and_who_told() -> None:
    """Half of the replicas say little: nothing falls, and the decision says why."""
    told: Measures = {Measure.KV_USED: Reading(0.5, 0.0, "engines", 0.5)}
    stage = Stage(
        ASource(a_health(), told),
        targets=(Target(Signal.KV, 0.5), Target(Signal.RPS, 5.0)),
        scale_down=RateRule(window_s=0.0),
    )
    await stage.tick_at(0.0)
    (decision,) = (await asked(stage, f"{SERVICE}/decisions"))["decisions"]
    assert (decision["wished"], decision["replicas_to"], decision["bound_by"]) == (4, 4, "hold")
    assert decision["candidates"] == [
        {
            "signal": "kv",
            "exact": 1.0,
            "share_ratio": 0.5,
            "because": "kv=0.5/0.5 (50% of replicas told)",
        },
        {
            "signal": "rps",
            "exact": None,
            "share_ratio": 0.0,
            "because": "rps=? (no source reports it)",
        },
    ]
    status = await asked(stage, SERVICE)
    assert (status["wished"], status["wanted"], status["bound_by"]) == (4, 4, "hold")
