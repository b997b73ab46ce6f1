"""Arguments of ``pretrain_gpt.py`` of Megatron-LM under torchrun."""

from collections.abc import Sequence

from cli.emit.megatron_model import model_options
from cli.emit.run import Run, options, run_of, script, torchrun
from solvers.result import Result

RELEASE = "Megatron-LM core_v0.15 (megatron/training/arguments.py)"

_FRAMEWORKS = ("megatron-lm", "megatron-lm-2021", "megatron-bridge")
"""Descriptions of a framework whose bytes, kernels and overlaps are those of Megatron-LM."""

_PRECISIONS: dict[str, dict[str, object]] = {
    "fp32": {},
    "bf16": {"--bf16": True},
    "fp16": {"--fp16": True},
    # delayed scaling: its casts are the one read and two writes that the prediction counts
    "fp8": {"--bf16": True, "--fp8-format": "hybrid", "--fp8-recipe": "delayed"},
    "mxfp8": {"--bf16": True, "--fp8-format": "e4m3", "--fp8-recipe": "mxfp8"},
    "nvfp4": {"--bf16": True, "--fp4-format": "e2m1", "--fp4-recipe": "nvfp4"},
}


def megatron_lm(result: Result) -> str:
    """Write the launch script of a training plan for Megatron-LM.

    Parameters
    ----------
    result : Result
        An answer with a plan.

    Returns
    -------
    str
        A shell script; data, tokenizer, learning rate and checkpoints are given to it as arguments.
    """
    run = run_of(result)
    missing: list[str] = []
    groups = [
        _parallel(run, missing),
        _batch(run),
        _data_parallel(run, missing),
        _overlap(run),
        _recompute(run, missing),
        _numbers(run, missing),
        model_options(run, missing),
    ]
    if run.framework.name not in _FRAMEWORKS:
        missing.append(
            f"framework {run.framework.name}: its bytes per parameter and host times made the prediction; "
            "--set framework=megatron-lm predicts this launch"
        )
    given = {word for group in groups for word in group if word.startswith("--")}
    off = [option for option in _SWITCHES if option not in given]
    comments = [
        *run.summary,
        f"names as of {RELEASE}",
        "off because left out: " + (" ".join(off) or "nothing"),
        "rank order from neighbours outwards: tp, cp, dp, pp",
        "only the model's sizes are known here: take --rotary-base, --norm-epsilon and, if it is not SiLU, the "
        "activation from its config.json",
        "give the rest to this script, for a trial: "
        "--mock-data --tokenizer-type NullTokenizer --lr 1e-4 --train-iters 20",
    ]
    return script(
        comments,
        missing,
        [*torchrun(run, "pretrain_gpt.py"), *groups, ("$@",)],
        environment=_environment(run, given),
    )


_SWITCHES = (
    "--sequence-parallel",
    "--use-distributed-optimizer",
    "--use-megatron-fsdp",
    "--overlap-grad-reduce",
    "--overlap-param-gather",
    "--tp-comm-overlap",
    "--recompute-granularity",
    "--optimizer-cpu-offload",
    "--use-tp-pp-dp-mapping",
)
"""Switches that a plan decides about; left out, each of them is off."""


