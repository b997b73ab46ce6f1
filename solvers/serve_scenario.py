"""The question how to serve a model on a cluster: requests, objectives and limits, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.serve.plan(solvers.serve_scenario.load_serve(source, Path(".")))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from hardware.catalogue import (
    Machine,
    UnknownName,
    description,
    read_file,
    resolve_cluster,
    unknown_family,
)
from hardware.faults import Fault, InputError, collected
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture
from perfmodel.power import held_to
from perfmodel.requests import RequestList, moments
from perfmodel.serving.engine import Engine, engine_of, engines
from perfmodel.serving.law import Demand, Speculation
from perfmodel.serving.overlap import Overlap
from perfmodel.serving.server import Server, server
from solvers.power_limit import allowed_w
from solvers.scenario import usd_per_hour
from solvers.serve_faults import group_faults, has, left_out, machine_faults, question_faults, slow_objectives
from solvers.serve_question import (
    ServeArrivals,
    ServeClients,
    ServeLengths,
    ServeQuestion,
    ServeTrace,
    ServeWorkload,
)
from solvers.serve_trace import busiest

_Path = tuple[str | int, ...]


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
            able = tuple(one for one in search.precision_weights if has(machine, one))
            if able and allowed_w(machine, self.question.power) >= machine.accelerator.power.least:
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

    def server(
        self,
        precision_weights: str,
        precision_kv: str | None,
        layered: bool = False,
        overlap: Overlap = "none",
        cap_w: float | None = None,
    ) -> Server:
        """Return model, machine and engine with weights and cache of some types, and steps of some kind.

        Parameters
        ----------
        layered : bool
            Whether prompts advance by layers; they share steps with running sequences then, whatever the engine does.
        overlap : str
            What runs beside what in a step.
        cap_w : float
            What accelerators are held to; the highest that is allowed if left out [W].
        """
        machine = held_to(self.machine, allowed_w(self.machine, self.question.power) if cap_w is None else cap_w)
        found = _server(self.architecture, machine, self.engine, precision_weights, precision_kv)
        engine = found.engine.model_copy(update={"batching": "chunked"}) if layered else found.engine
        return replace(found, engine=engine, layered=layered, overlap=overlap)

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
    with collected(faults):
        question = validated(ServeQuestion, source)
    data = source.data if isinstance(source.data, Mapping) else {}
    machine: Machine | None = None
    architecture: Architecture | None = None
    if isinstance(data.get("cluster"), str | Mapping):
        nodes = data.get("nodes")
        count = nodes if isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0 else None
        with collected(faults):
            machine = resolve_cluster(data["cluster"], base_dir, count, source=source, at=("cluster",))
    if isinstance(data.get("model"), str | Mapping):
        with collected(faults):
            architecture = load_architecture(data["model"], base_dir, source, ("model",))
    also: list[Machine] = []
    for number, one in enumerate(question.also if question is not None else ()):
        with collected(faults):
            at: _Path = ("also", number, "cluster")
            also.append(resolve_cluster(one.cluster, base_dir, one.nodes, source=source, at=at))
    recorded: RequestList | None = None
    if question is not None and isinstance(question.workload.arrivals, ServeTrace):
        arrivals = question.workload.arrivals
        with collected(faults):
            recorded = busiest(base_dir / arrivals.trace, arrivals.window)
    named = data.get("engine", "vllm")
    engine = engine_of(named) if isinstance(named, str) else None
    if engine is None and isinstance(named, str):
        message = f"unknown engine; {did_you_mean(named, engines())} [got {named!r}]"
        faults.append(source.fault(("engine",), message))
    if question is not None:
        for path, message in question_faults(question):
            faults.append(source.fault(path, message))
    if question is not None and architecture is not None and machine is not None:
        for path, message in machine_faults(question, architecture, machine):
            faults.append(source.fault(path, message))
        for path, message in group_faults(question, architecture, (machine, *also)):
            faults.append(source.fault(path, message))
    if faults or question is None or machine is None or architecture is None or engine is None:
        raise InputError(sorted(set(faults), key=lambda fault: (fault.source, fault.line, fault.column)))
    try:
        for precision in _precisions(question):
            _server(architecture, machine, engine, precision, None)
    except UnknownName:
        message = unknown_family(machine.accelerator.architecture)
        raise InputError([source.fault(("cluster",), f"{machine.accelerator.name}: {message}")]) from None
    doubts = [*slow_objectives(question.slo), *left_out(question, also)]
    warnings = tuple(source.fault(path, message) for path, message in doubts)
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
