"""What the catalogue says: every file is whole, sourced and in agreement with published arithmetic."""

import csv
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from hardware.catalogue import UnknownName, find, names, resolve_cluster
from hardware.fabric import clos, read_edges
from hardware.provenance import numbers_without_provenance
from hardware.schema import MODELS, Accelerator, Node, json_schema

CATALOGUE = Path(str(resources.files("hardware"))) / "catalog"
FOLDERS = {"accelerator": "accelerators", "node": "nodes", "cluster": "clusters", "facility": "facilities"}
FILES = [(kind, path) for kind, folder in FOLDERS.items() for path in sorted((CATALOGUE / folder).glob("*.yaml"))]
NAMES = {kind: names(kind) for kind in FOLDERS}
GIB = 2**30


def accelerator(name: str) -> Accelerator:
    found = find("accelerator", name)
    assert isinstance(found, Accelerator)
    return found


def node(name: str) -> Node:
    found = find("node", name)
    assert isinstance(found, Node)
    return found


def link_rate(name: str, link_name: str) -> float | None:
    return next(link.bandwidth for link in node(name).links if link.name == link_name)


# The files themselves


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_file_is_whole_and_sourced(kind: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema=../../schemas/{kind}.schema.json\n")
    entry = find(kind, path.stem)
    assert entry.name == path.stem
    assert entry.kind == kind
    assert numbers_without_provenance(entry) == []
    jsonschema.validate(yaml.safe_load(text), json_schema(kind))


@pytest.mark.parametrize("kind", FOLDERS)
def test_no_spelling_belongs_to_two_entries(kind: str) -> None:
    owners: dict[str, str] = {}
    for name in NAMES[kind]:
        entry = find(kind, name)
        for spelling in (entry.name, *entry.aliases):
            plain = "".join(letter for letter in spelling.lower() if letter not in "-_ .")
            assert owners.setdefault(plain, name) == name, spelling
            assert find(kind, spelling) is entry


@pytest.mark.parametrize("name", NAMES["node"])
def test_node_fits_its_accelerator(name: str) -> None:
    machine = resolve_cluster(name, Path())
    assert machine.accelerator.name in NAMES["accelerator"]
    assert machine.node.links, "tiers and messages need a link"
    power = machine.node.power
    if power and power.limit:
        assert power.limit > machine.node.accelerators.count * machine.accelerator.power.limit
    if power and power.idle and machine.accelerator.power.idle:
        assert power.idle > machine.node.accelerators.count * machine.accelerator.power.idle


@pytest.mark.parametrize("name", NAMES["cluster"])
def test_cluster_holds_together(name: str) -> None:
    assert resolve_cluster(name, Path()).nodes == find("cluster", name).nodes


@pytest.mark.parametrize("kind", ("accelerator", "node", "cluster"))
def test_price_says_where_and_when(kind: str) -> None:
    for name in NAMES[kind]:
        price = find(kind, name).price
        assert price is None or (price.on_demand and price.region and price.date and price.source), name


def test_every_kind_is_in_the_catalogue() -> None:
    assert set(FOLDERS) <= set(MODELS)
    assert all(NAMES.values())


# What people call things

SPELLINGS = {
    "v100-16gb-sxm": ["V100-SXM2-16GB"],
    "v100-32gb-sxm": ["V100", "v100_sxm", "Tesla V100-SXM2-32GB"],
    "v100-16gb-pcie": ["V100-PCIe"],
    "t4": ["T4", "Tesla T4"],
    "a10": ["A10"],
    "a10g": ["A10G"],
    "a40": ["A40"],
    "l4": ["L4"],
    "l40s": ["L40S", "NVIDIA L40S"],
    "a100-80gb-sxm": ["A100", "a100_sxm", "A100-80GB", "a100-80gb", "A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"],
    "a100-40gb-sxm": ["A100-SXM4-40GB", "A100-40GB"],
    "a100-80gb-pcie": ["A100-PCIe", "A100-PCIe-80GB"],
    "a100-40gb-pcie": ["A100-PCIe-40GB"],
    "a800-80gb-sxm": ["A800"],
    "h100-80gb-sxm": ["H100", "h100_sxm", "H100-80GB", "h100-80gb", "H100-SXM5-80GB", "NVIDIA H100 80GB HBM3"],
    "h100-80gb-pcie": ["H100-PCIe"],
    "h100-96gb-sxm-hbm2e": ["H100-SXM5-96GB-HBM2e-500W"],
    "h100-94gb-nvl": ["H100 NVL"],
    "h800-80gb-sxm": ["H800"],
    "h20": ["H20"],
    "h200-sxm": ["H200", "h200_sxm", "H200-SXM5-141GB"],
    "gh200-96gb": ["GH200"],
    "gh200-144gb": ["GH200-HBM3e"],
    "b200-sxm": ["B200", "b200_sxm"],
    "b300-sxm": ["B300", "b300_sxm"],
    "gb200": ["GB200", "GB200-NVL72"],
    "gb300": ["GB300", "GB300-NVL72"],
    "rtx-pro-6000-server": ["RTX PRO 6000", "RTX PRO 6000 Blackwell Server Edition"],
    "rtx-pro-6000-workstation": ["RTX PRO 6000 Blackwell Workstation Edition"],
    "quadro-rtx-6000": ["Quadro RTX 6000", "RTX6000"],
    "p100-16gb-pcie": ["P100"],
    "mi250x-gcd": ["MI250X"],
    "mi300x": ["MI300X"],
    "mi355x": ["MI355X"],
    "tpu-v5p": ["TPU v5p"],
    "tpu-v6e": ["TPU v6e", "Trillium"],
    "gaudi3": ["Gaudi 3"],
    "gaudi2": ["Gaudi 2"],
    "tpu-v5e": ["TPU v5e"],
    "mi325x": ["MI325X", "mi325x_256gb"],
    "mi210": ["MI210"],
    "rtx-a6000": ["RTX A6000", "A6000"],
    "rtx-6000-ada": ["RTX 6000 Ada"],
    "rtx-2080-ti": ["RTX 2080 Ti"],
    "rtx-3090": ["RTX 3090", "GeForce RTX 3090"],
    "rtx-4090": ["RTX4090", "NVIDIA GeForce RTX 4090"],
    "rtx-5090": ["RTX 5090"],
    "l20": ["L20"],
}


def test_all_accelerators_are_spelt_here() -> None:
    assert sorted(SPELLINGS) == sorted(NAMES["accelerator"])


@pytest.mark.parametrize(("name", "spellings"), SPELLINGS.items(), ids=SPELLINGS)
def test_accelerator_is_found_by_what_people_write(name: str, spellings: list[str]) -> None:
    for spelling in spellings:
        assert accelerator(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("a100_dgx", "dgx-a100"),
        ("h100_dgx", "dgx-h100"),
        ("a100_pairwise_nvlink", "a100-pairwise-nvlink"),
        ("h100_pairwise_nvlink", "h100-pairwise-nvlink"),
        ("AWS p4de.24xlarge", "aws-p4de"),
        ("AWS p5.48xlarge", "aws-p5"),
        ("AWS p5.48xlarge (EKS)", "aws-p5"),
        ("g5.48xlarge", "aws-g5"),
        ("DGX-2", "dgx-2"),
        ("GB200 NVL72", "gb200-nvl72"),
    ],
)
def test_node_is_found_by_what_people_write(spelling: str, name: str) -> None:
    assert node(spelling).name == name


