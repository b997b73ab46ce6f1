"""Time and memory of a training step whose states and activations lie in several tiers of a node.

Forward and backward pass are those of the training model (`perfmodel.training`); what lies elsewhere is streamed behind
them: 16-bit weights to the accelerators, gradients to the host as they are made, activations out and back (Ren et al.,
ZeRO-Offload, arXiv 2101.06840, section 4; Rajbhandari et al., ZeRO-Infinity, arXiv 2104.07857, section 5). The update
follows and hides behind nothing. The states of a share of the parameters stay with the accelerators, which update
them; of the others the host updates some where they are, and the accelerators some that are brought to them and back
meanwhile (Maurya et al., Deep Optimizer States, arXiv 2410.21316, section 4). Each of the three phases takes as long
as its busiest resource:

* the accelerators;
* every link in each direction, and every tier, whose reads and writes share its rate: the bytes that pass over it;
* the host's processors: the cache lines that they wait for, by Little's law.

All of it is linear in the shares of a placement. Bytes are those of all accelerators of a node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hardware.schema import Node
from hardware.tiers import HBM, NICS, TierPath
from perfmodel.architecture import Architecture
from perfmodel.intervals import spread
from perfmodel.job import Job
from perfmodel.kernels.model import Z90
from perfmodel.kv_equations import access_rate
from perfmodel.layer import layer_cost, update_term
from perfmodel.memory import available_bytes, passing_bytes
from perfmodel.offload import ACCELERATORS, Row, Share
from perfmodel.parameters import stage_parameters, stage_weights
from perfmodel.pipeline import split_layers
from perfmodel.plan import RECOMPUTE_FULL, Plan
from perfmodel.sequence_offload import most_share
from perfmodel.serving.engine import engine_of
from perfmodel.terms import HOST, LINK, MEMORY, Term, at, total
from perfmodel.training import predict_step, updated_parameters

PHASES = ("forward", "backward", "update")

ELEMENT_BYTES = 2.0
"""Of weights as they are computed with, and of gradients as they are made [bytes]."""
MASTER_BYTES = 4.0
"""Of each state of the optimizer [bytes]."""
STATES = {"momentum": (1, 1), "variance": (1, 1), "master_weights": (1, 1), "master_gradients": (1, 0)}
"""Adam's states -> how often an update reads and writes them; the norm of gradients is taken as they arrive."""
OBJECTS = (*STATES, "weights", "gradients", "activations")
"""What is placed. With 20 bytes for each parameter as ZeRO-Infinity counts them (section 3)."""

BY_HOST, BY_ACCELERATORS = "host", "accelerators"
"""Who updates what lies in a tier."""
PROCESSORS = "host processors"
TOUCHED_BYTES = MASTER_BYTES * sum(reads + writes for reads, writes in STATES.values())
"""What an update moves of the states of a parameter, whoever makes it [bytes]."""


