"""Constants of links from measured collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.collectives import CollectiveModel, Group, LinkEfficiency, host_factor
from perfmodel.kernels.model import Z90
from perfmodel.measured_collectives import Case
from perfmodel.placed_collectives import case_seconds
from perfmodel.terms import Array

EVALUATIONS = 6000
"""Evaluations of the model for one fit at most."""

LEAST_ROWS = 10
"""Rows across a type of link from which on its constants are fitted."""

BETWEEN_HOSTS = 0.09
"""Standard deviation of ln(measured / predicted) that another host adds: each of the two boxes by constants fitted on
the other is off by a factor of 1.12 and 0.93."""

NODE_LINKS = {
    "bandwidth": (0.1, 1.0),
    "pipelining": (0.05, 4.0),
    "own_copy": (0.01, 0.95),
}
EXCHANGE = {"all_to_all": (0.1, 1.0), "exchange_steps": (1.0, 40.0), "peer_bandwidth": (1e-3, 0.5)}
ADDING = {"in_network_all_reduce": (1.0, 1.75)}
"""Constants that rows can tell, with the bounds of the fit: of links inside a node, of those rows that exchange and of
those that a switch adds. Of a network only its rate is fitted: the latency is the host's."""

SHARED = {"nvswitch-ring": "nvswitch"}
"""Types of link that have the constants of another."""


@dataclass(frozen=True)
class Measured:
    """Measured rows of one case.

    Parameters
    ----------
    case : Case
        What they share.
    ranks, reference : Group
        Where they run, and the group whose empty all-reduce takes the host's latency.
    latency_s : float
        The host's latency [s].
    sizes, seconds : array
        Bytes and measured times [s].
    """

    case: Case
    ranks: Group
    reference: Group
    latency_s: float
    sizes: Array
    seconds: Array

    @property
    def link(self) -> str:
        """The outermost type of link that the group crosses."""
        below, found = 1, ""
        for level, members in zip(self.ranks.levels, self.ranks.members, strict=True):
            if np.any(members > below):
                found = level.type
            below = int(np.max(members))
        return SHARED.get(found, found)

    @property
    def inside(self) -> bool:
        """Whether the group lies inside one innermost unit."""
        return bool(np.all(self.ranks.members[0] == self.ranks.size))

    def predicted(self, model: CollectiveModel) -> Array:
        """Return the predicted times on this host [s]."""
        own = model.slower(host_factor(self.latency_s, self.reference, model))
        return np.asarray(case_seconds(self.case, self.ranks, self.sizes, own))


@dataclass(frozen=True)
class Calibrated:
    """Constants that were fitted.

    Parameters
    ----------
    model : CollectiveModel
        The start, with the constants and spreads of the links that rows tell about.
    fitted : dict
        Type of link -> constant -> value.
    rows : dict
        Type of link -> rows.
    """

    model: CollectiveModel
    fitted: dict[str, dict[str, float]]
    rows: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the constants as a node's description holds them."""
        links = {
            name: {key: float(f"{value:.4g}") for key, value in values.items()} for name, values in self.fitted.items()
        }
        return {"collectives": {"launch": float(f"{self.model.launch_s:.4g}"), "links": links}}


def _constants(rows: Sequence[Measured]) -> dict[str, tuple[float, float]]:
    """Return the constants of one type of link that rows can tell, with their bounds."""
    if not all(row.inside for row in rows):
        return {"bandwidth": (0.1, 1.0)}
    found = dict(NODE_LINKS)
    if any(row.case.operation == "all_to_all" for row in rows):
        found |= EXCHANGE
    if any(row.case.operation == "all_reduce" and row.ranks.levels[0].type == "nvswitch" for row in rows):
        found |= ADDING
    return found


def _with(model: CollectiveModel, link: str, values: dict[str, float]) -> CollectiveModel:
    """Return the model with other constants of a type of link and of those that share them."""
    links = dict(model.links)
    for name in (link, *(other for other, own in SHARED.items() if own == link)):
        known: Any = links[name]
        changed = {key: value for key, value in values.items() if name == link or key not in ADDING}
        links[name] = replace(known, **changed)
    return replace(model, links=links)


