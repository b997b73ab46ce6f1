"""Simulated engines against one that follows the rules word by word, hand-worked cases, and simulated references."""

import csv
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from perfmodel.simulation import MODES, Engine, simulate, simulate_closed, simulate_disaggregated
from perfmodel.step_law import LinearStep, StepTable

LAW = LinearStep(0.5, 0.125, 0.03125, 0.0009765625)
"""Binary fractions, so that times add up without rounding."""

with (Path(__file__).parent / "oracles" / "batching_oracle.csv").open() as file:
    ROWS = [
        {name: cell if name in ("case", "mode", "saturated") else float(cell or "nan") for name, cell in row.items()}
        for row in csv.DictReader(file)
    ]


def by_the_rules(law, mode, max_batch, budget, arrivals, prompts, outputs):
    """Take every step singly; return first-token and finish times."""
    count = len(arrivals)
    order = deque(range(count))
    waiting, running = deque(), []  # running: requests in order of admission
    done, emitted = [0] * count, [0] * count
    first, finish, clock = [None] * count, [None] * count, 0.0
    while order or waiting or running:
        if not waiting and not running:
            clock = max(clock, arrivals[order[0]])
        while order and arrivals[order[0]] <= clock:
            waiting.append(order.popleft())
        decode = [r for r in running if done[r] == prompts[r]]
        part = {}
        if mode == "chunked":
            room = budget - len(decode)
            for r in running:
                if done[r] < prompts[r] and room > 0:
                    part[r] = min(prompts[r] - done[r], room)
                    room -= part[r]
            while waiting and len(running) < max_batch and room > 0:
                r = waiting.popleft()
                running.append(r)
                part[r] = min(prompts[r], room)
                room -= part[r]
        else:
            m = 0
            while waiting and len(running) < max_batch and (m == 0 or m + prompts[waiting[0]] <= budget):
                r = waiting.popleft()
                running.append(r)
                part[r] = prompts[r]
                m += prompts[r]
            if mode == "prefill_first" and part:
                decode = []
        context = sum(prompts[r] + emitted[r] for r in decode)
        pairs = sum(tokens * done[r] + tokens * (tokens + 1) / 2 for r, tokens in part.items())
        clock += float(law.seconds(len(decode), sum(part.values()), context, pairs))
        for r, tokens in part.items():
            done[r] += tokens
            if done[r] == prompts[r]:
                emitted[r], first[r] = 1, clock
        for r in decode:
            emitted[r] += 1
        for r in [r for r in running if emitted[r] == outputs[r]]:
            running.remove(r)
            finish[r] = clock
    return np.array(first), np.array(finish)


def draw(seed, count=60, gap=1.5):
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(gap, count))
    return arrivals, random.integers(1, 40, count), random.integers(1, 12, count)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(8))
def test_times_are_those_of_the_rules(mode, seed):
    arrivals, prompts, outputs = draw(seed)
    law = LAW if seed % 2 else LinearStep(0.5, 0.125, 0.03125, 0.0009765625, 2**-12)
    limits = (3, 30) if seed < 4 else (6, 64)
    first, finish = by_the_rules(law, mode, *limits, arrivals.tolist(), prompts.tolist(), outputs.tolist())
    result = simulate(Engine(law, mode, *limits), arrivals, prompts, outputs)
    np.testing.assert_allclose(result.first_token_s, first, rtol=1e-12)
    np.testing.assert_allclose(result.finish_s, finish, rtol=1e-12)
    assert result.gap_count.sum() == (outputs - 1).sum()
    assert (result.gap_s * result.gap_count).sum() == pytest.approx((finish - first).sum(), rel=1e-9)


def test_one_request_by_hand():
    """A step of 4 prompt tokens, then two of one sequence with contexts of 5 and 6."""
    result = simulate(Engine(LAW, "mixed", 8, 100), np.array([2.0]), np.array([4]), np.array([3]))
    assert result.ttft_s[0] == 0.5 + 4 / 32
    assert result.e2e_s[0] == 0.5 + 4 / 32 + 2 * (0.5 + 0.125) + (5 + 6) / 1024
    assert result.tpot_s[0] == 0.625 + 5.5 / 1024
    assert result.itl_quantile_s(0.5) == pytest.approx(result.tpot_s[0])


