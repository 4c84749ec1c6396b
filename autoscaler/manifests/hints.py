# SPDX-License-Identifier: Apache-2.0
"""What a person should hear of an object beside its scaling: keys in the wrong place, or unused.

`wanted` says what is in force; this says what its writer may have meant. Only `tidegate check`
asks, because only there somebody is looking.
"""

from collections.abc import Mapping

from autoscaler.contract import POD_KEYS, read_policy
from autoscaler.core.policy import ServicePolicy
from autoscaler.manifests.annotations import PREFIX, Ours, check_value, not_text, ours
from autoscaler.manifests.kserve import STOP, is_stopped
from autoscaler.manifests.objects import SERVING, object_ref, speaker
from autoscaler.manifests.places import Findings, table

_ANNOTATIONS = ("metadata", "annotations")
_POD_KEYS = {key.name: key for key in POD_KEYS}
_TEMPLATES = (
    ("spec", "template"),
    ("spec", "leaderWorkerTemplate", "leaderTemplate"),
    ("spec", "leaderWorkerTemplate", "workerTemplate"),
)


def hints(manifest: Mapping[str, object]) -> Findings:
    """Remarks on one object that `wanted` does not make."""
    findings = Findings()
    for path in (("metadata",), _ANNOTATIONS):
        found = table(manifest, *path[:-1]).get(path[-1])
        if found is not None and not isinstance(found, Mapping):
            findings.wrong(path, "wants a table of keys")
    if _spoken_for(manifest, findings):
        return findings
    _labels(manifest, findings)
    _near_misses(manifest, findings)
    _pod_keys(manifest, findings)
    said = ours(table(manifest, *_ANNOTATIONS), _ANNOTATIONS, unheard := Findings())
    if not said.enabled:
        findings.problems += unheard.problems
        _not_enabled(manifest, said, findings)
    elif is_stopped(manifest) and object_ref(manifest).group == SERVING:
        findings.note((*_ANNOTATIONS, STOP), "KServe takes the workload down, so it is not scaled")
    return findings


def _spoken_for(manifest: Mapping[str, object], findings: Findings) -> bool:
    owner = speaker(manifest)
    if owner and any(key.startswith(PREFIX) for key in table(manifest, *_ANNOTATIONS)):
        findings.note(_ANNOTATIONS, f"not read here: {owner} made this object and speaks for it")
    return bool(owner)


def _not_enabled(manifest: Mapping[str, object], said: Ours, findings: Findings) -> None:
    """Keys that wait for `enabled` are judged all the same."""
    read = read_policy({key: given.value for key, given in said.policy.items()})
    if not isinstance(read, ServicePolicy):
        for problem in read:
            findings.wrong(said.policy[problem.key].place, problem.text)
    components = (table(part, "annotations") for part in _components(manifest))
    heard = any(keys.get(PREFIX + "enabled") == "true" for keys in components)
    if said.enabled is None and said.policy and not heard:
        first = next(iter(said.policy.values()))
        why = 'not in force: tidegate.dev/enabled: "true" is missing'
        findings.warn(first.place, why)


def _components(manifest: Mapping[str, object]) -> list[Mapping[str, object]]:
    if object_ref(manifest).group != SERVING:
        return []
    return [table(part) for part in table(manifest, "spec").values()]


def _labels(manifest: Mapping[str, object], findings: Findings) -> None:
    for name in table(manifest, "metadata", "labels"):
        if name.startswith(PREFIX):
            findings.warn(("metadata", "labels", name), "not read: an annotation is, not a label")


def _near_misses(manifest: Mapping[str, object], findings: Findings) -> None:
    for name in table(manifest, *_ANNOTATIONS):
        prefix, slash, key = name.rpartition("/")
        if not name.startswith(PREFIX) and slash and "tidegate" in prefix.lower():
            findings.warn((*_ANNOTATIONS, name), f"not read: did you mean {PREFIX + key!r}?")


def _pod_keys(manifest: Mapping[str, object], findings: Findings) -> None:
    """What is asked of GPUs is a pod's; everything else is the object's."""
    ref = object_ref(manifest)
    if (ref.group, ref.kind) != ("", "Pod") and ref.group != SERVING:
        for name in table(manifest, *_ANNOTATIONS):
            if name.removeprefix(PREFIX) in _POD_KEYS and name.startswith(PREFIX):
                why = "not read here: it belongs to the annotations of the pod template"
                findings.warn((*_ANNOTATIONS, name), why)
    for template in _TEMPLATES:
        place = (*template, *_ANNOTATIONS)
        for name, value in table(manifest, *place).items():
            key = name.removeprefix(PREFIX)
            if key == name:
                continue
            if key not in _POD_KEYS:
                why = "not read on a pod template: write it into the object's own metadata"
                findings.warn((*place, name), why)
            elif not isinstance(value, str):
                findings.wrong((*place, name), not_text(value))
            else:
                check_value(_POD_KEYS[key], value, (*place, name), findings)
