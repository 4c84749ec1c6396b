# SPDX-License-Identifier: Apache-2.0
"""The stand-in does what KServe's own controller was seen to do on the same API server."""

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.lab.lab import CRDS, Lab, kserve_crds
from tests.lab.place import ECHO, Object, Place, an_isvc

pytestmark = pytest.mark.lab

KEPT_BACK = {"inferenceService": '{"serviceAnnotationDisallowedList": ["example.com/kept-back"]}'}


@pytest.fixture(scope="module")
def kserve(lab: Lab) -> Lab:
    if kserve_crds() is None:
        pytest.skip(f"KServe's CRDs are not here; name their archive with {CRDS}")
    lab.kserve()
    name = {"name": "inferenceservice-config", "namespace": "kserve"}
    lab.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": KEPT_BACK},
    )
    return lab


@pytest.fixture
def place(kserve: Lab) -> Iterator[Place]:
    with kserve.namespace("kserve") as namespace:
        yield Place(kserve, namespace)


def told(place: Place, name: str, kind: str = "Ready") -> str:
    return place.condition("isvc", name, kind)


def replicas(place: Place, deployment: str) -> int | None:
    found = place.get("deployment", deployment)
    return found["spec"]["replicas"] if found else None


def post(address: str, path: str, body: Object) -> Object:
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        said: Object = json.loads(connection.getresponse().read())
        return said
    finally:
        connection.close()


def test_sklearn_iris_becomes_ready_and_predicts_through_its_service(place: Place) -> None:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://somewhere/iris"}
    isvc = an_isvc("sklearn-iris", predictor={"minReplicas": 0, "model": model})
    place.apply(isvc)
    name = "sklearn-iris-predictor"
    place.until(lambda: told(place, "sklearn-iris") == "True", within_s=40)
    made = place.get("service", name)
    assert [(p["name"], p["port"]) for p in made["spec"]["ports"]] == [(name, 80)]
    address = made["spec"]["clusterIP"]
    rows = {"instances": [[6.8, 2.8, 4.8, 1.4], [5.1, 3.5, 1.4, 0.2]]}
    place.until(
        lambda: place.kubectl("get", "endpointslices", f"-lapp=isvc.{name}", "-oyaml").count("10.")
    )
    path = "/v1/models/sklearn-iris:predict"
    assert post(address, path, rows) == {"predictions": [1, 0]}
    assert place.get("isvc", "sklearn-iris")["status"]["address"]["url"] == (
        f"http://{name}.{place.namespace}.svc.cluster.local"
    )
    place.kubectl("delete", "isvc", "sklearn-iris")
    # The garbage collector's doing; it looks for new kinds of owners every 30 s.
    place.until(lambda: not place.get("deployment", name), within_s=60)


def test_it_starts_with_one_replica_and_leaves_the_count_to_an_external_autoscaler(
    place: Place,
) -> None:
    place.apply(an_isvc("count"))
    place.until(lambda: replicas(place, "count-predictor") == 1)
    assert not place.get("hpa", "count-predictor")
    for wanted in (3, 0):
        place.kubectl("scale", "deployment/count-predictor", f"--replicas={wanted}")
        place.kubectl("annotate", "isvc", "count", f"example.com/edit=edit-{wanted}", "--overwrite")
        place.until(lambda: f"edit-{wanted}" in str(place.get("deployment", "count-predictor")))  # noqa: B023
        assert replicas(place, "count-predictor") == wanted
    place.until(lambda: told(place, "count") == "True")
    states = place.get("isvc", "count")["status"]["modelStatus"]["states"]
    assert states["activeModelState"] == "Pending"


def test_a_changed_annotation_rolls_the_pods_and_an_equal_spec_changes_nothing(
    place: Place,
) -> None:
    place.apply(an_isvc("rolls"))
    place.until(lambda: told(place, "rolls") == "True")
    before = place.get("deployment", "rolls-predictor")["metadata"]["generation"]
    place.kubectl("annotate", "isvc", "rolls", "example.com/kept-back=1")
    place.kubectl("annotate", "isvc", "rolls", "example.com/passed-on=1")
    place.until(
        lambda: "example.com/passed-on" in str(place.get("deployment", "rolls-predictor")["spec"])
    )
    made = place.get("deployment", "rolls-predictor")
    assert made["metadata"]["generation"] == before + 1
    assert "example.com/kept-back" not in made["spec"]["template"]["metadata"]["annotations"]
    place.kubectl("annotate", "isvc", "rolls", "example.com/passed-on-")
    place.until(lambda: "passed-on" not in str(place.get("deployment", "rolls-predictor")["spec"]))