def test_a_table_is_interpolated():
    """At n = 3, m = 15: half-way between the entries of n = 2 and 4, half-way between m = 10 and 20."""
    table = StepTable(np.array([0.0, 2, 4]), np.array([0.0, 10, 20]), np.arange(9.0).reshape(3, 3) ** 2, 0.5, 0.25)
    assert table.seconds(3, 15, 2.0, 4.0) == (16 + 25 + 49 + 64) / 4 + 1 + 1
    np.testing.assert_allclose(table.seconds([2, 4, 6], 0.0, 0.0), [9, 36, 63])
    two = StepTable(table.sequences, table.prompt_tokens, np.stack([table.seconds_at, 2 * table.seconds_at]))
    np.testing.assert_allclose(two.seconds([3, 3], [15, 0], 0.0), [38.5, 45.0])


@pytest.mark.parametrize("mode", MODES)
def test_a_table_of_a_line_simulates_like_the_line(mode):
    arrivals, prompts, outputs = draw(5)
    counts, tokens = np.array([0.0, 1, 3, 9]), np.array([0.0, 7, 50])
    table = StepTable(counts, tokens, LAW.seconds(counts[:, None], tokens, 0.0), LAW.per_context_token_s)
    one = simulate(Engine(LAW, mode, 5, 40), arrivals, prompts, outputs)
    other = simulate(Engine(table, mode, 5, 40), arrivals, prompts, outputs)
    np.testing.assert_allclose(one.finish_s, other.finish_s, rtol=1e-12)


def test_closed_loop_keeps_its_clients_busy():
    """Two clients, requests alike: both prompts in step one, then five steps; in all three rounds."""
    law = LinearStep(1.0, 0.25, 0.125)
    result = simulate_closed(Engine(law, "mixed", 8, 100), 2, np.full(6, 4), np.full(6, 6))
    round_s = 1 + 8 / 8 + 5 * 1.5
    np.testing.assert_allclose(result.arrival_s, np.repeat([0, round_s, 2 * round_s], 2))
    np.testing.assert_allclose(result.finish_s, np.repeat([round_s, 2 * round_s, 3 * round_s], 2))


