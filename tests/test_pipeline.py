"""Layers over stages, bubbles and activations in flight, against schedules played step by step."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.pipeline import bubble, in_flight_chunks, missing_layers, split_layers, splits


def whole(value: object) -> int:
    return int(np.asarray(value).reshape(-1)[0])


def one(*values: int) -> list[np.ndarray]:
    return [np.array([value]) for value in values]


# --- layers


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 12, 32, 61, 80, 96, 126])
def test_every_layer_is_on_one_stage(depth: int) -> None:
    found = 0
    for pp, vpp in itertools.product(range(1, 33), range(1, 9)):
        if not splits(depth, *one(pp, vpp)).item() or (pp == 1 and vpp > 1):
            continue
        found += 1
        first, inner, last = map(whole, split_layers(depth, 0, *one(pp, vpp)).layers)
        if pp == 1:
            assert (first, last) == (depth, depth)
            continue
        assert first + (pp - 2) * inner + last == depth
        assert min(first, inner, last) >= 1
        # no stage holds more than its even share, rounded up to whole chunks
        assert max(first, inner, last) <= -(-depth // (pp * vpp)) * vpp
        # what an even spread lacks is taken from the ends, the last one first
        assert first - last in ((0, 1) if pp > 1 else (0,))
    assert found >= min(depth, 9)


@pytest.mark.parametrize(
    ("depth", "pp", "vpp", "layers"),
    [
        (96, 8, 1, (12, 12, 12)),
        # Llama 3 405B (arXiv 2407.21783, section 3.3.2): 126 layers on 16 stages, one less on the first and the last.
        (126, 16, 1, (7, 8, 7)),
        # DeepSeek-V3: 61 = 3 + 14 x 4 + 2.
        (61, 16, 1, (3, 4, 2)),
        (61, 16, 2, (3, 4, 2)),
        (7, 2, 1, (4, 4, 3)),
        (80, 1, 1, (80, 80, 80)),
    ],
)
def test_known_models(depth: int, pp: int, vpp: int, layers: tuple[int, int, int]) -> None:
    assert tuple(map(whole, split_layers(depth, 0, *one(pp, vpp)).layers)) == layers


def test_stages_without_a_layer_are_refused() -> None:
    # 61 layers on 32 stages of two: the last would lose both.
    assert not splits(61, *one(32, 1)).item()
    assert not splits(4, *one(8, 1)).item()
    assert not splits(10, *one(1, 3)).item()
    with pytest.raises(ValueError, match="61 layers cannot fill pipelines of 32 stages"):
        split_layers(61, 3, *one(32, 1))
    # An array of layouts is judged one by one.
    assert splits(96, np.array([8, 64, 96, 97]), np.array([12, 1, 1, 1])).tolist() == [True, False, True, False]
    assert missing_layers(61, *one(16, 1)).item() == 3


@given(st.integers(1, 130), st.integers(0, 130), st.integers(1, 32), st.integers(1, 8))
def test_leading_layers_are_spread_over_the_stages_too(depth: int, leading: int, pp: int, vpp: int) -> None:
    if leading > depth or not splits(depth, *one(pp, vpp)).item() or (pp == 1 and vpp > 1):
        return
    found = split_layers(depth, leading, *one(pp, vpp))
    held = [float(np.asarray(part).reshape(-1)[0]) for part in found.leading]
    for layers, lead in zip(found.layers, held, strict=True):
        assert 0 <= lead <= whole(layers)
    assert (held[-1] if pp == 1 else held[0] + (pp - 2) * held[1] + held[2]) == pytest.approx(leading, rel=1e-12)


def test_leading_layers_come_first() -> None:
    # DeepSeek-V3 on 16 stages: its three dense layers are the first stage; none of 8 stages has more than 8.
    found = split_layers(61, 3, *one(16, 1))
    assert [float(part.item()) for part in found.leading] == [3, 0, 0]
    # Interleaved twice, chunks of two and one less in front: the first stage starts with one, the next chunk has two.
    found = split_layers(61, 3, *one(16, 2))
    assert float(found.leading[0].item()) == 1
    assert float(found.leading[1].item()) == pytest.approx(2 / 14)


# --- schedules, played step by step


class Pass(NamedTuple):
    """A forward or backward pass of a model chunk for a micro-batch."""

    backward: bool
    chunk: int
    micro_batch: int


def orders(pp: int, vpp: int, n: int) -> list[list[Pass]]:
    """What every rank does, in order: 1F1B, or interleaved 1F1B (SC21, arXiv 2104.04473, figure 4).

    Warm-up forwards as in Megatron-LM: pp - i - 1, or 2 (pp - i - 1) + (vpp - 1) pp with interleaving; then forward
    and backward in turn; then the backwards that are left. Interleaved, micro-batches go in groups of pp through one
    chunk after another.
    """
    found = []
    for rank in range(pp):
        total = n * vpp
        warm_up = min(pp - rank - 1 if vpp == 1 else 2 * (pp - rank - 1) + (vpp - 1) * pp, total)

        def forward(k: int) -> Pass:
            group, place = divmod(k, pp * vpp)
            return Pass(False, place // pp, group * pp + place % pp) if vpp > 1 else Pass(False, 0, k)

        def backward(k: int) -> Pass:
            _, chunk, micro_batch = forward(k)
            return Pass(True, vpp - 1 - chunk, micro_batch)

        steps = [forward(k) for k in range(warm_up)]
        for k in range(total - warm_up):
            steps += [forward(warm_up + k), backward(k)]
        found.append(steps + [backward(k) for k in range(total - warm_up, total)])
    return found


def play(forward: Sequence[float], backward: Sequence[float], vpp: int, n: int) -> float:
    """Time until all ranks are done; a rank's chunks take equally long. A deadlock is an error."""
    pp = len(forward)
    queues = [list(reversed(steps)) for steps in orders(pp, vpp, n)]
    clock = [0.0] * pp
    done: dict[tuple[bool, int, int], float] = {}
    while any(queues):
        moved = False
        for rank, queue in enumerate(queues):
            while queue:
                is_backward, chunk, micro = queue[-1]
                place = chunk * pp + rank
                if is_backward:
                    # its own forward pass, and the backward pass of what follows it in the model
                    needs = [(False, place, micro)] + ([(True, place + 1, micro)] if place + 1 < pp * vpp else [])
                else:
                    needs = [(False, place - 1, micro)] if place else []
                if not all(need in done for need in needs):
                    break
                queue.pop()
                begin = max([clock[rank], *(done[need] for need in needs)])
                clock[rank] = done[is_backward, place, micro] = (
                    begin + (backward if is_backward else forward)[rank] / vpp
                )
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clock)


