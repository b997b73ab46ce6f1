"""The question how to serve a model on a cluster: requests, objectives and limits, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.serve.plan(solvers.serve_scenario.load_serve(source, Path(".")))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from hardware.catalogue import (
    Machine,
    UnknownName,
    description,
    find,
    names,
    read_file,
    resolve_cluster,
    unknown_family,
)
from hardware.faults import Fault, InputError
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture
from perfmodel.kernels import gemm
from perfmodel.operators import peak_flops
from perfmodel.requests import RequestList, moments
from perfmodel.serving.engine import Engine, engine_of, engines
from perfmodel.serving.law import Demand, Speculation
from perfmodel.serving.server import PRECISIONS, Server, server
from perfmodel.serving.step import EXPERT_ARITHMETIC
from solvers.scenario import usd_per_hour
from solvers.serve_question import (
    ServeArrivals,
    ServeClients,
    ServeLengths,
    ServePlan,
    ServePool,
    ServeQuestion,
    ServeSlo,
    ServeTrace,
    ServeWorkload,
)
from solvers.serve_trace import busiest

_Path = tuple[str | int, ...]

SHARES = 1e-6
"""By how much shares may miss their sum."""

SLOW_TOKEN_S, SLOW_FIRST_TOKEN_S = 1.0, 600.0
"""Objectives above these were probably meant in another unit [s]."""


@dataclass(frozen=True)
class ServeScenario:
    """A checked question about serving.

    Parameters
    ----------
    question : ServeQuestion
        As asked.
    machine, architecture, engine
        What it names.
    demand : Demand
        What requests are like.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with defaults and hardware written out; reading it again asks the same.
    warnings : tuple of Fault
        What may not be meant as it stands.
    recorded : RequestList or None
        The requests of a trace's busiest window.
    also : tuple of (Machine, float or None)
        Further clusters, and what one of their accelerators costs [USD/h].
    """

    question: ServeQuestion
    machine: Machine
    architecture: Architecture
    engine: Engine
    demand: Demand
    source: Source
    resolved: dict[str, Any]
    warnings: tuple[Fault, ...]
    recorded: RequestList | None = None
    also: tuple[tuple[Machine, float | None], ...] = ()

    @property
    def kinds(self) -> tuple[ServeScenario, ...]:
        """The same question on each kind of accelerator, with the types of weights that it has arithmetic for."""
        found = [self]
        for machine, price in self.also:
            search = self.question.search
            able = tuple(one for one in search.precision_weights if _has(machine, one))
            if able:
                narrowed = search.model_copy(update={"precision_weights": able})
                question = self.question.model_copy(update={"search": narrowed, "price_usd_per_hour": price})
                found.append(replace(self, machine=machine, question=question, also=()))
        return tuple(found)

    @property
    def rate(self) -> float | None:
        """Requests per second of all replicas, where they arrive by themselves at a given rate [1/s]."""
        arrivals = self.question.workload.arrivals
        if self.recorded is not None:
            return moments([self.recorded]).rate
        if isinstance(arrivals, ServeArrivals) and arrivals.rate_rps is not None:
            return arrivals.rate_rps * max(arrivals.profile)
        return None

    @property
    def by_themselves(self) -> bool:
        """Whether requests come whatever the engine does."""
        return isinstance(self.question.workload.arrivals, ServeArrivals | ServeTrace)

    @property
    def concurrency(self) -> int | None:
        """Clients of all replicas, where there are such."""
        arrivals = self.question.workload.arrivals
        return arrivals.concurrency if isinstance(arrivals, ServeClients) else None

    @property
    def offline(self) -> bool:
        """Whether all requests are there at once."""
        return self.question.workload.arrivals == "offline"

    def server(self, precision_weights: str, precision_kv: str | None) -> Server:
        """Return model, machine and engine with weights and cache of some types."""
        return _server(self.architecture, self.machine, self.engine, precision_weights, precision_kv)

    def speculation(self, drafted: Any) -> Speculation:
        """Return the speculation of a plan that drafts so many tokens."""
        asked = self.question.speculative
        if asked is None:
            return Speculation()
        return Speculation(drafted, asked.acceptance, asked.draft_cost)

    def usd_per_hour(self, accelerators: float) -> float | None:
        """Return what so many accelerators cost [USD/h], or None."""
        if self.question.price_usd_per_hour is not None:
            return self.question.price_usd_per_hour * accelerators
        whole = usd_per_hour(self.machine)
        return None if whole is None else whole * accelerators / self.machine.accelerators


def _server(
    architecture: Architecture, machine: Machine, engine: Engine, precision_weights: str, precision_kv: str | None
) -> Server:
    return server(architecture, machine, engine, precision_weights=precision_weights, precision_kv=precision_kv)


def load_serve(source: Source, base_dir: FilePath) -> ServeScenario:
    """Check a serving scenario.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    ServeScenario
        The question with everything it names looked up.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    faults: list[Fault] = []
    question: ServeQuestion | None = None
    try:
        question = validated(ServeQuestion, source)
    except InputError as error:
        faults += error.faults
    data = source.data if isinstance(source.data, Mapping) else {}
    machine: Machine | None = None
    architecture: Architecture | None = None
    if isinstance(data.get("cluster"), str | Mapping):
        nodes = data.get("nodes")
        count = nodes if isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0 else None
        try:
            machine = resolve_cluster(data["cluster"], base_dir, count, source=source, at=("cluster",))
        except InputError as error:
            faults += error.faults
    if isinstance(data.get("model"), str | Mapping):
        try:
            architecture = load_architecture(data["model"], base_dir, source, ("model",))
        except InputError as error:
            faults += error.faults
    also: list[Machine] = []
    for number, one in enumerate(question.also if question is not None else ()):
        try:
            at: _Path = ("also", number, "cluster")
            also.append(resolve_cluster(one.cluster, base_dir, one.nodes, source=source, at=at))
        except InputError as error:
            faults += error.faults
    recorded: RequestList | None = None
    if question is not None and isinstance(question.workload.arrivals, ServeTrace):
        arrivals = question.workload.arrivals
        try:
            recorded = busiest(base_dir / arrivals.trace, arrivals.window)
        except InputError as error:
            faults += error.faults
    named = data.get("engine", "vllm")
    engine = engine_of(named) if isinstance(named, str) else None
    if engine is None and isinstance(named, str):
        message = f"unknown engine; {did_you_mean(named, engines())} [got {named!r}]"
        faults.append(source.fault(("engine",), message))
    if question is not None:
        for path, message in _question_faults(question):
            faults.append(source.fault(path, message))
    if question is not None and architecture is not None and machine is not None:
        for path, message in _machine_faults(question, architecture, machine):
            faults.append(source.fault(path, message))
        for path, message in _group_faults(question, architecture, (machine, *also)):
            faults.append(source.fault(path, message))
    if faults or question is None or machine is None or architecture is None or engine is None:
        raise InputError(sorted(set(faults), key=lambda fault: (fault.source, fault.line, fault.column)))
    try:
        for precision in _precisions(question):
            _server(architecture, machine, engine, precision, None)
    except UnknownName:
        message = unknown_family(machine.accelerator.architecture)
        raise InputError([source.fault(("cluster",), f"{machine.accelerator.name}: {message}")]) from None
    warnings = tuple(source.fault(path, message) for path, message in slow_objectives(question.slo))
    resolved = _resolved(question, base_dir, machine)
    if also:
        for other, written in zip(also, resolved["also"], strict=True):
            written |= {"cluster": description(other), "nodes": other.nodes}
    demand = demand_of(question.workload, recorded)
    if recorded is not None:
        resolved["workload"] |= _as_process(demand, moments([recorded]).rate)
    prices = [one.price_usd_per_hour for one in question.also]
    others = tuple(zip(also, prices, strict=True))
    return ServeScenario(question, machine, architecture, engine, demand, source, resolved, warnings, recorded, others)


