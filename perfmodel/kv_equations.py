"""Closed forms of the literature on where keys and values, weights and states of training live; all take arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.terms import Array, Number


def reuse_bandwidth(
    flops_per_s: Number,
    prefix_tokens: Number,
    hidden: Number,
    group: Number,
    element_bytes: Number = 2.0,
    quadratic: Number = 4.0,
    linear: Number = 22.0,
) -> Array:
    """Return the bandwidth above which loading a prefix beats computing it [bytes/s].

    B / G > 2 d e / (g (a p d + b d^2)): keys and values of p tokens, 2 d e / g bytes each and layer, against
    a p^2 d + b p d^2 FLOP a layer (Qin et al., Mooncake, FAST 2025, equations 1 and 2).

    Parameters
    ----------
    flops_per_s : float or array
        Rate of computing, G [FLOP/s].
    prefix_tokens : float or array
        Length of the prefix, p [tokens].
    hidden : float or array
        Width of the model, d.
    group : float or array
        Query heads of a key-value head, g.
    element_bytes : float or array
        Bytes of an element of the cache, e.
    quadratic, linear : float or array
        FLOP of a layer over p^2 d and over p d^2, a and b: 4 and 22 for Llama-3-70B.
    """
    work = np.multiply(quadratic, prefix_tokens) * np.asarray(hidden, float) + linear * np.square(
        np.asarray(hidden, float)
    )
    return np.asarray(flops_per_s * 2.0 * np.asarray(hidden, float) * element_bytes / (group * work))


def meeting_point(chunks: int, first_s: float, growth_s: float, load_s: float) -> tuple[float, float]:
    """Return how many chunks to compute from the front while the rest is loaded from the back, and the time [s].

    b k^2 / 2 + (a - b / 2 + t) k - N t = 0, TTFT = (N - k) t (Jin et al., Cake, arXiv 2410.03065, section 3).

    Parameters
    ----------
    chunks : int
        Chunks of the prefix, N.
    first_s, growth_s : float
        Time to compute chunk i is a + b i [s].
    load_s : float
        Time to load a chunk, t [s].
    """
    b, c = first_s - growth_s / 2 + load_s, -chunks * load_s
    # the form of the root that stays exact where the quadratic term vanishes
    k = -2 * c / (b + float(np.sqrt(b * b - 2 * growth_s * c)))
    return k, (chunks - k) * load_s


def whole_meeting_point(chunks: int, first_s: float, growth_s: float, load_s: float) -> tuple[int, float]:
    """Return `meeting_point` in whole chunks: the one whose slower side is the fastest, and its time [s]."""
    k = np.arange(chunks + 1)
    slower = np.maximum(first_s * k + growth_s * k * (k - 1) / 2, (chunks - k) * load_s)
    best = int(np.argmin(slower))
    return best, float(slower[best])


def streamed_first_token(load_s: ArrayLike, compute_s: ArrayLike, last_store_s: float = 0.0) -> float:
    """Return the time of a prefill whose prefix is loaded layer by layer [s].

    The first layer's load, then of every layer the slower of its compute and the next load, then the last store.

    Parameters
    ----------
    load_s, compute_s : array, shape (layers,)
        Time to load a layer's prefix, and to compute the suffix in it [s].
    last_store_s : float
        Time to store the last layer's result [s].
    """
    load, compute = np.asarray(load_s, float), np.asarray(compute_s, float)
    following = np.append(load[1:], 0.0)
    return float(load[0] + np.maximum(compute, following).sum() + last_store_s)


def swap_time(size_bytes: Number, transfers: Number, start_s: Number, bandwidth: Number) -> Array:
    """Return the time to move keys and values out of, or back into, an accelerator's memory [s].

    transfers x start + bytes / B: pages that lie apart each start a copy (FastSwitch, arXiv 2411.18424).

    Parameters
    ----------
    size_bytes : float or array
        Keys and values [bytes].
    transfers : float or array
        Copies that they take.
    start_s, bandwidth : float or array
        Start of a copy [s], and rate of the path [bytes/s].
    """
    return np.asarray(np.multiply(transfers, start_s) + np.asarray(size_bytes, float) / bandwidth)


@dataclass(frozen=True)
class AttentionApart:
    """Attention of decoding on devices of its own (Chen et al., Lamina, arXiv 2405.01814, section 4).

    Parameters
    ----------
    model_s, attention_s : float or array
        Time of an iteration's products with weights, and of its attention [s].
    moved_bytes : float or array
        Queries, keys, values and results that cross in an iteration [bytes].
    bandwidth : float or array
        Rate at which crossing takes the given share of the iteration [bytes/s].
    """

    model_s: Array
    attention_s: Array
    moved_bytes: Array
    bandwidth: Array


def attention_apart(
    batch: Number,
    context: Number,
    *,
    parameters: float,
    hidden: float,
    layers: int,
    group: float,
    kv_bytes_per_token: float,
    flops_per_s: float,
    bandwidth: float,
    memory_bandwidth: float,
    memory_share: float,
    network_share: float,
    element_bytes: float = 2.0,
) -> AttentionApart:
    """Return what an iteration needs whose attention runs on other devices.

    Parameters
    ----------
    batch, context : float or array
        Sequences B, and tokens of each.
    parameters, hidden, layers, group : float
        Of the model: N, d, L, and query heads of a key-value head G.
    kv_bytes_per_token : float
        Keys and values of a token in all layers [bytes].
    flops_per_s, bandwidth : float
        Of the devices with the weights [FLOP/s, bytes/s].
    memory_bandwidth, memory_share : float
        Of the devices with keys and values [bytes/s], and the share of it that attention reaches [1].
    network_share : float
        Share of the iteration that crossing may take, alpha [1].
    element_bytes : float
        Bytes of an element, e.

    Notes
    -----
    MTIME = max(2 N B / F, e (N + 2 B d) / HBM); ATIME = B context kv / (share x memory); bytes (2 + 2 / G) e d B L.
    """
    n = np.asarray(batch, float)
    model = np.maximum(2 * parameters * n / flops_per_s, element_bytes * (parameters + 2 * n * hidden) / bandwidth)
    attention = n * context * kv_bytes_per_token / (memory_share * memory_bandwidth)
    moved = (2 + 2 / group) * element_bytes * hidden * n * layers
    return AttentionApart(
        model, np.asarray(attention), moved, np.asarray(moved / (network_share * (model + attention)))
    )


def overlapped_efficiency(flop_per_byte: Number, bandwidth: Number, flops_per_s: Number) -> Array:
    """Return the efficiency of computing that waits for its bytes: I B / (I B + peak) [1].

    Rajbhandari et al., ZeRO-Infinity (arXiv 2104.07857), equation 6.
    """
    moved = np.multiply(flop_per_byte, bandwidth)
    return np.asarray(moved / (moved + flops_per_s))


def efficiency_bandwidth(efficiency: Number, flop_per_byte: Number, flops_per_s: Number) -> Array:
    """Return the bandwidth at which `overlapped_efficiency` is reached [bytes/s]."""
    share = np.asarray(efficiency, float)
    return np.asarray(share * flops_per_s / ((1 - share) * flop_per_byte))


def parameter_intensity(sequence: Number, batch: Number) -> Number:
    """Return FLOP per byte of parameters and gradients: seq bsz (ZeRO-Infinity, equation 9)."""
    return sequence * batch


def optimizer_intensity(sequence: Number, batch: Number) -> Number:
    """Return FLOP per byte of optimizer states: seq bsz / 4 (ZeRO-Infinity, equation 10)."""
    return sequence * batch / 4


def activation_intensity(hidden: Number, checkpoint_interval: Number = 1.0) -> Number:
    """Return FLOP per byte of activation checkpoints: 24 hd ci (ZeRO-Infinity, equation 11)."""
    return 24 * hidden * checkpoint_interval


def interleaved_update(
    subgroups: float, host_s: float, device_s: float, in_s: float, out_s: float
) -> tuple[float, float]:
    """Return every how many subgroups the accelerator updates one, and the time of all updates [s].

    k = 1 + max(u_g, x_in + x_out) / u_c; S max(u_c (k - 1) / k, (x_in + x_out) / k) (Maurya et al., Deep Optimizer
    States, arXiv 2410.21316).

    Parameters
    ----------
    subgroups : float
        Subgroups of the optimizer's states, S.
    host_s, device_s : float
        Time to update one on the host and on the accelerator [s].
    in_s, out_s : float
        Time to bring one to the accelerator and back [s].
    """
    k = 1 + max(device_s, in_s + out_s) / host_s
    return k, subgroups * max(host_s * (k - 1) / k, (in_s + out_s) / k)


def window_is_tight(
    attention_s: float, feed_s: float, reduce_s: float, load_attention_s: float, load_feed_s: float
) -> bool:
    """Tell whether each block's load hides behind the block before it (Li et al., TPI-LLM, arXiv 2410.00531).

    Blocks of attention and feed-forward parts alternate, each followed by an all-reduce: t_attn + t_ar >= tau_ffn and
    t_ffn + t_ar >= tau_attn.
    """
    return attention_s + reduce_s >= load_feed_s and feed_s + reduce_s >= load_attention_s


def window_is_loose(
    attention_s: float, feed_s: float, reduce_s: float, load_attention_s: float, load_feed_s: float
) -> bool:
    """Tell whether the loads of a pair of blocks hide behind the pair: with a window of some blocks none waits."""
    return attention_s + feed_s + 2 * reduce_s >= load_attention_s + load_feed_s


def window_stall(compute_s: ArrayLike, load_s: ArrayLike, window: int) -> float:
    """Return how long blocks wait for their weights when a window of them is in memory [s].

    Parameters
    ----------
    compute_s, load_s : array, shape (blocks,)
        Time of each block with its all-reduce, and to load its weights [s].
    window : int
        Blocks in memory; the first are there at the start. A block is loaded once the one so many before it is done.
    """
    compute, load = np.asarray(compute_s, float), np.asarray(load_s, float)
    loaded = done = 0.0
    ends: list[float] = []
    for place, (spent, fetched) in enumerate(zip(compute, load, strict=True)):
        if place >= window:
            loaded = max(loaded, ends[place - window]) + fetched
        done = max(done, loaded) + spent
        ends.append(done)
    return done - float(compute.sum())


def kept_experts(experts: int, chosen: int, tokens: float, held: float, skew: float = 0.0) -> float:
    """Return which share of the distinct experts that a step chooses is there, in a cache of those used last [1].

    Parameters
    ----------
    experts, chosen : int
        Experts of a layer, E, and how many a token chooses, k.
    tokens : float
        Tokens of a step, n.
    held : float
        Share of the experts that the cache holds [1].
    skew : float
        Exponent of Zipf's law of how often they are chosen; 0 for all alike.

    Notes
    -----
    A step asks for expert i with q_i = 1 - (1 - min(k p_i, 1))^n. Last asked for g steps ago, with chance
    q_i (1 - q_i)^(g-1), it is still there if fewer others than there is room for were asked for since: in g - 1 whole
    steps, the end of one and the beginning of another. Their number is taken as normal, each asked for by itself: Che's
    characteristic time with its spread, which matters where a few steps fill the cache.
    """
    from math import erf

    room = held * experts
    if room >= experts - 1e-9 or room < 1:
        return float(room >= 1)
    popularity = np.arange(1, experts + 1, dtype=float) ** -skew
    share = np.minimum(chosen * popularity / popularity.sum(), 1 - 1e-12)
    asked = -np.expm1(tokens * np.log1p(-share))
    hits = 0.0
    away = (1 - asked / 2) ** 2  # of another expert: not asked for since
    since = asked.copy()  # last asked for so many steps ago
    while float(since.sum()) > 1e-9 * float(asked.sum()):
        mean, variance = float((1 - away).sum()), float((away * (1 - away)).sum())
        # of the others: one of the mean is the expert itself
        margin = room - 0.5 - mean * (1 - 1 / experts)
        there = (1 + erf(margin / max(2 * variance, 1e-12) ** 0.5)) / 2
        if there < 1e-9:
            break
        hits += there * float((asked * since).sum())
        since = since * (1 - asked)
        away = away * (1 - asked)
    return hits / float(asked.sum())


def window_memory_bytes(
    window: int,
    *,
    hidden: int,
    inner: int,
    vocab: int,
    heads: int,
    kv_heads: int,
    share: float,
    bytes_per_weight: float = 4.0,
) -> tuple[float, float]:
    """Return the weights that the first of several small devices, and each other, keep at most [bytes].

    The first keeps token table, output projection and last norm beside the blocks of its window; all keep
    gamma ([2 (1 + b/a) h^2 p + h] ceil(w/2) + [3 h s p + h] floor(w/2)) of w blocks (Li et al., TPI-LLM, arXiv
    2410.00531, section 3.4).

    Parameters
    ----------
    window : int
        Blocks in memory, w.
    hidden, inner, vocab, heads, kv_heads : int
        Sizes of the model: h, s, v, a, b.
    share : float
        Share of the heads and of the inner width that a device computes, p [1].
    bytes_per_weight : float
        gamma; 4 for 32-bit weights.
    """
    attention = 2 * (1 + kv_heads / heads) * hidden**2 * share + hidden
    feed = 3 * hidden * inner * share + hidden
    worker = bytes_per_weight * (attention * -(-window // 2) + feed * (window // 2))
    ends = bytes_per_weight * (2 * hidden * vocab + hidden)
    return ends + worker, worker


def access_rate(bandwidth: Number, latency_s: Number, cores: Number, lines_in_flight: Number) -> Array:
    """Return the rate at which cores stream a memory: its bandwidth, or what their lines under way allow [bytes/s].

    min(B, cores x lines x 64 B / latency), by Little's law: an optimizer on far memory may not reach its bandwidth.

    Parameters
    ----------
    bandwidth, latency_s : float or array
        Of the memory [bytes/s], [s].
    cores, lines_in_flight : float or array
        Cores that read, and cache lines that each waits for at once.
    """
    allowed = np.multiply(cores, lines_in_flight) * 64.0 / np.asarray(latency_s, float)
    return np.asarray(np.minimum(bandwidth, allowed))


def ranked_placement(size_bytes: ArrayLike, passes: ArrayLike, capacity_bytes: ArrayLike, rate: ArrayLike) -> Array:
    """Return which share of each tensor goes to which memory so that all accesses take the least time together.

    min sum_tk x_tk bytes_t passes_t / B_k under sum_t bytes_t x_tk <= C_k: the tensors read most often per byte go to
    the fastest memory that has room (an exchange of any two bytes otherwise placed gains nothing).

    Parameters
    ----------
    size_bytes, passes : array, shape (tensors,)
        Sizes [bytes], and how often each byte is moved.
    capacity_bytes, rate : array, shape (memories,)
        Sizes [bytes] and rates [bytes/s].

    Returns
    -------
    array, shape (tensors, memories)
        Shares, which add up to 1 for each tensor.

    Raises
    ------
    ValueError
        The memories cannot hold the tensors.
    """
    sizes, times = np.asarray(size_bytes, float), np.asarray(passes, float)
    room, speeds = np.array(capacity_bytes, float), np.asarray(rate, float)
    if sizes.sum() > room.sum():
        raise ValueError(f"the memories hold {room.sum():,.0f} bytes, the tensors take {sizes.sum():,.0f}")
    shares = np.zeros((len(sizes), len(room)))
    order = np.argsort(-speeds, kind="stable")
    for tensor in np.argsort(-times, kind="stable"):
        left = sizes[tensor]
        for memory in order:
            taken = min(left, room[memory])
            shares[tensor, memory] = taken / sizes[tensor] if sizes[tensor] else 0.0
            room[memory] -= taken
            left -= taken
        if not sizes[tensor]:
            shares[tensor, order[0]] = 1.0
    return shares
