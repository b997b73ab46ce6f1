"""The answer of every planner: a plan, what it costs, and how far from the best it may be.

A `Result` is the plan JSON of the documentation: `Result.to_dict` writes it, `Result.from_dict` reads it back to an
equal object. Its constructor refuses an answer that contradicts itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal

from solvers.backend import OPTIMAL_GAP, relative_gap

SCHEMA = "perfmodel.plan/1"
STATUSES = ("optimal", "feasible", "infeasible", "time_limit")

_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Objective:
    """What was minimised or maximised.

    Parameters
    ----------
    name : str
        A field of the prediction.
    value : float or None
        Its value for the plan [`unit`]; None without a plan.
    unit : str
        Unit of the value, empty for a ratio.
    sense : str
        ``min`` or ``max``.
    """

    name: str
    value: float | None
    unit: str
    sense: Literal["min", "max"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain(self.value, "objective.value"))
        if self.sense not in ("min", "max"):
            raise ValueError(f'objective.sense should be "min" or "max", got {self.sense!r}')


@dataclass(frozen=True)
class Result:
    """An answer.

    Parameters
    ----------
    kind : str
        Kind of question, such as ``train``.
    status : str
        ``optimal``: proved, gap at most `OPTIMAL_GAP`; ``feasible``: stopped at a looser gap, or nothing proved
        (then bound and gap are None); ``infeasible``: proved that there is no plan; ``time_limit``.
    objective : Objective
        What was optimised, with its value for the plan.
    best_bound : float or None
        What no plan can beat [unit of the objective].
    gap : float or None
        ``|value - best_bound| / max(|value|, 1e-12)`` [1].
    solve_time_s : float or None
        Wall time of the search [s].
    candidates : int or None
        How many plans the stated space holds.
    plan : dict or None
        The plan; None if there is none.
    prediction : dict or None
        What the plan costs, every quantity with its unit in its name.
    breakdown : dict or None
        Tree of ``name``, ``seconds``, ``bound`` and ``children``, whose seconds add up to their parent's.
    binding : list of dict
        Constraints that hold the plan back: ``constraint``, ``slack``, ``shadow_price``, ``unit``.
    alternatives : list of dict
        Next best plans: ``plan`` and ``prediction`` of each.
    why_not : list of dict
        Why the other candidates are none: ``reason``, ``candidates``, ``nearest``.
    relaxation : list of dict
        Of an infeasible question, the smallest change that would do: ``constraint``, ``now``, ``needed``, ``unit``.
    scenario : dict
        The question with its defaults written out.
    provenance : dict
        Version, hardware and calibration the answer rests on.
    baseline : dict or None
        What runs today: its ``plan`` and ``prediction`` and the ``gain`` of the best plan over it.
    pareto : dict or None
        Plans that no other beats in everything: names of the ``objectives`` (dotted paths into a prediction) and
        ``points``, each a ``plan`` and its ``prediction``.

    Raises
    ------
    ValueError
        The parts contradict each other.

    Notes
    -----
    Numbers that are not finite become None: a field that no model fills is null, never 0. Sequences become lists
    and numbers of other libraries Python's own, so that an answer equals itself read back from its file.
    """

    kind: str
    status: Literal["optimal", "feasible", "infeasible", "time_limit"]
    objective: Objective
    best_bound: float | None = None
    gap: float | None = None
    solve_time_s: float | None = None
    candidates: int | None = None
    plan: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    breakdown: dict[str, Any] | None = None
    binding: list[dict[str, Any]] = field(default_factory=list)
    alternatives: list[dict[str, Any]] = field(default_factory=list)
    why_not: list[dict[str, Any]] = field(default_factory=list)
    relaxation: list[dict[str, Any]] = field(default_factory=list)
    scenario: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] | None = None
    pareto: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.breakdown is not None:
            check_breakdown(self.breakdown)  # before a number that is not finite becomes None
        for part in fields(self):
            if part.name != "objective":
                object.__setattr__(self, part.name, plain(getattr(self, part.name), part.name))
        _check_proof(self)
        _check_parts(self)

    def to_dict(self) -> dict[str, Any]:
        """Write the answer as a plan JSON.

        Returns
        -------
        dict
            Plain values in the documented order; the optional keys only where there is something to say.
        """
        written: dict[str, Any] = {"schema": SCHEMA}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name == "objective":
                value = {item.name: getattr(value, item.name) for item in fields(value)}
            optional = part.name in ("baseline", "pareto") or (
                part.name == "relaxation" and self.status != "infeasible"
            )
            if not (optional and not value):
                written[part.name] = plain(value, part.name)
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Read a plan JSON.

        Parameters
        ----------
        data : mapping
            As `to_dict` writes it.

        Returns
        -------
        Result
            The answer.

        Raises
        ------
        ValueError
            It is no plan JSON of this version, or contradicts itself.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f'schema should be "{SCHEMA}", got {data.get("schema")!r}')
        names = {part.name for part in fields(cls)}
        unknown = sorted(set(data) - names - {"schema"})
        missing = [name for name in ("kind", "status", "objective") if name not in data]
        if unknown or missing:
            faults = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(
                missing
            )
            raise ValueError("; ".join(faults))
        parts = {name: data[name] for name in names if name in data}
        try:
            parts["objective"] = Objective(**data["objective"])
        except TypeError:
            raise ValueError(f"objective should have name, value, unit and sense, got {data['objective']!r}") from None
        return cls(**parts)


def plain(value: Any, where: str = "") -> Any:
    """Copy a value as what JSON can hold.

    Parameters
    ----------
    value
        Mappings, sequences, texts, numbers (also NumPy's), booleans, None.
    where : str
        What it is, for the message.

    Returns
    -------
    object
        Dictionaries, lists, texts, finite numbers, booleans and None; a number that is not finite becomes None.

    Raises
    ------
    ValueError
        There is something else in it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "tolist"):  # NumPy's arrays and booleans
        return plain(value.tolist(), where)
    raise ValueError(f"{where}: a {type(value).__name__} cannot stand in a plan JSON")


