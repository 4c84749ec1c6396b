# SPDX-License-Identifier: Apache-2.0
"""What people ask of Tidegate by annotations, ConfigMaps and kubectl, each on a real Kubernetes."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import dns.resolver
import httpx
import pytest

from autoscaler.app.kubernetes import PROXIES_LAG_S
from tests.lab.installed import Tidegate
from tests.lab.lab import Lab, kserve_crds
from tests.lab.network import DNS_IP
from tests.lab.place import (
    ECHO,
    PROBE,
    Object,
    Place,
    a_deployment,
    a_pod,
    a_service,
    an_echo,
    an_isvc,
)
from tests.lab.traffic import Clients

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

NAME = "echo"
IDLE_S = 3
WATCHED_S = 2.5 * IDLE_S  # what would have slept by now does not sleep
PATIENCE_S = 60.0
EXTERNAL = {"serving.kserve.io/autoscalerClass": "external"}


@pytest.fixture
def place(lab: Lab, tidegate: Tidegate) -> Iterator[Place]:
    with lab.namespace("features") as namespace:
        yield Place(lab, namespace)


@pytest.fixture
def kserve(place: Place) -> Place:
    if kserve_crds() is None:
        pytest.skip("KServe's CRDs are not on this machine; name them with TIDEGATE_KSERVE_CRDS")
    return place


# What is said of a service, and asked about it


def said(**keys: str) -> dict[str, str]:
    """Annotations that have an idle service sleep soon; `min_replicas="1"` is `min-replicas`."""
    ours = {"enabled": "true", "scale-to-zero-after": f"{IDLE_S}s", "max-replicas": "3"}
    ours |= {key.replace("_", "-"): value for key, value in keys.items()}
    return {f"tidegate.dev/{key}": value for key, value in ours.items()}


def scaled(*args: str, replicas: int = 0, **keys: str) -> Object:
    """A Deployment that Tidegate is to scale."""
    container = an_echo(*args, readinessProbe=PROBE)
    spec = {"containers": [container], "terminationGracePeriodSeconds": 30}
    made = a_deployment(NAME, replicas, spec)
    made["metadata"]["annotations"] = said(**keys)
    return made


def annotate(place: Place, *words: str) -> None:
    """`key=value`, or `key-` to take one away."""
    words = tuple(f"tidegate.dev/{word}" for word in words)
    place.kubectl("annotate", "--overwrite", f"deployment/{NAME}", *words)


def replicas(place: Place, name: str = NAME, *, kind: str = "deployment") -> int:
    """The count asked for; -1: there is no such object."""
    return int(place.get(kind, name).get("spec", {}).get("replicas", -1))


def comes_to(
    place: Place,
    count: int,
    *names: str,
    kind: str = "deployment",
    within_s: float = 40 + PROXIES_LAG_S,
) -> None:
    for name in names or (NAME,):
        what = f"{name} at {count}"
        there = partial(_is_at, place, count, name, kind)
        place.lab.wait_for(there, what=what, within_s=within_s)


def _is_at(place: Place, count: int, name: str, kind: str) -> bool:
    return replicas(place, name, kind=kind) == count


def stays(place: Place, count: int, name: str = NAME, *, for_s: float = WATCHED_S) -> bool:
    """Whether the count was the same all the time."""
    ends_s = time.monotonic() + for_s
    while time.monotonic() < ends_s:
        if replicas(place, name) != count:
            return False
        time.sleep(0.2)
    return True


def slices(place: Place) -> list[str]:
    """The uids of the slices by which activators stand in the path."""
    label = "endpointslice.kubernetes.io/managed-by=tidegate.dev"
    found = place.lab.get("endpointslices", "-n", place.namespace, "-l", label)["items"]
    return [item["metadata"]["uid"] for item in found]


def in_path(place: Place) -> None:
    place.until(partial(slices, place), within_s=40)


def event(place: Place, reason: str, *, on: str = NAME, words: str = "") -> str:
    """The text of an Event, once there is one that has these words."""

    def found() -> str:
        about = f"reason={reason},regarding.name={on}"
        where = ("events.events.k8s.io", "-n", place.namespace, "--field-selector", about)
        notes = (item["note"] for item in place.lab.get(*where)["items"])
        return next((note for note in notes if words in note), "")

    return str(place.lab.wait_for(found, what=f"an Event {reason} on {on}: {words}"))


def ask(
    place: Place, service: str = NAME, *, port: int = 80, method: str = "GET"
) -> httpx.Response:
    url = f"http://{place.cluster_ip(service)}:{port}/work"
    return httpx.request(method, url, timeout=PATIENCE_S)


def controllers_restart(place: Place, tidegate: Tidegate) -> None:
    before = {pod["metadata"]["uid"] for pod in tidegate.pods("controller")}
    words = ("rollout", "restart", "deployment/tidegate-controller", "-n", tidegate.namespace)
    place.lab.kubectl(*words)
    tidegate.wait_ready()
    place.until(
        lambda: not before & {pod["metadata"]["uid"] for pod in tidegate.pods("controller")}
    )
    tidegate.wait_ready()


# KServe


def test_a_transformer_and_its_predictor_wake_one_after_the_other(kserve: Place) -> None:
    """Each is scaled for itself; the request that the transformer forwards wakes the predictor."""
    transformer = {"containers": [ECHO], "minReplicas": 0}
    kserve.apply(an_isvc("pair", annotations=EXTERNAL | said(), transformer=transformer))
    comes_to(kserve, 1, "pair-predictor", "pair-transformer")
    comes_to(kserve, 0, "pair-predictor", "pair-transformer")
    answer = ask(kserve, "pair-transformer", method="POST")
    assert answer.status_code == 200, answer.text
    assert answer.json()["transformed_by"].startswith("pair-transformer-")
    assert answer.json()["predictor"]["pod"].startswith("pair-predictor-")
    comes_to(kserve, 0, "pair-predictor", "pair-transformer")


def test_a_canary_is_left_alone_and_keeps_the_stable_predictor_awake(kserve: Place) -> None:
    predictor = {"containers": [ECHO], "minReplicas": 0, "canaryTrafficPercent": 20}
    canary = [{"predictor": {"name": "next", "containers": [ECHO]}, "trafficPercent": 50}]
    notes = EXTERNAL | said()
    kserve.apply(an_isvc("split", annotations=notes, predictor=predictor, canary=canary))
    comes_to(kserve, 1, "split-predictor", "split-next-predictor")
    event(kserve, "PolicyWarning", on="split", words="spec.canary")
    event(kserve, "PolicyWarning", on="split", words="canaryTrafficPercent")
    assert stays(kserve, 1, "split-predictor")
    words = ("get", "deployment/split-next-predictor", "-o", "yaml", "--show-managed-fields")
    assert "manager: tidegate\n" not in kserve.kubectl(*words)


def test_an_inference_service_that_kserve_scales_is_not_touched(kserve: Place) -> None:
    """Without `autoscalerClass: external` KServe makes an HPA; an Event says what to set."""
    kserve.apply(an_isvc("theirs", annotations=said()))
    comes_to(kserve, 1, "theirs-predictor")
    assert "set it to external" in event(kserve, "InvalidPolicy", on="theirs")
    assert stays(kserve, 1, "theirs-predictor")
    assert slices(kserve) == []


# People, and other writers


def test_what_a_person_switched_off_stays_off(place: Place, tidegate: Tidegate) -> None:
    """Requests are refused at once, a new leader keeps it so, and a count above 0 hands it back."""
    place.apply(scaled(replicas=1, min_replicas="1"), a_service(NAME))
    place.until(lambda: place.answers(NAME))
    place.kubectl("scale", f"deployment/{NAME}", "--replicas=0")
    event(place, "SwitchedOff")
    in_path(place)
    for _ in range(2):
        place.until(lambda: refused_with(place, "set to 0 by somebody else"))
        controllers_restart(place, tidegate)
        assert stays(place, 0, for_s=IDLE_S)
    assert refused_with(place, "set to 0 by somebody else")
    place.kubectl("scale", f"deployment/{NAME}", "--replicas=2")
    event(place, "LeftAlone", words="set the count to 2")
    assert ask(place).status_code == 200
    assert stays(place, 2), "a person's count was not left alone"


def refused_with(place: Place, words: str) -> bool:
    """Whether a request is refused within a second, with these words."""
    began_s = time.monotonic()
    try:
        answer = ask(place)
    except httpx.HTTPError:
        return False
    quick = time.monotonic() - began_s < 1
    return quick and answer.status_code == 503 and words in answer.text


def test_beside_an_hpa_nothing_moves(place: Place) -> None:
    """Two writers of one count are none; once the HPA is gone the service goes to sleep."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
    resource = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
    metrics = [{"type": "Resource", "resource": resource}]
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "rival"},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3, "metrics": metrics},
    }
    place.apply(hpa)
    place.apply(scaled(replicas=1), a_service(NAME))
    assert "HorizontalPodAutoscaler rival scales" in event(place, "NotScaled")
    place.until(lambda: place.answers(NAME))
    assert stays(place, 1)
    assert slices(place) == []
    place.kubectl("delete", "hpa", "rival")
    comes_to(place, 0)


