# SPDX-License-Identifier: Apache-2.0
"""What gives pods GPUs beside the scheduler: agents of nodes, the webhook, its certificate."""

from base64 import b64decode
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from scheduler_extender.admission.cli import app as admission
from scheduler_extender.admission.mutation import CAPABILITIES
from scheduler_extender.admission.pods import GRANTS, VISIBLE
from scheduler_extender.admission.self_signed import KINDS
from scheduler_extender.core.annotations import PROFILE
from scheduler_extender.core.node_report import GPUS
from scheduler_extender.node_agent.agent import HEARTBEAT
from scheduler_extender.node_agent.cli import app as node_agent
from scheduler_extender.node_agent.node_object import WHOLE
from scheduler_extender.reservations.pod import reservation_pod
from tests.chart.rendering import CHART, NAMESPACE, Helm, Manifest, Refused, Rendered
from tests.chart.test_objects import EVERYTHING

ON: dict[str, Any] = {"scheduler.enabled": True}
CA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def container(rendered: Rendered, name: str) -> Manifest:
    (found,) = rendered.pods()[name]["spec"]["containers"]
    return dict(found)


def webhooks(rendered: Rendered) -> list[Manifest]:
    """Of both configurations, under their one name."""
    kinds = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    found = [rendered.one(kind, "tidegate-admission") for kind in kinds]
    return [dict(webhook) for one in found for webhook in one["webhooks"]]


def test_one_value_brings_all_and_each_can_be_left_out(helm: Helm) -> None:
    """Scheduler, agents, webhook."""

    def pods(**more: Any) -> set[str]:
        return set(helm.render({**ON, **more}).pods())

    rest = {"tidegate-controller", "tidegate-activator", "tidegate-scheduler"}
    assert pods() == rest | {"tidegate-node-agent-gpu", "tidegate-admission"}
    without = pods(**{"scheduler.nodeAgent.enabled": False, "scheduler.webhook.enabled": False})
    assert without == rest
    rendered = helm.render({**ON, "scheduler.nodeAgent.enabled": False})
    assert not [o for o in rendered.objects if "node-agent" in o["metadata"]["name"]]
    rendered = helm.render({**ON, "scheduler.webhook.enabled": False})
    assert not [o for o in rendered.objects if "admission" in o["metadata"]["name"]]


@pytest.mark.parametrize("preempt", [True, False])
def test_who_may_not_evict_does_not_try(helm: Helm, preempt: bool) -> None:
    """The right and the option go together."""
    rendered = helm.render({**ON, "scheduler.preempt": preempt})
    rules = [rule for role in rendered.of("ClusterRole") for rule in role["rules"]]
    extender = rendered.pods()["tidegate-scheduler"]["spec"]["containers"][0]
    assert any("pods/eviction" in rule["resources"] for rule in rules) is preempt
    assert ("--no-preempt" not in extender["args"]) is preempt


@pytest.mark.parametrize("command", ["admission", "node-agent"])
def test_options_are_those_that_the_command_has(helm: Helm, command: str) -> None:
    """Each that a pod is started with, with any values."""
    values = {**EVERYTHING, "scheduler.nodeAgent.mpsPipes": "/run/mps"}
    program = {"admission": admission, "node-agent": node_agent}[command]
    shown = CliRunner().invoke(program, ["--help"], env={"COLUMNS": "200"})
    for one in helm.render(values).containers():
        if one["name"] == command:
            name, *options = one["args"]
            assert name == command
            for option in options:
                assert option.split("=")[0] in shown.stdout


def test_each_group_of_nodes_has_agents_that_hold_its_gpus(helm: Helm) -> None:
    """So that the kubelet gives them to nobody else, and the agent knows how many."""
    rendered = helm.render(EVERYTHING)
    large, edge = (container(rendered, f"tidegate-node-agent-{n}") for n in ("large", "edge"))
    assert large["resources"]["limits"][WHOLE] == "8"
    assert "memory" in large["resources"]["limits"]
    assert "--holds=8" in large["args"]
    assert WHOLE not in edge["resources"]["limits"]
    assert "--holds=0" in edge["args"]
    pods = rendered.pods()
    selectors = [
        pods[f"tidegate-node-agent-{n}"]["spec"]["nodeSelector"] for n in ("large", "edge")
    ]
    assert selectors == [{"nvidia.com/gpu.count": "8"}, {"pool": "edge"}]


