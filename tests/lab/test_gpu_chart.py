# SPDX-License-Identifier: Apache-2.0
"""The chart with GPUs switched on: it finds them, gives them to pods, and keeps others off them.

All as the chart installs it, under its own rights, by the real Helm; of NVIDIA's there is only a
stand-in for the library that tells of GPUs, see `nvml/`.
"""

import base64
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler_extender.admission.pair import KEY, make_pair
from scheduler_extender.core.node_report import GPUS
from tests.lab.access import write_kubeconfig
from tests.lab.gpu import a_gpu_pod, cards, doubts, granted, share
from tests.lab.lab import NODES, Lab, LabError
from tests.lab.place import Object, Place, a_shell
from tests.lab.place import a_pod as a_plain_pod
from tests.lab.test_chart_install import CHART, complete, may, pods, scoped

# Ten processes of Python start on two cores.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

CARD_MIB = 24_000
SOON_S = 240.0
SECRET = "tidegate-admission-tls"  # noqa: S105  a name
RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}
DRY = ("create", "--dry-run=server", "-f", "-")
SEES = "echo seen=$NVIDIA_VISIBLE_DEVICES. mib=$TIDEGATE_GPU_MEMORY_MIB.; exec sleep 1000"


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in for NVIDIA's library."""
    compiler = shutil.which("cc")
    if compiler is None:
        why = "no C compiler (cc), which makes the stand-in for NVIDIA's library"
        if os.environ.get("TIDEGATE_LAB_REQUIRED") == "1":
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "nvml" / "libnvidia-ml.c"
    subprocess.run(  # noqa: S603  our own words
        [compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)],
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def installed(lab: Lab, nvml: Path) -> Iterator[Place]:
    """In a namespace with restricted Pod Security; one value switches it on."""
    for node in NODES:
        lab.kubectl("label", "node", node, "nvidia.com/gpu.present=true")
    lab.apply(RUNTIME_CLASS)
    with lab.namespace("gate") as namespace:
        label = "pod-security.kubernetes.io/enforce=restricted"
        lab.kubectl("label", "namespace", namespace, label)
        place = Place(lab, namespace)
        lab.helm("install", "tide", str(CHART), "-n", namespace, *values(namespace, nvml))
        try:
            place.until(lambda: is_up(place), within_s=SOON_S)
            wait_heard(lab)
            yield place
        finally:
            lab.helm("uninstall", "tide", "-n", namespace, "--ignore-not-found", check=False)
    for node in NODES:
        lab.kubectl("annotate", "node", node, f"{GPUS}-", f"{GPUS}-heartbeat-")
        lab.kubectl("label", "node", node, "nvidia.com/gpu.present-")
    lab.kubectl("delete", "runtimeclass", "nvidia")


def values(namespace: str, nvml: Path) -> list[str]:
    """One pod each of what is not looked at here."""
    return scoped(
        namespace,
        {
            "scheduler": {"enabled": True},
            "controller": {"replicas": 1},
            "activator": {"replicas": 1, "drainSeconds": 1},
            "extraEnv": {"LD_LIBRARY_PATH": str(nvml)},
        },
    )


def wait_heard(lab: Lab) -> None:
    """Until the API server reaches the webhook: kube-proxy routes to pods some time after Ready."""
    with lab.namespace("first") as namespace:
        place = Place(lab, namespace)
        place.until(lambda: not refused(place, a_wish("first")), within_s=SOON_S)


def is_up(place: Place) -> bool:
    """Scheduler and webhook answer, and every node has its agent's report."""
    names = ("tidegate-scheduler", "tidegate-admission")
    agents = place.get("daemonset", "tidegate-node-agent-gpu").get("status", {})
    return all(
        (found := place.get("deployment", name)) and complete(found) for name in names
    ) and agents.get("numberReady") == len(NODES)


@pytest.fixture
def team(installed: Place) -> Iterator[Place]:
    """A namespace of users."""
    with installed.lab.namespace("team") as namespace:
        yield Place(installed.lab, namespace)
        installed.lab.kubectl(
            "delete", "pods", "--all", "-n", namespace
        )  # and their cards are free


