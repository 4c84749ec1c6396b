# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet does to pods what a kubelet does: on a real control plane, with processes."""

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoscaler.errors import RetryLater
from tests.lab import images
from tests.lab.kubelet.addresses import Addresses
from tests.lab.kubelet.env import expand
from tests.lab.kubelet.probes import Threshold
from tests.lab.kubelet.status import difference
from tests.lab.small_lab import NODE_IP, SmallLab, small_lab, until

pytestmark = [pytest.mark.slow]

Object = dict[str, Any]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLab]:
    with small_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


def a_pod(name: str, *containers: Object, **spec: Any) -> Object:
    meta = {"name": name, "labels": {"app": name}}
    pod = {"containers": list(containers), "terminationGracePeriodSeconds": 5, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod}


def a_shell(script: str, **fields: Any) -> Object:
    return {"name": "c", "image": "shell", "command": ["sh", "-c", script], **fields}


def an_echo(*args: str, **fields: Any) -> Object:
    port = {"containerPort": 8080, "name": "http"}
    return {"name": "c", "image": "lab/echo:1", "args": list(args), "ports": [port], **fields}


def a_service(name: str, **spec: Any) -> Object:
    ports = [{"port": 80, "targetPort": 8080}]
    body = {"selector": {"app": name}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def condition(lab: SmallLab, pod: str, kind: str) -> str:
    conditions = lab.get("pod", pod).get("status", {}).get("conditions", ())
    return next((one["status"] for one in conditions if one["type"] == kind), "")


def container(lab: SmallLab, pod: str) -> Object:
    statuses = lab.get("pod", pod).get("status", {}).get("containerStatuses") or [{}]
    found: Object = statuses[0]
    return found


def waiting_for(lab: SmallLab, pod: str) -> str:
    state = container(lab, pod).get("state", {})
    return str(state.get("waiting", {}).get("reason", ""))


def get(address: str, path: str = "/", port: int = 80) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def processes_of(pod: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"HOSTNAME={pod}\0" in (entry / "environ").read_text():
                found.append(int(entry.name))
        except (OSError, UnicodeDecodeError):
            continue
    return found


def test_a_container_gets_its_environment_volumes_and_what_the_init_container_left(
    lab: SmallLab,
) -> None:
    lab.kubectl("create", "configmap", "words", "--from-literal=greeting=moin")
    lab.kubectl("create", "secret", "generic", "keys", "--from-literal=password=s3cret")
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
    lab.apply(pod)
    until(lambda: "read-only" in lab.log_of("rich"))
    ip = lab.get("pod", "rich")["status"]["podIP"]
    lines = lab.log_of("rich").splitlines()
    assert lines[0] == "moin/s3cret/rich/$(NAME)"
    assert lines[1] == f"{ip} node0"
    assert lines[2] == "moins3cretfrom-initrich"
    assert not Path("/not-on-this-machine").exists()
    assert not Path("/run/secrets/kubernetes.io").exists()

    lab.kubectl("delete", "pod", "rich", "--grace-period=1")
    assert until(lambda: not processes_of("rich"))


def test_a_changed_config_map_appears_in_the_running_container(lab: SmallLab) -> None:
    lab.kubectl("create", "configmap", "news", "--from-literal=line=old")
    watch = "while sleep 0.1; do cat /etc/news/line; echo; done"
    mount = {"name": "news", "mountPath": "/etc/news"}
    volume = {"name": "news", "configMap": {"name": "news"}}
    lab.apply(a_pod("reader", a_shell(watch, volumeMounts=[mount]), volumes=[volume]))
    until(lambda: "old" in lab.log_of("reader"))
    lab.kubectl("patch", "configmap", "news", "-p", '{"data":{"line":"new"}}')
    until(lambda: lab.log_of("reader").splitlines()[-1:] == ["new"])
    lab.kubectl("delete", "pod", "reader", "--grace-period=1")


def test_a_pod_waits_for_a_config_map_that_is_not_there_yet(lab: SmallLab) -> None:
    late = {"configMapRef": {"name": "late"}}
    lab.apply(a_pod("patient", a_shell("echo $WORD; sleep 99", envFrom=[late])))
    reason = "CreateContainerConfigError"
    until(lambda: waiting_for(lab, "patient") == reason)
    lab.kubectl("create", "configmap", "late", "--from-literal=WORD=there")
    until(lambda: "there" in lab.log_of("patient"))
    lab.kubectl("delete", "pod", "patient", "--grace-period=1")


def test_pods_that_listen_on_any_address_share_a_port_and_have_a_localhost_of_their_own(
    lab: SmallLab,
) -> None:
    ask = "until curl -s localhost:8080/x; do sleep 0.1; done; echo; sleep 99"
    beside = {**a_shell(ask), "name": "beside"}
    for name in ("one", "two"):
        lab.apply(a_pod(name, an_echo("--host", "0.0.0.0"), beside))  # noqa: S104
    for name in ("one", "two"):
        until(lambda: condition(lab, name, "Ready") == "True")  # noqa: B023
        ip = lab.get("pod", name)["status"]["podIP"]
        until(lambda: name in lab.log_of(name, "beside"))  # noqa: B023
        assert f'"pod": "{name}"' in get(ip, port=8080)[1]
    lab.kubectl("delete", "pod", "one", "two", "--grace-period=1")


def test_a_service_account_reaches_the_api_server_from_inside(lab: SmallLab) -> None:
    script = (
        "python -c 'import kubernetes.client as c, kubernetes.config as g; "
        "g.load_incluster_config(); print(c.VersionApi().get_code().git_version)'"
    )
    lab.apply(a_pod("insider", a_shell(script), restartPolicy="Never"))
    until(lambda: lab.get("pod", "insider").get("status", {}).get("phase") == "Succeeded")
    assert lab.log_of("insider").startswith("v1.")
    lab.kubectl("delete", "pod", "insider")


def test_names_of_services_resolve_inside_a_pod(lab: SmallLab) -> None:
    lab.apply(a_pod("named", an_echo()), a_service("named", clusterIP="None"), a_service("other"))
    until(lambda: condition(lab, "named", "Ready") == "True")
    names = ("named", "other.default", "kubernetes.default.svc", "nobody")
    script = "for n in {}; do getent ahostsv4 $n | head -1 || true; echo $n; done; sleep 99"
    time_for_slice = lab.get("pod", "named")["status"]["podIP"]
    until(lambda: time_for_slice in lab.kubectl("get", "endpointslices", "-o", "yaml"))
    lab.apply(a_pod("asker", a_shell(script.format(" ".join(names)))))
    until(lambda: "nobody" in lab.log_of("asker"))
    other = lab.get("service", "other")["spec"]["clusterIP"]
    answers = [line.split()[0] for line in lab.log_of("asker").splitlines()]
    assert answers == [time_for_slice, "named", other, "other.default", "10.96.0.1", *names[2:]]
    lab.kubectl("delete", "pod", "named", "asker", "--grace-period=1")


def test_readiness_waits_for_the_probe_and_startup_holds_the_other_probes_back(
    lab: SmallLab,
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
    lab.apply(a_pod("slow", slow))
    until(lambda: container(lab, "slow").get("state", {}).get("running"))
    assert container(lab, "slow")["started"] is False
    assert condition(lab, "slow", "Ready") == "False"
    until(lambda: condition(lab, "slow", "Ready") == "True")
    assert container(lab, "slow")["restartCount"] == 0
    lab.kubectl("delete", "pod", "slow", "--grace-period=1")


def test_a_container_whose_liveness_fails_is_started_again(lab: SmallLab) -> None:
    script = "touch /own/alive; sleep 1; rm /own/alive; exec sleep 99"
    probe = {"exec": {"command": ["cat", "/own/alive"]}, "periodSeconds": 1}
    sick = a_shell(
        script,
        livenessProbe={**probe, "failureThreshold": 1, "terminationGracePeriodSeconds": 1},
        volumeMounts=[{"name": "own", "mountPath": "/own"}],
    )
    lab.apply(a_pod("sick", sick, volumes=[{"name": "own", "emptyDir": {}}]))
    until(lambda: container(lab, "sick").get("restartCount"))
    assert container(lab, "sick")["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGTERM
    lab.kubectl("delete", "pod", "sick", "--grace-period=1")


def test_a_crashing_container_is_restarted_with_back_off(lab: SmallLab) -> None:
    lab.apply(a_pod("crash", a_shell("echo boom; exit 3")))

    def backing_off() -> Object:
        found = container(lab, "crash")
        again = found.get("restartCount", 0) >= 2
        return found if again and waiting_for(lab, "crash") == "CrashLoopBackOff" else {}

    found = until(backing_off)
    ended = found["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "boom")
    assert lab.get("pod", "crash")["status"]["phase"] == "Running"
    lab.kubectl("delete", "pod", "crash", "--grace-period=1")


def test_an_image_nobody_knows_is_not_started(lab: SmallLab) -> None:
    lab.apply(a_pod("strange", {"name": "c", "image": "ghcr.io/nobody/nothing:1"}))
    until(lambda: waiting_for(lab, "strange") == "ErrImagePull")
    lab.kubectl("delete", "pod", "strange")


def test_pre_stop_runs_before_the_signal_and_the_grace_ends_with_a_kill(lab: SmallLab) -> None:
    script = "trap 'echo term; ls /left' TERM; echo up; while :; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "sleep 1; touch /left/by-hook"]}}}
    mount = {"name": "left", "mountPath": "/left"}
    stubborn = a_shell(script, lifecycle=hook, volumeMounts=[mount])
    lab.apply(a_pod("stubborn", stubborn, volumes=[{"name": "left", "emptyDir": {}}]))
    until(lambda: "up" in lab.log_of("stubborn"))
    began_s = time.monotonic()
    lab.kubectl("delete", "pod", "stubborn", "--grace-period=4", "--wait=false")
    until(lambda: "term" in lab.log_of("stubborn"))
    assert time.monotonic() - began_s >= 1.0
    until(lambda: "by-hook" in lab.log_of("stubborn"))
    until(lambda: not lab.get("pod", "stubborn"))
    assert 4.0 <= time.monotonic() - began_s < 8.0
    assert not processes_of("stubborn")


def test_a_forced_deletion_kills_at_once(lab: SmallLab) -> None:
    lab.apply(a_pod("gone", a_shell("trap '' TERM; while :; do sleep 0.1; done")))
    until(lambda: processes_of("gone"))
    lab.kubectl("delete", "pod", "gone", "--force", "--grace-period=0")
    until(lambda: not processes_of("gone"), within_s=3)


def a_deployment(name: str, replicas: int, spec: Object) -> Object:
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    body = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    meta = {"name": name}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": body}


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


def test_a_rolling_restart_of_a_server_that_leaves_well_loses_no_request(lab: SmallLab) -> None:
    probe = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1}
    spec = {"containers": [an_echo(readinessProbe=probe)], "terminationGracePeriodSeconds": 10}
    lab.apply(a_deployment("roll", 3, spec), a_service("roll"))
    lab.kubectl("rollout", "status", "deployment/roll", "--timeout=30s")
    address = lab.get("service", "roll")["spec"]["clusterIP"]
    until(lambda: answers(address))
    clients = [Client(address, keep=keep) for keep in (True, False, True, False)]
    for client in clients:
        client.start()
    lab.kubectl("rollout", "restart", "deployment/roll")
    lab.kubectl("rollout", "status", "deployment/roll", "--timeout=40s")
    until(lambda: lab.kubectl("get", "pods", "-lapp=roll", "-oname").count("pod/") == 3)
    for client in clients:
        client.enough.set()
        client.join()
    lab.kubectl("delete", "deployment", "roll")
    assert [client.lost for client in clients] == [[]] * len(clients)
    assert sum(client.answered for client in clients) > 1000


def answers(address: str) -> bool:
    try:
        return get(address)[0] == 200
    except OSError:
        return False


def test_pods_outlive_an_api_server_that_is_away_and_their_news_is_told_afterwards(
    lab: SmallLab,
) -> None:
    lab.apply(a_pod("steady", an_echo()), a_pod("mortal", a_shell("sleep 5; exit 1")))
    until(lambda: condition(lab, "steady", "Ready") == "True")
    until(lambda: container(lab, "mortal").get("state", {}).get("running"))
    ip = lab.get("pod", "steady")["status"]["podIP"]
    lab.stop("kube-apiserver", signal.SIGKILL)
    before = processes_of("steady")
    until(lambda: not processes_of("mortal"))
    assert get(ip, port=8080)[0] == 200
    lab.start_api()
    until(lambda: container(lab, "mortal").get("restartCount"))
    old = lease_renewed(lab)
    until(lambda: lease_renewed(lab) > old)
    assert processes_of("steady") == before
    assert condition(lab, "steady", "Ready") == "True"
    lab.kubectl("delete", "pod", "steady", "mortal", "--grace-period=1")


def lease_renewed(lab: SmallLab) -> str:
    said = ("get", "lease", "node0", "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}")
    return lab.kubectl(*said)


def test_nothing_outlives_a_kubelet_that_is_killed(lab: SmallLab) -> None:
    kubelet = lab.start_kubelet("node1", cidr="10.244.1.0/24")
    until(lambda: lab.get("node", "node1"))
    lab.apply(a_pod("orphan", a_shell("setsid sleep 98 & exec sleep 99"), nodeName="node1"))
    until(lambda: len(processes_of("orphan")) == 2)
    os.kill(kubelet.pid, signal.SIGKILL)
    until(lambda: not processes_of("orphan"), within_s=5)
    lab.stop("node1")
    lab.kubectl("delete", "pod", "orphan", "--force", "--grace-period=0")
    lab.kubectl("delete", "node", "node1")


def test_a_restarted_kubelet_takes_its_pods_up_again(lab: SmallLab) -> None:
    lab.start_kubelet("node2", cidr="10.244.2.0/24")
    until(lambda: lab.get("node", "node2"))
    lab.apply(a_pod("again", an_echo(), nodeName="node2"))
    until(lambda: condition(lab, "again", "Ready") == "True")
    ip = lab.get("pod", "again")["status"]["podIP"]
    lab.stop("node2")
    assert not processes_of("again")
    lab.start_kubelet("node2", cidr="10.244.2.0/24")
    until(lambda: container(lab, "again").get("restartCount") == 1)
    until(lambda: condition(lab, "again", "Ready") == "True")
    assert lab.get("pod", "again")["status"]["podIP"] == ip
    assert get(ip, port=8080)[0] == 200
    lab.kubectl("delete", "pod", "again", "--grace-period=1")
    lab.stop("node2")
    lab.kubectl("delete", "node", "node2")


def test_an_address_in_use_is_never_given_and_a_freed_one_comes_last() -> None:
    addresses = Addresses("10.0.0.0/29", taken=frozenset({"10.0.0.1"}))
    given = [addresses.take() for _ in range(5)]
    assert len(set(given)) == 5
    with pytest.raises(RetryLater):
        addresses.take()
    addresses.give_back(given[2])
    addresses.give_back(given[0])
    assert addresses.take(wished=given[4]) == given[2]
    assert addresses.take() == given[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("$(A)-$(B)", "1-2", id="references are replaced"),
        pytest.param("$(C) $A $(", "$(C) $A $(", id="what is no known reference stays"),
        pytest.param("$$(A) $$", "$(A) $", id="two dollars are one"),
    ],
)
def test_references_in_text(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_a_probe_changes_its_result_only_after_as_many_equal_answers_as_it_says() -> None:
    threshold = Threshold({"successThreshold": 2, "failureThreshold": 3}, False)
    results = []
    for ok in (True, False, True, True, False, False, True, False, False, False):
        threshold.count(ok)
        results.append(threshold.result)
    assert results == [False, False, False, True, True, True, True, True, True, False]


def test_only_what_changed_of_a_status_is_sent() -> None:
    ready = {"type": "Ready", "status": "False"}
    old = {"phase": "Pending", "conditions": [ready, {"type": "Initialized", "status": "True"}]}
    new = {**old, "conditions": [{"type": "Ready", "status": "True"}, old["conditions"][1]]}
    assert difference(old, old) == {}
    assert difference(old, new) == {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("image", "known"),
    [
        pytest.param("ghcr.io/x/tidegate:1@sha256:ab", "tidegate", id="registry, tag and digest"),
        pytest.param("localhost:5000/tidegate", "tidegate", id="a registry with a port"),
        pytest.param(
            "kserve/sklearnserver:v0.15", "kserve/sklearnserver", id="a name of two parts"
        ),
        pytest.param("other/sklearnserver", None, id="the same last part of another"),
        pytest.param("not-tidegate:1", None, id="a name that only ends alike"),
    ],
)
def test_an_image_is_known_by_its_name(image: str, known: str | None) -> None:
    assert images.find(image) is (images.IMAGES[known] if known else None)


def test_the_node_says_what_it_has(lab: SmallLab) -> None:
    node = lab.get("node", "node0")
    addresses = {one["type"]: one["address"] for one in node["status"]["addresses"]}
    assert addresses["InternalIP"] == NODE_IP
    assert node["status"]["capacity"]["pods"] == "250"
