"""Power over time: files and what is wrong with them, bursts, requests by the second, and their sums over servers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hardware.catalogue import resolve_cluster
from hardware.faults import InputError
from perfmodel.architecture import load_architecture
from perfmodel.power.load import (
    Bursts,
    NormalLoad,
    PoolLoad,
    Profile,
    bursts_of,
    demands,
    read_power,
)
from perfmodel.power.served import Lengths, ServerLaw, request_power_w, server_law, server_statistics
from perfmodel.request_traces import read_trace
from perfmodel.requests import RequestList
from perfmodel.serving.engine import engine_of
from perfmodel.serving.server import server
from perfmodel.serving.step import Deployment

EVEN = Bursts((), ())


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_series_is_read(tmp_path: Path) -> None:
    rows = "".join(f"{t},{100 + t}\n" for t in range(0, 12, 2))
    series, warnings = read_power(written(tmp_path / "power.csv", "time_s,power_w\n" + rows), latency_s=40.0)
    assert series.step_s == 2.0
    assert not series.synthesised
    assert warnings == ()
    assert series.watts.tolist() == [[100.0, 102.0, 104.0, 106.0, 108.0, 110.0]]


def test_a_series_sampled_too_slowly_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "power.csv", "time_s,power_w\n0,1\n300,2\n600,3\n")
    _, (warning,) = read_power(path, latency_s=40.0)
    assert "300 s, more slowly than the 40 s of the actuator: peaks are missed" in warning.message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("time_s,power_w\n0,1\n1,2\n5,3\n6,3\n7,3\n", 4, "a gap of 4 s after 1 s"),
        ("time_s,power_w\n0,1\n1,2\n1,3\n2,3\n", 4, "time does not rise"),
        ("time_s,power_w\n0,1\n1,2\n0.5,3\n2,4\n3,4\n", 4, "time does not rise"),
        ("time_s,power_w\n0,1\n1,watts\n", 3, "should be a number of 0 or more"),
        ("time_s,power_w\n0,1\n1,-5\n", 3, "should be a number of 0 or more"),
        ("time_s,power_w\n0,1\n", 1, "two rows at least"),
        ("seconds,power_w\n0,1\n", 1, "there is no column time_s"),
    ],
)
def test_what_is_wrong_with_a_series_has_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_power(written(tmp_path / "power.csv", text))
    assert [fault.line for fault in caught.value.faults] == [line]
    assert words in str(caught.value)


def test_the_profile_has_its_trough_and_weekend() -> None:
    profile = Profile(trough=0.4, peak_hour=15.0, weekend=0.7)
    hour = 3600.0
    assert profile.load(np.array([15, 3, 5 * 24 + 15]) * hour) == pytest.approx([1.0, 0.4, 0.7])


def test_bursts_are_found_again() -> None:
    random = np.random.default_rng(1)
    assert sum(bursts_of(np.cumsum(random.exponential(0.1, 200_000))).variances) < 0.005
    # a rate that is drawn anew every 200 s, around 10 a second
    rates = 10 * np.exp(random.normal(0, 0.3, 200))
    counts = random.poisson(np.repeat(rates, 200))
    times = np.sort(np.repeat(np.arange(len(counts)), counts) + random.random(counts.sum()))
    found = bursts_of(times)
    assert sum(found.variances) == pytest.approx(np.exp(0.09) - 1, rel=0.2)
    assert dict(zip(found.times_s, found.variances, strict=True))[200.0] > 0.5 * sum(found.variances)


def plain_law(prompt_s: float, step_s: float, each_w: float, most: int = 400) -> ServerLaw:
    """A server whose power is linear in the sequences it decodes, and whose prompts take equally long."""
    n = np.arange(most + 1.0)
    return ServerLaw(
        1, 1000.0, 1000.0, 1000.0 + each_w * n, np.full(most + 1, step_s), np.full(29, prompt_s), 0, 1e9, 0, 1, 0
    )


def test_seconds_of_requests_follow_campbell() -> None:
    # decoding is a shot noise: mean a x D, variance (over seconds much shorter than D) a^2 x D (Campbell's theorem)
    law = plain_law(1e-6, 0.1, 5.0)
    lengths = Lengths(np.array([100]), np.array([301]))  # 30 s of decoding
    rate = np.full(200_000, 2.0)
    power = request_power_w(law, lengths, rate, rate, np.random.default_rng(2))[100:]
    assert power.mean() == pytest.approx(1000 + 5 * 2 * 30, rel=0.005)
    assert power.var() == pytest.approx(25 * 2 * 30, rel=0.05)
    around = power - power.mean()
    # the autocovariance falls linearly until D: half of it is left after 15 s
    assert (around[15:] * around[:-15]).mean() == pytest.approx(25 * 2 * 15, rel=0.08)


def test_prompts_take_the_share_of_time_they_ask_for() -> None:
    law = replace(plain_law(0.25, 0.01, 0.0), prompt_w=3000.0)
    rate = np.full(50_000, 2.0)
    power = request_power_w(law, Lengths(np.array([100]), np.array([1])), rate, rate, np.random.default_rng(4))
    assert power.mean() == pytest.approx(1000 + 0.5 * 2000, rel=0.01)
    assert power.max() <= 3000.0


def test_sequences_obey_littles_law() -> None:
    law = plain_law(0.1, 0.05, 1.0)
    demand = Lengths(np.array([100]), np.array([101])).demand
    # x G s / (1 - x p): 2 x 100 x 0.05 / 0.8
    assert float(law.sequences(2.0, demand)) == pytest.approx(12.5)
    assert law.sequences(np.array([0.0, 9.99, 50.0]), demand) == pytest.approx([0.0, 400.0, 400.0])


@pytest.fixture(scope="module")
def trace() -> RequestList:
    folder = os.environ.get("PERFMODEL_DATA")
    path = Path(folder or "") / "serving" / "request_traces.csv.gz"
    if not folder or not path.exists():
        pytest.skip("PERFMODEL_DATA with serving/request_traces.csv.gz is needed")
    import pandas as pd

    rows = pd.read_csv(path)
    rows = rows[rows["source"] == "azure_llm_2023_conv"]
    columns = (rows[name].to_numpy() for name in ("arrival_s", "input_tokens", "output_tokens"))
    return RequestList(*columns)


@pytest.fixture(scope="module")
def chat(trace: RequestList) -> tuple[ServerLaw, Lengths]:
    lengths = Lengths(trace.prompt_tokens, trace.output_tokens)
    engine = engine_of("vllm")
    assert engine is not None
    asked = server(load_architecture("llama-2-70b", Path()), resolve_cluster("dgx-a100", Path()), engine)
    return server_law(asked, Deployment(tp=8), lengths.demand), lengths


def test_a_server_draws_between_waiting_and_prompts(chat: tuple[ServerLaw, Lengths]) -> None:
    law, _ = chat
    # of 400 W boards: prompts near the limit, decoding 50 to 80 % of it; 6.5 kW is the node's limit
    boards = [
        (watts * 0.95 * (1 - 0.1787) - 1100) / 3200 for watts in (law.prompt_w, law.decode_w[1], law.decode_w[32])
    ]
    assert boards[0] > 0.9
    assert 0.45 < boards[1] < boards[2] < 0.9
    assert law.waiting_w < law.decode_w[1] < law.highest_w < 6500
    assert 0 < law.decode_share < 0.2 < law.prompt_share < 1


def test_groups_of_servers_are_distributed_as_their_requests_make_them(chat: tuple[ServerLaw, Lengths]) -> None:
    # the sum over twenty servers, each with requests of its own, against normal deviations around a mean
    law, lengths = chat
    statistics = server_statistics(law, lengths, seed=7)
    load, seconds = 0.5, 7200
    rate = np.full(seconds, load * law.capacity(lengths.demand))
    random = np.random.default_rng(8)
    simulated = sum(request_power_w(law, lengths, rate, rate, random) for _ in range(20))
    one = PoolLoad(statistics, load, Profile(trough=1.0, weekend=1.0), EVEN)
    made = np.concatenate(list(demands([one], np.array([0]), np.array([20]), seconds, seed=9)))[:, 0]
    for share in (1, 50, 99, 99.9):
        assert np.percentile(made, share) == pytest.approx(np.percentile(simulated[120:], share), rel=0.01)
    lag = 3
    correlations = [np.corrcoef(row[lag:], row[:-lag])[0, 1] for row in (simulated[120:], made)]
    assert correlations[1] == pytest.approx(correlations[0], abs=0.1)


def test_servers_of_a_pool_share_their_bursts(chat: tuple[ServerLaw, Lengths], trace: RequestList) -> None:
    law, lengths = chat
    statistics = server_statistics(law, lengths)
    bursts = bursts_of(trace.arrival_s)
    assert 0.01 < sum(bursts.variances) < 0.2
    loads = [PoolLoad(statistics, 0.4, Profile(), bursts)] * 2
    pool, servers = np.array([0, 0, 1]), np.array([20, 20, 20])
    pieces = list(demands(loads, pool, servers, 5000, seed=1))
    again = list(demands(loads, pool, servers, 5000, seed=1))
    assert [len(one) for one in pieces] == [3600, 1400]
    power = np.concatenate(pieces)
    assert np.array_equal(power, np.concatenate(again))
    together, apart = np.corrcoef(power.T)[0, 1], np.corrcoef(power.T)[0, 2]
    assert together > 0.5 > abs(apart) + 0.2


def test_a_trace_varies_within_a_part_of_the_week_as_it_does() -> None:
    random = np.random.default_rng(6)
    keep = np.exp(-1 / 30)
    noise = np.zeros(604800)
    shocks = random.standard_normal(len(noise)) * np.sqrt(1 - keep**2)
    for step in range(1, len(noise)):
        noise[step] = keep * noise[step - 1] + shocks[step]
    one = NormalLoad(1.0, 4000 + 100 * noise, 0.0, 0.0, (2000.0, 6500.0)).moments(3600.0)
    assert one.mean_w.mean() == pytest.approx(4000, abs=2)
    assert one.common_w2[1].mean() == pytest.approx(100**2, rel=0.03)
    assert one.common_s[1] == pytest.approx(30, rel=0.1)


def test_power_of_a_mean_and_a_deviation_has_them() -> None:
    hours = 4000 + 500 * np.sin(np.arange(48) / 48 * 2 * np.pi)
    one = NormalLoad(1800.0, hours, 300.0, 0.25, (2000.0, 6500.0))
    power = np.concatenate(list(demands([one], np.zeros(1, int), np.array([10]), 7 * 86400, 3)))[:, 0]
    assert power.mean() == pytest.approx(40_000, rel=0.002)
    expected = 10**2 * 0.25 * 300**2 + 10 * 0.75 * 300**2
    around = power.reshape(-1, 48, 1800).astype(float) - 10 * hours[None, :, None]
    assert around.var() == pytest.approx(expected, rel=0.05)
    found = one.moments(1800.0)
    assert found.covariance_w2(10, 0.0)[0] == pytest.approx(np.full(336, expected))


def test_the_trace_reader_gives_what_a_pool_is_made_from(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{t},100,20\n" for t in range(30))
    found = read_trace(written(tmp_path / "trace.csv", text))
    assert bursts_of(found.arrival_s).variances == ()
    assert Lengths(found.prompt_tokens, found.output_tokens).demand.prompt_tokens == 100
