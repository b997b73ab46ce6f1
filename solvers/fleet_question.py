"""What a person writes about a fleet: accelerators that can be rented, classes of requests, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from hardware.units import Seconds, UsdPerHour, Watts
from solvers.serve_question import ServeSlo

Size = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Profile = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_by_name=True, validate_by_alias=True
    )


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


def _or_by_name(value: Any) -> str:
    return "by name" if isinstance(value, Mapping) else _one_or_several(value)


def _list_or_by_name(value: Any) -> str:
    return "by name" if isinstance(value, Mapping) else "several"


Numbers = tuple[NotNegative, ...]
Several = Annotated[tuple[Size, ...], Field(min_length=1), Tag("several")]
Sizes = Annotated[Annotated[Size, Tag("one")] | Several, Discriminator(_one_or_several)]
SizesByModel = Annotated[
    Annotated[Size, Tag("one")] | Several | Annotated[dict[str, Sizes], Tag("by name")], Discriminator(_or_by_name)
]
Precisions = Annotated[
    Annotated[str, Tag("one")] | Annotated[tuple[str, ...], Field(min_length=1), Tag("several")],
    Discriminator(_one_or_several),
]
ByClass = Annotated[
    Annotated[Numbers, Tag("several")]
    | Annotated[dict[Annotated[int, Field(ge=1)], Numbers], Field(min_length=1), Tag("by name")],
    Discriminator(_list_or_by_name),
]


class FleetAccelerator(_Strict):
    """A kind of accelerator that can be rented."""

    name: str
    """What to call it; a name of the catalogue, unless type says which it is."""
    type: str | None = None
    """Its name in the catalogue, where several offers are of one type."""
    price_usd_per_hour: UsdPerHour | None = None
    """Of one accelerator on demand; the catalogue's if no price is given."""
    reserved_price_usd_per_hour: UsdPerHour | None = None
    """Of one accelerator that is rented for the whole day."""
    spot_price_usd_per_hour: UsdPerHour | None = None
    """Of one accelerator that may be taken away."""
    spot_availability: Share | None = None
    """Share of the accelerators rented on the spot market that is counted on; needed with a spot price."""
    max: Count | None = None
    """Accelerators there are; any number if left out."""
    accelerators_per_instance: SizesByModel | None = None
    """Accelerators that hold one replica of a model: a number or several to choose from, or these by model. 1 with
    given throughputs, otherwise any power of two inside a node."""
    node: str | None = None
    """Node whose links join the accelerators of an instance: a name of the catalogue or a path; the first of the
    catalogue with such accelerators if left out."""
    precision_weights: Precisions = "bf16"
    """Type of the weights, or several to choose from."""
    power: Watts | None = None
    """Of one accelerator, with its share of the host; the catalogue's limit if left out."""
    site: str | None = None
    """Where it stands; the first site if left out."""
    utilisation_max: Share | None = None
    """Share of an instance's throughput that may be used; the headroom's if left out."""
    throughput_requests_per_s: ByClass | None = None
    """Requests of each class that one instance sustains within the objectives, in the order of the classes; 0 where
    it cannot; by accelerators of an instance where there are several to choose from; predicted if left out."""
    latency_s: ByClass | None = None
    """Mean time of one request of each class from end to end, in the same form; needed with request graphs where
    throughputs are given."""
    latency_std_s: ByClass | None = None
    """Standard deviation of that time, in the same form; needed with limits of percentiles."""


class FleetClass(_Strict):
    """Requests of one size."""

    name: str | None = None
    """What to call it; its lengths if left out."""
    isl: Size
    """Tokens that come in."""
    osl: Size
    """Tokens that go out."""
    rate_rps: NotNegative = 0.0
    """Requests per second, beside those of the request graphs."""
    model: str | None = None
    """Its model; the scenario's if left out."""
    profile: Profile | None = None
    """Factors of its rate over the day; the workload's if left out."""


class FleetCall(_Strict):
    """One call of a request graph."""

    name: str
    """What to call it."""
    class_: str = Field(alias="class")
    """The class of requests it is."""
    count: Amount = 1.0
    """Such calls of one request, one after another; a mean."""
    after: tuple[str, ...] = ()
    """Calls whose answers it waits for."""


class FleetPath(_Strict):
    """A path with a limit of its own."""

    calls: tuple[str, ...] = Field(min_length=1)
    """Names of its calls."""
    latency: Seconds
    """What they may take together."""


class FleetGraph(_Strict):
    """Requests that are answered by several calls."""

    name: str
    """What to call it."""
    rate_rps: NotNegative
    """Requests per second, each of which makes all calls."""
    latency: Seconds
    """What the longest path from the first to the last call may take."""
    statistic: Literal["mean", "p90", "p99"] = "mean"
    """Of the time of a path, what its limits are for."""
    calls: tuple[FleetCall, ...] = Field(min_length=1)
    """Its calls."""
    paths: tuple[FleetPath, ...] = ()
    """Paths with limits of their own."""
    profile: Profile | None = None
    """Factors of its rate over the day; the workload's if left out."""


class FleetTrace(_Strict):
    """Recorded requests, to be cut into classes."""

    file: str
    """Requests with their times and lengths, as the project writes them or Azure, BurstGPT or Mooncake publish them."""
    input_edges: tuple[Size, ...] = (128, 512, 2048, 8192)
    """Longest prompt of each class but the last [tokens]."""
    output_edges: tuple[Size, ...] = (64, 256, 1024)
    """Longest answer of each class but the last [tokens]."""
    periods: Size = 1
    """Equal parts of the trace's time that are planned on their own."""
    rate_rps: Amount | None = None
    """Mean rate to scale it to; its own if left out."""