@pytest.mark.parametrize("halt", ["dry-run", "paused"])
def test_nothing_is_done_while_it_is(place: Place, tidegate: Tidegate, halt: str) -> None:
    """It is decided and told, and neither the count nor the path changes until it is taken away."""
    place.apply(scaled(replicas=1, min_replicas="2", **{halt: "true"}), a_service(NAME))
    words = "dry run" if halt == "dry-run" else halt
    place.until(lambda: f"{words}: 2 would be asked for" in because(place, tidegate))
    annotate(place, "min-replicas=0")
    assert stays(place, 1)
    assert slices(place) == []
    annotate(place, f"{halt}-")
    comes_to(place, 0)


def because(place: Place, tidegate: Tidegate) -> list[str]:
    """The trail of the last decision."""
    found: Any = tidegate.service(place.namespace, NAME) or {}
    return list(found.get("because", ()))


# Policies


def test_an_invalid_annotation_changes_nothing(place: Place) -> None:
    """The last valid policy stays in force, an Event names the likely key, and mended it counts."""
    place.apply(scaled(replicas=1), a_service(NAME))
    comes_to(place, 0)
    annotate(place, "min-replica=2", "scale-to-zero-after=never")
    assert "min-replicas" in event(place, "InvalidPolicy", words="min-replica")
    assert ask(place).status_code == 200
    comes_to(place, 0)
    annotate(place, "min-replica-", "min-replicas=2")
    comes_to(place, 2)


