"""Launch arguments of SGLang."""

from typing import Any

from cli.emit.serving import Instance, launch, share
from solvers.result import Result

RELEASE = "SGLang 0.5.23 (sglang.launch_server)"
CACHES = {"bf16": "bf16", "fp8": "fp8_e4m3"}


def sglang(result: Result) -> str:
    """Write a script that starts every instance of a serving plan with SGLang."""
    return launch(result, "sglang", RELEASE, _arguments)


def _arguments(one: Instance, missing: list[str]) -> tuple[list[str], dict[str, Any]]:
    plan = one.plan
    dp = plan["dp"]
    given: dict[str, Any] = {
        "--port": one.port,
        # ranks of attention data parallelism are part of this size, and its limits are those of all of them together
        "--tp-size": plan["tp"] * dp,
        "--attn-dp-size": dp if dp > 1 else None,
        "--pp-size": plan["pp"],
        "--ep-size": plan["ep"],
        "--max-running-requests": plan["max_num_seqs"] * dp,
        "--chunked-prefill-size": plan["max_num_batched_tokens"] * dp,
        "--max-prefill-tokens": plan["max_num_batched_tokens"],
        "--context-length": one.longest,
        "--mem-fraction-static": share(one.memory["weights"] + one.memory["cache"], one),
        "--max-total-tokens": int(one.cache_tokens // dp),
        "--disable-radix-cache": not one.prefix_hit,
    }
    weights, cache = plan["precision_weights"], plan["precision_kv"]
    if weights == "fp8":
        given["--quantization"] = "fp8"
    elif weights in ("bf16", "fp16"):
        given["--dtype"] = {"bf16": "bfloat16", "fp16": "float16"}[weights]
    else:
        missing.append(f"precision_weights {weights}: the checkpoint has to hold them")
    if cache in CACHES:
        given["--kv-cache-dtype"] = CACHES[cache]
    else:
        missing.append(f"precision_kv {cache}: the engine keeps {', '.join(CACHES)}")
    if plan["draft_tokens"] and one.phase != "prefill":
        given |= {
            "--speculative-algorithm": "STANDALONE",
            "--speculative-draft-model-path": "$DRAFT",
            "--speculative-num-steps": plan["draft_tokens"],
            "--speculative-eagle-topk": 1,
            "--speculative-num-draft-tokens": plan["draft_tokens"] + 1,
        }
        missing.append("DRAFT: set it to the model that drafts")
    if one.phase:
        given["--disaggregation-mode"] = one.phase
    return ["python", "-m", "sglang.launch_server", "--model-path", "$MODEL"], given
