# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet does to pods what a kubelet does: on a real control plane, with processes."""

import base64
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import processes
from tests.lab.component import Component
from tests.lab.lab import NODES, REPOSITORY, Lab
from tests.lab.network import NODE_IP
from tests.lab.place import (
    Object,
    Place,
    a_deployment,
    a_pod,
    a_service,
    a_shell,
    an_echo,
    get,
)

pytestmark = pytest.mark.lab


@pytest.fixture
def place(lab: Lab) -> Iterator[Place]:
    with lab.namespace("kubelet") as namespace:
        yield Place(lab, namespace)


def start_node(place: Place, name: str, *, cidr: str) -> Component:
    """One more node, which the test may treat badly."""
    config = ("--kubeconfig", str(place.lab.folder / "lab-node.kubeconfig"))
    where = ("--node", name, "--node-ip", NODE_IP, "--pod-cidr", cidr)
    folder = ("--run-dir", str(place.lab.folder / name))
    command = (sys.executable, "-m", "tests.lab.kubelet", *config, *where, *folder)
    kubelet = place.lab.run(name, *command, env={"PYTHONPATH": str(REPOSITORY)})
    place.until(lambda: place.get("node", name))
    return kubelet


def remove_node(place: Place, name: str) -> None:
    place.lab.stop_component(name)
    place.kubectl("delete", "node", name)


def test_a_container_gets_its_environment_volumes_and_what_the_init_container_left(
    place: Place,
) -> None:
    place.kubectl("create", "configmap", "words", "--from-literal=greeting=moin")
    place.kubectl("create", "secret", "generic", "keys", "--from-literal=password=s3cret")
    fields = {"NAME": "metadata.name", "IP": "status.podIP", "NODE": "spec.nodeName"}
    env = [{"name": k, "valueFrom": {"fieldRef": {"fieldPath": v}}} for k, v in fields.items()]
    word = {"configMapKeyRef": {"name": "words", "key": "greeting"}}
    key = {"secretKeyRef": {"name": "keys", "key": "password"}}
    env += [{"name": "WORD", "valueFrom": word}, {"name": "KEY", "valueFrom": key}]
    env += [{"name": "ALL", "value": "$(WORD)/$(KEY)/$(NAME)/$$(NAME)"}]
    mounts = {"shared": "/not-on-this-machine/deep", "words": "/etc/words", "keys": "/mnt/keys"}
    volumes = [
        {"name": "shared", "emptyDir": {}},
        {"name": "words", "configMap": {"name": "words"}},
        {"name": "keys", "secret": {"secretName": "keys"}},
    ]
    script = (
        "echo $ALL; echo $IP $NODE; cat /etc/words/greeting /mnt/keys/password "
        "/not-on-this-machine/deep/left; hostname; touch /etc/words/x || echo read-only; sleep 99"
    )
    pod = a_pod(
        "rich",
        a_shell(
            script, env=env, volumeMounts=[{"name": k, "mountPath": v} for k, v in mounts.items()]
        ),
        initContainers=[
            {
                **a_shell("echo -n from-init > /work-dir/left"),
                "name": "init",
                "volumeMounts": [{"name": "shared", "mountPath": "/work-dir"}],
            }
        ],
        volumes=volumes,
    )
    place.apply(pod)
    place.until(lambda: "read-only" in place.log_of("rich"))
    ip = place.ip("rich")
    lines = place.log_of("rich").splitlines()
    assert lines[0] == "moin/s3cret/rich/$(NAME)"
    assert lines[1] == f"{ip} {place.get('pod', 'rich')['spec']['nodeName']}"
    assert lines[2] == "moins3cretfrom-initrich"
    assert not Path("/not-on-this-machine").exists()
    assert not Path("/run/secrets/kubernetes.io").exists()

    place.kubectl("delete", "pod", "rich", "--grace-period=1")
    place.until(lambda: not processes.of_pod("rich"))


