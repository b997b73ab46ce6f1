"""What a person writes about where the state of serving lives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hardware.units import PositiveBytes, Seconds

Size = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
WeightPrecision = Literal["bf16", "fp16", "fp8", "int8_wo", "int4_wo"]
CachePrecision = Literal["bf16", "fp16", "fp8", "int8", "int4", "int3", "int2"]
Loading = Literal["recompute", "load", "both"]
Reuse = Literal["prefix", "anywhere"]
Devices = Annotated[int, Field(strict=True, ge=0)]
Ratio = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class KvLengths(_Strict):
    """Tokens of every sequence."""

    isl: Size
    """Tokens that come in."""
    osl: Annotated[int, Field(strict=True, ge=2)]
    """Tokens that go out."""


class KvArrivals(_Strict):
    """Requests that come over time."""

    process: Literal["poisson"] = "poisson"
    """How they come: at random."""
    rate_rps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Requests a second, to all nodes."""


class KvReuse(_Strict):
    """Prefixes that requests share."""

    trace: str | None = None
    """Path of recorded requests with the blocks of their prompts."""
    hit_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """In place of a trace, share of prompt tokens found by a cache that holds the whole working set."""
    working_set: PositiveBytes | None = None
    """Size of that cache, as keys and values are kept, such as 2 TiB; a smaller one finds in proportion."""
    block_tokens: Size = 512
    """Tokens of a block."""
    levels: Annotated[dict[str, Ratio], Field(min_length=1)] = {"as_kept": 1.0}
    """Names of formats of the stored copies, the least lossy first, with their bytes over those that kernels read."""
    recomputed: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the tokens found that is computed all the same where blocks count anywhere, as it is stated for the
    method."""


class KvSharedPrefix(_Strict):
    """A prefix that each sequence of a group begins with."""

    tokens: Size
    """Tokens of it."""
    requests: Annotated[int, Field(strict=True, ge=2)]
    """Sequences of a group."""


class KvWorkload(_Strict):
    """What is asked."""

    kind: Literal["serve"] = "serve"
    """What the model does."""
    arrivals: Literal["offline"] | KvArrivals = "offline"
    """When requests come: all at once, or at a rate."""
    lengths: KvLengths
    """How long sequences are."""
    reuse: KvReuse | None = None
    """Prefixes that requests share over time: what a cache of them in the memory left free is worth."""
    shared_prefix: KvSharedPrefix | None = None
    """What sequences of a block share, of one tenant or of several."""
    kv_bytes_per_token: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Keys and values of a token in all layers, to be checked against the model's [bytes]."""


class KvSearch(_Strict):
    """What may be chosen."""

    tiers: tuple[str, ...] | None = None
    """Memories that may be used: hbm and names of the node's tiers; all if left out."""
    gpu_batch: tuple[Size, ...] = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
    """Sequences of a batch."""
    num_batches: tuple[Size, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    """Batches that follow each other in every layer."""
    precision_weights: tuple[WeightPrecision, ...] = ("fp16",)
    """Types of the weights."""
    precision_kv: tuple[CachePrecision, ...] = ("fp16",)
    """Types of keys and values."""
    keep: tuple[Ratio, ...] = (1.0,)
    """Shares of a prompt's tokens whose keys and values are kept; what that costs in quality is yours to know."""
    remade: tuple[bool, ...] = (False,)
    """Whether layers' inputs are kept and keys and values made of them in every step."""
    share_prefix: tuple[bool, ...] = (True,)
    """Whether what sequences of a block share is computed and held once."""
    loading: tuple[Loading, ...] = ("recompute", "load", "both")
    """What is done with prefixes found in a tier: computed again, loaded while the prompt waits, or both at once."""
    reuse: tuple[Reuse, ...] = ("prefix",)
    """Where a block found counts: after found ones only, or anywhere, with a share computed again."""
    levels: tuple[str, ...] | None = None
    """Names of formats of the stored copies; all of workload.reuse.levels if left out."""
    devices: dict[str, tuple[Devices, ...]] | None = None
    """How many devices of a tier a node may have, to be bought at the least cost; up to those there if left out."""


class KvSlo(_Strict):
    """Limits of latency."""

    ttft_mean: Seconds | None = None
    """Time until the prompts of a block are computed, such as 60 s."""
    tpot_mean: Seconds | None = None
    """Time between tokens of a sequence, such as 200 ms."""
    tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Generated tokens a second that all nodes together answer at least."""


class KvPlan(_Strict):
    """Where everything is."""

    placement: dict[Literal["weights", "kv", "activations"], dict[str, Share]]
    """Shares of each object by tier, which add up to one."""
    attention_there: dict[str, Share] | None = None
    """Share of a tier's keys and values that processors there attend to; all where there are such, if left out."""
    gpu_batch: Size
    """Sequences of a batch."""
    num_batches: Size
    """Batches of a block."""
    precision_weights: WeightPrecision = "fp16"
    """Type of the weights."""
    precision_kv: CachePrecision = "fp16"
    """Type of keys and values."""
    keep: Ratio = 1.0
    """Share of a prompt's tokens whose keys and values are kept."""
    remade: bool = False
    """Whether layers' inputs are kept in place of keys and values."""
    share_prefix: bool = True
    """Whether what sequences of a block share is computed and held once."""
    loading: Loading = "recompute"
    """What is done with prefixes found in a tier."""
    reuse: Reuse = "prefix"
    """Where a block found counts."""
    level: str | None = None
    """Format of the stored copies; the first of workload.reuse.levels if left out."""
    cache: dict[str, Share] = {}
    """Share of each tier that a cache of prefixes takes."""
    devices: dict[str, Devices] | None = None
    """Devices of each tier of a node; those of the cluster if left out."""
    loaded: dict[str, tuple[Share, ...]] | None = None
    """Share of all prompt tokens that is loaded from each tier, by quarter of the prompts; all found if left out."""


class KvQuestion(_Strict):
    """Where weights, keys and values, and activations live."""

    kind: Literal["kv"]
    """Kind of question."""
    cluster: str | dict[str, Any]
    """A node or cluster of the catalogue, a path, or the description itself; one node of it is used."""
    nodes: Size = 1
    """Nodes alike; a tier that network adapters reach is one pool for all of them."""
    model: str | dict[str, Any]
    """A model of the catalogue, a path, or the description itself."""
    engine: str = "flexgen"
    """What runs it: overheads of the host and memory that it takes."""
    workload: KvWorkload
    """What is asked."""
    search: KvSearch = KvSearch()
    """What may be chosen."""
    slo: KvSlo = KvSlo()
    """Limits of latency."""
    objective: Literal["tokens_per_s", "ttft_mean_s", "tpot_mean_s", "cost_usd_per_hour"] = "tokens_per_s"
    """What is optimised: tokens per second are to be many, times to the first and between tokens short, cost low."""
    usd_per_kwh: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Price of the energy that tiers draw, part of the cost."""
    plan: KvPlan | None = None
    """What `predict` costs; for `plan`, what runs today."""
