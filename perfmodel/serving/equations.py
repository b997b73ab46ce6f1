"""The equation behind every term of a request's time, as ``--explain`` prints them."""

from __future__ import annotations

from perfmodel.equations import Explanation

_STEP = "perfmodel.serving.step.step"
_KERNELS = "models of kernels (docs/accuracy.md), with the engine's `speed` over kernels measured alone"

SERVING_EXPLANATIONS: dict[str, Explanation] = {
    "request": Explanation(
        "mean time from arrival to the last token: TTFT + (G - 1) TPOT, G output tokens",
        "DistServe (arXiv 2401.09670), section 2",
        "perfmodel.serving.latency.together",
    ),
    "receiving": Explanation(
        "time of a request before its prompt is computed, `prompt_overhead` and `request_overhead` of the engine",
        "fitted on measured operating points",
        "perfmodel.serving.host.received_s",
    ),
    "waiting for a step, for room, for other prompts": Explanation(
        "mean TTFT less the prompt's own steps: until the engine looks at new requests, k/2 steps with k its "
        "`intake_steps`; the rest of the step that runs, prompts that came before, and room in "
        "the batch: M/D/c in the token budget, and the tail of a gamma distributed number of sequences",
        "perfmodel/batching.py, head of the module; perfmodel/queueing.py",
        "perfmodel.batching.open_loop",
    ),
    "prompt": Explanation(
        "steps that hold the prompt, in pieces of the token budget, beside the sequences that decode on average",
        "Sarathi-Serve (arXiv 2403.02310), section 4",
        _STEP,
    ),
    "keys and values on the way": Explanation(
        "max(T - t (L - 1)/L, T/L) + latency: T to send the cache of a prompt, t to compute it, L layers",
        "Splitwise (arXiv 2311.18677), section 4.3",
        "solvers.serve_case.sending",
    ),
    "handing over, and the first step": Explanation(
        "`handoff_overhead` of the engine, and a step of the pool that makes the tokens",
        "fitted on measured operating points",
        "perfmodel.serving.latency.apart",
    ),
    "tokens after the first": Explanation(
        "(G - 1)/E steps without prompts, of the sequences that decode on average; E tokens come out of a step",
        "speculation: arXiv 2211.17192, equation 1",
        _STEP,
    ),
    "prompts of other requests, drafts": Explanation(
        "(G - 1) TPOT less that: TPOT is the mean step as a sequence meets it, E[n t]/E[n]",
        "perfmodel/batching.py, head of the module",
        "perfmodel.batching.open_loop",
    ),
    "projections": Explanation("products of weights with the tokens of a rank", _KERNELS, _STEP),
    "attention of prompts": Explanation(
        "attention of new tokens among themselves and over cached ones, causal", _KERNELS, _STEP
    ),
    "attention over the cache": Explanation("keys and values of all sequences read once a step", _KERNELS, _STEP),
    "experts": Explanation(
        "fused products of the experts that the tokens hit, E (1 - (1 - k/E)^n) of E for n tokens of k each; times the "
        "load of the busiest rank",
        _KERNELS,
        _STEP,
    ),
    "attention over the cache, elsewhere": Explanation(
        "n k kv / memory + (queries, results, new keys and values) / link + latencies, of other devices' memory",
        "Lamina (arXiv 2405.01814), section 4.2",
        "perfmodel.serving.elsewhere.attention_elsewhere",
    ),
    "experts, elsewhere": Explanation(
        "(1 - held) E (1 - (1 - k/E)^n) experts of each layer over the link that fetches them",
        "expected distinct experts of n tokens of k each",
        "perfmodel.serving.elsewhere.experts_elsewhere",
    ),
    "norms and activations": Explanation("bytes over memory bandwidth", _KERNELS, _STEP),
    "logits and sampling": Explanation("products with the token table, and the choice of a token", _KERNELS, _STEP),
    "tensor-parallel communication": Explanation(
        "two all-reduces of the activations of a layer",
        "docs/network.md",
        "perfmodel.collectives.algorithms.engine_all_reduce",
    ),
    "expert communication": Explanation(
        "dispatch and combine of tokens, or gathering all everywhere, whichever is faster",
        "docs/network.md",
        "perfmodel.collectives.dispatch",
    ),
    "pipeline sends": Explanation("(p - 1) messages of activations", "docs/network.md", "perfmodel.collectives.send"),
    "slower than kernels alone": Explanation("kernels (1/speed - 1)", "fitted on measured operating points", _STEP),
    "step overhead": Explanation(
        "scheduling, sampling and copies of a step", "fitted on measured operating points", _STEP
    ),
    "layer overhead": Explanation(
        "gaps between kernels, and small ones left out, for every layer", "fitted on measured operating points", _STEP
    ),
    "sequence overhead": Explanation(
        "host time for every sequence of a step", "fitted on measured operating points", _STEP
    ),
    "kernel launches by the host": Explanation(
        "max(launches - kernels, 0) of a step with prompts, which no graph launches",
        "fitted on measured operating points",
        _STEP,
    ),
}
"""Name of a term of a breakdown -> what it is."""
