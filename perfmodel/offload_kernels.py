"""Kernels of inference whose state lies in several tiers: those of the serving model at the size of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfmodel.hit_curves import DEPTHS
from perfmodel.kernels import gemm
from perfmodel.kernels.work import Work, timed
from perfmodel.kv_cache import layer_kv_bytes_per_token
from perfmodel.offload import Kernels, Offload, remakes
from perfmodel.operators import wide
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.terms import Array, Number


def kernel_times(asked: Offload, gpu_batch: Number) -> tuple[Array, Array, Array]:
    """Return a batch's time of kernels for its prompts, for one token without attention, and for that attention [s]."""
    server = asked.server
    spread = Deployment(tp=asked.accelerators)
    count = gpu_batch if asked.rate is None else np.ones(np.shape(gpu_batch))
    if asked.shared is None:
        prompts = step(server, spread, Load(prompts=count, prompt_tokens=float(asked.prompt))).seconds
    else:
        first, rest = float(asked.shared.tokens), float(asked.prompt - asked.shared.tokens)
        groups = np.asarray(count, float) / asked.shared.requests
        prompts = step(server, spread, Load(prompts=groups, prompt_tokens=first)).seconds
        after = Load(prompts=count, prompt_tokens=rest, prompt_cached=first)
        prompts = prompts + step(server, spread, after).seconds
    alone = step(server, spread, Load(sequences=gpu_batch, context=1.0)).seconds
    # a group's prefix is read once for all of it
    context = asked.own_tokens(asked.seen_tokens)
    whole = step(server, spread, Load(sequences=gpu_batch, context=context)).seconds
    attention = np.maximum(np.asarray(whole) - np.asarray(alone), 0.0) + remaking_time(asked, gpu_batch)
    return np.asarray(prompts), np.asarray(alone), attention


def remaking_time(asked: Offload, gpu_batch: Number) -> Array:
    """Return the time in which a batch's keys and values are made of layers' inputs in a step [s].

    Products of the tokens held, the width of the model and that of keys and values: 4 d d_kv FLOP a token and layer.
    """
    total = np.zeros(np.shape(gpu_batch))
    if not asked.form.remade:
        return total
    server, ranks = asked.server, asked.accelerators
    form = wide(server.form)
    for layer in server.architecture.layers:
        if not remakes(asked, layer.attention):
            continue
        rows = np.asarray(gpu_batch, float) * asked.own_tokens(asked.seen_tokens)
        width = float(layer_kv_bytes_per_token(layer.attention, 1.0, ranks))
        work = Work(f"gemm.{form.variant}", gemm.product(rows, width, server.architecture.hidden, form))
        total = total + layer.count * timed([work], server.device, server.kernels)[0][0]
    return total


def spared_times(asked: Offload, gpu_batch: Array) -> Array:
    """Return what a batch's prompts are spared by each part of them that is found, from the front [s].

    The prompts' time less that of their rest behind so much of them; the last token is always computed.

    Parameters
    ----------
    asked : Offload
        The question.
    gpu_batch : array, shape (batches,)
        Sequences of a batch.

    Returns
    -------
    array, shape (DEPTHS, batches)
        Times [s].
    """
    cached = asked.prompt * np.arange(DEPTHS + 1) / DEPTHS
    cached[-1] = asked.prompt - 1
    cached = cached[:, None]
    count = gpu_batch if asked.rate is None else np.ones(np.shape(gpu_batch))
    load = Load(prompts=count, prompt_tokens=asked.prompt - cached, prompt_cached=cached)
    left = np.asarray(step(asked.server, Deployment(tp=asked.accelerators), load).seconds)
    return np.maximum(-np.diff(left, axis=0), 0.0)


def kernels_of(asked: Offload, gpu_batches: Sequence[int]) -> dict[int, Kernels]:
    """Return times of kernels by size of batch."""
    batches = np.array(gpu_batches, float)
    times = [np.broadcast_to(value, len(batches)).tolist() for value in kernel_times(asked, batches)]
    spared = [()] * len(batches) if asked.prefixes is None else spared_times(asked, batches).T.tolist()
    rows = zip(gpu_batches, *times, spared, strict=True)
    return {batch: Kernels(prompts, token, attention, tuple(parts)) for batch, prompts, token, attention, parts in rows}
