# SPDX-License-Identifier: Apache-2.0
"""Whatever the traffic and the policy: requests are conserved, bounds hold, runs repeat."""

from hypothesis import given, settings
from hypothesis import strategies as st

from simulations import report
from simulations.replay import Outcome, Replay, Settings
from simulations.traces.arrivals import Arrival
from tests.simulations.runs import a_run

GAPS_S = st.one_of(st.just(0.0), st.floats(0.0, 3.0), st.floats(0.0, 90.0))
TOKENS = st.integers(0, 3000)


@st.composite
def traffic(draw: st.DrawFn) -> list[Arrival]:
    arrivals, at_s = [], 0.0
    for gap_s in draw(st.lists(GAPS_S, min_size=1, max_size=30)):
        at_s += gap_s
        arrivals.append(Arrival(at_s, draw(TOKENS), draw(TOKENS)))
    return arrivals


@st.composite
def runs(draw: st.DrawFn) -> Settings:
    most = draw(st.integers(1, 6))
    least = draw(st.integers(0, most))
    window = draw(st.sampled_from(["tolerance=0%", "window=5s", "1/10s; window=0s", "50%/15s"]))
    return a_run(
        slots=draw(st.integers(1, 4)),
        cold_start=draw(st.sampled_from(["0s", "3s", "40s", "uniform(0s,90s)", "lognormal(9s,1)"])),
        service_time=draw(st.sampled_from(["0.1s", "5ms/token", "1s + 1ms/prompt-token"])),
        tick_s=draw(st.sampled_from([1.0, 2.5, 7.0])),
        tail_s=draw(st.sampled_from([0.0, 90.0])),
        seed=draw(st.integers(0, 99)),
        targets=draw(
            st.sampled_from(["concurrency=1", "queue=2", "rps=0.5, tokens/s=100", "concurrency=3"])
        ),
        min_replicas=str(least),
        max_replicas=str(most),
        initial_replicas=str(draw(st.integers(least, most))),
        scale_to_zero_after=draw(st.sampled_from(["auto", "never", "3s", "0s"])),
        scale_up=draw(st.sampled_from(["window=0s", "1/5s", "window=4s"])),
        scale_down=window,
        hold_limit=str(draw(st.integers(0, 20))),
        hold_timeout=draw(st.sampled_from(["1s", "30s", "10m"])),
        cold_start_timeout=draw(st.sampled_from(["20s", "30m"])),
    )


@settings(deadline=None, max_examples=60)
@given(arrivals=traffic(), run=runs())
def test_requests_are_conserved_and_runs_repeat(arrivals: list[Arrival], run: Settings) -> None:
    outcome = Replay(arrivals, run).run()
    fates = outcome.fates
    assert outcome.sent == len(arrivals)
    assert outcome.sent == fates.answered + fates.refused + fates.expired
    assert len(fates.latencies_s) == len(fates.waits_s) == fates.answered
    assert all(
        0 <= wait_s <= latency_s + 1e-9 and wait_s <= run.policy.hold_timeout_s + 1e-9
        for wait_s, latency_s in zip(fates.waits_s, fates.latencies_s, strict=True)
    )
    assert all(
        run.policy.min_replicas <= count <= run.policy.max_replicas for _, count in outcome.moves
    )
    assert sum(sample.arrived for sample in outcome.samples) == outcome.sent
    again = Replay(arrivals, run).run()
    assert _as_json(again, run) == _as_json(outcome, run)


def _as_json(outcome: Outcome, run: Settings) -> str:
    return report.as_json(report.build(outcome, run, trace={}, policy={}))
