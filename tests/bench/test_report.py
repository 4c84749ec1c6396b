# SPDX-License-Identifier: Apache-2.0
"""The figures of a report, from made-up rounds."""

import pytest

from autoscaler.bench.client import quantile
from autoscaler.bench.phases import DIRECT, Seen, Turn
from autoscaler.bench.report import errors_in, workload_report
from autoscaler.bench.workloads import MIB_BODY, SMALL_JSON, SSE


def seen(
    *,
    requests: int = 1000,
    p50_ms: float | None = 1.0,
    p99_ms: float | None = 2.0,
    first_ms: float | None = None,
    proxy_cpu_s: float = 0.5,
    paced_events: int = 0,
    errors: dict[str, int] | None = None,
) -> Seen:
    """One second of a phase."""
    return Seen(
        seconds=1.0,
        requests=requests,
        p50_s=None if p50_ms is None else p50_ms / 1e3,
        p99_s=None if p99_ms is None else p99_ms / 1e3,
        first_p50_s=None if first_ms is None else first_ms / 1e3,
        paced_events=paced_events,
        cpu_s={"proxy": proxy_cpu_s, "client": 0.6, "backend": 0.39},
        errors=errors or {},
    )


def turn(who: str, throughput: Seen | None = None, latency: Seen | None = None) -> Turn:
    return Turn(who, throughput or seen(), latency or seen())


def report(*rounds: list[Turn], client_shares: bool = True, **other: object) -> dict[str, object]:
    workload = other.get("workload", SMALL_JSON)
    return workload_report(  # type: ignore[return-value]
        workload,  # type: ignore[arg-type]
        rounds,
        connections=32,
        client_shares=client_shares,
    )


@pytest.mark.parametrize(
    ("values", "ratio", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.5, 7.0),
        ([7.0], 0.99, 7.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 101)], 0.50, 50.0),
        ([float(n) for n in range(1, 101)], 1.0, 100.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_quantile_is_the_smallest_value_that_enough_values_do_not_exceed(
    values: list[float], ratio: float, expected: float | None
) -> None:
    assert quantile(values, ratio) == expected


def test_a_figure_is_the_median_of_the_rounds() -> None:
    rounds = [[turn("go", seen(requests=n))] for n in (100, 900, 200)]
    figures = report(*rounds)
    assert figures["go_rps"] == 200
    assert figures["go_rps_by_round"] == [100, 900, 200]


def test_what_a_proxy_adds_is_taken_within_the_round_and_then_the_median() -> None:
    figures = report(
        [turn(DIRECT, None, seen(p50_ms=1)), turn("tidegate", None, seen(p50_ms=1.2))],
        [turn(DIRECT, None, seen(p50_ms=5)), turn("tidegate", None, seen(p50_ms=5.3))],
        [turn(DIRECT, None, seen(p50_ms=1)), turn("tidegate", None, seen(p50_ms=9))],
    )
    assert figures["added_p50_ms"] == pytest.approx(0.3)
    assert figures["go_added_p50_ms"] is None


def test_a_contender_that_was_not_measured_has_nulls_and_never_zeros() -> None:
    figures = report([turn(DIRECT), turn("tidegate")])
    for key in ("rps", "bytes_per_s", "cpu_us", "added_p99_ms", "proxy_core_busy_ratio"):
        assert figures[f"go_{key}"] is None
    assert figures["tidegate_over_go"] is None
    assert figures["tidegate_rps"] == 1000


def test_a_phase_without_one_answer_is_no_figure() -> None:
    figures = report([turn("go", seen(requests=0, p50_ms=None, p99_ms=None))])
    assert figures["go_rps"] is None
    assert figures["go_cpu_us"] is None
    assert figures["go_loaded_p50_ms"] is None


def test_cpu_time_a_request_gives_the_rate_of_a_fully_busy_core() -> None:
    figures = report([turn("tidegate", seen(requests=1000, proxy_cpu_s=0.05))])
    assert figures["tidegate_cpu_us"] == 50
    assert figures["tidegate_rps_per_busy_core"] == 20000
    assert figures["tidegate_proxy_core_busy_ratio"] == 0.05


def test_the_ratio_to_a_rival_is_given_as_measured_and_for_a_busy_core() -> None:
    figures = report(
        [
            turn("tidegate", seen(requests=3000, proxy_cpu_s=0.5)),
            turn("go", seen(requests=1000, proxy_cpu_s=1.0)),
        ]
    )
    assert figures["tidegate_over_go"] == 3
    assert figures["tidegate_over_go_per_busy_core"] == 6


@pytest.mark.parametrize(
    ("proxy_cpu_s", "client_shares", "limit"),
    [(0.97, True, "proxy"), (0.5, True, "client"), (0.5, False, "neither")],
    ids=["the proxy's core is full", "the client's core is full", "no core is full"],
)
def test_the_report_says_whose_core_was_the_limit(
    proxy_cpu_s: float, client_shares: bool, limit: str
) -> None:
    figures = report(
        [turn("go", seen(proxy_cpu_s=proxy_cpu_s))],
        client_shares=client_shares,
    )
    assert figures["go_limited_by"] == limit


def test_bytes_are_counted_both_ways() -> None:
    figures = report([turn("go", seen(requests=100))], workload=MIB_BODY)
    assert figures["go_bytes_per_s"] == pytest.approx(100 * 2 * 1024 * 1024, rel=1e-3)


def test_streams_are_also_counted_in_events() -> None:
    calm = seen(first_ms=4, paced_events=2000, proxy_cpu_s=0.1)
    figures = report(
        [
            turn(DIRECT, None, seen(first_ms=1)),
            turn("tidegate", seen(requests=100, proxy_cpu_s=0.2), calm),
        ],
        workload=SSE,
    )
    assert figures["tidegate_events_per_s"] == 20000
    assert figures["tidegate_cpu_us_per_event"] == 10
    assert figures["tidegate_paced_cpu_us_per_event"] == 50
    assert figures["added_first_event_p50_ms"] == 3


def test_errors_are_summed_over_rounds_and_phases_by_contender_and_kind() -> None:
    rounds = [
        [turn("go", seen(errors={"cut": 1}), seen(errors={"cut": 2, "late": 1}))],
        [turn("go", seen(errors={"cut": 4})), turn("aiohttp", seen(errors={"late": 1}))],
    ]
    assert errors_in(rounds) == {"go: cut": 7, "go: late": 1, "aiohttp: late": 1}
    assert report(*rounds)["go_errors"] == {"cut": 7, "late": 1}
