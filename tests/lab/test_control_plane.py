# SPDX-License-Identifier: Apache-2.0
"""The lab is a Kubernetes: what it runs can be reached, and what it forbids is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import REPOSITORY, Lab, LabError
from tests.lab.place import Place, a_deployment, a_pod, a_service, a_shell, an_echo, get

pytestmark = pytest.mark.lab

UP_WITHIN_S = 20.0
PROBE = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}


@pytest.fixture
def place(lab: Lab) -> Iterator[Place]:
    with lab.namespace("control-plane") as namespace:
        yield Place(lab, namespace)


def an_echo_with_service(place: Place, replicas: int) -> None:
    spec = a_pod("web", an_echo(readinessProbe=PROBE))["spec"]
    place.apply(a_deployment("web", replicas, spec), a_service("web"))


def test_the_lab_is_up_within_its_time(lab: Lab) -> None:
    """Two nodes are there, and the version is the one that was built."""
    nodes = lab.get("nodes")["items"]
    assert {node["metadata"]["name"] for node in nodes} >= {"node-a", "node-b"}
    assert "v1.36.3" in lab.kubectl("version")
    assert lab.start_s < UP_WITHIN_S


def test_a_deployment_answers_at_its_services_address(place: Place) -> None:
    """Controllers make the pods, the scheduler places them, kube-proxy leads the way to both."""
    an_echo_with_service(place, replicas=2)
    place.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    place.until(lambda: place.answers("web"))
    names = {json.loads(get(place.cluster_ip("web"))[1])["pod"] for _ in range(40)}
    assert len(names) == 2


def test_an_account_without_rights_is_refused(place: Place) -> None:
    """The API server's RBAC is on."""
    config = place.lab.kubeconfig_for("default", namespace=place.namespace)
    said = place.lab.kubectl("--kubeconfig", str(config), "get", "pods", check=False)
    assert "forbidden" in said.lower()


def test_a_role_gives_an_account_what_it_says_and_no_more(place: Place) -> None:
    place.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    account = f"--serviceaccount={place.namespace}:default"
    place.kubectl("create", "rolebinding", "reads", "--role=reader", account)
    config = place.lab.kubeconfig_for("default", namespace=place.namespace)
    as_account = ("--kubeconfig", str(config))
    assert "kube-root-ca.crt" in place.lab.kubectl(*as_account, "get", "configmaps")
    said = place.lab.kubectl(*as_account, "create", "configmap", "x", check=False)
    assert "forbidden" in said.lower()


def test_restricted_pod_security_refuses_a_pod_that_asks_for_more(place: Place) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    place.kubectl("label", "namespace", place.namespace, label)
    pod = a_pod("root", a_shell("sleep 99", securityContext={"privileged": True}))
    with pytest.raises(LabError, match="violates PodSecurity"):
        place.apply(pod)


def test_objects_outlive_the_api_server(place: Place) -> None:
    """Stopped and started again it knows what it knew."""
    place.kubectl("create", "configmap", "kept", "--from-literal=a=b")
    place.lab.restart("kube-apiserver")
    assert place.get("configmap", "kept")["data"] == {"a": "b"}


def test_a_service_answers_while_the_control_plane_is_gone(place: Place) -> None:
    """Killed, not stopped; and when it is back, it scales again."""
    an_echo_with_service(place, replicas=1)
    place.until(lambda: place.answers("web"))
    address = place.cluster_ip("web")
    gone = ("kube-controller-manager", "kube-scheduler", "kube-apiserver", "etcd")
    for name in gone:
        place.lab.stop_component(name, kill=True)
    assert [get(address)[0] for _ in range(20)] == [200] * 20
    for name in reversed(gone):
        place.lab.start_component(name)
    place.kubectl("scale", "deployment/web", "--replicas=2")
    place.kubectl("rollout", "status", "deployment/web", "--timeout=40s")


def test_a_watch_from_before_a_compaction_is_refused(place: Place) -> None:
    """Whoever resumes too late is told 410 and has to list anew."""
    place.kubectl("create", "configmap", "old")
    version = place.get("configmap", "old")["metadata"]["resourceVersion"]
    place.kubectl("delete", "configmap", "old")
    place.lab.compact()
    place.lab.restart("kube-apiserver")
    path = f"/api/v1/namespaces/{place.namespace}/configmaps?watch=1&timeoutSeconds=2"
    raw = f"{path}&resourceVersion={version}"
    said = place.lab.kubectl("get", "--raw", raw, check=False)
    assert "410" in said or "Expired" in said


def test_helm_installs_and_takes_away(place: Place) -> None:
    """The real Helm, against this API server."""
    folder = place.lab.folder / "little-chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: little, version: 0.1.0}")
    (folder / "templates" / "one.yaml").write_text(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: of-helm}, data: {a: {{ .Values.a }}}}"
    )
    place.lab.helm("install", "little", str(folder), "-n", place.namespace, "--set", "a=b")
    assert place.get("configmap", "of-helm")["data"] == {"a": "b"}
    place.lab.helm("uninstall", "little", "-n", place.namespace)
    assert not place.get("configmap", "of-helm")


def test_kwok_plays_its_own_nodes_and_no_other(place: Place) -> None:
    """Pods that exist only as objects run there; the processes' nodes stay as they were."""
    place.lab.kwok()
    place.lab.apply(a_played_node("played"))
    on_it = {"nodeSelector": {"type": "kwok"}, "tolerations": [{"operator": "Exists"}]}
    spec = {"containers": [{"name": "c", "image": "nothing/of-the-kind"}], **on_it}
    place.apply(a_deployment("crowd", 50, spec))
    place.kubectl("rollout", "status", "deployment/crowd", "--timeout=60s")
    an_echo_with_service(place, replicas=1)
    place.until(lambda: place.answers("web"))
    place.kubectl("delete", "deployment", "crowd", "--cascade=foreground")
    place.lab.kubectl("delete", "node", "played")


def a_played_node(name: str) -> dict[str, object]:
    taint = {"key": "kwok", "value": "true", "effect": "NoSchedule"}  # real pods stay away
    room = {"cpu": "1000", "memory": "1Ti", "pods": "1000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"type": "kwok"}},
        "spec": {"taints": [taint]},
        "status": {"capacity": room, "allocatable": room},
    }


def test_nothing_of_a_lab_outlives_a_process_that_is_killed(lab: Lab) -> None:
    """Another lab beside ours, whose owner gets SIGKILL."""
    code = (
        "import sys; from pathlib import Path; from tests.lab.build import Binaries;"
        "from tests.lab.lab import Lab; lab = Lab(Binaries(Path(sys.argv[1]))); lab.start();"
        "print(lab.folder, flush=True); input()"
    )
    owner = subprocess.Popen(  # noqa: S603  the words above
        [sys.executable, "-c", code, str(lab.binaries.folder)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        assert processes_in(folder)
        owner.send_signal(signal.SIGKILL)
    ends_s = time.monotonic() + 10
    while (left := processes_in(folder)) and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert left == []
    shutil.rmtree(folder)


def processes_in(folder: str) -> list[str]:
    """The command lines of the processes that work in a folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == folder:
                with open(f"/proc/{pid}/cmdline") as words:
                    found.append(words.read())
        except OSError:  # it has just ended
            continue
    return found
