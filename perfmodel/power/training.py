"""Power and energy of a training step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from perfmodel.architecture import model_flops_per_token
from perfmodel.job import Job
from perfmodel.plan import Plan
from perfmodel.power.constants import shares_of
from perfmodel.power.device import Z90, Activity, board_power_w, training_activity
from perfmodel.power.node import node_power_w, nodes_power_w
from perfmodel.power.throttle import clock_share
from perfmodel.terms import Array, Number
from perfmodel.training import StepPrediction
from perfmodel.utilisation import ideal_step_s, utilisation

ENERGY = (
    *("power_w", "power_w_p10", "power_w_p90", "accelerator_power_w", "node_power_w"),
    *("energy_j", "energy_j_p10", "energy_j_p90"),
)
"""What is said of the power of a step."""


@dataclass(frozen=True)
class TrainingPower:
    """Mean power over a step.

    Parameters
    ----------
    board_w : array
        Of an accelerator [W].
    all_w : array
        Of all the job's nodes, or of its share of them where it fills none [W].
    node_w : array
        Of a node of the job that holds no other [W].
    most_w : float
        As `all_w` with every accelerator at its limit [W].
    spread : float
        Standard deviation of ln(measured/predicted).
    """

    board_w: Array
    all_w: Array
    node_w: Array
    most_w: float
    spread: float


def training_power(job: Job, plan: Plan, predicted: StepPrediction) -> TrainingPower:
    """Return the power of every plan.

    Parameters
    ----------
    job, plan : Job, Plan
        The job, and how it is laid out.
    predicted : StepPrediction
        Its step; all pipeline stages count as the slowest, with the bubble between.
    """
    seconds = np.asarray(predicted.step.seconds, float)
    _, hardware = utilisation(job, plan, seconds)
    return work_power(job, hardware, np.asarray(predicted.streamed_s) / seconds)


def work_power(job: Job, hardware_utilisation: Number, memory_share: Number) -> TrainingPower:
    """Return the power of steps by what they do.

    Parameters
    ----------
    hardware_utilisation, memory_share : array
        As of `training_activity`, on average over accelerators.
    """
    accelerator = job.machine.accelerator
    shares = shares_of(accelerator)
    board_w = board_power_w(accelerator, training_activity(hardware_utilisation, memory_share), shares=shares)
    all_w, most_w = (_nodes_w(job, watts) for watts in (board_w, accelerator.power.limit))
    node = job.machine.node
    node_w = node_power_w(node, min(node.accelerators.count, job.ranks) * board_w)
    return TrainingPower(board_w, all_w, node_w, float(most_w), shares.spread)


def energy_dict(power: TrainingPower, seconds: float, slower: float) -> dict[str, float]:
    """Return power [W] and energy [J] of one plan's step, with intervals.

    Parameters
    ----------
    power : TrainingPower
        Of one plan.
    seconds : float
        Its step [s].
    slower : float
        P90 of the step over the prediction; the errors of time and of power are independent.
    """
    watts, board_w, node_w = (
        float(np.asarray(one).reshape(-1)[0]) for one in (power.all_w, power.board_w, power.node_w)
    )
    spread = Z90 * power.spread
    uncertain = math.hypot(math.log(slower), spread)
    joules = watts * seconds
    powers = (watts, watts * math.exp(-spread), min(watts * math.exp(spread), power.most_w), board_w, node_w)
    energies = (joules, joules * math.exp(-uncertain), joules * math.exp(uncertain))
    return dict(zip(ENERGY, (*powers, *energies), strict=True))


def least_energy_j(job: Job) -> float:
    """Return an energy of a step that no plan goes below [J].

    Notes
    -----
    Power times time grows with time where the arithmetic stays the same, since power falls less than its rate: at the
    least time, of the model's operations alone at the clock that the limit allows, it is least.
    """
    seconds = ideal_step_s(job) / clock_share(job.machine.accelerator)
    rate = model_flops_per_token(job.architecture, job.seq_len) * job.global_batch * job.seq_len / seconds
    board_w = board_power_w(job.machine.accelerator, Activity(rate / job.ranks / job.peak, 0.0))
    return float(_nodes_w(job, board_w)) * seconds


def _nodes_w(job: Job, board_w: Number) -> Array:
    return nodes_power_w(job.machine.node, job.ranks, board_w)
