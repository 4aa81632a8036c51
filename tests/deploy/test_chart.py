"""The Helm chart and the plain manifests: linted, rendered for a matrix of values, and every object
checked against Kubernetes' schemas; broken values are refused; the agent's options are its own."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import errors
from helm_python.chart import Chart, lint

from deploy.monitoring.__main__ import main
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.boards import BOARDS
from deploy.monitoring.manifests import CHART, files, rendered
from gpubpf import __version__
from gpubpf.config import OPTIONS, SERVE, Options, load
from tests.conftest import ROOT
from tests.deploy.programs import later, says

PLAIN = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.25", "1.28", "1.31", "1.34")
CUSTOM = ("ServiceMonitor", "PodMonitor", "PrometheusRule")  # their schemas aren't Kubernetes'
Objects = list[dict[str, Any]]

ON = {"enabled": True}
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "privileges": (
        {},
        {"privileges": {"profile": "least"}},
        {"privileges": {"profile": "least", "sysAdmin": False}},
    ),
    "api": ({}, {"kubernetesApi": {"enabled": True, "labels": ["team", "a.example/b"]}}),
    "web": (
        {},
        {"web": {"existingSecret": "gpubpf-web", "scheme": "https"}},
        {"web": {"existingSecret": "w", "scheme": "https", "clientCertificates": True}},
    ),
    "stack": (
        {},
        {
            "serviceMonitor": {**ON, "labels": {"release": "kube-prometheus"}},
            "prometheusRule": ON,
            "dashboards": ON,
            "networkPolicy": {**ON, "from": [{"namespaceSelector": {}}]},
        },
        {
            "podMonitor": {**ON, "interval": "30s"},
            "service": {"enabled": False},
            "hostNetwork": True,
        },
    ),
    "nodes": (
        {},
        {
            "nodeSelector": {"nvidia.com/gpu.present": "true"},
            "affinity": {"nodeAffinity": {}},
            "imagePullSecrets": [{"name": "pull"}],
            "podLabels": {"a": "b"},
            "podAnnotations": {"c": "d"},
            "runtimeClassName": "nvidia",
            "extraArgs": ["--probe=all"],
            "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/ca/ca.crt"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
            "image": {"digest": f"sha256:{'0' * 64}"},
            "fullnameOverride": "gpus",
        },
    ),
}
MATRIX = [
    {key: value for part in choice for key, value in part.items()}
    for choice in product(*CHOICES.values())
]


@cache
def matrix() -> list[tuple[dict[str, Any], Objects]]:
    """Every choice of values, and what is rendered of it; nobody changes these."""
    return [(values, rendered(values)) for values in MATRIX]


def of(kind: str, objects: Objects) -> dict[str, Any]:
    (one,) = [o for o in objects if o["kind"] == kind]
    return one


def container(objects: Objects) -> dict[str, Any]:
    (only,) = of("DaemonSet", objects)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_lint() -> None:
    told = lint(CHART, strict=True, kube_version="v1.31.0")
    worse = [row for row in told["messages"] if row["severity"] >= 2]
    assert (worse, told["errors"] or []) == ([], [])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(version: str) -> None:
    """For every choice of values."""
    seen: set[str] = set()
    checked: set[str] = set()
    for _, objects in matrix():
        for one in objects:
            text = json.dumps(one, sort_keys=True)
            seen.add(one["kind"])
            if text in checked or one["kind"] in CUSTOM:
                continue
            kubernetes_validate.validate(one, version, strict=True)
            checked.add(text)
    assert seen >= {"DaemonSet", "ClusterRole", "NetworkPolicy", *CUSTOM}


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = of("DaemonSet", rendered())
    wrong["spec"]["template"]["spec"]["containers"][0]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("jobs", ["user, kubernetes", ["user", "kubernetes"], ["kubernetes"]])
def test_owners_with_the_source_of_pods(jobs: object) -> None:
    assert rendered({"config": {"jobs": jobs}, "kubernetesApi": ON})


@pytest.mark.parametrize(
    "values",
    [
        {"extraArgs": ["--jobs=kubernetes"]},
        {"extraEnv": [{"name": "GPUBPF_JOBS", "value": "kubernetes"}]},
    ],
)
def test_owners_with_sources_from_elsewhere(values: dict[str, Any]) -> None:
    assert rendered({"config": {"jobs": "user"}, "kubernetesApi": ON, **values})


def test_values_as_helm_may_have_made_them() -> None:
    """Of --set-string, and of --set, to which 0.5 is a string."""
    words = {"interval": "0.5", "max-jobs": "7", "process-metrics": "true", "job-retention": 30}
    assert rendered({"config": words})


def test_the_schema_knows_each_option_of_serve() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(schema["properties"]["config"]["properties"])
    own = {"listen", "host-root", "kubernetes-api", "kubernetes-labels", "web-config"}
    assert known == {option.name for option in OPTIONS if SERVE in option.commands} - own


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"imagee": {}}, "imagee"),
        ({"image": {"repository": ""}}, "/image/repository"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"extraEnv": [{"value": "x"}]}, "/extraEnv/0"),
        ({"extraVolumes": ["ca"]}, "/extraVolumes/0"),
        ({"extraVolumeMounts": [{"name": "ca", "mountPath": "ca"}]}, "/extraVolumeMounts/0"),
        ({"monitors": {"sampleLimit": -1}}, "/monitors/sampleLimit"),
        ({"monitors": {"endpoint": {"honorLabels": False}}}, "honorLabels"),
        ({"privileges": {"profile": "some"}}, "/privileges/profile"),
        ({"port": 0}, "/port"),
        ({"port": "10440"}, "/port"),
        ({"extraArgs": ["probe"]}, "/extraArgs/0"),
        ({"kubernetesApi": {"labels": list("abcdefghi")}}, "/kubernetesApi/labels"),
        ({"config": {"max_jobs": 5}}, "max_jobs"),
        ({"config": {"jobz": ["user"]}}, "jobz"),
        ({"config": {"max-jobs": "x"}}, "/config/max-jobs"),
        ({"config": {"interval": "1s"}}, "/config/interval"),
        ({"config": {"process-metrics": "maybe"}}, "/config/process-metrics"),
        ({"config": {"once": True}}, "once"),  # of another command
        ({"config": {"jobs": ["user"]}, "kubernetesApi": ON}, "kubernetes among config.jobs"),
        ({"config": {"jobs": "none"}, "kubernetesApi": ON}, "kubernetes among config.jobs"),
        ({"config": {"jobs": None}, "kubernetesApi": ON}, "kubernetes among config.jobs"),
        ({"config": {"listen": ":1"}}, "listen"),  # values of their own set these
        ({"config": {"kubernetes-api": True}}, "kubernetes-api"),
        ({"web": {"scheme": "https"}}, "/web/existingSecret"),  # probes would speak TLS to nobody
        ({"web": {"clientCertificates": True}}, "/web/existingSecret"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "app.kubernetes.io/name"),
        ({"podAnnotations": {"checksum/config": "x"}}, "checksum/config"),
        ({"fullnameOverride": "Bad_Name!"}, "/fullnameOverride"),
        ({"kubernetesApi": {"owners": {"": ["secrets"]}}}, "/kubernetesApi/owners"),
        ({"kubernetesApi": {"owners": {"*": ["jobs"]}}}, "'*'"),
        ({"kubernetesApi": {"owners": {"batch": ["*"]}}}, "/kubernetesApi/owners/batch"),
        ({"serviceMonitor": {"interval": "often"}}, "/serviceMonitor/interval"),
        ({"web": {"scheme": "gopher"}}, "/web/scheme"),
        ({"terminationGracePeriodSeconds": 1}, "/terminationGracePeriodSeconds"),
        ({"serviceMonitor": ON, "podMonitor": ON}, "choose one, both scrape the same"),
        ({"serviceMonitor": ON, "service": {"enabled": False}}, "needs service.enabled"),
        ({"serviceMonitor": ON, "service": {"enabled": None}}, "needs service.enabled"),
        ({"networkPolicy": ON, "hostNetwork": True}, "keep nobody out"),
    ],
)
def test_broken_values_are_refused_by_name(values: dict[str, Any], names: str) -> None:
    with pytest.raises(errors.HelmError) as caught:
        rendered(values)
    assert names in str(caught.value)


def options(objects: Objects, tmp_path: Path) -> Options:
    """What the agent makes of the pod's arguments, its variables and its configuration."""
    arguments = container(objects)["args"]
    assert arguments[0] == "serve"
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments[1:])
    text = of("ConfigMap", [o for o in objects if "gpubpf.toml" in o.get("data", {})])["data"]
    config = tmp_path / "gpubpf.toml"
    config.write_text(text["gpubpf.toml"])
    rows = {row["name"]: row["value"] for row in container(objects)["env"]}
    environment = {name: value for name, value in rows.items() if name.startswith("GPUBPF_")}
    assert environment.pop("GPUBPF_CONFIG") == "/etc/gpubpf/gpubpf.toml"
    assert environment.pop("GPUBPF_HOST_ROOT") == "/host"
    known = {option.name: option for option in OPTIONS}
    values = {known[n].attribute: True if known[n].is_flag else v for n, v in given.items()}
    return load(values, environment, str(config))