def test_an_agent_that_holds_gpus_is_never_replaced_by_itself(helm: Helm) -> None:
    """While none holds them the kubelet could give them away; one that holds none may roll."""
    rendered = helm.render(EVERYTHING)
    strategies = {
        one["metadata"]["name"]: one["spec"]["updateStrategy"]["type"]
        for one in rendered.of("DaemonSet")
    }
    assert strategies == {
        "tidegate-node-agent-large": "OnDelete",
        "tidegate-node-agent-edge": "RollingUpdate",
        "tidegate-node-agent-mixed": "RollingUpdate",
    }


def test_an_agent_sees_all_gpus_of_its_node_and_knows_its_name(helm: Helm) -> None:
    """By NVIDIA's runtime, on nodes that are tainted for GPUs; nothing of the host is mounted."""
    rendered = helm.render(ON)
    pod = rendered.pods()["tidegate-node-agent-gpu"]["spec"]
    env = {entry["name"]: entry for entry in container(rendered, "tidegate-node-agent-gpu")["env"]}
    assert env["NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert env[VISIBLE]["value"] == "all"
    assert env[CAPABILITIES["name"]]["value"] == "utility"
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in pod["tolerations"]
    assert pod["priorityClassName"] == "system-node-critical"
    assert "volumes" not in pod


def test_where_a_group_is_mixed_the_extender_can_reserve_its_cards(helm: Helm) -> None:
    """By a pod that keeps to restricted Pod Security, is evicted by nobody and may do one thing."""
    rendered = helm.render(EVERYTHING)
    mixed = container(rendered, "tidegate-node-agent-mixed")
    assert "--mixed" in mixed["args"]
    assert WHOLE not in mixed["resources"]["limits"]
    text = rendered.one("ConfigMap", "tidegate-scheduler")["data"]["reservation.yaml"]
    template = yaml.safe_load(text)
    made = reservation_pod(template, node="n", number=0)
    (one,) = made["spec"]["containers"]
    assert one["resources"]["limits"][WHOLE] == "1"
    assert one["args"] == ["node-agent", "reserve"]
    names = [entry["name"] for entry in one["env"]]
    assert len(names) == len(set(names))
    assert {"POD_NAME", "POD_NAMESPACE", "POD_UID"} < set(names)
    assert one["securityContext"] == mixed["securityContext"]
    assert made["spec"]["runtimeClassName"] == "nvidia"
    priority = rendered.one("PriorityClass", made["spec"]["priorityClassName"])
    assert (priority["value"], priority["preemptionPolicy"]) == (10**9, "Never")
    extender = rendered.pods()["tidegate-scheduler"]["spec"]["containers"][0]
    (mount,) = extender["volumeMounts"]
    assert f"--reservation-pod={mount['mountPath']}/reservation.yaml" in extender["args"]
    rules = rendered.one("Role", made["spec"]["serviceAccountName"])["rules"]
    assert rules == [{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}]


def test_without_a_mixed_group_nothing_of_it_is_there(helm: Helm) -> None:
    """No right to make pods, above all."""
    rendered = helm.render(ON)
    assert rendered.of("PriorityClass") == []
    assert "reservation.yaml" not in rendered.one("ConfigMap", "tidegate-scheduler")["data"]
    assert "reservation" not in str(rendered.pods()["tidegate-scheduler"])
    assert not [one for one in rendered.of("Role") if "reservation" in one["metadata"]["name"]]


def test_a_group_holds_gpus_or_is_mixed(helm: Helm) -> None:
    group = {"name": "a", "nodeSelector": {"pool": "a"}, "gpus": 8, "mixed": True}
    with pytest.raises(Refused, match="gpus"):
        helm.render({"scheduler": {"nodeAgent": {"groups": [group]}}})


def test_pipes_of_mps_are_mounted_only_where_they_are_asked_for(helm: Helm) -> None:
    """Where they are on the node, and not to be written."""
    rendered = helm.render({**ON, "scheduler.nodeAgent.mpsPipes": "/run/mps"})
    (volume,) = rendered.pods()["tidegate-node-agent-gpu"]["spec"]["volumes"]
    one = container(rendered, "tidegate-node-agent-gpu")
    assert volume["hostPath"] == {"path": "/run/mps"}
    assert one["volumeMounts"] == [{"name": "mps", "mountPath": "/run/mps", "readOnly": True}]
    assert "--mps-pipes=/run/mps" in one["args"]


def policy(helm: Helm, *words: str) -> str:
    flags = ("--namespace", NAMESPACE, "--set", "scheduler.enabled=true")
    return helm.run("template", "t", str(CHART), *flags, *words)


def test_an_agent_is_bound_to_its_node_where_the_cluster_can(helm: Helm) -> None:
    """To the annotations that it writes, by its own account."""
    rendered = helm.render(ON)
    rule = rendered.one("ValidatingAdmissionPolicy", "tidegate-node-agent")["spec"]
    account = f"system:serviceaccount:{NAMESPACE}:tidegate-node-agent"
    assert rendered.one("ServiceAccount", "tidegate-node-agent")
    assert rule["matchConditions"][0]["expression"].endswith(f"== '{account}'")
    (own,) = [one["expression"] for one in rule["variables"] if one["name"] == "own"]
    assert own == f"['{GPUS}', '{HEARTBEAT}']"
    (binding,) = rendered.of("ValidatingAdmissionPolicyBinding")
    assert binding["spec"] == {"policyName": "tidegate-node-agent", "validationActions": ["Deny"]}
    assert "ValidatingAdmissionPolicy" not in policy(helm, "--kube-version", "v1.29.3")
    unbound = policy(helm, "--set", "scheduler.nodeAgent.ownNodeOnly=false")
    assert "ValidatingAdmissionPolicy" not in unbound


def test_webhooks_wait_for_no_pod_of_others(helm: Helm) -> None:
    """All fail closed; so each is asked only about what has to do with GPUs, and not of itself."""
    found = webhooks(helm.render(ON))
    assert [one["clientConfig"]["service"]["path"] for one in found] == [
        "/mutate", "/validate", "/validate", "/validate",
    ]  # fmt: skip
    for one in found:
        assert one["failurePolicy"] == "Fail"
        assert one["sideEffects"] == "None"
        assert one["matchConditions"]
        (namespaces,) = one["namespaceSelector"]["matchExpressions"]
        assert namespaces["operator"] == "NotIn"
        assert set(namespaces["values"]) == {"kube-system", "gpu-operator", NAMESPACE}
        service = one["clientConfig"]["service"]
        assert (service["name"], service["namespace"]) == ("tidegate-admission", NAMESPACE)
        assert "caBundle" not in one["clientConfig"]


def test_conditions_name_what_the_webhook_looks_at(helm: Helm) -> None:
    """A word that differs would let pods pass unseen."""
    mutates, new, grants, debuggers = (
        one["matchConditions"][0]["expression"] for one in webhooks(helm.render(ON))
    )
    for expression in (mutates, new, debuggers):
        assert "key.startsWith('tidegate.dev/gpu')" in expression
        assert f"key == '{PROFILE}'" in expression
    for expression in (new, debuggers):
        assert f"entry.name == '{VISIBLE}'" in expression
    assert "object.spec.runtimeClassName == 'nvidia'" in new
    for key in GRANTS:
        assert f"'{key}'" in grants


def test_without_a_runtime_class_nobody_is_given_one(helm: Helm) -> None:
    """Where NVIDIA's runtime is the default: neither agents nor pods."""
    rendered = helm.render({**ON, "scheduler.runtimeClassName": ""})
    assert "runtimeClassName" not in rendered.pods()["tidegate-node-agent-gpu"]["spec"]
    assert "--runtime-class=" in container(rendered, "tidegate-admission")["args"]
    assert "runtimeClassName" not in webhooks(rendered)[1]["matchConditions"][0]["expression"]


def test_an_older_cluster_is_told_what_it_lacks(helm: Helm) -> None:
    """Before 1.28 the API server would ask about every pod."""
    with pytest.raises(Refused, match=r"scheduler\.webhook\.enabled: needs Kubernetes 1\.28"):
        policy(helm, "--kube-version", "v1.27.9")
    assert policy(helm, "--kube-version", "v1.27.9", "--set", "scheduler.webhook.enabled=false")


def test_a_certificate_of_its_own_is_shared_and_trusted_by_name(helm: Helm) -> None:
    """One Secret, empty at first; both configurations; nothing else of either kind."""
    rendered = helm.render(ON)
    (name,) = [
        word.removeprefix("--self-signed=")
        for word in container(rendered, "tidegate-admission")["args"]
        if word.startswith("--self-signed=")
    ]
    secret = rendered.one("Secret", f"{name}-tls")
    assert not {"data", "stringData"} & secret.keys()
    assert rendered.one("Service", name)["spec"]["ports"][0]["port"] == 443
    (rule,) = rendered.one("Role", "tidegate-admission-tls")["rules"]
    assert (rule["resourceNames"], rule["verbs"]) == ([f"{name}-tls"], ["get", "update"])
    (rule,) = rendered.one("ClusterRole", "tidegate-admission")["rules"]
    assert rule["resources"] == list(KINDS)
    assert (rule["resourceNames"], rule["verbs"]) == ([name], ["get", "update"])


def mounted(rendered: Rendered) -> str:
    """The Secret that the webhook's files are in."""
    pod, one = (
        rendered.pods()["tidegate-admission"]["spec"],
        container(rendered, "tidegate-admission"),
    )
    (mount,) = one["volumeMounts"]
    for option in ("--cert-file", "--key-file"):
        (file,) = [word for word in one["args"] if word.startswith(option)]
        assert file.startswith(f"{option}={mount['mountPath']}/tls.")
    (volume,) = pod["volumes"]
    return str(volume["secret"]["secretName"])


def test_cert_manager_signs_and_is_trusted_by_its_injector(helm: Helm) -> None:
    """By an Issuer of the chart's, or one that is there; the webhook itself needs no rights."""
    key = "scheduler.webhook.certificate"
    rendered = helm.render({**ON, key: {"from": "cert-manager"}})
    (certificate,) = rendered.of("Certificate")
    (issuer,) = rendered.of("Issuer")
    assert certificate["spec"]["issuerRef"]["name"] == issuer["metadata"]["name"]
    assert certificate["spec"]["dnsNames"] == [f"tidegate-admission.{NAMESPACE}.svc"]
    assert certificate["spec"]["secretName"] == mounted(rendered)
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        (one,) = rendered.of(kind)
        assert one["metadata"]["annotations"] == {
            "cert-manager.io/inject-ca-from": f"{NAMESPACE}/{certificate['metadata']['name']}"
        }
    roles = rendered.of("Role") + rendered.of("ClusterRole")
    assert not [one for one in roles if "admission" in one["metadata"]["name"]]
    own = {"name": "corporate", "kind": "ClusterIssuer"}
    rendered = helm.render({**ON, key: {"from": "cert-manager", "issuer": own}})
    assert not rendered.of("Issuer")
    (certificate,) = rendered.of("Certificate")
    assert certificate["spec"]["issuerRef"] == {"group": "cert-manager.io", **own}


def test_a_certificate_that_is_there_is_used_and_trusted(helm: Helm) -> None:
    """As the values say."""
    said = {"from": "secret", "secretName": "mine", "ca": CA}
    rendered = helm.render({**ON, "scheduler.webhook.certificate": said})
    assert mounted(rendered) == "mine"
    for one in webhooks(rendered):
        assert b64decode(one["clientConfig"]["caBundle"]).decode() == CA
    assert not rendered.of("Secret")