@dataclass(frozen=True)
class Finetune:
    """A training layout of one node, as placements of its states need it.

    Parameters
    ----------
    job : Job
        Model, machine, workload and framework.
    plan : Plan
        The layout, one, without pipeline stages.
    paths : tuple of TierPath
        Tiers beside the accelerators' own.
    delayed : bool
        The host updates with the gradients of the step before while accelerators compute the next.
    parameters : float
        Parameters that all ranks update.
    weights_bytes : float
        16-bit weights where all accelerators hold theirs [bytes].
    activations_bytes : float
        Activations of a micro-batch that could leave, of all ranks [bytes].
    fixed_bytes : float
        What the accelerators hold in any case, all of them [bytes].
    room_bytes : float
        What their allocators can have [bytes].
    forward_s, backward_s, fixed_s : float
        Passes of all micro-batches with their communication, and the host's own work [s].
    update_s : float
        Time in which accelerators with all states update all parameters [s].
    """

    job: Job
    plan: Plan
    paths: tuple[TierPath, ...]
    delayed: bool
    parameters: float
    weights_bytes: float
    activations_bytes: float
    fixed_bytes: float
    room_bytes: float
    forward_s: float
    backward_s: float
    fixed_s: float
    update_s: float

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return int(self.plan.micro_batches(self.job.global_batch)[0])

    @property
    def streams_weights(self) -> bool:
        """Whether weights may live elsewhere: each is then brought to one rank alone."""
        return bool(self.plan.zero_stage[0] >= 3 or self.plan.dp[0] * self.plan.cp[0] == 1)

    @property
    def most_activations(self) -> float:
        """Largest share of the activations that can leave."""
        return most_share(self.job)

    @property
    def compute_s(self) -> float:
        """What no placement avoids [s]."""
        return self.forward_s + self.backward_s + self.fixed_s

    @property
    def least_s(self) -> float:
        """What no placement beats: passes, and states that cannot all stay, touched at the rate of all tiers [s]."""
        states = self.parameters * (MASTER_BYTES * len(STATES) + ELEMENT_BYTES)
        elsewhere = max(1 - max(self.room_bytes - self.kept_bytes, 0.0) / states, 0.0)
        if self.delayed:  # hides behind the passes, or not
            return self.compute_s
        rate = sum(max(path.domains[0].node_up, path.domains[0].node_down) for path in self.paths)
        return self.compute_s + (elsewhere * self.parameters * TOUCHED_BYTES / rate if rate else 0.0)

    @property
    def demands(self) -> tuple[float, ...]:
        """What a step's time grows with; a layout that demands no less of anything is no faster."""
        again = float(self.plan.recompute[0] == RECOMPUTE_FULL)
        sizes = (self.fixed_bytes, self.weights_bytes, self.activations_bytes)
        times = (self.forward_s, self.backward_s, self.fixed_s, self.update_s)
        return (*sizes, *times, float(self.micro_batches), again, -float(self.streams_weights))

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.job.global_batch * self.job.seq_len

    @property
    def kept_bytes(self) -> float:
        """What has to stay with the accelerators [bytes]."""
        kept = self.fixed_bytes + (1 - self.most_activations if self.paths else 1.0) * self.activations_bytes
        return kept + (0.0 if self.streams_weights and self.paths else self.weights_bytes)

    @property
    def held_bytes(self) -> float:
        """All that is held somewhere; a byte takes a byte wherever it is, but for a second set of gradients [bytes]."""
        states = self.parameters * (MASTER_BYTES * len(STATES) + ELEMENT_BYTES)
        second = 0.0
        if self.delayed:  # of what does not stay
            stay = min(max(self.room_bytes - self.kept_bytes, 0.0) / states, 1.0)
            second = (1 - stay) * MASTER_BYTES * self.parameters
        return self.fixed_bytes + self.activations_bytes + self.weights_bytes + states + second

    @property
    def fits(self) -> bool:
        """Whether some placement fits: what must stay in the accelerators, and all of it in all memories."""
        room = self.room_bytes + sum(path.capacity_bytes for path in self.paths)
        return self.kept_bytes <= self.room_bytes and self.held_bytes <= room

    def size_bytes(self, thing: str, tier: str) -> float:
        """Return what all of an object takes in a tier [bytes]."""
        if thing == "activations":
            return self.activations_bytes
        if thing == "weights" and tier == HBM:
            return self.weights_bytes
        return self.parameters * (MASTER_BYTES if thing in STATES else ELEMENT_BYTES)

    def shares(self) -> list[Share]:
        """Return the fractions that a placement is made of."""
        found: list[Share] = [(thing, HBM, "") for thing in (*STATES, "gradients", "activations")]
        found += [("weights", HBM, way) for way in (BY_HOST, BY_ACCELERATORS)]
        ways = (BY_HOST,) if self.delayed else (BY_HOST, BY_ACCELERATORS)
        for path in self.paths:
            found += [(thing, path.name, way) for thing in STATES for way in ways]
            if self.streams_weights:
                found += [("weights", path.name, way) for way in (BY_HOST, BY_ACCELERATORS)]
            found += [(thing, path.name, "") for thing in ("gradients", "activations")]
        return found


