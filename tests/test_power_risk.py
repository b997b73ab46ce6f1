"""How many servers fit below a limit: published and hand-made figures of each rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.power.risk import (
    chance_load_w,
    hoeffding_quantile,
    most_servers,
    nameplate_load_w,
    normal_quantile,
    series_load_w,
)

ROWS = [
    # limit, mean, sigma, most [kW], risk, idle, nameplate, {correlation: Gaussian}, Hoeffding
    (260, 4.2, 0.9, 6.5, 1e-3, 1.5, 40, {0.0: 56, 0.2: 47, 0.5: 42, 1.0: 37}, 46),
    (260, 4.2, 0.9, 6.5, 1e-5, None, 40, {0.2: 43}, None),
    (1000, 5.5, 1.1, 10.2, 1e-4, 2.8, 98, {0.1: 146, 0.6: 115}, 146),
]
"""Worked by hand from the formulas."""


@pytest.mark.parametrize("row", ROWS)
def test_worked_figures(row: tuple) -> None:  # type: ignore[type-arg]
    limit, mean, sigma, most, risk, idle, nameplate, gaussian, hoeffding = row
    one = np.array([1.0])

    def fit(mean: float, spread: float, rho: float, quantile: float) -> int:
        def load(counts: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            return chance_load_w(counts[..., None], mean * one, spread * one, rho * np.eye(1), quantile)

        return int(most_servers(load, limit, 1000))

    assert most_servers(lambda n: nameplate_load_w(n[..., None], most * one), limit, 1000) == nameplate
    for rho, expected in gaussian.items():
        assert fit(mean, sigma, rho, normal_quantile(risk)) == expected
    if hoeffding is not None:
        assert fit(mean, most - idle, 0.0, hoeffding_quantile(risk)) == hoeffding


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0.5, 5), st.floats(0.1, 2))
def test_the_variance_is_that_of_the_covariance_matrix(n: int, rho: float, mean: float, sigma: float) -> None:
    covariance = sigma**2 * ((1 - rho) * np.eye(n) + rho * np.ones((n, n)))
    expected = n * mean + 3.0 * np.sqrt(np.ones(n) @ covariance @ np.ones(n))
    found = chance_load_w(np.array([n]), np.array([mean]), np.array([sigma]), rho * np.eye(1), 3.0)
    assert found == pytest.approx(expected)


def test_two_kinds_with_a_correlation_between_them() -> None:
    spread, n = np.array([1.0, 2.0]), np.array([3, 2])
    correlation = np.array([[0.3, 0.1], [0.1, 0.5]])
    of = np.repeat([0, 1], n)
    matrix = correlation[of][:, of]
    np.fill_diagonal(matrix, 1.0)
    deviation = np.sqrt(spread[of] @ matrix @ spread[of])
    assert chance_load_w(n, np.zeros(2), spread, correlation, 1.0) == pytest.approx(deviation)


def test_hoeffding_holds_for_two_point_powers() -> None:
    """Servers that are either idle or at their most are as spread as any: the share above the bound is no more."""
    seed = np.random.default_rng(7)
    n, low, high, share, risk = 40, 1.0, 5.0, 0.3, 0.02
    power = np.where(seed.random((20000, n)) < share, high, low).sum(axis=1)
    mean = share * high + (1 - share) * low
    bound = chance_load_w(
        np.array([n]), np.array([mean]), np.array([high - low]), np.zeros((1, 1)), hoeffding_quantile(risk)
    )
    assert np.mean(power > bound) <= risk


def test_a_series_may_exceed_for_its_share_of_steps() -> None:
    profile = np.array([[1.0, 5.0, 2.0, 4.0, 3.0], [1.0, 1.0, 1.0, 1.0, 9.0]])
    counts = np.array([[1, 0], [1, 1]])
    assert series_load_w(counts, profile, 0.0).tolist() == [5, 12]
    assert series_load_w(counts, profile, 0.2).tolist() == [4, 6]
    assert series_load_w(counts, profile, 0.39).tolist() == [4, 6]
    assert series_load_w(counts, profile, 0.4).tolist() == [3, 5]
