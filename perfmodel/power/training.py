"""Power and energy of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.architecture import model_flops_per_token
from perfmodel.job import Job
from perfmodel.plan import Plan
from perfmodel.power.constants import shares_of
from perfmodel.power.device import Activity, board_power_w, training_activity
from perfmodel.power.node import node_power_w, nodes_power_w
from perfmodel.power.throttle import clock_share
from perfmodel.terms import Array, Number
from perfmodel.training import StepPrediction
from perfmodel.utilisation import ideal_step_s, utilisation


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
    accelerator = job.machine.accelerator
    shares = shares_of(accelerator)
    activity = training_activity(hardware, np.asarray(predicted.streamed_s) / seconds)
    board_w = board_power_w(accelerator, activity, shares=shares)
    all_w, most_w = (_nodes_w(job, watts) for watts in (board_w, accelerator.power.limit))
    node = job.machine.node
    node_w = node_power_w(node, min(node.accelerators.count, job.ranks) * board_w)
    return TrainingPower(board_w, all_w, node_w, float(most_w), shares.spread)


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
