"""Configuration of DeepSpeed, for a training program of one's own under torchrun."""

import json
from typing import Any

from cli.emit.run import Run, run_of, script, torchrun
from solvers.result import Result

RELEASE = "DeepSpeed 0.19 (deepspeed/runtime/config.py)"


def deepspeed(result: Result) -> str:
    """Write the configuration and launch of a training plan for DeepSpeed.

    Parameters
    ----------
    result : Result
        An answer with a plan.

    Returns
    -------
    str
        A shell script that writes ``ds_config.json`` and starts the program ``$TRAIN`` with it; DeepSpeed trains the
        model which that program builds.
    """
    run = run_of(result)
    missing: list[str] = []
    settings = json.dumps(_settings(run, missing), indent=2)
    comments = [
        *run.summary,
        f"names as of {RELEASE}",
        "set TRAIN to the program that builds the model, loads data and calls deepspeed.initialize",
    ]
    if run.framework.name not in ("deepspeed", "megatron-deepspeed"):
        missing.append(
            f"framework {run.framework.name}: its kernels, bytes per parameter and host times made the prediction; "
            "--set framework=deepspeed is the nearest"
        )
    return script(
        comments,
        missing,
        [*torchrun(run, "$TRAIN"), ("--deepspeed", "--deepspeed_config", "ds_config.json"), ("$@",)],
        before=["cat > ds_config.json <<'JSON'", settings, "JSON"],
    )


def _settings(run: Run, missing: list[str]) -> dict[str, Any]:
    plan, work, model = run.plan, run.workload, run.architecture
    missing.append(
        f"model: {model.name}, {model.depth} layers, hidden {model.hidden}, sequences of {work['seq_len']} tokens; "
        "the program decides"
    )
    for name, plain, why in (
        ("pp", 1, "stages are a PipelineModule of the program's own"),
        ("vpp", 1, "its pipelines do not interleave"),
        ("ep", 1, "the program's MoE layers set it (ep_size)"),
        ("overlap_tp", False, "tensor-parallel traffic is waited for"),
        ("seq_parallel", False, "norms are not split over tensor-parallel ranks"),
        ("rank_order", "tp-cp-dp-pp", "ranks always stand in the order tp-cp-dp-pp"),
    ):
        if plan[name] != plain:
            missing.append(f"{name} {plan[name]}: {why}")
    if plan["cp"] > 1 and plan["cp_style"] != "ulysses":
        missing.append(f"cp_style {plan['cp_style']}: sequences are split as Ulysses does, by heads")
    if plan["recompute"] != "none":
        missing.append(f"recompute {plan['recompute']}: the program calls deepspeed.checkpointing.checkpoint")
    settings: dict[str, Any] = {
        "train_batch_size": work["global_batch"],
        "train_micro_batch_size_per_gpu": plan["micro_batch"],
        "gradient_accumulation_steps": run.micro_batches,
        "zero_optimization": {
            "stage": plan["zero_stage"],
            "overlap_comm": plan["overlap_dp"],
            "offload_optimizer": {"device": "cpu" if plan["offload"] == "optimizer" else "none"},
        },
    }
    if plan["offload"] == "optimizer" and plan["zero_stage"] == 0:
        missing.append("offload optimizer with zero_stage 0: it needs a stage of at least 1")
        del settings["zero_optimization"]["offload_optimizer"]
    if plan["tp"] > 1:
        settings["tensor_parallel"] = {"autotp_size": plan["tp"]}
    if plan["cp"] > 1:
        settings["sequence_parallel_size"] = plan["cp"]
    return settings | _numbers(run, missing)


def _numbers(run: Run, missing: list[str]) -> dict[str, Any]:
    precision = run.workload["precision"]
    if precision not in ("bf16", "fp16", "fp32"):
        missing.append(f"precision {precision}: products are the program's; what follows is bf16 around them")
        precision = "bf16"
    states = run.framework.states
    kept, sent = ("fp32" if size >= 4 else precision for size in (states.gradient, states.gradient_traffic))
    settings: dict[str, Any] = {
        "data_types": {"grad_accum_dtype": kept},
        "communication_data_type": sent,
    }
    return settings if precision == "fp32" else {precision: {"enabled": True}, **settings}
