"""Power that is synthesised from requests: the server, its statistics, and a week of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath

import numpy as np

from hardware.catalogue import Machine, UnknownName, unknown_family
from hardware.faults import InputError
from hardware.yaml_source import Source, did_you_mean
from perfmodel.architecture import load_architecture
from perfmodel.power.load import WEEK_S, Bursts, PoolLoad, PowerSeries, Profile, bursts_of, demands
from perfmodel.power.served import Lengths, ServerLaw, server_law, server_statistics
from perfmodel.request_traces import read_trace
from perfmodel.serving.engine import engine_of, engines
from perfmodel.serving.server import server
from perfmodel.serving.step import Deployment
from solvers.power_question import PowerRequests
from solvers.serve_question import ServeLengths

_Path = tuple[str | int, ...]

REFERENCE_SERVERS = 40
"""Servers of which a week is synthesised together: what single ones do by chance averages out over so many."""
_DRAWN = 4096


@dataclass(frozen=True)
class Served:
    """Servers that answer requests.

    Parameters
    ----------
    law : ServerLaw
        Power and times of one.
    load : PoolLoad
        Requests over time, and what a server draws for them.
    seed : int
        Fixes what is drawn.
    """

    law: ServerLaw
    load: PoolLoad
    seed: int

    @cached_property
    def series(self) -> PowerSeries:
        """Return the seconds of a week of one of `REFERENCE_SERVERS` servers."""
        pieces = demands([self.load], np.zeros(1, int), np.array([REFERENCE_SERVERS]), round(WEEK_S), self.seed)
        seconds = np.concatenate([piece[:, 0] for piece in pieces]).astype(float) / REFERENCE_SERVERS
        return PowerSeries(1.0, seconds[None], True)


def served_by(asked: PowerRequests, machine: Machine, source: Source, at: _Path, base_dir: FilePath) -> Served:
    """Look up what requests need, and work out the server.

    Parameters
    ----------
    asked : PowerRequests
        As written.
    machine : Machine
        The server.
    source, at
        Document that holds it, and where in it.
    base_dir : Path
        Folder that paths are relative to.

    Raises
    ------
    InputError
        With every fault.
    """
    architecture = load_architecture(asked.model, base_dir, source, (*at, "model"))
    engine = engine_of(asked.engine)
    faults = []
    if engine is None:
        message = f"unknown engine; {did_you_mean(asked.engine, engines())} [got {asked.engine!r}]"
        faults.append(source.fault((*at, "engine"), message))
    if machine.node.accelerators.count % asked.tp:
        message = f"should divide the {machine.node.accelerators.count} accelerators of a server [got {asked.tp}]"
        faults.append(source.fault((*at, "tp"), message))
    if (asked.trace is None) == (asked.lengths is None):
        faults.append(source.fault((*at, "lengths"), "give either lengths or a trace"))
    if asked.bursts is not None and len(asked.bursts.times_s) != len(asked.bursts.variances):
        faults.append(source.fault((*at, "bursts"), "should hold a variance for each time"))
    if asked.bursts is not None and asked.trace is not None:
        faults.append(source.fault((*at, "bursts"), "give either bursts or a trace"))
    if asked.trace is not None and not (base_dir / asked.trace).is_file():
        faults.append(source.fault((*at, "trace"), f"there is no file {base_dir / asked.trace}"))
    if faults or engine is None:
        raise InputError(faults)
    bursts = Bursts((), ()) if asked.bursts is None else Bursts(asked.bursts.times_s, asked.bursts.variances)
    if asked.trace is not None:
        recorded = read_trace(base_dir / asked.trace)
        lengths = Lengths(recorded.prompt_tokens, recorded.output_tokens)
        bursts = bursts_of(recorded.arrival_s)
    else:
        assert asked.lengths is not None
        lengths = drawn_lengths(asked.lengths, asked.seed)
    try:
        found = server(architecture, machine, engine, precision_weights=asked.precision_weights, precision_kv=None)
        law = server_law(found, Deployment(tp=asked.tp), lengths.demand)
    except UnknownName:
        message = unknown_family(machine.accelerator.architecture)
        raise InputError([source.fault((*at[:-1], "server"), f"{machine.accelerator.name}: {message}")]) from None
    except ValueError as error:
        raise InputError([source.fault((*at, "tp"), f"{error} [got {asked.tp}]")]) from None
    profile = Profile(asked.profile.trough, asked.profile.peak_hour, asked.profile.weekend)
    statistics = server_statistics(law, lengths, asked.seed)
    return Served(law, PoolLoad(statistics, asked.peak_load, profile, bursts), asked.seed)


def drawn_lengths(asked: ServeLengths, seed: int) -> Lengths:
    """Return requests of log-normal lengths with the means and spreads asked for."""
    random = np.random.default_rng([seed, 2])
    columns = []
    for mean, cv in ((asked.isl, asked.isl_cv), (asked.osl, asked.osl_cv)):
        spread = float(np.sqrt(np.log1p(cv**2)))
        drawn = mean * np.exp(spread * random.standard_normal(_DRAWN) - spread**2 / 2)
        columns.append(np.maximum(np.rint(drawn), 1).astype(np.int64))
    return Lengths(*columns)
