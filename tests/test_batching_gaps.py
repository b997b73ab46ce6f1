"""Times between tokens: against simulation, and where a step's prompts are known by hand."""

import numpy as np
import pytest

from perfmodel.batching import Limits, Requests, open_loop
from perfmodel.batching_gaps import gap_quantiles_s
from perfmodel.requests import lognormal_lengths
from perfmodel.simulation import MODES, Engine, simulate
from perfmodel.step_law import LinearStep

LAW = LinearStep(0.012, 6e-5, 3e-5, 1e-8)
LEVELS = (0.5, 0.99)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("varied", [False, True])
def test_quantiles_of_a_simulation(mode, load, varied):
    """Median and P99 of 10,000 requests within 12 %."""
    random, count = np.random.default_rng(5), 10_000
    if varied:
        prompts = lognormal_lengths(1000 * np.exp(-0.5), 1.0, 1, 10**5, count, random)
        outputs = lognormal_lengths(200 * np.exp(-0.35), np.sqrt(0.7), 2, 10**4, count, random)
    else:
        prompts, outputs = np.full(count, 1000), np.full(count, 200)
    spread = [values.var() / values.mean() ** 2 for values in (prompts, outputs)]
    budget = 2048 if mode == "chunked" else 8192
    requests, limits = Requests(prompts.mean(), outputs.mean(), *spread), Limits(mode, 96, budget)
    rate = load * float(open_loop(LAW, requests, limits, 1e-3).capacity_requests_per_s)
    state = open_loop(LAW, requests, limits, rate)
    decoding = float(rate * requests.decode_steps * state.tpot_s)
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    result = simulate(Engine(LAW, mode, 96, budget), arrivals, prompts, outputs)
    found = gap_quantiles_s(LAW, requests, limits, decoding, rate, LEVELS)
    simulated = [result.itl_quantile_s(level) for level in LEVELS]
    np.testing.assert_allclose(found, simulated, rtol=0.12)


@pytest.mark.parametrize("mode", MODES)
def test_no_arrivals_leave_plain_steps(mode):
    found = gap_quantiles_s(LAW, Requests(1000, 200), Limits(mode, 96, 4096), 10.0, 1e-9, LEVELS)
    plain = 0.012 + 10 * 6e-5 + 10 * 1100 * 1e-8
    np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_a_budget_of_one_prompt_gives_two_kinds_of_step():
    """One prompt a step at most: steps of 10 and 40 ms, and of those with one as many as the rate asks.

    With a share x of long steps the rate is x / (0.01 + 0.03 x): at 5/s x = 0.05 / 0.85.
    """
    law, requests, limits = LinearStep(0.01, 0.0, 3e-5), Requests(1000, 200), Limits("mixed", 96, 1000)
    share = 0.05 / 0.85
    levels = (1 - share - 0.002, 1 - share + 0.002)
    found = gap_quantiles_s(law, requests, limits, 10.0, 5.0, levels)
    np.testing.assert_allclose(found, [0.01, 0.04], rtol=1e-9)
