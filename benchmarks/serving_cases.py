"""Deployments of `papers_serve.py`: a model on a node under an engine, and what is predicted for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hardware.catalogue import resolve_cluster
from hardware.yaml_source import read_yaml
from perfmodel.architecture import bundled_architecture
from perfmodel.serving.engine import engines
from perfmodel.serving.overlap import Overlap
from perfmodel.serving.server import Server, server
from perfmodel.serving.step import Deployment, Load, step
from solvers.serve import predict
from solvers.serve_scenario import ServeScenario, load_serve

# lengths that papers name without publishing them, as stand-ins
ARXIV = ({"isl": 6000, "osl": 150, "isl_cv": 0.6}, {"isl": 9000, "osl": 250, "isl_cv": 0.6})
CHAT = ({"isl": 250, "osl": 250, "isl_cv": 1.2, "osl_cv": 1.0}, {"isl": 500, "osl": 350, "isl_cv": 1.2, "osl_cv": 1.0})


@lru_cache
def on(model: str, node: str, engine: str = "vllm", release: str | None = None) -> Server:
    """Return a model on a node under an engine, weights in 16 bits."""
    return server(bundled_architecture(model), resolve_cluster(node, Path(), 1), engines()[engine], release=release)


def seconds(asked: Server, tp: int, load: Load) -> float:
    return float(step(asked, Deployment(tp=tp), load).seconds)


def question(
    model: str,
    node: str,
    arrivals: Any,
    lengths: Mapping[str, float],
    given: Mapping[str, Any] | None = None,
    changed: Mapping[str, Any] | None = None,
    **others: Any,
) -> ServeScenario:
    """Return a question about one node, with fields of its engine `changed`."""
    asked = {"kind": "serve", "cluster": node, "nodes": 1, "model": model} | others
    asked["workload"] = {"arrivals": arrivals, "lengths": dict(lengths)}
    if given is not None:
        asked["plan"] = dict(given)
    scenario = load_serve(read_yaml(json.dumps(asked), "papers"), Path())
    return replace(scenario, engine=scenario.engine.model_copy(update=dict(changed or {})))


def told(scenario: ServeScenario) -> dict[str, Any] | None:
    """Return the prediction of a plan; None where it cannot run."""
    found = predict(scenario)
    return found.prediction


def most_rps(model: str, node: str, lengths: Mapping[str, float], given: Mapping[str, Any], **others: Any) -> float:
    """Return the highest rate within the objectives [1/s]; 0 where there is none."""
    found = told(question(model, node, {"process": "poisson"}, lengths, given, **others))
    return float(found["requests_per_s"]) if found else 0.0


def offline(
    model: str, node: str, lengths: Mapping[str, float], given: Mapping[str, Any], overlap: Overlap, **others: Any
) -> float:
    """Return tokens in and out per second of all accelerators, where all requests are there at once."""
    found = told(question(model, node, "offline", lengths, {**given, "overlap": overlap}, **others))
    return float(found["tokens_per_s_per_gpu"] * found["gpus"]) if found else 0.0