def test_a_policy_may_live_in_a_config_map(place: Place) -> None:
    """It is followed once it is there, and when it changes; nothing is done without it."""
    made = scaled(replicas=1)
    made["metadata"]["annotations"] = {
        "tidegate.dev/enabled": "true",
        "tidegate.dev/policy-from": "relaxed",
    }
    place.apply(made, a_service(NAME))
    event(place, "InvalidPolicy", words="there is no ConfigMap 'relaxed'")
    assert stays(place, 1, for_s=2)
    place.apply(a_config_map("relaxed", **{"scale-to-zero-after": f"{IDLE_S}s"}))
    comes_to(place, 0)
    place.apply(a_config_map("relaxed", **{"min-replicas": "2", "max-replicas": "2"}))
    comes_to(place, 2)
    place.apply(a_config_map("relaxed", **{"min-replicas": "many"}))
    event(place, "InvalidPolicy", words="ConfigMap 'relaxed', key 'min-replicas'")
    assert replicas(place) == 2


def a_config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_a_schedule_raises_the_floor_while_its_window_is_open(place: Place) -> None:
    now = datetime.now(UTC)
    place.apply(scaled(schedule=a_window(now + timedelta(hours=3))), a_service(NAME))
    in_path(place)
    assert stays(place, 0, for_s=2)
    annotate(place, f"schedule={a_window(now - timedelta(minutes=1))}")
    comes_to(place, 2)


