# SPDX-License-Identifier: Apache-2.0
"""The stand-in does what KServe's own controller was seen to do on the same API server."""

import http.client
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kserve.components import Config, components, deployment, hpa, service
from tests.lab.small_lab import SmallLab, kserve_crds, small_lab, until

pytestmark = [pytest.mark.slow]

Object = dict[str, Any]
EXTERNAL = {"serving.kserve.io/autoscalerClass": "external"}
PROBE = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
ECHO = {"name": "kserve-container", "image": "lab/echo:1", "readinessProbe": PROBE}
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "inferenceservice-config", "namespace": "kserve"},
    "data": {"inferenceService": '{"serviceAnnotationDisallowedList": ["example.com/kept-back"]}'},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLab]:
    archive = kserve_crds()
    folder = tmp_path_factory.mktemp("lab")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "crds", filter="data")
    with small_lab(folder) as running:
        crds = str(folder / "crds")
        running.kubectl("apply", "--server-side", "--recursive", "-f", crds)
        running.kubectl("create", "namespace", "kserve")
        running.apply(CONFIG)
        running.start_python("kserve", "tests.lab.kserve")
        until(lambda: "kserve_stands_in" in (folder / "kserve.log").read_text(), within_s=40)
        yield running


def an_isvc(name: str, *, annotations: Object | None = None, **spec: Any) -> Object:
    predictor = {"containers": [ECHO], "minReplicas": 0}
    meta = {"name": name, "annotations": {**EXTERNAL, **(annotations or {})}, "uid": "u-1"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {**meta, "namespace": "default"},
        "spec": {"predictor": predictor, **spec},
    }


def given(isvc: Object) -> Object:
    """As a user writes it."""
    return {**isvc, "metadata": {k: v for k, v in isvc["metadata"].items() if k != "uid"}}


def told(lab: SmallLab, name: str, kind: str = "Ready") -> str:
    conditions = lab.get("isvc", name).get("status", {}).get("conditions", ())
    return next((one["status"] for one in conditions if one["type"] == kind), "")


def replicas(lab: SmallLab, deployment: str) -> int | None:
    found = lab.get("deployment", deployment)
    return found["spec"]["replicas"] if found else None


def post(address: str, path: str, body: Object) -> Object:
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        said: Object = json.loads(connection.getresponse().read())
        return said
    finally:
        connection.close()


def test_sklearn_iris_becomes_ready_and_predicts_through_its_service(lab: SmallLab) -> None:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://somewhere/iris"}
    isvc = an_isvc("sklearn-iris", predictor={"minReplicas": 0, "model": model})
    lab.apply(given(isvc))
    name = "sklearn-iris-predictor"
    until(lambda: told(lab, "sklearn-iris") == "True", within_s=40)
    made = lab.get("service", name)
    assert [(p["name"], p["port"]) for p in made["spec"]["ports"]] == [(name, 80)]
    address = made["spec"]["clusterIP"]
    rows = {"instances": [[6.8, 2.8, 4.8, 1.4], [5.1, 3.5, 1.4, 0.2]]}
    until(lambda: lab.kubectl("get", "endpointslices", f"-lapp=isvc.{name}", "-oyaml").count("10."))
    path = "/v1/models/sklearn-iris:predict"
    assert post(address, path, rows) == {"predictions": [1, 0]}
    assert lab.get("isvc", "sklearn-iris")["status"]["address"]["url"] == (
        f"http://{name}.default.svc.cluster.local"
    )
    lab.kubectl("delete", "isvc", "sklearn-iris")
    until(lambda: not lab.get("deployment", name))  # the garbage collector's doing


def test_it_starts_with_one_replica_and_leaves_the_count_to_an_external_autoscaler(
    lab: SmallLab,
) -> None:
    lab.apply(given(an_isvc("count")))
    until(lambda: replicas(lab, "count-predictor") == 1)
    assert not lab.get("hpa", "count-predictor")
    for wanted in (3, 0):
        lab.kubectl("scale", "deployment/count-predictor", f"--replicas={wanted}")
        lab.kubectl("annotate", "isvc", "count", f"example.com/edit=edit-{wanted}", "--overwrite")
        until(lambda: f"edit-{wanted}" in str(lab.get("deployment", "count-predictor")))  # noqa: B023
        assert replicas(lab, "count-predictor") == wanted
    until(lambda: told(lab, "count") == "True")
    states = lab.get("isvc", "count")["status"]["modelStatus"]["states"]
    assert states["activeModelState"] == "Pending"
    lab.kubectl("delete", "isvc", "count")


