"""Launch scripts: read back, they are the plan; what they cannot say, they say."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from cli.emit import SYSTEMS
from cli.emit.megatron_lm import layout
from cli.emit.run import run_of, shown
from hardware.yaml_source import Source
from perfmodel.architecture import architecture_names, load_architecture
from perfmodel.plan import FIELDS, plan_to_dict
from perfmodel.provenance import provenance
from solvers.result import Objective, Result
from solvers.scenario import load_train
from solvers.train import explained

EXAMPLES = Path(__file__).parent.parent / "examples"
DEEPSEEK = {"tp": 4, "pp": 8, "ep": 16, "vpp": 8, "zero_stage": 1, "seq_parallel": True, "recompute": "selective"}
MIXTRAL = {"pp": 2, "ep": 8, "vpp": 16, "zero_stage": 1}
LLAMA = {"tp": 2, "pp": 4, "cp": 4, "vpp": 20, "zero_stage": 1, "seq_parallel": True}


def answer(scenario: dict[str, Any], **plan: Any) -> Result:
    """An answer about a plan, whether or not its memory suffices."""
    question = load_train(Source("test", {**scenario, "plan": plan}), EXAMPLES)
    assert question.plan is not None
    described, breakdown = explained(question, question.plan)
    return Result(
        kind="train",
        status="feasible",
        objective=Objective("step_time_s", described["step_time_s"], "s", "min"),
        plan=plan_to_dict(question.plan),
        prediction=described,
        breakdown=breakdown,
        scenario=question.resolved,
        provenance=provenance(question.job),
    )


def example(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    data["workload"]["tokens"] = float(data["workload"]["tokens"])
    return data


def small(nodes: int = 2, **changes: Any) -> dict[str, Any]:
    workload = {"seq_len": 4096, "global_batch": 64, "precision": "bf16"}
    return {
        "kind": "train",
        "cluster": "dgx-h100",
        "nodes": nodes,
        "model": "llama-3.1-8b",
        "workload": workload,
        **changes,
    }


def missing(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("# not expressible: "))


def words(text: str) -> list[str]:
    """What a shell would run, its variables left alone."""
    command = text.split("\ntorchrun ")[-1] if "\ntorchrun " in text else text.split(" torchrun ")[-1]
    return shlex.split(command.replace("\\\n", " "))


def read(text: str) -> dict[str, Any]:
    """Options and their values: True alone, a list if there are several."""
    found: dict[str, Any] = {}
    option = ""
    for word in words(text):
        if word.startswith("--"):
            option = word
            assert option not in found, option
            found[option] = True
        elif option and not word.startswith(("$", "activation_checkpoint")):
            old = found[option]
            found[option] = word if old is True else [*(old if isinstance(old, list) else [old]), word]
    for key, value in found.items():
        if isinstance(value, str) and re.fullmatch(r"\d+", value):
            found[key] = int(value)
    return found


# --- Megatron-LM ----------------------------------------------------------------------------------------------


def chunks(text: str) -> list[str]:
    """Spell a pipeline layout out, as Megatron-LM documents it."""
    text = text.replace(",", "")
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        text = re.sub(pattern, lambda found: found[1] * int(found[2]), text)
    return text.split("|")


def megatron_layers(found: dict[str, Any]) -> list[int]:
    """Layers of every stage."""
    depth, pp = found["--num-layers"], found["--pipeline-model-parallel-size"]
    if "--pipeline-model-parallel-layout" in found:
        counts = [chunk.count("t") for chunk in chunks(found["--pipeline-model-parallel-layout"])]
        return [sum(counts[stage::pp]) for stage in range(pp)]
    if "--decoder-first-pipeline-num-layers" in found:
        ends = [found[f"--decoder-{end}-pipeline-num-layers"] for end in ("first", "last")]
        inner, rest = divmod(depth - sum(ends), max(pp - 2, 1))
        assert rest == 0
        return [ends[0], *[inner] * (pp - 2), ends[1]]
    assert depth % pp == 0
    return [depth // pp] * pp


def megatron_plan(text: str) -> dict[str, Any]:
    """The plan that the arguments mean, after the help texts of Megatron-LM's arguments.py."""
    found = read(text)
    tp, pp, cp, ep = (
        found[f"--{name}-size"]
        for name in ("tensor-model-parallel", "pipeline-model-parallel", "context-parallel", "expert-model-parallel")
    )
    gpus = found["--nnodes"] * found["--nproc-per-node"]
    assert gpus % (tp * pp * cp) == 0
    vpp = found.get("--num-virtual-stages-per-pipeline-rank", 1)
    if "--pipeline-model-parallel-layout" in found:
        vpp = len(chunks(found["--pipeline-model-parallel-layout"])) // pp
    strategy = {"optim_grads": 2, "optim_grads_params": 3}.get(found.get("--data-parallel-sharding-strategy", ""))
    return {
        "tp": tp,
        "pp": pp,
        "dp": gpus // (tp * pp * cp),
        "cp": cp,
        "ep": ep,
        "vpp": vpp,
        "micro_batch": found["--micro-batch-size"],
        "zero_stage": strategy if "--use-megatron-fsdp" in found else int("--use-distributed-optimizer" in found),
        "seq_parallel": "--sequence-parallel" in found,
        "recompute": found.get("--recompute-granularity", "none"),
        "offload": "optimizer" if "--optimizer-cpu-offload" in found else "none",
        "overlap_dp": "--overlap-grad-reduce" in found,
        "overlap_tp": "--tp-comm-overlap" in found,
        "rank_order": "tp-cp-pp-dp" if "--use-tp-pp-dp-mapping" in found else "tp-cp-dp-pp",
        "cp_style": context_style(found),
    }


