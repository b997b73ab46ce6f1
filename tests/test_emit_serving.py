"""Launch scripts of serving plans: run with programs that only listen, they are the plan, or say what they are not."""

import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from cli.emit import ENGINES as NAMES
from cli.emit.engines import ENGINES
from cli.emit.places import placed
from cli.emit.serving import Launch
from hardware.catalogue import description, resolve_cluster
from hardware.yaml_source import Source
from perfmodel.architecture import load_architecture
from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.serving.server import CACHE_BYTES
from solvers.result import Objective, Result
from solvers.serve import predict
from solvers.serve_scenario import load_serve

EXAMPLES = Path(__file__).parent.parent / "examples"
KNOWN = json.loads((Path(__file__).parent / "oracles" / "launch_flags.json").read_text())

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash to run scripts with")


def scenario(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "serve",
        "cluster": "dgx-h100",
        "model": "llama-3.1-8b",
        "engine": "vllm",
        "workload": {"arrivals": {"process": "poisson", "rate_rps": 0.01}, "lengths": {"isl": 1000, "osl": 200}},
        "speculative": {"acceptance": 0.7, "draft_cost": 0.05},
        **changes,
    }


def launched(engine: str, plan: dict[str, Any], **changes: Any) -> tuple[Launch, Result]:
    question = load_serve(Source("test", {**scenario(engine=engine), **changes, "plan": plan}), Path())
    result = predict(question)
    assert result.plan is not None, result.why_not
    return ENGINES[engine](result, question), result


# --- reading a script back --------------------------------------------------------------------------------------


class Started:
    """One command that a script started on a node."""

    def __init__(self, node: int, words: list[str]) -> None:
        self.node = node
        variables, self.words = words[0], words[1:]
        self.launcher: list[str] = []
        if self.words[0] == "mpirun":
            at = self.words.index("trtllm-llmapi-launch")
            self.launcher, self.words = self.words[:at], self.words[at + 1 :]
            variables = self.launcher[-1].removeprefix("CUDA_VISIBLE_DEVICES=")
        self.visible = [int(one) for one in variables.split(",") if one]
        self.given: dict[str, str] = {}
        option = ""
        for word in self.words:
            if word.startswith("--"):
                option = word
                assert option not in self.given, option
                self.given[option] = ""
            elif option:
                self.given[option] = f"{self.given[option]} {word}".strip()

    def number(self, option: str) -> int:
        return int(self.given[option])


