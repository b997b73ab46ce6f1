"""Times of collectives, against closed forms worked by hand and against a simulator."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_jobs import collectives, tower

from hardware.catalogue import resolve_cluster
from hardware.schema import LinkType, Protocol
from hardware.topology import Level, levels
from perfmodel.collectives import (
    CollectiveModel,
    LinkEfficiency,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    collective_model,
    dispatch,
    group,
    group_of,
    hierarchical_all_reduce,
    host_factor,
    ring_all_reduce,
    send,
    tree_all_reduce,
)

PLAIN = collectives()
ALL = (all_gather, all_reduce, all_to_all, broadcast, send)

ONE_NODE = tower((8, 100e9, 2e-6))
TWO_LEVELS = tower((8, 400e9, 1e-6), (512, 50e9, 5e-6))


# --- worked numbers


def test_a_ring_in_one_node() -> None:
    # n = 8, a = 2 us, B = 100 GB/s, S = 1 GB (Thakur, Rabenseifner, Gropp 2005, sections 4.1 and 4.4).
    ranks = group(ONE_NODE, 8, 1)
    # 7 a + 7/8 S/B = 14 us + 8.75 ms
    assert all_gather(ranks, 1e9, PLAIN) == pytest.approx(8.764e-3, rel=1e-12)
    # 14 a + 14/8 S/B = 28 us + 17.5 ms
    assert all_reduce(ranks, 1e9, PLAIN) == pytest.approx(17.528e-3, rel=1e-12)
    # all exchange at once: a + 7/8 S/B
    assert all_to_all(ranks, 1e9, PLAIN) == pytest.approx(8.752e-3, rel=1e-12)
    # a + S/B
    assert send(ranks, 1e9, PLAIN) == pytest.approx(10.002e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("inner", "outer", "bus"),
    [
        (400e9, 50e9, 400e9),  # eight adapters carry what the links inside do: both bound
        (400e9, 25e9, 200e9),  # 8 x 25
        (400e9, 100e9, 400e9),  # the links inside bound
    ],
)
@pytest.mark.parametrize("nodes", [2, 4, 64])
def test_two_levels_run_at_the_lesser_of_the_links_inside_and_all_adapters(
    inner: float, outer: float, bus: float, nodes: int
) -> None:
    n = 8 * nodes
    ranks = group(tower((8, inner, 0.0), (512, outer, 0.0)), n, 1)
    assert all_gather(ranks, 1e9, PLAIN) == pytest.approx((n - 1) / n * 1e9 / bus, rel=1e-12)
    assert ring_all_reduce(ranks, 1e9, PLAIN) == pytest.approx(2 * (n - 1) / n * 1e9 / bus, rel=1e-12)
    # Two trees over the nodes send each way what all but one node hold, once up and once down, through eight adapters;
    # inside the node a chain passes everything up and down. Two nodes so exchange the buffer once, not twice.
    tree = max(2 / inner, 2 * (nodes - 1) / nodes / (8 * outer)) * 1e9
    assert tree_all_reduce(ranks, 1e9, PLAIN) == pytest.approx(tree, rel=1e-12)
    assert all_reduce(ranks, 1e9, PLAIN) == pytest.approx(min(tree, 2 * (n - 1) / n * 1e9 / bus), rel=1e-12)
    # what leaves a node, (n - 8)/n S, goes over the rank's own adapter
    assert all_to_all(ranks, 1e9, PLAIN) == pytest.approx((n - 8) / n * 1e9 / outer, rel=1e-12)


def test_three_levels() -> None:
    # Frontier: pairs 200 GB/s, node 50 GB/s, network 12.5 GB/s a GCD; bus = min(200, 2 x 50, 8 x 12.5) = 100 GB/s.
    levels = (
        Level("pair", 2, 200e9, 0.0, "xgmi"),
        Level("node", 8, 50e9, 0.0, "xgmi"),
        Level("fabric", 512, 12.5e9, 0.0, "slingshot"),
    )
    assert all_gather(group(levels, 32, 1), 1e9, PLAIN) == pytest.approx(31 / 32 * 1e9 / 100e9, rel=1e-12)
    # One rank of each pair: 4 members a node, min(50, 4 x 12.5) = 50 GB/s.
    assert all_gather(group(levels, 32, 2), 1e9, PLAIN) == pytest.approx(31 / 32 * 1e9 / 50e9, rel=1e-12)
    # One rank of each node.
    assert all_gather(group(levels, 32, 8), 1e9, PLAIN) == pytest.approx(31 / 32 * 1e9 / 12.5e9, rel=1e-12)


def test_ranks_that_stand_apart_have_fewer_adapters() -> None:
    # 16 ranks 4 apart: two in a node, so min(400, 2 x 50) = 100 GB/s; 8 apart: one in a node, 50 GB/s.
    for stride, bus in ((1, 400e9), (4, 100e9), (8, 50e9), (16, 50e9)):
        ranks = group(tower((8, 400e9, 0.0), (512, 50e9, 0.0)), 16, stride)
        assert all_gather(ranks, 1e9, PLAIN) == pytest.approx(15 / 16 * 1e9 / bus, rel=1e-12)
    # A pipeline stage of 8 ranks or more sends to another node, a smaller one within it.
    assert send(group(TWO_LEVELS, 4, 8), 1e6, PLAIN) == pytest.approx(5e-6 + 1e6 / 50e9, rel=1e-12)
    assert send(group(TWO_LEVELS, 4, 2), 1e6, PLAIN) == pytest.approx(1e-6 + 1e6 / 400e9, rel=1e-12)
    assert send(group(TWO_LEVELS, 8, 4), 1e6, PLAIN) == pytest.approx(5e-6 + 1e6 / 50e9, rel=1e-12)


def test_latency_of_rings_and_trees() -> None:
    # An empty message. 64 nodes, one rank each: ring 63 x 5 us, tree log2(64) = 6 x 5 us; an all-reduce goes there and
    # back on the tree, an all-gather knows the ring only.
    apart = group(TWO_LEVELS, 64, 8)
    assert all_reduce(apart, 0.0, PLAIN) == pytest.approx(2 * 6 * 5e-6, rel=1e-12)
    assert all_gather(apart, 0.0, PLAIN) == pytest.approx(63 * 5e-6, rel=1e-12)
    # 4 nodes of 8: a ring makes 28 hops inside and 3 outside; a tree a chain of 7 inside and 2 levels outside.
    near = group(TWO_LEVELS, 32, 1)
    assert all_gather(near, 0.0, PLAIN) == pytest.approx(28e-6 + 15e-6, rel=1e-12)
    assert all_reduce(near, 0.0, PLAIN) == pytest.approx(2 * (7e-6 + 10e-6), rel=1e-12)
    # Two nodes of one rank: ring and tree are the same hop.
    assert all_reduce(group(TWO_LEVELS, 2, 8), 0.0, PLAIN) == pytest.approx(2 * 5e-6, rel=1e-12)


def test_the_constants_of_a_link() -> None:
    ranks = group(ONE_NODE, 2, 1)
    # 0.8 of the rate; a rank copies its half in half the time that takes on the link: (1/2 + 0.5/2) 1.2 GB / 80 GB/s.
    copies = collectives(bandwidth=0.8, own_copy=0.5)
    assert all_gather(ranks, 1.2e9, copies) == pytest.approx(11.25e-3 + 2e-6, rel=1e-12)
    # Eight ranks, an all-to-all at 0.9 of the rate: (7/8 + 0.5/8) 1.2 GB / 72 GB/s = 15.625 ms.
    exchange = collectives(bandwidth=0.8, own_copy=0.5, all_to_all=0.9)
    assert all_to_all(group(ONE_NODE, 8, 1), 1.2e9, exchange) == pytest.approx(15.625e-3 + 2e-6, rel=1e-12)
    # A step of 3 us, measured over a path of 1 us, takes 4 us over one of 2 us, and 3 us over one of 1 us or less;
    # 10 us to launch.
    slow = collectives(launch_s=10e-6, step=3e-6, path=1e-6)
    assert all_gather(group(ONE_NODE, 8, 1), 0.0, slow) == pytest.approx(38e-6, rel=1e-12)
    assert all_gather(group(tower((8, 100e9, 0.5e-6)), 8, 1), 0.0, slow) == pytest.approx(31e-6, rel=1e-12)
    # A switch that adds serves an all-reduce among 8 of its ranks 1.3 times as fast, fewer ranks or others not.
    adds = collectives(in_network_all_reduce=1.3)
    eight, four = group(tower((8, 100e9, 0.0)), 8, 1), group(tower((8, 100e9, 0.0)), 4, 1)
    assert all_reduce(eight, 1e9, adds) == pytest.approx(17.5e-3 / 1.3, rel=1e-12)
    assert all_gather(eight, 1e9, adds) == pytest.approx(8.75e-3, rel=1e-12)
    assert all_reduce(four, 1e9, adds) == pytest.approx(15e-3, rel=1e-12)


def test_latency_and_transfer_join_as_a_chain() -> None:
    # The best number of pieces: (sqrt(4 us) + sqrt(9 us))^2 = 25 us; half the root's part: 13 us + 6 us.
    ranks = group(tower((8, 100e9, 4e-6)), 2, 1)
    # One hop of half the bytes.
    assert all_gather(ranks, 1800e3, collectives(pipelining=2.0)) == pytest.approx(25e-6, rel=1e-12)
    assert all_gather(ranks, 1800e3, collectives(pipelining=1.0)) == pytest.approx(19e-6, rel=1e-12)
    # a message alone fills no chain
    assert send(ranks, 900e3, collectives(pipelining=2.0)) == pytest.approx(13e-6, rel=1e-12)


@given(st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-1))
def test_the_best_number_of_pieces_by_trying_them(latency: float, transfer: float) -> None:
    # A chain of s hops with latency a each, cut into p pieces: (s + p - 1)(a + t/p). For a long chain of many pieces
    # the best is about (sqrt(s a) + sqrt(t))^2.
    hops = 1000
    pieces = np.geomspace(1, 2e6, 2000).round()
    best = ((hops + pieces - 1) * (latency / hops + transfer / pieces)).min()
    ranks = group(tower((8, 1e9, latency)), 2, 1)
    chained = float(all_gather(ranks, 2 * transfer * 1e9, collectives(pipelining=2.0)))
    if 10 < np.sqrt(hops * transfer * hops / latency) < 1e6:
        assert chained == pytest.approx(best, rel=0.1)


def test_a_few_ranks_of_a_mesh_have_the_links_among_them() -> None:
    # Seven links of 64 GB/s, one to every other accelerator (AMD, xGMI of the MI300X): two of eight have one between
    # them, four have three each; a single message takes one, however many there are.
    machine = resolve_cluster("hgx-mi300x", Path())
    types = collectives().links
    plain = replace(PLAIN, links={**types, "xgmi": types["nvswitch"]})
    whole = levels(machine, 8)
    for members, links in ((2, 1), (4, 3), (8, 7)):
        ranks = group(whole, members, 1)
        share = (members - 1) / members * 1e9 / (links * 64e9)
        latency = (members - 1) * whole[0].latency
        assert all_gather(ranks, 1e9, plain) == pytest.approx(latency + share, rel=1e-9)
        assert send(ranks, 1e9, plain) == pytest.approx(whole[0].latency + 1e9 / 64e9, rel=1e-9)
        # the same in a job of no more ranks
        assert all_gather(group(levels(machine, members), members, 1), 1e9, plain) == pytest.approx(latency + share)


def test_small_messages_to_peers_take_their_own_protocol() -> None:
    # 8 ranks, 80 KB: 3 steps of 2 us, then 10 KB to each peer at 0.01 x 100 GB/s = 10 us; at full rate 10 steps first,
    # 20 us, and 0.7 us. Of 800 KB the messages take 100 us, so the full rate wins: 20 + 7 us.
    ranks = group(ONE_NODE, 8, 1)
    model = collectives(exchange_steps=10.0, peer_bandwidth=0.01)
    assert all_to_all(ranks, 80e3, model) == pytest.approx(16e-6, rel=1e-12)
    assert all_to_all(ranks, 800e3, model) == pytest.approx(27e-6, rel=1e-12)
    # two nodes have no such protocol
    assert all_to_all(group(TWO_LEVELS, 16, 1), 80e3, model) == pytest.approx(50e-6 + 0.5 * 80e3 / 50e9, rel=1e-12)


@pytest.mark.parametrize("operation", ALL)
def test_a_rank_alone_waits_for_nobody(operation: Any) -> None:
    assert operation(group(TWO_LEVELS, 1, 1), 1e9, collectives(launch_s=1e-3)) == 0
    assert operation(group(TWO_LEVELS, 1, 64), 1e9, collectives(launch_s=1e-3)) == 0
    # A job of one rank has no levels at all.
    assert operation(group((), np.array([1, 1]), 1), 1e9, collectives(launch_s=1e-3)).tolist() == [0, 0]


@pytest.mark.parametrize("operation", ALL)
def test_arrays_are_the_elements_one_by_one(operation: Any) -> None:
    sizes, strides, volumes = (
        np.array([1, 2, 16, 8, 64]),
        np.array([1, 4, 2, 8, 8]),
        np.array([1e3, 1e6, 1e9, 0.0, 7.0]),
    )
    together = operation(group(TWO_LEVELS, sizes, strides), volumes, PLAIN)
    alone = [
        operation(group(TWO_LEVELS, *pair), volume, PLAIN)
        for *pair, volume in zip(sizes, strides, volumes, strict=True)
    ]
    assert together.tolist() == [float(value) for value in alone]


def test_the_latency_of_a_host() -> None:
    # 10 us to launch and 14 steps of 1 us, 24 us: a host whose empty all-reduce takes 48 us is twice as slow
    model = collectives(launch_s=10e-6, step=1e-6, path=2e-6)
    node = group(ONE_NODE, 8, 1)
    own = model.slower(host_factor(48e-6, node, model))
    assert all_reduce(node, 0.0, own) == pytest.approx(48e-6, rel=1e-12)
    assert all_gather(node, 0.0, own) == pytest.approx(20e-6 + 7 * 2e-6, rel=1e-12)
    assert all_gather(node, 1e9, own) - all_gather(node, 0.0, own) == pytest.approx(8.75e-3, rel=1e-12)


def test_ranks_behind_one_path_share_it() -> None:
    # Two pairs; the members of a pair leave it over the host's bridge, at the rate of one link, or over one each.
    pairs = tower((2, 400e9, 0.0), (4, 20e9, 0.0))
    ranks = group(pairs, 4, 1)
    for one_path, lanes in ((False, 2), (True, 1)):
        model = collectives()
        model = replace(model, links=model.links | {"infiniband": LinkEfficiency(0.0, 1.0, one_path=one_path)})
        assert all_gather(ranks, 1e9, model) == pytest.approx(3 / 4 * 1e9 / (lanes * 20e9), rel=1e-12)
        assert all_to_all(ranks, 1e9, model) == pytest.approx(2 / 4 * 1e9 / (lanes / 2 * 20e9), rel=1e-12)
        assert broadcast(ranks, 1e9, model) == pytest.approx(1e9 / (lanes * 20e9), rel=1e-12)


def test_a_link_without_constants_is_an_error() -> None:
    with pytest.raises(KeyError, match="'ici'; known: infiniband, nvswitch"):
        all_gather(group((Level("torus", 8, 1e9, 0.0, "ici"),), 8, 1), 1.0, PLAIN)


def test_every_link_that_hardware_may_have_has_constants() -> None:
    shipped = collective_model()
    assert {*get_args(LinkType), *get_args(Protocol)} <= set(shipped.links)
    for link in shipped.links.values():
        assert 0 < link.bandwidth <= 1
        assert 0 < link.all_to_all <= 1
        assert 0 <= link.own_copy < 1
        assert 0 <= link.pipelining <= 2
        assert shipped.spreads is not None and set(shipped.spreads) == set(shipped.links)


# --- tokens to experts


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_token_crosses_the_network_once_for_each_node_it_visits(nodes: int, copies: int) -> None:
    # 8 ranks a node, a slow network. By counting all choices of a node for each copy: how many nodes that are not the
    # token's own it visits (per node), or how many copies go there (per expert).
    choices = list(itertools.product(range(nodes), repeat=copies))
    visited = sum(len(set(choice) - {0}) for choice in choices) / len(choices)
    sent = sum(sum(node != 0 for node in choice) for choice in choices) / len(choices)
    ranks = group(tower((8, 1e15, 0.0), (512, 1e9, 0.0)), 8 * nodes, 1)
    once = dispatch(ranks, 1e9, copies, PLAIN, once_per_node=True)
    each = dispatch(ranks, 1e9, copies, PLAIN, once_per_node=False)
    inside = (8 * nodes - 1) / (8 * nodes) * copies * 1e-6
    seen = 8 * nodes * (1 - (1 - 1 / (8 * nodes)) ** copies)
    assert once == pytest.approx(max(visited, (8 * nodes - 1) / (8 * nodes) * seen * 1e-6), rel=1e-9)
    assert each == pytest.approx(max(sent, inside), rel=1e-9)
    # 8 copies to 8 ranks of one node, by counting: 5.25 ranks are visited, 7/8 of them not the token's own.
    assert dispatch(group(ONE_NODE, 8, 1), 1e9, 8, PLAIN, once_per_node=False) == pytest.approx(70.002e-3, rel=1e-9)
    expected = 7 / 8 * 8 * (1 - (7 / 8) ** 8) * 10e-3 + 2e-6
    assert dispatch(group(ONE_NODE, 8, 1), 1e9, 8, PLAIN, once_per_node=True) == pytest.approx(expected, rel=1e-9)
    assert dispatch(group((), 1, 1), 1e9, 8, PLAIN, once_per_node=True) == 0


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 6))
def test_a_token_goes_once_to_a_rank_and_routing_may_keep_to_some_nodes(nodes: int, copies: int, most: int) -> None:
    # 2 ranks a node. Every choice of nodes, then of a rank for each copy, by counting.
    allowed = min(nodes, most)
    sent, crossed = [], []
    for places in itertools.combinations(range(nodes), allowed):
        ranks_of = [2 * node + side for node in places for side in (0, 1)]
        for choice in itertools.product(ranks_of, repeat=copies):
            sent.append(len(set(choice) - {0}))
            crossed.append(len({rank // 2 for rank in choice} - {0}))
    for inner, outer, expected in ((1e9, 1e15, np.mean(sent)), (1e15, 1e9, np.mean(crossed))):
        ranks = group(tower((2, inner, 0.0), (512, outer, 0.0)), 2 * nodes, 1)
        seconds = dispatch(ranks, 1e9, copies, PLAIN, once_per_node=True, most_nodes=most)
        assert seconds == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


# --- groups


@given(st.sampled_from([2, 4, 8]), st.sampled_from([2, 4, 8]), st.data())
def test_members_of_a_group_by_counting(inner: int, outer: int, data: st.DataObject) -> None:
    # Groups as they arise: sizes and strides divide the ranks; permuting units that are alike changes no count.
    total = inner * outer * 4
    levels = tower((inner, 1e9, 0.0), (inner * outer, 1e9, 0.0), (total, 1e9, 0.0))
    stride = data.draw(st.sampled_from([2**i for i in range(8) if 2**i <= total]))
    size = data.draw(st.sampled_from([2**i for i in range(8) if 2**i * stride <= total]))
    first = data.draw(st.integers(0, total // (size * stride) - 1)) * size * stride + data.draw(
        st.integers(0, stride - 1)
    )
    found = group(levels, size, stride)
    named = group_of(levels, range(first, first + size * stride, stride))
    assert (int(named.size), [int(m) for m in named.members]) == (size, [int(m) for m in found.members])
    for level, members in zip(levels, found.members, strict=True):
        names = data.draw(st.permutations(range(total // level.ranks)))
        held = Counter(names[rank // level.ranks] for rank in range(first, first + size * stride, stride))
        assert set(held.values()) == {int(members)}


@given(st.integers(2, 600), st.integers(1, 64))
def test_a_ring_makes_one_hop_less_than_it_has_ranks(size: int, stride: int) -> None:
    levels = tower((8, 1e9, 1e-6), (64, 1e9, 1e-6), (1024 * 64, 1e9, 1e-6))
    assert all_gather(group(levels, size, stride), 0.0, PLAIN) == pytest.approx((size - 1) * 1e-6, rel=1e-12)


# --- what holds of any machine

bytes_ = st.floats(0.0, 1e11)


@st.composite
def machines(draw: st.DrawFn) -> tuple[tuple[Level, ...], CollectiveModel, int, int]:
    """Levels, constants, and a group on them."""
    degrees = draw(st.lists(st.integers(2, 16), min_size=1, max_size=3))
    rows = [
        (int(ranks), draw(st.floats(1e9, 1e12)), draw(st.floats(0.0, 1e-4)))
        for ranks in itertools.accumulate(degrees, lambda below, degree: below * degree)
    ]
    total = rows[-1][0]
    stride = draw(st.sampled_from([size for size in range(1, total + 1) if total % size == 0]))
    size = draw(st.sampled_from([size for size in range(1, total // stride + 1) if (total // stride) % size == 0]))
    model = collectives(
        launch_s=draw(st.floats(0.0, 1e-4)),
        step=draw(st.floats(0.0, 1e-5)),
        bandwidth=draw(st.floats(0.1, 1.0)),
        path=draw(st.floats(0.0, 1e-5)),
        pipelining=draw(st.floats(0.0, 2.0)),
        own_copy=draw(st.floats(0.0, 0.9)),
        all_to_all=draw(st.floats(0.1, 1.0)),
        exchange_steps=draw(st.floats(1.0, 20.0)),
        peer_bandwidth=draw(st.floats(1e-3, 0.5)),
        in_network_all_reduce=draw(st.floats(1.0, 1.75)),
    )
    return tower(*rows), model, size, stride


@settings(max_examples=50)
@given(machines(), bytes_, st.floats(1.0, 100.0), st.sampled_from(ALL))
def test_more_bytes_are_never_faster(found: Any, volume: float, factor: float, operation: Any) -> None:
    levels, model, size, stride = found
    ranks = group(levels, size, stride)
    less, more = operation(ranks, volume, model), operation(ranks, volume * factor, model)
    assert 0 <= less <= more * (1 + 1e-12)


@settings(max_examples=50)
@given(machines(), bytes_, st.floats(1.0, 100.0), st.sampled_from(ALL), st.data())
def test_a_faster_level_is_never_slower(found: Any, volume: float, factor: float, operation: Any, data: Any) -> None:
    levels, model, size, stride = found
    which = data.draw(st.integers(0, len(levels) - 1))
    wide = [replace(x, bandwidth=x.bandwidth * (factor if i == which else 1)) for i, x in enumerate(levels)]
    late = [replace(x, latency=x.latency * (factor if i == which else 1)) for i, x in enumerate(levels)]
    as_is = operation(group(levels, size, stride), volume, model)
    assert operation(group(wide, size, stride), volume, model) <= as_is * (1 + 1e-12)
    assert operation(group(late, size, stride), volume, model) >= as_is * (1 - 1e-12)


@settings(max_examples=50)
@given(machines(), bytes_, st.floats(1.0, 100.0), st.sampled_from(ALL))
def test_slower_steps_and_launches_are_never_faster(found: Any, volume: float, factor: float, operation: Any) -> None:
    levels, model, size, stride = found
    ranks = group(levels, size, stride)
    as_is = operation(ranks, volume, model)
    slow = {name: replace(link, step=link.step * factor) for name, link in model.links.items()}
    assert operation(ranks, volume, replace(model, links=slow)) >= as_is * (1 - 1e-12)
    assert operation(ranks, volume, replace(model, launch_s=model.launch_s * factor)) >= as_is * (1 - 1e-12)


@settings(max_examples=50)
@given(machines(), bytes_)
def test_an_all_reduce_takes_at_least_a_gather(found: Any, volume: float) -> None:
    # It moves twice the bytes, and a switch that adds saves at most half of them: a factor 2 (g - 1)/g, g = 8. Its
    # latency may be less on many nodes, where it has a tree and the gather a ring: there only the transfers compare.
    levels, model, size, stride = found
    ranks = group([replace(level, latency=0.0) for level in levels], size, stride)
    slow = replace(model, links={name: replace(link, step=0.0) for name, link in model.links.items()})
    assert all_reduce(ranks, volume, slow) >= all_gather(ranks, volume, slow) * (1 - 1e-12)
    inside = group(levels[:1], min(size, levels[0].ranks), 1)
    assert all_reduce(inside, volume, model) >= all_gather(inside, volume, model) * (1 - 1e-12)


@settings(max_examples=50)
@given(machines(), bytes_)
def test_no_collective_beats_the_wire(found: Any, volume: float) -> None:
    # A rank of an all-to-all receives (n - 1)/n S over its own link; a ring enters a unit over all members' links.
    levels, model, size, stride = found
    ranks = group(levels, size, stride)
    received = (size - 1) / size * volume
    members = [1, *(int(count) for count in ranks.members)]
    widest = max(level.bandwidth * below for level, below in zip(levels, members, strict=False))
    assert all_gather(ranks, volume, model) >= received / widest * (1 - 1e-9)
    assert all_to_all(ranks, volume, model) >= received / max(level.bandwidth for level in levels) * (1 - 1e-9)


def test_hierarchy_closed_form_with_worked_numbers() -> None:
    # 8 ranks a node at 100 GB/s and 1 us, 4 nodes at 10 GB/s and 5 us, 80 MB:
    # latency 2 x 7 x 1 us + 2 x 3 x 5 us = 44 us; inside 2 x 7/8 x 80 MB / 100 GB/s = 1400 us; between the nodes each
    # rank reduces its eighth, 2 x 3/4 x 10 MB / 10 GB/s = 1500 us.
    levels = tower((8, 100e9, 1e-6), (32, 10e9, 5e-6))
    seconds = float(hierarchical_all_reduce(group(levels, 32, 1), 80e6, PLAIN))
    assert seconds == pytest.approx(2944e-6, rel=1e-12)
    # a ring keeps all links busy at once, 2 x 31/32 x 80 MB / min(100, 8 x 10) GB/s, over 62 hops, 8 of them long
    assert float(all_reduce(group(levels, 32, 1), 80e6, PLAIN)) < seconds


def test_a_group_in_two_dimensions_counts_members_of_both() -> None:
    # 4 data-parallel neighbours side by side, 2 context-parallel rows 16 ranks apart: a node of 8 holds one row's 4,
    # a leaf of 32 both rows
    levels = tower((8, 100e9, 0.0), (32, 10e9, 0.0), (128, 5e9, 0.0))
    found = group(levels, 4, 1, 2, 16)
    assert int(found.size) == 8
    assert [int(members) for members in found.members] == [4, 8, 8]
    # tp 2 innermost, then cp 2, then dp 4: contiguous pairs of ranks, the same as one group with stride 2
    nested, plain = group(levels, 4, 4, 2, 2), group(levels, 8, 2)
    assert [int(m) for m in nested.members] == [int(m) for m in plain.members]
