"""The power tree: what a file may say, what is refused and where, and the flat form that solvers read."""

import math
from pathlib import Path

import pytest

from hardware.catalogue import check_file, find, names, resolve_facility
from hardware.facility import Facility, power_tree
from hardware.faults import InputError
from hardware.yaml_source import read_yaml

HERE = Path()
ROW = """\
kind: facility
name: my-row
actuators:
  - {name: cap, latency: 8 s, power: {lowest: 200 W, highest: 400 W}}
root:
  name: row
  level: row
  rating: 260 kW
  children:
    - {name: rack, level: rack, count: 10, rating: 39 kW, slots: 6, servers: [dgx-a100]}
"""
LISTED = """\
kind: facility
nodes:
  - {name: hall, level: utility, rating: 100 kW}
  - {name: a, level: pdu, count: 2, rating: 60 kW, parent: hall}
  - {name: r, level: rack, count: 3, rating: 20 kW, slots: 4, parent: a}
"""


def facility(text: str) -> Facility:
    source = read_yaml(text, "f.yaml", keep_faults=True)
    return resolve_facility(source.data, HERE, source=source)[0]


def messages(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        facility(text)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", names("facility"))
def test_every_facility_of_the_catalogue_is_a_tree(name: str) -> None:
    entry, servers = resolve_facility(name, HERE)
    tree = power_tree(entry)
    assert entry is find("facility", name) and servers
    for node, parent in enumerate(tree.parent):
        assert parent < node
        assert parent < 0 or tree.rating_w[node] <= tree.rating_w[parent]
        assert tree.failover_w[node] <= tree.limit_w[node] <= tree.rating_w[node]


def test_a_list_and_a_tree_of_children_say_the_same() -> None:
    nested = """\
kind: facility
root:
  {name: hall, level: utility, rating: 100 kW, children: [
    {name: a, level: pdu, count: 2, rating: 60 kW, children: [
      {name: r, level: rack, count: 3, rating: 20 kW, slots: 4}]}]}
"""
    tree = power_tree(facility(nested))
    assert tree == power_tree(facility(LISTED))
    assert tree.name == ("hall", "a", "a/r")
    assert tree.multiplicity == (1, 2, 6)
    assert tree.racks == (2,) and tree.above(2) == (2, 1, 0)


def test_feeds_set_what_is_left_after_a_failure() -> None:
    def limits(feeds: str) -> tuple[float, float]:
        tree = power_tree(facility(ROW.replace("rating: 260 kW", f"rating: 260 kW\n  feeds: {feeds}")))
        return tree.limit_w[0], tree.failover_w[0]

    assert limits("{count: 2, needed: 1}") == (260e3, 260e3)  # the second feed is there for the failure alone
    assert limits("{count: 2, needed: 1, rating: 130 kW}") == (260e3, 130e3)
    assert limits("{count: 2, needed: 1, rating: 100 kW}") == (200e3, 100e3)
    assert power_tree(facility(ROW.replace("260 kW", "260 kW\n  cooling: 200 kW"))).limit_w[0] == 200e3
    assert power_tree(facility(ROW)).ride_through_s[0] == math.inf


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "words"),
    [
        ("rating: 39 kW", "rating: 390 kW", 10, "root.children[0].rating", "above the 260000 W of its parent row"),
        ("dgx-a100", "dgx-a10", 10, "root.children[0].servers[0]", 'did you mean "dgx-a100"'),
        ("lowest: 200 W", "lowest: 50 W", 4, "actuators[0].power.lowest", "below the 53.7 W"),
        ("lowest: 200 W", "lowest: 500 W", 4, "actuators[0].power.lowest", "above the highest"),
        (", power: {lowest: 200 W, highest: 400 W}", "", 4, "actuators[0]", "either clock or power"),
        (" slots: 6,", "", 10, "root.children[0].slots", "missing"),
        ("rating: 260 kW", "slots: 4\n  rating: 260 kW", 8, "root.slots", "only a rack holds servers"),
        ("  rating: 260 kW\n", "", 5, "root.rating", "missing"),
        ("kW\n  children", "kW\n  feeds: {count: 1, needed: 2}\n  children", 9, "root.feeds.needed", "more than"),
    ],
)
def test_faults_of_a_tree_stand_at_their_place(old: str, new: str, line: int, key: str, words: str) -> None:
    assert old in ROW
    (message,) = messages(ROW.replace(old, new))
    assert message.startswith(f"f.yaml:{line}:") and f" {key}: " in message and words in message, message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "level: utility, rating",
            "level: utility, parent: a, rating",
            ["without parent [got 0]", "a cycle: a -> hall"],
        ),
        ("parent: a}", "parent: b}", ["nodes[2].parent: no such node", "nodes[1].level: a pdu supplies others"]),
        ("rating: 60 kW", "rating: 160 kW", ["nodes[1].rating: 160000 W is above the 100000 W of its parent hall"]),
        ("name: r,", "name: a,", ["nodes[2].name", "earlier node"]),
    ],
)
def test_faults_of_a_list(old: str, new: str, words: list[str]) -> None:
    assert old in LISTED
    found = "\n".join(messages(LISTED.replace(old, new, 1)))
    for word in words:
        assert word in found


def test_an_alias_that_contains_itself_is_refused(tmp_path: Path) -> None:
    text = ROW.replace("root:", "root: &again").replace("    - {name: rack", "    - *again\n    - {name: rack")
    (tmp_path / "ring.yaml").write_text(text)
    assert "an alias stands inside what it is an alias of" in str(check_file(tmp_path / "ring.yaml")[0])