def test_a_changed_config_map_appears_in_the_running_container(place: Place) -> None:
    place.kubectl("create", "configmap", "news", "--from-literal=line=old")
    watch = "while sleep 0.1; do cat /etc/news/line; echo; done"
    mount = {"name": "news", "mountPath": "/etc/news"}
    volume = {"name": "news", "configMap": {"name": "news"}}
    place.apply(a_pod("reader", a_shell(watch, volumeMounts=[mount]), volumes=[volume]))
    place.until(lambda: "old" in place.log_of("reader"))
    place.kubectl("patch", "configmap", "news", "-p", '{"data":{"line":"new"}}')
    place.until(lambda: place.log_of("reader").splitlines()[-1:] == ["new"])


def test_a_pod_waits_for_a_config_map_that_is_not_there_yet(place: Place) -> None:
    late = {"configMapRef": {"name": "late"}}
    place.apply(a_pod("patient", a_shell("echo $WORD; sleep 99", envFrom=[late])))
    reason = "CreateContainerConfigError"
    place.until(lambda: place.waiting_for("patient") == reason)
    place.kubectl("create", "configmap", "late", "--from-literal=WORD=there")
    place.until(lambda: "there" in place.log_of("patient"))


def test_pods_that_listen_on_any_address_share_a_port_and_have_a_localhost_of_their_own(
    place: Place,
) -> None:
    ask = "until curl -s localhost:8080/x; do sleep 0.1; done; echo; sleep 99"
    beside = {**a_shell(ask), "name": "beside"}
    for name in ("one", "two"):
        place.apply(a_pod(name, an_echo("--host", "0.0.0.0"), beside))  # noqa: S104
    for name in ("one", "two"):
        place.until(lambda: place.is_ready(name))  # noqa: B023
        ip = place.ip(name)
        place.until(lambda: name in place.log_of(name, "beside"))  # noqa: B023
        assert f'"pod": "{name}"' in get(ip, port=8080)[1]


def test_a_service_account_reaches_the_api_server_from_inside(place: Place) -> None:
    script = (
        "python -c 'import kubernetes.client as c, kubernetes.config as g; "
        "g.load_incluster_config(); print(c.VersionApi().get_code().git_version)'"
    )
    place.apply(a_pod("insider", a_shell(script), restartPolicy="Never"))
    place.until(lambda: place.get("pod", "insider").get("status", {}).get("phase") == "Succeeded")
    assert place.log_of("insider").startswith("v1.")