def a_wish(name: str, memory: str = "8Gi", **container: Any) -> Object:
    """A pod as a user writes it: one annotation, nothing else about GPUs."""
    pod = a_plain_pod(name, a_shell(SEES, **container))
    pod["metadata"]["annotations"] = {"tidegate.dev/gpu-memory": memory}
    return pod


def refused(place: Place, pod: Object) -> str:
    """Why a pod is refused; empty: it is not."""
    try:
        place.lab.kubectl("-n", place.namespace, *DRY, stdin=json.dumps(pod))
    except LabError as error:
        return str(error)
    return ""


def test_the_api_server_takes_every_object_as_written(lab: Lab) -> None:
    """No unknown field, no warning, and pods that Pod Security's `restricted` admits."""
    group = {"name": "eight", "nodeSelector": {"pool": "shared"}, "gpus": 8}
    said = {"enabled": True, "nodeAgent": {"groups": [group]}}
    with lab.namespace("gate") as namespace:
        lab.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted")
        flags = scoped(namespace, {"scheduler": said})
        text = lab.helm("template", "tide", str(CHART), "-n", namespace, *flags)
        how = ("--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts")
        answer = lab.kubectl("apply", *how, "-f", "-", stdin=text, check=False)
    assert "arning" not in answer
    assert "rror" not in answer
    assert answer.count("serverside-applied") == sum(1 for one in yaml.safe_load_all(text) if one)


def test_a_pod_with_one_annotation_gets_its_cards_and_sees_them(
    installed: Place, team: Place
) -> None:
    """Webhook, scheduler, extender, agent and kubelet, each of them real."""
    team.apply(*(a_wish(f"p{n}") for n in range(3)))
    team.until(lambda: all("seen=GPU" in team.log_of(f"p{n}") for n in range(3)), within_s=SOON_S)
    found = team.lab.get("pods", "-n", team.namespace)["items"]
    for pod in found:
        (uuid,) = granted(pod)
        assert uuid.startswith(f"GPU-{pod['spec']['nodeName']}-")
        assert f"seen={uuid}. mib=8192." in team.log_of(pod["metadata"]["name"])
        assert pod["spec"]["schedulerName"] == "tidegate-scheduler"
        assert pod["spec"]["runtimeClassName"] == "nvidia"
    room = {node: {c.uuid: CARD_MIB for c in cards(node, 2, CARD_MIB)} for node in NODES}
    assert not doubts(found, room)


def test_pods_that_ask_by_resources_get_theirs(installed: Place, team: Place) -> None:
    """As before there was a webhook, and packed onto one card."""
    says = ["sh", "-c", SEES]
    team.apply(
        *(a_gpu_pod(f"r{n}", share(8_000, 30), image="shell", command=says) for n in range(3))
    )
    team.until(lambda: all("seen=GPU" in team.log_of(f"r{n}") for n in range(3)), within_s=SOON_S)
    found = team.lab.get("pods", "-n", team.namespace)["items"]
    assert len({tuple(granted(pod)) for pod in found}) == 1


def test_a_pod_that_takes_gpus_itself_is_refused_in_one_line(installed: Place, team: Place) -> None:
    """Whether it asks for some besides or not; one that hides them from itself may be."""

    def setting(value: str) -> Object:
        env = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": value}]
        return a_plain_pod("taker", a_shell("true", env=env))

    said = refused(team, setting("all"))
    assert "nobody sets NVIDIA_VISIBLE_DEVICES himself; ask by tidegate.dev/gpu-memory" in said
    assert len(said.strip().splitlines()) == 1
    assert not refused(team, setting("void"))
    unasked = a_plain_pod("taker", a_shell("true"), runtimeClassName="nvidia")
    assert "spec.runtimeClassName nvidia shows it" in refused(team, unasked)
    assert "tidegate.dev/gpu-memory: " in refused(team, a_wish("wrong", "plenty"))