def finetunes(job: Job, plans: Plan, paths: tuple[TierPath, ...], *, delayed: bool = False) -> list[Finetune]:
    """Return every layout with its sizes and times counted.

    Parameters
    ----------
    job : Job
        The job, on one node.
    plans : Plan
        Layouts without pipeline stages.
    paths : tuple of TierPath
        Tiers that may be used.
    delayed : bool
        The host updates one step late.

    Notes
    -----
    The time of the passes is that of a step of `perfmodel.training` without its optimizer, divided between the
    directions as its kernels are. Accelerators hold logits, what recomputation brings back, gathered weights, and,
    where weights are not shared out, those and the gradients of the layers at work.
    """
    predicted = predict_step(job, plans, explain=False)
    architecture, count = job.architecture, len(plans)
    parts = {term.name: term for term in predicted.step.children}
    optimizer_s, fixed_s = parts["optimizer"].seconds, parts["host work per step"].seconds
    passes = {term.name: term.seconds for term in parts["pipeline stage"].children}
    share = passes["forward"] / (passes["forward"] + passes["backward"] + passes["recomputation"])
    compute_s = predicted.step.seconds - optimizer_s - fixed_s
    stages = split_layers(architecture.depth, architecture.leading, plans.pp, plans.vpp)
    held = stage_parameters(architecture, stages, plans)
    updated = updated_parameters(plans, held)
    weights = np.where(plans.zero_stage >= 3, updated, held.dense[0] + np.asarray(held.experts[0]))
    layers = [layer_cost(job, layer, plans).saved_bytes for layer in architecture.layers]
    counts = stage_weights(architecture, stages.layers[0], stages.leading[0], 1.0, 1.0)[:-2]
    saved = sum((times * size for times, size in zip(counts, layers, strict=True)), 0.0)
    memory = predicted.memory
    passing = passing_bytes(job.framework.states, held.dense[0], held.experts[0], held.ends[0], stages.layers[0])
    buffers = np.where(plans.zero_stage >= 3, memory.communication, passing)
    fixed = memory.activations - saved + memory.logits + memory.workspace + buffers
    update_s = update_term("optimizer", updated, TOUCHED_BYTES + ELEMENT_BYTES, job).seconds
    room = available_bytes(job) / (1 + job.framework.reserve.fragmentation)
    columns = [
        np.broadcast_to(np.asarray(column, float), (count,))
        for column in (
            job.ranks * updated,
            ELEMENT_BYTES * job.ranks * weights,
            job.ranks * np.asarray(saved),
            job.ranks * fixed,
            np.full(count, job.ranks * room),
            compute_s * share,
            compute_s * (1 - share),
            fixed_s,
            update_s,
        )
    ]
    found = []
    for number in range(count):
        sizes = (float(column[number]) for column in columns)
        found.append(Finetune(job, plans.taken(slice(number, number + 1)), paths, delayed, *sizes))
    return found