def a_window(begin: datetime) -> str:
    return f"Mon-Sun {begin:%H:%M}-{begin + timedelta(hours=1):%H:%M} UTC min=2"


# Kinds of Services and targets


def test_a_service_with_two_ports_sleeps_and_is_woken_by_either(place: Place) -> None:
    container = an_echo("--second-port=8081", readinessProbe=PROBE)
    container["ports"] = [
        {"containerPort": 8080, "name": "http"},
        {"containerPort": 8081, "name": "admin"},
    ]
    ports = [
        {"name": "web", "port": 80, "targetPort": "http"},
        {"name": "admin", "port": 81, "targetPort": "admin"},
    ]
    made = a_deployment(NAME, 0, {"containers": [container]})
    made["metadata"]["annotations"] = said()
    place.apply(made, a_service(NAME, ports=ports))
    place.until(lambda: place.answers(NAME))  # a health check, by the activator
    for port in (80, 81):
        answer = ask(place, port=port)
        assert (answer.status_code, answer.headers.get("x-cold-start")) == (200, "true")
        comes_to(place, 0)
        place.emptied()


def test_a_stateful_set_behind_a_headless_service_sleeps_and_wakes(place: Place) -> None:
    """Its clients go by name to addresses; the activator knows by their Host whom they mean."""
    made = scaled(replicas=1)
    made |= {"kind": "StatefulSet", "spec": made["spec"] | {"serviceName": NAME}}
    port = [{"name": "http", "port": 8080, "targetPort": 8080}]
    place.apply(made, a_service(NAME, clusterIP="None", ports=port))
    for _ in range(2):
        comes_to(place, 0, kind="statefulset", within_s=60 + PROXIES_LAG_S)
        place.emptied()
        answer = ask_by_name(place)
        assert (answer.status_code, answer.json()["pod"]) == (200, f"{NAME}-0")
        assert answer.headers["x-cold-start"] == "true"


def ask_by_name(place: Place) -> httpx.Response:
    """As a client in a pod would, by the cluster's name server."""
    name = f"{NAME}.{place.namespace}.svc.cluster.local"
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [DNS_IP]
    address = next(iter(resolver.resolve(name, "A"))).to_text()
    headers = {"Host": f"{name}:8080"}
    return httpx.get(f"http://{address}:8080/work", headers=headers, timeout=PATIENCE_S)


# Fewer


async def test_the_busy_replica_stays_when_others_go(place: Place) -> None:
    """From three to one: the ReplicaSet by itself would take one of two on the same node."""
    keys = {"min_replicas": "1", "targets": "concurrency=4", "scale_down": "window=6s"}
    await asyncio.to_thread(place.apply, scaled("--delay=0.3", replicas=3, **keys), a_service(NAME))
    pods = await asyncio.to_thread(place.until, lambda: ready_pods(place, 3))
    crowded = Counter(pod["spec"]["nodeName"] for pod in pods).most_common(1)[0][0]
    busy = next(pod for pod in pods if pod["spec"]["nodeName"] == crowded)
    direct = f"http://{busy['status']['podIP']}:8080/"
    through = f"http://{await asyncio.to_thread(place.cluster_ip, NAME)}/"
    over = False
    async with Clients(direct, {}, count=2) as own, Clients(through, {}, count=2) as others:
        sending = asyncio.gather(own.until(lambda: over), others.until(lambda: over, pause_s=0.5))
        await asyncio.to_thread(comes_to, place, 1)
        left = await asyncio.to_thread(place.until, lambda: ready_pods(place, 1))
        over = True
        tallies = await sending
    assert [pod["metadata"]["name"] for pod in left] == [busy["metadata"]["name"]]
    assert not any(tally.lost for tally in tallies), tallies


