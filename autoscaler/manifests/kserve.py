# SPDX-License-Identifier: Apache-2.0
"""KServe's InferenceService and LLMInferenceService: which Deployments stand for them, and how far.

KServe makes a Deployment for each component and, with `autoscalerClass: external`, leaves its
count to somebody else. Its own fields are read as it documents them; `tidegate.dev/` keys count for
more, those of a component most.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from autoscaler.core.policy import ServicePolicy
from autoscaler.manifests import knative
from autoscaler.manifests.annotations import (
    ConfigMapLookup,
    Given,
    Layer,
    Ours,
    from_config_map,
    merged,
    ours,
    resolved,
)
from autoscaler.manifests.kserve_fields import METRIC, bounds, dead_annotations, fields_of
from autoscaler.manifests.objects import SERVING, ObjectRef, TargetRef, Wanted
from autoscaler.manifests.places import Findings, Place, items, table, text
from autoscaler.text import Unreadable, nearest, whole

COMPONENTS = ("predictor", "transformer", "explainer")
AUTOSCALER_CLASS = f"{SERVING}/autoscalerClass"
DEPLOYMENT_MODE = f"{SERVING}/deploymentMode"
STOP = f"{SERVING}/stop"

_ANNOTATIONS = ("metadata", "annotations")
_STANDARD = ("Standard", "RawDeployment")
_OTHER_MODES = {
    "Knative": "Knative scales it itself",
    "Serverless": "Knative scales it itself",
    "ModelMesh": "ModelMesh places models on runtimes of its own",
}
_NAME_MOST = 63  # characters of a name that KServe derives; a longer one it cuts and hashes


@dataclass(frozen=True, slots=True)
class _Part:
    """One component: where it is written, what it is scaled as, what must not be done to it."""

    name: str
    place: tuple[str, ...]
    deployment: str
    layers: Sequence[Layer]
    awake_because: str = ""  # why one replica at least stays; empty: it may sleep


@dataclass(frozen=True, slots=True)
class _Said:
    """Our own keys: of the whole service, and of one component, which count for more."""

    service: Ours
    component: Ours

    @property
    def enabled(self) -> bool:
        own = self.component.enabled
        return bool(self.service.enabled if own is None else own)

    @property
    def config_map(self) -> Given | None:
        return self.component.config_map or self.service.config_map

    @property
    def layers(self) -> list[Layer]:
        return [self.component.policy, self.service.policy]


def is_stopped(manifest: Mapping[str, object]) -> bool:
    """Whether KServe was told to take the workload down."""
    return text(manifest, *_ANNOTATIONS, STOP).lower() == "true"


def inference_service(
    manifest: Mapping[str, object], owner: ObjectRef, config_map: ConfigMapLookup | None
) -> tuple[Wanted, ...]:
    """Each component that is there, scaled for itself."""
    found = []
    for name in COMPONENTS:
        fields, findings = table(manifest, "spec").get(name), Findings()
        if not isinstance(fields, Mapping) or is_stopped(manifest):
            continue
        place = ("spec", name)
        said = _said(manifest, place, findings)
        if not said.enabled:
            continue
        _check_class(manifest, findings)
        _check_mode(manifest, findings)
        _warn_of_rolling(said, findings)
        part = _Part(
            name=name,
            place=place,
            deployment=f"{owner.name}-{name}",
            layers=_inference_layers(manifest, place, findings),
            awake_because=_beside_a_canary(manifest, name),
        )
        _check_component(fields, place, findings)
        found.append(_wanted(owner, part, said, findings, config_map))
    return tuple(found)


def llm_inference_service(
    manifest: Mapping[str, object], owner: ObjectRef, config_map: ConfigMapLookup | None
) -> tuple[Wanted, ...]:
    """The main Deployment, and the one of `spec.prefill` where there is one."""
    found = []
    for name, place in (("", ("spec",)), ("prefill", ("spec", "prefill"))):
        findings = Findings()
        parent = table(manifest, *place[:-1])
        fields = parent.get(place[-1])
        if is_stopped(manifest) or not isinstance(fields, Mapping):
            continue
        said = _said(manifest, place, findings)
        if not said.enabled:
            continue
        _check_writers(fields, place, findings)
        part = _Part(
            name=name,
            place=place,
            deployment=child_name(owner.name, "-kserve-prefill" if name else "-kserve"),
            layers=[
                bounds(table(fields, "scaling"), (*place, "scaling"), findings),
                knative.layer(manifest, [(*place, "annotations"), _ANNOTATIONS], findings),
            ],
            awake_because=_behind_a_scheduler(manifest, name),
        )
        found.append(_wanted(owner, part, said, findings, config_map))
    return tuple(found)


def child_name(parent: str, suffix: str) -> str:
    """The name that KServe gives a part of an LLMInferenceService; long ones are cut and hashed."""
    if len(parent) + len(suffix) <= _NAME_MOST:
        return parent + suffix
    digest = hashlib.md5(parent.encode(errors="replace"), usedforsecurity=False).hexdigest()
    return parent[: _NAME_MOST - len(digest) - len(suffix)] + digest + suffix


def _said(manifest: Mapping[str, object], place: tuple[str, ...], findings: Findings) -> _Said:
    here = (*place, "annotations")
    return _Said(
        ours(table(manifest, *_ANNOTATIONS), _ANNOTATIONS, findings),
        ours(table(manifest, *here), here, findings),
    )


def _wanted(
    owner: ObjectRef,
    part: _Part,
    said: _Said,
    findings: Findings,
    config_map: ConfigMapLookup | None,
) -> Wanted:
    if not owner.name:
        findings.wrong(("metadata", "name"), "there is no name, so nothing can be scaled by it")
    layers = said.layers
    if said.config_map:
        layers.append(from_config_map(said.config_map, config_map, findings))
    layers += part.layers
    layers.append(_unsaid(layers, part.place, findings))
    policy = resolved(layers, findings)
    if policy is not None and part.awake_because:
        policy = _kept_awake(policy, part, findings)
    return Wanted(
        target=TargetRef("apps", "v1", "deployments", "Deployment", owner.namespace,
                         part.deployment),
        owner=owner,
        component=part.name,
        policy=policy,
        problems=tuple(findings.problems),
        warnings=tuple(findings.warnings),
        notes=tuple(findings.notes),
        policy_from=str(said.config_map.value) if said.config_map else None,
    )  # fmt: skip


def _unsaid(layers: Sequence[Layer], place: Place, findings: Findings) -> Layer:
    """What nobody said of the bounds, where KServe's defaults are not ours."""
    said = merged(layers)
    if "min-replicas" not in said:
        findings.note(place, "no minReplicas: it may sleep (KServe by itself would keep 1)")
    if "max-replicas" in said:
        return {}
    most, least = 1, said.get("min-replicas")
    if least:
        with suppress(Unreadable):  # which is said of minReplicas itself
            most = max(most, whole(0, 10000)(str(least.value)))
    why = f"no maxReplicas, to KServe no limit; here it is {most}: set tidegate.dev/max-replicas"
    findings.note(place, why)
    return {"max-replicas": Given(most, place)}


