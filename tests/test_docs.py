"""What the documentation says is so: links exist, commands run, tables of keys and constants are the program's."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import find, names
from perfmodel.calibration import training_calibration
from perfmodel.framework import Framework, frameworks
from perfmodel.training_fit import PARAMETERS
from perfmodel.validate_training import FIELD_DEFAULTS
from solvers.scenario import load_train, train_schema
from solvers.train_space import SWITCHES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
ALL_FILES = "../shared/data/training/*.csv"
DATA = Path(os.environ.get("PERFMODEL_DATA", ROOT.parent / "shared" / "data"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    """Contents of the fenced blocks of a language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def cells(page: str, columns: str) -> list[list[str]]:
    """Rows of the tables of a page whose head begins with these columns."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    found: list[list[str]] = []
    inside = False
    for line in lines:
        if not line.startswith("|"):
            inside = False
        elif line.startswith(columns):
            inside = True
        elif inside and not line.startswith("| ---"):
            found.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return found


# --- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


def files_named(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"(?<![\w./-])(?:benchmarks|examples|hardware|perfmodel|solvers|cli|tests|docs)/[\w./-]+", text)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in files_named(page):
        assert (ROOT / name.rstrip(".")).exists(), name


# --- commands ------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every command line of the program in the pages, each once."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("perfmodel "):
                    found[shlex.join(shlex.split(line, comments=True))] = None
    return list(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the pages run: the examples, and what a reader would have put there."""
    place = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "examples", place / "examples")
    shutil.copy(ROOT / "examples" / "llama-3.1-8b-8-h100.yaml", place / "SCENARIO.yaml")
    for block in blocks(ROOT / "docs" / "hardware.md", "yaml"):
        described = yaml.safe_load(block)
        (place / f"{described['name']}.yaml").write_text(block)
    done = CliRunner().invoke(app, ["plan", "train", str(place / "SCENARIO.yaml"), "-o", str(place / "plan.json")])
    assert done.exit_code == 0, done.stderr
    return place


def measured(name: str) -> str:
    """Find a file of measurements; one file stands for all of them, and for the reader's own."""
    if name == "NCCL.csv":
        return str(DATA / "kernels" / "nccl.csv.gz")
    if "/serving/" in name:
        return str(DATA / "serving" / Path(name).name)
    if name == "POWER.csv":
        return str(DATA / "kv_power" / "node_idle_busy_power.csv")
    if name == "POINTS.csv":
        return str(DATA / "kernels" / "splitwise_e2e.csv.gz")
    if name == "KERNELS.csv" or name.endswith(".gz"):
        return str(DATA / "kernels" / ("gemm.csv.gz" if name == "KERNELS.csv" else Path(name).name))
    folder = DATA / next((part for part in ("network", "kv_power") if f"/{part}/" in name), "training")
    return str(folder / ("megatron_sc21_a100.csv" if name in ("RUNS.csv", ALL_FILES) else Path(name).name))


LONG = ("kv-buy-8b", "power-polca-row", "sequence-flexsp", "calibrate KERNELS")
"""Parts of commands that take over three seconds."""


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, marks=[pytest.mark.slow] * any(part in command for part in LONG)) for command in commands()],
)
def test_commands_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "bench":
        pytest.skip("needs a CUDA device")
    if words[0] in ("validate", "calibrate"):
        if not DATA.is_dir():
            pytest.skip(f"no {DATA}: set PERFMODEL_DATA")
        words = [measured(word) if word.endswith((".csv", ".csv.gz")) else word for word in words]
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (command, done.stdout, done.stderr)
    assert "infeasible" not in done.stdout


def test_the_pages_hold_commands() -> None:
    assert len(commands()) > 10


# --- scenarios -----------------------------------------------------------------------------------------------------


def scenarios() -> list[str]:
    return [block for page in PAGES for block in blocks(page, "yaml") if block.startswith("kind: train")]


@pytest.mark.parametrize("text", scenarios())
def test_scenarios_of_the_pages_are_scenarios(text: str, tmp_path: Path) -> None:
    from hardware.yaml_source import read_yaml

    load_train(read_yaml(text, "page"), tmp_path)


