# SPDX-License-Identifier: Apache-2.0
"""What a container's environment, command and arguments come to. Pure but for `find`.

`find(kind, name)` gives a ConfigMap or Secret of the pod's namespace, None where there is none.
"""

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.lab.rest import Object

Find = Callable[[str, str], Awaitable[Object | None]]

REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)")
QUOTED_KEY = re.compile(r"(labels|annotations)\['([^']+)'\]")
FACTORS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3, "k": 1e3, "M": 1e6}
FACTORS |= {"G": 1e9, "T": 1e12, "": 1.0}
QUANTITY = re.compile(r"([-+]?[0-9.]+)(Ki|Mi|Gi|Ti|m|k|M|G|T|)")


class NotYet(Exception):
    """A container cannot start for now; `reason` is the one a kubelet reports."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pod runs."""

    pod_ip: str
    host_ip: str
    base: Mapping[str, str]  # what every container gets: the API server's address, PATH


async def environment(
    container: Object, *, pod: Object, place: Place, find: Find
) -> dict[str, str]:
    """All variables, later ones over earlier ones. Raises `NotYet`."""
    env = dict(place.base)
    for source in container.get("envFrom", ()):
        prefix = source.get("prefix", "")
        for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if reference := source.get(field):
                found = await _content(kind, reference, find)
                env.update({prefix + key: text.decode() for key, text in (found or {}).items()})
    for variable in container.get("env", ()):
        value = await _value(
            variable, container=container, pod=pod, place=place, find=find, env=env
        )
        if value is not None:
            env[variable["name"]] = value
    return env


async def _value(
    variable: Object, *, container: Object, pod: Object, place: Place, find: Find, env: Object
) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value", ""), env)
    if field := source.get("fieldRef"):
        return field_of(field["fieldPath"], pod=pod, place=place)
    if resource := source.get("resourceFieldRef"):
        return resource_of(resource, container)
    for kind, name in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if reference := source.get(name):
            found = await _content(kind, reference, find)
            if found is not None and reference["key"] in found:
                return found[reference["key"]].decode()
            if not reference.get("optional"):
                what = f"couldn't find key {reference['key']} in {kind} {reference['name']}"
                raise NotYet("CreateContainerConfigError", what)
    return None


async def _content(kind: str, reference: Object, find: Find) -> dict[str, bytes] | None:
    found = await find(kind, reference["name"])
    if found is None and not reference.get("optional"):
        what = f"{kind.lower()} {reference['name']!r} not found"
        raise NotYet("CreateContainerConfigError", what)
    return None if found is None else content_of(found)


def content_of(found: Object) -> dict[str, bytes]:
    """The bytes that a ConfigMap or Secret holds, by key."""
    if found["kind"] == "Secret":
        return {k: base64.b64decode(v) for k, v in (found.get("data") or {}).items()}
    plain = {k: v.encode() for k, v in (found.get("data") or {}).items()}
    binary = {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
    return plain | binary


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value where there is one; `$$` is one `$`."""

    def put(found: re.Match[str]) -> str:
        return "$" if found.group(0) == "$$" else env.get(found.group(1), found.group(0))

    return REFERENCE.sub(put, text)


def field_of(path: str, *, pod: Object, place: Place) -> str:
    """What a `fieldRef` names, as text."""
    meta, spec = pod["metadata"], pod["spec"]
    where = path.removeprefix("metadata.")
    if quoted := QUOTED_KEY.fullmatch(where):
        return str((meta.get(quoted[1]) or {}).get(quoted[2], ""))
    if where in ("labels", "annotations"):
        entries = sorted((meta.get(where) or {}).items())
        return "\n".join(f'{key}="{value}"' for key, value in entries)
    known: dict[str, Any] = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": place.pod_ip,
        "status.podIPs": place.pod_ip,
        "status.hostIP": place.host_ip,
        "status.hostIPs": place.host_ip,
    }
    if path not in known:
        raise NotYet("CreateContainerConfigError", f"fieldPath {path!r} is not known in the lab")
    return str(known[path])


def resource_of(reference: Object, container: Object) -> str:
    """`requests.cpu` and the like over the divisor, rounded up; an unset limit counts as 0."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources", {})
    amount = resources.get(kind, {}).get(name) or resources.get("limits", {}).get(name) or "0"
    divisor = reference.get("divisor") or "1"
    parts = _amount(amount) / (_amount(divisor if divisor != "0" else "1"))
    return str(-int(-parts // 1))


def _amount(quantity: str) -> float:
    found = QUANTITY.fullmatch(str(quantity))
    if found is None:
        raise NotYet("CreateContainerConfigError", f"quantity {quantity!r} is not understood")
    return float(found[1]) * FACTORS[found[2]]