def context_style(found: dict[str, Any]) -> str:
    """Both levels of a hierarchy are larger than one and make the group."""
    sizes = [int(size) for size in found.get("--hierarchical-context-parallel-sizes", [])]
    if sizes:
        assert min(sizes) > 1 and sizes[0] * sizes[1] == found["--context-parallel-size"]
    assert bool(sizes) == (found["--cp-comm-type"] == "a2a+p2p")
    styles = {"p2p": "ring", "a2a": "ulysses", "all_gather": "all-gather", "a2a+p2p": "hybrid"}
    return styles[found["--cp-comm-type"]]


PLANS: list[dict[str, Any]] = [
    {},
    {"tp": 8, "seq_parallel": True, "overlap_tp": True, "recompute": "full"},
    {"tp": 2, "pp": 2, "cp": 2, "cp_style": "ulysses", "vpp": 4, "zero_stage": 1, "micro_batch": 2},
    {"zero_stage": 2, "overlap_dp": False},
    {"tp": 2, "cp": 8, "cp_style": "hybrid"},
    {"cp": 4, "cp_style": "all-gather"},
    {"cp": 2, "zero_stage": 3, "recompute": "selective"},
    {"zero_stage": 1, "offload": "optimizer"},
    {"offload": "optimizer"},
    {"zero_stage": 3, "offload": "optimizer"},
    {"pp": 4, "zero_stage": 2},
    {"tp": 2, "rank_order": "dp-tp-cp-pp"},
    {"tp": 2, "pp": 2, "rank_order": "tp-cp-pp-dp"},
    {"tp": 4, "pp": 4, "offload": "optimizer"},
]


