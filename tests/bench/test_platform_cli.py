# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench platform` as a user mistypes it; tests/lab runs it against a cluster."""

import subprocess
import sys
from pathlib import Path

import yaml


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "autoscaler.bench.cli", "platform", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bad_options_end_with_2_and_one_line_each_on_stderr(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    ran = bench(
        *("--kubeconfig", str(missing), "--namespace", "Upper", "--services", "0"),
        *("--replicas", "5000", "--seconds", "nan", "--changes-per-s", "0"),
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        f"tidegate bench platform: --kubeconfig {missing}: there is no such file",
        "tidegate bench platform: --namespace Upper: not a name that a namespace can have",
        "tidegate bench platform: --services 0: a number from 1 to 20000",
        "tidegate bench platform: --replicas 5000: a number from 1 to 999",
        "tidegate bench platform: --seconds nan: above 0 and up to 3600",
        "tidegate bench platform: --changes-per-s 0: above 0 and up to 1000",
    ]


def test_a_file_that_is_no_kubeconfig_ends_with_2_and_one_line(tmp_path: Path) -> None:
    nonsense = tmp_path / "kubeconfig"
    nonsense.write_text("just: words\n")
    ran = bench("--kubeconfig", str(nonsense))
    assert ran.returncode == 2
    assert ran.stdout == ""
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"tidegate bench platform: --kubeconfig {nonsense}: ")


def test_a_cluster_out_of_reach_ends_with_1_and_one_line(tmp_path: Path) -> None:
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],
                "users": [{"name": "x", "user": {"token": "x"}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "current-context": "x",
            }
        )
    )
    ran = bench("--kubeconfig", str(nowhere))
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert "http://127.0.0.1:9" in line