def deeper(architecture: Architecture, repetitions: int) -> Architecture:
    """Return a model of the same layers with so many repetitions of their pattern; those at the front stay."""
    first = 1 if architecture.leading else 0
    pattern = math.gcd(*(group.count for group in architecture.layers[first:]))
    groups = [
        group if number < first else replace(group, count=group.count // pattern * repetitions)
        for number, group in enumerate(architecture.layers)
    ]
    return replace(architecture, layers=tuple(groups))


def of_depth(architecture: Architecture, layers: int) -> Architecture | None:
    """Return a model of the same layers with so many of them; None where their pattern does not repeat so."""
    one = deeper(architecture, 1).depth
    two = deeper(architecture, 2).depth
    repetitions, rest = divmod(layers - one, two - one)
    return deeper(architecture, repetitions + 1) if repetitions >= 0 and not rest else None


def resource_times(asked: Finetune) -> dict[str, dict[str, Row]]:
    """Return the time that each resource needs in each phase.

    Parameters
    ----------
    asked : Finetune
        The layout.

    Returns
    -------
    dict of dict
        By phase and resource the constant and the coefficient of each share [s].

    Notes
    -----
    Every micro-batch brings weights once forward, once backward and once more where all is recomputed, as
    ZeRO-Infinity counts them (section 4.1), sends its gradients, which the host adds up in 32 bits, and its
    activations out and back. What reaches a tier through the memory of another is written there and read again. With
    a delayed update the three phases are one, since every resource serves all of them at the same time (ZeRO-Offload,
    section 5.2).
    """
    times = asked.micro_batches
    again = 2 if asked.plan.recompute[0] == RECOMPUTE_FULL else 1
    host = _Host(asked.job.machine.node)
    rows: dict[str, dict[str, Row]] = {
        "forward": {ACCELERATORS: (asked.forward_s, {})},
        "backward": {ACCELERATORS: (asked.backward_s, {})},
        "update": {ACCELERATORS: (0.0, {("momentum", HBM, ""): asked.update_s})},
    }
    forward, backward, update = (rows[phase] for phase in PHASES)
    weights = ELEMENT_BYTES * asked.parameters
    for share in asked.shares():
        thing, tier, way = share
        size = asked.size_bytes(thing, tier)
        if tier == HBM:
            if share == ("weights", HBM, BY_HOST) and asked.paths:
                link = max((path.link for path in asked.paths), key=lambda link: (link.name != NICS, link.node_up))
                _add(update, f"{link.name} in", share, weights / link.node_up)
            continue
        path = next(path for path in asked.paths if path.name == tier)
        if thing == "activations":
            _moved(forward, path, share, down=times * size)
            _moved(backward, path, share, up=times * size)
        elif thing == "gradients":
            _moved(backward, path, share, down=times * size)
            host.touched(backward, path, share, read=times * size)
        elif thing == "weights":
            _moved(forward, path, share, up=times * size)
            _moved(backward, path, share, up=times * again * size)
            if way == BY_HOST:
                host.touched(update, path, share, written=size)
            else:
                _moved(update, path, share, down=size)
        else:
            reads, writes = STATES[thing]
            if thing == "master_gradients":
                host.touched(backward, path, share, read=(times - 1) * size, written=times * size)
            if way == BY_HOST:
                host.touched(update, path, share, read=reads * size, written=writes * size)
            else:
                _moved(update, path, share, up=size, down=writes * size)
            if thing == "momentum" and way == BY_ACCELERATORS:
                _add(update, ACCELERATORS, share, asked.update_s)
    return {"step": _together(rows)} if asked.delayed else rows


def _together(rows: dict[str, dict[str, Row]]) -> dict[str, Row]:
    """Return what phases need of each resource when they run at the same time."""
    found: dict[str, Row] = {}
    for phase in rows.values():
        for name, (constant, slopes) in phase.items():
            before, others = found.get(name, (0.0, {}))
            shares = {*slopes, *others}
            found[name] = before + constant, {key: slopes.get(key, 0.0) + others.get(key, 0.0) for key in shares}
    return found


def _moved(rows: dict[str, Row], path: TierPath, share: Share, *, up: float = 0.0, down: float = 0.0) -> None:
    """Count what moves between a tier and the accelerators [bytes]."""
    _add(rows, f"{path.link.name} in", share, up / path.link.node_up)
    _add(rows, f"{path.link.name} out", share, down / path.link.node_down)
    _stored(rows, path, share, up, down)


def _stored(rows: dict[str, Row], path: TierPath, share: Share, read: float, written: float) -> None:
    own, *between = path.domains[:-1]
    _add(rows, own.name, share, read / own.node_up + written / own.node_down)
    for domain in between:
        _add(rows, domain.name, share, (read + written) * (1 / domain.node_up + 1 / domain.node_down))


@dataclass(frozen=True)
class _Host:
    """The processors of a node, which reach a tier's memory without the accelerators' links."""

    node: Node

    def touched(
        self, rows: dict[str, Row], path: TierPath, share: Share, *, read: float = 0.0, written: float = 0.0
    ) -> None:
        """Count what the processors read and write of a tier [bytes]."""
        _stored(rows, path, share, read, written)
        if path.link.name == NICS:
            _add(rows, f"{NICS} in", share, read / path.link.node_up)
            _add(rows, f"{NICS} out", share, written / path.link.node_down)
        known = self.node.processors
        if known is not None:
            lines = float(access_rate(np.inf, path.latency_s, known.cores, known.lines_in_flight))
            _add(rows, PROCESSORS, share, (read + written) / lines)


def _add(rows: dict[str, Row], name: str, share: Share, seconds: float) -> None:
    slopes = rows.setdefault(name, (0.0, {}))[1]
    if seconds:
        slopes[share] = slopes.get(share, 0.0) + seconds


def memory_rows(asked: Finetune) -> dict[str, tuple[float, Row]]:
    """Return the capacity of each tier and what a placement needs of it [bytes].

    Notes
    -----
    What is brought to the accelerators for its update finds room where the activations were. A delayed update keeps the
    master gradients of the step before.
    """
    rows: dict[str, tuple[float, Row]] = {HBM: (asked.room_bytes, (asked.fixed_bytes, {}))}
    rows |= {path.name: (path.capacity_bytes, (0.0, {})) for path in asked.paths}
    for share in asked.shares():
        thing, tier, _ = share
        copies = 2 if asked.delayed and thing == "master_gradients" and tier != HBM else 1
        rows[tier][1][1][share] = copies * asked.size_bytes(thing, tier)
    return rows


def step_tree(asked: Finetune, resource_s: Mapping[str, Mapping[str, float]]) -> Term:
    """Return the time of a step as a tree: the training model's terms, what the passes wait for, and the update.

    Parameters
    ----------
    asked : Finetune
        The layout.
    resource_s : mapping of mapping
        By phase and resource the time it needs [s].
    """
    tree = at(predict_step(asked.job, asked.plan).step, 0)
    kept = [term for term in tree.children if term.name not in ("optimizer", "host work per step")]
    for phase, times in resource_s.items():
        busiest = max(times, key=lambda name: times[name])
        if phase == "update":
            name = "optimizer" if busiest == ACCELERATORS else f"optimizer: {busiest}"
            kept.append(Term(name, times[busiest], bound_of(busiest)))
            continue
        if phase == "step":  # what the accelerators update themselves
            own = max(times[ACCELERATORS] - asked.forward_s - asked.backward_s, 0.0)
            kept.append(Term("optimizer", own, MEMORY))
        name = "step" if phase == "step" else f"{phase} pass"
        kept.append(Term(f"{name} waits for {busiest}", times[busiest] - times[ACCELERATORS], bound_of(busiest)))
    kept.append(Term("host work per step", asked.fixed_s, HOST))
    return total("step", kept)


def bound_of(resource: str) -> int:
    """Return which bound of `perfmodel.terms` a resource is."""
    return MEMORY if resource == ACCELERATORS else LINK if resource.endswith((" in", " out")) else HOST


def step_interval_of(asked: Finetune, resource_s: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """Return P10 and P90 of a step's time over its prediction.

    Notes
    -----
    The passes have the training model's spread. Rates of tiers and links have that of published runs with offload; the
    step is costed again with all of them faster and slower by it, which also sees what is no longer hidden. The two
    are independent.
    """
    tree = step_tree(asked, resource_s)
    deviation = float(spread(asked.job, tree))
    known = engine_of("flexgen")
    assert known is not None
    seconds = float(tree.seconds)
    found = []
    for sign in (-1, 1):
        factor = float(np.exp(sign * Z90 * known.spreads["throughput"]))
        moved = asked.fixed_s + sum(
            max(time * (1.0 if name == ACCELERATORS else factor) for name, time in times.items())
            for times in resource_s.values()
        )
        found.append(float(np.exp(sign * np.hypot(Z90 * deviation, np.log(moved / seconds)))))
    return found[0], found[1]