@pytest.mark.parametrize("spelling", ["SM90", "SM100", "H100-120GB", "A100-64GB", "MI300A", "RTX 5000 Ada"])
def test_name_that_fits_nothing_is_not_matched_to_a_neighbour(spelling: str) -> None:
    with pytest.raises(UnknownName):
        find("accelerator", spelling)


# Published arithmetic

TENSOR_FLOP_PER_CLOCK = {
    # Dense 16-bit FLOP of one SM or CU in one clock = tensor cores x FMA x 2, by the makers' architecture papers:
    # Volta and Turing 8 x 64, GA100 4 x 256, GA102 and Ada 4 x 128, GH100 4 x 512, GB100 4 x 1024, CDNA 4 4 x 512.
    "v100-16gb-sxm": 1024,
    "v100-32gb-sxm": 1024,
    "v100-16gb-pcie": 1024,
    "t4": 1024,
    "quadro-rtx-6000": 1024,
    "a100-80gb-sxm": 2048,
    "a100-40gb-sxm": 2048,
    "a100-80gb-pcie": 2048,
    "a100-40gb-pcie": 2048,
    "a800-80gb-sxm": 2048,
    "a10": 1024,
    "a40": 1024,
    "l4": 1024,
    "l40s": 1024,
    "h100-80gb-sxm": 4096,
    "h100-96gb-sxm-hbm2e": 4096,
    "h800-80gb-sxm": 4096,
    "h200-sxm": 4096,
    "gh200-96gb": 4096,
    "gh200-144gb": 4096,
    "b200-sxm": 8192,
    "gb200": 8192,
    "b300-sxm": 8192,
    "gb300": 8192,
    "mi355x": 4096,
    "rtx-a6000": 1024,
    "rtx-6000-ada": 1024,
    # GeForce boards sum in 32 bits at half that rate
    "rtx-2080-ti": 512,
    "rtx-3090": 512,
    "rtx-4090": 512,
    "rtx-5090": 512,
    "mi325x": 2048,
    "mi300x": 2048,
    "mi210": 1024,
}