def started(text: str, folder: Path, nodes: int = 1) -> list[Started]:
    """Run a script on every node, with programs that write down what they were called with."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("vllm", "python", "trtllm-serve", "mpirun"):
        fake = programs / name
        fake.write_text(
            '#!/bin/sh\n{ printf "%s\\0" "$CUDA_VISIBLE_DEVICES" "$(basename $0)" "$@"; } > "$LOG/$(basename $0).$$"\n'
        )
        fake.chmod(0o755)
    found = []
    for node in range(nodes):
        log = folder / f"log{node}"
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir()
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "LOG": str(log),
            **dict.fromkeys(("MODEL", "MODEL_BF16", "MODEL_FP8"), "a model"),
            "DRAFT_MODEL": "small",
            "DISAGG_CLUSTER_URI": "http://router:9000",
        }
        if nodes > 1:
            environment |= {"NODE_RANK": str(node), "HOSTS": " ".join(f"host{one}" for one in range(nodes))}
        subprocess.run(["bash", "-c", text, "launch", "--x", "y z"], cwd=folder, env=environment, check=True)
        for file in sorted(log.iterdir()):
            words = file.read_text().split("\0")[:-1]
            assert words[-2:] == ["--x", "y z"], words
            found.append(Started(node, words[:-2]))
    return found


def settings(one: Started, folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((folder / one.given["--config"]).read_text())
    return data


def pool_of(engine: str, one: Started, folder: Path) -> dict[str, Any]:
    """The pool that the arguments mean, after the engines' definitions of them; tokens are of one batch under way."""
    if engine == "vllm":
        tp, pp, dp = (one.number(f"--{name}-parallel-size") for name in ("tensor", "pipeline", "data"))
        return {
            "tp": tp,
            "pp": pp,
            "dp": dp,
            "ep": tp * dp if "--enable-expert-parallel" in one.given else 1,
            "max_num_seqs": one.number("--max-num-seqs"),
            "max_num_batched_tokens": pp * one.number("--max-num-batched-tokens"),
        }
    if engine == "sglang":
        # sizes and limits are of all ranks of attention data parallelism together
        dp, pp = one.number("--attn-dp-size"), one.number("--pp-size")
        assert one.number("--tp-size") % dp == one.number("--max-running-requests") % dp == 0
        return {
            "tp": one.number("--tp-size") // dp,
            "pp": pp,
            "dp": dp,
            "ep": one.number("--ep-size"),
            "max_num_seqs": one.number("--max-running-requests") // dp,
            "max_num_batched_tokens": pp * one.number("--chunked-prefill-size") // dp,
        }
    found, ways = settings(one, folder), one.number("--tensor_parallel_size")
    pp = one.number("--pipeline_parallel_size")
    apart = found["enable_attention_dp"]
    ep = int(one.given.get("--moe_expert_parallel_size", 1))
    assert found.get("moe_tensor_parallel_size", ways) * ep == ways
    return {
        "tp": 1 if apart else ways,
        "pp": pp,
        "dp": ways if apart else 1,
        "ep": ep,
        "max_num_seqs": one.number("--max_batch_size"),
        "max_num_batched_tokens": pp * one.number("--max_num_tokens"),
    }


def cache_of(engine: str, one: Started, folder: Path) -> str:
    if engine == "trtllm":
        return {"auto": "bf16", "fp8": "fp8"}[settings(one, folder)["kv_cache_config"]["dtype"]]
    kind = one.given["--kv-cache-dtype"]
    return {"bfloat16": "bf16", "float16": "fp16", "auto": "fp16"}.get(kind, "fp8")


def drafted_by(engine: str, one: Started, folder: Path) -> int:
    if engine == "vllm":
        return int(one.given.get("--spec-tokens", 0))
    if engine == "sglang":
        steps = int(one.given.get("--speculative-num-steps", 0))
        assert int(one.given.get("--speculative-num-draft-tokens", 1)) == steps + 1
        return steps
    return int(settings(one, folder).get("speculative_config", {}).get("num_nextn_predict_layers", 0))


def role_of(engine: str, one: Started) -> str:
    if engine == "vllm":
        transfer = json.loads(one.given.get("--kv-transfer-config", "{}"))
        return {None: "both", "kv_producer": "prefill", "kv_consumer": "decode"}[transfer.get("kv_role")]
    if engine == "sglang":
        return one.given.get("--disaggregation-mode", "both")
    return {None: "both", "CONTEXT": "prefill", "GENERATION": "decode"}[one.given.get("--server_role")]


def accepted(engine: str, one: Started, folder: Path) -> None:
    """Every name and value is one that the engine's release takes."""
    known = KNOWN[engine]
    given = one.given
    assert not set(given) - set(known["flags"])
    assert not set(given) & set(known["gone"])
    for option, values in known["values"].items():
        assert given.get(option, values[0]) in values, (option, given[option])
    keys: set[str] = set()

    def gather(data: Any) -> None:
        if isinstance(data, dict):
            keys.update(data)
            for value in data.values():
                gather(value)

    if engine == "trtllm":
        gather(settings(one, folder))
    elif "--kv-transfer-config" in given:
        gather(json.loads(given["--kv-transfer-config"]))
    assert keys <= set(known.get("keys", ()))