@pytest.mark.parametrize("values", MATRIX[:: len(MATRIX) // 24 or 1])
def test_its_options_are_the_agents(tmp_path: Path, values: dict[str, Any]) -> None:
    made = options(rendered(values), tmp_path)
    assert made.listen == ("", 10440)
    assert [spec.source for spec in made.jobs] == ["kubernetes"]
    assert made.state == "/var/lib/gpubpf/state.json"
    api = values.get("kubernetesApi", {})
    assert made.kubernetes_api == bool(api)
    assert made.kubernetes_labels == tuple(api.get("labels", ()))
    secret = "web" in values
    assert (made.web_config is not None, made.open_health) == (secret, secret)


def test_no_token_unless_it_is_needed() -> None:
    for values, objects in matrix():
        pod = of("DaemonSet", objects)["spec"]["template"]["spec"]
        wanted = "kubernetesApi" in values
        assert pod["automountServiceAccountToken"] == wanted
        assert not of("ServiceAccount", objects)["automountServiceAccountToken"]
        roles = [one for one in objects if one["kind"].startswith("ClusterRole")]
        assert len(roles) == (2 if wanted else 0)
        for rule in roles[0]["rules"] if wanted else ():
            assert rule["verbs"] == ["get"]


def test_the_least_profile_has_the_least() -> None:
    for system_admin in (True, False):
        values = {"privileges": {"profile": "least", "sysAdmin": system_admin}}
        context = container(rendered(values))["securityContext"]
        assert not context["privileged"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"]["drop"] == ["ALL"]
        four = {"BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"}
        assert {*context["capabilities"]["add"]} == four | (
            {"SYS_ADMIN"} if system_admin else set()
        )
    assert container(rendered())["securityContext"]["privileged"]


def test_every_pod() -> None:
    for values, objects in matrix():
        pod = of("DaemonSet", objects)["spec"]["template"]["spec"]
        only = container(objects)
        assert pod["hostPID"]
        assert only["securityContext"]["readOnlyRootFilesystem"]
        mounts = {mount["name"]: mount for mount in only["volumeMounts"]}
        assert {*mounts} == {volume["name"] for volume in pod["volumes"]}
        assert mounts["host"]["readOnly"]
        # Everybody may write to an emptyDir: the agent refuses a control socket right in one.
        assert Path(mounts["run"]["mountPath"]) in Path(Options().control_socket).parent.parents
        probes = [only[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
        certificates = values.get("web", {}).get("clientCertificates", False)
        assert all(("tcpSocket" in probe) == certificates for probe in probes)
        assert only["ports"] == [{"name": "metrics", "containerPort": 10440}]
        selector = of("DaemonSet", objects)["spec"]["selector"]["matchLabels"]
        labels = of("DaemonSet", objects)["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()


def test_a_changed_configuration_is_a_new_pod() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = of("DaemonSet", rendered(values))["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) != checksum({"config": {"max-jobs": 7}})
    assert checksum({}) == checksum({"port": 1234})


def test_rules_and_dashboards_are_the_shipped_ones() -> None:
    objects = rendered({"prometheusRule": ON, "dashboards": ON})
    rules = [r for g in of("PrometheusRule", objects)["spec"]["groups"] for r in g["rules"]]
    assert {r["alert"] for r in rules if "alert" in r} == {a.full_name for a in ALERTS}
    (stalled,) = [rule for rule in rules if rule.get("alert") == "GpubpfStalled"]
    assert "{{ $labels.gpu }}" in stalled["annotations"]["summary"]
    renamed = rendered({"prometheusRule": ON, "fullnameOverride": "gpus"})
    (missing,) = [
        rule["expr"]
        for group in of("PrometheusRule", renamed)["spec"]["groups"]
        for rule in group["rules"]
        if rule.get("alert") == "GpubpfPodsMissing"
    ]
    assert missing.count(f'{{daemonset="{of("DaemonSet", renamed)["metadata"]["name"]}"}}') == 2
    boards = [o for o in objects if o["metadata"].get("labels", {}).get("grafana_dashboard")]
    drawn = [json.loads(text) for board in boards for text in board["data"].values()]
    assert {one["uid"] for one in drawn} == {board.uid for board in BOARDS}


def test_monitors() -> None:
    """The node is the instance, series are bounded, and what TLS needs is there."""
    tls = {"tlsConfig": {"ca": {"secret": {"name": "ca", "key": "ca.crt"}}}}
    web = {"existingSecret": "gpubpf-web", "scheme": "https"}
    for kind, endpoints in (
        ("ServiceMonitor", "endpoints"),
        ("PodMonitor", "podMetricsEndpoints"),
    ):
        one = kind[0].lower() + kind[1:]
        objects = rendered({"web": web, "monitors": {"endpoint": tls}, one: ON})
        spec = of(kind, objects)["spec"]
        (endpoint,) = spec[endpoints]
        labels = of("DaemonSet", objects)["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert spec["sampleLimit"] == 200_000
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"] == tls["tlsConfig"]
        by_target = {row["targetLabel"]: row for row in endpoint["relabelings"]}
        assert by_target["instance"]["sourceLabels"] == ["__meta_kubernetes_pod_node_name"]
        assert by_target["job"]["replacement"] == "gpubpf"  # whatever the release is called


def test_a_digest_is_the_image() -> None:
    digest = f"sha256:{'0' * 64}"
    image = container(rendered({"image": {"digest": digest, "tag": "x"}}))["image"]
    assert image == f"gpubpf@{digest}"


def test_its_version_is_the_programs() -> None:
    with Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == chart.version == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def kustomized(directory: Path, versions: Sequence[str]) -> Objects:
    text = says(later("kubectl"), "kustomize", str(directory))
    objects = [*yaml.safe_load_all(text)]
    for one in objects:
        for version in versions:
            kubernetes_validate.validate(one, version, strict=True)
    return objects


def test_kubectl_builds_them(tmp_path: Path) -> None:
    """As they are, and with another image and the GPU nodes alone."""
    objects = kustomized(PLAIN, VERSIONS)
    shipped = [yaml.safe_load((PLAIN / name).read_text()) for name, _ in files()]
    in_order = partial(json.dumps, sort_keys=True)
    assert sorted(map(in_order, shipped[:-1])) == sorted(map(in_order, objects))
    patch = [{"op": "add", "path": "/spec/template/spec/nodeSelector", "value": {"gpu": "true"}}]
    overlay = {
        "resources": [os.path.relpath(PLAIN, tmp_path)],
        "images": [{"name": "gpubpf", "newName": "registry.example/gpubpf", "newTag": "7"}],
        "patches": [{"target": {"kind": "DaemonSet"}, "patch": json.dumps(patch)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.dump(overlay))
    objects = kustomized(tmp_path, VERSIONS[-1:])
    assert container(objects)["image"] == "registry.example/gpubpf:7"
    pod = of("DaemonSet", objects)["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "true"}


def test_thanos_is_whole() -> None:
    """There was no Thanos to run: its objects are Kubernetes', and go together."""
    objects = kustomized(ROOT / "deploy" / "thanos", VERSIONS)
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    sets = {name for kind, name in named if kind in ("StatefulSet", "Deployment")}
    assert sets == {f"thanos-{part}" for part in ("store", "compact", "receive", "query")}
    for kind, name in named:
        if kind in ("StatefulSet", "Deployment"):
            (only,) = named[kind, name]["spec"]["template"]["spec"]["containers"]
            assert only["args"][0] == name.removeprefix("thanos-")
            assert ("Service", name) in named
            assert only["image"] == "registry.example/thanos:v0.42.4"
    receive = named["StatefulSet", "thanos-receive"]["spec"]
    (ring,) = [
        json.loads(one["data"]["hashrings.json"]) for one in objects if one["kind"] == "ConfigMap"
    ]
    wanted = [
        f"thanos-receive-{n}.thanos-receive.thanos.svc.cluster.local:10901"
        for n in range(receive["replicas"])
    ]
    assert ring == [{"endpoints": wanted}]


def test_the_plain_manifests_are_the_charts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--kubernetes", str(PLAIN)]) == 0, capsys.readouterr().out
    assert {path.name for path in PLAIN.glob("*.yaml")} == {name for name, _ in files()}
    listed = yaml.safe_load((PLAIN / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {name for name, _ in files()}
    for name in listed:
        for version in VERSIONS:
            one = yaml.safe_load((PLAIN / name).read_text())
            kubernetes_validate.validate(one, version, strict=True)