def test_a_full_cache_puts_the_last_back():
    """Two requests of 4 + 6 tokens in a cache of 16: at 8 + 8 held there is no room for two more, the second goes.

    It held 8 = 4 + 4 tokens, 4 emitted. The first ends two steps later, at the sixth token. The second then computes 7
    tokens again (the eighth was not computed yet), which emits its fifth token, and decodes the sixth.
    """
    law = LinearStep(1.0, 0.0, 0.125)
    engine = Engine(law, "mixed", 8, 100, kv_tokens=16)
    result = simulate(engine, np.zeros(2), np.full(2, 4), np.full(2, 6))
    assert result.preemptions == 1
    prompts = 1 + 8 / 8
    np.testing.assert_allclose(result.finish_s, [prompts + 5, prompts + 5 + 1 + 7 / 8 + 1])
    assert result.gap_count.sum() == 10
    assert result.gap_s.max() == 2 + 1 + 7 / 8
    moved = simulate(Engine(law, "mixed", 8, 100, 16, 0.0625), np.zeros(2), np.full(2, 4), np.full(2, 6))
    np.testing.assert_allclose(moved.finish_s, [prompts + 5 + 8 / 16, prompts + 5 + 2 * 8 / 16 + 2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swap", [None, 0.01])
def test_scarce_memory_loses_no_token(mode, swap):
    arrivals, prompts, outputs = draw(3, 300)
    engine = Engine(LAW, mode, 16, 64, kv_tokens=70, swap_s_per_token=swap)
    result = simulate(engine, arrivals, prompts, outputs + 10)
    assert result.preemptions > 10
    assert result.gap_count.sum() == pytest.approx((outputs + 9).sum())
    waited = (result.finish_s - result.first_token_s).sum()
    assert (result.gap_s * result.gap_count).sum() == pytest.approx(
        waited, rel=0.03 if mode == "prefill_first" else 1e-9
    )
    assert (result.ttft_s > 0).all()
    plenty = simulate(Engine(LAW, mode, 16, 64), arrivals, prompts, outputs + 10)
    assert plenty.preemptions == 0
    assert plenty.finish_s.max() < result.finish_s.max()


def test_a_request_too_large_is_refused():
    with pytest.raises(ValueError, match="does not fit the cache"):
        simulate(Engine(LAW, "mixed", 4, 10, kv_tokens=20), np.zeros(1), np.array([15]), np.array([5]))


def test_speculation_takes_fewer_steps():
    """Seven tokens at 2.5 a step are three steps after the prompt's."""
    engine = Engine(LinearStep(1.0, 0.0, 0.0), "mixed", 4, 100, tokens_per_step=2.5)
    assert simulate(engine, np.zeros(1), np.array([3]), np.array([8])).finish_s[0] == 4.0


def test_replicas_share_the_load():
    """Round robin is every other request; the least loaded replica is free for the third request, when it comes."""
    arrivals, prompts, outputs = draw(1, 200)
    engine = Engine(LAW, "mixed", 4, 64)
    both = simulate(engine, arrivals, prompts, outputs, replicas=2)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        alone = simulate(engine, arrivals[half], prompts[half], outputs[half])
        np.testing.assert_allclose(both.finish_s[half], alone.finish_s)
    law = LinearStep(1.0, 0.0, 0.0)
    times, lengths = np.array([0.0, 0.0, 3.5]), np.array([9, 3, 1])
    wise = simulate(Engine(law, "mixed", 1, 9), times, np.ones(3, dtype=int), lengths, 2, "least_loaded")
    np.testing.assert_allclose(wise.finish_s, [9, 3, 4.5])


def test_separate_pools_by_hand():
    """Prompts one after the other at 2 and 3 s, a transfer of 0.5 s, then decoding alone and together."""
    prefill = Engine(LinearStep(0.0, 0.0, 0.5), "mixed", 1, 100)
    decode = Engine(LinearStep(1.0, 0.5, 0.0), "mixed", 8, 100)
    result = simulate_disaggregated(
        prefill, decode, np.zeros(3), np.array([4, 2, 2]), np.array([3, 3, 1]), 1, 1, 0.25, 0.0625
    )
    np.testing.assert_allclose(result.first_token_s, [2, 3, 4])
    np.testing.assert_allclose(result.arrival_s, 0)
    # The first decodes alone from 2.5; the second is there at 3.375 and joins at 4: two steps of 2 s, then one alone.
    np.testing.assert_allclose(result.finish_s, [6, 7.5, 4])


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_within_three_standard_errors_of_the_reference(row):
    """Fresh seeds, 10 replications of at least 12,000 requests, measured in the reference's windows."""
    law = LinearStep(row["a_s"], row["c_s_per_sequence"], row["d_s_per_prompt_token"], row["e_s_per_context_token"])
    engine = Engine(law, row["mode"], int(row["max_batch"]), int(row["token_budget"]))
    kept = int(row["requests"]) // 10 if row["saturated"] == "yes" else 12_000
    warm = kept // 5
    found = []
    for seed in range(10):
        random = np.random.default_rng([2024, seed])
        arrivals = np.cumsum(random.exponential(1 / row["arrival_rate_per_s"], kept + warm))
        prompts = np.full(kept + warm, int(row["prompt_tokens"]))
        result = simulate(engine, arrivals, prompts, np.full(kept + warm, int(row["output_tokens"])))
        begin = np.sort(result.finish_s)[warm - 1]
        after = result.run_end_s[(result.run_end_s - result.run_seconds) >= arrivals[-1]]
        end = after[0] if len(after) else result.run_end_s[-1]
        finished = ((result.finish_s > begin) & (result.finish_s <= end)).sum()
        found.append(
            [
                result.ttft_s[warm:].mean(),
                result.tpot_s[warm:].mean(),
                finished / (end - begin),
                result.mean_running(begin, end),
                result.mean_step_s(begin, end),
            ]
        )
    names = ("mean_ttft_s", "mean_tpot_s", "throughput_req_per_s", "mean_running", "mean_step_s")
    for name, values in zip(names, np.transpose(found), strict=True):
        if np.isnan(row[name]):
            continue
        error = np.hypot(values.std(ddof=1) / np.sqrt(10), row[name + "_ci95"] / 2.262)
        assert abs(values.mean() - row[name]) <= 3 * error + 1e-9 * row[name], name