def _kept_awake(policy: ServicePolicy, part: _Part, findings: Findings) -> ServicePolicy:
    windows = [w.min_replicas for w in policy.schedule if w.min_replicas is not None]
    if min([policy.min_replicas, *windows]) > 0:
        return policy
    findings.warn(part.place, f"kept at 1 replica at least: {part.awake_because}")
    return replace(
        policy,
        min_replicas=max(1, policy.min_replicas),
        schedule=tuple(
            replace(window, min_replicas=1) if window.min_replicas == 0 else window
            for window in policy.schedule
        ),
    )


def _inference_layers(
    manifest: Mapping[str, object], place: tuple[str, ...], findings: Findings
) -> list[Layer]:
    fields = table(manifest, *place)
    dead_annotations(table(manifest, *_ANNOTATIONS), _ANNOTATIONS, findings)
    metric = text(manifest, *_ANNOTATIONS, METRIC)
    own = fields_of(fields, place, findings, metric=metric)
    theirs = [(*place, "annotations"), _ANNOTATIONS]
    return [own, knative.layer(manifest, theirs, findings, concurrency=own.get("slots"))]


def _check_class(manifest: Mapping[str, object], findings: Findings) -> None:
    place = (*_ANNOTATIONS, AUTOSCALER_CLASS)
    value = text(manifest, *place)
    if value != "external":
        now = f"it is {value[:40]!r}" if value else "it is missing, so KServe makes an HPA"
        why = f"{now}; set it to external, so that there is one writer of the replica count"
        findings.wrong(place, why)