def test_a_changed_annotation_rolls_the_pods_and_an_equal_spec_changes_nothing(
    lab: SmallLab,
) -> None:
    lab.apply(given(an_isvc("rolls")))
    until(lambda: told(lab, "rolls") == "True")
    before = lab.get("deployment", "rolls-predictor")["metadata"]["generation"]
    lab.kubectl("annotate", "isvc", "rolls", "example.com/kept-back=1")
    lab.kubectl("annotate", "isvc", "rolls", "example.com/passed-on=1")
    until(lambda: "example.com/passed-on" in str(lab.get("deployment", "rolls-predictor")["spec"]))
    made = lab.get("deployment", "rolls-predictor")
    assert made["metadata"]["generation"] == before + 1
    assert "example.com/kept-back" not in made["spec"]["template"]["metadata"]["annotations"]
    lab.kubectl("annotate", "isvc", "rolls", "example.com/passed-on-")
    until(lambda: "passed-on" not in str(lab.get("deployment", "rolls-predictor")["spec"]))
    lab.kubectl("delete", "isvc", "rolls")


def test_the_default_class_makes_an_hpa_and_external_removes_it(lab: SmallLab) -> None:
    isvc = an_isvc("scaled")
    isvc["metadata"]["annotations"] = {}
    lab.apply(given(isvc))
    found = until(lambda: lab.get("hpa", "scaled-predictor"))
    assert found["spec"]["minReplicas"] == 1
    lab.kubectl("annotate", "isvc", "scaled", "serving.kserve.io/autoscalerClass=external")
    until(lambda: not lab.get("hpa", "scaled-predictor"))
    lab.kubectl("delete", "isvc", "scaled")


def test_the_class_none_keeps_the_count_at_min_replicas(lab: SmallLab) -> None:
    none = {"serving.kserve.io/autoscalerClass": "none"}
    predictor = {"containers": [ECHO], "minReplicas": 2}
    lab.apply(given(an_isvc("fixed", annotations=none, predictor=predictor)))
    until(lambda: replicas(lab, "fixed-predictor") == 2)
    lab.kubectl("scale", "deployment/fixed-predictor", "--replicas=5")
    until(lambda: replicas(lab, "fixed-predictor") == 2)
    lab.kubectl("delete", "isvc", "fixed")


def test_a_transformer_has_a_deployment_of_its_own_and_knows_its_predictor(lab: SmallLab) -> None:
    isvc = an_isvc("pair", transformer={"containers": [ECHO], "minReplicas": 0})
    lab.apply(given(isvc))
    until(lambda: told(lab, "pair") == "True", within_s=40)
    address = lab.get("service", "pair-transformer")["spec"]["clusterIP"]
    until(lambda: "predictor" in answer_of(address))
    said = post(address, "/v1/models/pair:predict", {})
    assert said["transformed_by"].startswith("pair-transformer-")
    assert said["predictor"]["pod"].startswith("pair-predictor-")
    assert "pair-transformer." in lab.get("isvc", "pair")["status"]["address"]["url"]
    lab.kubectl("delete", "isvc", "pair")


def answer_of(address: str) -> Object:
    try:
        return post(address, "/", {})
    except (OSError, ValueError):
        return {}


def test_what_carries_its_labels_under_another_name_is_deleted(lab: SmallLab) -> None:
    lab.apply(given(an_isvc("jealous")))
    until(lambda: told(lab, "jealous"))
    labels = {"serving.kserve.io/inferenceservice": "jealous", "component": "predictor"}
    ports = {"ports": [{"port": 80}]}
    for name, its in (("intruder", labels), ("bystander", {})):
        meta = {"name": name, "labels": its}
        lab.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": ports})
    lab.kubectl("annotate", "isvc", "jealous", "example.com/look=again")
    until(lambda: not lab.get("service", "intruder"))
    assert lab.get("service", "bystander")
    lab.kubectl("delete", "isvc/jealous", "service/bystander")


def test_a_stopped_service_has_no_workload(lab: SmallLab) -> None:
    lab.apply(given(an_isvc("halted")))
    until(lambda: lab.get("deployment", "halted-predictor"))
    lab.kubectl("annotate", "isvc", "halted", "serving.kserve.io/stop=true")
    until(lambda: not lab.get("deployment", "halted-predictor"))
    until(lambda: told(lab, "halted", "Stopped") == "True")
    assert not lab.get("service", "halted-predictor")
    lab.kubectl("annotate", "isvc", "halted", "serving.kserve.io/stop-")
    until(lambda: lab.get("deployment", "halted-predictor"))
    lab.kubectl("delete", "isvc", "halted")


