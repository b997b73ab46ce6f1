"""Options of torchtitan's trainer under torchrun."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cli.emit.run import Run, options, run_of, script, torchrun
from perfmodel.architecture import Architecture, load_architecture
from solvers.result import Result

RELEASE = "torchtitan 0.3.0 (torchtitan/config/configs.py)"

_CONFIGS: dict[str, tuple[str, dict[str, str]]] = {
    "llama-3.1-8b": ("llama3", {"bf16": "llama3_8b", "mxfp8": "llama3_8b_mxfp8"}),
    "llama-3.1-70b": ("llama3", {"bf16": "llama3_70b"}),
    "llama-3.1-405b": ("llama3", {"fp8": "llama3_405b"}),
    "qwen3-32b": ("qwen3", {"bf16": "qwen3_32b"}),
    "qwen3-30b-a3b": ("qwen3", {"bf16": "qwen3_30b_a3b"}),
    "deepseek-v3-without-mtp": ("deepseek_v3", {"bf16": "deepseek_v3_671b", "fp8": "deepseek_v3_671b_float8"}),
    "gpt-oss-20b": ("gpt_oss", {"bf16": "gpt_oss_20b"}),
    "gpt-oss-120b": ("gpt_oss", {"bf16": "gpt_oss_120b"}),
}
"""Bundled model -> torchtitan's module and its configurations by the type of the matrix products."""


def torchtitan(result: Result) -> str:
    """Write the launch script of a training plan for torchtitan.

    Parameters
    ----------
    result : Result
        An answer with a plan.

    Returns
    -------
    str
        A shell script; data, optimizer settings and checkpoints are given to it as arguments.
    """
    run = run_of(result)
    missing: list[str] = []
    groups = [
        _model(run, missing),
        _batch(run),
        _parallel(run, missing),
        _pipeline(run, missing),
        _numbers(run, missing),
    ]
    if run.framework.name != "torchtitan":
        missing.append(
            f"framework {run.framework.name}: its bytes per parameter and host times made the prediction; "
            "--set framework=torchtitan predicts this launch"
        )
    comments = [
        *run.summary,
        f"names as of {RELEASE}",
        "rank order from neighbours outwards: tp, cp, dp, pp",
        "give the rest to this script, for a trial: --training.steps 20 --dataloader.dataset c4_test",
    ]
    # a subcommand, behind which stand options of its own only
    last = _recompute(run, missing)
    return script(comments, missing, [*torchrun(run, "-m", "torchtitan.train"), *groups, ("$@",), last])


def _model(run: Run, missing: list[str]) -> Sequence[str]:
    model, precision = run.architecture, run.workload["precision"]
    name = next((name for name in _CONFIGS if _same(model, load_architecture(name, Path()))), None)
    if name is None:
        missing.append(
            f"model {model.name}: there is no configuration of {model.depth} layers, hidden {model.hidden}, "
            f"vocabulary {model.vocab}; write one and name it in $MODULE and $CONFIG"
        )
        return ("--module", "$MODULE", "--config", "$CONFIG")
    if model.mtp_layers:
        missing.append("model: multi-token prediction, which the configuration leaves out")
    module, configs = _CONFIGS[name]
    wanted = "bf16" if precision == "fp32" else precision
    config = configs.get(wanted)
    if config is None:
        kind, config = next(iter(configs.items()))
        missing.append(f"precision {precision}: {config} computes in {kind}; copy it with other converters")
    return ("--module", module, "--config", config)


def _same(ours: Architecture, theirs: Architecture) -> bool:
    """Whether two models have the same layers; multi-token prediction aside."""
    sizes = [replace(model, name="", source="", max_positions=0, mtp_layers=0) for model in (ours, theirs)]
    return sizes[0] == sizes[1]


