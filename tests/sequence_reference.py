"""Small cases of unequal sequences and their optima by exhaustive search and by a MILP, apart from the planners."""

from dataclasses import replace
from itertools import combinations, combinations_with_replacement, product
from math import inf

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from solvers.sequence_case import Case


def costs(gpus, degrees, lengths, square, linear, exchange, rates, steps, capacity):
    """cost = (a1 s^2 + a2 s)/d + a3 s/(d v_d) + b1 + b2 [d > 1]: the form that FlexSP (arXiv 2412.01523) fits."""
    s = np.array(lengths, dtype=float)[:, None]
    d = np.array(degrees)
    work = (square * s**2 + linear * s + exchange * s / np.array(rates, dtype=float)) / d
    return Case(np.array(lengths), d, work, steps[0] + steps[1] * (d > 1.0), capacity, gpus)


def small(seed):
    """Return a random case small enough for every plan to be tried."""
    rng = np.random.default_rng(seed)
    gpus = int(rng.choice([2, 3, 4]))
    degrees = np.array([d for d in (1, 2, 3, 4) if d <= gpus and (d != 3 or rng.random() < 0.5)])
    lengths = rng.integers(1, 20, int(rng.integers(1, 6)))
    fill = rng.uniform(0.3, 1.0)
    capacity = float(max(lengths.sum() / (fill * gpus), lengths.max() / degrees[-1]))
    rates = np.where(degrees == 1, inf, rng.uniform(1, 20, len(degrees)))
    return costs(gpus, degrees, lengths, rng.uniform(0.1, 1), rng.uniform(1, 5), 10.0, rates, (1, 1), capacity)


def small_by_nodes(seed):
    """Return a random case of any sizes of group on nodes, small enough for every plan to be tried."""
    rng = np.random.default_rng(seed)
    node, nodes = [(2, 3), (3, 2), (4, 2), (5, 1), (6, 1), (3, 3)][int(rng.integers(6))]
    gpus = node * nodes
    degrees = np.sort(rng.permutation(np.arange(1, gpus + 1))[: int(rng.integers(2, 5))])
    lengths = rng.integers(1, 20, int(rng.integers(2, 6)))
    capacity = float(max(lengths.sum() / (rng.uniform(0.3, 1.0) * gpus), lengths.max() / degrees[-1]))
    rates = np.where(degrees == 1, inf, rng.uniform(1, 20, len(degrees)))
    case = costs(gpus, degrees, lengths, rng.uniform(0.1, 1), rng.uniform(1, 5), 10.0, rates, (1, 1), capacity)
    return replace(case, node_units=node)


def lie_together(sizes, gpus, node):
    """Tell whether groups find places: within a node, or from the start of one; every place is tried."""
    if not sizes:
        return True
    if node is None:
        return sum(sizes) <= gpus

    def placed(number, taken):
        if number == len(sizes):
            return True
        size = sizes[number]
        for first in range(gpus - size + 1):
            block = set(range(first, first + size))
            inside = first // node == (first + size - 1) // node if size <= node else first % node == 0
            if inside and not block & taken and placed(number + 1, taken | block):
                return True
        return False

    return placed(0, set())


def layouts(case):
    """Return all choices of groups that fit the accelerators."""
    sizes = case.degrees.tolist()
    for number in range(1, case.gpus + 1):
        for layout in combinations_with_replacement(range(len(sizes)), number):
            groups = [sizes[kind] for kind in layout]
            if sum(groups) <= case.gpus and lie_together(groups, case.gpus, case.node_units):
                yield layout


def brute_force(case):
    """Return the least makespan over all layouts and all assignments; infinite where nothing fits."""
    best = inf
    lengths, work, fixed = case.lengths.tolist(), case.work_s.tolist(), case.fixed_s.tolist()
    for layout in layouts(case):
        room = [case.degrees[kind] * case.capacity_tokens * (1 + 1e-12) for kind in layout]
        for assignment in product(range(len(layout)), repeat=len(lengths)):
            held, time = [0] * len(layout), [0.0] * len(layout)
            for sequence, group in enumerate(assignment):
                held[group] += lengths[sequence]
                time[group] += work[sequence][layout[group]]
            if all(tokens <= space for tokens, space in zip(held, room, strict=True)):
                used = set(assignment)
                best = min(best, max(time[group] + fixed[layout[group]] for group in used))
    return best


