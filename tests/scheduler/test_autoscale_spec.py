"""What `scale` of a spec may hold: each fault is a sentence with its path."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.spec.errors import SpecError
from mesh.spec.service import parse_spec

FAULTS: dict[str, dict[str, Any]] = {
    "scale.metrics.0.in_flight: must be above zero": {"metrics": [{"in_flight": 0}]},
    "scale.metrics.0.in_flight: must be at least 0.000001, got 1e-300": {"metrics": [{"in_flight": 1e-300}]},
    "scale.metrics.0.in_flight: must be a number 0..1e+12, got -1": {"metrics": [{"in_flight": -1}]},
    "scale.metrics.0.requests: unknown field": {"metrics": [{"requests": 5}]},
    "scale.metrics.0.prometheus.target: must be above zero": {
        "metrics": [{"prometheus": {"url": "http://prometheus:9090", "query": "up", "target": 0}}]
    },
    "scale.metrics.0.prometheus.url: must begin with http:// or https:// and a host, got 'prometheus:9090'": {
        "metrics": [{"prometheus": {"url": "prometheus:9090", "query": "up", "target": 1}}]
    },
    "scale.min: must not be above max, got 3 and 2": {"min": 3, "max": 2},
    "scale.schedules.0.min: must not be above max, got 3 and 2": {
        "schedules": [{"cron": "@daily", "min": 3, "max": 2}]
    },
    "scale.mode: must be predictive, kpa or hpa, got 'hpo' (did you mean 'hpa'?)": {"mode": "hpo"},
    "scale.behavior.scale_up: unknown field (did you mean 'scaleUp'?)": {"behavior": {"scale_up": {}}},
    "scale.behavior.scaleUp.policies: must have one at least; selectPolicy: Disabled forbids the direction": {
        "behavior": {"scaleUp": {"policies": []}}
    },
    "scale.behavior.scaleUp.policies.0.type: must be Pods or Percent, got 'pods' (did you mean 'Pods'?)": {
        "behavior": {"scaleUp": {"policies": [{"type": "pods", "value": 4, "periodSeconds": 15}]}}
    },
    "scale.behavior.scaleUp.policies.0.value: must be 1..100000, got 0": {
        "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 15}]}}
    },
    "scale.behavior.scaleUp.policies.0.periodSeconds: must be 1..1800, got 3600": {
        "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 4, "periodSeconds": 3600}]}}
    },
    "scale.behavior.scaleDown.stabilizationWindowSeconds: must be 0..3600, got -1": {
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": -1}}
    },
    "scale.behavior.scaleDown.selectPolicy: must be Max, Min or Disabled, got 'Never'": {
        "behavior": {"scaleDown": {"selectPolicy": "Never"}}
    },
    "scale.behavior.scaleDown.tolerance: must be a number 0..1, got 1.5": {
        "behavior": {"scaleDown": {"tolerance": 1.5}}
    },
}


@pytest.mark.parametrize(("sentence", "scale"), FAULTS.items(), ids=list(FAULTS))
def test_a_fault_is_a_sentence_with_its_path(sentence: str, scale: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec({"name": "web", "image": "web:1", "scale": scale})
    assert raised.value.errors == [sentence]


def test_behavior_is_spelled_as_in_kubernetes_and_printed_so() -> None:
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
        "scaleDown": {"selectPolicy": "Disabled", "tolerance": 0.05},
    }  # fmt: skip
    spec = parse_spec({"name": "web", "image": "web:1", "scale": {"behavior": behavior}})
    assert spec.canonical()["scale"]["behavior"] == behavior
