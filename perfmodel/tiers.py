"""Weights, keys and values, and activations of inference over an accelerator, host memory and disk: time and memory.

FlexGen's cost model (Sheng et al., arXiv 2303.06865, section 4.3 and appendix A.3) in the form of its released program,
which differs from the paper: loads from the host are not hidden, activations are not kept on disk, and working sets add
up. A block of `gpu_batch` x `num_batches` sequences goes through the model layer by layer. Every quantity is linear in
the placement, so that these lines both cost a plan and, asked about unit placements, give a linear problem its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.terms import Array, Number

FRACTIONS = (
    "weights_gpu",
    "weights_host",
    "weights_disk",
    "kv_gpu",
    "kv_host",
    "kv_disk",
    "activations_gpu",
    "activations_host",
    "activations_disk",
)
"""Names of the fractions of a placement."""


@dataclass(frozen=True)
class Placement:
    """Which share of what is where, every field a number or an array; the shares of one object add up to one."""

    weights_gpu: Number
    weights_host: Number
    weights_disk: Number
    kv_gpu: Number
    kv_host: Number
    kv_disk: Number
    activations_gpu: Number
    activations_host: Number
    activations_disk: Number


@dataclass(frozen=True)
class Block:
    """A model, and the sequences that go through it together.

    Parameters
    ----------
    layers : int
        Layers of the model.
    weight_bytes : float
        Weights of a layer as stored [bytes].
    kv_bytes : float
        Keys and values of one token in one layer [bytes].
    hidden_bytes : float
        Activations of one token between layers [bytes].
    inner_bytes : float
        The same inside the feed-forward part [bytes].
    heads : int
        Attention heads.
    flops : float
        Products with weights of one token in one layer, 2 for each weight [FLOP].
    attention_flops : float
        Attention of one token to one other in one layer [FLOP].
    prompt, generated : int
        Tokens of each sequence that come in and go out.
    gpu_batch, num_batches : int
        Sequences that the accelerator computes at once, and how many such batches follow each other in every layer.
    """

    layers: int
    weight_bytes: float
    kv_bytes: float
    hidden_bytes: float
    inner_bytes: float
    heads: int
    flops: float
    attention_flops: float
    prompt: int
    generated: int
    gpu_batch: int
    num_batches: int

    @property
    def sequences(self) -> int:
        """Sequences of a block."""
        return self.gpu_batch * self.num_batches

    @property
    def tokens(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt + self.generated


@dataclass(frozen=True)
class Rates:
    """How fast bytes and products go.

    Parameters
    ----------
    host_to_gpu, gpu_to_host_kv, gpu_to_host_activations : float
        Copies [bytes/s].
    disk_to_host, host_to_disk_kv, host_to_disk_activations, host_to_disk_decode : float
        Reads; writes of keys and values of prompts, of activations of prompts, and of both while generating [bytes/s].
    disk_weights : float
        Share of `disk_to_host` that weights get while tokens are generated [1].
    products_prefill, attention_prefill, products_decode, attention_decode : float
        Products with weights, and attention, of prompts and of single tokens on the accelerator [FLOP/s].
    host_attention : float
        Attention to keys and values that are not on the accelerator [FLOP/s].
    """

    host_to_gpu: float
    gpu_to_host_kv: float
    gpu_to_host_activations: float
    disk_to_host: float
    host_to_disk_kv: float
    host_to_disk_activations: float
    host_to_disk_decode: float
    disk_weights: float
    products_prefill: float
    attention_prefill: float
    products_decode: float
    attention_decode: float
    host_attention: float


def host_attention_correction(gpu_batch: int, hidden: int) -> float:
    """Return what is left of a host's rate of attention for small batches and widths, as FlexGen's program has it [1].

    max(0.1, 1 + 0.0168 a b - 0.0328 a - 0.0621 b) with a, b the halvings of the batch below 64, the width below 4096.
    """
    a, b = max(0.0, np.log2(64 / gpu_batch)), max(0.0, np.log2(4096 / hidden))
    return float(max(0.1, 1 + 0.0168 * a * b - 0.0328 * a - 0.0621 * b))


def transfer_times(block: Block, rates: Rates, at: Placement) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the times of what one layer moves and computes, for prompts and for one token of each sequence.

    Parameters
    ----------
    block, rates : Block, Rates
        What goes through, and how fast.
    at : Placement
        Where it is, every field a number or an array.

    Returns
    -------
    tuple of dict
        ``host_to_gpu``, ``gpu_to_host``, ``disk_to_host``, ``host_to_disk`` and ``compute`` [s], averaged over the
        generation (appendix A.3).
    """
    n, s = block.sequences, block.prompt
    weights, kv = block.weight_bytes, block.kv_bytes * n
    seen = s + block.generated / 2
    hidden = block.hidden_bytes * n
    off_weights = at.weights_host + at.weights_disk
    off_kv = at.kv_host + at.kv_disk
    off_activations = at.activations_host + at.activations_disk
    prompts = {
        "host_to_gpu": (weights * off_weights + s * hidden * off_activations) / rates.host_to_gpu,
        "gpu_to_host": kv * (s + 1) * off_kv / rates.gpu_to_host_kv
        + s * hidden * off_activations / rates.gpu_to_host_activations,
        "disk_to_host": (weights * at.weights_disk + s * hidden * at.activations_disk) / rates.disk_to_host,
        "host_to_disk": kv * (s + 1) * at.kv_disk / rates.host_to_disk_kv
        + s * hidden * at.activations_disk / rates.host_to_disk_activations,
        "compute": n * s * block.flops / rates.products_prefill
        + n * s * s * block.attention_flops / rates.attention_prefill
        + 0.0 * off_kv,
    }
    attended = n * seen * block.attention_flops
    tokens = {
        "host_to_gpu": (weights * off_weights + hidden * off_activations) / rates.host_to_gpu,
        "gpu_to_host": hidden * off_activations / rates.gpu_to_host_activations,
        "disk_to_host": (kv * seen * at.kv_disk + hidden * at.activations_disk) / rates.disk_to_host
        + weights * at.weights_disk / (rates.disk_weights * rates.disk_to_host),
        "host_to_disk": (kv * at.kv_disk + hidden * at.activations_disk) / rates.host_to_disk_decode,
        "compute": n * block.flops / rates.products_decode
        + attended * at.kv_gpu / rates.attention_decode
        + attended * off_kv / rates.host_attention,
    }
    return prompts, tokens


