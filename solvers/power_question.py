"""What a person writes about power: servers of workloads below the limits of a facility."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hardware.units import Hertz, PositiveWatts, UsdPerHour, Watts
from solvers.serve_question import Precision, ServeLengths

Size = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
Hour = Annotated[float, Field(ge=0, lt=24)]

Method = Literal["nameplate", "percentile", "gaussian", "hoeffding", "packing"]
PowerObjective = Literal["servers", "goodput_requests_per_s", "cost_usd"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Diurnal(_Strict):
    """How power above idle changes over the day: a cosine."""

    swing: Share
    """Difference between the busiest and the quietest hour over their sum: 0.3 for 1.3 and 0.7 times the mean."""
    peak_hour: Hour = 14.0
    """Hour of the day of the highest power."""


class Distribution(_Strict):
    """What one server draws over time."""

    mean: PositiveWatts
    """Mean over time, such as 4.2 kW."""
    sigma: Watts = 0.0
    """Standard deviation over time, beside the diurnal swing."""
    max: PositiveWatts | None = None
    """The most it draws; the server's limit if left out."""
    idle: Watts | None = None
    """The least it draws; the server's idle power if left out."""
    diurnal: Diurnal | None = None
    """Swing of the mean over the day; none if left out."""


class RequestProfile(_Strict):
    """How many requests come at which time of day and week."""

    trough: Share = 0.5
    """Requests at the quietest time of day over those at the busiest."""
    peak_hour: Hour = 14.0
    """The busiest hour of the day."""
    weekend: Share = 0.8
    """Requests on the last two of seven days over those of the other five."""


class RequestBursts(_Strict):
    """How the rate of requests varies around the profile, beyond chance: factors that forget over time."""

    times_s: tuple[Positive, ...]
    """Time over which each forgets."""
    variances: tuple[NotNegative, ...]
    """Variance of each around 1."""


class PowerRequests(_Strict):
    """Requests that servers answer, from which their power is synthesised."""

    model: str
    """The model: a bundled name, or the path of a config.json."""
    tp: Size
    """Accelerators of an instance; a server is full of them."""
    engine: str = "vllm"
    """The engine."""
    precision_weights: Precision = "bf16"
    """Type of the weights."""
    trace: str | None = None
    """Recorded requests, whose lengths and bursts count: a file as the project writes it, or Azure, BurstGPT and
    Mooncake publish it; in place of lengths and bursts."""
    lengths: ServeLengths | None = None
    """Tokens of requests and answers."""
    bursts: RequestBursts | None = None
    """Bursts of the service, beside chance; none if left out."""
    peak_load: Share
    """Requests at the busiest time of the profile over what the servers can answer."""
    profile: RequestProfile = RequestProfile()
    """Requests over day and week."""
    seed: Count = 1
    """Fixes what is drawn."""


class PowerWorkload(_Strict):
    """Servers that do one kind of work."""

    name: str
    """What to call it."""
    server: str | dict[str, Any]
    """The server: a node of the catalogue, a path, or the description itself."""
    priority: Literal["high", "low"] = "high"
    """Which is slowed first: low."""
    share: Share | None = None
    """Its part of all servers, to the nearest whole one; of all workloads or of none."""
    min_servers: Count = 0
    """Servers it needs."""
    max_servers: Count | None = None
    """Servers it can use; any number if left out."""
    power: Distribution | None = None
    """What one server draws; or trace, requests, or job."""
    trace: str | None = None
    """Power over time: a CSV of time_s,power_w, from a time that is the same for all workloads."""
    trace_servers: Size = 1
    """Servers that a trace is the sum of."""
    requests: PowerRequests | None = None
    """Requests that its servers answer: their power is synthesised for a week."""
    job: str | None = None
    """A scenario of kind train or serve, or a saved plan: its nodes draw what is predicted for its plan or the best."""
    failover_power: Watts | None = None
    """What one server draws at most soon after a feed is lost, 0 if it may be stopped; it goes on as before if left
    out."""
    compute_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Part of its busy time that follows the clock, which caps lengthen; that of its requests, or 1, if left out."""
    goodput_requests_per_s: NotNegative | None = None
    """Requests within their objectives that one server answers."""
    price: UsdPerHour | None = None
    """Of one server; the catalogue's if left out."""


class MostLoss(_Strict):
    """How much longer requests may take under caps than without, on average over time, as a share."""

    high: Share = 0.01
    """Of workloads of high priority."""
    low: Share = 0.02
    """Of workloads of low priority."""


class PowerPolicy(_Strict):
    """What risk is taken, and how."""

    method: Method | tuple[Method, ...] | None = None
    """Rules to decide by: the one that does best is the plan, the others are listed. All that the workloads have the
    numbers for if left out."""
    risk: Annotated[float, Field(ge=0, lt=0.5)] = 1e-3
    """Probability, or share of the time, with which the power of a node may be above its limit."""
    correlation: Correlation | tuple[tuple[Correlation, ...], ...] | None = None
    """Between the powers of two servers: of any two, or by workload in their order, on the diagonal between two of one
    workload. Left out: that of the traces, and 1, which is safe, of what nothing is known."""
    failover: Literal["none", "n+1"] = "none"
    """Whether limits also hold when feeds are lost."""
    capping: Literal["none", "two-threshold"] = "none"
    """Whether servers are slowed when a limit comes near: those of one priority above a first threshold, more above a
    second, then the others."""
    rise: Annotated[float, Field(gt=0, le=10)] | None = None
    """Largest rise of power within the actuator's latency, over the power it starts from, such as 0.118; that of a
    synthesised week if left out."""
    most_loss: MostLoss = MostLoss()
    """What caps may cost."""
    brake_risk: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Probability of a brake within a year, at most, at each node that caps hold."""


class Caps(_Strict):
    """What servers of a workload are held to."""

    clock_hz: tuple[Hertz, ...]
    """Highest clock above each threshold, such as 1275 MHz."""


class PowerPlan(_Strict):
    """Servers of each workload, and where they stand."""

    servers: Count | None = None
    """Servers in all; those of by_node or of workloads if left out."""
    workloads: dict[str, Count] | None = None
    """Servers of each workload; by their shares if left out."""
    by_node: dict[str, dict[str, Count]] = {}
    """Rack, such as row[0]/rack[3], or racks that are alike, row[0]/rack[0-9] -> servers of each workload in one; where
    they fit if left out."""
    method: Method | None = None
    """Rule to hold it against; the first of the policy's that allows it if left out."""
    rule: Method | None = None
    """What it was found by, method or nameplate; for the reader."""
    caps: dict[str, Caps] | None = None
    """What each workload is held to."""
    thresholds: tuple[NotNegative, ...] | None = None
    """Shares of a limit above which caps are set."""
    held: tuple[str, ...] | None = None
    """Nodes whose limits caps hold; all rows, or the root without any, if left out."""


class PowerQuestion(_Strict):
    """How many servers fit below the limits of a facility."""

    kind: Literal["power"]
    """Kind of question."""
    facility: str | dict[str, Any]
    """The tree of limits: a facility of the catalogue, a path, or the description itself."""
    workloads: tuple[PowerWorkload, ...] = Field(min_length=1)
    """What the servers do."""
    policy: PowerPolicy = PowerPolicy()
    """What risk is taken, and how."""
    objective: PowerObjective = "servers"
    """What is maximised, or, of cost_usd, minimised."""
    plan: PowerPlan | None = None
    """What `predict` costs; for `plan`, what runs today."""