@pytest.mark.parametrize(("name", "flop_per_clock"), TENSOR_FLOP_PER_CLOCK.items(), ids=TENSOR_FLOP_PER_CLOCK)
def test_peak_is_units_times_clock(name: str, flop_per_clock: int) -> None:
    chip = accelerator(name)
    assert chip.units * chip.clock * flop_per_clock == pytest.approx(chip.peak["fp16"], rel=0.05)


@pytest.mark.parametrize(
    ("name", "bus_bits", "bit_per_s_and_pin"),
    [
        # Width of the memory bus and rate of a pin, as the TechPowerUp database and the makers list them.
        ("a100-40gb-sxm", 5120, 2.43e9),
        ("a100-40gb-pcie", 5120, 2.43e9),
        ("a100-80gb-pcie", 5120, 3.024e9),
        ("a100-80gb-sxm", 5120, 3.186e9),
        ("v100-16gb-pcie", 4096, 1.752e9),
        ("v100-32gb-sxm", 4096, 1.752e9),
        ("p100-16gb-pcie", 4096, 1.43e9),
        ("t4", 256, 10e9),
        ("quadro-rtx-6000", 384, 14e9),
        ("a10", 384, 12.5e9),
        ("a10g", 384, 12.5e9),
        ("a40", 384, 14.5e9),
        ("l4", 192, 12.5e9),
        ("l40s", 384, 18e9),
        ("b200-sxm", 7680, 7.992e9),
        ("rtx-pro-6000-workstation", 512, 28e9),
        ("mi250x-gcd", 4096, 3.2e9),
    ],
)
def test_memory_bandwidth_is_bus_times_pin_rate(name: str, bus_bits: int, bit_per_s_and_pin: float) -> None:
    assert accelerator(name).memory.bandwidth == pytest.approx(bus_bits * bit_per_s_and_pin / 8, rel=0.03)


@pytest.mark.parametrize("name", NAMES["accelerator"])
def test_half_the_bits_give_twice_the_rate(name: str) -> None:
    peak = accelerator(name).peak
    if "bf16" in peak and "fp16" in peak:
        assert peak["bf16"] == peak["fp16"]
    sixteen = peak.get("bf16", peak.get("fp16", 0))
    if "fp8" in peak and accelerator(name).vendor in ("nvidia", "amd"):
        assert peak["fp8"] == pytest.approx(2 * sixteen, rel=0.02)
    if "tf32" in peak and name != "a10g":  # the A10G's tensor cores are halved for 16-bit formats only
        assert peak["tf32"] == pytest.approx(sixteen / 2, rel=0.02)


@pytest.mark.parametrize(
    ("name", "bf16", "fp8", "fp4", "bandwidth", "memory_gb", "limit_w"),
    [
        # Data-sheet figures as public tables collect them: TFLOP/s dense, TB/s, GB, W.
        ("a100-80gb-sxm", 312, None, None, (2.039, 2.039), 85.9, 400),
        ("a100-80gb-pcie", 312, None, None, (1.935, 1.935), 85.9, 300),
        ("h100-80gb-sxm", 989, 1978, None, (3.35, 3.35), 85.9, 700),
        ("h100-80gb-pcie", 756.5, 1513, None, (2.0, 2.0), 85.9, 350),
        ("h200-sxm", 989, 1978, None, (4.8, 4.8), 151.4, 700),
        ("b200-sxm", 2250, 4500, 9000, (7.7, 8.0), 193.3, 1000),
        ("gb200", 2500, 5000, 10000, (8.0, 8.0), 198.7, 1200),
        ("b300-sxm", 2250, 4500, 14000, (7.75, 8.0), 288.4, 1100),
        ("gb300", 2500, 5000, 15000, (8.0, 8.0), 298.0, 1400),
        ("l40s", 362, 733, None, (0.864, 0.864), 48.3, 350),
        ("rtx-pro-6000-server", 468, None, None, (1.597, 1.597), None, None),
        ("rtx-pro-6000-workstation", 503, None, None, (1.792, 1.792), None, None),
    ],
)
def test_agrees_with_collected_data_sheets(
    name: str,
    bf16: float,
    fp8: float | None,
    fp4: float | None,
    bandwidth: tuple[float, float],
    memory_gb: float | None,
    limit_w: float | None,
) -> None:
    chip = accelerator(name)
    assert chip.peak["bf16"] == pytest.approx(bf16 * 1e12, rel=0.002)
    for dtype, value in (("fp8", fp8), ("fp4", fp4)):
        if value is not None:
            assert chip.peak[dtype] == pytest.approx(value * 1e12, rel=0.002)  # type: ignore[index]
    assert bandwidth[0] * 1e12 <= chip.memory.bandwidth <= bandwidth[1] * 1e12
    if memory_gb is not None:
        assert chip.memory.capacity == pytest.approx(memory_gb * 1e9, rel=0.002)
    if limit_w is not None:
        assert chip.power.limit == limit_w