def agrees(plan: dict[str, Any], got: dict[str, Any], said: str, other: str = "") -> None:
    """Every field is read back as it was, or is said to be inexpressible."""
    assert set(got) == set(plan) == set(FIELDS)
    for name, value in plan.items():
        if got[name] != value:
            assert re.search(rf"\b{name}\b", said) or name in other, (name, value, got[name])


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan.values())) or "plain")
def test_megatron_arguments_are_the_plan(plan: dict[str, Any]) -> None:
    result = answer(small(), **plan)
    assert result.plan is not None
    text = SYSTEMS["megatron-lm"](result)
    # with one rank to share among, sharing the states out changes nothing
    alone = "zero_stage" if result.plan["dp"] * result.plan["cp"] == 1 else ""
    agrees(result.plan, megatron_plan(text), missing(text), alone)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("deepseek-v3-2048-h100", DEEPSEEK),
        ("mixtral-8x7b-64-h100", MIXTRAL),
        ("llama-3.1-70b-512-h100", LLAMA),
        ("gpt-3-175b-1024-a100", {"tp": 4, "pp": 8, "vpp": 12, "micro_batch": 2, "seq_parallel": True}),
    ],
)
def test_megatron_says_the_whole_plan_of_the_examples(name: str, plan: dict[str, Any]) -> None:
    result = answer(example(name), **plan)
    text = SYSTEMS["megatron-lm"](result)
    found = read(text)
    assert megatron_plan(text) == result.plan
    assert not re.search(rf"\b({'|'.join(FIELDS)})\b", missing(text))
    work = result.scenario["workload"]
    assert (found["--seq-length"], found["--global-batch-size"]) == (work["seq_len"], work["global_batch"])
    trained = found["--train-iters"] * work["seq_len"] * work["global_batch"]
    assert 0 <= trained - work["tokens"] < work["seq_len"] * work["global_batch"]
    assert megatron_layers(found) == run_of(result).stage_layers
    assert sum(megatron_layers(found)) == load_architecture(result.scenario["model"], Path()).depth


def test_deepseek_is_said_in_full() -> None:
    found = read(SYSTEMS["megatron-lm"](answer(example("deepseek-v3-2048-h100"), **DEEPSEEK)))
    # the sizes of DeepSeek-V3's technical report, arXiv 2412.19437, section 4.2
    expected = {
        "--num-layers": 61,
        "--hidden-size": 7168,
        "--num-attention-heads": 128,
        "--kv-lora-rank": 512,
        "--q-lora-rank": 1536,
        "--qk-head-dim": 128,
        "--qk-pos-emb-head-dim": 64,
        "--v-head-dim": 128,
        "--num-experts": 256,
        "--moe-router-topk": 8,
        "--moe-ffn-hidden-size": 2048,
        "--moe-shared-expert-intermediate-size": 2048,
        "--moe-layer-freq": "([0]*3+[1]*58)",
        "--mtp-num-layers": 1,
        "--expert-tensor-parallel-size": 1,
        "--fp8-format": "hybrid",
        "--position-embedding-type": "rope",
        "--normalization": "RMSNorm",
    }
    assert {key: found.get(key) for key in expected} == expected
    for switch in ("--swiglu", "--multi-latent-attention", "--moe-router-enable-expert-bias", "--bf16"):
        assert found[switch] is True
    stages = chunks(found["--pipeline-model-parallel-layout"])
    assert stages[0].startswith("E") and stages[-1].endswith("mL") and len(stages) == 64


@pytest.mark.parametrize(("pp", "vpp"), [(2, 1), (3, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8), (16, 2)])
def test_uneven_layers_add_up(pp: int, vpp: int) -> None:
    data = small(nodes=2 * pp, model="deepseek-v3-without-mtp")
    data["workload"]["global_batch"] = 16 * 48 * pp
    result = answer(data, pp=pp, vpp=vpp, zero_stage=1)
    run = run_of(result)
    assert sum(run.stage_layers) == sum(run.chunk_layers) == 61
    assert len(run.chunk_layers) == pp * vpp
    assert [sum(run.chunk_layers[stage::pp]) for stage in range(pp)] == run.stage_layers
    found = read(SYSTEMS["megatron-lm"](result))
    assert megatron_layers(found) == run.stage_layers