def check_breakdown(node: Mapping[str, Any], where: str = "breakdown") -> None:
    """Check that the times of a tree add up.

    Parameters
    ----------
    node : mapping
        Tree of ``name``, ``seconds`` [s], ``hidden_seconds`` [s] and ``children``.
    where : str
        Path of the node, for the message.

    Raises
    ------
    ValueError
        A node's children do not add up to it (1e-9 relative), a time is missing, negative or not finite, or time
        hidden behind other work counts towards the parent.
    """
    seconds, hidden = node.get("seconds"), node.get("hidden_seconds", 0.0)
    for name, value in (("seconds", seconds), ("hidden_seconds", hidden)):
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{where}.{name} should be a finite number of at least 0, got {value!r}")
    assert seconds is not None
    if hidden and seconds:
        raise ValueError(f"{where}: time hidden behind other work adds nothing, but seconds is {seconds!r}")
    children = node.get("children") or []
    for child in children:
        check_breakdown(child, f"{where} > {child.get('name')}")
    if children:
        added = math.fsum(child["seconds"] for child in children)
        if abs(added - seconds) > _SUM_TOLERANCE * max(abs(seconds), abs(added)):
            raise ValueError(f"{where}: the children's seconds add up to {added!r}, not to {seconds!r}")


def _check_proof(result: Result) -> None:
    status, value, bound, gap = result.status, result.objective.value, result.best_bound, result.gap
    if status not in STATUSES:
        raise ValueError(f"status should be one of {', '.join(STATUSES)}, got {status!r}")
    if (value is None) != (result.plan is None):
        raise ValueError("the objective has a value if and only if there is a plan")
    if status == "infeasible" and (result.plan is not None or bound is not None or gap is not None):
        raise ValueError("an infeasible answer has no plan, no bound and no gap")
    if status in ("optimal", "feasible") and result.plan is None:
        raise ValueError(f'an answer with the status "{status}" has a plan')
    if status == "optimal" and (bound is None or gap is None or gap > OPTIMAL_GAP):
        raise ValueError(
            f'the status "optimal" needs a bound and a gap of at most {OPTIMAL_GAP}, got {bound} and {gap}'
        )
    if value is None:
        if gap is not None:
            raise ValueError("without a plan there is no gap")
        return
    if (bound is None) != (gap is None):
        raise ValueError("bound and gap stand together or not at all")
    if bound is None or gap is None:
        return
    if not math.isclose(gap, relative_gap(value, bound), rel_tol=1e-6, abs_tol=1e-12):
        raise ValueError(f"the gap {gap} is not that of {value} and its bound {bound}, {relative_gap(value, bound)}")
    beyond = (bound - value) * (1 if result.objective.sense == "min" else -1)
    if beyond > 1e-9 * abs(value):
        raise ValueError(f"the value {value} is better than its bound {bound}")


def _check_parts(result: Result) -> None:
    if result.plan is None and (result.prediction is not None or result.breakdown is not None or result.alternatives):
        raise ValueError("without a plan there is nothing to predict")
    if result.plan is not None and result.prediction is None:
        raise ValueError("a plan comes with its prediction")
    if result.relaxation and result.status != "infeasible":
        raise ValueError("only an infeasible question needs a relaxation")
    lists = {"alternatives": result.alternatives, "baseline": [result.baseline] if result.baseline else []}
    if result.pareto is not None:
        lists["pareto.points"] = result.pareto.get("points", [])
        if "objectives" not in result.pareto or "points" not in result.pareto:
            raise ValueError("pareto should have objectives and points")
    for name, entries in lists.items():
        if any(not isinstance(entry, dict) or "plan" not in entry or "prediction" not in entry for entry in entries):
            raise ValueError(f"{name} should have a plan and its prediction")