def _batch(run: Run) -> Sequence[str]:
    plan, work = run.plan, run.workload
    # one pass through the pipeline takes all micro-batches of a step
    local = plan["micro_batch"] * (run.micro_batches if plan["pp"] > 1 else 1)
    steps = work.get("tokens") and -(-int(work["tokens"]) // (work["global_batch"] * work["seq_len"]))
    return options(
        {
            "--training.seq_len": work["seq_len"],
            "--training.local_batch_size": local,
            "--training.global_batch_size": work["global_batch"],
            "--training.steps": steps,
        }
    )


def _parallel(run: Run, missing: list[str]) -> Sequence[str]:
    plan = run.plan
    stage = plan["zero_stage"]
    shared = stage > 0 or plan["dp"] * plan["cp"] == 1
    if not shared and plan["cp"] > 1:
        missing.append(f"zero_stage 0 with cp {plan['cp']}: the context-parallel ranks always share the states out")
    if not shared and plan["ep"] > 1:
        missing.append(f"zero_stage 0 with ep {plan['ep']}: experts are spread over ranks that share states out")
        shared = True
    if stage == 1:
        missing.append("zero_stage 1: gradients are shared out as well (stage 2), with a scatter every micro-batch")
    if not plan["overlap_dp"] and plan["dp"] * plan["cp"] > 1:
        missing.append("overlap_dp no: gathers and scatters always run ahead of or behind compute")
    if plan["rank_order"] != "tp-cp-dp-pp":
        missing.append(f"rank_order {plan['rank_order']}: ranks always stand in the order tp-cp-dp-pp")
    if plan["cp"] > 1 and plan["cp_style"] != "all-gather":
        missing.append(f"cp_style {plan['cp_style']}: keys and values are gathered")
    if plan["offload"] != "none":
        missing.append(
            f"offload {plan['offload']}: --training.enable_cpu_offload also takes weights and gradients off the "
            "accelerator"
        )
    parallel = plan["seq_parallel"] or plan["tp"] == 1
    return options(
        {
            "--parallelism.tensor_parallel_degree": plan["tp"],
            "--parallelism.enable_sequence_parallel": parallel,
            "--parallelism.no-enable_sequence_parallel": not parallel,
            "--parallelism.context_parallel_degree": plan["cp"],
            "--parallelism.data_parallel_replicate_degree": 1 if shared else plan["dp"],
            "--parallelism.data_parallel_shard_degree": plan["dp"] if shared else 1,
            "--parallelism.fsdp_reshard_after_forward": "always" if stage == 3 else "never",
            "--parallelism.expert_parallel_degree": plan["ep"],
            "--parallelism.pipeline_parallel_degree": plan["pp"],
        }
    )


def _pipeline(run: Run, missing: list[str]) -> Sequence[str]:
    plan = run.plan
    if plan["pp"] == 1:
        return ()
    chunks, full = run.chunk_layers, -(-run.architecture.depth // (plan["pp"] * plan["vpp"]))
    values: dict[str, object] = {
        "--parallelism.pipeline_parallel_schedule": "1F1B" if plan["vpp"] == 1 else "Interleaved1F1B",
        "--parallelism.pipeline_parallel_microbatch_size": plan["micro_batch"],
    }
    if set(chunks[1:-1]) <= {full}:
        values |= {
            "--parallelism.pipeline_parallel_layers_per_stage": full,
            "--parallelism.pipeline_parallel_first_stage_less_layers": full - chunks[0],
            "--parallelism.pipeline_parallel_last_stage_less_layers": full - chunks[-1],
        }
    else:
        missing.append(f"vpp {plan['vpp']}: only the first and the last chunk can lack layers, of {chunks}")
    return options(values)


def _numbers(run: Run, missing: list[str]) -> Sequence[str]:
    precision = run.workload["precision"]
    if precision == "fp16":
        missing.append("precision fp16")
    fused = run.framework.logit_bytes < 16
    return options(
        {
            "--training.dtype": "float32",
            "--training.mixed_precision_param": "float32" if precision == "fp32" else "bfloat16",
            "--training.mixed_precision_reduce": "float32",
            # launches by the host were predicted, and the loss of all tokens at once
            "--training.disable_cuda_graphs": True,
            "--loss.num_chunks": 1,
            "--compile.enable": fused or run.plan["overlap_tp"],
            "--compile.no-enable": not (fused or run.plan["overlap_tp"]),
            # beside what the configuration compiles
            "--compile.components": "model" if run.plan["overlap_tp"] else None,
            "--compile.enable_async_tensor_parallel": run.plan["overlap_tp"],
            "--compile.no-enable_async_tensor_parallel": not run.plan["overlap_tp"],
        }
    )


def _recompute(run: Run, missing: list[str]) -> Sequence[str]:
    kind = run.plan["recompute"]
    if kind == "selective" and run.framework.selective != "per-operator":
        missing.append(
            f"recompute selective as {run.framework.name} does it, the attention core alone; what follows decides "
            "operator by operator"
        )
    return (f"activation_checkpoint:{kind}",)
