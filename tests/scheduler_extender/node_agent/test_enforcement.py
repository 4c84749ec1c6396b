# SPDX-License-Identifier: Apache-2.0
"""What holds pods to their shares: no more is claimed than is seen, or was stated and can be so."""

from pathlib import Path

import pytest

from scheduler_extender.node_agent.enforcement import has_mps_server, in_force
from scheduler_extender.node_agent.gpus import Machine
from scheduler_extender.node_report import Enforcement

NONE, COOPERATIVE, MPS, DMEM = (
    Enforcement.NONE,
    Enforcement.COOPERATIVE,
    Enforcement.MPS,
    Enforcement.DMEM,
)


@pytest.mark.parametrize(
    ("stated", "server", "one_process", "driver", "level", "why"),
    [
        pytest.param(None, False, False, "580", NONE, "", id="nothing seen, nothing claimed"),
        pytest.param(None, True, True, "580", MPS, "", id="MPS is seen"),
        pytest.param(None, True, False, "580", NONE, "", id="MPS that can be passed by"),
        pytest.param(None, False, True, "615", NONE, "", id="one process and no server"),
        pytest.param(COOPERATIVE, False, False, "580", COOPERATIVE, "", id="stated, unseen"),
        pytest.param(NONE, True, True, "580", NONE, "", id="none stated"),
        pytest.param(MPS, True, True, "580", MPS, "", id="MPS as stated"),
        pytest.param(MPS, False, True, "580", NONE, "no MPS server", id="no server"),
        pytest.param(MPS, True, False, "580", NONE, "any process", id="passed by"),
        pytest.param(DMEM, False, False, "615.10", DMEM, "", id="dmem as stated"),
        pytest.param(DMEM, False, False, "580.95", NONE, "driver 615", id="an old driver"),
        pytest.param(DMEM, False, False, "", NONE, "unknown", id="an unknown driver"),
    ],
)
def test_the_level_in_force(
    stated: Enforcement | None,
    server: bool,
    one_process: bool,
    driver: str,
    level: Enforcement,
    why: str,
) -> None:
    machine = Machine((), driver=driver, one_process=one_process)
    found, less = in_force(stated, machine, mps_server=server, cgroup_v2=True)
    assert found is level
    assert (why in less) if why else not less


def test_limits_of_device_memory_need_cgroup_v2() -> None:
    machine = Machine((), driver="615.10")
    level, why = in_force(DMEM, machine, mps_server=False, cgroup_v2=False)
    assert (level, "cgroup v2" in why) == (NONE, True)


def test_an_mps_server_is_known_by_its_pipe(tmp_path: Path) -> None:
    assert not has_mps_server(tmp_path)
    (tmp_path / "control").touch()
    assert has_mps_server(tmp_path)
