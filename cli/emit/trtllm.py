"""Launch arguments of TensorRT-LLM: a file of settings for every pool, and the commands."""

import json
from typing import Any

from cli.emit.serving import Instance, launch
from solvers.result import Result

RELEASE = "TensorRT-LLM 1.2 (trtllm-serve)"
CACHES = {"bf16": "auto", "fp16": "auto", "fp8": "fp8"}


def trtllm(result: Result) -> str:
    """Write a script that starts every instance of a serving plan with TensorRT-LLM."""
    files: dict[str, str] = {}

    def arguments(one: Instance, missing: list[str]) -> tuple[list[str], dict[str, Any]]:
        name = f"{one.phase or 'instance'}.yaml"
        files[name] = json.dumps(_settings(one, missing), indent=2)
        words = ["trtllm-serve", "serve", "$MODEL"]
        given = {"--port": one.port, "--backend": "pytorch", "--config": name}
        if one.phase:
            missing.append("--server_role, --metadata_server_config_file: how pools find each other is the site's")
        return words, given

    text = launch(result, "trtllm", RELEASE, arguments)
    before = "".join(f"cat > {name} <<'YAML'\n{content}\nYAML\n" for name, content in files.items())
    head, mark, rest = text.partition(': "${MODEL:?the checkpoint}"\n')
    return head + mark + before + rest


def _settings(one: Instance, missing: list[str]) -> dict[str, Any]:
    plan = one.plan
    tp, dp = plan["tp"], plan["dp"]
    if dp > 1 and tp > 1:
        missing.append(f"tp {tp} with dp {dp}: attention is either split over all ranks or data parallel on all")
    ways = tp * dp
    settings: dict[str, Any] = {
        "tensor_parallel_size": ways,
        "pipeline_parallel_size": plan["pp"],
        "moe_expert_parallel_size": plan["ep"],
        "moe_tensor_parallel_size": ways // plan["ep"],
        "enable_attention_dp": dp > 1,
        "enable_chunked_prefill": False,
        "max_batch_size": plan["max_num_seqs"],
        "max_num_tokens": plan["max_num_batched_tokens"],
        "max_seq_len": one.longest,
        "kv_cache_config": {
            "free_gpu_memory_fraction": _free(one),
            "dtype": CACHES.get(plan["precision_kv"], "auto"),
            "enable_block_reuse": one.prefix_hit,
        },
    }
    if plan["precision_kv"] not in CACHES:
        missing.append(f"precision_kv {plan['precision_kv']}: the engine keeps {', '.join(CACHES)}")
    if plan["precision_weights"] not in ("bf16", "fp16"):
        missing.append(f"precision_weights {plan['precision_weights']}: the checkpoint has to hold them")
    if plan["draft_tokens"] and one.phase != "prefill":
        settings["speculative_config"] = {"max_draft_len": plan["draft_tokens"]}
        missing.append("decoding_type of speculative_config: what drafts")
    if one.phase:
        settings["cache_transceiver_config"] = {"backend": "DEFAULT", "max_tokens_in_buffer": one.longest}
    return settings


def _free(one: Instance) -> float:
    """Return the share of what weights, activations and libraries leave free that is the cache's."""
    memory = one.memory
    return round(memory["cache"] / (memory["cache"] + memory["unused"]), 3)
