"""Commands of ``trtllm-serve`` and the YAML that they read."""

from typing import Any

from cli.emit.places import Place
from cli.emit.run import options
from cli.emit.serving import (
    Launch,
    Pool,
    Serving,
    command,
    model_lines,
    other_engine,
    script,
    serving_of,
    visible,
)
from solvers.result import Result
from solvers.serve_scenario import ServeScenario

RELEASE = "TensorRT-LLM 1.2 (tensorrt_llm/commands/serve.py)"

_PORT = 8000
_CACHE = {"bf16": "auto", "fp16": "auto", "fp8": "fp8", "int8": "fp8"}
_ROLES = {"prefill": "CONTEXT", "decode": "GENERATION"}


def trtllm(result: Result, question: ServeScenario) -> Launch:
    """Write the commands that serve a plan with TensorRT-LLM, and the YAML that they read.

    Parameters
    ----------
    result : Result
        An answer with a plan.
    question : ServeScenario
        What was asked.

    Returns
    -------
    Launch
        A shell script that writes the YAML and starts every instance that a node leads.
    """
    from cli.export import to_yaml

    serving = serving_of(result, question)
    missing = list(other_engine(serving, "trtllm"))
    before = model_lines(serving)
    commands: dict[int, list[str]] = {}
    apart = any(pool.role != "both" for pool in serving.pools)
    for pool in serving.pools:
        file = f"trtllm-{pool.name}.yaml"
        before += [f"cat > {file} <<'YAML'", to_yaml(_settings(serving, pool, missing)).rstrip("\n"), "YAML"]
        arguments = [*_options(serving, pool, missing), "--config", file]
        roles: tuple[str, ...] = ()
        if pool.role != "both":
            roles = ("--server_role", _ROLES[pool.role], "--disagg_cluster_uri", "$DISAGG_CLUSTER_URI")
        for places in pool.places:
            on_node = commands.setdefault(places[0].node, [])
            listens = ("--host", "0.0.0.0", "--port", str(_PORT + len(on_node)))
            groups = [*_ranks(places), ("trtllm-serve", "serve", f"${pool.model}"), arguments, roles, listens]
            on_node.append(command([visible(places[0])] if len(places) == 1 else [], groups))
    comments = []
    if apart:
        before.insert(0, ': "${DISAGG_CLUSTER_URI:?address of the server of trtllm-serve disaggregated}"')
        comments.append("the server that clients talk to is trtllm-serve disaggregated, with the same cluster address")
    if any(len(places) > 1 for pool in serving.pools for places in pool.places):
        comments.append("an instance across nodes is started by MPI from the first of them")
    return script(serving, RELEASE, missing, comments=comments, before=before, commands=commands)


def _ranks(places: tuple[Place, ...]) -> list[tuple[str, ...]]:
    """Return what starts the ranks of an instance on several nodes, before its command."""
    if len(places) == 1:
        return []
    each = len(places[0].accelerators)
    hosts = ",".join(f"${{HOST[{place.node}]}}:{each}" for place in places)
    return [
        ("mpirun", "-n", str(each * len(places)), "--host", hosts, "-x", visible(places[0])),
        ("trtllm-llmapi-launch",),
    ]


def _options(serving: Serving, pool: Pool, missing: list[str]) -> list[str]:
    places = pool.places[0] if pool.places else ()
    return options(
        {
            "--backend": "pytorch",
            "--tensor_parallel_size": pool.ranks,
            "--pipeline_parallel_size": pool.pp,
            "--moe_expert_parallel_size": pool.ep if _mixture(serving) else None,
            "--gpus_per_node": len(places[0].accelerators) if places else None,
            "--max_batch_size": pool.max_num_seqs,
            "--max_num_tokens": pool.max_num_batched_tokens,
            "--max_seq_len": pool.max_model_len,
            "--enable_chunked_prefill": _chunked(serving, pool),
        }
    )


def _mixture(serving: Serving) -> bool:
    return any(layer.feed_forward.experts for layer in serving.architecture.layers)


def _chunked(serving: Serving, pool: Pool) -> bool:
    """Whether prompts are cut: as predicted, or because the engine refuses one that is longer than a step."""
    return serving.engine.batching == "chunked" or pool.max_num_batched_tokens < pool.max_model_len


def _settings(serving: Serving, pool: Pool, missing: list[str]) -> dict[str, Any]:
    if _chunked(serving, pool) and serving.engine.batching == "mixed":
        missing.append(
            f"prompts in one step: longer ones than max_num_batched_tokens {pool.max_num_batched_tokens} are cut"
        )
    if serving.engine.batching == "prefill_first":
        missing.append("prompts in steps of their own: they share steps with sequences that decode")
    if pool.dp > 1 and pool.tp > 1:
        missing.append(f"tp {pool.tp} with dp {pool.dp}: attention is data parallel over all ranks or none")
    if pool.precision_kv == "int8":
        missing.append("precision_kv int8: fp8, of as many bytes")
    free = pool.device - pool.weights - pool.workspace - pool.context
    settings: dict[str, Any] = {
        "enable_attention_dp": pool.dp > 1,
        "enable_chunked_prefill": _chunked(serving, pool),
        "kv_cache_config": {
            "free_gpu_memory_fraction": round(pool.cache_bytes / free, 4),
            "dtype": _CACHE[pool.precision_kv],
            "enable_block_reuse": serving.workload.prefix_hit > 0,
        },
        "disable_overlap_scheduler": pool.role == "prefill",
    }
    if _mixture(serving):
        settings["moe_tensor_parallel_size"] = pool.ranks // pool.ep
    if pool.role != "prefill":
        settings["cuda_graph_config"] = {"enable_padding": True, "batch_sizes": captured(pool.max_num_seqs)}
    if pool.role != "both":
        settings["cache_transceiver_config"] = {"backend": "UCX", "max_tokens_in_buffer": pool.max_model_len}
    if serving.drafted:
        if serving.architecture.mtp_layers:
            drafts = {"decoding_type": "MTP", "num_nextn_predict_layers": serving.drafted}
            settings["speculative_config"] = drafts
        else:
            missing.append(
                f"draft_tokens {serving.drafted}: the key that names the model which drafts differs between releases; "
                "add speculative_config to the YAML"
            )
    return settings


def captured(most: int) -> list[int]:
    """Return sizes of batches to capture as graphs, up to the largest: no batch is padded by more than a quarter."""
    sizes = {most}
    step = 1
    while step <= most:
        sizes |= {size for size in (step, step + step // 4, step + step // 2, step + 3 * step // 4) if size <= most}
        step *= 2
    return sorted(sizes)