def _as_process(demand: Demand, rate: float) -> dict[str, Any]:
    """Write recorded requests as a process of the same rate and spreads, which needs no file."""
    lengths = {"isl": demand.prompt_tokens, "osl": demand.output_tokens}
    lengths |= {"isl_cv": demand.prompt_scv**0.5, "osl_cv": demand.output_scv**0.5}
    return {
        "arrivals": {"process": "gamma", "rate_rps": rate, "cv": max(demand.arrival_scv, 1e-6) ** 0.5},
        "lengths": lengths,
    }


def demand_of(workload: ServeWorkload, recorded: RequestList | None = None) -> Demand:
    """Return what requests are like, from their lengths and times."""
    if recorded is not None:
        known = moments([recorded])
        sizes = (known.prompt_tokens, known.output_tokens, known.prompt_scv, known.output_scv)
        return Demand(*sizes, workload.prefix_hit, known.arrival_scv)
    arrivals, lengths = workload.arrivals, workload.lengths
    cv = arrivals.cv if isinstance(arrivals, ServeArrivals) and arrivals.cv is not None else 1.0
    if isinstance(lengths, ServeLengths):
        return Demand(
            float(lengths.isl), float(lengths.osl), lengths.isl_cv**2, lengths.osl_cv**2, workload.prefix_hit, cv**2
        )
    assert lengths is not None
    whole = sum(one.weight for one in lengths.histogram)
    spreads = []
    for name in ("isl", "osl"):
        mean = sum(one.weight * getattr(one, name) for one in lengths.histogram) / whole
        square = sum(one.weight * getattr(one, name) ** 2 for one in lengths.histogram) / whole
        spreads.append((mean, max(square / mean**2 - 1, 0.0)))
    return Demand(spreads[0][0], spreads[1][0], spreads[0][1], spreads[1][1], workload.prefix_hit, cv**2)


