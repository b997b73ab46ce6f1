"""Traffic of training that communicates less: compressed gradients, and updates every few steps.

What is modelled is bytes and time; that a method still converges is its authors' statement, not ours.
"""

from __future__ import annotations

import numpy as np

from perfmodel.collectives import CollectiveModel, Group, all_gather, all_to_all
from perfmodel.terms import Array, Number


def one_bit_ratio(element_bytes: Number, elements_per_scale: Number = np.inf) -> Number:
    """Return the bytes of a gradient sent as signs over those of the gradient [1].

    Parameters
    ----------
    element_bytes : float
        Bytes of an element that is not compressed [bytes].
    elements_per_scale : float
        Elements that share one scale of four bytes [1]; one for the whole tensor if left out.

    Notes
    -----
    A bit an element and 4 bytes a scale: 1/32 of 32-bit numbers (Tang et al., "1-bit Adam", arXiv 2102.02888).
    """
    return (1 / 8 + 4 / elements_per_scale) / element_bytes


def warmed_up_bytes(buffer_bytes: Number, ratio: Number, warm_up_share: Number) -> Number:
    """Return the mean bytes of a step over a run whose first part is not compressed [bytes].

    Parameters
    ----------
    buffer_bytes : float
        Gradients [bytes].
    ratio : float
        Of the compressed steps (`one_bit_ratio`).
    warm_up_share : float
        Share of the steps that are not compressed [1].
    """
    return buffer_bytes * (warm_up_share + (1 - warm_up_share) * ratio)


def compressed_all_reduce(
    ranks: Group, buffer_bytes: Number, model: CollectiveModel, *, ratio: Number, compress_s: Number = 0.0
) -> Array:
    """Return the time of an all-reduce of compressed gradients [s].

    Parameters
    ----------
    ranks : Group
        Who reduces.
    buffer_bytes : float
        Gradients before compression [bytes].
    model : CollectiveModel
        Constants.
    ratio : float
        Bytes after over before compression.
    compress_s : float
        Time to compress or expand all gradients once [s].

    Notes
    -----
    Signs do not add, so ranks exchange parts, average them, compress again and gather: an all-to-all and an all-gather
    of S x ratio each (1-bit Adam). Compressed and expanded twice, once all of it and once a rank's part.
    """
    sent = buffer_bytes * ratio
    spent = 2 * compress_s * (1 + 1 / ranks.size)
    return np.where(ranks.size > 1, all_to_all(ranks, sent, model) + all_gather(ranks, sent, model) + spent, 0.0)


def top_k_bytes(elements: Number, share: Number, value_bytes: Number = 4.0, index_bytes: Number = 4.0) -> Number:
    """Return the bytes of one rank's largest gradients and their places [bytes].

    Parameters
    ----------
    elements : float
        Gradients [1].
    share : float
        Share of them that is sent, 0.001 in the paper.
    value_bytes, index_bytes : float
        Bytes of a value and of its place [bytes].

    Notes
    -----
    Lin et al., "Deep Gradient Compression", arXiv 1712.01887, section 3.
    """
    return share * elements * (value_bytes + index_bytes)


def top_k_all_reduce(
    ranks: Group,
    elements: Number,
    model: CollectiveModel,
    *,
    share: Number,
    value_bytes: Number = 4.0,
    index_bytes: Number = 4.0,
    compress_s: Number = 0.0,
) -> Array:
    """Return the time to share the largest gradients of every rank [s].

    Parameters
    ----------
    ranks : Group
        Who reduces.
    elements : float
        Gradients [1].
    model : CollectiveModel
        Constants.
    share : float
        Share of them that is sent, 0.001 in the paper.
    value_bytes, index_bytes : float
        Bytes of a value and of its place [bytes].
    compress_s : float
        Time to find the largest [s].

    Notes
    -----
    Each rank's are others', so all are gathered: n x share x elements x (value + place) in all; with many ranks more
    than an all-reduce of everything (Lin et al., "Deep Gradient Compression", arXiv 1712.01887).
    """
    total = ranks.size * top_k_bytes(elements, share, value_bytes, index_bytes)
    return np.where(ranks.size > 1, all_gather(ranks, total, model) + compress_s, 0.0)


def local_updates(
    communication_s: Number, step_s: Number, every: Number, *, overlapped: bool = False
) -> tuple[Array, Array]:
    """Return what communication adds to a step, and what of it is hidden, where replicas meet every few steps [s].

    Parameters
    ----------
    communication_s : float
        One exchange of all parameters' updates [s].
    step_s : float
        A step without it [s].
    every : float
        Local steps between exchanges, H [1].
    overlapped : bool
        Whether the next H steps run meanwhile and take the result late.

    Notes
    -----
    T/H a step (Douillard et al., "DiLoCo", arXiv 2311.08105); overlapped max(T - H step, 0)/H (Sun et al.,
    "CO2", arXiv 2401.16265).
    """
    hidden = np.minimum(communication_s, every * step_s) if overlapped else np.zeros(np.shape(communication_s))
    return np.asarray((communication_s - hidden) / every), np.asarray(hidden / every)


def bandwidth_needed(
    ranks: Group, buffer_bytes: Number, step_s: Number, *, every: Number, ratio: Number = 1.0
) -> Array:
    """Return the rate of a rank's link at which an all-reduce hides behind the steps between two of them [bytes/s].

    2 (n-1)/n S ratio / (H step): below it even full overlap leaves communication exposed.
    """
    n = ranks.size
    return np.asarray(2 * (n - 1) / n * buffer_bytes * ratio / (every * step_s))