async def test_a_server_that_only_counts_grows_shrinks_and_sleeps(place: Place) -> None:
    """As KServe's Python server: no gauge tells what runs, and its port closes when it is told to
    stop. Nobody's request is refused or cut off.
    """
    slow = ("--metrics=kserve", "--delay=0.5", "--leave-at-once")
    made = scaled(*slow, targets="concurrency=4", scale_down="window=5s")
    made["spec"]["template"]["metadata"]["annotations"] = {"tidegate.dev/enabled": "true"}
    place.apply(made, a_service(NAME))
    await asyncio.to_thread(place.until, lambda: place.answers(NAME))
    url = f"http://{await asyncio.to_thread(place.cluster_ip, NAME)}/"
    many, over = True, False
    async with Clients(url, {}, count=18) as crowd, Clients(url, {}, count=2) as few:
        sending = asyncio.gather(crowd.until(lambda: not many), few.until(lambda: over))
        await asyncio.to_thread(comes_to, place, 3)
        many = False
        # What it has is known by then from its counts, and the time of those that pass us.
        await asyncio.to_thread(comes_to, place, 1, within_s=120)
        over = True
        tallies = await sending
    await asyncio.to_thread(comes_to, place, 0)
    assert not any(tally.lost for tally in tallies), tallies


@pytest.mark.parametrize(
    ("annotations", "pause_s"),
    [
        pytest.param({"tidegate.dev/enabled": "true"}, 5, id="opted in"),
        pytest.param(EXTERNAL, 5, id="of KServe's, and opted in"),
        pytest.param({"tidegate.dev/enabled": "false", **EXTERNAL}, None, id="opted out"),
        pytest.param({}, None, id="somebody else's"),
    ],
)
def test_pods_that_we_scale_go_on_for_a_moment_when_told_to_stop(
    place: Place, annotations: dict[str, str], pause_s: int | None
) -> None:
    """By the API server; a hook of their own stays, and so does a short grace."""

    def hook(grace_s: int, **container: Any) -> Any:
        pod = a_pod("made", an_echo(**container), terminationGracePeriodSeconds=grace_s)
        pod["metadata"]["annotations"] = annotations
        words = ("create", "--dry-run=server", "-f", "-", "-o", "json")
        made = json.loads(place.lab.kubectl("-n", place.namespace, *words, stdin=json.dumps(pod)))
        return made["spec"]["containers"][0].get("lifecycle", {}).get("preStop")

    assert hook(30) == (None if pause_s is None else {"sleep": {"seconds": pause_s}})
    own = {"exec": {"command": ["true"]}}
    assert hook(30, lifecycle={"preStop": own}) == own
    assert hook(6) is None


async def test_a_long_request_keeps_a_server_awake_that_only_counts(place: Place) -> None:
    """It began and has not ended, which is all that is known of it."""
    slow = scaled("--metrics=kserve", f"--delay={4 * IDLE_S}", max_replicas="1")
    place.apply(slow, a_service(NAME))
    await asyncio.to_thread(place.until, lambda: place.answers(NAME))
    through = f"http://{await asyncio.to_thread(place.cluster_ip, NAME)}/work"
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        assert (await client.get(through)).status_code == httpx.codes.OK
        [pod] = await asyncio.to_thread(place.until, lambda: ready_pods(place, 1))
        # Past every activator: only the server itself knows of it.
        answer = await client.get(f"http://{pod['status']['podIP']}:8080/work")
    assert answer.status_code == httpx.codes.OK
    assert await asyncio.to_thread(replicas, place) == 1
    await asyncio.to_thread(comes_to, place, 0)


def ready_pods(place: Place, count: int) -> list[Object]:
    """The pods, if there are so many and all are ready; else none."""
    found = place.lab.get("pods", "-n", place.namespace, "-l", f"app={NAME}")["items"]
    ready = [pod for pod in found if place.is_ready(pod["metadata"]["name"])]
    return found if len(found) == len(ready) == count else []


def test_a_new_leader_leaves_every_path_as_it_is(place: Place, tidegate: Tidegate) -> None:
    """What sleeps keeps its activators: the slice is the same one, before and after."""
    place.apply(scaled(), a_service(NAME))
    in_path(place)
    before = slices(place)
    controllers_restart(place, tidegate)
    assert slices(place) == before
    assert ask(place).status_code == 200
