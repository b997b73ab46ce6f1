"""Commands of ``python -m sglang.launch_server``."""

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

RELEASE = "SGLang 0.5.23 (sglang/srt/arg_groups/fields)"

# a server takes some of the ports behind its own
_PORT, _PORTS, _LEADER_PORT, _BOOTSTRAP_PORT = 30000, 1000, 20000, 8998
_CACHE = {"bf16": "bfloat16", "fp16": "auto", "fp8": "fp8_e4m3", "int8": "fp8_e4m3"}
_DISPATCH = {"both": "auto", "prefill": "normal", "decode": "low_latency"}
_QUANTISATION = {"fp8": "fp8", "fp8_block": "fp8", "int8": "w8a8_int8", "fp4": "modelopt_fp4", "nvfp4": "modelopt_fp4"}


def sglang(result: Result, question: ServeScenario) -> Launch:
    """Write the commands that serve a plan with SGLang.

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
    missing = list(other_engine(serving, "sglang"))
    before = model_lines(serving, online=("fp8",))
    if serving.drafted and not serving.architecture.mtp_layers:
        before.append(': "${DRAFT_MODEL:?path or repository of the model that drafts}"')
        missing.append("draft_tokens: memory of the model that drafts is not in the prediction")
    commands: dict[int, list[str]] = {}
    number = 0
    for pool in serving.pools:
        arguments = _options(serving, pool, missing)
        for places in pool.places:
            leader = f"{address(serving, places[0].node)}:{_LEADER_PORT + 10 * number}"
            for rank, place in enumerate(places):
                on_node = commands.setdefault(place.node, [])
                index, apart = len(on_node), len(places) > 1
                values = {
                    "--nnodes": len(places) if apart else None,
                    "--node-rank": rank if apart else None,
                    "--dist-init-addr": leader if apart else None,
                    "--disaggregation-bootstrap-port": _BOOTSTRAP_PORT + index if pool.role == "prefill" else None,
                    "--host": "0.0.0.0",
                    "--port": _PORT + _PORTS * index,
                }
                program = ("python", "-m", "sglang.launch_server", "--model-path", f"${pool.model}")
                on_node.append(command([visible(place)], [program, arguments, options(values)]))
            number += 1
    return script(serving, RELEASE, missing, before=before, commands=commands)


def _options(serving: Serving, pool: Pool, missing: list[str]) -> list[str]:
    batching = serving.engine.batching
    chunk = pool.max_num_batched_tokens * pool.dp
    if batching == "mixed":
        missing.append("whole prompts in one step: they are cut into chunks of max_num_batched_tokens")
    if pool.precision_kv == "int8":
        missing.append("precision_kv int8: fp8, of as many bytes")
    if pool.role == "prefill":
        missing.append("keys and values sent layer by layer: they are sent chunk by chunk of the prompt")
    drafts: dict[str, object] = {}
    if serving.drafted:
        inside = bool(serving.architecture.mtp_layers)
        drafts = {
            "--speculative-algorithm": "NEXTN" if inside else "STANDALONE",
            "--speculative-draft-model-path": None if inside else "$DRAFT_MODEL",
            "--speculative-num-steps": serving.drafted,
            "--speculative-eagle-topk": 1,
            "--speculative-num-draft-tokens": serving.drafted + 1,
        }
    dispatched = pool.dp > 1 and pool.ep == pool.ranks and pool.ranks * pool.pp > pool.per_node
    return options(
        {
            "--tp-size": pool.ranks,
            "--pp-size": pool.pp,
            "--dp-size": 1,
            "--attn-dp-size": pool.dp,
            "--ep-size": pool.ep,
            "--moe-a2a-backend": "deepep" if dispatched else "none",
            "--deepep-mode": _DISPATCH[pool.role] if dispatched else None,
            # of all ranks of attention data parallelism together
            "--max-running-requests": pool.max_num_seqs * pool.dp,
            "--chunked-prefill-size": chunk,
            "--max-prefill-tokens": pool.max_num_batched_tokens,
            "--enable-mixed-chunk": batching != "prefill_first" and pool.role == "both",
            "--schedule-policy": "fcfs",
            "--context-length": pool.max_model_len,
            "--mem-fraction-static": fraction_up((pool.weights + pool.cache_bytes) / pool.device),
            "--max-total-tokens": pool.cache_tokens,
            "--kv-cache-dtype": _CACHE[pool.precision_kv],
            "--dtype": "float16" if pool.precision_weights == "fp16" else "bfloat16",
            "--quantization": _QUANTISATION.get(pool.precision_weights),
            "--disable-radix-cache": serving.workload.prefix_hit == 0,
            "--cuda-graph-max-bs-decode": pool.max_num_seqs if pool.role != "prefill" else None,
            **drafts,
            "--disaggregation-mode": pool.role if pool.role != "both" else None,
            "--disaggregation-transfer-backend": "nixl" if pool.role != "both" else None,
        }
    )