def test_the_default_class_makes_an_hpa_and_external_removes_it(place: Place) -> None:
    place.apply(an_isvc("scaled", annotations={}))
    found = place.until(lambda: place.get("hpa", "scaled-predictor"))
    assert found["spec"]["minReplicas"] == 1
    place.kubectl("annotate", "isvc", "scaled", "serving.kserve.io/autoscalerClass=external")
    place.until(lambda: not place.get("hpa", "scaled-predictor"))


def test_the_class_none_keeps_the_count_at_min_replicas(place: Place) -> None:
    none = {"serving.kserve.io/autoscalerClass": "none"}
    predictor = {"containers": [ECHO], "minReplicas": 2}
    place.apply(an_isvc("fixed", annotations=none, predictor=predictor))
    place.until(lambda: replicas(place, "fixed-predictor") == 2)
    place.kubectl("scale", "deployment/fixed-predictor", "--replicas=5")
    place.until(lambda: replicas(place, "fixed-predictor") == 2)


def test_a_transformer_has_a_deployment_of_its_own_and_knows_its_predictor(place: Place) -> None:
    isvc = an_isvc("pair", transformer={"containers": [ECHO], "minReplicas": 0})
    place.apply(isvc)
    place.until(lambda: told(place, "pair") == "True", within_s=40)
    address = place.cluster_ip("pair-transformer")
    place.until(lambda: "predictor" in answer_of(address))
    said = post(address, "/v1/models/pair:predict", {})
    assert said["transformed_by"].startswith("pair-transformer-")
    assert said["predictor"]["pod"].startswith("pair-predictor-")
    assert "pair-transformer." in place.get("isvc", "pair")["status"]["address"]["url"]


def answer_of(address: str) -> Object:
    try:
        return post(address, "/", {})
    except (OSError, ValueError):
        return {}


def test_what_carries_its_labels_under_another_name_is_deleted(place: Place) -> None:
    place.apply(an_isvc("jealous"))
    place.until(lambda: told(place, "jealous"))
    labels = {"serving.kserve.io/inferenceservice": "jealous", "component": "predictor"}
    ports = {"ports": [{"port": 80}]}
    for name, its in (("intruder", labels), ("bystander", {})):
        meta = {"name": name, "labels": its}
        place.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": ports})
    place.kubectl("annotate", "isvc", "jealous", "example.com/look=again")
    place.until(lambda: not place.get("service", "intruder"))
    assert place.get("service", "bystander")


def test_a_stopped_service_has_no_workload(place: Place) -> None:
    place.apply(an_isvc("halted"))
    place.until(lambda: place.get("deployment", "halted-predictor"))
    place.kubectl("annotate", "isvc", "halted", "serving.kserve.io/stop=true")
    place.until(lambda: not place.get("deployment", "halted-predictor"))
    place.until(lambda: told(place, "halted", "Stopped") == "True")
    assert not place.get("service", "halted-predictor")
    place.kubectl("annotate", "isvc", "halted", "serving.kserve.io/stop-")
    place.until(lambda: place.get("deployment", "halted-predictor"))


def test_a_canary_has_a_fixed_size_beside_the_stable_predictor(place: Place) -> None:
    stable = {"containers": [ECHO], "minReplicas": 2}
    canary = [{"predictor": {"name": "next", "containers": [ECHO]}, "trafficPercent": 50}]
    place.apply(an_isvc("split", predictor=stable, canary=canary))
    place.until(lambda: replicas(place, "split-next-predictor") == 1)
    place.kubectl("scale", "deployment/split-next-predictor", "--replicas=4")
    place.until(lambda: replicas(place, "split-next-predictor") == 1)
    statuses = place.until(
        lambda: place.get("isvc", "split").get("status", {}).get("canaryStatuses")
    )
    assert [(one["name"], one["trafficPercent"]) for one in statuses] == [("next", 50)]
    place.kubectl("patch", "isvc", "split", "--type=merge", "-p", '{"spec":{"canary":null}}')
    place.until(lambda: not place.get("deployment", "split-next-predictor"))
    assert place.get("deployment", "split-predictor")


def test_an_llm_service_has_deployments_for_its_workload_and_its_prefill(place: Place) -> None:
    llm = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": "hf://a/b"}, "replicas": 2, "prefill": {"replicas": 1}},
    }
    place.apply(llm)
    place.until(lambda: replicas(place, "chat-kserve") == 2)
    place.until(lambda: replicas(place, "chat-kserve-prefill") == 1)
    place.until(lambda: '"True"' in place.kubectl("get", "llmisvc", "chat", "-oyaml"))
