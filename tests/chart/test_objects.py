# SPDX-License-Identifier: Apache-2.0
"""The objects that are installed: they fit together, and ask for no more than they need."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler import cluster_settings
from autoscaler.adapters.kubernetes.memory import SHARDS
from autoscaler.adapters.kubernetes.vouching import AUDIENCE
from autoscaler.app.activator import LEASE, TOKEN
from autoscaler.cluster_settings import ClusterSettings, ScaleKind
from autoscaler.settings import Address
from scheduler_extender.admission.pods import Wiring
from scheduler_extender.app import VERBS
from scheduler_extender.binding import BIND_S
from scheduler_extender.core.annotations import (
    CORE_RESOURCE,
    GPU_RESOURCE,
    MEM_PERCENT_RESOURCE,
    MEM_RESOURCE,
    MIG_RESOURCE,
)
from scheduler_extender.settings import PlaceholderSettings, Settings, labels
from tests.chart.rendering import CHART, NAMESPACE, Helm, Manifest, Rendered, set_values

ROLLOUTS = "rollouts.v1alpha1.argoproj.io"
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/tidegate", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": ["pull"],
    "namespaces": ["team-a", "team-b"],
    "scaleKinds": [ROLLOUTS],
    "controller": {"replicas": 3, "tickSeconds": 0.5},
    "activator": {"replicas": 4, "drainSeconds": 1800},
    "nodeSelector": {"pool": "infra"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podAnnotations": {"team": "serving"},
    "gpus": {
        "dcgmService": "gpu-operator/nvidia-dcgm-exporter",
        "dcgm": ["http://10.0.0.7:9400/metrics"],
    },
    "budget": {"enabled": True},
    "extraEnv": {"HTTPS_PROXY": "http://proxy:3128", "DEBUG": 1},
    "networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "keda": {
        "enabled": True,
        "from": [{"namespaceSelector": {"matchLabels": {"name": "autoscaling"}}}],
    },
    "monitoring": {"podMonitor": True, "prometheusRule": True, "labels": {"release": "prom"}},
    "scheduler": {
        "enabled": True,
        "migProfiles": ["1g.10gb"],
        "placeholders": {"enabled": True, "gpuNodes": "pool=gpu,zone=a"},
        "nodeAgent": {
            "groups": [
                {"name": "large", "nodeSelector": {"nvidia.com/gpu.count": "8"}, "gpus": 8},
                {"name": "edge", "nodeSelector": {"pool": "edge"}, "gpus": 0},
                {"name": "mixed", "nodeSelector": {"pool": "mixed"}, "gpus": 0, "mixed": True},
            ],
        },
    },
}
# Roles that every cluster has, as its version needs them.
OF_THE_CLUSTER = {
    "system:kube-scheduler",
    "system:volume-scheduler",
    "extension-apiserver-authentication-reader",
}
OF_ONE_SECRET = [
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": ["tidegate-admission-tls"],
        "verbs": ["get", "update"],
    }
]
SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "one namespace": {"namespaces": [NAMESPACE]},
    "scheduler": {"scheduler": {"enabled": True}},
    "bare": {
        "networkPolicy": {"enabled": False},
        "monitoring": {"rulesConfigMap": False, "dashboard": False},
    },
}


@pytest.fixture(params=list(SETS.values()), ids=list(SETS))
def rendered(request: pytest.FixtureRequest, helm: Helm) -> Rendered:
    return helm.render(request.param)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_helm_finds_nothing_to_complain_of(helm: Helm, values: dict[str, Any]) -> None:
    """Its linter, at its strictest."""
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART), *set_values(values))


def test_no_object_is_told_twice(rendered: Rendered) -> None:
    """Two of a name would overwrite each other."""
    names = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in rendered.objects
    ]
    assert len(names) == len(set(names))


def test_no_permission_is_a_wildcard_or_reads_secrets(rendered: Rendered) -> None:
    """What is needed is written out."""
    for role in rendered.of("Role") + rendered.of("ClusterRole"):
        for rule in role["rules"]:
            words = rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not any("*" in word for word in words), rule
            assert "secrets" not in rule["resources"] or rule in OF_ONE_SECRET, rule
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), rule


def test_a_listed_namespace_is_all_that_a_controller_may_touch(helm: Helm) -> None:
    """Beyond them it may only ask whose token it was shown."""
    rendered = helm.render({"namespaces": ["team-a", "team-b"]})
    (cluster,) = rendered.of("ClusterRole")
    assert [(r["resources"], r["verbs"]) for r in cluster["rules"]] == [
        (["tokenreviews"], ["create"])
    ]
    watched = {
        role["metadata"]["namespace"]
        for role in rendered.of("Role")
        if role["metadata"]["name"] == "tidegate-controller"
    }
    assert watched == {"team-a", "team-b"}


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["everywhere", "one namespace"])
def test_the_budget_may_see_all_gpus_and_who_has_them(helm: Helm, namespaces: list[str]) -> None:
    """Wherever services are scaled; without it nobody may look at nodes."""
    name = f"tidegate-controller-{NAMESPACE}"
    values: dict[str, Any] = {"namespaces": namespaces, "budget": {"enabled": True}}
    rules = helm.render(values).one("ClusterRole", name)["rules"]
    seen = {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list", "watch"]}
    assert seen in rules
    without = helm.render({"namespaces": namespaces})
    for role in without.of("Role") + without.of("ClusterRole"):
        assert not any("nodes" in rule["resources"] for rule in role["rules"])


def test_every_role_is_bound_to_an_account_that_exists(rendered: Rendered) -> None:
    """A role that nobody has, or an account that nobody made, would be found out at run time."""
    accounts = {a["metadata"]["name"] for a in rendered.of("ServiceAccount")}
    for scope in ("", "Cluster"):
        roles = {
            (r["metadata"].get("namespace"), r["metadata"]["name"])
            for r in rendered.of(f"{scope}Role")
        }
        bindings = rendered.of(f"{scope}RoleBinding")
        bound = {(b["metadata"].get("namespace"), b["roleRef"]["name"]) for b in bindings}
        assert roles == {one for one in bound if one[1] not in OF_THE_CLUSTER}
        for binding in bindings:
            (subject,) = binding["subjects"]
            assert subject["name"] in accounts
            assert subject["namespace"] == NAMESPACE
            assert binding["roleRef"]["kind"] == f"{scope}Role"


def test_the_activator_may_change_nothing(rendered: Rendered) -> None:
    """It stands in the path of strangers' requests."""
    for role in rendered.of("Role") + rendered.of("ClusterRole"):
        if role["metadata"]["labels"]["app.kubernetes.io/component"] == "activator":
            for rule in role["rules"]:
                assert set(rule["verbs"]) <= {"get", "list", "watch"}