def _environment(run: Run, given: set[str]) -> dict[str, str]:
    """Before Blackwell, overlap of tp and cp needs a single hardware queue, which FSDP must not have."""
    alone = run.plan["tp"] == run.plan["cp"] == 1
    if alone or run.family == "blackwell" or "--use-megatron-fsdp" in given:
        return {}
    return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def _parallel(run: Run, missing: list[str]) -> Sequence[str]:
    plan = run.plan
    pp, vpp = plan["pp"], plan["vpp"]
    if plan["rank_order"] == "dp-tp-cp-pp":
        missing.append(f"rank_order {plan['rank_order']}: tensor-parallel ranks are always neighbours")
    if plan["cp"] > 1 and run.workload["seq_len"] % (2 * plan["cp"]):
        missing.append(f"cp {plan['cp']}: twice cp must divide the sequence of {run.workload['seq_len']} tokens")
    if run.framework.overlap_pp and pp > 1 and vpp == 1:
        missing.append("pipeline sends behind compute: without interleaving (vpp 1) every send is waited for")
    values: dict[str, object] = {
        "--tensor-model-parallel-size": plan["tp"],
        "--sequence-parallel": plan["seq_parallel"],
        "--context-parallel-size": plan["cp"],
        **_context_parallel(run, missing),
        "--expert-model-parallel-size": plan["ep"],
        "--use-tp-pp-dp-mapping": plan["rank_order"] == "tp-cp-pp-dp",
        "--pipeline-model-parallel-size": pp,
    }
    stages = run.stage_layers
    if vpp > 1 and len(set(stages)) > 1:
        values["--pipeline-model-parallel-layout"] = layout(run.chunk_layers, run.architecture.mtp_layers)
    elif vpp > 1:
        values["--num-virtual-stages-per-pipeline-rank"] = vpp
    elif len(set(stages)) > 1:
        values["--decoder-first-pipeline-num-layers"] = stages[0]
        values["--decoder-last-pipeline-num-layers"] = stages[-1]
    if vpp > 1 and not run.framework.overlap_pp:
        if pp > 2:
            values["--no-overlap-p2p-communication"] = True
        else:
            missing.append("pipeline sends that are waited for: with pp 2, interleaving always overlaps them")
    return options(values)


