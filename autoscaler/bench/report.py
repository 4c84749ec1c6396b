# SPDX-License-Identifier: Apache-2.0
"""From what was seen to what is reported. Pure: rounds in, one flat object a workload out.

Rules:
- every figure is the median over the rounds of that round's figure;
- what a proxy adds to a latency is its quantile less the same quantile of `direct` *of the same
  round*, so that a slow minute of the machine weighs on both;
- CPU time includes what the kernel does in the proxy's name; a write to a process whose core sleeps
  costs more than to one that is awake, so a proxy that keeps the client busy has cheaper writes:
  compare `rps` too, and look at `client_core_busy_ratio`;
- a figure that could not be had is null, never 0;
- an error of any kind, anywhere, is counted, and one makes the whole run fail.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from autoscaler.bench.phases import DIRECT, Seen, Turn
from autoscaler.bench.workloads import Workload

OURS = "tidegate"
CONTENDERS = (OURS, "go", "aiohttp")
BUSY_RATIO = 0.95
Value = float | int | str | None | list[float | None] | dict[str, int]


def workload_report(
    workload: Workload, rounds: Sequence[Sequence[Turn]], *, connections: int, client_shares: bool
) -> dict[str, Value]:
    """The figures of one workload. `client_shares`: client and backend run on one core."""
    turns = {
        name: [turn for one_round in rounds for turn in one_round if turn.contender == name]
        for name in (DIRECT, *CONTENDERS)
    }
    report: dict[str, Value] = {
        "what": workload.what,
        "connections": connections,
        "latency_connections": workload.latency_connections,
    }
    for name, of_name in turns.items():
        report |= _figures(name, workload, of_name, client_shares=client_shares)
    for name in CONTENDERS:
        report |= _added(name, workload, turns[name], turns[DIRECT])
    for rival in CONTENDERS[1:]:
        for what in ("rps", "rps_per_busy_core"):
            ratio = _ratio(report[f"{OURS}_{what}"], report[f"{rival}_{what}"])
            report[f"{OURS}_over_{rival}" + what.removeprefix("rps")] = ratio
    return {key: _rounded(value) for key, value in report.items()}


def _figures(
    name: str, workload: Workload, turns: Sequence[Turn], *, client_shares: bool
) -> dict[str, Value]:
    """What one contender did by itself."""
    full = [turn.throughput for turn in turns]
    calm = [turn.latency for turn in turns]
    rps = _median(_per_second(seen) for seen in full)
    figures: dict[str, Value] = {
        f"{name}_rps": rps,
        f"{name}_rps_by_round": [_per_second(seen) for seen in full],
        f"{name}_bytes_per_s": _times(rps, workload.bytes_per_request),
        f"{name}_loaded_p50_ms": _median(_ms(seen.p50_s) for seen in full),
        f"{name}_loaded_p99_ms": _median(_ms(seen.p99_s) for seen in full),
        f"{name}_p50_ms": _median(_ms(seen.p50_s) for seen in calm),
        f"{name}_p99_ms": _median(_ms(seen.p99_s) for seen in calm),
        f"{name}_client_core_busy_ratio": _median(
            _client_busy(seen, client_shares) for seen in full
        ),
        f"{name}_others_busy_cores": _median(_others_cores(seen) for seen in full),
        f"{name}_errors": dict(_errors(turns)),
    }
    if workload.events:
        figures[f"{name}_events_per_s"] = _times(rps, workload.events)
        figures[f"{name}_first_event_p50_ms"] = _median(_ms(seen.first_p50_s) for seen in calm)
    if name != DIRECT:
        figures |= _cost(name, workload, full, calm, client_shares=client_shares)
    return figures


def _cost(
    name: str,
    workload: Workload,
    full: Sequence[Seen],
    calm: Sequence[Seen],
    *,
    client_shares: bool,
) -> dict[str, Value]:
    """What a proxy's process spent, and whether it or the client was the limit."""
    cpu_us = _median(_cpu_us(seen, seen.requests) for seen in full)
    busy = _median(seen.cpu_s["proxy"] / seen.seconds for seen in full)
    figures: dict[str, Value] = {
        f"{name}_cpu_us": cpu_us,
        f"{name}_proxy_core_busy_ratio": busy,
        f"{name}_rps_per_busy_core": _ratio(1e6, cpu_us),
        f"{name}_limited_by": _limit(busy, _median(_client_busy(x, client_shares) for x in full)),
    }
    if workload.events:
        figures[f"{name}_cpu_us_per_event"] = _ratio(cpu_us, workload.events)
        figures[f"{name}_paced_cpu_us_per_event"] = _median(
            _cpu_us(seen, seen.paced_events) for seen in calm
        )
    return figures


def _limit(proxy_busy: float | None, client_busy: float | None) -> str | None:
    """Whose core had no time left."""
    if proxy_busy is None or client_busy is None:
        return None
    if proxy_busy >= BUSY_RATIO:
        return "proxy"
    return "client" if client_busy >= BUSY_RATIO else "neither"


def _added(
    name: str, workload: Workload, turns: Sequence[Turn], direct: Sequence[Turn]
) -> dict[str, Value]:
    """What a proxy adds to the latency; ours goes without a name in front."""
    prefix = "" if name == OURS else f"{name}_"
    pairs = [(a.latency, b.latency) for a, b in zip(turns, direct, strict=False)]
    quantiles: dict[str, Callable[[Seen], float | None]] = {
        "p50": lambda seen: seen.p50_s,
        "p99": lambda seen: seen.p99_s,
    }
    if workload.events:
        quantiles["first_event_p50"] = lambda seen: seen.first_p50_s
    return {
        f"{prefix}added_{key}_ms": _median(_ms(_less(of(a), of(b))) for a, b in pairs)
        for key, of in quantiles.items()
    }


def errors_in(rounds: Iterable[Iterable[Turn]]) -> Mapping[str, int]:
    """All errors of a workload by contender and kind."""
    return _errors([turn for one_round in rounds for turn in one_round], named=True)


def _errors(turns: Iterable[Turn], *, named: bool = False) -> Counter[str]:
    found: Counter[str] = Counter()
    for turn in turns:
        for seen in (turn.throughput, turn.latency):
            for kind, count in seen.errors.items():
                found[f"{turn.contender}: {kind}" if named else kind] += count
    return found


def _per_second(seen: Seen) -> float | None:
    return seen.requests / seen.seconds if seen.requests else None


def _cpu_us(seen: Seen, count: int) -> float | None:
    return seen.cpu_s["proxy"] * 1e6 / count if count else None


def _client_busy(seen: Seen, client_shares: bool) -> float:
    client, backend = seen.cpu_s["client"], seen.cpu_s["backend"]
    return (client + backend if client_shares else max(client, backend)) / seen.seconds


def _others_cores(seen: Seen) -> float | None:
    """How many of our cores' worth of time other processes of the machine took."""
    if not seen.core_s:
        return None
    return max(0.0, sum(seen.core_s) - sum(seen.cpu_s.values())) / seen.seconds


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _rounded(value: Value) -> Value:
    """Four significant digits: more would claim a precision that no machine has."""
    if isinstance(value, list):
        return [None if one is None else float(f"{one:.4g}") for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _times(a: float | None, b: float) -> float | None:
    return None if a is None else a * b


def _ratio(a: Value, b: Value) -> float | None:
    if not isinstance(a, int | float) or not isinstance(b, int | float) or b == 0:
        return None
    return a / b
