# SPDX-License-Identifier: Apache-2.0
"""What the stand-in makes of an InferenceService, without a cluster."""

import pytest
import yaml

from tests.lab import images
from tests.lab.kserve.__main__ import RUNTIMES
from tests.lab.kserve.components import Config, components, deployment, hpa, service
from tests.lab.place import ECHO, Object, an_isvc


def known(isvc: Object) -> Object:
    """As the API server gives it back."""
    return {**isvc, "metadata": {**isvc["metadata"], "namespace": "default", "uid": "u-1"}}


RUNTIME = {
    "metadata": {"name": "sklearn-runtime"},
    "spec": {
        "supportedModelFormats": [{"name": "sklearn", "autoSelect": True}],
        "containers": [{"name": "kserve-container", "image": "i", "args": ["--name={{.Name}}"]}],
    },
}


def test_the_container_comes_from_the_runtime_with_the_models_own_fields_over_it() -> None:
    model = {"modelFormat": {"name": "sklearn"}, "args": ["--more"], "resources": {"limits": {}}}
    [one] = components(known(an_isvc("iris", predictor={"model": model})))
    [made] = deployment(one, Config(), runtimes=[RUNTIME])["spec"]["template"]["spec"]["containers"]
    assert made["args"] == ["--name=iris", "--more"]
    assert made["image"] == "i"
    assert made["resources"] == {"limits": {}}
    assert made["readinessProbe"]["tcpSocket"] == {"port": 8080}


def test_the_older_way_to_name_a_format_means_the_same() -> None:
    [one] = components(known(an_isvc("iris", predictor={"sklearn": {"storageUri": "gs://x"}})))
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
    predictor = {"containers": [ECHO], **written}
    made = hpa(components(known(an_isvc("iris", annotations={}, predictor=predictor)))[0])
    assert made is not None
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (low, high)


def test_the_service_is_headless_where_the_configuration_says_so() -> None:
    [one] = components(known(an_isvc("iris")))
    config = Config.read({"data": {"service": '{"serviceClusterIPNone": true}'}})
    assert service(one, config)["spec"]["clusterIP"] == "None"


def test_the_runtimes_name_only_images_that_the_lab_knows() -> None:
    runtimes = yaml.safe_load_all(RUNTIMES.read_text())
    named = [c["image"] for one in runtimes for c in one["spec"]["containers"]]
    assert named
    assert all(images.find(image) for image in named)