class FleetWorkload(_Strict):
    """What is asked of the fleet."""

    classes: tuple[FleetClass, ...] = ()
    """Classes of requests."""
    trace: FleetTrace | None = None
    """Recorded requests, in place of classes."""
    graphs: tuple[FleetGraph, ...] = ()
    """Requests that are answered by several calls, each of one of the classes."""
    profile: Profile = (1.0,)
    """Factors of all rates over the day, of equal periods, such as 24 hours."""
    slice_factor: Size | None = None
    """Equal parts a class is cut into, each of which goes to one kind of accelerator; any share if left out."""


class FleetHeadroom(_Strict):
    """What is rented beyond the mean."""

    utilisation_max: Share = 1.0
    """Share of an instance's throughput that may be used."""
    lost_instances: Count = 0
    """Instances of any one kind that may fail while all others carry the requests; 1 for N+1."""


class FleetSite(_Strict):
    """A place with a limit of its own."""

    name: str
    """What to call it."""
    power: Watts | None = None
    """What all accelerators there may draw; no limit if left out."""


class FleetPurchase(_Strict):
    """Accelerators of one kind by way to rent."""

    reserved: Count = 0
    """For the whole day."""
    on_demand: Count = 0
    """By the period."""
    spot: Count = 0
    """By the period, and they may be taken away."""


class FleetPool(_Strict):
    """Instances of one model, size and type of weights on one kind of accelerator."""

    name: str | None = None
    """What the answer calls them."""
    accelerator: str
    """The kind."""
    model: str
    """The model."""
    accelerators_per_instance: Size
    """Accelerators of an instance."""
    precision_weights: str | None = None
    """Type of the weights; none with given throughputs."""
    instances: Count
    """How many."""
    share: dict[str, NotNegative] = {}
    """Share of each class that goes to them."""


class FleetPeriod(_Strict):
    """What is rented in some periods of the day."""

    periods: tuple[Count, ...] = Field(min_length=1)
    """Numbers of the periods, from 0."""
    counts: dict[str, Count]
    """Accelerators of each kind."""
    purchases: dict[str, FleetPurchase] | None = None
    """How they are rented; as cheaply as may be if left out."""
    routing: dict[str, dict[str, NotNegative]] | None = None
    """Share of each class on each kind; any if left out."""
    instances: dict[str, dict[str, Count]] | None = None
    """Instances of each model on each kind."""
    pools: tuple[FleetPool, ...] | None = None
    """Instances where a kind offers several sizes or types of weights; in place of routing and instances."""
    failover: dict[str, dict[str, dict[str, NotNegative]]] | None = None
    """Routing after the loss of instances of each kind, as an answer has it; not read."""


class FleetPlan(_Strict):
    """Accelerators, and the requests that go to them."""

    counts: dict[str, Count]
    """Accelerators of each kind; the most of the day."""
    purchases: dict[str, FleetPurchase] | None = None
    """How they are rented; as cheaply as may be if left out."""
    routing: dict[str, dict[str, NotNegative]] | None = None
    """Share of each class on each kind; any if left out."""
    instances: dict[str, dict[str, Count]] | None = None
    """Instances of each model on each kind."""
    pools: tuple[FleetPool, ...] | None = None
    """Instances where a kind offers several sizes or types of weights; in place of routing and instances."""
    failover: dict[str, dict[str, dict[str, NotNegative]]] | None = None
    """Routing after the loss of instances of each kind, as an answer has it; not read."""
    periods: tuple[FleetPeriod, ...] | None = None
    """The same by period of the day; all day alike if left out."""


class FleetQuestion(_Strict):
    """Which accelerators to rent, and which requests go to which."""

    kind: Literal["fleet"]
    """Kind of question."""
    accelerators: tuple[FleetAccelerator, ...] = Field(min_length=1)
    """Kinds that can be rented."""
    model: str | None = None
    """Model of the classes that name none: a bundled name, or the path of a config.json."""
    engine: str = "vllm"
    """Engine whose throughputs are predicted."""
    workload: FleetWorkload
    """What is asked of the fleet."""
    slo: ServeSlo = ServeSlo()
    """Objectives of latency."""
    headroom: FleetHeadroom = FleetHeadroom()
    """What is rented beyond the mean."""
    sites: tuple[FleetSite, ...] = (FleetSite(name="site"),)
    """Places and their limits of power."""
    objective: Literal["cost_usd_per_hour"] = "cost_usd_per_hour"
    """What is minimised."""
    plan: FleetPlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


def class_names(workload: FleetWorkload) -> list[str]:
    """Return what each class is called: its own name, else its lengths."""
    return [one.name or f"{one.isl}-{one.osl}" for one in workload.classes]


def stream_names(workload: FleetWorkload) -> list[str]:
    """Return what each stream is called: the classes, then the calls of the graphs as graph.call."""
    return class_names(workload) + [f"{graph.name}.{call.name}" for graph in workload.graphs for call in graph.calls]


def ordered(graph: FleetGraph) -> list[int] | None:
    """Return the calls so that each stands after those it waits for; None if they wait in a circle."""
    numbers = {call.name: number for number, call in enumerate(graph.calls)}
    order: list[int] = []
    while len(order) < len(graph.calls):
        ready = [
            number
            for number, call in enumerate(graph.calls)
            if number not in order and all(numbers[name] in order for name in call.after)
        ]
        if not ready:
            return None
        order += ready
    return order


def period_count(workload: FleetWorkload) -> int:
    """Return how many periods the day has."""
    rated: list[FleetClass | FleetGraph] = [*workload.classes, *workload.graphs]
    return max(len(workload.profile), *(len(one.profile or ()) for one in rated))
