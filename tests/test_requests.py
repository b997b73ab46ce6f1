"""Requests drawn and read: their statistics, every format of trace, and what is told of bad ones."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hardware.faults import InputError
from perfmodel import request_traces
from perfmodel.request_traces import read_trace, trace_pieces
from perfmodel.requests import (
    gamma_arrivals,
    histogram_lengths,
    lognormal_lengths,
    moments,
    profile_arrivals,
    uniform_lengths,
)

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "serving" / "request_traces.csv.gz"


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_gamma_arrivals_have_their_rate_and_variation(cv):
    times = gamma_arrivals(5.0, cv, 200_000, np.random.default_rng(0))
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.2, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-6)


def test_arrivals_follow_a_profile():
    """Three parts of 100 s at 1, 0 and 5 a second: nobody comes in the second, and the counts are Poisson."""
    times = profile_arrivals([1.0, 0.0, 5.0], 60_000, np.random.default_rng(1), period_s=300.0)
    assert (np.diff(times) >= 0).all()
    parts = ((times % 300) // 100).astype(int)
    shares = np.bincount(parts, minlength=3) / len(times)
    np.testing.assert_allclose(shares, [1 / 6, 0, 5 / 6], atol=0.01)
    counts = np.bincount((times // 100).astype(int))[2:-3:3]
    assert counts.mean() == pytest.approx(500, rel=0.02)
    assert counts.var() == pytest.approx(500, rel=0.4)
    assert times[-1] == pytest.approx(60_000 / 600 * 300, rel=0.03)
    bursts = profile_arrivals([2.0], 50_000, np.random.default_rng(2), cv=3.0, period_s=10.0)
    assert np.diff(bursts).std() / np.diff(bursts).mean() == pytest.approx(3.0, rel=0.05)


def test_lengths_of_every_kind():
    random = np.random.default_rng(3)
    uniform = uniform_lengths(1000, 0.8, 1.0, 100_000, random)
    assert (uniform.min(), uniform.max()) == (800, 1000)
    assert uniform.mean() == pytest.approx(900, rel=0.002)
    normal = lognormal_lengths(500, 1.0, 10, 4000, 100_000, random)
    assert normal.min() >= 10 and normal.max() == 4000
    assert np.median(normal) == pytest.approx(500, rel=0.03)
    prompts, outputs = histogram_lengths([(100, 10), (2000, 20)], [3, 1], 100_000, random)
    assert (prompts == 100).mean() == pytest.approx(0.75, abs=0.01)
    assert ((prompts == 100) == (outputs == 10)).all()


TIMES, PROMPTS, OUTPUTS = [0.0, 0.5, 2.25], [100, 7, 4000], [20, 1, 300]
OWN = "arrival_s,input_tokens,output_tokens,block_ids\n10,100,20,1 2\n10.5,7,1,\n12.25,4000,300,3\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,100,20\n"
    "2023-11-16 18:15:47.1805900,7,1\n2023-11-16 18:15:48.9305900,4000,300\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,100,20,120,Conversation log\n"
    "5,GPT-4,9,0,9,API log\n5.5,GPT-4,7,1,8,API log\n7.25,ChatGPT,4000,300,4300,Conversation log\n"
)
MOONCAKE = "".join(
    json.dumps({"timestamp": 1000 * t + 3000, "input_length": p, "output_length": o, "hash_ids": [1]}) + "\n"
    for t, p, o in zip(TIMES, PROMPTS, OUTPUTS, strict=True)
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.csv", OWN),
        ("azure.csv", AZURE),
        ("azure24.csv", AZURE.replace("5900,", "5900+00:00,")),
        ("burst.csv", BURSTGPT),
        ("moon.jsonl", MOONCAKE),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_reads_the_same(tmp_path, name, text, packed):
    path = tmp_path / (name + ".gz" * packed)
    with gzip.open(path, "wt") if packed else path.open("w") as file:
        file.write(text)
    trace = read_trace(path)
    np.testing.assert_allclose(trace.arrival_s, TIMES, atol=1e-6)
    assert trace.prompt_tokens.tolist() == PROMPTS
    assert trace.output_tokens.tolist() == OUTPUTS


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    path = tmp_path / "own.parquet"
    pd.DataFrame({"arrival_s": TIMES, "input_tokens": PROMPTS, "output_tokens": OUTPUTS}).to_parquet(path)
    assert read_trace(path).prompt_tokens.tolist() == PROMPTS


def told(path, text):
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    return str(caught.value).splitlines()


def test_all_faults_are_told_with_their_places(tmp_path):
    path = tmp_path / "bad.csv"
    text = "id,arrival_s,input_tokens,output_tokens\na,0,5,5\nb,3,-7,5\nc,2,8,0\n\nd,x,8,2.5\ne,4,,1\n"
    assert told(path, text) == [
        f"{path}:3:5: input_tokens: should be a whole number of tokens, 1 or more [got '-7']",
        f"{path}:4:3: arrival_s: time runs backwards: should be at least that of the rows before [got '2']",
        f"{path}:4:7: output_tokens: should be a whole number of tokens, 1 or more [got '0']",
        f"{path}:6:3: arrival_s: should be a number of 0 or more [got 'x']",
        f"{path}:6:7: output_tokens: should be a whole number of tokens, 1 or more [got '2.5']",
        f"{path}:7:5: input_tokens: should be a whole number of tokens, 1 or more [got '']",
    ]


def test_missing_columns_and_other_files(tmp_path):
    path = tmp_path / "trace.csv"
    lines = told(path, "arrival_s,tokens\n1,2\n")
    assert [line.split(": ")[1] for line in lines] == ["input_tokens", "output_tokens"]
    assert "there is no column input_tokens [got 'arrival_s,tokens']" in lines[0]
    (line,) = told(path, "a,b\n1,2\n")
    assert "has the columns of no known trace: arrival_s,input_tokens,output_tokens; TIMESTAMP" in line
    (line,) = told(path, "arrival_s,input_tokens,output_tokens\n")
    assert line.endswith("there is no request in it")
    lines = told(path, AZURE.replace("2023-11-16 18:15:47.1805900", "yesterday"))
    assert lines == [f"{path}:3:1: TIMESTAMP: should be a date and time [got 'yesterday']"]
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "nowhere.csv")
    (tmp_path / "not.csv.gz").write_text("plain")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "not.csv.gz")


def test_bad_json_lines(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = told(path, MOONCAKE + 'nonsense\n{"timestamp": 6000, "input_length": -1}\n')
    assert [line.split(": ")[0] for line in lines] == [f"{path}:4:1"] * 3 + [f"{path}:5:1"] * 2
    assert "[got 'nonsense']" in lines[0]
    assert "input_length: should be a whole number of tokens, 1 or more [got '-1']" in lines[3]
    assert "output_length" in lines[4] and "[got 'missing']" in lines[4]


def test_faults_are_capped(tmp_path):
    lines = told(tmp_path / "t.csv", "arrival_s,input_tokens,output_tokens\n" + "0,-1,-1\n" * 500)
    assert len(lines) == 21
    assert lines[-1].endswith("and 980 more faults")


def test_a_long_trace_is_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(request_traces, "PIECE", 2_000)
    path = tmp_path / "long.csv"
    count = 60_000
    with path.open("w") as file:
        file.write("arrival_s,input_tokens,output_tokens\n")
        file.writelines(f"{number / 4},{number % 3 + 1},{number % 5 + 1}\n" for number in range(count))
    tracemalloc.start()
    found = moments(trace_pieces(path), window_s=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6  # the texts of all rows take 25 MB
    assert found.count == count
    assert found.rate == pytest.approx(4.0)
    assert found.peak_rate == pytest.approx(4.0)
    assert found.arrival_scv == pytest.approx(0, abs=1e-9)
    assert (found.prompt_tokens, found.output_tokens) == pytest.approx((2, 3))
    assert (found.prompt_scv, found.output_scv) == pytest.approx((2 / 3 / 4, 2 / 9))


@pytest.mark.skipif(not DATA.exists(), reason="no recorded requests: set PERFMODEL_DATA")
@pytest.mark.parametrize(
    ("source", "count", "prompt", "output", "cv"),
    [("azure_llm_2023_code", 8819, 2048, 28, 13), ("azure_llm_2023_conv", 19366, 1155, 211, 1.1)],
)
def test_moments_of_recorded_requests(tmp_path, source, count, prompt, output, cv):
    """Counts, means and variations as the file's description states them."""
    path = tmp_path / "trace.csv"
    with gzip.open(DATA, "rt") as file, path.open("w") as copy:
        copy.writelines(line for number, line in enumerate(file) if not number or line.startswith(source))
    found = moments(trace_pieces(path))
    assert found.count == count
    assert found.prompt_tokens == pytest.approx(prompt, rel=0.001)
    assert found.output_tokens == pytest.approx(output, rel=0.02)
    assert np.sqrt(found.arrival_scv) == pytest.approx(cv, rel=0.05)
    assert found.peak_rate > found.rate