def _precisions(question: ServeQuestion) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            [*question.search.precision_weights, *([question.plan.precision_weights] if question.plan else [])]
        )
    )


def _question_faults(question: ServeQuestion) -> Iterable[tuple[_Path, str]]:
    """Yield what is wrong whatever the machine."""
    arrivals, plan = question.workload.arrivals, question.plan
    if isinstance(arrivals, ServeTrace) is (question.workload.lengths is not None):
        where = "a trace has its own" if question.workload.lengths is not None else "missing"
        yield ("workload", "lengths"), where
    if isinstance(arrivals, ServeArrivals):
        if arrivals.process == "gamma" and arrivals.cv is None:
            yield ("workload", "arrivals", "cv"), "missing; gamma distributed times need it, 1 is Poisson"
        if arrivals.process == "poisson" and arrivals.cv not in (None, 1.0):
            yield ("workload", "arrivals", "cv"), f"of a Poisson process is 1; use process gamma [got {arrivals.cv:g}]"
        if arrivals.rate_rps is None and not question.slo.limits:
            yield (
                ("workload", "arrivals", "rate_rps"),
                "missing; without objectives of latency there is no highest rate",
            )
        if not any(arrivals.profile):
            yield ("workload", "arrivals", "profile"), "should not be zero throughout"
        if arrivals.rate_rps is None and question.objective.endswith("_s"):
            message = f"missing; at the highest rate {question.objective} is that of the objectives"
            yield ("workload", "arrivals", "rate_rps"), message
    elif arrivals == "offline":
        for name in question.slo.limits:
            if not name.startswith("tpot"):
                yield ("slo", name), "means nothing where all requests are there at once"
        if question.objective.startswith(("ttft", "e2e")):
            yield ("objective",), "means nothing where all requests are there at once"
    drafts = [number for number in question.search.draft_tokens or () if number] + ([plan.draft_tokens] if plan else [])
    if any(drafts) and question.speculative is None:
        yield ("speculative",), "missing; drafted tokens need an acceptance and a draft_cost"
    if plan is not None and not plan.groups:
        for name in ("prefill", "decode"):
            given = getattr(plan, name) is not None
            if plan.disaggregated and not given:
                yield ("plan", name), "missing; a disaggregated plan has a pool for each phase"
            if given and not plan.disaggregated:
                yield ("plan", name), "a pool of one phase belongs to a disaggregated plan; set plan.disaggregated"


