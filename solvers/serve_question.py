"""What a person writes about serving: a model on a cluster, requests, objectives, what may be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from hardware.units import Seconds, UsdPerHour, Watts
from perfmodel.serving.overlap import Overlap
from solvers.power_limit import PowerLimits

Size = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tokens = Annotated[float, Field(ge=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitsShare = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Precision = Literal["bf16", "fp16", "fp8", "fp8_block", "int8", "fp4", "nvfp4", "int8_wo", "int4_wo"]
CachePrecision = Literal["bf16", "fp16", "fp8", "int8"]
ServeObjective = Literal[
    "goodput_requests_per_s_per_gpu",
    "output_tokens_per_s_per_gpu",
    "cost_usd_per_million_tokens",
    "ttft_mean_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "energy_per_token_j",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServeArrivals(_Strict):
    """Requests that arrive whatever the engine does."""

    process: Literal["poisson", "gamma"]
    """Poisson, or gamma distributed times between arrivals, which come in bursts."""
    rate_rps: Amount | None = None
    """Requests per second of all replicas; as many as the objectives of latency allow if left out."""
    cv: Amount | None = None
    """Coefficient of variation of the times between arrivals; needed with gamma, 1 is Poisson."""
    profile: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (1.0,)
    """Factors of the rate over the day, of equal periods; what counts is the highest."""


class ServeClients(_Strict):
    """Clients that send the next request when the last is answered."""

    concurrency: Size
    """Clients of all replicas."""


class ServeTrace(_Strict):
    """Recorded requests, of which the busiest window counts."""

    trace: str
    """A file of our own columns, or as Azure, BurstGPT and Mooncake publish them."""
    window: Seconds = 300.0
    """Length of the window."""


def _arrivals_of(value: Any) -> str:
    """Tell how arrivals are given, so that a fault is told of that form alone."""
    if isinstance(value, Mapping | BaseModel):
        given = dict(value)
        # no name of a key, which a fault's place would be looked for below
        return "of clients" if "concurrency" in given else "of a trace" if "trace" in given else "of a process"
    return "word"


class ServeLengths(_Strict):
    """Tokens of requests."""

    isl: Tokens
    """Tokens that come in, on average."""
    osl: Tokens
    """Tokens that go out, on average."""
    isl_cv: NotNegative = 0.0
    """Coefficient of variation of the tokens that come in, log-normally distributed; 0 if all are equal."""
    osl_cv: NotNegative = 0.0
    """The same of those that go out."""


class ServeBin(_Strict):
    """Requests of one size."""

    isl: Size
    """Tokens that come in."""
    osl: Size
    """Tokens that go out."""
    weight: Amount
    """How many of the requests are like this, in any unit."""


class ServeHistogram(_Strict):
    """Sizes of requests with their weights."""

    histogram: tuple[ServeBin, ...] = Field(min_length=1)
    """Sizes and their weights."""


def _lengths_of(value: Any) -> str:
    return "of a histogram" if isinstance(value, Mapping | BaseModel) and "histogram" in dict(value) else "of a size"


class ServeWorkload(_Strict):
    """What is asked."""

    arrivals: Annotated[
        Annotated[ServeArrivals, Tag("of a process")]
        | Annotated[ServeClients, Tag("of clients")]
        | Annotated[ServeTrace, Tag("of a trace")]
        | Annotated[Literal["offline"], Tag("word")],
        Discriminator(_arrivals_of),
    ]
    """When requests come: a process, clients, a trace, or `offline`: all at once."""
    lengths: (
        Annotated[
            Annotated[ServeLengths, Tag("of a size")] | Annotated[ServeHistogram, Tag("of a histogram")],
            Discriminator(_lengths_of),
        ]
        | None
    ) = None
    """How long requests and answers are; a trace has its own."""
    prefix_hit: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the tokens that come in that is found in the cache."""
    expert_imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Load of the busiest rank of experts over the mean; 1 is balanced."""


class ServeSpeculation(_Strict):
    """Speculative decoding."""

    acceptance: Annotated[float, Field(ge=0, lt=1)]
    """Chance that a drafted token is accepted, if those before it were."""
    draft_cost: NotNegative
    """Time to draft a token over that of a step of the model without drafts."""


class ServeSlo(_Strict):
    """Objectives of latency: means and percentiles over requests."""

    ttft_mean: Seconds | None = None
    """Mean time to the first token."""
    ttft_p50: Seconds | None = None
    """Median time to the first token."""
    ttft_p90: Seconds | None = None
    """90th percentile of the time to the first token."""
    ttft_p99: Seconds | None = None
    """99th percentile of the time to the first token."""
    tpot_mean: Seconds | None = None
    """Mean time per output token after the first."""
    tpot_p50: Seconds | None = None
    """Median time per output token after the first."""
    tpot_p90: Seconds | None = None
    """90th percentile of the time per output token after the first."""
    tpot_p99: Seconds | None = None
    """99th percentile of the time per output token after the first."""
    e2e_mean: Seconds | None = None
    """Mean time from arrival to the last token."""

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by its name without the unit [s]."""
        return {name: float(limit) for name, limit in self.model_dump().items() if limit is not None}