def _check_mode(manifest: Mapping[str, object], findings: Findings) -> None:
    place: Place = (*_ANNOTATIONS, DEPLOYMENT_MODE)
    mode = text(manifest, "status", "deploymentMode")  # what KServe has settled on counts
    if not mode:
        mode = text(manifest, *_ANNOTATIONS, DEPLOYMENT_MODE)
    if not mode:
        why = "no deploymentMode: the cluster's default must be Standard"
        findings.note(_ANNOTATIONS, f"{why}, or set {DEPLOYMENT_MODE}: Standard")
    elif mode in _OTHER_MODES:
        findings.wrong(place, f"{mode}: {_OTHER_MODES[mode]}; set it to Standard")
    elif mode not in _STANDARD:
        why = f"{mode[:40]!r} is not a mode of KServe's{nearest(mode, _STANDARD)}"
        findings.wrong(place, f"{why}; permitted: Standard")


def _check_component(fields: Mapping[str, object], place: Place, findings: Findings) -> None:
    if "workerSpec" in fields:
        why = (
            "a predictor over several nodes is not scaled: KServe wants autoscalerClass none for it"
        )
        findings.wrong((*place, "workerSpec"), why)
    if "canaryTrafficPercent" in fields:
        why = (
            "means something to Knative only; in Standard mode all traffic goes to the new version"
        )
        findings.warn((*place, "canaryTrafficPercent"), why)


def _warn_of_rolling(said: _Said, findings: Findings) -> None:
    keys = [given.place for given in merged(said.layers).values()]
    if keys:
        why = (
            "KServe copies it to the pods, so editing it rolls them all; keep it in a ConfigMap "
            "that tidegate.dev/policy-from names, or in KServe's serviceAnnotationDisallowedList"
        )
        findings.warn(keys[0], why)


def _beside_a_canary(manifest: Mapping[str, object], component: str) -> str:
    if component != "predictor" or not items(manifest, "spec", "canary"):
        return ""
    return "spec.canary shares its Service, and would get all requests that come while it sleeps"


def _behind_a_scheduler(manifest: Mapping[str, object], component: str) -> str:
    if component == "prefill":
        return "its requests come from the decoding pods, and nothing could hold them"
    if table(manifest, "spec", "router").get("scheduler") is None:
        return ""
    return "spec.router.scheduler sends requests to pods past their Service, so none could be held"


def _check_writers(fields: Mapping[str, object], place: Place, findings: Findings) -> None:
    if fields.get("replicas") is not None:
        why = "KServe would keep this number; remove it, and bound the count by tidegate.dev/ keys"
        findings.wrong((*place, "replicas"), why)
    for name in ("wva", "keda"):
        if table(fields, "scaling").get(name) is not None:
            why = "a second writer of the replica count; remove it"
            findings.wrong((*place, "scaling", name), why)
    if fields.get("worker") is not None:
        findings.wrong((*place, "worker"), "a workload over several nodes is not scaled yet")
