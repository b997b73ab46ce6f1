"""The equation behind every term of placements over tiers, as ``--explain`` prints them."""

from __future__ import annotations

from collections.abc import Iterable

from perfmodel.equations import EXPLANATIONS, Explanation
from perfmodel.serving.equations import SERVING_EXPLANATIONS

_RATES = "sum over shares of bytes that pass it, over its rate of all devices in that direction"
_FLEXGEN = "FlexGen (arXiv 2303.06865), section 4.3 and appendix A.3"
_TIMES = "perfmodel.offload.resource_times"

KV_EXPLANATIONS: dict[str, Explanation] = {
    "block": Explanation(
        "prompts and (g - 1) tokens of all sequences of a block, g generated tokens; each phase its busiest resource",
        _FLEXGEN,
        _TIMES,
    ),
    "prefill": Explanation(
        "max over resources of the time of a block's prompts; of requests that arrive one prompt at a time",
        _FLEXGEN,
        _TIMES,
    ),
    "decode": Explanation("(g - 1) max over resources of the time of a token of every sequence", _FLEXGEN, _TIMES),
    "accelerators": Explanation(
        "batches x kernels of one batch, less what is spared of prompts that are found and loaded, plus attention "
        "elsewhere that they wait for",
        "the serving model's step (docs/serving.md); Mooncake (FAST 2025), equation 2; Cake (arXiv 2410.03065)",
        "perfmodel.offload_kernels.kernel_times",
    ),
    "token": Explanation(
        "a token of each sequence: the serving model's step, with what is computed or fetched elsewhere",
        "the serving model's step (docs/serving.md)",
        "perfmodel.serving.step.step",
    ),
    "turns of other batches": Explanation(
        "max(M + A, turns max(M, A)) - (M + A), M of the model without attention, A of attention and what crosses",
        "Lamina (arXiv 2405.01814), section 4.3",
        "perfmodel.compute_elsewhere.attention_there",
    ),
    "waits for weights": Explanation(
        "time in which blocks of layers wait for their weights, of which a window is in memory",
        "TPI-LLM (arXiv 2410.00531), section 3.3",
        "perfmodel.kv_equations.window_stall",
    ),
}
"""Terms by name."""

_STATES = "ZeRO-Offload (arXiv 2101.06840), section 4; ZeRO-Infinity (arXiv 2104.07857), section 4"

_TRAINING: dict[str, Explanation] = {
    "optimizer: ": Explanation(
        "max over resources of the update: bytes of the states, by their share in a tier, over its rate for reads and "
        "writes together, of what is brought to the accelerators over the links; cache lines that the host waits for",
        f"{_STATES}; Deep Optimizer States (arXiv 2410.21316)",
        "perfmodel.finetune.resource_times",
    ),
    " waits for ": Explanation(
        "max over resources of the phase - the accelerators': weights in, activations and gradients out, over rates",
        _STATES,
        "perfmodel.finetune.resource_times",
    ),
}
"""Terms of training by a part of their names, which go on with the resource's."""

_ENDINGS: dict[str, Explanation] = {
    " in": Explanation("towards the accelerators: " + _RATES, _FLEXGEN, _TIMES),
    " out": Explanation("from the accelerators: " + _RATES, _FLEXGEN, _TIMES),
    " read": Explanation("out of a tier: " + _RATES, _FLEXGEN, _TIMES),
    " write": Explanation("into a tier: " + _RATES, _FLEXGEN, _TIMES),
    " processor": Explanation(
        "attention over its rate there, plus copies from the tier, which wait for the processors",
        _FLEXGEN,
        _TIMES,
    ),
}


def kv_explanations(names: Iterable[str]) -> dict[str, Explanation]:
    """Return the explanations of terms of a breakdown, by name.

    Parameters
    ----------
    names : iterable of str
        Names of terms; those of links and tiers begin with theirs, those of training end with the resource's.
    """
    found = {}
    for name in names:
        ending = next((end for end in _ENDINGS if name.endswith(end)), "")
        inside = next((part for part in _TRAINING if part in name and name not in KV_EXPLANATIONS), "")
        known = KV_EXPLANATIONS.get(name) or _TRAINING.get(inside) or (_ENDINGS[ending] if ending else None)
        known = known or EXPLANATIONS.get(name.split(":")[0]) or SERVING_EXPLANATIONS.get(name)
        if known is not None:
            found[name] = known
    return found