def _machine_faults(
    question: ServeQuestion, architecture: Architecture, machine: Machine
) -> Iterable[tuple[_Path, str]]:
    """Yield what does not go together with the machine or the model."""
    accelerator, search, plan = machine.accelerator, question.search, question.plan
    places: list[tuple[_Path, str]] = [
        (("search", "precision_weights", number), name) for number, name in enumerate(search.precision_weights)
    ]
    if plan is not None:
        places.append((("plan", "precision_weights"), plan.precision_weights))
    for path, precision in places:
        try:
            peak_flops(accelerator, gemm.FORMS[PRECISIONS[precision]].arithmetic)
        except ValueError as error:
            able = ", ".join(_able(gemm.FORMS[PRECISIONS[precision]].arithmetic))
            yield path, f"{error}; accelerators that have it: {able} [got {precision!r}]"
            continue
        mixture = any(layer.feed_forward.experts for layer in architecture.layers)
        if mixture and gemm.FORMS[PRECISIONS[precision]].arithmetic not in EXPERT_ARITHMETIC:
            message = f"kernels of the experts of {architecture.name} are not modelled in {precision}"
            yield path, f"{message}; fp8 and int8_wo are of as many bytes [got {precision!r}]"
    priced = question.price_usd_per_hour is not None or usd_per_hour(machine) is not None
    if question.objective == "cost_usd_per_million_tokens" and not priced:
        message = (
            f"missing; {question.objective} needs it, and neither {machine.node.name} nor {accelerator.name} has one"
        )
        yield ("price_usd_per_hour",), message
    lengths = question.workload.lengths
    longest: float = (
        0.0
        if lengths is None
        else (
            lengths.isl + lengths.osl
            if isinstance(lengths, ServeLengths)
            else max(one.isl + one.osl for one in lengths.histogram)
        )
    )
    if architecture.learned_positions and longest > architecture.learned_positions:
        message = f"{architecture.name} has {architecture.learned_positions} learned positions [got {longest} tokens]"
        yield ("workload", "lengths"), message
    for name in ("tp", "pp", "dp", "ep"):
        for number, value in enumerate(getattr(search, name) or ()):
            fault = _size_fault(name, value, architecture, machine)
            if fault:
                yield ("search", name, number), fault
    if plan is None or plan.groups:
        return
    if plan.disaggregated and plan.prefill and plan.decode:
        taken = 0
        for name, pool in (("prefill", plan.prefill), ("decode", plan.decode)):
            yield from _layout_faults(pool, architecture, machine, ("plan", name))
            taken += pool.tp * pool.pp * pool.dp * pool.replicas
        if taken > machine.accelerators:
            yield ("plan",), f"the pools take {taken} accelerators, but the cluster has {machine.accelerators}"
    elif not plan.disaggregated:
        yield from _layout_faults(plan, architecture, machine, ("plan",))


def _group_faults(
    question: ServeQuestion, architecture: Architecture, machines: tuple[Machine, ...]
) -> Iterable[tuple[_Path, str]]:
    """Yield what is wrong with a plan of several groups, and with further clusters."""
    if question.objective == "cost_usd_per_million_tokens":
        for number, (one, machine) in enumerate(zip(question.also, machines[1:], strict=False)):
            if one.price_usd_per_hour is None and usd_per_hour(machine) is None:
                message = f"missing; {question.objective} needs it, and {machine.accelerator.name} has none"
                yield ("also", number, "price_usd_per_hour"), message
    groups = question.plan.groups if question.plan is not None else None
    if not groups:
        return
    names_ = [machine.accelerator.name for machine in machines]
    taken = dict.fromkeys(names_, 0)
    answered = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
    for number, group in enumerate(groups):
        at: _Path = ("plan", "groups", number)
        name = group.accelerator or names_[0]
        if name not in names_:
            yield (*at, "accelerator"), f"no such accelerator here; {did_you_mean(name, names_)} [got {name!r}]"
            continue
        machine = machines[names_.index(name)]
        yield from _layout_faults(group, architecture, machine, at)
        if not _has(machine, group.precision_weights):
            yield (*at, "precision_weights"), f"{name} has no arithmetic for it [got {group.precision_weights!r}]"
        taken[name] += group.tp * group.pp * group.dp * group.replicas
        answered[group.phase] += group.share
    for name, machine in zip(names_, machines, strict=True):
        if taken[name] > machine.accelerators:
            yield ("plan", "groups"), f"they take {taken[name]} {name}, but there are {machine.accelerators}"
    if (
        abs(answered["prefill"] - answered["decode"]) > SHARES
        or abs(sum(answered.values()) - 1 - answered["decode"]) > SHARES
    ):
        yield (
            ("plan", "groups"),
            "shares of groups that do both and of those that prefill, or that decode, should add up to 1",
        )


