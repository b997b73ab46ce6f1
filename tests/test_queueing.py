"""Waits in line against exact solutions found by other means, and simulated ones."""

import csv
from pathlib import Path

import numpy as np
import pytest

from perfmodel.queueing import (
    approximate_quantile_s,
    approximate_wait_s,
    deterministic_quantile_s,
    deterministic_wait_s,
    erlang_c,
    erlang_c_quantile_s,
    erlang_c_wait_s,
    phase_wait,
    pollaczek_khinchine_wait_s,
    prefill_time_s,
    two_phases,
)

with (Path(__file__).parent / "oracles" / "queue_oracle.csv").open() as file:
    ROWS = [
        {name: float(cell) if cell and name[:3] in ("ser", "uti", "arr", "pro", "mea", "p99") else cell
         for name, cell in row.items() if "method" not in name and "distribution" not in name}
        for row in csv.DictReader(file)
    ]  # fmt: skip


def solve(row):
    """Return mean, probability of waiting (None where the oracle has none) and 99th percentile, all exact."""
    rate, servers, scv = row["arrival_rate_per_s"], int(row["servers"]), row["service_scv"]
    if scv == 0:
        return float(deterministic_wait_s(rate, 1.0, servers)), None, deterministic_quantile_s(0.99, rate, 1.0, servers)
    if scv == 1:
        quantile = float(erlang_c_quantile_s(0.99, rate, 1.0, servers))
        return float(erlang_c_wait_s(rate, 1.0, servers)), float(erlang_c(servers, rate)), quantile
    wait = phase_wait(rate, two_phases(1.0, scv), servers)
    return wait.mean_s, wait.wait_probability, wait.quantile_s(0.99)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_mean_probability_and_tail_of_the_oracle(row):
    mean, chance, quantile = solve(row)
    closed = row["service_scv"] == 1 or row["servers"] == 1
    assert mean == pytest.approx(row["mean_wait_exact_s"], rel=1e-6 if closed else 1e-5, abs=1e-12)
    if chance is not None:
        assert chance == pytest.approx(row["prob_wait_exact"], rel=1e-6)
    if row["p99_wait_exact_s"] != "":
        assert quantile == pytest.approx(row["p99_wait_exact_s"], rel=1e-5, abs=1e-12)
    else:
        assert abs(quantile - row["p99_wait_sim_s"]) <= 2 * row["p99_wait_sim_ci95_s"] + 1e-9


def test_one_server_is_pollaczek_khinchine():
    rows = [row for row in ROWS if row["servers"] == 1]
    rate, scv, exact = (
        np.array([row[name] for row in rows]) for name in ("arrival_rate_per_s", "service_scv", "mean_wait_exact_s")
    )
    np.testing.assert_allclose(pollaczek_khinchine_wait_s(rate, 1.0, scv), exact, rtol=1e-6)
    np.testing.assert_allclose(approximate_wait_s(rate, 1.0, 1, scv), exact, rtol=1e-6)


def test_deterministic_chain_of_three_servers_stepped_by_brute_force():
    """Mean wait by Little's law from the powers of the transition matrix of N' = max(N - 3, 0) + Poisson."""
    from scipy.stats import poisson

    load, servers, size = 2.4, 3, 200
    states = np.arange(size)
    moves = poisson.pmf(states[None, :] - np.maximum(states[:, None] - servers, 0), load)
    share = np.full(size, 1 / size)
    for _ in range(2000):
        share = share @ moves
        share /= share.sum()
    waiting = share @ np.maximum(states - servers, 0)
    assert float(deterministic_wait_s(load / 2.0, 2.0, servers)) == pytest.approx(waiting / (load / 2.0), rel=1e-9)


def test_two_phases_have_their_mean_and_variation():
    for scv in (0.5, 0.7, 1.0, 1.5, 9.0):
        phases = two_phases(3.0, scv)
        (r1, r2), p, on = phases.rates, phases.first, phases.onward
        mean = p / r1 + (1 - p + p * on) / r2
        square = p * (2 / r1**2 + on * (2 / (r1 * r2) + 2 / r2**2)) + (1 - p) * 2 / r2**2
        assert mean == pytest.approx(3.0)
        assert square / mean**2 - 1 == pytest.approx(scv)
    with pytest.raises(ValueError, match=r"0\.5 or more"):
        two_phases(1.0, 0.3)


