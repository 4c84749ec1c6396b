# SPDX-License-Identifier: Apache-2.0
"""Pages of the DCGM exporter: which devices they name, in which units, and what they do not say."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.adapters.engines.exposition import Sample, samples
from autoscaler.adapters.gpus.dcgm import ASKED_FOR, devices
from autoscaler.adapters.gpus.devices import Device, document, mean_busy, told_ratio
from autoscaler.core.signals import NoReading

SAMPLES = Path(
    os.environ.get("TIDEGATE_METRICS_SAMPLES")
    or Path(__file__).parents[4] / "shared" / "data" / "metrics"
)
MIB = 1024 * 1024


def told(page: str) -> tuple[Device, ...]:
    read = samples(page, names=ASKED_FOR)
    assert not isinstance(read, NoReading), read.why
    return devices(read)


def one(page: str) -> Device:
    (device,) = told(page)
    return device


def sample(name: str) -> str:
    path = SAMPLES / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"no sample {path}; name their folder with TIDEGATE_METRICS_SAMPLES")
    return path.read_text()


def test_a_card_of_a_pod_and_an_idle_one_are_told_in_our_units() -> None:
    busy, idle = told(sample("dcgm_h100_pod_labels"))
    assert busy == Device(
        uuid="GPU-aaa",
        node="node1",
        namespace="nim",
        pod="pool3",
        utilization_ratio=0.45,
        memory_used_bytes=77_971_062_784,  # 74359 MiB
        memory_total_bytes=84_928_364_544,  # 74359 + 6635 = 80994 MiB
        power_w=118.344,
        temperature_c=33.0,
    )
    assert idle == Device(
        uuid="GPU-bbb",
        node="node1",
        utilization_ratio=0.0,
        memory_used_bytes=0,
        memory_total_bytes=84_928_364_544,
        power_w=70.013,
        temperature_c=25.0,
    )


def test_the_instances_of_a_split_card_are_devices_of_their_own() -> None:
    found = told(sample("dcgm_a800_mig_real"))
    assert [(d.mig_id, d.mig_profile) for d in found[:3]] == [
        ("3", "2g.20gb"),
        ("5", "2g.20gb"),
        ("6", "2g.20gb"),
    ]
    assert {d.uuid for d in found[:3]} == {"GPU-1f027ee8-6e1e-2b8c-0108-3d370e5f0418"}
    assert [(d.mig_id, d.mig_profile) for d in found[3:]] == [(None, None)] * 7
    assert len({d.uuid for d in found}) == 8
    assert all(d.node == "msxf-hpc-64-35-ai" for d in found)
    assert all(d.engine_active_ratio == d.busy_ratio == 0.0 for d in found)
    assert all(d.utilization_ratio is d.memory_used_bytes is d.power_w is None for d in found)


def test_a_card_that_tells_itself_beside_its_instances_stays() -> None:
    whole, part = told(
        'DCGM_FI_DEV_GPU_TEMP{gpu="0", UUID="GPU-1", Hostname="n"} 41\n'
        'DCGM_FI_DEV_FB_USED{gpu="0", UUID="GPU-1", Hostname="n"} 20\n'
        'DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-1",GPU_I_PROFILE="1g.5gb",GPU_I_ID="13"} 3\n'
        'DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu="0",UUID="GPU-1",GPU_I_PROFILE="1g.5gb",'
        'GPU_I_ID="13"} 0.25\n'
    )
    assert (whole.mig_id, whole.temperature_c, whole.memory_used_bytes) == (None, 41.0, 20 * MIB)
    assert (part.mig_id, part.mig_profile, part.memory_used_bytes) == ("13", "1g.5gb", 3 * MIB)
    assert (whole.busy_ratio, part.busy_ratio) == (None, 0.25)


def test_a_card_without_counters_is_as_busy_as_its_driver_says() -> None:
    device = one('DCGM_FI_DEV_GPU_UTIL{UUID="GPU-4070",Hostname="desk"} 35\n')
    assert device.utilization_ratio == device.busy_ratio == 0.35
    assert device.engine_active_ratio is None


def test_what_the_hardware_counted_comes_before_what_the_driver_sampled() -> None:
    page = (
        'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-1"} 100\nDCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID="GPU-1"} 0.4\n'
    )
    assert one(page).busy_ratio == 0.4


def test_the_newest_exporter_writes_its_host_in_small_letters() -> None:
    assert one('DCGM_FI_DEV_GPU_UTIL{UUID="GPU-1",hostname="node-7"} 1\n').node == "node-7"


@pytest.mark.parametrize(
    ("labels", "namespace", "pod"),
    [
        pytest.param('pod="web",namespace="prod"', "prod", "web", id="as the exporter writes it"),
        pytest.param(
            'pod_name="web",pod_namespace="prod",container_name="c"', "prod", "web", id="as of old"
        ),
        pytest.param(
            'exported_pod="web",exported_namespace="prod",pod="dcgm-1",namespace="monitoring"',
            "prod",
            "web",
            id="as Prometheus renames it",
        ),
        pytest.param('pod="",namespace="",container=""', None, None, id="empty is no pod"),
        pytest.param('exported_pod="",pod="web",namespace="prod"', "prod", "web", id="empty first"),
        pytest.param('gpu="0"', None, None, id="none"),
    ],
)
def test_the_pod_is_found_by_any_of_its_names(
    labels: str, namespace: str | None, pod: str | None
) -> None:
    device = one(f'DCGM_FI_DEV_GPU_UTIL{{UUID="GPU-1",{labels}}} 5\n')
    assert (device.namespace, device.pod) == (namespace, pod)


@pytest.mark.parametrize(
    "blank",
    [
        *("18446744073709551615", "9223372036854775794", "9223372036854775792"),
        *("140737488355328", "2147483632", "-1", "NaN", "+Inf"),
    ],
)
def test_a_number_that_stands_for_none_is_absent(blank: str) -> None:
    fields = ("DEV_GPU_UTIL", "PROF_GR_ENGINE_ACTIVE", "DEV_POWER_USAGE", "DEV_GPU_TEMP")
    memory = ("DEV_FB_USED", "DEV_FB_FREE", "DEV_FB_RESERVED", "DEV_FB_TOTAL")
    page = "".join(f'DCGM_FI_{field}{{UUID="GPU-1"}} {blank}\n' for field in (*fields, *memory))
    assert one(page) == Device("GPU-1")


def test_the_memory_is_what_is_used_free_and_reserved() -> None:
    device = one(
        'DCGM_FI_DEV_FB_USED{UUID="G"} 100\nDCGM_FI_DEV_FB_FREE{UUID="G"} 900\n'
        'DCGM_FI_DEV_FB_RESERVED{UUID="G"} 24\n'
    )
    assert (device.memory_used_bytes, device.memory_total_bytes) == (100 * MIB, 1024 * MIB)


def test_a_total_that_is_told_counts_and_one_that_cannot_be_had_is_absent() -> None:
    assert one('DCGM_FI_DEV_FB_TOTAL{UUID="G"} 8188\n').memory_total_bytes == 8188 * MIB
    page = 'DCGM_FI_DEV_FB_USED{UUID="G"} 7\nDCGM_FI_DEV_FB_FREE{UUID="G"} 18446744073709551615\n'
    assert one(page).memory_total_bytes is None


def test_a_card_that_pods_share_is_a_device_of_each() -> None:
    """Its rows without a pod speak for all of them."""
    first, second = told(
        'DCGM_FI_DEV_GPU_UTIL{UUID="G",pod="a",namespace="n",vgpu="0"} 60\n'
        'DCGM_FI_DEV_GPU_UTIL{UUID="G",pod="b",namespace="n",vgpu="1"} 60\n'
        'DCGM_FI_DEV_GPU_TEMP{UUID="G"} 50\n'
    )
    assert (first.pod, second.pod) == ("a", "b")
    assert (first.busy_ratio, first.temperature_c) == (0.6, 50.0)
    assert (second.busy_ratio, second.temperature_c) == (0.6, 50.0)


def test_rows_for_several_containers_of_a_pod_are_one_device() -> None:
    page = "".join(
        f'DCGM_FI_DEV_FB_USED{{UUID="G",pod="a",namespace="n",container="{name}"}} 10\n'
        for name in ("server", "sidecar")
    )
    assert one(page).memory_used_bytes == 10 * MIB


def test_a_row_without_a_uuid_and_a_page_of_another_exporter_name_no_device() -> None:
    assert told('DCGM_FI_DEV_GPU_UTIL{gpu="0"} 5\nvllm:num_requests_running 3\n') == ()


def test_a_page_that_tells_nothing_of_ours_still_names_its_cards() -> None:
    assert one('DCGM_FI_DEV_SM_CLOCK{UUID="GPU-1",Hostname="n"} 1980\n') == Device(
        "GPU-1", node="n"
    )


def test_json_has_the_same_keys_whoever_told() -> None:
    assert list(document(Device("G"))) == [
        *("uuid", "mig_profile", "mig_id", "node", "namespace", "pod", "utilization_ratio"),
        *("engine_active_ratio", "memory_used_bytes", "memory_total_bytes"),
        *("power_w", "temperature_c"),
    ]


def test_a_replica_is_as_busy_as_its_devices_on_average() -> None:
    assert mean_busy([Device("A", utilization_ratio=0.2), Device("B", utilization_ratio=0.6)]) == (
        pytest.approx(0.4)
    )
    assert mean_busy([Device("A", utilization_ratio=0.2), Device("B")]) == 0.2
    assert mean_busy([Device("A")]) is None
    whole, part = Device("A", utilization_ratio=1.0), Device("A", mig_id="1")
    assert mean_busy([whole, part]) is None
    assert told_ratio([whole, part]) == told_ratio([]) == 0.0
    assert told_ratio([whole, Device("B")]) == 0.5


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"]),
            st.sampled_from(["a", "b", ""]),
            st.floats(),
        )
    )
)
def test_whatever_is_exposed_no_device_is_busier_than_always(
    rows: list[tuple[str, str, float]],
) -> None:
    found = devices([Sample(name, {"UUID": "G", "pod": pod}, value) for name, pod, value in rows])
    for device in found:
        assert device.busy_ratio is None or 0.0 <= device.busy_ratio <= 1.0
