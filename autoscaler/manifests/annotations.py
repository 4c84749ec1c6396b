# SPDX-License-Identifier: Apache-2.0
"""The `tidegate.dev/` keys of an object, and how what several speakers say becomes one policy.

Every speaker (an annotation, a ConfigMap, a field of KServe's, an annotation of Knative's) is
turned into the contract's own words with a place, so that one reader judges them all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from autoscaler.contract import KEYS, LATER_KEYS, OBJECT_KEYS, POD_KEYS, Key, read_policy
from autoscaler.core.policy import ServicePolicy
from autoscaler.manifests.places import Findings, Place
from autoscaler.text import Unreadable, refused, unknown

PREFIX = "tidegate.dev/"
WRITTEN = ("status",)  # annotations that Tidegate writes itself

_POLICY_NAMES = [key.name for key in KEYS]
_NAMES = [*_POLICY_NAMES, *(key.name for key in OBJECT_KEYS)]
_OBJECT_KEYS = {key.name: key for key in OBJECT_KEYS}
_POD_KEYS = {key.name: key for key in POD_KEYS}

ConfigMapLookup = Callable[[str], Mapping[str, object] | None]
"""The data of a ConfigMap beside the object, by its name; None: there is none."""


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody wrote for one key of the contract, and where.

    `where` goes before remarks about it; `note` is said if this is the answer that counts.
    """

    value: str | int | float | bool
    place: Place
    where: str = ""
    note: str = ""


Layer = Mapping[str, Given]


@dataclass(frozen=True, slots=True)
class Ours:
    """The `tidegate.dev/` keys of one table of annotations."""

    policy: Layer = field(default_factory=dict)
    enabled: bool | None = None
    config_map: Given | None = None


def ours(annotations: Mapping[str, object], place: Place, findings: Findings) -> Ours:
    """Read one table of annotations; values of the policy's keys are left to `resolved`."""
    policy: dict[str, Given] = {}
    said: dict[str, Given] = {}
    asks = False
    for name, value in annotations.items():
        key = name.removeprefix(PREFIX)
        if key == name or key in WRITTEN:
            continue
        here = (*place, name)
        if not isinstance(value, str):
            findings.wrong(here, not_text(value))
            asks = asks or (key == "enabled" and value is not False)
        elif key in _POD_KEYS:
            check_value(_POD_KEYS[key], value, here, findings)
        elif key in _OBJECT_KEYS:
            said[key] = Given(value.strip(), here)
        elif key in _POLICY_NAMES or key in LATER_KEYS:
            policy[key] = Given(value, here)
        else:
            findings.wrong(here, unknown(key, _NAMES))
    enabled = True if asks else _enabled(said.get("enabled"), findings)
    return Ours(policy, enabled, _config_map(said, findings))


def not_text(value: object) -> str:
    """What is said of an annotation that is no text; the API server would refuse it."""
    if isinstance(value, bool | int | float):
        quoted = f'"{str(value).lower()}"'
        return f"the value of an annotation is text: put it in quotes, {quoted}"
    return "the value of an annotation is text, not a list, a table or nothing"


def check_value(key: Key, value: str, place: Place, findings: Findings) -> object:
    """The value as `key` reads it; None and a problem where it cannot."""
    try:
        return key.read(value.strip())
    except Unreadable as why:
        findings.wrong(place, refused(value, key.permitted, str(why)))
        return None


def _enabled(said: Given | None, findings: Findings) -> bool | None:
    if said is None:
        return None
    value = check_value(_OBJECT_KEYS["enabled"], str(said.value), said.place, findings)
    return value is not False  # a wrong word asks for something: say so rather than do nothing


def _config_map(said: Mapping[str, Given], findings: Findings) -> Given | None:
    given = said.get("policy-from")
    if given is None:
        return None
    name = check_value(_OBJECT_KEYS["policy-from"], str(given.value), given.place, findings)
    return given if name else None


def from_config_map(name: Given, lookup: ConfigMapLookup | None, findings: Findings) -> Layer:
    """The keys that a ConfigMap holds; a problem where there is no such ConfigMap."""
    data = lookup(str(name.value)) if lookup else None
    if data is None:
        findings.wrong(name.place, f"there is no ConfigMap {name.value!r} in the same namespace")
        return {}
    layer: dict[str, Given] = {}
    for key, value in data.items():
        where = f"ConfigMap {name.value!r}, key {key!r}: "
        if key not in _POLICY_NAMES and key not in LATER_KEYS:
            findings.wrong(name.place, where + unknown(str(key), _POLICY_NAMES))
        elif not isinstance(value, str):
            findings.wrong(name.place, where + "its value is text: put it in quotes")
        else:
            layer[key] = Given(value, name.place, where)
    return layer


def merged(layers: Sequence[Layer]) -> dict[str, Given]:
    """One answer a key: the first layer that has one."""
    answers: dict[str, Given] = {}
    for layer in layers:
        for key, given in layer.items():
            answers.setdefault(key, given)
    return answers


def resolved(layers: Sequence[Layer], findings: Findings) -> ServicePolicy | None:
    """The policy that the layers add up to, the first counting most; None: there are problems."""
    answers = merged(layers)
    for given in answers.values():
        if given.note:
            findings.note(given.place, given.note)
    read = read_policy({key: given.value for key, given in answers.items()})
    if isinstance(read, ServicePolicy):
        return None if findings.problems else read
    for problem in read:
        given = answers[problem.key]
        findings.wrong(given.place, given.where + problem.text)
    return None
