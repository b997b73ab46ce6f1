"""Every term of every breakdown can be explained, and names code that exists."""

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from perfmodel.equations import EXPLANATIONS
from perfmodel.kv_explanations import KV_EXPLANATIONS, kv_explanations
from perfmodel.sequence_equations import SEQUENCE_EXPLANATIONS
from perfmodel.serving.equations import SERVING_EXPLANATIONS

EXAMPLES = Path(__file__).parent.parent / "examples"
ONE = str(EXAMPLES / "llama-3.1-8b-8-h100.yaml")


@pytest.mark.parametrize("name", ["deepseek-v3-2048-h100", "mixtral-8x7b-64-h100", "llama-3.1-70b-512-h100"])
def test_every_term_has_an_explanation(name: str) -> None:
    result = CliRunner().invoke(app, ["plan", "train", str(EXAMPLES / f"{name}.yaml"), "--format", "json"])

    def names(node: dict) -> set[str]:
        return {node["name"].removesuffix(", hidden")}.union(*map(names, node.get("children", [])))

    assert names(json.loads(result.stdout)["breakdown"]) <= set(EXPLANATIONS)


@pytest.mark.parametrize("name", ["kv-opt-175b-t4", "kv-llama-70b-cxl", "kv-finetune-128k", "kv-attention-h20"])
def test_every_term_of_a_placement_over_tiers_has_an_explanation(name: str) -> None:
    result = CliRunner().invoke(app, ["plan", "kv", str(EXAMPLES / f"{name}.yaml"), "--format", "json"])

    def names(node: dict) -> set[str]:
        return {node["name"].removesuffix(", hidden")}.union(*map(names, node.get("children", [])))

    found = names(json.loads(result.stdout)["breakdown"])
    assert found == set(kv_explanations(found))


EVERY = [*EXPLANATIONS.values(), *SEQUENCE_EXPLANATIONS.values(), *SERVING_EXPLANATIONS.values()]
EVERY += [*KV_EXPLANATIONS.values(), *kv_explanations(["a in", "a out", "a read", "a write", "a processor"]).values()]


@pytest.mark.parametrize("code", sorted({explanation.code for explanation in EVERY}))
def test_the_code_named_exists(code: str) -> None:
    module, function = code.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), function))


def test_explain_shows_equation_and_place() -> None:
    result = CliRunner().invoke(app, ["plan", "train", ONE, "--explain", "gradient traffic", "--format", "json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "reduce-scatter" in found["equation"]
    assert "1910.02054" in found["source"]
    assert all(entry["path"].startswith("step > gradient traffic") for entry in found["occurrences"])
    shown = CliRunner().invoke(app, ["plan", "train", ONE, "--explain", "optimizer"])
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_an_unknown_term_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["plan", "train", ONE, "--explain", "optimiser"])
    assert result.exit_code == 2
    assert 'did you mean "optimizer"' in result.stderr


@pytest.mark.parametrize("name", ["sequence-flexsp-7b", "sequence-accumulate-7b"])
def test_every_term_of_a_scatter_has_an_explanation(name: str) -> None:
    path = str(EXAMPLES / f"{name}.yaml")
    words = ["plan", "sequence", path, "--time-limit", "0.5"]
    breakdown = json.loads(CliRunner().invoke(app, [*words, "--format", "json"]).stdout)["breakdown"]

    def names(node: dict) -> set[str]:
        return {node["name"]}.union(*map(names, node.get("children", [])))

    assert names(breakdown) <= set(SEQUENCE_EXPLANATIONS)
    done = CliRunner().invoke(app, [*words, "--explain", "attention core", "--format", "json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [entry["path"] for entry in told["occurrences"]] == ["step > micro-steps > attention core"]
    shown = CliRunner().invoke(app, [*words, "--explain", "micro-steps"])
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    assert CliRunner().invoke(app, [*words, "--explain", "micro-stepps"]).exit_code == 2