def test_only_the_subresource_scale_is_updated(rendered: Rendered) -> None:
    """Replicas are written in one place; of the workloads themselves only metadata is patched."""
    for role in rendered.of("Role") + rendered.of("ClusterRole"):
        for rule in role["rules"]:
            if rule["apiGroups"][0] in ("apps", "leaderworkerset.x-k8s.io", "argoproj.io"):
                written = all(name.endswith("/scale") for name in rule["resources"])
                assert rule["verbs"] == (
                    ["get", "patch"] if written else ["list", "watch", "patch"]
                )


def test_the_lease_and_what_was_learned_are_reached_by_name(helm: Helm) -> None:
    """Other Leases and ConfigMaps of the namespace are none of ours."""
    rendered = helm.render()
    rules = rendered.one("Role", "tidegate-controller-state")["rules"]
    named = {r["resources"][0]: r["resourceNames"] for r in rules if "resourceNames" in r}
    assert named == {
        "leases": [LEASE],
        "configmaps": [f"tidegate-state-{shard}" for shard in range(SHARDS)],
    }
    (lease,) = rendered.one("Role", "tidegate-activator-lease")["rules"]
    assert lease["resourceNames"] == [LEASE]
    for rule in rules:
        assert (
            "resourceNames" in rule or rule["verbs"] == ["create"] or rule["resources"] == ["pods"]
        )


def test_a_further_kind_can_be_read_and_scaled(helm: Helm) -> None:
    """What the config file names, the permissions name too."""
    rendered = helm.render({"scaleKinds": [ROLLOUTS]})
    rules = rendered.one("ClusterRole", "tidegate-controller")["rules"]
    ours = {r["resources"][0]: r["verbs"] for r in rules if r["apiGroups"] == ["argoproj.io"]}
    assert ours == {
        "rollouts": ["list", "watch", "patch"],
        "rollouts/scale": ["get", "patch"],
    }


