"""What other tools write about machines: read as it was meant, refused where it cannot be."""

from pathlib import Path

import numpy
import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import check_file, description, resolve_cluster
from hardware.faults import InputError
from hardware.importers import bandwidth_matrix, nccl_xml, nvidia_smi, read_node
from hardware.importers.node import Seen, describe
from hardware.schema import Node
from hardware.topology import measured_bandwidth

# --- a measured matrix


def matrix(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "matrix.csv"
    path.write_text(text, encoding="utf-8")
    return path


def matrix_faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        bandwidth_matrix.read(matrix(tmp_path, text))
    return [str(fault).removeprefix(f"{tmp_path}/") for fault in caught.value.faults]


def test_a_matrix_is_read_in_bytes_and_by_name(tmp_path: Path) -> None:
    # Rows in another order than columns; quotes, blanks, a blank line and an empty diagonal.
    found = bandwidth_matrix.read(
        matrix(tmp_path, '\ufeffnode,a, "b,1" ,c\n\nc,1.5,2.5,\na,,12,13e0\n"b,1", 21 ,9,23\n,,,\n')
    )
    assert found.names == ("a", "b,1", "c")
    inf = numpy.inf
    assert (found.bandwidth == 1e9 * numpy.array([[inf, 12, 13], [21, inf, 23], [1.5, 2.5, inf]])).all()


def test_the_row_sends(tmp_path: Path) -> None:
    found = bandwidth_matrix.read(matrix(tmp_path, "GB/s,a,b\na,0,10\nb,40,0\n"), ["a"])
    assert found.bandwidth[0, 1] == 10e9 and found.bandwidth[1, 0] == 40e9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["matrix.csv:1:1: there should be a header"]),
        ("node\n", ["matrix.csv:1:1: there should be a header"]),
        ("node,a,b\na,0,1\nb,2\n", ["matrix.csv:3:1: b: should have 2 rates, one for each node of the header [got 1]"]),
        ("node,a,b\na,0,1,5\nb,2,0\n", ["matrix.csv:2:1: a: should have 2 rates"]),
        ("node,a,b\na,0,1\n", ["matrix.csv:1:1: should be square, but these nodes of the header have no row: b"]),
        ("node,a,b\na,0,1\nb,1,0\nc,1,1\n", ["matrix.csv:4:1: c: is not among the nodes of the header: a, b"]),
        ("node,a,a\na,0,1\n", ["matrix.csv:1:8: a: stands twice in the header"]),
        ("node,a,\na,0,1\n", ["matrix.csv:1:8: column 3: the name of a node is missing"]),
        ("node,a,b\na,0,1\na,0,1\nb,1,0\n", ["matrix.csv:3:1: a: stands twice, first in line 2"]),
        (
            "node,a,b,c\na,0,0,-1\nb,x,0,nan\nc,,1e6,0\n",
            [
                "matrix.csv:2:5: a to b: should be greater than zero",
                "matrix.csv:2:7: a to c: should be greater than zero",
                "matrix.csv:3:3: b to a: should be a number of GB/s [got 'x']",
                "matrix.csv:3:7: b to c: should be a finite number",
                "matrix.csv:4:3: c to a: is missing",
                "matrix.csv:4:4: c to b: is more than 100000 GB/s",
            ],
        ),
        ("Gbit/s,a,b\na,0,1\nb,1,0\n", ["matrix.csv:1:1: rates should be in GB/s; divide bits by eight"]),
        ("rate (Gbps),a,b\na,0,1\nb,1,0\n", ["matrix.csv:1:1: rates should be in GB/s; divide bits by eight"]),
        (
            "node,a,b\na,0,400 Gbit/s\nb,50 GB/s,0\n",
            [
                "matrix.csv:2:5: a to b: rates should be in GB/s; divide bits by eight",
                'matrix.csv:3:3: b to a: should be a bare number of GB/s; leave "GB/s" out',
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_matrix_is_named_with_its_place(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = matrix_faults(tmp_path, text)
    assert len(found) == len(expected)
    for fault, start in zip(found, expected, strict=True):
        assert fault.startswith(start)


def test_a_matrix_that_misses_nodes_of_the_machine_or_cannot_be_read(tmp_path: Path) -> None:
    path = matrix(tmp_path, "node,a,b\na,0,1\nb,1,0\n")
    with pytest.raises(InputError, match="nodes are missing: c, d"):
        bandwidth_matrix.read(path, ["a", "c", "d"])
    with pytest.raises(InputError, match="cannot be read"):
        bandwidth_matrix.read(tmp_path / "absent.csv")
    path.write_bytes(b"node,\xff\n")
    with pytest.raises(InputError, match="UTF-8"):
        bandwidth_matrix.read(path)


def test_a_cluster_carries_what_was_measured_on_it(tmp_path: Path) -> None:
    matrix(tmp_path, "node,a,b\na,0,10\nb,20,0\n")
    cluster = tmp_path / "two.yaml"
    cluster.write_text("node: dgx-h100\nnodes: 2\nbandwidth: matrix.csv\n", encoding="utf-8")
    machine = resolve_cluster(str(cluster), Path())
    found = measured_bandwidth(machine)
    assert found is not None and found.names == ("a", "b") and found.bandwidth[1, 0] == 20e9
    # Written out in one piece, without the file.
    again = measured_bandwidth(resolve_cluster(description(machine), Path()))
    assert again is not None and (again.bandwidth == found.bandwidth).all()
    assert measured_bandwidth(resolve_cluster("dgx-h100", Path(), 2)) is None
    for text, expected in (
        (
            "node: dgx-h100\nnodes: 3\nbandwidth: matrix.csv\n",
            "two.yaml:3:1: bandwidth: should name each of the 3",
        ),
        ("node: dgx-h100\nnodes: 2\nbandwidth: absent.csv\n", "two.yaml:3:1: bandwidth: there is no file"),
    ):
        cluster.write_text(text, encoding="utf-8")
        assert expected in str(check_file(cluster)[0])
    # Names of this program say the order themselves.
    matrix(tmp_path, "node,host1,host0\nhost1,0,10\nhost0,20,0\n")
    cluster.write_text("node: dgx-h100\nnodes: 2\nbandwidth: matrix.csv\n", encoding="utf-8")
    found = measured_bandwidth(resolve_cluster(str(cluster), Path()))
    assert found is not None and found.names == ("host0", "host1") and found.bandwidth[0, 1] == 20e9
    matrix(tmp_path, "node,host1,host2\nhost1,0,10\nhost2,20,0\n")
    assert "matrix.csv:1:1: nodes are missing: host0" in str(check_file(cluster)[0])
    matrix(tmp_path, "node,a,b\na,0,400 Gbit/s\nb,20,0\n")
    cluster.write_text("node: dgx-h100\nnodes: 2\nbandwidth: matrix.csv\n", encoding="utf-8")
    assert "matrix.csv:2:5: a to b: rates should be in GB/s" in str(check_file(cluster)[0])


# --- nodes: what two tools say about the same machines


def nccl(
    gpus: list[str], *, nets: list[str] | None = None, link: str = 'link_speed="32.0 GT/s PCIe" link_width="16"'
) -> str:
    """Write a node with two processors; one accelerator and one port below each PCI Express switch."""
    lines = ['<system version="1">']
    half = len(gpus) // 2
    for cpu in (0, 1):
        lines.append(f'<cpu numaid="{cpu}" affinity="ff" arch="x86_64" vendor="GenuineIntel">')
        for index in range(cpu * half, (cpu + 1) * half):
            lines.append(f'<pci busid="0000:{index}0:00.0" class="0x060400" {link}>')
            lines.append(f'<pci busid="0000:{index}A:00.0" class="0x030200" {link}>')
            lines.append(f'<gpu dev="{index}" sm="90" rank="{index}" gdr="1">{gpus[index]}</gpu></pci>')
            if nets:
                lines.append(f'<pci busid="0000:{index}b:00.0" class="0x020700" {link}>')
                lines.append(f"<nic>{nets[index]}</nic></pci>")
            lines.append("</pci>")
        lines.append("</cpu>")
    return "\n".join([*lines, "</system>", ""])


SWITCHES = "".join(
    f'<nvlink target="0000:0{switch}:00.0" count="{links}" tclass="0x068000"/>'
    for switch, links in enumerate((5, 4, 4, 5))
)
NETS = [
    f'<net name="mlx5_{index}" dev="{index}" speed="400000" port="1" latency="0.0" guid="0x1" maxconn="131072" gdr="1" '
    f'rail="{index}" plane="0"/>'
    for index in range(8)
]


def smi(*rows: str, affinity: bool = True) -> str:
    """Write a table as the tool prints it: tabs, underlined heads, a legend."""
    cells = [row.split() for row in rows]
    names = [row[0] for row in cells]
    heads = [*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"] if affinity else names
    lines = ["$ nvidia-smi topo -m", "\t\x1b[4m" + "\t".join(heads) + "\x1b[0m"]
    lines += ["\t".join([row[0], *(f" {text} " if text == "X" else text for text in row[1:])]) for row in cells]
    return "\n".join([*lines, "", "Legend:", "", "  X    = Self", "  SYS  = Across processors", ""])


def written(tmp_path: Path, text: str, name: str = "box.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def checked(tmp_path: Path, seen: Seen, accelerator: str, rate: float | None = None) -> Node:
    """Write a node out, let it be checked as a file, and resolve it."""
    path = written(tmp_path, yaml.safe_dump(describe(seen, "box", accelerator, rate)), "node.yaml")
    assert check_file(path) == []
    return resolve_cluster(str(path), Path()).node


def test_a_dgx_h100_from_nccl(tmp_path: Path) -> None:
    path = written(tmp_path, nccl([SWITCHES] * 8, nets=NETS), "topo.xml")
    node = checked(tmp_path, read_node(path), "h100-80gb-sxm")
    # What the catalogue says about the same machine, from its user guide.
    guide = resolve_cluster("dgx-h100", Path()).node
    assert node.accelerators.count == guide.accelerators.count == 8
    assert node.links[0].type == guide.links[0].type == "nvswitch"
    assert node.links[0].bandwidth == guide.links[0].bandwidth == 450e9
    assert node.links[1].bandwidth == guide.links[1].bandwidth
    assert node.nics is not None and guide.nics is not None
    assert (node.nics.count, node.nics.bandwidth) == (guide.nics.count, guide.nics.bandwidth) == (8, 50e9)
    assert node.nics.affinity == "one-per-accelerator"
    assert node.nics.nearest == tuple((index,) for index in range(8))
    assert node.numa is not None and guide.numa is not None
    assert node.numa.accelerators == node.numa.nics == guide.numa.accelerators
    assert node.provenance["links.nvlink"].note == "18 links of 25 GB/s, nominal for hopper"


def test_slow_ports_are_left_out_and_named(tmp_path: Path) -> None:
    text = nccl([SWITCHES] * 8, nets=NETS)
    storage = '<nic><net name="eth0" dev="8" speed="100000" gdr="0"/></nic>'
    seen = nccl_xml.read(written(tmp_path, text.replace("</cpu>", f"{storage}</cpu>", 1)))
    assert seen.ports[4].name == "eth0" and seen.ports[4].nearest == ()
    data = describe(seen, "box", "h100-80gb-sxm")
    assert data["nics"]["count"] == 8 and "slower than the rest: eth0." in data["notes"]


def test_a_dgx_a100_from_nvidia_smi(tmp_path: Path) -> None:
    # Two accelerators and two ports below each switch, two switches on each processor.
    def between(one: int, other: int) -> str:
        if one == other:
            return "X"
        if max(one, other) < 8:
            return "NV12"
        one, other = one % 8, other % 8
        return "PXB" if one // 2 == other // 2 else "NODE" if one // 4 == other // 4 else "SYS"

    names = [f"GPU{index}" for index in range(8)] + [f"NIC{index}" for index in range(8)]
    ends = [f" {48 * (index // 4)}-{48 * (index // 4) + 47} {index // 4} N/A" for index in range(8)] + [""] * 8
    rows = [f"{names[one]} " + " ".join(between(one, other) for other in range(16)) + ends[one] for one in range(16)]
    for text in (smi(*rows), smi(*rows).replace("\t", "    ")):
        node = checked(tmp_path, read_node(written(tmp_path, text)), "a100-80gb-sxm", 25e9)
        guide = resolve_cluster("dgx-a100", Path()).node
        assert (node.links[0].type, node.links[0].bandwidth) == ("nvswitch", guide.links[0].bandwidth)
        assert guide.links[0].bandwidth == 300e9
        assert (node.links[1].shared_by, node.links[1].bandwidth) == (2, guide.links[1].bandwidth)
        assert node.nics is not None and (node.nics.count, node.nics.bandwidth) == (8, 25e9)
        assert node.nics.nearest == ((0, 1), (0, 1), (2, 3), (2, 3), (4, 5), (4, 5), (6, 7), (6, 7))
        assert node.numa is not None and node.numa.accelerators == (0, 0, 0, 0, 1, 1, 1, 1) == node.numa.nics
    # Without their rate the ports cannot be described.
    data = describe(nvidia_smi.read(written(tmp_path, smi(*rows))), "box", "a100-80gb-sxm")
    assert "nics" not in data and "their rate is not known: NIC0" in data["notes"]


# DGX-1 with V100: two rings of four, six links for each accelerator.
CUBE = [
    "GPU0 X NV1 NV1 NV2 NV2 SYS SYS SYS 0-19 0",
    "GPU1 NV1 X NV2 NV1 SYS NV2 SYS SYS 0-19 0",
    "GPU2 NV1 NV2 X NV2 SYS SYS NV1 SYS 0-19 0",
    "GPU3 NV2 NV1 NV2 X SYS SYS SYS NV1 0-19 0",
    "GPU4 NV2 SYS SYS SYS X NV1 NV1 NV2 20-39 1",
    "GPU5 SYS NV2 SYS SYS NV1 X NV2 NV1 20-39 1",
    "GPU6 SYS SYS NV1 SYS NV1 NV2 X NV2 20-39 1",
    "GPU7 SYS SYS SYS NV1 NV2 NV1 NV2 X 20-39 1",
]


def test_a_mesh_with_gaps(tmp_path: Path) -> None:
    node = checked(tmp_path, read_node(written(tmp_path, smi(*CUBE))), "v100-32gb-sxm")
    link = node.links[0]
    assert (link.type, link.bandwidth, link.group) == ("nvlink-mesh", 150e9, None)
    assert link.pairs is not None and len(link.pairs) == 16
    assert (link.pairs["0-3"], link.pairs["3-7"]) == (50e9, 25e9)
    assert node.nics is None


def test_bridges_and_a_full_mesh(tmp_path: Path) -> None:
    bridged = smi(
        "GPU0 X NV12 SYS SYS 0-15 0", "GPU1 NV12 X SYS SYS 0-15 0",
        "GPU2 SYS SYS X NV12 0-15 0", "GPU3 SYS SYS NV12 X 0-15 0",
    )  # fmt: skip
    node = checked(tmp_path, read_node(written(tmp_path, bridged)), "a100-80gb-pcie")
    assert [(link.type, link.group, link.pairs) for link in node.links] == [
        ("nvlink-mesh", 2, None), ("pcie", None, None),
    ]  # fmt: skip
    assert node.links[0].bandwidth == 300e9 and node.numa is None
    # Four on a board without switches: four links to each of the others.
    rows = [
        f"GPU{one} " + " ".join("X" if one == other else "NV4" for other in range(4)) + " 0-15 0" for one in range(4)
    ]
    node = checked(tmp_path, read_node(written(tmp_path, smi(*rows))), "a100-80gb-sxm")
    assert (node.links[0].type, node.links[0].bandwidth, node.links[0].pairs) == ("nvlink-mesh", 300e9, None)


def test_a_mesh_of_amd(tmp_path: Path) -> None:
    links = [
        "".join(
            f'<xgmi target="0000:{other}a:00.0" count="1" tclass="0x038000"/>' for other in range(8) if other != one
        )
        for one in range(8)
    ]
    node = checked(tmp_path, nccl_xml.read(written(tmp_path, nccl(links, nets=NETS))), "mi300x")
    # MI300X platform: 7 links of 64 GB/s.
    assert (node.links[0].type, node.links[0].bandwidth, node.links[0].pairs) == ("xgmi", 448e9, None)


def test_accelerators_without_links_share_pci_express(tmp_path: Path) -> None:
    node = checked(
        tmp_path,
        nccl_xml.read(written(tmp_path, nccl([""] * 4, link='link_speed="16.0 GT/s PCIe" link_width="16"'))),
        "l40s",
    )
    assert [(link.type, link.generation, link.lanes, link.shared_by) for link in node.links] == [("pcie", 4, 16, 1)]
    # Nothing known of PCI Express, in the file or the catalogue, and nothing else that joins them.
    with pytest.raises(InputError, match="no link joins the node's 2 accelerators"):
        describe(nccl_xml.read(written(tmp_path, nccl([""] * 2, link=""))), "box", "gh200-96gb")


def xml_faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        nccl_xml.read(written(tmp_path, text, "topo.xml"))
    return [str(fault).removeprefix(f"{tmp_path}/") for fault in caught.value.faults]


def test_every_fault_of_a_topology_file_has_its_place(tmp_path: Path) -> None:
    text = """<system version="1">
  <cpu arch="x86_64">
    <pci busid="0000:00:00.0">
      <gpuu dev="0"/>
      <gpu dev="zero"><net speed="0"/></gpu>
      <gpu rank="1"/>
      <nic>
        <net name="mlx5_0" speed="400 Gbit/s"/>
      </nic>
    </pci>
  </cpu>
</system>
"""
    assert [fault.split(" [got")[0].split("; allowed")[0] for fault in xml_faults(tmp_path, text)] == [
        "topo.xml:2:3: cpu: the attribute numaid is missing",
        "topo.xml:4:7: gpuu: unknown element",
        "topo.xml:5:7: gpu: dev should be a whole number",
        "topo.xml:5:23: net: does not belong in gpu",
        "topo.xml:5:23: net: speed should be greater than zero",
        "topo.xml:6:7: gpu: the attribute dev is missing",
        "topo.xml:8:9: net: speed should be a whole number",
    ]
    assert 'did you mean "gpu"?' in xml_faults(tmp_path, text)[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<graphs/>", "topo.xml:1:1: graphs: unknown element"),
        ("<cpu numaid='0'/>", "topo.xml:1:1: cpu: does not belong at the top; allowed there: system"),
        ("<system>\n</system>\n<system/>", "topo.xml:3:1: is no XML: junk after document element"),
        ("<system><cpu numaid='0'></system>", "topo.xml:1:27: is no XML: mismatched tag"),
        ("<system/>", "topo.xml:1:1: system: holds no gpu"),
        ("", "topo.xml:1:1: is no XML: no element found"),
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>\n<system>&b;</system>", "topo.xml:1:13: declares a"),
        ("<system>" * 100, "topo.xml:1:513: system: is nested more than 64 deep"),
    ],
)
def test_files_that_are_no_topology(tmp_path: Path, text: str, expected: str) -> None:
    assert any(fault.startswith(expected) for fault in xml_faults(tmp_path, text))


def test_links_that_contradict_each_other(tmp_path: Path) -> None:
    alone = nccl([SWITCHES, SWITCHES, SWITCHES, ""])
    assert xml_faults(tmp_path, alone) == [
        "topo.xml:19:1: gpu: should have links to switches alone, as other accelerators have"
    ]
    itself = nccl(['<nvlink target="0000:0a:00.0" count="1" tclass="0x030200"/>', ""])
    assert "nvlink: should lead to another device" in xml_faults(tmp_path, itself)[0]
    slow = nccl([SWITCHES] * 2).replace("32.0 GT/s", "31.0 GT/s", 4)
    assert any(
        "link_speed should be one of 2.5, 5, 8, 16, 32, 64 GT/s [got '31.0" in one for one in xml_faults(tmp_path, slow)
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["GPU0 X NV4", "GPU1 NV4 X", "FOO X X"], "box.txt:5:1: FOO: is no column"),
        (["GPU0 X NV4 0-15 0", "GPU1 NV4 0-15"], "box.txt:4:6: GPU1 to GPU0: should be"),
        (["GPU0 X PXI 0 0", "GPU1 PXI X 0 0"], "box.txt:3:10: GPU0 to GPU1: should be PIX, PXB, PHB, NODE, SYS or NV"),
        (["GPU0 NV4 NV4 0 0", "GPU1 NV4 X 0 0"], "box.txt:3:6: GPU0 to GPU0: should be X [got 'NV4']"),
        (["GPU0 X NV4 0 0", "GPU1 NV2 X 0 0"], "box.txt:4:1: GPU1 to GPU0: NV2 contradicts NV4 in the row of GPU0"),
    ],
)
def test_every_fault_of_a_table_has_its_place(tmp_path: Path, rows: list[str], expected: str) -> None:
    text = smi(*rows)
    if "FOO" in expected:
        text = text.replace("\tFOO", "", 1)
    if expected.endswith("should be"):
        text = text.replace("NV4\t0-15\n", "0-15\n")
    with pytest.raises(InputError) as caught:
        nvidia_smi.read(written(tmp_path, text))
    assert any(str(fault).removeprefix(f"{tmp_path}/").startswith(expected) for fault in caught.value.faults)


def test_tables_that_are_none_and_boards_that_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table with the columns GPU0"):
        read_node(written(tmp_path, "a,b\n"))
    with pytest.raises(InputError, match="GPU1: has a column but no row"):
        read_node(written(tmp_path, smi("GPU0 X NV4", "GPU1 NV4 X").replace("GPU1\tNV4\t X \n", "")))
    seen = read_node(written(tmp_path, smi(*CUBE)))
    with pytest.raises(InputError, match='--accelerator: no accelerator "v1OO"'):
        describe(seen, "box", "v1OO")
    with pytest.raises(InputError, match="6 links of an accelerator are more than the 4 of pascal"):
        describe(seen, "box", "p100-16gb-pcie")
    with pytest.raises(InputError, match="no rate of nvlink is known for gaudi3"):
        describe(seen, "box", "gaudi3")


def test_the_command_writes_a_file_that_can_be_checked(tmp_path: Path) -> None:
    path = written(tmp_path, nccl([SWITCHES] * 8, nets=NETS), "topo.xml")
    out = tmp_path / "node.yaml"
    run = CliRunner().invoke(app, ["hardware", "import", str(path), "--accelerator", "h100-80gb-sxm", "-o", str(out)])
    assert run.exit_code == 0, run.output
    assert "0 faults" in CliRunner().invoke(app, ["hardware", "check", str(out)]).stdout
    run = CliRunner().invoke(
        app, ["hardware", "import", str(path), "--accelerator", "h100-80gb-sxm", "--format", "csv"]
    )
    assert "links.nvlink.bandwidth_bytes_per_s,450000000000" in run.stdout
