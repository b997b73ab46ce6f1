"""The graph of a node's memories: contention domains and paths."""

import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import find
from hardware.tiers import tier_paths


def test_a_disk_goes_through_host_memory_and_the_link():
    ddr, nvme = tier_paths(find("node", "t4-workstation"))
    assert [domain.name for domain in nvme.domains] == ["nvme", "ddr", "pcie"]
    assert (nvme.domains[0].up, nvme.domains[0].down) == (2e9, 1e9)
    assert nvme.link.up == pytest.approx(16 * 8e9 / 8 * 128 / 130)
    assert (ddr.site, nvme.site, nvme.attention_flops) == ("ddr", "ddr", 12.3e9)


def test_links_that_accelerators_share_count_once_for_all_of_them():
    """Eight accelerators, two behind each PCIe switch: four times 63 GB/s into the host."""
    ddr = tier_paths(find("node", "dgx-h100"))[0]
    assert (ddr.link.count, ddr.link.shared_by) == (4, 2)
    assert ddr.link.node_up == pytest.approx(4 * 63.02e9, rel=1e-3)
    assert ddr.site is None


def test_a_remote_pool_is_reached_over_the_adapters():
    node = find("node", "dgx-h100")
    pool = node.tiers[0].model_copy(update={"name": "remote", "link": "nics"})
    path = tier_paths(node.model_copy(update={"tiers": (pool,)}))[0]
    assert path.link.node_up == pytest.approx(8 * 50e9)


def test_show_prints_what_data_of_tiers_pass():
    shown = CliRunner().invoke(app, ["hardware", "show", "t4-workstation"]).stdout
    assert "Memory beyond the accelerators' own" in shown
    assert "ddr (60 GB/s), then" in " ".join(shown.split())
