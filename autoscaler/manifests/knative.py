# SPDX-License-Identifier: Apache-2.0
"""`autoscaling.knative.dev/` annotations, read as Knative reads them, in the contract's words.

What means the same here is taken over; what does not is said, and left.
"""

import re
from collections.abc import Mapping, Sequence

from autoscaler.manifests.annotations import Given, Layer, not_text
from autoscaler.manifests.places import Findings, Place, table
from autoscaler.text import DURATION, Unreadable, duration_s, nearest, refused

PREFIX = "autoscaling.knative.dev/"

# What becomes of each, for the reader of the documentation; the code below does it.
MEANINGS: Mapping[str, str] = {
    "min-scale": "min-replicas",
    "max-scale": "max-replicas; 0 says nothing",
    "initial-scale": "initial-replicas",
    "activation-scale": "activation-replicas",
    "metric": "concurrency or rps: the signal of targets; others are left, with a warning",
    "target": "targets, times target-utilization-percentage",
    "target-utilization-percentage": "the share of the target a replica should carry, 70 by itself",
    "window": "scale-down window, 60s by itself",
    "scale-down-delay": "added to the scale-down window",
    "scale-to-zero-pod-retention-period": "scale-to-zero-after, added to the window",
    "target-burst-capacity": "-1: activator=always; others are left, with a note",
    "class": "kpa: nothing to say; others are left, with a warning",
    "panic-window-percentage": "left, with a note",
    "panic-threshold-percentage": "left, with a note",
    "metric-aggregation-algorithm": "left, with a note",
}

_AS_THEY_ARE = {
    "min-scale": "min-replicas",
    "max-scale": "max-replicas",
    "initial-scale": "initial-replicas",
    "activation-scale": "activation-replicas",
}
_LEFT = ("panic-window-percentage", "panic-threshold-percentage", "metric-aggregation-algorithm")

# Knative's own defaults.
_TOTAL = {"concurrency": 100.0, "rps": 200.0}
_UTILIZATION_PERCENT = 70.0
_TARGET_LEAST = 0.01
_WINDOW_S = 60.0
_WINDOW_MOST_S = 3600.0  # the longest scale-down window of the contract


def layer(
    manifest: Mapping[str, object],
    places: Sequence[tuple[str, ...]],
    findings: Findings,
    *,
    concurrency: Given | None = None,
) -> Layer:
    """What the tables of annotations at `places` say, the first counting most.

    `concurrency`: KServe's containerConcurrency, if any, which Knative takes for a target.
    """
    said: dict[str, Given] = {}
    for place in reversed(places):
        said |= _said(table(manifest, *place), place, findings)
    found = {_AS_THEY_ARE[name]: given for name, given in said.items() if name in _AS_THEY_ARE}
    if (most := said.get("max-scale")) and most.value == "0":
        del found["max-replicas"]
    found |= _targets(said, concurrency, findings)
    found |= _windows(said, findings)
    burst = said.get("target-burst-capacity")
    if burst and burst.value == "-1":
        found["activator"] = Given("always", burst.place)
    elif burst:
        findings.note(burst.place, "not used: the activator leaves the path once replicas suffice")
    scaler = said.get("class")
    if scaler and not str(scaler.value).startswith("kpa."):
        findings.warn(scaler.place, "not used: Tidegate scales by its own policy `target`")
    for name in _LEFT:
        if name in said:
            findings.note(said[name].place, "not used: here one window does, and jumps up are free")
    return found


def _said(annotations: Mapping[str, object], place: Place, findings: Findings) -> dict[str, Given]:
    said: dict[str, Given] = {}
    for name, value in annotations.items():
        if not name.startswith(PREFIX):
            continue
        here = (*place, name)
        # Older manifests spell minScale what is min-scale now.
        key = re.sub(r"[A-Z]", lambda big: "-" + big[0].lower(), name.removeprefix(PREFIX))
        if not isinstance(value, str):
            findings.wrong(here, not_text(value))
        elif key not in MEANINGS:
            findings.warn(here, f"not a key that is read{nearest(key, list(MEANINGS))}")
        else:
            said[key] = Given(value.strip(), here)
    return said


def _targets(
    said: Mapping[str, Given], concurrency: Given | None, findings: Findings
) -> dict[str, Given]:
    metric, target = said.get("metric"), said.get("target")
    share = said.get("target-utilization-percentage")
    name = str(metric.value) if metric else "concurrency"
    if metric and name not in _TOTAL:
        findings.warn(metric.place, f"{name!r} is not a signal of Tidegate's; targets stay default")
        return {}
    speaker = target or metric or share or concurrency
    if speaker is None:
        return {}
    cap = _amount(concurrency, findings) if name == "concurrency" else None
    total = _amount(target, findings) or cap or _TOTAL[name]
    percent = _amount(share, findings) or _UTILIZATION_PERCENT
    if share and percent > 100:
        findings.wrong(share.place, refused(share.value, "a number above 0, up to 100"))
    amount = max(_TARGET_LEAST, min(total, cap or total) * percent / 100)
    text = f"{amount:.4f}".rstrip("0").rstrip(".")
    note = f"read as targets {name}={text}: {percent:g} % of {total:g}"
    return {"targets": Given(f"{name}={text}", speaker.place, note=note)}


def _amount(given: Given | None, findings: Findings) -> float | None:
    if given is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", str(given.value)) or not float(given.value):
        findings.wrong(given.place, refused(given.value, "a number above 0"))
        return None
    return float(given.value)


def _windows(said: Mapping[str, Given], findings: Findings) -> dict[str, Given]:
    window, delay = said.get("window"), said.get("scale-down-delay")
    kept = said.get("scale-to-zero-pod-retention-period")
    window_s = _WINDOW_S if window is None else _seconds(window, findings)
    found = {}
    if speaker := delay or window:
        down_s = min(window_s + _seconds(delay, findings), _WINDOW_MOST_S)
        found["scale-down"] = Given(f"window={down_s:.3f}s", speaker.place)
    if kept:
        idle_s = window_s + _seconds(kept, findings)
        found["scale-to-zero-after"] = Given(f"{idle_s:.3f}s", kept.place)
    return found


def _seconds(given: Given | None, findings: Findings) -> float:
    if given is None or given.value == "0":
        return 0.0
    try:
        return duration_s(str(given.value))
    except Unreadable as why:
        findings.wrong(given.place, refused(given.value, DURATION, str(why)))
        return 0.0
