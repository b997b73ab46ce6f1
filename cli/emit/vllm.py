"""Launch arguments of vLLM."""

import json
from typing import Any

from cli.emit.serving import Instance, launch, share
from solvers.result import Result

RELEASE = "vLLM 0.33 (vllm serve)"
CACHES = {"bf16": "bfloat16", "fp8": "fp8"}


def vllm(result: Result) -> str:
    """Write a script that starts every instance of a serving plan with vLLM."""
    return launch(result, "vllm", RELEASE, _arguments)


def _arguments(one: Instance, missing: list[str]) -> tuple[list[str], dict[str, Any]]:
    plan = one.plan
    ways = plan["tp"] * plan["dp"]
    given: dict[str, Any] = {
        "--port": one.port,
        "--tensor-parallel-size": plan["tp"],
        "--pipeline-parallel-size": plan["pp"],
        "--data-parallel-size": plan["dp"],
        "--enable-expert-parallel": plan["ep"] > 1,
        "--max-num-seqs": plan["max_num_seqs"],
        "--max-num-batched-tokens": plan["max_num_batched_tokens"],
        "--enable-chunked-prefill": True,
        "--max-model-len": one.longest,
        "--gpu-memory-utilization": share(one.memory["device"] - one.memory["unused"], one),
        "--kv-cache-memory-bytes": int(one.memory["cache"]),
        "--enable-prefix-caching" if one.prefix_hit else "--no-enable-prefix-caching": True,
    }
    if plan["ep"] not in (1, ways):
        missing.append(f"ep {plan['ep']}: experts are spread over all tp x dp = {ways} ranks or none")
    _types(plan, given, missing)
    if plan["draft_tokens"] and one.phase != "prefill":
        draft = {"model": "DRAFT", "num_speculative_tokens": plan["draft_tokens"]}
        given["--speculative-config"] = json.dumps(draft)
        missing.append("DRAFT in --speculative-config: the model that drafts")
    if one.phase:
        role = {"prefill": "kv_producer", "decode": "kv_consumer"}[one.phase]
        given["--kv-transfer-config"] = json.dumps({"kv_connector": "NixlConnector", "kv_role": role})
    return ["vllm", "serve", "$MODEL"], given


def _types(plan: Any, given: dict[str, Any], missing: list[str]) -> None:
    weights, cache = plan["precision_weights"], plan["precision_kv"]
    if weights == "fp8":
        given["--quantization"] = "fp8"
    elif weights == "fp16":
        given["--dtype"] = "float16"
    elif weights == "bf16":
        given["--dtype"] = "bfloat16"
    else:
        missing.append(f"precision_weights {weights}: the checkpoint has to hold them")
    if cache in CACHES:
        given["--kv-cache-dtype"] = CACHES[cache]
    else:
        missing.append(f"precision_kv {cache}: the engine keeps {', '.join(CACHES)}")