@pytest.mark.parametrize(("pp", "n"), [(1, 4), (2, 2), (4, 4), (4, 13), (8, 32), (8, 3)])
def test_the_bubble_of_1f1b(pp: int, n: int) -> None:
    # forward 1, backward 2: (n + pp - 1) x 3
    idle = float(np.asarray(bubble(3.0, 3.0 * pp, np.array(pp), np.array(1))))
    assert play([1.0] * pp, [2.0] * pp, 1, n) == n * 3.0 + idle


@pytest.mark.parametrize(("pp", "vpp", "n"), [(2, 2, 2), (4, 2, 8), (4, 4, 12), (8, 4, 32), (3, 5, 6)])
def test_the_bubble_of_interleaving(pp: int, vpp: int, n: int) -> None:
    idle = float(np.asarray(bubble(3.0, 3.0 * pp, np.array(pp), np.array(vpp))))
    assert idle == 3.0 * (pp - 1) / vpp
    assert play([1.0] * pp, [2.0] * pp, vpp, n) == pytest.approx(n * 3.0 + idle, rel=1e-12)


@pytest.mark.parametrize(("vpp", "percent"), [(1, 21.9), (4, 5.5)])
def test_published_bubbles(vpp: int, percent: float) -> None:
    # SC21, section 2.2: (p - 1)/(v m) of the ideal time; p 8, m 32.
    idle = float(np.asarray(bubble(1.0, 8.0, np.array(8), np.array(vpp))))
    assert 100 * idle / 32 == pytest.approx(percent, abs=0.05)


