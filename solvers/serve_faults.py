"""What is wrong with a question about serving, found before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from hardware.catalogue import Machine, find, names
from hardware.schema import Accelerator
from hardware.yaml_source import did_you_mean
from perfmodel.architecture import Architecture
from perfmodel.kernels import gemm
from perfmodel.operators import peak_flops
from perfmodel.serving.server import PRECISIONS
from perfmodel.serving.step import EXPERT_ARITHMETIC
from solvers.power_limit import cap_faults
from solvers.scenario import usd_per_hour
from solvers.serve_question import (
    ServeArrivals,
    ServeLengths,
    ServePlan,
    ServePool,
    ServeQuestion,
    ServeSlo,
    ServeTrace,
    arrangements,
)

ARRANGED = ("disaggregated", "layered_prefill", "prefill_share", "overlap")
"""Fields of a plan, and of what is searched, that say how steps are arranged."""

ALONE = ", ".join(ARRANGED[:3])

_Path = tuple[str | int, ...]

SHARES = 1e-6
"""By how much shares may miss their sum."""

SLOW_TOKEN_S, SLOW_FIRST_TOKEN_S = 1.0, 600.0
"""Objectives above these were probably meant in another unit [s]."""


def question_faults(question: ServeQuestion) -> Iterable[tuple[_Path, str]]:
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
    yield from _arrangement_faults(question)


def _arrangement_faults(question: ServeQuestion) -> Iterable[tuple[_Path, str]]:
    """Yield what does not go together of how steps are arranged."""
    plan, search = question.plan, question.search
    chosen = {name: getattr(plan, name) for name in ARRANGED if plan is not None}
    if sum(map(bool, (value for name, value in chosen.items() if name != "overlap"))) > 1:
        yield ("plan",), f"only one of {ALONE} can be: prompts are computed elsewhere, by layers or side by side"
    if not any(True for _ in arrangements(search)):
        yield ("search",), f"no plan is left: of {ALONE} only one can be"
    plain = {name: type(search).model_fields[name].default for name in ARRANGED if name != "disaggregated"}
    if search.mixed or question.also:
        for name, default in plain.items():
            if getattr(search, name) != default:
                yield (
                    ("search", name),
                    "plans of several layouts or clusters take steps as the engine does; leave it out",
                )
    if plan is not None and plan.groups:
        for name in plain:
            if chosen[name] != type(plan).model_fields[name].default:
                yield ("plan", name), "groups take steps as the engine does; leave it out"


def machine_faults(
    question: ServeQuestion, architecture: Architecture, machine: Machine
) -> Iterable[tuple[_Path, str]]:
    """Yield what does not go together with the machine or the model."""
    accelerator, search, plan = machine.accelerator, question.search, question.plan
    for number, cap in enumerate(search.power_cap_w or ()):
        for message in cap_faults(machine, question.power, cap, planned=False):
            yield ("search", "power_cap_w", number), message
    if plan is not None and plan.power_cap_w is not None:
        for message in cap_faults(machine, question.power, plan.power_cap_w, planned=True):
            yield ("plan", "power_cap_w"), message
    places: list[tuple[_Path, str]] = [
        (("search", "precision_weights", number), name) for number, name in enumerate(search.precision_weights)
    ]
    if plan is not None:
        places.append((("plan", "precision_weights"), plan.precision_weights))
    for path, precision in places:
        wrong = not_served(architecture, accelerator, precision)
        if wrong is not None:
            yield path, wrong
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


def group_faults(
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
        if not has(machine, group.precision_weights):
            able = ", ".join(able_of(group.precision_weights))
            message = f"{name} has no arithmetic for it; accelerators that have it: {able}"
            yield (*at, "precision_weights"), f"{message} [got {group.precision_weights!r}]"
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


def not_served(architecture: Architecture, accelerator: Accelerator, precision: str) -> str | None:
    """Return why an accelerator does not serve a model with a type of weights; None where it does."""
    arithmetic = gemm.FORMS[PRECISIONS[precision]].arithmetic
    try:
        peak_flops(accelerator, arithmetic)
    except ValueError as error:
        return f"{error}; accelerators that have it: {', '.join(able_of(precision))} [got {precision!r}]"
    if any(layer.feed_forward.experts for layer in architecture.layers) and arithmetic not in EXPERT_ARITHMETIC:
        message = f"kernels of the experts of {architecture.name} are not modelled in {precision}"
        return f"{message}; fp8 and int8_wo are of as many bytes [got {precision!r}]"
    return None


def has(machine: Machine, precision: str) -> bool:
    """Tell whether a machine has the arithmetic for a type of weights."""
    try:
        peak_flops(machine.accelerator, gemm.FORMS[PRECISIONS[precision]].arithmetic)
    except ValueError:
        return False
    return True


def able_of(precision: str) -> list[str]:
    """Return the accelerators of the catalogue that have the arithmetic for a type of weights."""
    arithmetic = gemm.FORMS[PRECISIONS[precision]].arithmetic
    found = []
    for name in names("accelerator"):
        try:
            peak_flops(find("accelerator", name), arithmetic)
        except ValueError:
            continue
        found.append(name)
    return found


def left_out(question: ServeQuestion, also: Iterable[Machine]) -> Iterable[tuple[_Path, str]]:
    """Yield the types of weights that further clusters have no arithmetic for, as (path, message)."""
    for number, machine in enumerate(also):
        lacking = [one for one in question.search.precision_weights if not has(machine, one)]
        if lacking:
            whole = len(lacking) == len(question.search.precision_weights)
            what = "it is left out" if whole else "it is searched with the others"
            message = f"{machine.accelerator.name} has no arithmetic for {', '.join(lacking)}; {what}"
            yield ("also", number, "cluster"), message


def slow_objectives(slo: ServeSlo) -> Iterable[tuple[_Path, str]]:
    """Yield objectives that look like another unit's, as (path, message)."""
    for name, limit in slo.limits.items():
        most = {"tpot": SLOW_TOKEN_S, "ttft": SLOW_FIRST_TOKEN_S}.get(name.partition("_")[0])
        if most is not None and limit >= most:
            yield ("slo", name), f"{limit:g} s is long; was {limit:g} ms meant?"