def kind_of_value(schema: dict[str, Any]) -> str:
    """Write the type of a key for a person."""
    if "anyOf" in schema:
        kinds = [kind_of_value(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(kinds)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {kind_of_value(schema['items'])}"
    if schema.get("type") == "integer":
        high = schema.get("maximum")
        return f"whole number, {schema['minimum']} " + (f"to {high}" if high is not None else "or more")
    if "$ref" in schema:
        return "mapping"
    return {"number": "number above 0", "boolean": "`true`, `false`", "string": "text", "object": "mapping"}[
        schema["type"]
    ]


def written(value: Any) -> str:
    if value is None:
        return "-"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def keys(schema: dict[str, Any], part: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Walk through key, type, default and meaning of everything a scenario may hold."""
    for name, entry in part["properties"].items():
        key = f"{above}{name}"
        inner = next(
            (choice["$ref"] for choice in [entry, *entry.get("anyOf", [])] if "$ref" in choice),
            None,
        )
        default = "required" if name in part.get("required", []) else written(entry.get("default"))
        if inner:
            default = "required" if default == "required" else "-"
        yield f"`{key}`", kind_of_value(entry), default, entry["description"].rstrip(".")
        if inner:
            yield from keys(schema, schema["$defs"][inner.rpartition("/")[2]], f"{key}.")


def test_the_table_of_keys_is_the_schema() -> None:
    schema = train_schema()
    table = [(key, kind, default, meaning) for key, kind, _, default, meaning in cells("scenario.md", "| key | type |")]
    assert table == list(keys(schema, schema))


def test_the_table_of_search_defaults_names_every_list() -> None:
    known = set(train_schema()["$defs"]["TrainSearch"]["properties"])
    assert {row[0].strip("`") for row in cells("scenario.md", "| list | searched")} == known
    assert set(SWITCHES) < known


# --- accuracy ------------------------------------------------------------------------------------------------------

YES = {True: "yes", False: "no"}


def behaviour(framework: Framework) -> list[str]:
    own = framework.defaults
    switches = (own.overlap_dp, own.overlap_tp, framework.overlap_pp)
    return [
        framework.name, own.recompute, str(own.zero_stage), *(YES[switch] for switch in switches),
        framework.attention, YES[framework.dropout], framework.selective,
    ]  # fmt: skip


def sizes(framework: Framework) -> list[str]:
    states = framework.states
    return [
        framework.name, f"{states.weight:g}", f"{states.gradient:g}", f"{states.optimizer:g}",
        f"{states.gradient_traffic:g}, {states.weight_traffic:g}", f"{framework.logit_bytes:g}",
        f"{framework.host_per_kernel * 1e6:g} us", f"{framework.step_overhead * 1e3:g} ms",
    ]  # fmt: skip


def test_the_defaults_of_frameworks_are_those_of_their_files() -> None:
    known = [frameworks()[name] for name in sorted(frameworks())]
    assert cells("accuracy.md", "| framework | recompute") == [behaviour(framework) for framework in known]
    assert cells("accuracy.md", "| framework | weight") == [sizes(framework) for framework in known]
    names = [[framework.name, ", ".join(framework.matches) or "-"] for framework in known]
    assert cells("accuracy.md", "| framework | also named") == names


def test_the_defaults_of_fields_are_listed() -> None:
    first = cells("accuracy.md", "| blank field")[0]
    assert first[0] == ", ".join(f"`{name}`" for name in FIELD_DEFAULTS)
    assert {first[1]} == {str(value) for value in FIELD_DEFAULTS.values()}


def test_the_constants_are_those_that_ship() -> None:
    table = cells("accuracy.md", "| constant |")
    assert [row[0].strip("`") for row in table] == [parameter.field for parameter in PARAMETERS]
    shipped = training_calibration()["constants"]
    for parameter, row in zip(PARAMETERS, table, strict=True):
        number, _, unit = row[2].partition(" ")
        value = float(number) * {"": 1.0, "us": 1e-6, "ms": 1e-3}[unit]
        if parameter.owner == "constants":
            assert value == shipped[parameter.field]
        elif parameter.owner == "*":
            others = {p.owner for p in PARAMETERS if p.field == parameter.field}
            for framework in frameworks().values():
                assert framework.name in others or getattr(framework, parameter.field) == pytest.approx(value)
        else:
            assert getattr(frameworks()[parameter.owner], parameter.field) == pytest.approx(value)


def test_the_spreads_are_those_that_ship() -> None:
    spreads = {row[0].strip("`"): float(row[1]) for row in cells("accuracy.md", "| spread |")}
    assert spreads == training_calibration()["spreads"]
    gain = re.search(r"spread of\s+([\d.]+) \(`gain_spread`", (ROOT / "docs" / "accuracy.md").read_text())
    assert gain and float(gain[1]) == training_calibration()["gain_spread"]


# --- hardware ------------------------------------------------------------------------------------------------------


def test_families_are_those_of_the_catalogue() -> None:
    written = {}
    for families, inherits, widen, measured in cells("hardware.md", "| family |"):
        for name in families.split(", "):
            written[name] = (inherits, widen, measured)
    known = {}
    for name in names("efficiency"):
        family = find("efficiency", name)
        widen = f"{family.widen:g}" if family.inherits else "-"
        known[name] = (family.inherits or "-", widen, family.reference or "-")
    assert written == known


@pytest.mark.parametrize("text", list(blocks(ROOT / "docs" / "hardware.md", "yaml")))
def test_keys_of_the_examples_are_explained(text: str) -> None:
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    for key in yaml.safe_load(text):
        assert f"`{key}" in page or key in ("kind", "name", "aliases", "vendor", "node", "nodes", "notes"), key