@pytest.mark.parametrize(
    ("name", "units", "clock_ghz", "l2_mb"),
    [
        ("a100-80gb-sxm", 108, 1.41, 40),
        ("h100-80gb-sxm", 132, 1.83, 50),
        ("h200-sxm", 132, 1.83, 50),
        ("b200-sxm", 148, 1.85, 126),
        ("gb200", 148, 2.06, 126),
        ("b300-sxm", 148, 1.92, None),
        ("gb300", 152, 1.92, None),
        ("l40s", 142, 2.52, 96),
        ("rtx-pro-6000-server", 188, 2.4, None),
    ],
)
def test_agrees_with_collected_chip_tables(name: str, units: int, clock_ghz: float, l2_mb: int | None) -> None:
    chip = accelerator(name)
    assert chip.units == units
    assert chip.clock == pytest.approx(clock_ghz * 1e9, rel=0.02)
    if l2_mb is not None:
        assert chip.l2 == l2_mb * 2**20


def test_h100_and_its_server_are_the_documented_example() -> None:
    chip, box = accelerator("h100-80gb-sxm"), node("dgx-h100")
    assert chip.vendor == "nvidia"
    assert chip.architecture == "hopper"
    assert {key: chip.peak[key] for key in ("bf16", "fp16", "fp8", "int8")} == {  # type: ignore[index]
        "bf16": 989e12, "fp16": 989e12, "fp8": 1979e12, "int8": 1979e12,
    }  # fmt: skip
    assert (chip.memory.capacity, chip.memory.bandwidth, chip.l2) == (80 * GIB, 3.35e12, 50 * 2**20)
    assert (chip.units, chip.clock, chip.power.limit, chip.power.idle) == (132, 1.83e9, 700, 72)
    assert box.accelerators.count == 8
    assert [(link.name, link.type, link.shared_by) for link in box.links] == [
        ("nvlink", "nvswitch", 1),
        ("pcie", "pcie", 2),
    ]
    assert (link_rate("dgx-h100", "nvlink"), box.links[0].latency) == (450e9, 1e-6)
    assert box.nics is not None
    assert (box.nics.count, box.nics.bandwidth, box.nics.affinity) == (8, 50e9, "one-per-accelerator")
    tiers = {tier.name: (tier.capacity, tier.read, tier.write, tier.latency, tier.link) for tier in box.tiers}
    assert tiers["ddr"] == (2 * 2**40, 300e9, 300e9, pytest.approx(90e-9), "pcie")
    assert tiers["nvme"] == (30e12, 27e9, 14e9, pytest.approx(80e-6), "pcie")
    assert box.power is not None
    assert (box.power.limit, box.power.idle, box.power.host) == (10200, 2800, 1200)


# Nodes and networks