def agrees(engine: str, result: Result, launch: Launch, folder: Path, nodes: int = 1) -> list[Started]:
    """Read back, a script is the plan, in places of its own; what it is not, it says."""
    plan, said = result.plan, "\n".join(launch.missing)
    assert plan is not None
    found = started(launch.text, folder, nodes)
    pools = {role: plan[role] for role in ("prefill", "decode")} if plan["disaggregated"] else {"both": plan}
    taken: list[tuple[int, int]] = []
    ports: list[tuple[int, str]] = []
    heads: dict[str, int] = dict.fromkeys(pools, 0)
    for one in found:
        accepted(engine, one, folder)
        role = role_of(engine, one)
        back = pool_of(engine, one, folder)
        for name, value in back.items():
            assert value == pools[role][name] or re.search(rf"\b{name}\b", said), (name, value, pools[role])
        for name, value in (
            ("precision_kv", cache_of(engine, one, folder)),
            ("draft_tokens", drafted_by(engine, one, folder)),
        ):
            same = value == plan[name] or {value, plan[name]} == {"bf16", "fp16"}
            assert same or re.search(rf"\b{name}\b", said), (name, value)
        taken += [(one.node, number) for number in one.visible]
        if "--port" in one.given:
            ports.append((one.node, one.given["--port"]))
            heads[role] += "--node-rank" not in one.given or one.given["--node-rank"] == "0"
    assert len(taken) == len(set(taken)) and len(ports) == len(set(ports))
    for role, count in heads.items():
        assert count == pools[role]["replicas"] or re.search(r"\breplicas\b", said)
    for text in launch.missing:
        assert f"\n# not expressible: {text}\n" in launch.text
    return found