@pytest.mark.parametrize("counts", [[3, 4, 4, 2], [0, 1, 1, 1, 0, 1], [0, 0], [1, 2], [5, 0, 0, 7]])
@pytest.mark.parametrize("modules", [0, 1, 2])
def test_layout_spells_every_chunk(counts: list[int], modules: int) -> None:
    spelt = chunks(layout(counts, modules))
    assert [chunk.count("t") for chunk in spelt] == counts
    assert "".join(spelt) == "E" + "t" * sum(counts) + "m" * modules + "L"
    assert spelt[0][0] == "E" and spelt[-1].endswith("m" * modules + "L")


def counted(found: dict[str, Any]) -> int:
    """Parameters of the model that Megatron-LM's arguments describe."""
    hidden, depth, heads = (found[f"--{name}"] for name in ("hidden-size", "num-layers", "num-attention-heads"))
    every, qkv = "--disable-bias-linear" not in found, "--add-qkv-bias" in found
    norm = hidden * (2 if found["--normalization"] == "LayerNorm" else 1)
    if "--multi-latent-attention" in found:
        query, shared, rope = found["--qk-head-dim"], found["--kv-lora-rank"], found["--qk-pos-emb-head-dim"]
        value, rank = found["--v-head-dim"], found.get("--q-lora-rank", 0)
        attention = (
            (hidden * rank + rank * heads * (query + rope) + rank if rank else hidden * heads * (query + rope))
            + hidden * (shared + rope)
            + shared
            + shared * heads * (query + value)
            + heads * value * hidden
        )
    else:
        width, groups = found["--kv-channels"], found.get("--num-query-groups", heads)
        inner = (heads + 2 * groups) * width
        attention = hidden * inner + heads * width * hidden + (inner if every or qkv else 0) + (hidden if every else 0)
        attention += 2 * width * norm // hidden if "--qk-layernorm" in found else 0
    attention += heads if found.get("--softmax-type") == "learnable" else 0
    wide = 2 if "--swiglu" in found else 1

    def mlp(width: int, bias: bool = every) -> int:
        return hidden * width * (wide + 1) + (width * wide + hidden if bias else 0)

    layers = depth * (attention + 2 * norm)
    frequency = found.get("--moe-layer-freq")
    pattern = (
        [0] * depth
        if frequency is None
        else [int(i % frequency == 0) for i in range(depth)]
        if isinstance(frequency, int)
        else eval(frequency)  # a list of zeros and ones, as Megatron-LM reads it
    )
    assert len(pattern) == depth
    for mixture in pattern:
        if not mixture:
            layers += mlp(found["--ffn-hidden-size"])
            continue
        experts = found["--num-experts"]
        layers += hidden * experts + experts * mlp(found["--moe-ffn-hidden-size"])
        layers += experts if every or "--moe-router-enable-expert-bias" in found else 0
        if "--moe-shared-expert-intermediate-size" in found:
            layers += mlp(found["--moe-shared-expert-intermediate-size"])
    learned = found["--max-position-embeddings"] if found["--position-embedding-type"] == "learned_absolute" else 0
    tables = 2 if "--untie-embeddings-and-output-weights" in found else 1
    return layers + (found["--vocab-size"] * tables + learned) * hidden + norm


TRAINED = sorted(set(architecture_names()) - {"qwen3.5-397b-a17b"})  # linear attention is modelled in serving alone


@pytest.mark.parametrize("name", TRAINED)
def test_megatron_arguments_describe_the_model(name: str) -> None:
    data = small(model=name)
    data["workload"]["seq_len"] = 1024
    text = SYSTEMS["megatron-lm"](answer(data))
    if "not expressible: model" not in text:
        assert counted(read(text)) == load_architecture(name, Path()).parameters


def test_most_models_are_expressible() -> None:
    said = {}
    for name in TRAINED:
        data = small(model=name)
        data["workload"]["seq_len"] = 1024
        said[name] = "not expressible: model" in missing(SYSTEMS["megatron-lm"](answer(data)))
    refused = {name for name, is_said in said.items() if is_said}
    # ALiBi; a norm after the embedding; norms without bias; four norms a layer; one; a norm over all heads
    four_norms = {name for name in TRAINED if name.startswith(("gemma-2-", "gemma-3-"))}
    others = {"bloom-176b", "mpt-7b", "mpt-30b", "gptj-6b", "minimax-m2.5", "olmo-2-7b"}
    assert refused == four_norms | others


