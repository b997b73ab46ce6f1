"""What a sequence costs on a group: against the whole micro-step, counted arithmetic, and the published form."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.catalogue import resolve_cluster
from hardware.topology import levels
from hardware.yaml_source import Source
from perfmodel.architecture import load_architecture
from perfmodel.framework import frameworks
from perfmodel.job import Job, job
from perfmodel.memory import available_bytes
from perfmodel.plan import DEFAULTS, plan_from_rows
from perfmodel.sequence import (
    STYLES,
    AlphaBeta,
    SequenceCosts,
    all_to_all_bandwidth,
    alpha_beta_costs,
    memory_per_token,
    micro_step,
    sequence_costs,
)
from perfmodel.training import predict_step

DEGREES = (1, 2, 4, 8, 16, 32, 64)
LAYOUT: dict[str, Any] = {"zero_stage": 3, "recompute": "none"}
ROW = {**DEFAULTS, **LAYOUT}


def asked(model: str = "llama-2-7b", cluster: str = "aws-p4d", nodes: int = 8) -> Job:
    machine = resolve_cluster(cluster, Path(), nodes)
    architecture = load_architecture(model, Path(), Source("test", {}, {}), ())
    return job(
        architecture,
        machine,
        ranks=machine.accelerators,
        seq_len=4096,
        global_batch=machine.accelerators,
        precision="bf16",
        framework=frameworks()["deepspeed"],
    )


@pytest.fixture(scope="module")
def found() -> Job:
    return asked()


@pytest.fixture(scope="module")
def costs(found: Job) -> SequenceCosts:
    return sequence_costs(found, DEGREES, STYLES, LAYOUT)


def seconds(job: Job, lengths: list[float], degrees: list[int], tokens: float, style: str) -> Any:
    return micro_step(job, ROW, np.array(lengths), np.array(degrees), tokens, style).seconds


@pytest.mark.parametrize("style", STYLES)
def test_a_full_micro_step_of_equal_sequences_takes_its_time(found: Job, costs: SequenceCosts, style: str) -> None:
    without_traffic = sequence_costs(found, DEGREES, STYLES, LAYOUT | {"zero_stage": 2})
    for known, row in ((without_traffic, ROW | {"zero_stage": 2}), (costs, ROW)):
        length, capacity = known.lengths[100], known.capacity_tokens
        running = np.isfinite(known.of(np.array([length]), style)[0])
        sizes = known.degrees[running]
        assert len(sizes) >= 5
        whole = micro_step(found, row, np.array([length]), sizes, capacity, style).seconds[0]
        count = capacity * sizes / length
        added = known.of(np.array([length]), style)[0, running] * count + known.fixed_s[running]
        if known is without_traffic:
            assert added == pytest.approx(whole, rel=1e-9)
        else:  # gathering weights adds to every micro-step
            assert np.all(added > whole)
            assert np.allclose(added - whole, (added - whole)[0])


@pytest.mark.parametrize("style", STYLES)
def test_lengths_between_the_knots_are_near_their_own_cost(found: Job, costs: SequenceCosts, style: str) -> None:
    lengths = [300.0, 1234.0, 5000.0, 20000.0, 100000.0, 192000.0]
    running = np.isfinite(costs.seconds[style][0])
    sizes = costs.degrees[running]
    own = seconds(found, lengths, sizes.tolist(), costs.capacity_tokens, style)
    traffic = costs.fixed_s - sequence_costs(found, DEGREES, STYLES, LAYOUT | {"zero_stage": 2}).fixed_s
    assert np.all(np.abs(traffic) < costs.fixed_s)
    per_sequence = own * np.array(lengths)[:, None] / (costs.capacity_tokens * sizes)
    told = costs.of(np.array(lengths), style)[:, running]
    # the fixed part, charged apart, is a few percent of a full micro-step
    assert np.all(told < 1.02 * per_sequence)
    assert np.all(told > 0.9 * per_sequence)


def test_work_lies_between_peak_and_a_quarter_of_it(found: Job, costs: SequenceCosts) -> None:
    """6 P FLOP a token, and 6 h L s^2 of causal attention forward and backward: counted here, not there."""
    architecture = found.architecture
    lengths = np.array([2048.0, 16384.0, 131072.0])
    counted = (
        6 * (architecture.parameters - architecture.vocab * architecture.hidden) * lengths
        + 6 * architecture.hidden * architecture.depth * lengths**2
    )
    alone = costs.of(lengths)[:, 0]
    assert np.all(counted / alone < found.peak)
    assert np.all(counted / alone > 0.25 * found.peak)
    # attention is the quadratic part
    assert alone[2] / alone[1] > 1.5 * 8


def test_leaving_the_node_costs_and_staying_does_not(costs: SequenceCosts) -> None:
    area = costs.of(np.array([8192.0]))[0] * costs.degrees
    assert np.all(area[1:4] < 1.1 * area[0])
    assert area[4] > 1.2 * area[3]
    faster = sequence_costs(asked(cluster="dgx-a100-40gb"), DEGREES, STYLES, LAYOUT)  # four times the network
    other = faster.of(np.array([8192.0]))[0] * faster.degrees
    assert other[:4] == pytest.approx(area[:4], rel=0.02)
    assert other[4] < area[4]


def test_ulysses_needs_a_head_for_every_accelerator(costs: SequenceCosts) -> None:
    assert np.isinf(costs.of(np.array([4096.0]), "ulysses")[0, -1])  # 32 heads on 64
    assert np.isfinite(costs.of(np.array([4096.0]), "ring")[0, -1])
    best = costs.of(np.array([4096.0, 65536.0]))
    for style in STYLES:
        assert np.all(best <= costs.of(np.array([4096.0, 65536.0]), style))


def test_hybrid_crosses_nodes_where_ulysses_lacks_heads() -> None:
    found = asked("llama-2-13b")  # 40 heads: eight divides them, sixteen does not
    costs = sequence_costs(found, DEGREES, STYLES, LAYOUT | {"recompute": "full"})
    length = np.array([8192.0])
    ring, ulysses, hybrid = (costs.of(length, style)[0] for style in ("ring", "ulysses", "hybrid"))
    assert np.isfinite(ulysses[:4]).all() and np.isinf(ulysses[4:]).all()
    # inside a node all heads are dealt out; on 16 and more an eighth of the sends between nodes is left
    assert hybrid[:4] == pytest.approx(ulysses[:4], rel=1e-9)
    assert np.all(hybrid[4:] < ring[4:] / 4)
    assert costs.of(length)[0, 4:] == pytest.approx(hybrid[4:])


@pytest.mark.parametrize(("model", "heads"), [("llama-2-7b", 32), ("llama-3.1-8b", 8)])
def test_what_is_gathered_fits_where_logits_were(model: str, heads: int) -> None:
    found = asked(model, "dgx-h100", 32)
    sizes = np.array([2**power for power in range(9)])
    costs = sequence_costs(found, sizes.tolist(), ("ring", "all-gather"), LAYOUT)
    running = np.isfinite(costs.of(np.array([4096.0]), "all-gather")[0])
    # of a token: keys and values of 128 each and their gradients, from every rank; logits and softmax of its own take
    # `logit_bytes` for every word, and 4 bytes for every entry of the last hidden state and its norm
    gathered = 2 * 2 * heads * (128 + 128) * sizes
    freed = found.framework.logit_bytes * found.architecture.vocab + 4 * found.architecture.hidden
    assert running.tolist() == (gathered <= freed).tolist()
    assert running[0] and not running[-1]
    # in a pipeline the first stages have no logits
    staged = sequence_costs(found, [1, 2, 4], ("ring", "all-gather"), LAYOUT | {"pp": 2, "zero_stage": 1})
    assert np.isfinite(staged.of(np.array([4096.0]), "all-gather")[0]).tolist() == [True, False, False]


def test_parts_add_up(costs: SequenceCosts) -> None:
    for style in STYLES:
        runs = np.isfinite(costs.seconds[style][0])
        added = np.sum(list(costs.parts[style].values()), axis=0)
        assert added[:, runs] == pytest.approx(costs.seconds[style][:, runs], rel=1e-9)


def test_memory_is_that_of_a_training_step(found: Job, costs: SequenceCosts) -> None:
    state, token, available = memory_per_token(found, ROW)
    plan = plan_from_rows([{**ROW, "dp": found.ranks, "cp": 1, "micro_batch": 1}])
    tokens = 5000
    step = predict_step(replace(found, seq_len=tokens, global_batch=found.ranks), plan, explain=False)
    assert float(np.squeeze(step.memory.reserved_peak)) == pytest.approx(state + token * tokens, rel=1e-9)
    assert costs.capacity_tokens == pytest.approx((available - state) / token)
    assert available == available_bytes(found)
    # 16 bytes a parameter over 64 ranks at least; 34 h L bytes a token (Korthikanti et al., section 4.1, less scores)
    assert state > 16 * found.architecture.parameters / 64
    assert 0.7 < token / (34 * 4096 * 32) < 1.5


def test_more_of_the_states_on_each_accelerator_leaves_fewer_tokens(found: Job, costs: SequenceCosts) -> None:
    fewer = sequence_costs(found, DEGREES, STYLES, LAYOUT | {"zero_stage": 1})
    more = sequence_costs(found, DEGREES, STYLES, LAYOUT | {"recompute": "full"})
    assert fewer.capacity_tokens < costs.capacity_tokens < more.capacity_tokens
    assert "gradient traffic" in fewer.outside_s and "gradient traffic" not in costs.outside_s
    assert more.of(np.array([4096.0]))[0, 0] > 1.2 * costs.of(np.array([4096.0]))[0, 0]


def test_flexsp_form_by_hand() -> None:
    form = AlphaBeta(a1=1.0, a2=2.0, b1=1.0, a3=4.0, b2=1.0, bandwidth={2: 4.0, 4: 2.0})
    costs = alpha_beta_costs(form, (1, 2, 4), memory_bytes=10.0, state_bytes=2.0, token_bytes=1.0)
    # s = 6: 36 + 12 alone; halved, and 24 bytes over two at 4; quartered, and 24 over four at 2
    assert costs.of(np.array([6.0]))[0].tolist() == [48.0, 24.0 + 3.0, 12.0 + 3.0]
    assert costs.fixed_s.tolist() == [1.0, 2.0, 2.0]
    assert costs.capacity_tokens == 8.0


def test_bandwidth_of_a_group_is_that_of_its_narrowest_level() -> None:
    tower = levels(resolve_cluster("aws-p4d", Path(), 8))
    # NVLink of 300 GB/s carries (d - 1)/d of the data; four adapters of 100 Gbit/s for eight carry (d - 8)/d
    for degree in (2, 4, 8):
        assert all_to_all_bandwidth(tower, degree) == pytest.approx(300e9 * degree / (degree - 1))
    for degree in (16, 32, 64):
        assert all_to_all_bandwidth(tower, degree) == pytest.approx(6.25e9 * degree / (degree - 8))


@pytest.mark.parametrize("model", ["mixtral-8x7b", "gemma-2-9b", "deepseek-v2"])
def test_other_architectures(model: str) -> None:
    costs = sequence_costs(asked(model, "dgx-h100", 16), (1, 8, 16), STYLES, LAYOUT | {"recompute": "full"})
    work = costs.of(np.array([4096.0, 32768.0]))
    assert np.all(np.isfinite(work[:, :2])) and np.all(work > 0)
    assert np.all(work[1] > 7.9 * work[0])