def test_every_container_is_restricted(rendered: Rendered) -> None:
    """Pod Security's `restricted`, and a root file system that nobody can write."""
    for pod in rendered.pods().values():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
        for volume in pod["spec"].get("volumes", ()):
            assert not {"hostPath"} & volume.keys()
    containers = list(rendered.containers())
    assert len(containers) >= 2
    for container in containers:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_openshift_chooses_the_user_and_is_asked_for_endpoints(helm: Helm) -> None:
    """It gives each namespace its own users, and guards endpoints by a permission of its own."""
    rendered = helm.render(apis="security.openshift.io/v1")
    for pod in rendered.pods().values():
        assert "runAsUser" not in pod["spec"]["securityContext"]
    rules = rendered.one("ClusterRole", "tidegate-controller")["rules"]
    assert ["endpointslices/restricted"] in [rule["resources"] for rule in rules]


SELECTORS: Mapping[str, Callable[[Manifest], Manifest]] = {
    "Deployment": lambda one: one["spec"]["selector"]["matchLabels"],
    "DaemonSet": lambda one: one["spec"]["selector"]["matchLabels"],
    "PodDisruptionBudget": lambda one: one["spec"]["selector"]["matchLabels"],
    "Service": lambda one: one["spec"]["selector"],
    "NetworkPolicy": lambda one: one["spec"]["podSelector"]["matchLabels"],
}


def selects(selector: Manifest, labels: Manifest) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def test_whatever_selects_pods_finds_the_right_ones(rendered: Rendered) -> None:
    """Deployment, Service, disruption budget, network policy and spread mean the same pods."""
    labels = {name: pod["metadata"]["labels"] for name, pod in rendered.pods().items()}
    selectors = [
        (one["metadata"]["name"], selector(one))
        for kind, selector in SELECTORS.items()
        for one in rendered.of(kind)
    ]
    selectors += [
        (name, spread["labelSelector"]["matchLabels"])
        for name, pod in rendered.pods().items()
        for spread in pod["spec"].get("topologySpreadConstraints", ())
    ]
    assert len(selectors) >= 9
    for name, selector in selectors:
        found = [n for n in labels if selects(selector, labels[n])]
        agents = [n for n in labels if n.startswith("tidegate-node-agent-")]
        assert found == (agents if name == "tidegate-node-agent" else [name])


def test_every_port_that_is_named_exists(rendered: Rendered) -> None:
    """In probes, Services, network policies and monitors."""
    ports = {
        name: {
            port["name"]: port["containerPort"]
            for container in pod["spec"]["containers"]
            for port in container["ports"]
        }
        for name, pod in rendered.pods().items()
    }
    for name, pod in rendered.pods().items():
        for container in pod["spec"]["containers"]:
            own = [port["name"] for port in container["ports"]]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] in own
        scraped = pod["metadata"]["annotations"].get("prometheus.io/port")
        assert scraped is None or int(scraped) in ports[name].values()
    for service in rendered.of("Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports[service["metadata"]["name"]]
    for policy in rendered.of("NetworkPolicy"):
        name = policy["metadata"]["name"]
        named = {port for pod in ports if pod.startswith(name) for port in ports[pod]}
        for rule in policy["spec"]["ingress"]:
            for port in rule["ports"]:
                assert "endPort" in port or port["port"] in named
    for monitor in rendered.of("PodMonitor"):
        for end in monitor["spec"]["podMetricsEndpoints"]:
            assert any(end["port"] in names for names in ports.values())


def test_the_config_file_says_what_the_values_say(helm: Helm) -> None:
    """The controller reads it, and finds what was asked for."""
    settings = cluster_settings.parse(helm.render(EVERYTHING).config())
    assert settings == ClusterSettings(
        tick_s=0.5,
        namespaces=("team-a", "team-b"),
        scale_kinds=(ScaleKind("rollouts", "v1alpha1", "argoproj.io"),),
        dcgm=("http://10.0.0.7:9400/metrics",),
        dcgm_service=("gpu-operator", "nvidia-dcgm-exporter"),
        keda=Address("0.0.0.0", 8073),  # noqa: S104
        budget_gpus=True,
    )


def test_gpu_exporters_elsewhere_are_found_and_nothing_else_there(helm: Helm) -> None:
    """In a namespace whose services are not scaled, for a controller that may not look around."""
    rendered = helm.render(EVERYTHING)
    (role,) = [r for r in rendered.of("Role") if r["metadata"]["namespace"] == "gpu-operator"]
    assert role["rules"] == [
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        }
    ]
    elsewhere = {"gpus": {"dcgmService": "team-a/exporters"}}
    for values in (elsewhere, {**elsewhere, "namespaces": ["team-a"]}):
        names = {r["metadata"]["name"] for r in helm.render(values).of("Role")}
        assert not any("gpus" in name for name in names)