def test_windows_are_as_long_as_the_model_says() -> None:
    found = read(SYSTEMS["megatron-lm"](answer(small(model="gpt-oss-20b"))))
    # gpt-oss: every other layer sees 128 tokens, itself and 127 before; Megatron-LM counts those before and after
    assert found["--window-size"] == "127,0" and found["--window-attn-skip-freq"] == 2
    assert found["--softmax-type"] == "learnable"


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
def test_precisions(precision: str) -> None:
    data = small()
    data["workload"]["precision"] = precision
    found = read(SYSTEMS["megatron-lm"](answer(data)))
    assert ("--bf16" in found) == (precision != "fp16") and ("--fp16" in found) == (precision == "fp16")
    assert ("--fp8-format" in found) == (precision == "fp8")


def test_defaults_that_would_change_the_plan_are_written() -> None:
    found = read(SYSTEMS["megatron-lm"](answer(small())))
    # Megatron-LM's own defaults are 0.1, learned positions and no grouping of heads
    assert found["--attention-dropout"] == found["--hidden-dropout"] == "0.0"
    assert found["--position-embedding-type"] == "rope" and found["--num-query-groups"] == 8


def test_two_levels_of_context_parallelism() -> None:
    # 8 heads of keys over tp 2: four of each rank; 4 of the 8 ranks are neighbours in a node of eight
    result = answer(small(), tp=2, cp=8, cp_style="hybrid")
    assert result.prediction is not None and result.prediction["cp_exchange_size"] == 4
    found = read(SYSTEMS["megatron-lm"](result))
    assert found["--hierarchical-context-parallel-sizes"] == ["4", "2"]
    # with all of them in the node there is one level, and no head of keys for each of sixteen
    one = read(SYSTEMS["megatron-lm"](answer(small(), cp=8, cp_style="hybrid")))
    assert one["--cp-comm-type"] == "a2a" and "--hierarchical-context-parallel-sizes" not in one
    assert "heads of keys" in missing(SYSTEMS["megatron-lm"](answer(small(), cp=16, cp_style="ulysses")))


def test_a_queue_for_overlap_before_blackwell() -> None:
    variable = "CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun"
    assert variable in SYSTEMS["megatron-lm"](answer(small(), tp=2))
    assert variable not in SYSTEMS["megatron-lm"](answer(small()))
    assert variable not in SYSTEMS["megatron-lm"](answer(small(), cp=2, zero_stage=3))
    assert variable not in SYSTEMS["megatron-lm"](answer(small(cluster="dgx-b200"), tp=2))


# --- torchtitan -----------------------------------------------------------------------------------------------


