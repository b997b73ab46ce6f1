"""Launch scripts of serving plans: names the engines accept, and the values that the prediction relied on."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.emit import ENGINES
from hardware.yaml_source import Source
from solvers.serve import predict
from solvers.serve_scenario import load_serve

KNOWN = json.loads((Path(__file__).parent / "oracles" / "serving_options.json").read_text())
PLANS: list[dict[str, Any]] = [
    {"tp": 2, "replicas": 3, "max_num_seqs": 64, "max_num_batched_tokens": 2048},
    {"tp": 1, "replicas": 2, "precision_weights": "fp8", "precision_kv": "fp8", "draft_tokens": 3},
    {
        "disaggregated": True,
        "prefill": {"tp": 2, "max_num_batched_tokens": 4096},
        "decode": {"tp": 4, "max_num_seqs": 32},
    },
]


def script(engine: str, plan: dict[str, Any], model: str = "llama-3.1-8b", **changes: Any) -> str:
    scenario = {
        "kind": "serve",
        "cluster": "dgx-h100",
        "model": model,
        "engine": engine,
        "workload": {
            "arrivals": {"process": "poisson", "rate_rps": 1},
            "lengths": {"isl": 1000, "osl": 200, "osl_cv": 0.5},
        },
        "speculative": {"acceptance": 0.7, "draft_cost": 0.05},
        **changes,
    }
    return ENGINES[engine](predict(load_serve(Source("test", {**scenario, "plan": plan}), Path())))


def commands(text: str) -> list[list[str]]:
    """Words of the commands of a script, without what is set before them."""
    joined = text.replace("\\\n", " ")
    lines = [line.removesuffix("&") for line in joined.splitlines() if line.startswith("CUDA_VISIBLE_DEVICES")]
    return [shlex.split(line) for line in lines]


def given(words: list[str]) -> dict[str, str]:
    found = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            following = words[number + 1] if number + 1 < len(words) else "--"
            found[word[2:]] = "" if following.startswith("--") else following
    return found


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("plan", PLANS, ids=["replicas", "speculation", "pools"])
def test_every_name_is_one_that_the_engine_takes(engine: str, plan: dict[str, Any]) -> None:
    text = script(engine, plan)
    for words in commands(text):
        assert set(given(words)) <= set(KNOWN[engine]["options"])
        assert not set(given(words)) & set(KNOWN[engine].get("gone", ()))
    for block in re.findall(r"<<'YAML'\n(.*?)\nYAML", text, re.DOTALL):
        settings = json.loads(block)
        names = {*settings, *(key for value in settings.values() if isinstance(value, dict) for key in value)}
        assert names <= set(KNOWN[engine]["keys"])
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert "predicts" in text and "TPOT mean" in text


def test_the_values_are_those_of_the_plan() -> None:
    plan = PLANS[0]
    one = commands(script("vllm", plan))
    assert len(one) == 3 and one[0][0] == "CUDA_VISIBLE_DEVICES=0,1" and one[2][0] == "CUDA_VISIBLE_DEVICES=4,5"
    said = given(one[1])
    assert said["tensor-parallel-size"] == "2" and said["max-num-seqs"] == "64"
    assert said["max-num-batched-tokens"] == "2048" and said["port"] == "8001"
    assert int(said["max-model-len"]) > 1200 and int(said["kv-cache-memory-bytes"]) > 40e9
    said = given(commands(script("sglang", plan))[0])
    assert (said["tp-size"], said["max-running-requests"], said["chunked-prefill-size"]) == ("2", "64", "2048")
    settings = json.loads(re.findall(r"<<'YAML'\n(.*?)\nYAML", script("trtllm", plan), re.DOTALL)[0])
    assert (settings["tensor_parallel_size"], settings["max_batch_size"], settings["max_num_tokens"]) == (2, 64, 2048)


def test_pools_have_roles_and_wide_instances_all_their_ranks() -> None:
    roles = [json.loads(given(words)["kv-transfer-config"])["kv_role"] for words in commands(script("vllm", PLANS[2]))]
    assert roles == ["kv_producer", "kv_consumer"]
    wide = {"tp": 1, "dp": 8, "ep": 8, "precision_weights": "fp8"}
    said = given(commands(script("sglang", wide, "mixtral-8x7b"))[0])
    assert (said["tp-size"], said["attn-dp-size"], said["ep-size"]) == ("8", "8", "8")
    said = given(commands(script("vllm", wide, "mixtral-8x7b"))[0])
    assert (said["tensor-parallel-size"], said["data-parallel-size"]) == ("1", "8") and "enable-expert-parallel" in said


def test_another_engine_than_predicted_is_told(tmp_path: Path) -> None:
    example = str(Path(__file__).parent.parent / "examples" / "serve-llama-70b-8-h100.yaml")
    done = CliRunner().invoke(app, ["predict", "serve", example, "--emit", "sglang"])
    assert done.exit_code == 0 and "--set engine=sglang" in done.stdout
    done = CliRunner().invoke(app, ["predict", "serve", example, "--emit", "sglan"])
    assert done.exit_code == 2 and "sglang" in done.stderr