def test_a_projected_token_is_for_its_audience(place: Place) -> None:
    token = {"path": "token", "audience": "tidegate", "expirationSeconds": 600}
    volume = {"name": "own", "projected": {"sources": [{"serviceAccountToken": token}]}}
    mount = {"name": "own", "mountPath": "/var/run/secrets/tidegate"}
    shell = a_shell("cat /var/run/secrets/tidegate/token; sleep 99", volumeMounts=[mount])
    place.apply(a_pod("bearer", shell, volumes=[volume]))
    _, claims, _ = place.until(lambda: place.log_of("bearer")).split(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert said["aud"] == ["tidegate"]
    assert said["kubernetes.io"]["pod"]["name"] == "bearer"


def test_a_readiness_gate_holds_a_pod_back_until_somebody_opens_it(place: Place) -> None:
    gate = [{"conditionType": "example.com/open"}]
    place.apply(a_pod("gated", an_echo(), readinessGates=gate))
    place.until(lambda: place.condition("pod", "gated", "ContainersReady") == "True")
    assert not place.is_ready("gated")
    opened = '{"status":{"conditions":[{"type":"example.com/open","status":"True"}]}}'
    place.kubectl("patch", "pod", "gated", "--subresource=status", "-p", opened)
    place.until(lambda: place.is_ready("gated"))


def test_names_of_services_resolve_inside_a_pod(place: Place) -> None:
    place.apply(a_pod("named", an_echo()), a_service("named", clusterIP="None"), a_service("other"))
    place.until(lambda: place.is_ready("named"))
    names = ("named", f"other.{place.namespace}", "kubernetes.default.svc", "nobody")
    script = "for n in {}; do getent ahostsv4 $n | head -1 || true; echo $n; done; sleep 99"
    pod = place.ip("named")
    place.until(lambda: pod in place.kubectl("get", "endpointslices", "-o", "yaml"))
    place.apply(a_pod("asker", a_shell(script.format(" ".join(names)))))
    place.until(lambda: "nobody" in place.log_of("asker"))
    other = place.cluster_ip("other")
    answers = [line.split()[0] for line in place.log_of("asker").splitlines()]
    assert answers == [pod, names[0], other, names[1], "10.96.0.1", *names[2:]]


def test_readiness_waits_for_the_probe_and_startup_holds_the_other_probes_back(
    place: Place,
) -> None:
    every = {"periodSeconds": 1, "failureThreshold": 1}
    ready = {"httpGet": {"path": "/ready", "port": "http"}}
    slow = an_echo(
        "--ready-after",
        "3",
        startupProbe={**ready, "periodSeconds": 1, "failureThreshold": 30},
        livenessProbe={**ready, **every},
        readinessProbe={"tcpSocket": {"port": 8080}, **every},
    )
    place.apply(a_pod("slow", slow))
    place.until(lambda: place.container("slow").get("state", {}).get("running"))
    assert place.container("slow")["started"] is False
    assert place.condition("pod", "slow") == "False"
    place.until(lambda: place.is_ready("slow"))
    assert place.container("slow")["restartCount"] == 0


def test_a_container_whose_liveness_fails_is_started_again(place: Place) -> None:
    script = "touch /own/alive; sleep 1; rm /own/alive; exec sleep 99"
    probe = {"exec": {"command": ["cat", "/own/alive"]}, "periodSeconds": 1}
    sick = a_shell(
        script,
        livenessProbe={**probe, "failureThreshold": 1, "terminationGracePeriodSeconds": 1},
        volumeMounts=[{"name": "own", "mountPath": "/own"}],
    )
    place.apply(a_pod("sick", sick, volumes=[{"name": "own", "emptyDir": {}}]))
    place.until(lambda: place.container("sick").get("restartCount"))
    assert place.container("sick")["lastState"]["terminated"]["exitCode"] == 143  # SIGTERM


def test_a_crashing_container_is_restarted_with_back_off(place: Place) -> None:
    place.apply(a_pod("crash", a_shell("echo boom; exit 3")))

    def backing_off() -> Object:
        found = place.container("crash")
        again = found.get("restartCount", 0) >= 1
        return found if again and place.waiting_for("crash") == "CrashLoopBackOff" else {}

    found = place.until(backing_off)
    ended = found["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "boom")
    assert place.get("pod", "crash")["status"]["phase"] == "Running"


def test_an_image_nobody_knows_is_not_started(place: Place) -> None:
    place.apply(a_pod("strange", {"name": "c", "image": "ghcr.io/nobody/nothing:1"}))
    place.until(lambda: place.waiting_for("strange") == "ErrImagePull")


def test_pre_stop_runs_before_the_signal_and_the_grace_ends_with_a_kill(place: Place) -> None:
    script = "trap 'echo term; ls /left' TERM; echo up; while :; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "sleep 1; touch /left/by-hook"]}}}
    mount = {"name": "left", "mountPath": "/left"}
    stubborn = a_shell(script, lifecycle=hook, volumeMounts=[mount])
    place.apply(a_pod("stubborn", stubborn, volumes=[{"name": "left", "emptyDir": {}}]))
    place.until(lambda: "up" in place.log_of("stubborn"))
    began_s = time.monotonic()
    place.kubectl("delete", "pod", "stubborn", "--grace-period=4", "--wait=false")
    place.until(lambda: "term" in place.log_of("stubborn"))
    assert time.monotonic() - began_s >= 1.0
    place.until(lambda: "by-hook" in place.log_of("stubborn"))
    place.until(lambda: not place.get("pod", "stubborn"))
    assert 4.0 <= time.monotonic() - began_s < 8.0
    assert not processes.of_pod("stubborn")


def test_a_forced_deletion_kills_at_once(place: Place) -> None:
    place.apply(a_pod("gone", a_shell("trap '' TERM; while :; do sleep 0.1; done")))
    place.until(lambda: processes.of_pod("gone"))
    place.kubectl("delete", "pod", "gone", "--force", "--grace-period=0")
    place.until(lambda: not processes.of_pod("gone"), within_s=3)


class Client(threading.Thread):
    """Asks a Service without pause, on new connections or on a kept one; counts what is lost."""

    def __init__(self, address: str, *, keep: bool) -> None:
        super().__init__()
        self._address = address
        self._keep = keep
        self.enough = threading.Event()
        self.answered = 0
        self.lost: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, 80, timeout=5)
        while not self.enough.is_set():
            try:
                connection.request(
                    "GET", "/", headers={} if self._keep else {"Connection": "close"}
                )
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
                continue
            if answer.status == 200:
                self.answered += 1
            else:
                self.lost.append(str(answer.status))
            time.sleep(0.002)
        connection.close()


def test_a_rolling_restart_of_a_server_that_leaves_well_loses_no_request(place: Place) -> None:
    probe = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1}
    spec = {"containers": [an_echo(readinessProbe=probe)], "terminationGracePeriodSeconds": 10}
    place.apply(a_deployment("roll", 3, spec), a_service("roll"))
    place.kubectl("rollout", "status", "deployment/roll", "--timeout=30s")
    address = place.cluster_ip("roll")
    place.until(lambda: place.answers("roll"))
    clients = [Client(address, keep=keep) for keep in (True, False, True, False)]
    for client in clients:
        client.start()
    place.kubectl("rollout", "restart", "deployment/roll")
    place.kubectl("rollout", "status", "deployment/roll", "--timeout=40s")
    place.until(lambda: place.kubectl("get", "pods", "-lapp=roll", "-oname").count("pod/") == 3)
    for client in clients:
        client.enough.set()
        client.join()
    assert [client.lost for client in clients] == [[]] * len(clients)
    assert sum(client.answered for client in clients) > 1000