# --- many plans -------------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A plan and what it is for, at random."""
    pick = random.Random(seed).choice
    model = pick(["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"])
    mixture = model in ("mixtral-8x7b", "deepseek-v3", "gpt-oss-120b")
    nodes = pick([1, 2, 4]) if model != "deepseek-v3" else pick([2, 4])
    weights = "fp8_block" if model == "deepseek-v3" else pick(["bf16", "fp8", "int4_wo", "bf16" if mixture else "int8"])

    def pool(most: int) -> dict[str, Any]:
        shapes = [
            (tp, pp, dp)
            for tp in (1, 2, 4, 8)
            for pp in (1, 2)
            for dp in ((1, 2, 8, 16) if mixture else (1,))
            if tp * pp * dp <= most and (model != "deepseek-v3" or tp * pp * dp * 2 > most)
        ]
        tp, pp, dp = pick(shapes)
        return {
            "tp": tp,
            "pp": pp,
            "dp": dp,
            "ep": pick([1, tp * dp]) if mixture and tp * dp <= 32 and (model != "mixtral-8x7b" or tp * dp <= 8) else 1,
            "replicas": pick([1, most // (tp * pp * dp)]),
            "max_num_seqs": pick([1, 48, 512]),
            "max_num_batched_tokens": pick([512, 2048, 16384]),
        }

    shared = {"precision_weights": weights, "precision_kv": pick(["bf16", "fp8"]), "draft_tokens": pick([0, 0, 3])}
    whole = nodes * 8
    if pick([False, True]):
        plan = {**shared, "disaggregated": True, "prefill": pool(whole // 2), "decode": pool(whole // 2)}
    else:
        plan = {**shared, **pool(whole)}
    lengths = pick(
        [
            {"isl": 1000, "osl": 200},
            {"isl": 3000, "osl": 500, "isl_cv": 1.0, "osl_cv": 0.5},
            {"histogram": [{"isl": 100, "osl": 900, "weight": 1}, {"isl": 5000, "osl": 20, "weight": 2}]},
        ]
    )
    workload = {"arrivals": {"process": "poisson", "rate_rps": 1e-4}, "lengths": lengths, "prefix_hit": pick([0, 0.3])}
    return plan, {"model": model, "nodes": nodes, "cluster": pick(["dgx-h100", "dgx-h200"]), "workload": workload}


def answered(engine: str, plan: dict[str, Any], changes: dict[str, Any]) -> tuple[Launch, Result] | None:
    """The script and the answer; None for a plan whose weights do not fit."""
    question = load_serve(Source("test", {**scenario(engine=engine), **changes, "plan": plan}), Path())
    result = predict(question)
    if result.plan is None:
        return None
    return ENGINES[engine](result, question), result


@needs_bash
@pytest.mark.parametrize("engine", NAMES)
def test_scripts_of_many_plans_are_the_plans(engine: str, tmp_path: Path) -> None:
    count = 0
    for seed in range(12):
        plan, changes = drawn(seed)
        found = answered(engine, plan, changes)
        if found is None:
            continue
        count += 1
        launch, result = found
        commands = agrees(engine, result, launch, tmp_path, changes["nodes"])
        lengths = changes["workload"]["lengths"]
        sizes = [(one["isl"], one["osl"]) for one in lengths.get("histogram", [lengths])]
        assert result.plan is not None
        architecture = load_architecture(changes["model"], Path())
        for one in commands:
            prompts_only = role_of(engine, one) == "prefill"
            length = {"vllm": "--max-model-len", "sglang": "--context-length", "trtllm": "--max_seq_len"}[engine]
            longest = max(prompt + (1 if prompts_only else answer) for prompt, answer in sizes)
            assert one.number(length) >= longest or "requests of up to" in "".join(launch.missing)
            hits = changes["workload"]["prefix_hit"] > 0
            if engine == "vllm":
                assert ("--enable-prefix-caching" in one.given) == hits != ("--no-enable-prefix-caching" in one.given)
                # an engine that cannot hold its longest request does not start
                each = kv_bytes_per_token(
                    architecture, CACHE_BYTES[result.plan["precision_kv"]], one.number("--tensor-parallel-size")
                ) / one.number("--pipeline-parallel-size")
                assert one.number(length) * float(each) <= one.number("--kv-cache-memory-bytes")
                # vLLM refuses more sequences than tokens of a step
                assert one.number("--max-num-seqs") <= one.number("--max-num-batched-tokens")
            elif engine == "sglang":
                assert ("--disable-radix-cache" in one.given) == (not hits)
                assert one.number(length) <= one.number("--max-total-tokens")
                assert 0 < float(one.given["--mem-fraction-static"]) < 1
            else:
                said = settings(one, tmp_path)
                assert said["kv_cache_config"]["enable_block_reuse"] == hits
                assert 0 < said["kv_cache_config"]["free_gpu_memory_fraction"] < 1
                # a prompt that is longer than a step is refused unless it may be cut
                assert said["enable_chunked_prefill"] or one.number("--max_num_tokens") >= one.number(length)
                assert said["enable_chunked_prefill"] == ("--enable_chunked_prefill" in one.given)
    assert count >= 6


# --- what stands where ------------------------------------------------------------------------------------------


@needs_bash
@pytest.mark.parametrize("engine", NAMES)
def test_replicas_have_accelerators_and_ports_of_their_own(engine: str, tmp_path: Path) -> None:
    launch, result = launched(engine, {"tp": 2, "replicas": 3, "max_num_seqs": 64, "max_num_batched_tokens": 2048})
    found = agrees(engine, result, launch, tmp_path)
    assert sorted(one.visible for one in found) == [[0, 1], [2, 3], [4, 5]]
    assert len({one.given["--port"] for one in found}) == 3
    assert all(one.given["--host"] == "0.0.0.0" for one in found)


@needs_bash
@pytest.mark.parametrize("engine", NAMES)
def test_pools_have_roles(engine: str, tmp_path: Path) -> None:
    pools = {"prefill": {"tp": 2, "max_num_batched_tokens": 4096}, "decode": {"tp": 4, "max_num_seqs": 32}}
    launch, result = launched(engine, {"disaggregated": True, **pools})
    found = agrees(engine, result, launch, tmp_path)
    assert {role_of(engine, one): len(one.visible) for one in found} == {"prefill": 2, "decode": 4}
    if engine == "trtllm":
        assert all(settings(one, tmp_path)["cache_transceiver_config"]["max_tokens_in_buffer"] >= 1000 for one in found)
        assert all(one.given["--disagg_cluster_uri"] == "http://router:9000" for one in found)


@needs_bash
def test_instances_across_nodes(tmp_path: Path) -> None:
    two = {"nodes": 2, "cluster": "dgx-h200", "model": "deepseek-v3"}
    wide = {"tp": 1, "dp": 16, "ep": 16, "precision_weights": "fp8_block"}
    launch, result = launched("vllm", wide, **two)
    head, follower = agrees("vllm", result, launch, tmp_path, 2)
    assert "--headless" not in head.given and "--headless" in follower.given
    assert (head.number("--data-parallel-size-local"), follower.number("--data-parallel-start-rank")) == (8, 8)
    assert head.given["--data-parallel-address"] == follower.given["--data-parallel-address"] == "host0"
    assert head.given["--data-parallel-rpc-port"] == follower.given["--data-parallel-rpc-port"]
    stages = {"tp": 8, "pp": 2, "precision_weights": "fp8_block"}
    launch, result = launched("vllm", stages, **two)
    head, follower = agrees("vllm", result, launch, tmp_path, 2)
    assert [one.given["--node-rank"] for one in (head, follower)] == ["0", "1"]
    assert head.given["--master-addr"] == "host0" and head.given["--nnodes"] == "2"
    launch, result = launched("sglang", wide, **two)
    head, follower = agrees("sglang", result, launch, tmp_path, 2)
    assert head.given["--dist-init-addr"] == follower.given["--dist-init-addr"] == "host0:20000"
    assert head.given["--moe-a2a-backend"] == "deepep"
    launch, result = launched("trtllm", wide, **two)
    (only,) = agrees("trtllm", result, launch, tmp_path, 2)
    assert only.launcher[:5] == ["mpirun", "-n", "16", "--host", "host0:8,host1:8"]
    # a rank of 16 accelerators, twice: processes of vLLM alone do not start it
    launch, result = launched(
        "vllm", {"tp": 8, "pp": 2, "dp": 2, "precision_weights": "fp8_block"}, **two | {"nodes": 4}
    )
    (only,) = agrees("vllm", result, launch, tmp_path, 4)
    assert only.given["--data-parallel-backend"] == "ray" and "needs a Ray cluster" in launch.text


@pytest.mark.parametrize(
    ("sizes", "nodes", "expected"),
    [
        ([(3, 1)] * 3, 1, [[(0, (0, 1, 2))], [(0, (3, 4, 5))], []]),
        ([(2, 2), (8, 8)], 2, [[(1, (0, 1))], [(0, tuple(range(8)))]]),
        # three stages of four: none of them lies across nodes
        ([(12, 4)], 4, [[(0, (0, 1, 2, 3)), (1, (0, 1, 2, 3)), (2, (0, 1, 2, 3))]]),
        ([(16, 16)], 2, [[(0, tuple(range(8))), (1, tuple(range(8)))]]),
        ([(16, 8)], 1, [[]]),
    ],
)
def test_places(sizes: list[tuple[int, int]], nodes: int, expected: list[Any]) -> None:
    assert [[(one.node, one.accelerators) for one in places] for places in placed(sizes, nodes, 8)] == expected


def test_instances_without_room_are_told() -> None:
    launch, _ = launched("vllm", {"tp": 8, "pp": 1, "replicas": 1})
    assert not any("replicas" in text for text in launch.missing)
    # five pipelines of three accelerators on two nodes of eight: the fifth would lie across them
    launch, _ = launched("vllm", {"tp": 1, "pp": 3, "replicas": 5}, nodes=2)
    assert any(re.search(r"\breplicas: 1 of 5 instances of 3", text) for text in launch.missing)


MIXED: dict[str, Any] = {
    "nodes": 1,
    "also": [{"cluster": "dgx-a100", "nodes": 1}],
    "workload": {"arrivals": {"process": "poisson", "rate_rps": 0.5}, "lengths": {"isl": 1000, "osl": 200}},
}


@needs_bash
@pytest.mark.parametrize("engine", NAMES)
def test_groups_stand_on_their_own_accelerators(engine: str, tmp_path: Path) -> None:
    def group(accelerator: str, phase: str, share: float, **rest: Any) -> dict[str, Any]:
        limits = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "precision_kv": "bf16"}
        return {"accelerator": accelerator, "phase": phase, "share": share, **limits, **rest}

    groups = [
        group("h100-80gb-sxm", "prefill", 1.0, tp=2, replicas=2, precision_weights="fp8"),
        group("a100-80gb-sxm", "decode", 0.5, tp=4),
        group("a100-80gb-sxm", "decode", 0.5, tp=1, replicas=3),
    ]
    launch, _ = launched(engine, {"disaggregated": True, "groups": groups}, **MIXED)
    found = started(launch.text, tmp_path, 2)
    for one in found:
        accepted(engine, one, tmp_path)
    standing = sorted((one.node, role_of(engine, one), one.visible) for one in found)
    assert standing == [
        (0, "prefill", [0, 1]),
        (0, "prefill", [2, 3]),
        (1, "decode", [0, 1, 2, 3]),
        (1, "decode", [4]),
        (1, "decode", [5]),
        (1, "decode", [6]),
    ]
    assert "(1 x dgx-h100, then 1 x dgx-a100)" in launch.text and "in their shares" in launch.text
    assert launch.text.count("\n#   group ") == 3 and "memory of an accelerator of group 3" in launch.text
    assert "$MODEL_FP8" in launch.text and "$MODEL_BF16" in launch.text


# --- what an engine refuses -------------------------------------------------------------------------------------


def test_no_request_is_longer_than_the_cache_or_the_model() -> None:
    long: dict[str, Any] = {
        "arrivals": {"process": "poisson", "rate_rps": 1e-5},
        "lengths": {"isl": 8000, "osl": 1000, "isl_cv": 1.0},
    }
    tight = {"tp": 1, "precision_weights": "int4_wo", "precision_kv": "bf16"}
    launch, result = launched("vllm", tight, model="llama-3.1-70b", workload=long)
    assert result.prediction is not None
    length = int(re.findall(r"--max-model-len (\d+)", launch.text)[0])
    assert length <= result.prediction["cache_tokens"]
    assert any(f"the cache of an instance holds {length}" in text for text in launch.missing)
    assert any("lengths without end" in text for text in launch.missing)
    # 131072 positions, and room for more
    long["lengths"] = {"isl": 50000, "osl": 1000, "isl_cv": 1.0}
    launch, _ = launched("vllm", {"tp": 8}, model="llama-3.1-70b", workload=long, cluster="dgx-h200")
    assert "--max-model-len 131072 " in launch.text
    assert any("the model has positions for 131072" in text for text in launch.missing)


def test_limits_that_an_engine_refuses_are_changed_and_told() -> None:
    launch, _ = launched("vllm", {"tp": 1, "replicas": 1, "max_num_seqs": 1024, "max_num_batched_tokens": 512})
    assert "--max-num-seqs 512 " in launch.text and any("max_num_seqs 1024" in text for text in launch.missing)
    launch, _ = launched("trtllm", {"tp": 1, "replicas": 1, "max_num_batched_tokens": 512})
    assert "--enable_chunked_prefill" in launch.text and any("are cut" in text for text in launch.missing)
    launch, _ = launched("trtllm", {"tp": 1, "replicas": 1, "max_num_batched_tokens": 2048})
    assert "--enable_chunked_prefill" not in launch.text


@pytest.mark.parametrize("engine", NAMES)
def test_weights_and_drafts(engine: str) -> None:
    plain, _ = launched(engine, {"tp": 1, "replicas": 1})
    assert "MODEL=${MODEL:-meta-llama/Llama-3.1-8B}" in plain.text
    four, _ = launched(engine, {"tp": 1, "replicas": 1, "precision_weights": "int4_wo"})
    assert "${MODEL:?" in four.text and "int4" in four.text
    alone, _ = launched(engine, {"tp": 1, "replicas": 1, "draft_tokens": 3})
    assert any("draft_tokens" in text for text in alone.missing)
    inside, _ = launched(
        engine, {"tp": 8, "draft_tokens": 1, "precision_weights": "fp8_block"}, model="deepseek-v3", cluster="dgx-h200"
    )
    method = {"vllm": "--spec-method mtp", "sglang": "--speculative-algorithm NEXTN", "trtllm": "decoding_type: MTP"}
    assert method[engine] in inside.text and "DRAFT_MODEL" not in inside.text


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", NAMES)
def test_the_prediction_stands_on_top(engine: str) -> None:
    launch, result = launched(engine, {"tp": 1, "replicas": 2})
    head = launch.text.split("set -eu")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for part in ("names as of", "TTFT: mean", "TPOT: mean", "p99", " to ", "memory of an accelerator [GiB]: weights"):
        assert part in head
    assert KNOWN[engine]["release"] in head and "within the objectives" in head
    assert result.plan is not None
    for name, value in result.plan.items():
        assert re.search(rf"# plan: .*\b{name} {str(value).replace('False', 'no')}\b", head)


@needs_bash
@pytest.mark.parametrize("engine", NAMES)
def test_nothing_of_a_scenario_is_run(engine: str, tmp_path: Path) -> None:
    evil = f"a\ntouch {tmp_path}/broken; $(touch {tmp_path}/broken) `touch {tmp_path}/broken` '\" \u2028 \u0085 x"
    model = {"name": evil, "hidden": 512, "layers": 4, "heads": 8, "ffn": 2048, "vocab": 1000}
    cluster = description(resolve_cluster("dgx-h100", Path(), 2))
    cluster["name"] = cluster["node"]["name"] = evil
    launch, result = launched(engine, {"tp": 2, "replicas": 1}, model=model, cluster=cluster)
    agrees(engine, result, launch, tmp_path, 2)
    assert subprocess.run(["bash", "-n"], input=launch.text, text=True, check=False).returncode == 0
    assert not (tmp_path / "broken").exists() and "${MODEL:?" in launch.text


@needs_bash
def test_a_node_must_know_its_place(tmp_path: Path) -> None:
    launch, _ = launched("vllm", {"tp": 8, "replicas": 2}, nodes=2)
    done = subprocess.run(
        ["bash", "-c", launch.text], env={"PATH": os.environ["PATH"]}, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode != 0 and b"HOSTS" in done.stderr


def test_an_answer_without_a_plan_cannot_be_launched() -> None:
    question = load_serve(Source("test", scenario()), Path())
    nothing = Result(kind="serve", status="infeasible", objective=Objective("ttft_mean_s", None, "s", "min"))
    with pytest.raises(ValueError, match="only a plan of serving"):
        ENGINES["vllm"](nothing, question)


# --- the command --------------------------------------------------------------------------------------------------


def run(*given: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in given])


def test_emit_prints_the_script_alone_and_tells_what_it_lacks(tmp_path: Path) -> None:
    example = EXAMPLES / "serve-llama-70b-8-h100.yaml"
    done = run("predict", "serve", example, "--emit", "vllm")
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.startswith("#!/usr/bin/env bash\n") and done.stdout.endswith("\nwait\n")
    path = tmp_path / "launch.sh"
    assert run("predict", "serve", example, "--emit", "vllm", "-o", path).stdout == ""
    assert path.read_text() == done.stdout
    other = run("predict", "serve", example, "--emit", "sglang")
    assert other.exit_code == 0 and "--set engine=sglang" in other.stdout
    assert "--emit sglang: not expressible: engine vllm" in other.stderr
    wrong = run("plan", "serve", tmp_path / "nowhere.yaml", "--emit", "sglan")
    assert wrong.exit_code == 2 and 'did you mean "sglang"' in wrong.stderr and wrong.stdout == ""


def test_an_infeasible_plan_launches_nothing() -> None:
    example = EXAMPLES / "serve-llama-70b-8-h100.yaml"
    done = run("predict", "serve", example, "--set", "plan={tp: 1}", "--emit", "vllm")
    assert done.exit_code == 0 and "infeasible" in done.stdout
    assert done.stderr == "--emit vllm: nothing to launch, the answer is infeasible\n"


def test_options_that_every_answer_takes(tmp_path: Path) -> None:
    example = EXAMPLES / "serve-llama-70b-8-h100.yaml"
    small = ("--set", "search={tp: [8], disaggregated: [false], max_num_seqs: [256], max_num_batched_tokens: [8192]}")
    rest = ("--top", 1, "--time-limit", 30, "--gap", 0.1, "--debug")
    done = run("plan", "serve", example, *small, *rest, "--plot", tmp_path / "plan.svg", "-o", tmp_path / "plan.json")
    assert done.exit_code == 0 and done.stdout == "", done.stderr
    drawn_text = (tmp_path / "plan.svg").read_text()
    for part in ("llama-3.1-70b on 1 x dgx-h100, vllm", "limit", "today", "end to end, mean [s]"):
        assert part in drawn_text
    # a plan JSON is a scenario too, and launches the same
    again = run("predict", "serve", tmp_path / "plan.json", "--emit", "vllm")
    assert again.exit_code == 0 and "--tensor-parallel-size 8 " in again.stdout
    assert run("plan", "serve", example, "--plot", tmp_path / "plan.txt").exit_code == 2
    none = run("predict", "serve", example, "--set", "plan={tp: 1}", "--plot", tmp_path / "none.svg")
    assert none.exit_code == 0 and "nothing to draw" in none.stderr and not (tmp_path / "none.svg").exists()


def test_groups_are_drawn(tmp_path: Path) -> None:
    example = EXAMPLES / "serve-70b-h100-and-a100.yaml"
    answer = tmp_path / "mixed.json"
    done = run("plan", "serve", example, "--plot", tmp_path / "mixed.svg", "--top", 2, "-o", answer)
    assert done.exit_code == 0 and "a100-80gb-sxm, decode: " in (tmp_path / "mixed.svg").read_text(), done.stderr
    assert len(json.loads(answer.read_text())["alternatives"]) == 2
    assert run("predict", "serve", answer, "--emit", "vllm").exit_code == 0


@pytest.mark.parametrize("arrivals", [{"concurrency": 16}, "offline"])
def test_closed_loops_are_drawn_and_launched(arrivals: Any, tmp_path: Path) -> None:
    changes = {"workload": {"arrivals": arrivals, "lengths": {"isl": 1000, "osl": 200}}}
    launch, _ = launched("vllm", {"tp": 1, "replicas": 1}, **changes)
    assert "TPOT: mean" in launch.text
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario(**changes, plan={"tp": 1, "replicas": 1})))
    done = run("predict", "serve", path, "--plot", tmp_path / "loop.svg")
    assert done.exit_code == 0 and (tmp_path / "loop.svg").exists(), done.stderr


def test_experts_in_int8_are_refused() -> None:
    example = EXAMPLES / "serve-llama-70b-8-h100.yaml"
    done = run("predict", "serve", example, "--set", "model=mixtral-8x7b", "--set", "plan.precision_weights=int8")
    assert done.exit_code == 2 and "plan.precision_weights" in done.stderr and "fp8 and int8_wo" in done.stderr
