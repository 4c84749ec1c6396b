# SPDX-License-Identifier: Apache-2.0
"""The stand-in's loop: whatever changes, the InferenceService it belongs to is made right again.

Objects are written by server-side apply, so a Deployment changes only when its wanted form does,
and what others own (replicas, above all) is left alone.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import structlog

from autoscaler.errors import RetryLater
from tests.lab.kserve import llm as llms
from tests.lab.kserve.components import (
    GROUP,
    SERVICE_LABEL,
    Component,
    Config,
    Unusable,
    components,
    deployment,
    hpa,
    service,
)
from tests.lab.kserve.status import available, status
from tests.lab.rest import Key, Mirror, NotFound, Object, Refused, Rest, key_of

log = structlog.get_logger(__name__)

SELECTS = {"labelSelector": SERVICE_LABEL}
LLM_SELECTS = {"labelSelector": "app.kubernetes.io/part-of=llminferenceservice"}
LLM = "LLMInferenceService"
ISVC = "InferenceService"
PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Service": "/api/v1/namespaces/{}/services",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    ISVC: f"/apis/{GROUP}/v1beta1/namespaces/{{}}/inferenceservices",
    LLM: f"/apis/{GROUP}/v1alpha2/namespaces/{{}}/llminferenceservices",
}


def path_of(kind: str, key: Key) -> str:
    return f"{PATHS[kind].format(key[0])}/{key[1]}"


class Controller:
    """`namespaces` empty: all of them."""

    def __init__(self, rest: Rest, *, namespaces: frozenset[str]) -> None:
        self._rest = rest
        self._namespaces = namespaces
        self._waiting: dict[tuple[str, Key], None] = {}  # in order, each once
        self._some = asyncio.Event()
        again = self._all_again
        self._isvcs = self._mirror(f"/apis/{GROUP}/v1beta1/inferenceservices", self._enqueue(ISVC))
        self._llms = self._mirror(
            f"/apis/{GROUP}/v1alpha2/llminferenceservices", self._enqueue(LLM)
        )
        owned = self._enqueue_owner
        self._deployments = self._mirror("/apis/apps/v1/deployments", owned, **SELECTS)
        self._llm_deployments = self._mirror("/apis/apps/v1/deployments", owned, **LLM_SELECTS)
        self._services = self._mirror("/api/v1/services", owned, **SELECTS)
        hpas = "/apis/autoscaling/v2/horizontalpodautoscalers"
        self._hpas = self._mirror(hpas, owned, **SELECTS)
        self._cluster_runtimes = self._mirror(
            f"/apis/{GROUP}/v1alpha1/clusterservingruntimes", again
        )
        self._runtimes = self._mirror(f"/apis/{GROUP}/v1alpha1/servingruntimes", again)
        configs = "/api/v1/namespaces/kserve/configmaps"
        self._configs = self._mirror(configs, again)

    async def run(self) -> None:
        """Until cancelled."""
        mirrors = (
            *(self._deployments, self._llm_deployments, self._services, self._hpas),
            *(self._cluster_runtimes, self._runtimes, self._configs, self._isvcs, self._llms),
        )
        async with asyncio.TaskGroup() as group:
            for mirror in mirrors:
                group.create_task(mirror.run())
            for mirror in mirrors:
                await mirror.synced.wait()
            log.info("kserve_stands_in", namespaces=sorted(self._namespaces) or "all")
            while True:
                await self._next()

    # What is to be looked at

    def _mirror(self, path: str, heard: Callable[[str, Object], None], **params: str) -> Mirror:
        return Mirror(self._rest, path, on_change=heard, **params)

    def _enqueue(self, kind: str) -> Callable[[str, Object], None]:
        return lambda _change, item: self._add(kind, key_of(item))

    def _enqueue_owner(self, _change: str, item: Object) -> None:
        for owner in item["metadata"].get("ownerReferences", ()):
            if owner["kind"] in (ISVC, LLM):
                self._add(owner["kind"], (key_of(item)[0], owner["name"]))

    def _all_again(self, _change: str, _item: Object) -> None:
        for key in self._isvcs.objects:
            self._add(ISVC, key)

    def _add(self, kind: str, key: Key) -> None:
        if not self._namespaces or key[0] in self._namespaces:
            self._waiting[(kind, key)] = None
            self._some.set()

    async def _next(self) -> None:
        await self._some.wait()
        kind, key = next(iter(self._waiting))
        del self._waiting[(kind, key)]
        if not self._waiting:
            self._some.clear()
        try:
            await (self._isvc(key) if kind == ISVC else self._llm(key))
        except RetryLater as later:
            asyncio.get_running_loop().call_later(later.after_s, self._add, kind, key)
        except Refused as error:
            log.warning("refused", kind=kind, key=key, why=str(error))

    # InferenceServices

    async def _isvc(self, key: Key) -> None:
        isvc = self._isvcs.objects.get(key)
        if isvc is None or isvc["metadata"].get("deletionTimestamp"):
            return  # the garbage collector removes what it owned
        if not self._is_standard(isvc):
            return
        config = Config.read(self._configs.objects.get(("kserve", "inferenceservice-config")))
        wanted = components(isvc)
        await self._remove_unexpected(key, {one.name for one in wanted})
        problem = ""
        for one in wanted:
            try:
                await self._make(one, config)
            except Unusable as error:
                problem = str(error)
        running = [(one, self._deployments.objects.get((key[0], one.name))) for one in wanted]
        told = status(isvc, running, runtime=self._runtime_name(isvc), problem=problem, now=_now())
        await self._tell(ISVC, isvc, told)

    def _is_standard(self, isvc: Object) -> bool:
        annotations = isvc["metadata"].get("annotations") or {}
        mode = annotations.get(f"{GROUP}/deploymentMode", "Standard")
        return mode in ("Standard", "RawDeployment")

    async def _make(self, one: Component, config: Config) -> None:
        key = (one.isvc["metadata"]["namespace"], one.name)
        made = await self._apply(deployment(one, config, runtimes=self._all_runtimes(key[0])))
        if one.fixed_size is not None and made["spec"]["replicas"] != one.fixed_size:
            patch = {"spec": {"replicas": one.fixed_size}}
            await self._rest.patch(path_of("Deployment", key), patch)
        await self._apply(service(one, config))
        scaler = hpa(one)
        if scaler is not None:
            await self._apply(scaler)
        elif key in self._hpas.objects:
            await self._delete("HorizontalPodAutoscaler", key)

    async def _remove_unexpected(self, key: Key, names: set[str]) -> None:
        """Delete what carries the labels of this InferenceService under another name."""
        mirrors = {
            "Deployment": self._deployments,
            "Service": self._services,
            "HorizontalPodAutoscaler": self._hpas,
        }
        for kind, mirror in mirrors.items():
            for found, item in list(mirror.objects.items()):
                labels = item["metadata"]["labels"]
                of_it = found[0] == key[0] and labels[SERVICE_LABEL] == key[1]
                if of_it and "component" in labels and found[1] not in names:
                    await self._delete(kind, found)

    def _all_runtimes(self, namespace: str) -> Iterable[Object]:
        """The namespace's own first."""
        yield from (one for (where, _), one in self._runtimes.objects.items() if where == namespace)
        yield from self._cluster_runtimes.objects.values()

    def _runtime_name(self, isvc: Object) -> str:
        if "containers" in isvc["spec"]["predictor"]:
            return ""
        named: str = isvc["spec"]["predictor"].get("model", {}).get("runtime", "")
        return named or next((name for _, name in self._cluster_runtimes.objects), "")

    # LLMInferenceServices

    async def _llm(self, key: Key) -> None:
        llm = self._llms.objects.get(key)
        if llm is None or llm["metadata"].get("deletionTimestamp"):
            return
        made = [await self._apply(item) for item in llms.objects(llm)]
        ready = all(available(one) for one in made if "replicas" in one["spec"])
        await self._tell(LLM, llm, llms.status(llm, ready=ready, now=_now()))

    # The API

    async def _apply(self, item: Object) -> Object:
        return await self._rest.apply(path_of(item["kind"], key_of(item)), item)

    async def _delete(self, kind: str, key: Key) -> None:
        log.info("deleted", kind=kind, key=key)
        try:
            await self._rest.delete(path_of(kind, key), {"propagationPolicy": "Background"})
        except NotFound:
            log.info("was_gone", kind=kind, key=key)

    async def _tell(self, kind: str, item: Object, told: Object) -> None:
        shown = item.get("status") or {}
        if any(shown.get(field) != value for field, value in told.items()):
            await self._rest.patch(f"{path_of(kind, key_of(item))}/status", {"status": told})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
