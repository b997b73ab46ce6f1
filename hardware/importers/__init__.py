"""Descriptions of machines from what other tools write."""

from pathlib import Path

from hardware.files import read_text
from hardware.importers import nccl_xml, nvidia_smi
from hardware.importers.node import Seen


def read_node(path: Path) -> Seen:
    """Read what a tool wrote about a node.

    Parameters
    ----------
    path
        A topology file of NCCL (XML), or the text of ``nvidia-smi topo -m``.

    Returns
    -------
    Seen
        What the tool saw, for `hardware.importers.node.describe`.

    Raises
    ------
    InputError
        With every fault of the file.
    """
    return nccl_xml.read(path) if read_text(path).lstrip().startswith("<") else nvidia_smi.read(path)