def torchtitan_plan(text: str) -> dict[str, Any]:
    """The plan that the options mean, after the texts of torchtitan's configs.py."""
    found = read(text)
    of = {name.removeprefix("--parallelism."): value for name, value in found.items()}
    degrees = [of[f"{name}_degree"] for name in ("tensor_parallel", "pipeline_parallel", "context_parallel")]
    replicas, shards = (of[f"data_parallel_{name}_degree"] for name in ("replicate", "shard"))
    tp, pp, cp = degrees
    assert replicas * shards * tp * pp * cp == found["--nnodes"] * found["--nproc-per-node"]
    per_stage = of.get("pipeline_parallel_layers_per_stage", 0)
    vpp = 1
    if per_stage and of["pipeline_parallel_schedule"] == "Interleaved1F1B":
        lacking = [of[f"pipeline_parallel_{end}_stage_less_layers"] for end in ("first", "last")]
        # its depth is that of Llama 3.1 8B, which these tests plan for
        vpp, rest = divmod(32 + sum(lacking), per_stage * pp)
        assert rest == 0
    local = found["--training.local_batch_size"]
    assert found["--training.global_batch_size"] % (local * replicas * shards) == 0
    sharded = 3 if of["fsdp_reshard_after_forward"] == "always" else 2
    kind = next(word for word in words(text) if word.startswith("activation_checkpoint:"))
    return {
        "tp": tp,
        "pp": pp,
        "dp": replicas * shards,
        "cp": cp,
        "ep": of["expert_parallel_degree"],
        "vpp": vpp,
        "micro_batch": of["pipeline_parallel_microbatch_size"] if pp > 1 else local,
        "zero_stage": 0 if shards * cp == 1 else sharded,
        "seq_parallel": tp > 1 and "enable_sequence_parallel" in of,
        "recompute": kind.removeprefix("activation_checkpoint:"),
        "offload": "all" if "--training.enable_cpu_offload" in found else "none",
        "overlap_dp": True,
        "overlap_tp": "--compile.enable_async_tensor_parallel" in found,
        "rank_order": "tp-cp-dp-pp",
        "cp_style": "all-gather" if cp > 1 else "ring",
    }


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan.values())) or "plain")
def test_torchtitan_options_are_the_plan(plan: dict[str, Any]) -> None:
    result = answer(small(framework="torchtitan"), **plan)
    assert result.plan is not None
    text = SYSTEMS["torchtitan"](result)
    agrees(result.plan, torchtitan_plan(text), missing(text))
    assert "--module llama3 --config llama3_8b " in text
    # what is given to the script stands before the subcommand
    assert words(text)[-2] == "$@"


@pytest.mark.parametrize(
    ("model", "precision", "config", "said"),
    [
        ("llama-3.1-70b", "bf16", "llama3_70b", False),
        ("llama-3.1-405b", "fp8", "llama3_405b", False),
        ("llama-3.1-405b", "bf16", "llama3_405b", True),
        ("llama-3.1-8b", "fp8", "llama3_8b", True),
        ("deepseek-v3", "fp8", "deepseek_v3_671b_float8", True),
        ("mixtral-8x7b", "bf16", "$CONFIG", True),
    ],
)
def test_torchtitan_names_its_configuration(model: str, precision: str, config: str, said: bool) -> None:
    data = small(model=model, framework="torchtitan")
    data["workload"]["precision"] = precision
    text = SYSTEMS["torchtitan"](answer(data, zero_stage=3))
    assert words(text)[words(text).index("--config") + 1] == config
    assert bool(re.search(r"(model|precision)\b", missing(text))) == said


# --- DeepSpeed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan.values())) or "plain")
def test_deepspeed_settings_are_the_plan(plan: dict[str, Any]) -> None:
    result = answer(small(framework="deepspeed"), **plan)
    assert result.plan is not None
    text = SYSTEMS["deepspeed"](result)
    settings = json.loads(text.split("<<'JSON'\n")[1].split("\nJSON\n")[0])
    found, said, chosen = read(text), missing(text), result.plan
    zero = settings["zero_optimization"]
    assert zero["stage"] == chosen["zero_stage"] and zero["overlap_comm"] == chosen["overlap_dp"]
    device = zero.get("offload_optimizer", {}).get("device", "none")
    assert (device == "cpu") == (chosen["offload"] == "optimizer") or "offload" in said
    tp = settings.get("tensor_parallel", {}).get("autotp_size", 1)
    cp = settings.get("sequence_parallel_size", 1)
    assert (tp, cp) == (chosen["tp"], chosen["cp"])
    gpus = found["--nnodes"] * found["--nproc-per-node"]
    dp = gpus // (tp * cp * chosen["pp"])
    micro, steps = settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]
    assert settings["train_batch_size"] == micro * steps * dp == 64 and micro == chosen["micro_batch"]
    plain = {"pp": 1, "vpp": 1, "ep": 1, "seq_parallel": False, "recompute": "none", "overlap_tp": False}
    for name, value in {**plain, "rank_order": "tp-cp-dp-pp"}.items():
        assert chosen[name] == value or re.search(rf"\b{name}\b", said), name
    assert chosen["cp"] == 1 or chosen["cp_style"] == "ulysses" or "cp_style" in said


