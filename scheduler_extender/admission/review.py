# SPDX-License-Identifier: Apache-2.0
"""AdmissionReview of `admission.k8s.io/v1`: from bytes to bytes. Pure.

Source: k8s.io/api/admission/v1. A review that cannot be read is `Malformed`, and the API server
then goes by the webhook's failurePolicy.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from scheduler_extender.admission.mutation import Operation, patch_of, patch_of_debuggers
from scheduler_extender.admission.pods import Raw, Wiring, asks
from scheduler_extender.admission.validation import (
    problems_of_change,
    problems_of_new,
    warnings_of,
)
from scheduler_extender.annotations import Unclear, demand_of
from scheduler_extender.errors import Malformed

VERSION: Final = "admission.k8s.io/v1"
# Subresources that carry the whole pod: annotations can be changed by way of its status, too.
CONCERNED: Final = frozenset({"", "ephemeralcontainers", "status"})
FORBIDDEN: Final = 403


@dataclass(frozen=True, slots=True)
class Request:
    """What is to happen to a pod. `old`: as it was before; None for a new one."""

    uid: str
    operation: str
    pod: Raw
    old: Raw | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allowed where there are no problems."""

    problems: tuple[str, ...] = ()
    patch: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()


Judge = Callable[[Request, Wiring], Verdict]


def review(body: bytes, judge: Judge, *, wiring: Wiring) -> tuple[bytes, Verdict]:
    """The answer to a review, and what was found. Raises `Malformed`."""
    try:
        raw = orjson.loads(body)
        if raw["apiVersion"] != VERSION or raw["kind"] != "AdmissionReview":
            raise Malformed(
                f"{raw['apiVersion']} {raw['kind']}: only AdmissionReview of {VERSION} is "
                "answered; set admissionReviewVersions: [v1]"
            )
        asked = raw["request"]
        uid = str(asked["uid"])
        request = _request(uid, asked)
        verdict = Verdict() if request is None else judge(request, wiring)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"this is no AdmissionReview of a pod: {error!r}") from error
    return orjson.dumps(_answer(uid, verdict)), verdict


def mutate(request: Request, wiring: Wiring) -> Verdict:
    """Only a pod that asks by annotations is changed: when it is new, or gets a debugger."""
    if not asks(request.pod):
        return Verdict()
    if request.operation == "UPDATE":
        return Verdict(patch=tuple(patch_of_debuggers(request.pod, request.old or {})))
    if request.operation != "CREATE":
        return Verdict()
    problems = problems_of_new(request.pod, wiring=wiring)
    demand = demand_of(request.pod)
    if problems or isinstance(demand, Unclear):
        return Verdict(tuple(problems))
    return Verdict(patch=tuple(patch_of(request.pod, demand, wiring=wiring)))


def validate(request: Request, wiring: Wiring) -> Verdict:
    """What all mutating webhooks together made of a pod is what is looked at."""
    if request.operation == "UPDATE":
        return Verdict(tuple(problems_of_change(request.pod, request.old or {})))
    if request.operation != "CREATE":
        return Verdict()
    problems = problems_of_new(request.pod, wiring=wiring)
    if not problems and mutate(request, wiring).patch:
        problems = [
            "the pod asks for GPUs, and was not made ready for them: does Tidegate's mutating "
            "webhook cover this namespace, with reinvocationPolicy IfNeeded?"
        ]
    return Verdict(tuple(problems), warnings=tuple(warnings_of(request.pod, wiring=wiring)))


def _request(uid: str, asked: Mapping[str, Any]) -> Request | None:
    """None for what is no pod, and for what is deleted: there is nothing to say."""
    resource = asked["resource"]
    if (resource["group"], resource["resource"]) != ("", "pods"):
        return None
    if (asked.get("subResource") or "") not in CONCERNED or not asked.get("object"):
        return None
    return Request(uid, asked["operation"], asked["object"], asked.get("oldObject"))


def _answer(uid: str, verdict: Verdict) -> dict[str, Any]:
    answer: dict[str, Any] = {"uid": uid, "allowed": not verdict.problems}
    if verdict.problems:
        answer["status"] = {
            "code": FORBIDDEN,
            "reason": "Forbidden",
            "message": "; ".join(verdict.problems),
        }
    elif verdict.patch:
        answer["patchType"] = "JSONPatch"
        answer["patch"] = b64encode(orjson.dumps(list(verdict.patch))).decode()
    if verdict.warnings:
        answer["warnings"] = list(verdict.warnings)
    return {"apiVersion": VERSION, "kind": "AdmissionReview", "response": answer}
