# SPDX-License-Identifier: Apache-2.0
"""`make lab-demo`: the sklearn-iris story on a real Kubernetes, told as it happens."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import yaml
from rich.console import Console

from tests.lab.installed import Tidegate
from tests.lab.lab import Lab, kserve_crds
from tests.lab.traffic import Clients

NAMESPACE: Final = "shop"
ROWS: Final = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
CLIENTS: Final = 200

ANNOTATIONS: Final = {
    "tidegate.dev/enabled": "true",
    "tidegate.dev/targets": "concurrency=4",
    "tidegate.dev/scale-to-zero-after": "3s",  # for a story; the default is a minute at least
}


class Story:
    """Tells what it does, and says how long each step took."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self._lab = lab
        self._console = console
        self._began_s = time.monotonic()

    def tell(self) -> bool:
        """The whole story; true if no request was lost."""
        lab, with_kserve = self._lab, kserve_crds() is not None
        name = "sklearn-iris-predictor" if with_kserve else "sklearn-iris"
        tidegate = Tidegate(lab)
        if with_kserve:
            with self._step("KServe's CRDs and a stand-in for its controller"):
                lab.kserve()
        with self._step("helm install tidegate charts/tidegate"):
            tidegate.install()
        lab.kubectl("create", "namespace", NAMESPACE)
        manifests = [_inference_service()] if with_kserve else [_deployment(name), _service(name)]
        self._show(manifests[0])
        with self._step("applied; idle, so Tidegate puts it to sleep"):
            lab.apply(*manifests, namespace=NAMESPACE)
            self._until(lambda: self._replicas(name) is not None, "the Deployment")
            self._until(lambda: self._replicas(name) == 0, "sleep")
        self._kubectl("get", "deployment,pods,endpointslices")
        address = lab.get("service", name, "-n", NAMESPACE)["spec"]["clusterIP"]
        url = f"http://{address}/v1/models/sklearn-iris:predict"
        with self._step(f"one request to the sleeping model: POST {url}"):
            self._console.print(f"    {_ask(url)}", highlight=False)
        with self._step(f"{CLIENTS} clients at once, half on kept-alive connections"):
            answered, sent, most = asyncio.run(self._crowd(url, name))
        self._console.print(f"    sent {sent}, answered {answered}, up to {most} replicas")
        with self._step("warm: the activator leaves the path, the slice is gone"):
            self._until(lambda: not self._slices() or self._replicas(name) == 0, "the slice to go")
        with self._step("idle again: to zero"):
            self._until(lambda: self._replicas(name) == 0, "sleep")
        self._kubectl("get", "events", "--field-selector", f"involvedObject.name={name}")
        took_s = time.monotonic() - self._began_s
        self._console.print(
            f"\n{sent} requests sent, {answered} answered, {sent - answered} lost; {took_s:.0f} s"
        )
        return answered == sent

    async def _crowd(self, url: str, name: str) -> tuple[int, int, int]:
        most = 0
        async with Clients(url, ROWS, count=CLIENTS) as clients:
            storm = asyncio.create_task(clients.storm(each=10))
            while not storm.done():
                most = max(most, await asyncio.to_thread(lambda: self._replicas(name) or 0))
                await asyncio.sleep(0.2)
            tally = await storm
        for what, times in tally.lost.items():
            self._console.print(f"    LOST {times}: {what}", style="red")
        return tally.answered, tally.sent, most

    def _replicas(self, name: str) -> int | None:
        words = ("get", "deployment", name, "-n", NAMESPACE, "-o", "jsonpath={.spec.replicas}")
        said = self._lab.kubectl(*words, check=False).strip()
        return int(said) if said.isdecimal() else None

    def _slices(self) -> str:
        label = "endpointslice.kubernetes.io/managed-by=tidegate.dev"
        words = ("get", "endpointslices", "-n", NAMESPACE, "-l", label, "-o", "name")
        return self._lab.kubectl(*words).strip()

    def _until(self, done: Callable[[], object], what: str) -> None:
        self._lab.wait_for(done, what=what, within_s=90)

    def _kubectl(self, *words: str) -> None:
        self._console.print(f"$ kubectl {' '.join(words)} -n {NAMESPACE}", style="bold")
        said = self._lab.kubectl(*words, "-n", NAMESPACE).rstrip()
        self._console.print(said, highlight=False, markup=False, soft_wrap=True)

    def _show(self, manifest: dict[str, Any]) -> None:
        text = yaml.safe_dump(manifest, sort_keys=False).rstrip()
        self._console.print(text, style="dim", highlight=False, markup=False)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        self._console.print(f"\n▸ {what}", style="bold cyan", highlight=False, markup=False)
        began_s = time.monotonic()
        yield
        self._console.print(f"  {time.monotonic() - began_s:.1f} s", style="green")


def tell(lab: Lab) -> bool:
    """Tell the story in a lab that is up; true if no request was lost."""
    return Story(lab, Console()).tell()


def _ask(url: str) -> str:
    body, kind = json.dumps(ROWS).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=kind)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        cold = answer.headers.get("X-Cold-Start")
        return f"{answer.status} {answer.read().decode()} (X-Cold-Start: {cold})"


def _inference_service() -> dict[str, Any]:
    external = {"serving.kserve.io/autoscalerClass": "external"}
    model = {
        "modelFormat": {"name": "sklearn"},
        "storageUri": "gs://kfserving-examples/models/sklearn/1.0/model",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "sklearn-iris", "annotations": {**external, **ANNOTATIONS}},
        "spec": {"predictor": {"minReplicas": 0, "maxReplicas": 3, "model": model}},
    }


def _deployment(name: str) -> dict[str, Any]:
    """The same where KServe's CRDs are not at hand: a plain Deployment behind a Service."""
    container = {
        "name": "model",
        "image": "kserve/sklearnserver:lab",
        "args": ["--model_name=sklearn-iris", "--http_port=8080"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    annotations = {**ANNOTATIONS, "tidegate.dev/max-replicas": "3"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def _service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
