# SPDX-License-Identifier: Apache-2.0
"""What Helm prints after an install tells what to do next, and the commands work."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autoscaler.app.activator import LEASE
from autoscaler.contract import KEYS, OBJECT_KEYS
from tests.chart.rendering import CHART, NAMESPACE, Helm

KSERVE = "serving.kserve.io/v1beta1"


@pytest.fixture
def notes(helm: Helm, tmp_path: Path) -> Any:
    """The notes as a template like any other: Helm shows the real ones only when it installs."""
    chart = tmp_path / "tidegate"
    shutil.copytree(CHART, chart)
    text = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "notes.yaml").write_text(
        f'{{{{ define "notes" }}}}{text}{{{{ end }}}}\n'
        'kind: Notes\nmetadata: {name: notes}\ntext: {{ include "notes" . | toJson }}\n'
    )

    def render(values: dict[str, Any] | None = None, *, apis: str = "") -> str:
        return str(helm.render(values, chart=chart, apis=apis).one("Notes", "notes")["text"])

    return render


def test_notes_say_what_to_do_next(notes: Any) -> None:
    """How to opt a workload in, and where to look."""
    text = notes()
    assert "the whole cluster" in text
    assert "annotate deployment NAME tidegate.dev/enabled=true" in text
    assert f"leader=$(kubectl -n {NAMESPACE} get lease {LEASE} " in text
    assert "KServe" not in text
    assert "WARNING" not in text


def test_notes_name_the_namespaces_and_warn_of_a_single_activator(notes: Any) -> None:
    """What was chosen, and what it costs."""
    text = notes({"namespaces": ["team-a", "team-b"], "activator": {"replicas": 1}})
    assert "the namespaces team-a, team-b" in text
    assert "WARNING: with one activator" in text


def test_notes_say_how_pods_get_gpus_and_what_is_not_guarded(notes: Any) -> None:
    """With what is installed of it."""
    assert "GPUs:" not in notes()
    text = notes({"scheduler.enabled": True})
    assert "tidegate.dev/gpu-memory: 8Gi" in text
    assert "as there is no webhook" not in text
    assert "WARNING" not in text
    bare = notes({"scheduler.enabled": True, "scheduler.webhook.enabled": False})
    assert "schedulerName: tidegate-scheduler" in bare


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq")
@pytest.mark.parametrize(
    "before",
    [
        {"data": {}},
        {"data": {"inferenceService": '{"resource": {"cpuLimit": "1"}}'}},
        {
            "data": {
                "deploy": "{}",
                "inferenceService": '{"serviceAnnotationDisallowedList": '
                '["kept.example/a", "tidegate.dev/targets"]}',
            }
        },
    ],
    ids=["none yet", "no list yet", "a list of their own"],
)
def test_the_patch_of_kserve_adds_our_keys_and_changes_nothing_else(
    notes: Any, before: dict[str, Any]
) -> None:
    """The command as printed, run on configurations of KServe."""
    text = notes(apis=KSERVE)
    assert "serving.kserve.io/autoscalerClass=external" in text
    found = re.search(r"jq '(.*?)'", text, flags=re.DOTALL)
    assert found
    done = subprocess.run(  # noqa: S603  our own words
        ["jq", found[1]],  # noqa: S607  a user would find it on the PATH too
        input=json.dumps(before),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    after = json.loads(done.stdout)
    now = json.loads(after["data"].pop("inferenceService"))
    was = json.loads(before["data"].get("inferenceService", "{}"))
    listed = now.pop("serviceAnnotationDisallowedList")
    kept = was.pop("serviceAnnotationDisallowedList", [])
    assert {f"tidegate.dev/{key.name}" for key in (*KEYS, *OBJECT_KEYS)} <= set(listed)
    assert set(kept) <= set(listed)
    assert len(listed) == len(set(listed))
    assert now == was
    assert after["data"] == {k: v for k, v in before["data"].items() if k != "inferenceService"}