class ServeSearch(_Strict):
    """What the planner may choose; a list left out means everything sensible."""

    tp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Tensor parallel sizes."""
    pp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Pipeline stages."""
    dp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Ranks of attention data parallelism in an instance."""
    ep: tuple[Size, ...] | None = Field(None, min_length=1)
    """Ranks that experts are spread over."""
    replicas: tuple[Size, ...] | None = Field(None, min_length=1)
    """Instances."""
    max_num_seqs: tuple[Size, ...] | None = Field(None, min_length=1)
    """Sequences that run at once on a rank of attention data parallelism."""
    max_num_batched_tokens: tuple[Size, ...] | None = Field(None, min_length=1)
    """Tokens of a step of such a rank."""
    precision_weights: tuple[Precision, ...] = Field(("bf16",), min_length=1)
    """Types of the weights."""
    precision_kv: tuple[CachePrecision, ...] | None = Field(None, min_length=1)
    """Types of the cache of keys and values; the engine's choice for the weights if left out."""
    draft_tokens: tuple[Count, ...] | None = Field(None, min_length=1)
    """Tokens drafted a step; 0 is no speculation."""
    disaggregated: tuple[bool, ...] = Field((False, True), min_length=1)
    """Whether prompts are computed by instances of their own."""
    layered_prefill: tuple[bool, ...] = Field((False,), min_length=1)
    """Whether prompts advance by groups of layers, whole, instead of by pieces."""
    overlap: tuple[Overlap, ...] = Field(("none",), min_length=1)
    """What of a step's two halves runs side by side."""
    prefill_share: tuple[UnitsShare, ...] = Field((0.0,), min_length=1)
    """Shares of every accelerator's compute units that compute prompts beside the others; 0: phases take turns."""
    power_cap_w: tuple[Watts, ...] | None = Field(None, min_length=1)
    """Powers that accelerators may be held to; five down to the lowest where energy counts, else the highest."""
    mixed: bool = False
    """Whether instances may be of several layouts; where further clusters are named they always may."""


def arrangements(search: ServeSearch) -> Iterator[tuple[bool, bool, Overlap, float]]:
    """Yield pools of their own, layered prefill, overlap and units of prompts; of the first three no two at once.

    Prompts that share no step with running sequences have no pieces to save.
    """
    for disaggregated, layered, share in dict.fromkeys(
        product(search.disaggregated, search.layered_prefill, search.prefill_share)
    ):
        if disaggregated + layered + bool(share) <= 1:
            for overlap in dict.fromkeys(search.overlap):
                yield disaggregated, layered, overlap, share


class ServePool(_Strict):
    """Instances of one phase of a disaggregated plan."""

    tp: Size = 1
    """Tensor parallel size."""
    pp: Size = 1
    """Pipeline stages."""
    dp: Size = 1
    """Ranks of attention data parallelism in an instance."""
    ep: Size = 1
    """Ranks that experts are spread over."""
    replicas: Size = 1
    """Instances."""
    max_num_seqs: Size | None = None
    """Sequences that run at once on a rank of attention data parallelism; the engine's default if left out."""
    max_num_batched_tokens: Size | None = None
    """Tokens of a step of such a rank; the engine's default if left out."""