def _layout_faults(
    plan: ServePlan | ServePool, architecture: Architecture, machine: Machine, at: _Path
) -> Iterable[tuple[_Path, str]]:
    for name in ("tp", "pp", "dp"):
        fault = _size_fault(name, getattr(plan, name), architecture, machine)
        if fault:
            yield (*at, name), fault
    experts = max(group.feed_forward.experts for group in architecture.layers)
    if plan.ep > 1 and (not experts or experts % plan.ep or (plan.tp * plan.dp) % plan.ep):
        ways = plan.tp * plan.dp
        yield (
            (*at, "ep"),
            f"must divide the {experts} experts and the tp x dp = {ways} ranks of a stage [got {plan.ep}]",
        )
    product = plan.tp * plan.pp * plan.dp * (plan.replicas or 1)
    if product > machine.accelerators:
        message = (
            f"tp x pp x dp x replicas = {plan.tp} x {plan.pp} x {plan.dp} x {plan.replicas or 1} = {product}, "
            f"but the cluster has {machine.accelerators} accelerators"
        )
        yield at, message


def _size_fault(name: str, value: int, architecture: Architecture, machine: Machine) -> str | None:
    """Return what is wrong with a parallel size."""
    heads = min(group.attention.heads for group in architecture.layers)
    experts = max(group.feed_forward.experts for group in architecture.layers)
    if name == "tp" and heads % value:
        return f"does not divide the {heads} attention heads of {architecture.name} [got {value}]"
    if name == "pp" and value > architecture.depth:
        return f"{architecture.name} has {architecture.depth} layers [got {value}]"
    if name == "dp" and value > 1 and not experts:
        return f"{architecture.name} has no experts to share between ranks of attention data parallelism; use replicas"
    if name == "ep" and value > 1 and (not experts or experts % value):
        return f"does not divide the {experts} experts of {architecture.name} [got {value}]"
    if value > machine.accelerators:
        return f"the cluster has {machine.accelerators} accelerators [got {value}]"
    return None


def _has(machine: Machine, precision: str) -> bool:
    """Tell whether a machine has the arithmetic for a type of weights."""
    try:
        peak_flops(machine.accelerator, gemm.FORMS[PRECISIONS[precision]].arithmetic)
    except ValueError:
        return False
    return True


def _able(arithmetic: str) -> list[str]:
    """Return the accelerators of the catalogue that have an arithmetic."""
    found = []
    for name in names("accelerator"):
        try:
            peak_flops(find("accelerator", name), arithmetic)
        except ValueError:
            continue
        found.append(name)
    return found


def slow_objectives(slo: ServeSlo) -> Iterable[tuple[_Path, str]]:
    """Yield objectives that look like another unit's, as (path, message)."""
    for name, limit in slo.limits.items():
        most = {"tpot": SLOW_TOKEN_S, "ttft": SLOW_FIRST_TOKEN_S}.get(name.partition("_")[0])
        if most is not None and limit >= most:
            yield ("slo", name), f"{limit:g} s is long; was {limit:g} ms meant?"


def _resolved(question: ServeQuestion, base_dir: FilePath, machine: Machine) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    written["cluster"] = description(machine)
    written["nodes"] = machine.nodes
    if isinstance(question.model, str) and (base_dir / question.model).exists():
        path = base_dir / question.model
        written["model"] = read_file(path / "config.json" if path.is_dir() else path).data
    return written


def serve_schema() -> dict[str, Any]:
    """Return the JSON Schema of a serving scenario."""
    return ServeQuestion.model_json_schema()