def _context_parallel(run: Run, missing: list[str]) -> dict[str, object]:
    """Return how context-parallel ranks talk; where all or none of them exchange heads, two levels are one."""
    plan, exchanging = run.plan, run.cp_exchange_size
    style = "ring" if exchanging == 1 else "ulysses" if exchanging == plan["cp"] else "hybrid"
    if plan["cp_style"] == "all-gather":
        return {"--cp-comm-type": "all_gather"}
    kv_heads = min(layer.attention.kv_heads for layer in run.architecture.layers)
    if plan["cp"] > 1 and style == "ulysses" and kv_heads % (plan["tp"] * exchanging):
        missing.append(
            f"cp_style {plan['cp_style']}: tp x cp = {plan['tp'] * exchanging} must divide the {kv_heads} heads of keys"
        )
    if style != "hybrid":
        return {"--cp-comm-type": {"ring": "p2p", "ulysses": "a2a"}[style]}
    return {
        "--cp-comm-type": "a2a+p2p",
        "--hierarchical-context-parallel-sizes": (exchanging, plan["cp"] // exchanging),
    }


def layout(chunks: Sequence[int], mtp_layers: int) -> str:
    """Write how layers fall onto model chunks.

    Parameters
    ----------
    chunks : sequence of int
        Layers of every chunk, from the embedding to the logits.
    mtp_layers : int
        Multi-token-prediction modules, which stand before the logits.

    Returns
    -------
    str
        Such as ``Et*3|(t*4|)*6t*2mL``: embedding, layers, modules, loss; ``|`` between chunks.
    """
    first, *inner, last = ["t" * count if count < 2 else f"t*{count}" for count in chunks]
    text = f"E{first}|"
    while inner:
        same = next((i for i, chunk in enumerate(inner) if chunk != inner[0]), len(inner))
        # a repeated group must not be empty
        text += f"({inner[0]}|)*{same}," if same > 1 else f"{inner[0]}|"
        inner = inner[same:]
    return text + last + "m" * mtp_layers + "L"


def _batch(run: Run) -> Sequence[str]:
    work = run.workload
    steps = work.get("tokens") and -(-int(work["tokens"]) // (work["global_batch"] * work["seq_len"]))
    return options(
        {
            "--seq-length": work["seq_len"],
            "--micro-batch-size": run.plan["micro_batch"],
            "--global-batch-size": work["global_batch"],
            "--train-iters": steps,
        }
    )


def _data_parallel(run: Run, missing: list[str]) -> Sequence[str]:
    plan = run.plan
    stage, offloaded = plan["zero_stage"], plan["offload"] == "optimizer"
    values: dict[str, object] = {}
    if stage >= 2 and plan["pp"] > 1:
        missing.append(
            f"zero_stage {stage} with pp {plan['pp']}: Megatron FSDP is documented beside tp, cp and ep only; "
            "what follows is stage 1, with more memory for gradients"
        )
        stage = 1
    if stage >= 2:
        values = {
            "--use-megatron-fsdp": True,
            "--data-parallel-sharding-strategy": {2: "optim_grads", 3: "optim_grads_params"}[stage],
            "--no-gradient-accumulation-fusion": True,
            "--ckpt-format": "fsdp_dtensor",
        }
    if offloaded and stage == 0 and plan["dp"] * plan["cp"] > 1:
        missing.append("offload optimizer with zero_stage 0: it needs the distributed optimizer")
        offloaded = False
    if offloaded and stage >= 2:
        missing.append(f"offload optimizer with zero_stage {stage}: not documented for Megatron FSDP")
        offloaded = False
    # among one rank there is nothing to distribute
    values["--use-distributed-optimizer"] = stage >= 1 or offloaded
    if offloaded:
        values |= {
            "--optimizer-cpu-offload": True,
            "--optimizer-offload-fraction": "1.0",
            "--use-precision-aware-optimizer": True,
        }
    return options(values)


def _overlap(run: Run) -> Sequence[str]:
    plan = run.plan
    return options(
        {
            "--overlap-grad-reduce": plan["overlap_dp"],
            "--overlap-param-gather": plan["overlap_dp"] and plan["zero_stage"] >= 1,
            "--tp-comm-overlap": plan["overlap_tp"],
        }
    )


def _recompute(run: Run, missing: list[str]) -> Sequence[str]:
    if run.plan["recompute"] == "full":
        return options(
            {"--recompute-granularity": "full", "--recompute-method": "uniform", "--recompute-num-layers": 1}
        )
    if run.plan["recompute"] == "none":
        return ()
    if run.framework.selective != "core-attention":
        missing.append(
            f"recompute selective as {run.framework.name} does it, operator by operator; what follows computes the "
            "attention core again"
        )
    return options({"--recompute-granularity": "selective", "--recompute-modules": "core_attn"})


def _numbers(run: Run, missing: list[str]) -> Sequence[str]:
    """Return the options of number formats, and of the kernels that the prediction took for granted."""
    framework, precision = run.framework, run.workload["precision"]
    states = framework.states
    attention = run.architecture.layers[0].attention
    backend = "unfused" if framework.attention == "unfused" else "flash"
    if backend == "flash" and precision == "fp32":
        missing.append("attention as one kernel in fp32: there is none")
        backend = "unfused"
    elif backend == "flash" and (attention.kind == "mla" or attention.sinks):
        backend = "fused"  # the one of cuDNN takes unlike heads and sinks
    small = precision not in ("fp16", "fp32") and states.gradient_traffic < 4
    if small and states.gradient >= 4:
        missing.append(
            f"gradients kept in {states.gradient:g} bytes and sent in {states.gradient_traffic:g}: "
            "--grad-reduce-in-bf16 also keeps them in 2, less than predicted"
        )
    dropout = "0.1" if framework.dropout else "0.0"
    return options(
        {
            **_PRECISIONS[precision],
            "--grad-reduce-in-bf16": small,
            "--accumulate-allreduce-grads-in-fp32": not small,
            "--transformer-impl": "transformer_engine",
            "--attention-backend": backend,
            "--cross-entropy-loss-fusion": framework.logit_bytes <= 8,
            "--cross-entropy-fusion-impl": "native" if framework.logit_bytes <= 8 else None,
            "--attention-dropout": dropout,
            "--hidden-dropout": dropout,
        }
    )
