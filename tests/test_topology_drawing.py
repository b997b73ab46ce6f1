"""Drawings of machines: they fit the page, show what is there, and say what is slow or broken."""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.tables import WIDTH
from hardware.catalogue import names, resolve_cluster
from hardware.importers.bandwidth_matrix import parse
from hardware.topology import bisection, graph

SPACE = "{http://www.w3.org/2000/svg}"

UNEVEN = """\
name: uneven
node: dgx-h100
nodes: 16
fabric:
  type: rail-optimised
  hosts_per_leaf: 8
  spines: 8
  failed: [leaf0-spine3, spine6]
  overrides: {leaf3-spine1: 10 Gbit/s, host5-leaf2: 100 Gbit/s, leaf9-spine0: 800 Gbit/s}
"""


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["hardware", "show", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def boxes(text: str) -> list[str]:
    """Read the full names of the boxes of a picture."""
    root = ElementTree.fromstring(text)
    return [title.text or "" for group in root.iter(f"{SPACE}g") for title in group.iter(f"{SPACE}title")]


@pytest.mark.parametrize("name", [*names("cluster"), *names("node")])
def test_every_machine_of_the_catalogue_fits_the_page(name: str, tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    text = run(name, "--topology", "--plot", str(out))
    assert max(map(len, text.splitlines())) <= WIDTH and len(text.splitlines()) < 120
    picture = out.read_text(encoding="utf-8")
    assert 0 < len(boxes(picture)) < 200 and len(picture) < 400_000


def test_a_network_of_leaves_and_spines() -> None:
    text = run("superpod-16x8", "--topology")
    # 16 nodes x 8 x 400 Gbit/s below each of 16 leaves, as much above it: 128 cables, 16 to each of 8 spines.
    assert "spine to leaf: 128 x 6.4 Tbit/s" in text and "leaf to host: 256 x 3.2 Tbit/s" in text
    assert "[host0-15]" in text and "256 host, 16 leaf, 8 spine" in text
    # Half of 256 nodes x 400 GB/s.
    assert "51.2 TB/s" in text and "leaf 1:1, halves 1:1" in text


def test_devices_of_a_node() -> None:
    text = run("dgx-h100", "--topology")
    assert "nvlink to gpu: 8 x 450 GB/s" in text and "pcie to nic: 8 x 50 GB/s" in text
    assert [line.split() for line in text.splitlines() if line.startswith("  gpu5")] == [
        ["gpu5", "1", "nvlink0,", "pcie2", "nic5"]
    ]
    assert "72 like" in run("gb200-nvl72", "--topology") or "gpu71" in run("gb200-nvl72", "--topology")


def test_slow_and_broken_parts_are_told_and_coloured(tmp_path: Path) -> None:
    path, out = tmp_path / "uneven.yaml", tmp_path / "uneven.svg"
    path.write_text(UNEVEN, encoding="utf-8")
    lines = [line.split() for line in run(str(path), "--topology").splitlines()]
    assert ["spine6", "broken"] in lines
    assert ["leaf3-spine1", "10", "Gbit/s", "400", "Gbit/s"] in lines
    assert ["leaf0-spine3", "broken", "400", "Gbit/s"] in lines
    run(str(path), "--topology", "-o", str(out))
    root = ElementTree.parse(out).getroot()
    told = {
        (way.findtext(f"{SPACE}title") or ""): (way.get("stroke"), way.get("stroke-dasharray"))
        for way in root.iter(f"{SPACE}path")
    }
    plain = told["leaf0 to spine0: 400 Gbit/s"]
    assert plain[1] is None
    slow, fast = told["leaf3 to spine1: 10 Gbit/s"], told["leaf9 to spine0: 800 Gbit/s"]
    assert len({plain[0], slow[0], fast[0]}) == 3
    assert told["leaf0 to spine3: broken"][1] is not None and told["leaf7 to spine6: broken"][1] is not None
    # Nodes that are joined alike are one box; the one with a slow port has its own.
    assert {"host0 and 6 more", "host5", "host8-15"} <= set(boxes(out.read_text(encoding="utf-8")))


def test_a_drawing_as_data(tmp_path: Path) -> None:
    path = tmp_path / "uneven.yaml"
    path.write_text(UNEVEN, encoding="utf-8")
    machine = resolve_cluster(str(path), Path())
    data = json.loads(run(str(path), "--topology", "--format", "json"))
    assert data["parts"] == {"host": 16, "leaf": 16, "spine": 8} and data["broken"] == ["spine6"]
    assert data["bisection_bytes_per_s"] == pytest.approx(bisection(machine))
    drawn = graph(machine)
    rows = list(csv.DictReader(io.StringIO(run(str(path), "--topology", "--format", "csv"))))
    assert len(rows) == len(data["links"]) == drawn.number_of_edges()
    for row in rows:
        assert float(row["bandwidth_bytes_per_s"]) == drawn[row["a"]][row["b"]]["capacity"]
    # A limit that is not known is nothing, not infinity.
    links = json.loads(run("dgx-h100", "--topology", "--format", "json"))["links"]
    assert [link["bandwidth_bytes_per_s"] for link in links if link["type"] == "host"] == [None]


def test_what_was_measured_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "matrix.csv").write_text("node,a,b,c\na,,10,20\nb,30,,40\nc,50,35,\n", encoding="utf-8")
    path = tmp_path / "three.yaml"
    path.write_text("node: dgx-h100\nnodes: 3\nbandwidth: matrix.csv\n", encoding="utf-8")
    assert "10 GB/s to 50 GB/s, median 32.5 GB/s" in run(str(path), "--topology")


def test_the_same_machine_gives_the_same_picture(tmp_path: Path) -> None:
    one, other = tmp_path / "a.svg", tmp_path / "b.svg"
    run("frontier", "--topology", "-o", str(one))
    run("frontier", "--plot", str(other))
    assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    for words, message in (
        (["superpod-16x8", "--plot", str(tmp_path / "x.pdf")], "is drawn as .svg"),
        (["h100-80gb-sxm", "--topology"], "is an accelerator, but a cluster or a node is needed"),
        (["superpod-16x9", "--topology"], 'did you mean "superpod-16x8"?'),
    ):
        result = CliRunner().invoke(app, ["hardware", "show", *words])
        assert result.exit_code == 2 and message in result.output


def test_the_description_in_the_documentation_is_drawn(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "network.md").read_text(encoding="utf-8")
    described = [block for block in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "kind: cluster" in block]
    assert described
    for block in described:
        path = tmp_path / "cluster.yaml"
        path.write_text(block, encoding="utf-8")
        text = run(str(path), "--topology")
        assert ("Unlike the rest" in text) == ("failed" in block) and ("site to site" in text) == ("wan" in block)
    (table,) = re.findall(r"^```\n(node,host0.*?)^```", page, re.M | re.S)
    assert parse(table, "docs").bandwidth[1, 2] == 11.9e9