PROMPT_OVERLAP = (("host_to_gpu", "disk_to_host"), ("gpu_to_host", "host_to_disk"), ("compute",))
TOKEN_OVERLAP = (
    ("host_to_gpu", "gpu_to_host"),
    ("host_to_gpu", "disk_to_host"),
    ("host_to_gpu", "host_to_disk"),
    ("host_to_gpu", "compute"),
)
"""Sums of times, the largest of which is the time of a layer: what is in one sum does not overlap."""


def layer_times(block: Block, rates: Rates, at: Placement) -> tuple[Array, Array]:
    """Return the time of a layer for the prompts of a block, and for one token of each of its sequences [s]."""
    found = []
    for times, overlap in zip(transfer_times(block, rates, at), (PROMPT_OVERLAP, TOKEN_OVERLAP), strict=True):
        sums = [np.asarray(sum(times[name] for name in names), float) for names in overlap]
        found.append(np.maximum.reduce(np.broadcast_arrays(*sums)))
    return found[0], found[1]


def block_time(block: Block, rates: Rates, at: Placement) -> Array:
    """Return the time of a block from its prompts to its last tokens [s]."""
    prompts, tokens = layer_times(block, rates, at)
    return np.asarray(block.layers * (prompts + (block.generated - 1) * tokens))


def memory_bytes(block: Block, at: Placement) -> dict[str, Number]:
    """Return what a block holds in each memory, in the phase of prompts and of tokens.

    Parameters
    ----------
    block : Block
        What goes through.
    at : Placement
        Where it is, every field a number or an array.

    Returns
    -------
    dict
        ``gpu_prefill``, ``gpu_decode``, ``host_prefill``, ``host_decode``, ``disk`` [bytes]: what lives there and the
        largest working set of a layer.
    """
    layers, weights, b, n = block.layers, block.weight_bytes, block.gpu_batch, block.sequences
    s, end, kv, h, inner = block.prompt, block.tokens, block.kv_bytes, block.hidden_bytes, block.inner_bytes
    stored = weights * layers
    cache = kv * end * n * layers
    scores = 2 * block.heads
    elsewhere = 1 - at.weights_gpu
    moved = 1 - at.activations_gpu
    return {
        "gpu_prefill": stored * at.weights_gpu
        + s * h * n * at.activations_gpu
        + cache * at.kv_gpu
        + 2 * weights * elsewhere
        + s * h * b * moved
        + b * (4 * s * h + s * h + scores * s * s + s * h + 2 * s * h + s * inner + s * h),
        "gpu_decode": stored * at.weights_gpu
        + h * n * at.activations_gpu
        + cache * at.kv_gpu
        + 2 * weights * elsewhere
        + h * b * moved
        + kv * b * end * at.kv_gpu
        + 4 * b * h
        + b * at.kv_gpu * (2 * h + 2 * end * h + scores * end)
        + 2 * b * h
        + b * inner
        + b * h,
        "host_prefill": stored * at.weights_host
        + s * h * n * at.activations_host
        + kv * s * n * layers * at.kv_host
        + weights * elsewhere
        + s * h * b * moved,
        "host_decode": stored * at.weights_host
        + h * n * at.activations_host
        + cache * at.kv_host
        + weights * at.weights_disk
        + 2 * h * b * at.activations_disk
        + 2 * kv * end * b * at.kv_disk
        + scores * end * b
        + h * b,
        "disk": stored * at.weights_disk + s * h * n * at.activations_disk + cache * at.kv_disk,
    }


MEMORY_OF = {
    "gpu_prefill": "gpu",
    "gpu_decode": "gpu",
    "host_prefill": "host",
    "host_decode": "host",
    "disk": "disk",
}
"""Which memory an amount of `memory_bytes` is in."""


def unit_placements() -> Placement:
    """Return placements as arrays: nothing anywhere, then all of one fraction alone.

    A quantity asked about these is, in this order, its constant and its constant plus each coefficient.
    """
    units = np.concatenate([np.zeros((1, len(FRACTIONS))), np.eye(len(FRACTIONS))])
    return Placement(**{name: units[:, number] for number, name in enumerate(FRACTIONS)})


def affine(quantity: Number) -> tuple[float, dict[str, float]]:
    """Return the constant and the coefficients of a quantity that was asked about `unit_placements`."""
    values = np.broadcast_to(np.asarray(quantity, float), (len(FRACTIONS) + 1,))
    return float(values[0]), dict(zip(FRACTIONS, (values[1:] - values[0]).tolist(), strict=True))
