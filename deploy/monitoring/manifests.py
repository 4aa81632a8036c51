"""The plain manifests, the chart with its own values: `kubectl apply -k deploy/kubernetes`.

They can't differ from the chart: they are rendered from it, by Helm's own code (helm-python-sdk).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

from gpubpf import __version__

CHART = Path(__file__).parent.parent / "chart" / "gpubpf"
NAMESPACE = "gpubpf"
_HEAD = "# Rendered from deploy/chart by `python -m deploy.monitoring --write --kubernetes DIR`.\n"


def rendered(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The chart's objects with these values over its own. Raises what Helm has to say."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        told = chart.render(values, name="gpubpf", namespace=NAMESPACE)
    objects: list[dict[str, Any]] = []
    for path in sorted(told):
        if path.endswith(".yaml"):
            objects += [one for one in yaml.safe_load_all(told[path]) if one]
    return objects


def files() -> Iterator[tuple[str, str]]:
    """By their names: one for each kind, and the kustomization that lists them."""
    names = ["namespace.yaml"]
    yield names[0], _HEAD + _yaml({"apiVersion": "v1", "kind": "Namespace"} | _privileged())
    for one in rendered():
        one["metadata"].get("labels", {}).pop("app.kubernetes.io/managed-by", None)
        labels = one.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
        labels.pop("app.kubernetes.io/managed-by", None)
        names.append(f"{one['kind'].lower()}.yaml")
        yield names[-1], _HEAD + _yaml(one)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": names,
        # for the operator: newName is where the image was pushed to
        "images": [{"name": "gpubpf", "newName": "gpubpf", "newTag": __version__}],
    }
    yield "kustomization.yaml", _HEAD + _yaml(kustomization)


def _privileged() -> dict[str, Any]:
    """The agent is: Pod Security's admission must know."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    return {"metadata": {"name": NAMESPACE, "labels": labels}}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _yaml(one: dict[str, Any]) -> str:
    return str(yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=96, allow_unicode=True))