class ServeGroup(ServePool):
    """Instances of one layout, phase and kind of accelerator, where a plan has several."""

    accelerator: str | None = None
    """On which accelerators; those of the cluster if left out."""
    phase: Literal["both", "prefill", "decode"] = "both"
    """Whether they compute prompts, the tokens after the first, or both."""
    precision_weights: Precision = "bf16"
    """Type of the weights."""
    precision_kv: CachePrecision | None = None
    """Type of the cache of keys and values."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of all requests that comes to them."""


class ServePlan(_Strict):
    """A deployment."""

    tp: Size = 1
    """Tensor parallel size."""
    pp: Size = 1
    """Pipeline stages."""
    dp: Size = 1
    """Ranks of attention data parallelism in an instance."""
    ep: Size = 1
    """Ranks that experts are spread over."""
    replicas: Size | None = None
    """Instances; as many as fit the cluster if left out."""
    max_num_seqs: Size | None = None
    """Sequences that run at once on a rank of attention data parallelism; the engine's default if left out."""
    max_num_batched_tokens: Size | None = None
    """Tokens of a step of such a rank; the engine's default if left out."""
    precision_weights: Precision = "bf16"
    """Type of the weights."""
    precision_kv: CachePrecision | None = None
    """Type of the cache of keys and values; the engine's choice for the weights if left out."""
    draft_tokens: Count = 0
    """Tokens drafted a step; 0 is no speculation."""
    disaggregated: bool = False
    """Whether prompts are computed by instances of their own; then the pools say the rest."""
    layered_prefill: bool = False
    """Whether prompts advance by groups of layers, whole, instead of by pieces: fewer readings of experts' weights."""
    overlap: Overlap = "none"
    """What of a step's two halves runs side by side: `communication` with kernels, or `operators` of all kinds."""
    prefill_share: UnitsShare = 0.0
    """Share of every accelerator's compute units that computes prompts beside the others; 0: phases take turns."""
    prefill: ServePool | None = None
    """Instances that compute prompts."""
    decode: ServePool | None = None
    """Instances that compute all tokens after the first."""
    power_cap_w: Watts | None = None
    """What accelerators are held to; the highest that is allowed if left out."""
    groups: tuple[ServeGroup, ...] | None = Field(None, min_length=1)
    """Instances of several layouts or kinds of accelerators; then the groups say everything."""


class ServeHardware(_Strict):
    """Accelerators of another kind."""

    cluster: str | dict[str, Any]
    """A cluster or node of the catalogue, a path, or the description itself."""
    nodes: Size | None = None
    """Nodes to use; all of a cluster if left out."""
    price_usd_per_hour: UsdPerHour | None = None
    """Of one accelerator; the description's if left out."""


class ServeQuestion(_Strict):
    """How to serve a model on a cluster."""

    kind: Literal["serve"]
    """Kind of question."""
    cluster: str | dict[str, Any]
    """A cluster or node of the catalogue, a path, or the description itself."""
    nodes: Size | None = None
    """Nodes to use; all of a cluster if left out."""
    price_usd_per_hour: UsdPerHour | None = None
    """Of one accelerator of the cluster; the description's if left out."""
    also: tuple[ServeHardware, ...] = ()
    """Further clusters, of other accelerators, on which instances may stand too."""
    model: str | dict[str, Any]
    """A bundled model, the path of a config.json, or its content."""
    engine: str = "vllm"
    """Inference engine: what it schedules, keeps and spends."""
    workload: ServeWorkload
    """What is asked."""
    slo: ServeSlo = ServeSlo()
    """Objectives of latency."""
    speculative: ServeSpeculation | None = None
    """Speculative decoding, where a plan drafts tokens."""
    power: PowerLimits = PowerLimits()
    """What nodes may draw."""
    search: ServeSearch = ServeSearch()
    """What the planner may choose."""
    objective: ServeObjective = "goodput_requests_per_s_per_gpu"
    """What is optimised."""
    plan: ServePlan | None = None
    """What `predict` costs; for `plan`, what runs today."""
