# SPDX-License-Identifier: Apache-2.0
"""Tidegate in the lab as its chart installs it, and what one asks of it there."""

import json
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.lab.lab import REPOSITORY, Lab

NAMESPACE: Final = "tidegate-system"
CHART: Final = REPOSITORY / "charts" / "tidegate"


@dataclass(frozen=True, slots=True)
class Tidegate:
    """One release in the lab."""

    lab: Lab
    namespace: str = NAMESPACE

    def install(self, *values: str) -> None:
        """`helm install` into a namespace with restricted Pod Security, and wait for the pods."""
        label = "pod-security.kubernetes.io/enforce=restricted"
        self.lab.kubectl("create", "namespace", self.namespace)
        self.lab.kubectl("label", "namespace", self.namespace, label)
        self.lab.helm("install", "tidegate", str(CHART), "-n", self.namespace, *_set(values))
        self.wait_ready()

    def upgrade(self, *values: str) -> None:
        self.lab.helm("upgrade", "tidegate", str(CHART), "-n", self.namespace, *_set(values))
        self.wait_ready()

    def uninstall(self) -> None:
        self.lab.helm("uninstall", "tidegate", "-n", self.namespace, "--wait")

    def wait_ready(self, within_s: float = 120.0) -> None:
        for name in ("controller", "activator"):
            words = ("rollout", "status", f"deployment/tidegate-{name}", f"--timeout={within_s}s")
            self.lab.kubectl(*words, "-n", self.namespace)
        self.lab.wait_for(self.leader, what="a leading controller", within_s=within_s)

    def pods(self, component: str) -> list[dict[str, Any]]:
        label = f"app.kubernetes.io/component={component}"
        found: list[dict[str, Any]] = self.lab.get("pods", "-n", self.namespace, "-l", label)[
            "items"
        ]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def leader(self) -> str:
        """The pod that leads; empty: none does."""
        lease = ("get", "lease", "tidegate-controller", "-n", self.namespace)
        words = ("-o", "jsonpath={.spec.holderIdentity}")
        return self.lab.kubectl(*lease, *words, check=False).strip()

    def renewed(self) -> str:
        """When the Lease was renewed last, as text that sorts by time."""
        lease = ("get", "lease", "tidegate-controller", "-n", self.namespace)
        words = ("-o", "jsonpath={.spec.renewTime}")
        return self.lab.kubectl(*lease, *words, check=False).strip()

    def service(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A service as the leading controller's API shows it; None: not known there (yet)."""
        for pod in self.pods("controller"):
            if pod["metadata"]["name"] == self.leader():
                url = f"http://{pod['status']['podIP']}:8070/v1/services/{namespace}/{name}"
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        found: dict[str, Any] = json.load(answer)
                        return found
                except OSError:  # it is only just starting, or does not know the service yet
                    return None
        return None

    def passed(self, namespace: str) -> float:
        """Requests of a namespace's services that ever arrived at the present activators."""
        total = 0.0
        for pod in self.pods("activator"):
            if "podIP" not in pod["status"]:
                continue  # it is not started yet
            url = f"http://{pod['status']['podIP']}:8072/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                if family.name == "tidegate_activator_requests":
                    total += sum(
                        s.value
                        for s in family.samples
                        if s.name.endswith("_total") and s.labels.get("namespace") == namespace
                    )
        return total


def _set(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]