def test_what_a_pod_was_given_stays(installed: Place, team: Place) -> None:
    """Other changes of it are none of ours."""
    team.apply(a_wish("kept"))
    team.until(lambda: granted(team.get("pod", "kept")), within_s=SOON_S)
    with pytest.raises(LabError, match="only the scheduler extender writes it"):
        team.kubectl("annotate", "pod", "kept", "--overwrite", "tidegate.dev/gpu-uuids=GPU-9")
    with pytest.raises(LabError, match="only the scheduler extender writes it"):
        team.kubectl("annotate", "pod", "kept", "tidegate.dev/gpu-uuids-")
    by_status = ("patch", "pod", "kept", "--subresource=status", "--type=merge", "-p")
    forged = {"metadata": {"annotations": {"tidegate.dev/gpu-uuids": "GPU-9"}}}
    with pytest.raises(LabError, match="only the scheduler extender writes it"):
        team.kubectl(*by_status, json.dumps(forged))
    team.kubectl("annotate", "pod", "kept", "team.example/note=ours")


def test_nothing_that_they_ask_for_is_forbidden(installed: Place) -> None:
    """By the API server, to any container; the reports stand on the nodes."""
    for component, containers in {
        "scheduler": ("extender", "kube-scheduler"),
        "node-agent": ("node-agent",),
        "admission": ("admission",),
    }.items():
        found = pods(installed.lab, installed.namespace, component)
        assert found
        for name in found:
            for container in containers:
                said = installed.log_of(name, container)
                assert said
                assert "forbidden" not in said.lower(), said


MAY = [
    ("scheduler", "create", "/pods/binding"),
    ("scheduler", "watch", "/nodes/"),
    ("scheduler", "patch", "/pods/status"),
    ("scheduler", "create", "/pods/eviction"),
    ("node-agent", "patch", "/nodes/"),
    ("node-agent", "list", "/pods/"),
]
MAY_NOT = [
    ("scheduler", "get", "/secrets/"),
    ("scheduler", "create", "/pods/"),
    ("scheduler", "patch", "/nodes/"),
    ("node-agent", "get", "/secrets/"),
    ("node-agent", "patch", "/nodes/status"),
    ("node-agent", "patch", "/pods/"),
    ("admission", "list", "/secrets/"),
    ("admission", "create", "/secrets/"),
    ("admission", "get", "/pods/"),
    ("admission", "update", "admissionregistration.k8s.io/mutatingwebhookconfigurations/"),
]


def test_each_may_do_what_it_does_and_no_more(installed: Place) -> None:
    """The API server's own answer; of Secrets and webhooks only their own, by name."""
    user = f"system:serviceaccount:{installed.namespace}:tidegate-"
    for component, verb, what in MAY:
        allowed = may(installed.lab, user + component, verb, what, installed.namespace)
        assert allowed, (component, verb, what)
    for component, verb, what in MAY_NOT:
        allowed = may(installed.lab, user + component, verb, what, installed.namespace)
        assert not allowed, (component, verb, what)


def test_an_agent_writes_the_report_of_its_own_node_and_nothing_else(installed: Place) -> None:
    """With its own token, whoever has stolen it."""
    (name, *_) = pods(installed.lab, installed.namespace, "node-agent")
    own = installed.get("pod", name)["spec"]["nodeName"]
    (other,) = set(NODES) - {own}
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={name}")
    token = installed.kubectl("create", "token", "tidegate-node-agent", *bound).strip()
    login = write_kubeconfig(installed.lab.folder / "agent.kubeconfig", token)

    def patch(node: str, **meta: dict[str, str]) -> None:
        words = ("patch", "node", node, "--dry-run=server", "-p", json.dumps({"metadata": meta}))
        installed.lab.kubectl("--kubeconfig", str(login), *words)

    patch(own, annotations={GPUS: "{}"})
    with pytest.raises(LabError, match="of its own node alone"):
        patch(other, annotations={GPUS: "{}"})
    for meta in ({"labels": {"a": "b"}}, {"annotations": {"a": "b"}}):
        with pytest.raises(LabError, match="and nothing else"):
            patch(own, **meta)