def test_a_canary_has_a_fixed_size_beside_the_stable_predictor(lab: SmallLab) -> None:
    stable = {"containers": [ECHO], "minReplicas": 2}
    canary = [{"predictor": {"name": "next", "containers": [ECHO]}, "trafficPercent": 50}]
    lab.apply(given(an_isvc("split", predictor=stable, canary=canary)))
    until(lambda: replicas(lab, "split-next-predictor") == 1)
    lab.kubectl("scale", "deployment/split-next-predictor", "--replicas=4")
    until(lambda: replicas(lab, "split-next-predictor") == 1)
    statuses = until(lambda: lab.get("isvc", "split").get("status", {}).get("canaryStatuses"))
    assert [(one["name"], one["trafficPercent"]) for one in statuses] == [("next", 50)]
    lab.kubectl("patch", "isvc", "split", "--type=merge", "-p", '{"spec":{"canary":null}}')
    until(lambda: not lab.get("deployment", "split-next-predictor"))
    assert lab.get("deployment", "split-predictor")
    lab.kubectl("delete", "isvc", "split")


def test_an_llm_service_has_deployments_for_its_workload_and_its_prefill(lab: SmallLab) -> None:
    llm = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": "hf://a/b"}, "replicas": 2, "prefill": {"replicas": 1}},
    }
    lab.apply(llm)
    until(lambda: replicas(lab, "chat-kserve") == 2)
    until(lambda: replicas(lab, "chat-kserve-prefill") == 1)
    until(lambda: '"True"' in lab.kubectl("get", "llmisvc", "chat", "-oyaml"))
    lab.kubectl("delete", "llmisvc", "chat")


RUNTIME = {
    "metadata": {"name": "sklearn-runtime"},
    "spec": {
        "supportedModelFormats": [{"name": "sklearn", "autoSelect": True}],
        "containers": [{"name": "kserve-container", "image": "i", "args": ["--name={{.Name}}"]}],
    },
}


def test_the_container_comes_from_the_runtime_with_the_models_own_fields_over_it() -> None:
    model = {"modelFormat": {"name": "sklearn"}, "args": ["--more"], "resources": {"limits": {}}}
    [one] = components(an_isvc("iris", predictor={"model": model}))
    [made] = deployment(one, Config(), runtimes=[RUNTIME])["spec"]["template"]["spec"]["containers"]
    assert made["args"] == ["--name=iris", "--more"]
    assert made["image"] == "i"
    assert made["resources"] == {"limits": {}}
    assert made["readinessProbe"]["tcpSocket"] == {"port": 8080}


def test_the_older_way_to_name_a_format_means_the_same() -> None:
    [one] = components(an_isvc("iris", predictor={"sklearn": {"storageUri": "gs://x"}}))
    made = deployment(one, Config(), runtimes=[RUNTIME])
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "i"


@pytest.mark.parametrize(
    ("written", "low", "high"),
    [
        pytest.param({"minReplicas": 0}, 1, 1, id="less than one is one"),
        pytest.param({"minReplicas": 3, "maxReplicas": 2}, 3, 3, id="a smaller maximum is raised"),
        pytest.param({"minReplicas": 1, "maxReplicas": 9}, 1, 9, id="as written"),
    ],
)
def test_the_bounds_of_the_hpa(written: Object, low: int, high: int) -> None:
    isvc = an_isvc("iris", predictor={"containers": [ECHO], **written})
    isvc["metadata"]["annotations"] = {}
    made = hpa(components(isvc)[0])
    assert made is not None
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (low, high)


def test_the_service_is_headless_where_the_configuration_says_so() -> None:
    [one] = components(an_isvc("iris"))
    config = Config.read({"data": {"service": '{"serviceClusterIPNone": true}'}})
    assert service(one, config)["spec"]["clusterIP"] == "None"


def test_the_manifests_of_the_lab_name_only_images_that_it_knows() -> None:
    from tests.lab import images
    from tests.lab.kserve.__main__ import RUNTIMES

    text = Path(RUNTIMES).read_text()
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if " image:" in line]
    assert named
    assert all(images.find(image) for image in named)