times = st.floats(0.1, 10.0)


@given(st.lists(times, min_size=1, max_size=6), st.integers(1, 12), st.floats(0.3, 3.0))
def test_unequal_stages_never_take_longer(forward: list[float], n: int, ratio: float) -> None:
    # Alpa's sum_i t_i + (n - 1) max t_i (arXiv 2201.12023, equation 2) is an upper bound of 1F1B, where a stage with
    # spare time waits less in its warm-up; n max t_i and one pass through all stages bound it from below.
    both = [(1 + ratio) * time for time in forward]
    idle = float(np.asarray(bubble(max(both), sum(both), np.array(len(both)), np.array(1))))
    played = play(forward, [ratio * time for time in forward], 1, n)
    assert max(n * max(both), sum(both)) * (1 - 1e-12) <= played <= (n * max(both) + idle) * (1 + 1e-12)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=6), st.integers(1, 12))
def test_stages_that_are_slow_in_different_directions(stages: list[tuple[float, float]], n: int) -> None:
    # Where one stage is slow forwards and another backwards, no stage alone sets the pace: the bound above does not
    # hold (forward 1, 4, 1 and backward 4, 1, 1 with two micro-batches take 18, not 17), but one of both maxima does.
    forward, backward = (list(column) for column in zip(*stages, strict=True))
    played = play(forward, backward, 1, n)
    pace = max(forward) + max(backward)
    assert played <= (sum(forward) + sum(backward) + (n - 1) * pace) * (1 + 1e-12)
    assert play([1.0, 4.0, 1.0], [4.0, 1.0, 1.0], 1, 2) == 18.0


@settings(max_examples=100)
@given(st.lists(times, min_size=2, max_size=6), st.integers(1, 12), st.floats(0.5, 3.0))
def test_unequal_stages_exactly_when_the_last_is_slowest(stages: list[float], n: int, ratio: float) -> None:
    # The last stage has no warm-up: it waits for the first micro-batch, works through all, and the last one runs back.
    stages = sorted(stages)
    played = play(stages, [ratio * time for time in stages], 1, n)
    both = [(1 + ratio) * time for time in stages]
    idle = float(np.asarray(bubble(both[-1], sum(both), np.array(len(both)), np.array(1))))
    assert played == pytest.approx(n * both[-1] + idle, rel=1e-12)


@pytest.mark.parametrize("pp", [1, 2, 4, 7])
@pytest.mark.parametrize("vpp", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_activations_in_flight(pp: int, vpp: int, groups: int) -> None:
    n = groups * pp
    for rank, steps in enumerate(orders(pp, vpp, n)):
        held = itertools.accumulate(-1 if step.backward else 1 for step in steps)
        most = max(held)
        assert whole(in_flight_chunks(rank, *one(pp, vpp, n))) == most
        # negative numbers count from the end
        assert whole(in_flight_chunks(rank - pp, *one(pp, vpp, n))) == most


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_activations_in_flight_of_any_number_of_micro_batches(n: int) -> None:
    for pp in (1, 2, 4, 6):
        for rank, steps in enumerate(orders(pp, 1, n)):
            most = max(itertools.accumulate(-1 if step.backward else 1 for step in steps))
            assert whole(in_flight_chunks(rank, *one(pp, 1, n))) == most


def test_a_stage_that_is_not_there_is_the_last() -> None:
    # One stage, asked for the second: the same stage.
    assert whole(in_flight_chunks(1, *one(1, 1, 8))) == 1
    assert in_flight_chunks(1, np.array([1, 2, 4]), np.array([1, 1, 1]), np.array([8, 8, 8])).tolist() == [1, 1, 3]


def test_interleaving_holds_more() -> None:
    # Korthikanti et al. (arXiv 2205.05198), section 4.2.3: 1 + (p - 1)/(p v) of 1F1B on the first stage.
    for pp, vpp in itertools.product((2, 4, 8), (2, 3, 8)):
        chunks = whole(in_flight_chunks(0, *one(pp, vpp, 4 * pp)))
        assert chunks / vpp == pytest.approx(pp * (1 + (pp - 1) / (pp * vpp)), rel=1e-12)
