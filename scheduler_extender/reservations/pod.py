# SPDX-License-Identifier: Apache-2.0
"""The pod that takes one card of a mixed node: a template from a file, and what we add to it. Pure
but for the reading of the file.

It goes through the scheduler that also places the others who ask for `nvidia.com/gpu`, pinned by
affinity. Were it bound by us, that scheduler might give the same card away in the same moment, and
the kubelet would fail one of the two pods.
"""

from collections.abc import Mapping
from copy import deepcopy
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import yaml

from scheduler_extender.core.annotations import PLUGIN_RESOURCE, RESERVATION, RESERVES_ON
from scheduler_extender.errors import BadInput

Raw = dict[str, Any]

ARGS: Final = ("node-agent", "reserve")
LONGEST_NODE: Final = 200  # characters; a pod's name has up to 253
_ITSELF: Final = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
}


def template_of(file: Path) -> Raw:
    """Raises `BadInput` where the file holds no Pod with a container that has an image."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        image = raw["spec"]["containers"][0]["image"]
        labelled = {**(raw.get("metadata") or {}).get("labels", {})}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"--reservation-pod {file}: {error}; name a file of YAML") from error
    except (KeyError, TypeError, IndexError, AttributeError):
        image, labelled = None, {}
    if not isinstance(image, str) or RESERVATION in labelled:
        raise BadInput(
            f"--reservation-pod {file}: no Pod as YAML with spec.containers[0].image, and without "
            f"the label {RESERVATION}, which is ours"
        )
    return {"metadata": raw.get("metadata") or {}, "spec": raw["spec"]}


def name_of(node: str, number: int) -> str:
    """The same for the same node and number, so that a second try finds the first."""
    if len(node) > LONGEST_NODE:
        node = blake2b(node.encode(), digest_size=16).hexdigest()
    return f"reserved-{number}-{node}"


def reservation_pod(template: Mapping[str, Any], *, node: str, number: int) -> Raw:
    """The first container gets the card; whoever runs there tells its UUID."""
    pod = deepcopy(dict(template))
    meta, spec = pod["metadata"], pod["spec"]
    meta["name"] = name_of(node, number)
    meta["labels"] = {**(meta.get("labels") or {}), RESERVATION: str(number)}
    meta["annotations"] = {**(meta.get("annotations") or {}), RESERVES_ON: node}
    spec["affinity"] = {"nodeAffinity": _only(node)}
    # It stays for as long as its node does: whoever has the card cannot be asked to go first.
    spec.setdefault("tolerations", [{"operator": "Exists"}])
    container = spec["containers"][0]
    if not container.get("command"):
        container.setdefault("args", list(ARGS))
    _takes_a_card(container)
    env = container.get("env") or ()
    told = {one.get("name") for one in env}
    own = [_field(name, path) for name, path in _ITSELF.items() if name not in told]
    container["env"] = [*env, *own]
    return {"apiVersion": "v1", "kind": "Pod", **pod}


def _only(node: str) -> Raw:
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}


def _takes_a_card(container: Raw) -> None:
    resources = container.setdefault("resources", {})
    for kind in ("requests", "limits"):
        resources[kind] = {**(resources.get(kind) or {}), PLUGIN_RESOURCE: "1"}


def _field(name: str, path: str) -> Raw:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
