"""Commands of ``vllm serve``."""

import json
from collections.abc import Sequence

from cli.emit.places import Place
from cli.emit.run import options
from cli.emit.serving import (
    Launch,
    Pool,
    Serving,
    address,
    command,
    fraction_up,
    model_lines,
    other_engine,
    script,
    serving_of,
    visible,
)
from solvers.result import Result
from solvers.serve_scenario import ServeScenario

RELEASE = "vLLM 0.33.0 (vllm/engine/arg_utils.py)"

_PORT, _LEADER_PORT, _RPC_PORT, _SIDE_PORT = 8000, 29500, 13345, 5600
_CACHE = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "int8": "fp8"}
_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def vllm(result: Result, question: ServeScenario) -> Launch:
    """Write the commands that serve a plan with vLLM.

    Parameters
    ----------
    result : Result
        An answer with a plan.
    question : ServeScenario
        What was asked.

    Returns
    -------
    Launch
        A shell script that starts every instance of a node.
    """
    serving = serving_of(result, question)
    missing = list(other_engine(serving, "vllm"))
    before = model_lines(serving, online=("fp8",))
    commands: dict[int, list[str]] = {}
    side, number = _SIDE_PORT, 0
    if serving.drafted and not serving.architecture.mtp_layers:
        before.append(': "${DRAFT_MODEL:?path or repository of the model that drafts}"')
        missing.append("draft_tokens: memory of the model that drafts is not in the prediction")
    for pool in serving.pools:
        arguments = _options(serving, pool, missing)
        for places in pool.places:
            ray = _by_ray(pool, places)
            for rank, place in enumerate(places[:1] if ray else places):
                on_node = commands.setdefault(place.node, [])
                environment = ["VLLM_RAY_DP_PACK_STRATEGY=span"] if ray else [visible(place)]
                if pool.role != "both":
                    if serving.spread:
                        environment.append(f'VLLM_NIXL_SIDE_CHANNEL_HOST="{address(serving, place.node)}"')
                    environment.append(f"VLLM_NIXL_SIDE_CHANNEL_PORT={side}")
                groups = [("vllm", "serve", f"${pool.model}"), arguments, _joined(serving, pool, places, rank, number)]
                if rank == 0:
                    groups.append(("--host", "0.0.0.0", "--port", str(_PORT + len(on_node))))
                on_node.append(command(environment, groups))
            side, number = side + pool.dp, number + 1
    comments = []
    if any(_by_ray(pool, places) for pool in serving.pools for places in pool.places):
        comments.append("an instance whose ranks lie across nodes needs a Ray cluster of these, started before")
    return script(serving, RELEASE, missing, comments=comments, before=before, commands=commands)


def _options(serving: Serving, pool: Pool, missing: list[str]) -> list[str]:
    chunked = serving.engine.batching == "chunked"
    tokens_of_a_sequence = serving.drafted + 1
    sequences = pool.max_num_seqs
    if sequences > pool.max_num_batched_tokens:
        sequences = pool.max_num_batched_tokens
        missing.append(f"max_num_seqs {pool.max_num_seqs}: no more than max_num_batched_tokens {sequences} is taken")
    if not chunked and pool.max_num_batched_tokens < pool.max_model_len:
        missing.append(
            f"prompts in one step: max_num_batched_tokens {pool.max_num_batched_tokens} is less than a prompt"
        )
        chunked = True
    if serving.engine.batching == "prefill_first":
        missing.append("prompts in steps of their own: they share steps with sequences that decode")
    if pool.ep not in (1, pool.ranks):
        missing.append(f"ep {pool.ep}: experts are spread over all {pool.ranks} ranks of a stage, or none is")
    if pool.precision_kv == "int8":
        missing.append("precision_kv int8: fp8, of as many bytes")
    spread_experts = pool.ep > 1
    drafts: dict[str, object] = {}
    if serving.drafted:
        inside = bool(serving.architecture.mtp_layers)
        drafts = {
            "--spec-method": "mtp" if inside else "draft_model",
            "--spec-model": None if inside else "$DRAFT_MODEL",
            "--spec-tokens": serving.drafted,
        }
    captured = min(sequences * tokens_of_a_sequence, pool.max_num_batched_tokens)
    hits = serving.workload.prefix_hit > 0
    used = pool.weights + pool.workspace + pool.context + pool.cache_bytes
    quantised = pool.precision_weights in ("fp8", "fp8_block")
    transfer = {"kv_connector": "NixlConnector", "kv_role": _ROLES.get(pool.role)}
    if pool.role == "prefill":
        missing.append("keys and values sent layer by layer: they are fetched when the prompt is computed")
    return options(
        {
            "--tensor-parallel-size": pool.tp,
            "--pipeline-parallel-size": pool.pp,
            "--data-parallel-size": pool.dp,
            "--enable-expert-parallel": spread_experts,
            "--all2all-backend": _exchange(pool) if pool.dp > 1 and spread_experts else None,
            "--max-num-seqs": sequences,
            "--max-num-batched-tokens": pool.max_num_batched_tokens,
            "--enable-chunked-prefill": chunked,
            "--no-enable-chunked-prefill": not chunked,
            "--scheduling-policy": "fcfs",
            "--max-model-len": pool.max_model_len,
            "--gpu-memory-utilization": fraction_up(used / pool.device),
            "--kv-cache-memory-bytes": pool.cache_bytes,
            "--kv-cache-dtype": _CACHE[pool.precision_kv],
            "--dtype": "float16" if pool.precision_weights == "fp16" else "bfloat16",
            "--quantization": "fp8" if quantised else None,
            "--enable-prefix-caching": hits,
            "--no-enable-prefix-caching": not hits,
            "--max-cudagraph-capture-size": captured,
            **drafts,
            "--kv-transfer-config": json.dumps(transfer) if pool.role != "both" else None,
        }
    )


def _exchange(pool: Pool) -> str:
    """Return how tokens reach the ranks of their experts: dispatched where that crosses nodes, else gathered."""
    if pool.tp * pool.pp * pool.dp <= pool.per_node:
        return "allgather_reducescatter"
    return "deepep_low_latency" if pool.role == "decode" else "deepep_high_throughput"


def _by_ray(pool: Pool, places: Sequence[Place]) -> bool:
    """Whether a rank of attention data parallelism lies across nodes, which processes of vLLM alone cannot start."""
    return pool.dp > 1 and len(places) > 1 and len(places[0].accelerators) % (pool.tp * pool.pp) != 0


def _joined(serving: Serving, pool: Pool, places: Sequence[Place], rank: int, number: int) -> Sequence[str]:
    """Return what joins the nodes of an instance."""
    if len(places) == 1:
        return ()
    if _by_ray(pool, places):
        return ("--data-parallel-backend", "ray", "--distributed-executor-backend", "ray")
    leader = address(serving, places[0].node)
    values: dict[str, object] = {}
    if pool.dp == 1:
        values = {
            "--distributed-executor-backend": "mp",
            "--nnodes": len(places),
            "--node-rank": rank,
            "--master-addr": leader,
            "--master-port": _LEADER_PORT + number,
        }
    else:
        local = len(places[0].accelerators) // (pool.tp * pool.pp)
        values = {
            "--data-parallel-size-local": local,
            "--data-parallel-address": leader,
            "--data-parallel-rpc-port": _RPC_PORT + number,
            "--data-parallel-start-rank": rank * local if rank else None,
        }
    return options({**values, "--headless": rank > 0})
