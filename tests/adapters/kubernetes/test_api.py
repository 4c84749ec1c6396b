# SPDX-License-Identifier: Apache-2.0
"""What a caller is told when the API server refuses, stalls or speaks nonsense."""

import asyncio
from pathlib import Path
from time import monotonic

import certifi
import orjson
import pytest
from kubernetes.aio.config import incluster_config

from autoscaler.adapters.kubernetes import credentials
from autoscaler.adapters.kubernetes.api import KubeApi, Limits
from autoscaler.adapters.kubernetes.credentials import Credentials
from autoscaler.adapters.kubernetes.errors import (
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    Refused,
    Unauthorized,
    Unreachable,
)
from autoscaler.adapters.kubernetes.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    NODES,
    PODS,
    Resource,
    place_of,
)
from autoscaler.errors import GiveUp, RetryLater
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

PATH = CONFIG_MAPS.path("here", "a")


async def test_a_name_cannot_lead_out_of_its_place() -> None:
    """Names come from users; one with slashes stays one name."""
    path = CONFIG_MAPS.path("here", "../../secrets/x")
    assert path == "/api/v1/namespaces/here/configmaps/..%2F..%2Fsecrets%2Fx"
    assert place_of(path).name == "../../secrets/x"


@pytest.mark.parametrize(
    ("resource", "namespace", "name", "subresource", "what"),
    [
        (DEPLOYMENTS, "n", "a", "scale", ("apps", "deployments/scale", "n", "a")),
        (PODS, "n", "", "", ("", "pods", "n", "")),
        (PODS, "", "", "", ("", "pods", "", "")),
        (NODES, "ignored", "a", "", ("", "nodes", "", "a")),
        (
            Resource("", "v1", "namespaces", namespaced=False),
            "",
            "n",
            "",
            ("", "namespaces", "", "n"),
        ),
    ],
    ids=str,
)
def test_a_path_says_what_it_was_built_from(
    resource: Resource, namespace: str, name: str, subresource: str, what: tuple[str, ...]
) -> None:
    place = place_of(resource.path(namespace, name, subresource))
    assert (place.group, place.what, place.namespace, place.name) == what


async def test_a_forbidden_request_says_which_rule_is_missing(
    api: KubeApi, server: FakeApiServer
) -> None:
    server.fail(403)
    with pytest.raises(Forbidden) as refused:
        await api.patch(DEPLOYMENTS.path("here", "a", "scale"), {})
    said = str(refused.value)
    assert (
        "cannot patch /apis/apps/v1/namespaces/here/deployments/a/scale: the fake says 403" in said
    )
    assert "a Role in namespace here" in said
    assert 'apiGroups ["apps"], resources [deployments/scale], verbs [patch]' in said


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (409, Conflict), (410, Gone), (422, GiveUp), (500, Refused), (408, Refused)],
)
async def test_each_refusal_has_its_error(
    api: KubeApi, server: FakeApiServer, status: int, error: type[Exception]
) -> None:
    server.fail(status)
    with pytest.raises(error, match=f"cannot get {PATH}: the fake says {status}"):
        await api.get(PATH)


async def test_a_busy_server_is_asked_again_after_the_time_it_named(
    api: KubeApi, server: FakeApiServer
) -> None:
    await server.put(PATH, {"data": {"x": "1"}})
    server.fail(429, Retry_After="0", times=2)
    assert (await api.get(PATH))["data"] == {"x": "1"}
    assert api.requests["get", "configmaps"] == 3


async def test_a_server_that_is_busy_for_long_is_left_to_the_caller(
    api: KubeApi, server: FakeApiServer
) -> None:
    server.fail(429, Retry_After="600")
    with pytest.raises(RetryLater) as refused:
        await api.get(PATH)
    assert refused.value.after_s == 600.0
    assert len(server.asked) == 1


async def test_a_token_that_ran_out_is_read_anew_once(
    tmp_path: Path, server: FakeApiServer
) -> None:
    server.token = "new"  # noqa: S105
    await server.put(PATH, {})
    who = Credentials(server.kubeconfig(tmp_path, token="old"))  # noqa: S106
    async with KubeApi(who) as api:
        server.kubeconfig(tmp_path, token="new")  # noqa: S106
        await asyncio.gather(*(api.get(PATH) for _ in range(5)))
        await api.get(PATH)
    assert len(server.asked) == 11  # five refused, five repeated, and one that knew


async def test_credentials_that_stay_wrong_are_an_error_not_a_loop(
    api: KubeApi, server: FakeApiServer
) -> None:
    server.token = "other"  # noqa: S105
    with pytest.raises(Unauthorized, match="check the token"):
        await api.get(PATH)
    with pytest.raises(Unauthorized):
        await api.get(PATH)
    assert len(server.asked) == 4