@pytest.mark.parametrize("scv", [0.5, 0.8, 4.0])
def test_phases_on_one_server_are_pollaczek_khinchine(scv):
    assert phase_wait(0.4, two_phases(2.0, scv), 1).mean_s == pytest.approx(
        float(pollaczek_khinchine_wait_s(0.4, 2.0, scv)), rel=1e-9
    )


def test_exponential_phases_are_erlang_c():
    wait = phase_wait(3.1, two_phases(1.0, 1.0), 4)
    assert wait.mean_s == pytest.approx(float(erlang_c_wait_s(3.1, 1.0, 4)), rel=1e-9)
    assert wait.quantile_s(0.9) == pytest.approx(float(erlang_c_quantile_s(0.9, 3.1, 1.0, 4)), rel=1e-6)


@pytest.mark.slow
def test_approximation_errs_as_documented():
    for row in ROWS:
        mean = approximate_wait_s(row["arrival_rate_per_s"], 1.0, row["servers"], row["service_scv"])
        error = float(mean) / row["mean_wait_exact_s"] - 1
        if row["service_scv"] <= 1:
            assert abs(error) < 0.05
        elif row["mean_wait_exact_s"] >= 0.01:
            assert -1e-6 < error < 0.29
        if row["mean_wait_exact_s"] >= 0.01:
            exact = solve(row)[2]
            tail = float(
                approximate_quantile_s(0.99, row["arrival_rate_per_s"], 1.0, row["servers"], row["service_scv"])
            )
            low, high = (-0.05, 0.05) if row["utilisation"] >= 0.9 else (-0.23, 0.47)
            assert low <= tail / exact - 1 <= high


def test_burstier_arrivals_wait_longer():
    """Utilisation 0.8, exponential service: 4 services, 10 at a squared variation of 4, 34 at 16 (Kingman's bound)."""
    waits = approximate_wait_s(0.8, 1.0, 1, 1.0, [1.0, 4.0, 16.0])
    np.testing.assert_allclose(waits, [4, 10, 34])
    assert float(approximate_wait_s(0.8, 1.0, 1, 1.0, 0.2)) < 4 * 1.2 / 2
    assert float(approximate_wait_s(0.8, 1.0, 1, 0.0, 0.0)) == 0


def test_erlang_c_of_many_servers_by_recursion():
    """B(n) = a B(n - 1) / (n + a B(n - 1))."""
    load, blocked = 900.0, 1.0
    for n in range(1, 1001):
        blocked = load * blocked / (n + load * blocked)
    assert float(erlang_c(1000, load)) == pytest.approx(blocked / (1 - load / 1000 * (1 - blocked)), rel=1e-9)


def test_arrays_and_the_ends_of_the_range():
    rates = np.array([[0.0], [1.5], [4.0], [5.0]])
    for function in (erlang_c_wait_s, deterministic_wait_s, approximate_wait_s):
        waits = function(rates, 1.0, [4, 8])
        assert waits.shape == (4, 2)
        assert (waits[0] == 0).all()
        assert np.isinf(waits[2:, 0]).all()
        assert np.isfinite(waits[:, 1]).all()
        assert float(function(1.5, 1.0, 8)) == waits[1, 1]
    assert deterministic_quantile_s(0.99, 4.0, 1.0, 4) == np.inf
    with pytest.raises(ValueError, match="load reaches the servers"):
        phase_wait(4.0, two_phases(1.0, 4.0), 4)


def test_prefill_only_engine_of_distserve():
    """Worked numbers of the M/D/1 forms, D = 0.2 s and a two-way tensor-parallel speed-up of 1.6."""
    rates = np.array([1.0, 3.0, 4.0])
    np.testing.assert_allclose(prefill_time_s(rates, 0.2), [0.225, 0.35, 0.6], atol=1e-6)
    np.testing.assert_allclose(prefill_time_s(rates, 0.2, pipeline=2), [0.205556, 0.221429, 0.233333], atol=1e-6)
    np.testing.assert_allclose(prefill_time_s(rates, 0.2, tensor_speedup=1.6), [0.133929, 0.1625, 0.1875], atol=1e-6)
