# SPDX-License-Identifier: Apache-2.0
"""The scaling fields of one KServe component, in the contract's words."""

import re
from collections.abc import Mapping
from math import isfinite

from autoscaler.manifests.annotations import Given, Layer
from autoscaler.manifests.places import Findings, Place, items, table
from autoscaler.text import refused

_SIGNALS = ("concurrency", "rps")

METRIC = "serving.kserve.io/metric"

# Annotations of KServe's that KServe reads no longer, and where their meaning is now.
_DEAD = {
    METRIC: "spec.predictor.scaleMetric, which it stands for here,",
    "serving.kserve.io/metrics": "tidegate.dev/targets (which know no CPU)",
    "serving.kserve.io/targetUtilizationPercentage": "tidegate.dev/targets (which know no CPU)",
}


def bounds(fields: Mapping[str, object], place: Place, findings: Findings) -> Layer:
    """`minReplicas` and `maxReplicas`; 0 as a maximum says nothing, as KServe reads it."""
    found = {}
    for name, key in (("minReplicas", "min-replicas"), ("maxReplicas", "max-replicas")):
        given = _whole(fields, name, place, findings)
        if given is not None and not (name == "maxReplicas" and given.value == 0):
            found[key] = given
    return found


def fields_of(
    fields: Mapping[str, object], place: Place, findings: Findings, *, metric: str = ""
) -> Layer:
    """What a component of an InferenceService says of its scaling.

    `metric`: the annotation by which older manifests say scaleMetric.
    """
    found = dict(bounds(fields, place, findings))
    found |= _target(fields, place, findings, metric=metric)
    slots = _whole(fields, "containerConcurrency", place, findings)
    if slots is not None and slots.value != 0:  # 0 is no limit, as for Knative
        found["slots"] = slots
    scaling = table(fields, "autoScaling")
    for number, measured in enumerate(items(scaling, "metrics")):
        what = str(table(measured).get("type", "metric"))[:40]
        here = (*place, "autoScaling", "metrics", number)
        findings.warn(here, f"{what} is not a signal of Tidegate's; targets stay as they are")
    behavior = table(scaling, "behavior")
    for name, key in (("scaleUp", "scale-up"), ("scaleDown", "scale-down")):
        rules = table(behavior, name)
        if rules:
            here = (*place, "autoScaling", "behavior", name)
            found[key] = Given(_rate(rules, here, findings), here)
    return found


def dead_annotations(annotations: Mapping[str, object], place: Place, findings: Findings) -> None:
    """Say which annotations KServe itself no longer reads."""
    for name, instead in _DEAD.items():
        if name in annotations:
            findings.note((*place, name), f"KServe no longer reads it; {instead} says it now")


def _target(
    fields: Mapping[str, object], place: Place, findings: Findings, *, metric: str
) -> Layer:
    said = fields.get("scaleMetric") or metric
    name = said if isinstance(said, str) else ""
    if "scaleMetric" not in fields and "scaleTarget" not in fields:
        return {}
    if name not in _SIGNALS:
        spoken = f"{name[:40]} is" if name else "without scaleMetric it is a share of CPU,"
        here = (*place, "scaleMetric" if "scaleMetric" in fields else "scaleTarget")
        findings.warn(here, f"{spoken} not a signal of Tidegate's; targets stay as they are")
        return {}
    target = _whole(fields, "scaleTarget", place, findings)
    if target is None:
        why = "there is no scaleTarget to it; targets stay as they are"
        findings.warn((*place, "scaleMetric"), why)
        return {}
    return {"targets": Given(f"{name}={target.value}", target.place)}


def _whole(
    fields: Mapping[str, object], name: str, place: Place, findings: Findings
) -> Given | None:
    """A field that KServe wants as a whole number; None where it is absent or something else."""
    value, here = fields.get(name), (*place, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        kind = "text" if isinstance(value, str) else "no whole number"
        findings.wrong(here, f"a whole number is wanted here, and this is {kind}")
        return None
    if not -(2**31) <= value < 2**31:
        findings.wrong(here, "a whole number of at most 32 bits is wanted here")
        return None
    return Given(value, here)


def _rate(rules: Mapping[str, object], place: Place, findings: Findings) -> str:
    """HPA's `behavior` of one direction in the contract's short form."""
    steps = []
    for number, policy in enumerate(items(rules, "policies")):
        said = table(policy)
        here = (*place, "policies", number)
        kind, value, period = said.get("type"), said.get("value"), said.get("periodSeconds")
        sign = {"Pods": "", "Percent": "%"}.get(str(kind))
        if sign is None or not _natural(value) or not _natural(period):
            findings.wrong(here, "wants type Pods or Percent, and value and periodSeconds above 0")
            continue
        steps.append(f"{value}{sign}/{period}s")
    sections = [", ".join(steps)] if steps else []
    window = rules.get("stabilizationWindowSeconds")
    if window is not None:
        if not _natural(window) and window != 0:
            findings.wrong(
                (*place, "stabilizationWindowSeconds"), "wants a whole number of seconds"
            )
        else:
            sections.append(f"window={window}s")
    sections += _tolerance(rules, place, findings)
    if (select := rules.get("selectPolicy")) not in (None, "Max"):
        why = f"{str(select)[:40]} is not offered: the policy that allows most counts"
        findings.warn((*place, "selectPolicy"), why)
    return "; ".join(sections)


def _tolerance(rules: Mapping[str, object], place: Place, findings: Findings) -> list[str]:
    value = rules.get("tolerance")
    if value is None:
        return []
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(m?)", str(value)[:40])
    if isinstance(value, bool) or not match:
        findings.wrong((*place, "tolerance"), refused(str(value)[:40], "a quantity such as 0.1"))
        return []
    percent = float(match[1]) * (0.1 if match[2] else 100)
    return [f"tolerance={percent:.4f}%"] if isfinite(percent) else []


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