def secret(place: Place) -> dict[str, str]:
    return place.get("secret", SECRET).get("data") or {}


def shown(place: Place) -> set[str]:
    """The certificates that the webhook's pods serve now."""
    found = pods(place.lab, place.namespace, "admission").values()
    return {ssl.get_server_certificate((ip, 8443), timeout=10).strip() for ip in found}


def trusted(place: Place) -> list[str]:
    """What each webhook of both configurations trusts."""
    kinds = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
    found = [place.lab.get(kind, "tidegate-admission") for kind in kinds]
    told = [webhook["clientConfig"]["caBundle"] for one in found for webhook in one["webhooks"]]
    return [base64.b64decode(bundle).decode() for bundle in told]


def emptied(place: Place, _again: Callable[[], object]) -> None:
    place.kubectl("patch", "secret", SECRET, "--type=merge", "-p", '{"data":null}')


def aged(place: Place, _again: Callable[[], object]) -> None:
    """It has less than a month to live."""
    host = f"tidegate-admission.{place.namespace}.svc"
    old = make_pair(host, now=datetime.now(UTC) - timedelta(days=61))
    place.kubectl("patch", "secret", SECRET, "--type=merge", "-p", json.dumps({"data": old.data}))


def deleted(place: Place, again: Callable[[], object]) -> None:
    place.kubectl("delete", "secret", SECRET)
    again()


@pytest.mark.parametrize("spoil", [emptied, aged, deleted])
def test_a_new_certificate_comes_without_a_pod_that_is_turned_away(
    installed: Place, team: Place, nvml: Path, spoil: Callable[..., None]
) -> None:
    """Made once, trusted before it is served, and the old one trusted as long as it lives."""
    lab, namespace = installed.lab, installed.namespace
    before, trusting = shown(installed), trusted(installed)

    def upgrade() -> None:
        flags = ("--set-json=podAnnotations={}", *values(namespace, nvml))
        lab.helm("upgrade", "tide", str(CHART), "-n", namespace, *flags)

    spoil(installed, upgrade)

    def renewed() -> bool:
        assert not refused(team, a_wish("asks"))
        now = shown(installed)
        return KEY in secret(installed) and not now & before and len(now) == 1

    installed.until(renewed, within_s=SOON_S)
    for old, new in zip(trusting, trusted(installed), strict=True):
        assert new.startswith(old)
        assert len(new) > len(old)


def test_an_upgrade_of_the_webhook_turns_no_pod_away(installed: Place, team: Place) -> None:
    """A pod that goes answers until nobody asks it any more."""
    before = set(pods(installed.lab, installed.namespace, "admission"))
    installed.kubectl("rollout", "restart", "deployment/tidegate-admission")

    def replaced() -> bool:
        assert not refused(team, a_wish("asks"))
        now = set(pods(installed.lab, installed.namespace, "admission"))
        return is_up(installed) and not now & before

    installed.until(replaced, within_s=SOON_S)


def test_without_the_webhook_only_pods_with_gpus_wait(installed: Place, team: Place) -> None:
    """Others are created, changed and ended as if there were none."""
    team.apply(a_wish("here"))
    team.until(lambda: granted(team.get("pod", "here")), within_s=SOON_S)
    installed.kubectl("scale", "deployment", "tidegate-admission", "--replicas=0")
    installed.until(
        lambda: not pods(installed.lab, installed.namespace, "admission"), within_s=SOON_S
    )
    # Pods that end are listed no more, and answer a moment longer.
    installed.until(
        lambda: "failed calling webhook" in refused(team, a_wish("asks")), within_s=SOON_S
    )
    assert not refused(team, a_plain_pod("other", a_shell("true")))
    team.kubectl("annotate", "pod", "here", "team.example/note=ours")
    team.kubectl("delete", "pod", "here")
    installed.kubectl("scale", "deployment", "tidegate-admission", "--replicas=2")
    installed.until(lambda: is_up(installed), within_s=SOON_S)
    installed.until(lambda: not refused(team, a_wish("asks")), within_s=SOON_S)
