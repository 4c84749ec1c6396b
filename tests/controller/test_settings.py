# SPDX-License-Identifier: Apache-2.0
"""The config file is read whole or refused with a line for each problem."""

from pathlib import Path

import pytest

from autoscaler import cluster_settings
from autoscaler.contract import KEYS
from autoscaler.errors import BadInput
from autoscaler.settings import FILE_KEYS, Address, load

GOOD = """
[controller]
tick = "500ms"

[services.iris]
listen = "127.0.0.1:8081"
command = ["serve", "--port", "{port}"]
max-replicas = 4
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tidegate.toml"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    """What is not written has its default; relative paths are relative to the file."""
    settings = load(written(tmp_path, GOOD))
    (iris,) = settings.services
    assert (settings.controller.tick_s, settings.activator.processes) == (0.5, 1)
    assert settings.controller.state_dir == tmp_path / ".tidegate"
    assert (iris.name, iris.listen, iris.policy.slots) == ("iris", Address("127.0.0.1", 8081), None)
    assert iris.policy.max_replicas == 4


def test_keda_is_served_where_it_is_said_and_else_nowhere(tmp_path: Path) -> None:
    """On one machine and on Kubernetes by the same words; a port has one owner."""
    said = '\n[keda]\nlisten = "127.0.0.1:8073"\n'
    assert load(written(tmp_path, GOOD)).keda is None
    assert load(written(tmp_path, GOOD + said)).keda == Address("127.0.0.1", 8073)
    assert cluster_settings.load(written(tmp_path, said)).keda == Address("127.0.0.1", 8073)
    for clash in ("8070", "8081"):
        with pytest.raises(BadInput, match="taken by"):
            load(written(tmp_path, GOOD + said.replace("8073", clash)))


def test_models_are_served_by_the_bundled_worker(tmp_path: Path) -> None:
    """A service of models needs no command; its slots bound the worker's queue."""
    (tmp_path / "iris.skops").touch()
    text = '[services.iris]\nlisten="127.0.0.1:8081"\nslots=2\nmodels={iris="iris.skops"}\n'
    (iris,) = load(written(tmp_path, text)).services
    assert f"iris={tmp_path / 'iris.skops'}" in iris.command
    assert iris.command[-2:] == ("--max-queue-size", "2")
    assert iris.policy.slots == 2
    assert iris.metrics_path == "/metrics"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[controller]", "[controler]"), ["[controler]", "did you mean 'controller'?"]),
        (("tick", "tik"), ["controller.tik", "unknown key", "tick"]),
        (('"500ms"', '"1h"'), ["controller.tick", "'1h'", "from 100ms to 1m"]),
        (("listen", "lisen"), ["services.iris.lisen", "did you mean 'listen'?"]),
        (("127.0.0.1:8081", "8081"), ["services.iris.listen", "'8081'", "HOST:PORT"]),
        (("max-replicas = 4", "max-replica = 4"), ["max-replica", "did you mean 'max-replicas'?"]),
        (("max-replicas = 4", "max-replicas = -4"), ["max-replicas", "-4", "1 to 10000"]),
        (
            ("max-replicas = 4", 'activator = "never"'),
            ["services.iris.activator", "every request comes through", "permitted: auto, always"],
        ),
        (("max-replicas = 4", "slots = 0"), ["services.iris.slots", "0", "1 to 100000"]),
        (("max-replicas = 4", "slots = true"), ["services.iris.slots", "True"]),
        (("max-replicas = 4", 'models = { a = "no.onnx" }'), ["model a", "no.onnx"]),
        (("max-replicas = 4", 'signal-window = "600ms"'), ["signal-window", "two ticks"]),
        (('command = ["serve", "--port", "{port}"]', ""), ["either models or command"]),
        (('["serve", "--port", "{port}"]', '"serve"'), ["services.iris.command", "list of words"]),
        (("8081", "8070"), ["services.iris.listen", "taken by controller.api"]),
        (("[services.iris]", "[services.'a b']"), ["'a b'", "letters, digits"]),
        (("[services.iris]", "[services"), ["not TOML"]),
        (("[controller]", f"a = {'[' * 5000}{']' * 5000}\n[controller]"), ["not TOML", "deep"]),
        (("127.0.0.1:8081", "0.0.0.0:8070"), ["services.iris.listen", "taken by controller.api"]),
        (("127.0.0.1:8081", "127.0.0.1:0"), ["services.iris.listen", "port 0", "1 to 65535"]),
        (("max-replicas = 4", 'cwd = "nowhere"'), ["services.iris.cwd", "there is no folder"]),
        (("max-replicas = 4", r'cwd = "\u0000"'), ["services.iris.cwd", "a folder"]),
        (("max-replicas = 4", 'env = { "A=B" = "c" }'), ["services.iris.env", "'A=B'"]),
        (('"serve"', '""'), ["services.iris.command", "first word"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_its_remedy(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    """The line names the file, the key, the value, what is permitted and the nearest spelling."""
    path = written(tmp_path, GOOD.replace(*change))
    with pytest.raises(BadInput) as caught:
        load(path)
    line = caught.value.problems[0]
    assert str(path) in line
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_file_that_is_not_there_says_where_to_go(tmp_path: Path) -> None:
    """The first thing a newcomer sees when the current folder has no config file."""
    with pytest.raises(BadInput, match="--config"):
        load(tmp_path / "tidegate.toml")


def test_file_keys_and_contract_keys_never_clash() -> None:
    """Both stand in one table, so a name may mean one thing only."""
    ours = {key.name for key in FILE_KEYS if key.section == "services.NAME"}
    assert not ours & {key.name for key in KEYS}


def test_an_ipv6_address_stands_in_brackets_as_in_a_url(tmp_path: Path) -> None:
    """Also without them, since the last colon is the port's; it is shown with them."""
    for written_as in ("[::1]:8081", "::1:8081"):
        (iris,) = load(written(tmp_path, GOOD.replace("127.0.0.1:8081", written_as))).services
        assert iris.listen == Address("::1", 8081)
        assert str(iris.listen) == "[::1]:8081"