@pytest.mark.parametrize(
    ("name", "accelerators", "link", "link_gb_per_s", "nic_gb_per_s_each_rank"),
    [
        # Rates of one direction: DGX user guides, OLCF Frontier user guide, AMD ROCm blog, AWS nccl-tests READMEs.
        ("dgx-a100", 8, "nvlink", 12 * 25, 25),
        ("dgx-h100", 8, "nvlink", 18 * 25, 50),
        ("dgx-h200", 8, "nvlink", 18 * 25, 50),
        ("dgx-b200", 8, "nvlink", 18 * 50, 50),
        ("gb200-nvl72", 72, "nvlink", 18 * 50, 50),
        ("hgx-h800", 8, "nvlink", 200, 50),
        ("dgx-2", 16, "nvlink", 6 * 25, 6.25),
        ("hgx-mi300x", 8, "xgmi", 7 * 64, 50),
        ("frontier-node", 8, "gcd-pair", 200, 12.5),
        ("hgx-a100-roce", 8, "nvlink", 300, 25),
        ("aws-p4de", 8, "nvlink", 300, 6.25),
        ("aws-p5", 8, "nvlink", 450, 50),
        ("tpu-v5p-64", 64, "ici", 600, 6.25),
    ],
)
def test_rates_of_a_rank(
    name: str, accelerators: int, link: str, link_gb_per_s: float, nic_gb_per_s_each_rank: float
) -> None:
    box = node(name)
    assert box.accelerators.count == accelerators
    assert link_rate(name, link) == pytest.approx(link_gb_per_s * 1e9)
    assert box.nics is not None
    rate = box.nics.count * box.nics.bandwidth / accelerators
    assert rate == pytest.approx(nic_gb_per_s_each_rank * 1e9)


@pytest.mark.parametrize(("name", "gb_per_s"), [("dgx-2", 15.75), ("dgx-a100", 31.5), ("dgx-h100", 63.0)])
def test_pcie_rate_follows_from_its_generation(name: str, gb_per_s: float) -> None:
    assert link_rate(name, "pcie") == pytest.approx(gb_per_s * 1e9, rel=1e-3)


def test_host_memory_of_the_published_offloading_machine() -> None:
    # FlexGen (arXiv 2303.06865), Table 1: one T4, 208 GB of DRAM, 1.5 TB of flash read at 2 GB/s, written at 1 GB/s.
    tiers = {tier.name: tier for tier in node("t4-workstation").tiers}
    assert tiers["ddr"].capacity == 208e9
    assert (tiers["nvme"].capacity, tiers["nvme"].read, tiers["nvme"].write) == (1.5e12, 2e9, 1e9)


@pytest.mark.parametrize(
    ("name", "nodes", "leaves", "spines", "cores"),
    [
        # Switch counts of the NVIDIA DGX SuperPOD reference architecture (32-node units of H100 or B200).
        ("superpod-b200", 64, 16, 8, 0),
        ("superpod-h100-4su", 128, 32, 16, 0),
        ("superpod-b200-4su", 128, 32, 16, 0),
        ("superpod-h100-16su", 512, 128, 128, 64),
        ("superpod-b200-64su", 2048, 512, 512, 256),
    ],
)
def test_superpod_has_the_published_switches(name: str, nodes: int, leaves: int, spines: int, cores: int) -> None:
    machine = resolve_cluster(name, Path())
    assert machine.node.nics is not None
    network = clos(machine.cluster.fabric, machine.node.nics, machine.nodes)
    assert (machine.nodes, network.leaves, network.spines, network.cores) == (nodes, leaves, spines, cores)
    assert network.oversubscription == 1


def test_24k_cluster_has_eight_pods_of_3072() -> None:
    # Meta: racks of 16 accelerators, 192 racks in a pod without oversubscription, eight pods, 1:7 between them.
    machine = resolve_cluster("llama3-24k-roce", Path())
    assert machine.node.nics is not None
    network = clos(machine.cluster.fabric, machine.node.nics, machine.nodes)
    assert machine.accelerators == 24576
    assert (network.pods, network.leaves_per_pod, network.hosts_per_pod * 8) == (8, 192, 3072)
    assert (network.oversubscription, network.core_oversubscription) == (1, 7)


@pytest.mark.parametrize(("name", "accelerators"), [("tpu-v5p-pod", 8960), ("tpu-v6e-pod", 256), ("frontier", 75264)])
def test_size_of_a_whole_machine(name: str, accelerators: int) -> None:
    # Google Cloud documentation of the TPU v5p and v6e; Frontier has 9,408 nodes of 8 GCDs.
    assert resolve_cluster(name, Path()).accelerators == accelerators


def test_edges_example_and_its_csv_say_the_same() -> None:
    path = CATALOGUE / "clusters" / "edges-uneven-4.csv"
    edges = read_edges(path)
    assert edges == find("cluster", "edges-uneven-4").fabric.edges
    with path.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == ["a", "b", "bandwidth"]


def test_every_accelerator_is_held_by_a_node() -> None:
    # a measured run names an accelerator; without a node its links are unknown
    held = {find("accelerator", find("node", name).accelerators.type).name for name in names("node")}
    assert set(names("accelerator")) == held