async def test_a_server_that_does_not_answer_is_left_after_a_time(
    tmp_path: Path, server: FakeApiServer
) -> None:
    server.held.clear()
    who = Credentials(server.kubeconfig(tmp_path))
    async with KubeApi(who, limits=Limits(request_s=0.1)) as api:
        with pytest.raises(Unreachable, match=f"cannot get {PATH}: no answer in time"):
            await api.get(PATH)
    server.held.set()


async def test_a_server_that_is_away_is_named(api: KubeApi, server: FakeApiServer) -> None:
    await server.down()
    with pytest.raises(Unreachable, match=f"check that {server.url} can be reached"):
        await api.get(PATH)
    await server.up()


async def test_an_answer_that_is_not_json_is_not_taken_for_an_object(
    api: KubeApi, server: FakeApiServer
) -> None:
    server.fail(200, body=b"<html>a proxy's greeting</html>")
    with pytest.raises(Unreachable, match="not JSON"):
        await api.get(PATH)


async def test_no_more_requests_are_under_way_than_allowed(
    tmp_path: Path, server: FakeApiServer
) -> None:
    await server.put(PATH, {})
    server.held.clear()
    who = Credentials(server.kubeconfig(tmp_path))
    async with KubeApi(who, limits=Limits(at_once=3)) as api:
        asking = [asyncio.create_task(api.get(PATH)) for _ in range(9)]
        await until(lambda: len(server.asked) == 3, "three requests")
        server.held.set()
        await asyncio.gather(*asking)
    assert len(server.asked) == 9


async def test_a_line_of_megabytes_arrives_whole(api: KubeApi, server: FakeApiServer) -> None:
    lines = api.watch(CONFIG_MAPS.path("here"), {"resourceVersion": "1", "timeoutSeconds": 5})
    assert await anext(lines) == b""
    await server.until_watched()
    await server.put(PATH, {"data": {"x": "y" * 5_000_000}})
    assert len(orjson.loads(await anext(lines))["object"]["data"]["x"]) == 5_000_000
    await lines.aclose()


async def test_a_line_cut_off_is_never_handed_over(api: KubeApi, server: FakeApiServer) -> None:
    lines = api.watch(CONFIG_MAPS.path("here"), {"resourceVersion": "1", "timeoutSeconds": 5})
    assert await anext(lines) == b""
    await server.until_watched()
    await server.say(b'{"type": "ADDED"}\n{"type": "ADD')
    assert await anext(lines) == b'{"type": "ADDED"}'
    server.cut_watches()
    with pytest.raises(Unreachable):
        await anext(lines)


async def test_a_watch_that_falls_silent_is_given_up(tmp_path: Path, server: FakeApiServer) -> None:
    """A connection whose other end is gone says nothing, not even that."""
    who = Credentials(server.kubeconfig(tmp_path))
    async with KubeApi(who, limits=Limits(silence_s=0.1)) as api:
        lines = api.watch(PODS.path(), {"resourceVersion": "1", "timeoutSeconds": 60})
        assert await anext(lines) == b""
        with pytest.raises(Unreachable):
            await anext(lines)


async def test_the_namespace_is_the_contexts_own(api: KubeApi) -> None:
    assert api.namespace == "here"


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(GiveUp, match=f"kubeconfig {missing}.*no such file"):
        async with KubeApi.connect(missing):
            pass


async def test_outside_a_pod_and_without_a_kubeconfig_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(GiveUp, match="service account of this pod"):
        async with KubeApi.connect():
            pass


async def test_in_a_pod_the_renewed_token_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the TLS context stays, for a new one would cost every kept connection."""
    for name, text in {"token": "first", "namespace": "models"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    monkeypatch.setattr(credentials, "POD_NAMESPACE_FILE", tmp_path / "namespace")
    first = await Credentials().login()
    (tmp_path / "token").write_text("second\n")
    second = await Credentials().login(first)
    assert (first.server, first.namespace) == ("https://10.96.0.1:443", "models")
    assert first.authorization.split() == ["bearer", "first"]
    assert second.authorization.split() == ["bearer", "second"]
    assert second.tls is first.tls
    assert second.renew_at_s < monotonic() + 61


async def test_an_exec_plugin_is_asked_for_a_token(tmp_path: Path, server: FakeApiServer) -> None:
    server.token = "from-plugin"  # noqa: S105
    await server.put(PATH, {})
    plugin = tmp_path / "plugin"
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-plugin"},
    }
    plugin.write_text(f"#!/bin/sh\ncat <<'E'\n{orjson.dumps(answer).decode()}\nE\n")
    plugin.chmod(0o755)
    file = server.kubeconfig(tmp_path)
    config = orjson.loads(file.read_bytes())
    version = "client.authentication.k8s.io/v1"
    config["users"][0]["user"] = {"exec": {"apiVersion": version, "command": str(plugin)}}
    file.write_bytes(orjson.dumps(config))
    async with KubeApi.connect(file) as api:
        assert (await api.get(PATH))["metadata"]["name"] == "a"
