# SPDX-License-Identifier: Apache-2.0
"""What docs/keda.md shows works as it stands there."""

import re
from pathlib import Path

import yaml

from autoscaler.api.keda.trigger import KEYS, WISH, read
from autoscaler.core.signals import ServiceId, Signal
from autoscaler.manifests.review import Severity, review

PAGE = (Path(__file__).parents[3] / "docs" / "keda.md").read_text(encoding="utf-8")


def test_the_manifests_of_the_page_fit_together() -> None:
    """No problem is found in them, and the trigger asks for the Deployment's wish."""
    (manifests,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    found = review([("keda.yaml", manifests.encode())])
    assert [one for one in found.remarks if one.severity is Severity.PROBLEM] == []
    deployment, scaled = yaml.safe_load_all(manifests)
    meta, (trigger,) = scaled["metadata"], scaled["spec"]["triggers"]
    asked = read(trigger["metadata"], namespace=meta["namespace"], name=meta["name"])
    named = deployment["metadata"]
    assert asked.service == ServiceId(named["namespace"], named["name"])
    assert asked.signal == WISH
    assert scaled["spec"]["scaleTargetRef"]["name"] == named["name"]


def test_the_page_names_every_key_and_every_signal() -> None:
    """And so does whatever is added."""
    for word in (*KEYS, WISH, *Signal):
        assert f"`{word}`" in PAGE