def test_ports_are_where_the_code_listens(helm: Helm) -> None:
    """Probes, policies and the config file go by these names."""
    pods, settings = helm.render().pods(), ClusterSettings()
    ports = {
        port["name"]: port["containerPort"]
        for port in pods["tidegate-controller"]["spec"]["containers"][0]["ports"]
    }
    assert ports == {"api": settings.api.port, "channel": settings.channel.port}


def test_an_activator_finds_its_token_where_it_looks(helm: Helm) -> None:
    """For the audience that the controller asks for."""
    pod = helm.render().pods()["tidegate-activator"]["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    (source,) = volume["projected"]["sources"]
    assert Path(mount["mountPath"]) / source["serviceAccountToken"]["path"] == TOKEN
    assert source["serviceAccountToken"]["audience"] == AUDIENCE
    assert mount["name"] == volume["name"]


def test_a_changed_config_rolls_the_controller_and_nothing_else(helm: Helm) -> None:
    """It is read once, at start; the activators do not read it."""
    before = helm.render().pods()
    after = helm.render({"controller": {"tickSeconds": 5}}).pods()
    assert before["tidegate-controller"] != after["tidegate-controller"]
    assert before["tidegate-activator"] == after["tidegate-activator"]


def test_an_activator_is_given_the_time_to_finish(helm: Helm) -> None:
    """Kubernetes kills it only after its own drain, after the seconds of parting."""
    pod = helm.render({"activator": {"drainSeconds": 1800}}).pods()["tidegate-activator"]["spec"]
    (container,) = pod["containers"]
    assert "1800" in container["args"]
    assert pod["terminationGracePeriodSeconds"] >= 1800 + 20


def test_an_upgrade_never_takes_a_pod_away_first(rendered: Rendered) -> None:
    """A new one is ready before an old one goes; evictions take one at a time.

    Of schedulers there is one at most: two would both place the same pods.
    """
    for deployment in rendered.of("Deployment"):
        if deployment["metadata"]["name"] == "tidegate-scheduler":
            assert deployment["spec"]["strategy"] == {"type": "Recreate"}
            assert deployment["spec"]["replicas"] == 1
            continue
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for budget in rendered.of("PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1


def test_the_channel_is_open_to_activators_only(helm: Helm) -> None:
    """What is said there moves replicas; the API is for the namespace and whom the values name."""
    rendered = helm.render(EVERYTHING)
    channel, api, _ = rendered.one("NetworkPolicy", "tidegate-controller")["spec"]["ingress"]
    (peer,) = channel["from"]
    labels = rendered.pods()["tidegate-activator"]["metadata"]["labels"]
    assert peer.keys() == {"podSelector"}
    assert selects(peer["podSelector"]["matchLabels"], labels)
    assert [rule["ports"] for rule in (channel, api)] == [[{"port": "channel"}], [{"port": "api"}]]
    assert api["from"] == [{"podSelector": {}}, *EVERYTHING["networkPolicy"]["apiFrom"]]


def test_keda_reaches_its_scaler_and_nobody_else_does(helm: Helm) -> None:
    """Where it is switched on: pod, Service and policy agree on where the code listens."""
    rendered = helm.render(EVERYTHING)
    listen = cluster_settings.parse(rendered.config()).keda
    assert listen is not None
    (container,) = rendered.pods()["tidegate-controller"]["spec"]["containers"]
    assert {"name": "keda", "containerPort": listen.port} in container["ports"]
    served = rendered.one("Service", "tidegate-controller")["spec"]["ports"]
    assert [p["port"] for p in served if p["targetPort"] == "keda"] == [listen.port]
    policy = rendered.one("NetworkPolicy", "tidegate-controller")["spec"]["ingress"]
    assert [rule["from"] for rule in policy if rule["ports"] == [{"port": "keda"}]] == [
        EVERYTHING["keda"]["from"]
    ]


def test_without_keda_nothing_listens_for_it(helm: Helm) -> None:
    """It is off unless it is asked for."""
    rendered = helm.render()
    assert "keda" not in rendered.config()
    ports = rendered.one("Service", "tidegate-controller")["spec"]["ports"]
    assert [port["name"] for port in ports] == ["api"]


def test_clients_reach_every_port_of_an_activator_but_health(helm: Helm) -> None:
    """A headless Service's clients come to the port that they know, whichever it is."""
    routes, health = helm.render().one("NetworkPolicy", "tidegate-activator")["spec"]["ingress"]
    open_ports = {
        number for ports in routes["ports"] for number in range(ports["port"], ports["endPort"] + 1)
    }
    assert set(range(1, 65536)) - open_ports == {8072}
    assert "from" not in routes
    assert health["from"] == [{"podSelector": {}}]


def test_what_users_ask_of_pods_reaches_all(helm: Helm) -> None:
    """Image, pull secrets, nodes, priority, annotations, environment."""
    rendered = helm.render(EVERYTHING)
    for pod in rendered.pods().values():
        spec = pod["spec"]
        container = spec["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert container["image"] == "registry.example/tidegate:1.2.3"
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "node-agent":
            assert spec["nodeSelector"] == {"pool": "infra"}
            assert spec["tolerations"] == EVERYTHING["tolerations"]
            assert spec["affinity"] == {"nodeAffinity": {}}
            assert spec["priorityClassName"] == "high"
        assert pod["metadata"]["annotations"]["team"] == "serving"
        assert env["HTTPS_PROXY"] == "http://proxy:3128"
        assert env["DEBUG"] == "1"
        assert {"POD_NAME", "POD_NAMESPACE", "POD_IP"} <= env.keys()


def test_without_the_scheduler_nothing_of_it_is_installed(helm: Helm) -> None:
    """It is off unless it is asked for."""
    of_it = ("scheduler", "node-agent", "admission")
    for values in ({}, {"scheduler": {"enabled": False, "name": "mine"}}):
        names = [one["metadata"]["name"] for one in helm.render(values).objects]
        assert not [name for name in names if any(part in name for part in of_it)]


def scheduler_config(rendered: Rendered) -> Manifest:
    text = rendered.one("ConfigMap", "tidegate-scheduler")["data"]["scheduler.yaml"]
    config: Manifest = yaml.safe_load(text)
    return config


def test_pods_of_services_linger_where_the_api_server_can_see_to_it(helm: Helm) -> None:
    """In the namespaces that are watched; for as long as was said."""

    def lingering(*words: str) -> list[Manifest]:
        text = helm.run("template", "t", str(CHART), "--namespace", NAMESPACE, *words)
        found = filter(None, yaml.safe_load_all(text))
        return [one for one in found if one["kind"].startswith("MutatingAdmissionPolicy")]

    now = ("--kube-version", "v1.36.0-rc.1")
    assert not lingering("--kube-version", "v1.35.9")
    assert not lingering(*now, "--set", "lingerSeconds=0")
    policy, everywhere = lingering(*now, "--set", "lingerSeconds=9")
    [mutation] = policy["spec"]["mutations"]
    assert "{seconds: 9}" in mutation["applyConfiguration"]["expression"]
    assert everywhere["spec"] == {"policyName": policy["metadata"]["name"]}
    _, here = lingering(*now, "--set", "namespaces={shop}")
    (where,) = here["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
    assert where["values"] == ["shop"]


def test_kube_scheduler_asks_the_extender_beside_it(helm: Helm) -> None:
    """By verbs that it has, for the resources that it gives out, longer than a Binding may take."""
    rendered = helm.render(EVERYTHING)
    config = scheduler_config(rendered)
    (extender,) = config["extenders"]
    told = rendered.pods()["tidegate-scheduler"]["spec"]["containers"][0]["args"]
    assert extender["urlPrefix"] == f"http://{told[told.index('--listen') + 1]}"
    assert {extender[v] for v in ("filterVerb", "bindVerb", "preemptVerb")} <= set(VERBS)
    assert not extender["ignorable"]
    assert extender["nodeCacheCapable"]
    assert float(extender["httpTimeout"].removesuffix("s")) > BIND_S
    managed = {one["name"] for one in extender["managedResources"]}
    profiles = {f"{MIG_RESOURCE}1g.10gb"}
    assert managed == {GPU_RESOURCE, MEM_RESOURCE, MEM_PERCENT_RESOURCE, CORE_RESOURCE} | profiles
    assert all(one["ignoredByScheduler"] for one in extender["managedResources"])
    assert config["percentageOfNodesToScore"] == 100
    assert config["leaderElection"] == {"leaderElect": False}


def test_the_extender_and_the_webhook_know_the_scheduler_by_its_name(helm: Helm) -> None:
    rendered = helm.render({**EVERYTHING, "scheduler": {**EVERYTHING["scheduler"], "name": "mine"}})
    (profile,) = scheduler_config(rendered)["profiles"]
    assert profile["schedulerName"] == "mine"
    for name in ("tidegate-scheduler", "tidegate-admission"):
        words = rendered.pods()[name]["spec"]["containers"][0]["args"]
        assert "--scheduler-name=mine" in words
    usual = yaml.safe_load((CHART / "values.yaml").read_text())["scheduler"]["name"]
    assert usual == Settings().scheduler == Wiring().scheduler


def test_verbs_of_the_extender_never_leave_its_pod(helm: Helm) -> None:
    """Who reaches them binds pods to nodes; health and metrics have a port of their own."""
    rendered = helm.render(EVERYTHING)
    extender = rendered.pods()["tidegate-scheduler"]["spec"]["containers"][0]
    words = extender["args"]
    assert words[words.index("--listen") + 1].startswith("127.0.0.1:")
    (port,) = extender["ports"]
    assert words[words.index("--pages") + 1] == f"$(POD_IP):{port['containerPort']}"
    (rule,) = rendered.one("NetworkPolicy", "tidegate-scheduler")["spec"]["ingress"]
    assert rule["ports"] == [{"port": port["name"]}]


def test_kube_scheduler_is_of_the_clusters_version_unless_told(helm: Helm) -> None:
    """A provider's suffix is no tag of the image."""

    def image(*words: str) -> str:
        flags = ("--set", "scheduler.enabled=true", "-s", "templates/scheduler.yaml", *words)
        text = helm.run("template", "t", str(CHART), "--namespace", NAMESPACE, *flags)
        rendered = Rendered(tuple(filter(None, yaml.safe_load_all(text))))
        pod = rendered.pods()["tidegate-scheduler"]["spec"]
        return str(pod["containers"][1]["image"])

    stock = "registry.k8s.io/kube-scheduler"
    assert image("--kube-version", "v1.31.4-gke.1183000") == f"{stock}:v1.31.4"
    assert image("--set", "scheduler.tag=v1.30.0") == f"{stock}:v1.30.0"


def test_the_extender_reaches_its_own_lease_alone(helm: Helm) -> None:
    """Other Leases of the namespace are none of its."""
    rules = helm.render(EVERYTHING).one("Role", "tidegate-scheduler-lease")["rules"]
    named = [rule for rule in rules if rule["verbs"] != ["create"]]
    assert [rule["resourceNames"] for rule in named] == [[Settings().lease]]


def test_placeholders_have_their_rights_and_class_only_where_they_are_wanted(helm: Helm) -> None:
    """In the release's namespace alone; they evict nobody, and Cluster Autoscaler counts them."""
    rendered = helm.render(EVERYTHING)
    (rule,) = rendered.one("Role", "tidegate-scheduler-placeholders")["rules"]
    assert (rule["resources"], rule["verbs"]) == (["pods"], ["create", "delete"])
    asked = rendered.one("PriorityClass", PlaceholderSettings().priority_class)
    assert asked["preemptionPolicy"] == "Never"
    assert -10 <= asked["value"] < 0
    extender = rendered.pods()["tidegate-scheduler"]["spec"]["containers"][0]
    assert "POD_UID" in {one["name"] for one in extender["env"]}
    without = helm.render({"scheduler": {"enabled": True}})
    assert not [o for o in without.objects if "placeholder" in o["metadata"]["name"]]
    assert (
        "--placeholders"
        not in without.pods()["tidegate-scheduler"]["spec"]["containers"][0]["args"]
    )


def test_the_options_of_placeholders_are_those_of_the_command(helm: Helm) -> None:
    """As the chart writes them the extender reads them; its defaults are the chart's."""
    words = helm.render(EVERYTHING).pods()["tidegate-scheduler"]["spec"]["containers"][0]["args"]
    said = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    usual = PlaceholderSettings()
    assert labels(said["gpu-nodes"], option="") == (("pool", "gpu"), ("zone", "a"))
    assert (int(said["most-placeholders"]), said["placeholder-image"]) == (usual.most, usual.image)
    chart = yaml.safe_load((CHART / "values.yaml").read_text())["scheduler"]["placeholders"]
    assert labels(chart["gpuNodes"], option="") == usual.node_selector
    assert chart["enabled"] is usual.enabled


def test_names_do_not_depend_on_the_release(helm: Helm) -> None:
    """So Helm refuses a second release over the same services."""
    words = ("template", "other", str(CHART), "--namespace", NAMESPACE)
    assert "name: other" not in helm.run(*words)
