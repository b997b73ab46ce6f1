"""Power of serving instances in steady state."""

from __future__ import annotations

import numpy as np

from perfmodel.power.device import board_power_w
from perfmodel.power.node import nodes_power_w
from perfmodel.power.work import serving_activity, sizes_of
from perfmodel.serving.law import Demand, Speculation
from perfmodel.serving.server import PRECISIONS, Server
from perfmodel.terms import Array, Number


def instances_power_w(
    server: Server,
    demand: Demand,
    speculation: Speculation,
    *,
    accelerators: Number,
    replicas: Number,
    rate: Number,
    tpot_s: Number,
    tokens_per_step: Number = 1.0,
    token_budget: Number = 1.0,
    phase: str = "both",
) -> tuple[Array, Array]:
    """Return the power of an accelerator, and of the nodes of all instances of a kind [W].

    Parameters
    ----------
    server, demand, speculation : Server, Demand, Speculation
        Model, machine and engine; what requests are like; drafts.
    accelerators, replicas : array
        Accelerators of an instance; instances.
    rate : array
        Requests of all instances [1/s].
    tpot_s : array
        Mean time per output token [s].
    tokens_per_step : array
        Tokens that a sequence gets in a step.
    token_budget : array
        Tokens of a step of prompts.
    phase : str
        ``prompts``, ``tokens`` or ``both``: what the instances compute.

    Notes
    -----
    By Little's law an instance of rate x decodes n = x (O - 1) T sequences at a time, in x (O - 1)/max(n, 1) steps a
    second; below one sequence it waits between requests.
    """
    each = np.asarray(rate, float) / replicas
    steps_asked = each * max(demand.output_tokens - 1.0, 0.0) / np.asarray(tokens_per_step)
    running = steps_asked * np.asarray(tpot_s) * np.asarray(tokens_per_step)
    decoding = np.maximum(running, 1.0)
    steps = steps_asked / decoding
    prompts = each * demand.computed_tokens
    if phase == "prompts":
        decoding = np.zeros_like(decoding)
        steps = prompts / np.clip(token_budget, 1.0, None)
    if phase == "tokens":
        prompts = np.zeros_like(prompts)
    form = PRECISIONS[server.precision_weights]
    activity = serving_activity(
        sizes_of(server.architecture),
        server.machine.accelerator,
        accelerators=accelerators,
        steps_per_s=steps,
        sequences=decoding,
        context_tokens=demand.context_tokens,
        prompt_tokens_per_s=prompts + decoding * steps * np.asarray(speculation.drafted),
        weight_bytes=server.form.weight_bytes,
        cache_bytes=server.cache_bytes,
        block_scaled=float(form == "fp8_block"),
    )
    board_w = board_power_w(server.machine.accelerator, activity)
    return board_w, nodes_power_w(server.machine.node, np.asarray(accelerators) * replicas, board_w)