def calibrate_links(rows: Sequence[Measured], start: CollectiveModel, evaluations: int = EVALUATIONS) -> Calibrated:
    """Fit the constants of every type of link that enough rows cross, with the spread of their errors.

    Parameters
    ----------
    rows : sequence of Measured
        Rows, by case.
    start : CollectiveModel
        Where the fit starts; what no row tells about stays.
    evaluations : int
        Evaluations of the model at most, for each type of link.

    Returns
    -------
    Calibrated
        Inside out: links of nodes first, then networks with those.

    Notes
    -----
    The mean of |predicted / measured - 1| is minimised (Nelder and Mead 1965). A host's latency is given, so that of
    latencies only the share of the launch is fitted; the model's own are the geometric mean over the hosts. The spread
    is such that four fifths of the rows lie within P10-P90, and wider where they are of one host.
    """
    model, fitted, counts = start, dict[str, dict[str, float]](), dict[str, int]()
    for part in ([row for row in rows if row.inside], [row for row in rows if not row.inside]):
        for link in sorted({row.link for row in part}):
            chosen = [row for row in part if row.link == link]
            count = sum(len(row.sizes) for row in chosen)
            if count < LEAST_ROWS or link not in model.links:
                continue
            model, values = _fitted(chosen, model, link, evaluations)
            fitted[link], counts[link] = values, count
    return Calibrated(model, fitted, counts)


def _fitted(
    rows: Sequence[Measured], model: CollectiveModel, link: str, evaluations: int
) -> tuple[CollectiveModel, dict[str, float]]:
    from scipy.optimize import minimize

    bounds = _constants(rows)
    splits = "own_copy" in bounds  # links inside a node tell launch and steps apart
    names = list(bounds)
    limits = np.array([*bounds.values(), *([(0.05, 20.0)] if splits else [])])
    known = model.links[link]
    first = [getattr(known, name) for name in names] + ([known.step / model.launch_s * 10] if splits else [])

    def changed(values: Array) -> CollectiveModel:
        given = dict(zip(names, map(float, values), strict=False))
        if splits:
            given["step"] = float(values[-1]) / 10 * model.launch_s
        return _with(model, link, given)

    def loss(values: Array) -> float:
        if np.any(values < limits[:, 0]) or np.any(values > limits[:, 1]):
            return 1e3
        return float(np.mean(np.concatenate(errors(rows, changed(values), lambda ratio: np.abs(ratio - 1)))))

    best = np.clip(np.array(first), limits[:, 0] * 1.01, limits[:, 1] * 0.99)
    if not splits:  # where another level is slower the rate makes no difference, and a search would stay there
        low, high = (float(limit) for limit in limits[0])
        tried = [np.array([value]) for value in np.geomspace(low, high, 40)]
        best = min([best, *tried], key=loss)
    for _ in range(3):
        limit = evaluations // 3
        best = minimize(
            loss, best, method="Nelder-Mead", options={"maxfev": limit, "maxiter": limit, "adaptive": True}
        ).x
    found = changed(best)
    if splits:
        factors = {row.latency_s: host_factor(row.latency_s, row.reference, found) for row in rows}
        found = found.slower(float(np.exp(np.mean(np.log(list(factors.values()))))))
        # only the links that were measured move; other types keep their steps
        found = replace(model, launch_s=found.launch_s, links=model.links | _links_of(found, link))
    log = np.concatenate(errors(rows, found, lambda ratio: np.abs(np.log(ratio))))
    alone = len({row.latency_s for row in rows}) == 1
    spread = float(np.hypot(np.quantile(log, 0.8) / Z90, BETWEEN_HOSTS if alone else 0.0))
    same = dict.fromkeys((link, *(name for name, own in SHARED.items() if own == link)), spread)
    values = {name: getattr(found.links[link], name) for name in (*names, *(["step"] if splits else []))}
    return replace(found, spreads=(model.spreads or {}) | same), values | {"spread": spread}


def _links_of(model: CollectiveModel, link: str) -> dict[str, LinkEfficiency]:
    return {name: model.links[name] for name in model.links if SHARED.get(name, name) == link}


def errors(rows: Sequence[Measured], model: CollectiveModel, of: Callable[[Array], Array]) -> list[Array]:
    """Return a function of predicted / measured of every row, case by case."""
    return [np.asarray(of(row.predicted(model) / row.seconds)) for row in rows]
