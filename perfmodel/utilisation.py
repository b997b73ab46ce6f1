"""Use of the accelerators' arithmetic by a training step."""

from __future__ import annotations

import numpy as np

from perfmodel.architecture import Architecture, attention_flops_per_token, model_flops_per_token
from perfmodel.job import Job
from perfmodel.plan import Plan
from perfmodel.terms import Array


def utilisation(job: Job, plan: Plan, step_time_s: Array) -> tuple[Array, Array]:
    """Return model and hardware FLOPs utilisation of a step of every plan.

    Notes
    -----
    MFU: model FLOPs (causal attention halved, logits counted, no look-up, no recomputation) over the dense peak of
    the matrix products' type. HFU adds a forward pass of the layers with full recomputation, of the attention core
    with selective.
    """
    tokens = job.global_batch * job.seq_len
    model, again = step_flops_per_token(job.architecture, job.seq_len)
    ideal = tokens / (job.ranks * job.peak * np.asarray(step_time_s))
    return model * ideal, (model + again[plan.recompute]) * ideal


def step_flops_per_token(architecture: Architecture, seq_len: int) -> tuple[float, Array]:
    """Return the model's FLOPs of a token, and those of no, of selective and of full recomputation."""
    model = model_flops_per_token(architecture, seq_len)
    core = sum(group.count * attention_flops_per_token(group, seq_len) for group in architecture.layers)
    logits = 2.0 * architecture.hidden * architecture.vocab * (1 + architecture.mtp_layers)
    return model, np.array([0.0, core, model / 3 - logits])


def ideal_step_s(job: Job) -> float:
    """Return the model FLOPs of a step at the peak of all accelerators: no plan can be faster [s]."""
    tokens = job.global_batch * job.seq_len
    fastest = max(job.peak, job.wide_peak)
    return model_flops_per_token(job.architecture, job.seq_len) * tokens / (job.ranks * fastest)
