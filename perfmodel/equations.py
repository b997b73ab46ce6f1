"""The equation behind every term of a step and where it comes from, as ``--explain`` prints them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """What a term is.

    Parameters
    ----------
    equation : str
        How its seconds are computed.
    source : str
        Papers, sections and equation numbers; measurements behind its constants.
    code : str
        Function that computes it.
    """

    equation: str
    source: str
    code: str


_STREAM = "launch + bytes / (e_m bandwidth) + waves of rows x latency of a row"
_KERNELS = "constants: hardware/catalog/kernels"
_PASS = "sum of the parts below, over the layers of the slowest stage and all micro-batches"

EXPLANATIONS: dict[str, Explanation] = {
    "step": Explanation(
        "pipeline stage + bubble + sends + gradient and weight traffic + slowdown + optimizer + host work",
        "SC21 (arXiv 2104.04473), section 2; ZeRO (arXiv 1910.02054), section 7",
        "perfmodel.training.predict_step",
    ),
    "pipeline stage": Explanation(
        "n max_i t_i: micro-batches times forward, backward and recomputation of the slowest stage",
        "SC21 (arXiv 2104.04473), section 2.2",
        "perfmodel.training.predict_step",
    ),
    "forward": Explanation(_PASS, "SC21 (arXiv 2104.04473), appendix", "perfmodel.layer.layer_cost"),
    "backward": Explanation(
        _PASS + "; two products for each of the forward pass, five for two in flash attention",
        "SC21 (arXiv 2104.04473), appendix; FlashAttention (arXiv 2205.14135), algorithm 4",
        "perfmodel.layer.layer_cost",
    ),
    "recomputation": Explanation(
        "the forward pass again: of everything (full) or of the attention core (selective)",
        "Korthikanti et al. (arXiv 2205.05198), section 5",
        "perfmodel.layer.layer_cost",
    ),
    "projections": Explanation(
        "min over tiles and splits of launch + (t_c^4 + t_port^4 + t_L2^4 + t_memory^4)^(1/4) for T x k by k x n; "
        "backward one product for the input's gradient and one that adds to 32-bit sums for the weight's",
        "NVIDIA, Matrix Multiplication Background; Stream-K (arXiv 2301.03598); " + _KERNELS + "/gemm.yaml",
        "perfmodel.kernels.gemm.time",
    ),
    "attention core": Explanation(
        "launch + longest row + tiles of 128 x 128 x t_tile / units + bytes / (e_m bandwidth), 5/2 of it backward; "
        "without flash attention the products of all s^2 scores",
        "FlashAttention-2 (arXiv 2307.08691), section 3; Korthikanti et al. (arXiv 2205.05198), section 4.1; "
        + _KERNELS
        + "/prefill.yaml",
        "perfmodel.kernels.prefill.time",
    ),
    "experts": Explanation(
        "a batch of experts/ep products as in projections, T/tp x experts_per_token copies spread evenly; over "
        "expert_products, what uneven loads and grouped kernels leave of their speed",
        "MegaBlocks (arXiv 2211.15841), section 3; " + _KERNELS + "/gemm.yaml",
        "perfmodel.operators.feed_forward_operators",
    ),
    "norms and activations": Explanation(
        _STREAM + ", half as many bytes again in the backward pass",
        "fitted on norms, rotations, activations and additions; " + _KERNELS + "/memory.yaml",
        "perfmodel.kernels.memory.time",
    ),
    "quantisation": Explanation(
        _STREAM + ": every factor of a narrow product read once and written twice",
        "assumption; the constants are those of kernels that stream; " + _KERNELS + "/memory.yaml",
        "perfmodel.operators.quantisation",
    ),
    "embedding": Explanation(
        _STREAM + ": the rows of the tokens read and written",
        "fitted on additions; " + _KERNELS + "/memory.yaml",
        "perfmodel.layer.embedding_cost",
    ),
    "logits and loss": Explanation(
        "a product of T x h by h x v/tp as in projections; the loss moves ten bytes a logit",
        "Korthikanti et al. (arXiv 2205.05198), section 4.3; " + _KERNELS + "/gemm.yaml, memory.yaml",
        "perfmodel.operators.head_operators",
    ),
    "tensor-parallel communication": Explanation(
        "per block and direction an all-reduce of T h elements, or with sequence parallelism an all-gather and a "
        "reduce-scatter, and one more all-gather backward; (tp-1)/tp of it can hide behind products with overlap_tp",
        "Korthikanti et al. (arXiv 2205.05198), figures 4 to 6",
        "perfmodel.layer.layer_cost",
    ),
    "context-parallel communication": Explanation(
        "ring: cp - 1 sends of keys and values behind (cp-1)/cp of the attention core, twice the bytes backward; "
        "ulysses: all-to-alls of queries, keys, values and outputs; all-gather: of keys and values forward and "
        "backward, and a reduce-scatter of their gradients; hybrid: the all-to-alls among u neighbours, and a ring of "
        "cp/u, u the largest divisor of cp, the places of a node and the heads of keys",
        "Ring attention (arXiv 2310.01889), section 3; DeepSpeed-Ulysses (arXiv 2309.14509), section 3; Llama 3 (arXiv "
        "2407.21783), section 3.3.2; USP (arXiv 2405.07719), section 3",
        "perfmodel.context_parallel.context_parallel",
    ),
    "expert all-to-all": Explanation(
        "two a direction: a token goes to experts_per_token ranks, over the network once for every node it visits",
        "DeepSeek-V3 (arXiv 2412.19437), section 3.2.2",
        "perfmodel.collectives.dispatch",
    ),
    "kernel launches by the host": Explanation(
        "(gpu^p + host^p)^(1/p) - gpu, host = kernels x host_per_kernel",
        "soft maximum; host_per_kernel and p: benchmarks/fit_training.py",
        "perfmodel.training.predict_step",
    ),
    "pipeline bubble": Explanation(
        "(sum_i t_i - max_i t_i) / vpp",
        "SC21 (arXiv 2104.04473), section 2.2; unequal stages: Alpa (arXiv 2201.12023), equation 2",
        "perfmodel.pipeline.bubble",
    ),
    "pipeline sends": Explanation(
        "2 (pp-1) sends to fill and drain, 2 vpp a micro-batch in between, which an interleaved schedule can hide",
        "SC21 (arXiv 2104.04473), section 2.2.2",
        "perfmodel.training.predict_step",
    ),
    "gradient traffic": Explanation(
        "ZeRO 0: all-reduce of P gradients; 1: reduce-scatter; 2: the same every micro-batch; 3: reduce-scatter and "
        "all-gather of weights, layer by layer; with overlap_dp all but a layer's share hides behind one backward pass",
        "ZeRO (arXiv 1910.02054), section 7",
        "perfmodel.training.predict_step",
    ),
    "weight traffic": Explanation(
        "ZeRO 1, 2: all-gather of P weights a step; 3: every micro-batch; with overlap_dp behind the forward pass",
        "ZeRO (arXiv 1910.02054), section 7",
        "perfmodel.training.predict_step",
    ),
    "slowdown under overlap": Explanation(
        "(overlap_slowdown - 1) x all communication hidden behind compute",
        "overlap slowdown coefficient of the Galvatron profiles",
        "perfmodel.training.predict_step",
    ),
    "optimizer": Explanation(
        "bytes of states, gradients (twice) and weights over e_m bandwidth; "
        "offloaded: the slower of host link and host memory",
        "Adam; ZeRO-Offload (arXiv 2101.06840), section 4",
        "perfmodel.training.predict_step",
    ),
    "host work per step": Explanation(
        "step_overhead of the framework", "benchmarks/fit_training.py", "perfmodel.training.predict_step"
    ),
}
"""Name of a term -> its explanation."""