# --- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_scripts_are_safe_and_complete(system: str, tmp_path: Path) -> None:
    evil = f"a\ntouch {tmp_path}/broken; $(touch {tmp_path}/broken) '"
    model = {"name": evil, "hidden": 512, "layers": 4, "heads": 8, "ffn": 2048, "vocab": 1000}
    result = answer(small(model=model), tp=2)
    text = SYSTEMS[system](result)
    assert text.startswith("#!/usr/bin/env bash\n# ") and text.endswith("\n")
    assert '"$MASTER_ADDR"' in text and '"$NODE_RANK"' in text and '"$@"' in text
    assert "names as of " in text and "perfmodel " in text
    assert result.plan is not None
    for name, value in result.plan.items():
        assert re.search(rf"# plan: .*\b{name} {shown(value)}\b", text)
    if shutil.which("bash"):
        fake = tmp_path / "torchrun"
        fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
        fake.chmod(0o755)
        done = subprocess.run(
            ["bash", "-c", text, "script", "--given", "a b"],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NODE_RANK": "0", "MASTER_ADDR": "host", "TRAIN": "train.py"},
            capture_output=True,
            text=True,
            check=True,
        )
        ran = done.stdout.splitlines()
        values = {"$NODE_RANK": "0", "$MASTER_ADDR": "host", "${MASTER_PORT:-29500}": "29500", "$TRAIN": "train.py"}
        values |= {"$MODULE": "", "$CONFIG": ""}
        expected = [values.get(word, word) for word in words(text)]
        at = expected.index("$@")
        assert ran == [*expected[:at], "--given", "a b", *expected[at + 1 :]]
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize("system", SYSTEMS)
def test_another_framework_is_told(system: str) -> None:
    result = answer(small(framework="composer-fsdp"))
    assert "framework composer-fsdp" in missing(SYSTEMS[system](result))


def test_an_answer_without_a_plan_cannot_be_launched() -> None:
    nothing = Result(kind="train", status="infeasible", objective=Objective("step_time_s", None, "s", "min"))
    with pytest.raises(ValueError, match="only a training plan"):
        run_of(nothing)


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(small(search={"micro_batch": [1], "recompute": ["selective"], "cp": [1]})))
    return path


def run(*given: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in given])


@pytest.mark.parametrize("system", SYSTEMS)
def test_emit_prints_the_script_alone(scenario: Path, tmp_path: Path, system: str) -> None:
    done = run("plan", "train", scenario, "--emit", system)
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.startswith("#!") and words(done.stdout)
    path = tmp_path / "launch.sh"
    again = run("plan", "train", scenario, "--emit", system, "-o", path)
    assert again.exit_code == 0 and again.stdout == ""
    without_time = re.compile("predicts.*")
    assert without_time.sub("", path.read_text()) == without_time.sub("", done.stdout)
    one = run("predict", "train", scenario, "--set", "plan={tp: 2}", "--emit", system)
    assert one.exit_code == 0 and "tp 2," in one.stdout


def test_an_unknown_system_is_told_before_the_search(tmp_path: Path) -> None:
    done = run("plan", "train", tmp_path / "nowhere.yaml", "--emit", "megatron")
    assert done.exit_code == 2 and done.stdout == ""
    assert f'allowed: {", ".join(SYSTEMS)} (did you mean "megatron-lm"?)' in done.stderr


def test_an_infeasible_plan_launches_nothing(scenario: Path) -> None:
    done = run("plan", "train", scenario, "--set", "model=llama-3.1-405b", "--emit", "megatron-lm")
    assert done.exit_code == 0
    assert done.stdout.startswith("train: infeasible")
    assert done.stderr == "--emit megatron-lm: nothing to launch, the answer is infeasible\n"