def whole_numbers(case):
    """Return the least makespan by FlexSP's MILP over virtual groups; infinite where nothing fits."""
    kinds = [kind for kind, d in enumerate(case.degrees) for _ in range(case.gpus // int(d))]
    groups, sequences = len(kinds), len(case.lengths)
    count = 1 + groups + groups * sequences
    rows, low, high = [], [], []

    def row(entries, least, most):
        line = np.zeros(count)
        for place, value in entries:
            line[place] = value
        rows.append(line)
        low.append(least)
        high.append(most)

    def taken(k, g):
        return 1 + groups + k * groups + g

    for g, kind in enumerate(kinds):
        time = [(taken(k, g), case.work_s[k, kind]) for k in range(sequences)]
        row([*time, (1 + g, case.fixed_s[kind]), (0, -1.0)], -inf, 0)
        tokens = [(taken(k, g), case.lengths[k]) for k in range(sequences)]
        row([*tokens, (1 + g, -case.degrees[kind] * case.capacity_tokens * (1 + 1e-12))], -inf, 0)
        for k in range(sequences):
            row([(taken(k, g), 1.0), (1 + g, -1.0)], -inf, 0)
    for k in range(sequences):
        row([(taken(k, g), 1.0) for g in range(groups)], 1, 1)
    row([(1 + g, case.degrees[kind]) for g, kind in enumerate(kinds)], 0, case.gpus)
    integral = np.ones(count)
    integral[0] = 0
    upper = np.ones(count)
    upper[0] = inf
    answer = milp(
        np.eye(count)[0],
        integrality=integral,
        bounds=Bounds(0, upper),
        constraints=LinearConstraint(np.array(rows), low, high),
        options={"mip_rel_gap": 0.0},
    )
    return inf if answer.x is None else answer.fun


def part(case, members):
    """Return the case of some of the sequences."""
    chosen = list(members)
    return replace(case, lengths=case.lengths[chosen], work_s=case.work_s[chosen])


def partitions(items):
    """Return all ways to cut a list into sets."""
    if not items:
        yield []
        return
    for smaller in partitions(items[1:]):
        yield [[items[0]], *smaller]
        for number, members in enumerate(smaller):
            yield [*smaller[:number], [items[0], *members], *smaller[number + 1 :]]


def brute_force_barrier(case):
    """Return the least sum of makespans over all ways to cut the sequences into micro-batches."""
    known = {}
    best = inf
    for sets in partitions(list(range(len(case.lengths)))):
        total = 0.0
        for members in map(tuple, map(sorted, sets)):
            if members not in known:
                known[members] = brute_force(part(case, members))
            total += known[members]
        best = min(best, total)
    return best


def fewest_steps(held, room):
    """Return the least micro-steps that hold some sequences, trying every cut."""
    for steps in range(1, len(held) + 1):
        for chosen in product(range(steps), repeat=len(held)):
            loads = [sum(tokens for tokens, step in zip(held, chosen, strict=True) if step == n) for n in range(steps)]
            if max(loads) <= room * (1 + 1e-12):
                return steps
    return inf


def brute_force_fixed(case):
    """Return the least makespan of groups that each take micro-steps of their own, over all layouts and assignments."""
    lengths, known, best = case.lengths.tolist(), {}, inf

    def spent(members, kind):
        if (members, kind) not in known:
            steps = fewest_steps([lengths[k] for k in members], case.degrees[kind] * case.capacity_tokens)
            work = sum(case.work_s[k, kind] for k in members)
            known[members, kind] = work + steps * case.fixed_s[kind] if members else 0.0
        return known[members, kind]

    for layout in layouts(case):
        for assignment in product(range(len(layout)), repeat=len(lengths)):
            groups = (tuple(k for k, g in enumerate(assignment) if g == group) for group in range(len(layout)))
            ends = [spent(members, kind) for members, kind in zip(groups, layout, strict=True)]
            best = min(best, max(ends))
    return best


def whole_numbers_barrier(case):
    """Return the least sum of makespans when each set of sequences is a micro-batch planned by the MILP."""
    sequences = tuple(range(len(case.lengths)))
    single = {}
    for size in range(1, len(sequences) + 1):
        for members in combinations(sequences, size):
            single[members] = whole_numbers(part(case, members))
    return min(sum(single[tuple(sorted(members))] for members in sets) for sets in partitions(list(sequences)))
