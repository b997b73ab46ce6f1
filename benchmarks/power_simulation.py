"""A week of 20,000 servers at 1 s: 1,000 racks of 10 classes below rows, PDUs and feeds, held by caps.

python benchmarks/power_simulation.py [--days 7]

Prints the time of the processor for power without caps, and for the simulation of caps, brakes and breakers, and the
memory that it took.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from perfmodel.power.breaker import TripCurve
from perfmodel.power.capping import Pools, ladder
from perfmodel.power.load import Bursts, PoolLoad, Profile, demands
from perfmodel.power.served import ServerStatistics
from perfmodel.power.simulate import Plant, simulate

RACKS, PER_RACK, CLASSES, ROWS, PDUS = 1000, 20, 10, 100, 10
ROW_LIMIT_W = 1080e3


def plant() -> Plant:
    """Return a utility with feeds, rows below them and racks below those, each rack with servers of one class."""
    parent = np.concatenate(
        [[-1], np.zeros(PDUS, int), 1 + np.arange(ROWS) % PDUS, 1 + PDUS + np.arange(RACKS) // (RACKS // ROWS)]
    )
    row = np.arange(1 + PDUS, 1 + PDUS + ROWS)
    limit = np.full(len(parent), 1.2 * ROWS * ROW_LIMIT_W)
    limit[row], limit[row[-1] + 1 :] = ROW_LIMIT_W, PER_RACK * 6500.0
    rack = row[-1] + 1 + np.arange(RACKS)
    of = np.arange(RACKS) % CLASSES
    return Plant(np.full(RACKS, PER_RACK), of, rack, parent, limit, limit, TripCurve(60.0, 8.0), row)


def loads() -> list[PoolLoad]:
    """Return ten classes, with busiest hours and loads of their own; power as of an instance on eight A100."""
    load = np.array([0.0, 0.05, 0.2, 0.5, 0.9])
    mean, fast, slow = (
        np.array([2230.0, 3300.0, 4250.0, 4850.0, 5290.0]),
        np.array([0.0, 2e4, 4e4, 2.5e4, 1e3]),
        np.array([0.0, 4.5e5, 5e4, 1.5e4, 1e3]),
    )
    statistics = ServerStatistics(load, mean, fast, slow, 4.0, np.full(5, 0.38))
    bursts = Bursts((2.0, 200.0), (0.006, 0.012))
    return [
        PoolLoad(statistics, 0.4 + 0.03 * number, Profile(peak_hour=(13.0 + number / 2) % 24), bursts)
        for number in range(CLASSES)
    ]


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=float, default=7.0)
    seconds = round(parser.parse_args().days * 86400)
    place, classes = plant(), loads()
    pools = Pools(*(np.full(CLASSES, value) for value in (2230.0, 2204.0, 6500.0, 0.48, 0.38)))
    low = np.arange(CLASSES) < CLASSES // 2
    clocks = [np.where(low, 0.97, 1.0), np.where(low, 0.90, 1.0), np.where(low, 0.90, 0.95)]
    policy = ladder(
        [0.86, 0.89, 0.89],
        [row.tolist() for row in clocks],
        hysteresis=0.05,
        latency_s=40.0,
        brake_clock=288 / 1410,
        brake_latency_s=5.0,
    )
    start = time.process_time()
    for _ in demands(classes, place.pool, place.servers, seconds, 1):
        pass
    drawn = time.process_time() - start
    start = time.process_time()
    seen = simulate(demands(classes, place.pool, place.servers, seconds, 1), 1.0, place, pools, policy)
    both = time.process_time() - start
    capped = 1.0 - seen.level_s[:, 0].sum() / seen.level_s.sum()
    print(f"{place.servers.sum():,} servers, {len(place.parent):,} nodes, {seen.seconds:,.0f} s")
    print(f"power without caps    {drawn:6.1f} s of the processor")
    print(f"with the simulation   {both:6.1f} s")
    print(f"under caps {capped:.0%} of the time, {seen.brakes.sum()} brakes, {seen.trips.sum()} trips")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