def test_pods_outlive_an_api_server_that_is_away_and_their_news_is_told_afterwards(
    place: Place,
) -> None:
    place.apply(a_pod("steady", an_echo()), a_pod("mortal", a_shell("sleep 5; exit 1")))
    place.until(lambda: place.is_ready("steady"))
    place.until(lambda: place.container("mortal").get("state", {}).get("running"))
    ip = place.ip("steady")
    place.lab.stop_component("kube-apiserver", kill=True)
    before = processes.of_pod("steady")
    place.until(lambda: not processes.of_pod("mortal"))
    assert get(ip, port=8080)[0] == 200
    place.lab.start_component("kube-apiserver")
    place.until(lambda: place.container("mortal").get("restartCount"))
    renewed = lease_renewed(place)
    place.until(lambda: lease_renewed(place) > renewed)
    assert processes.of_pod("steady") == before
    assert place.is_ready("steady")


def lease_renewed(place: Place) -> str:
    words = ("get", "lease", NODES[0], "-n", "kube-node-lease")
    return place.lab.kubectl(*words, "-o", "jsonpath={.spec.renewTime}")


def test_nothing_outlives_a_kubelet_that_is_killed(place: Place) -> None:
    kubelet = start_node(place, "doomed", cidr="10.244.101.0/24")
    place.apply(a_pod("orphan", a_shell("setsid sleep 98 & exec sleep 99"), nodeName="doomed"))
    place.until(lambda: len(processes.of_pod("orphan")) == 2)
    kubelet.stop(kill=True)
    place.until(lambda: not processes.of_pod("orphan"), within_s=5)
    place.kubectl("delete", "pod", "orphan", "--force", "--grace-period=0")
    remove_node(place, "doomed")


def test_a_restarted_kubelet_takes_its_pods_up_again(place: Place) -> None:
    kubelet = start_node(place, "returning", cidr="10.244.102.0/24")
    place.apply(a_pod("again", an_echo(), nodeName="returning"))
    place.until(lambda: place.is_ready("again"))
    ip = place.ip("again")
    kubelet.stop()
    assert not processes.of_pod("again")
    kubelet.start()
    place.until(lambda: place.container("again").get("restartCount") == 1)
    place.until(lambda: place.is_ready("again"))
    assert place.ip("again") == ip
    assert get(ip, port=8080)[0] == 200
    place.kubectl("delete", "pod", "again", "--grace-period=1")
    remove_node(place, "returning")


def test_the_node_says_what_it_has(place: Place) -> None:
    node = place.get("node", NODES[0])
    addresses = {one["type"]: one["address"] for one in node["status"]["addresses"]}
    assert addresses["InternalIP"] == NODE_IP
    assert node["status"]["capacity"]["pods"] == "250"
