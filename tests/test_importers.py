"""What other tools write about machines: read as it was meant, refused where it cannot be."""

from pathlib import Path

import numpy
import pytest

from hardware.catalogue import check_file, description, resolve_cluster
from hardware.faults import InputError
from hardware.importers import bandwidth_matrix
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
    matrix(tmp_path, "node,a,b\na,0,400 Gbit/s\nb,20,0\n")
    cluster.write_text("node: dgx-h100\nnodes: 2\nbandwidth: matrix.csv\n", encoding="utf-8")
    assert "matrix.csv:2:5: a to b: rates should be in GB/s" in str(check_file(cluster)[0])
