"""The equation behind every term of a step over unequal sequences, as ``--explain`` prints them."""

from __future__ import annotations

from perfmodel.equations import EXPLANATIONS, Explanation

_OF_A_STEP = (
    "projections",
    "attention core",
    "experts",
    "norms and activations",
    "quantisation",
    "embedding",
    "logits and loss",
    "tensor-parallel communication",
    "context-parallel communication",
    "expert all-to-all",
    "kernel launches by the host",
    "slowdown under overlap",
    "gradient traffic",
    "weight traffic",
    "optimizer",
    "host work per step",
)
"""Terms that mean what they mean in a training step; within micro-steps, the share of the sequences of the chain."""

SEQUENCE_EXPLANATIONS: dict[str, Explanation] = {
    "step": Explanation(
        "micro-steps that set the time + optimizer + host work + gradient and weight traffic that is exposed",
        "FlexSP (arXiv 2412.01523), section 4; ByteScale (arXiv 2502.21231) where groups accumulate on their own",
        "solvers.sequence_case.makespan",
    ),
    "micro-steps": Explanation(
        "sum over the chain that ends last of c(d) + sum of w(s, d) over the sequences of each micro-step; "
        "w = (T(n, s, d) - c(d)) / n with n = d cap / s sequences and T the time of a full micro-step",
        "FlexSP (arXiv 2412.01523), section 4.1, with the models of kernels and collectives in place of fits",
        "perfmodel.sequence.sequence_costs",
    ),
    "sequences": Explanation(
        "sum of (a1 s^2 + a2 s) / d + a3 s / (d v_d) over the sequences of the chain that ends last",
        "FlexSP (arXiv 2412.01523), section 4.1",
        "perfmodel.sequence.AlphaBeta",
    ),
    "moves between layouts": Explanation(
        "in each layer, direction and micro-batch tokens move to equal numbers and back: min sum c_ij T_ij with "
        "surpluses as row sums and deficits as column sums; latency + the largest row or column, or (n/x)(b_intra + "
        "b_inter + b_intra) where what leaves a node is dealt out over its x accelerators",
        "Zeppelin, Balancing Variable-length Workloads in Data Parallel LLM Training: remapping, routing",
        "perfmodel.sequence_remap.moves",
    ),
    "fixed time of micro-steps": Explanation(
        "sum of c(d) = 2 T(n/2, s', d) - T(n, s', d), s' = cap / 2: what does not shrink with the tokens; sharded "
        "weights (ZeRO-3) add what of their gathering a full micro-step does not hide; with costs: b1 + b2 [d > 1]",
        "the line through a full and a half micro-step; ZeRO (arXiv 1910.02054), section 7",
        "perfmodel.sequence.sequence_costs",
    ),
    "pipeline bubble": Explanation(
        "(stages - 1) x the longest micro-step of the group that ends last, or behind barriers the longest micro-batch",
        "proportionate flow shop (Pinedo, Scheduling, section 6.1); ByteScale (arXiv 2502.21231): its balance",
        "solvers.sequence_case.group_ends",
    ),
    "pipeline sends": Explanation(
        "activations to the next stage and their gradients back, once each in every micro-step",
        "SC21 (arXiv 2104.04473), section 2.2.2",
        "perfmodel.training.send_to_next_s",
    ),
    **{name: EXPLANATIONS[name] for name in _OF_A_STEP},
}
"""Name of a term -> its explanation."""
