"""Where the state of a model lives: one planner for each kind of workload.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.kv.plan(solvers.kv.load(source, Path(".")))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardware.yaml_source import Source
from solvers import kv_elsewhere, kv_finetune, kv_serve
from solvers.kv_elsewhere_question import ElsewhereQuestion, ElsewhereScenario, is_elsewhere, load_elsewhere
from solvers.kv_finetune_question import FinetuneQuestion, FinetuneScenario, is_finetune, load_finetune
from solvers.kv_scenario import KvScenario, kv_schema, load_kv
from solvers.result import Result


def load(source: Source, base_dir: Path) -> KvScenario | FinetuneScenario | ElsewhereScenario:
    """Check a scenario.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    if is_finetune(source):
        return load_finetune(source, base_dir)
    return load_elsewhere(source, base_dir) if is_elsewhere(source) else load_kv(source, base_dir)


def plan(
    scenario: KvScenario | FinetuneScenario | ElsewhereScenario,
    *,
    top: int = 5,
    time_limit_s: float | None = None,
    gap: float | None = None,
) -> Result:
    """Find the best plan.

    Parameters
    ----------
    scenario : KvScenario or FinetuneScenario or ElsewhereScenario
        The question.
    top : int
        How many alternatives to list.
    time_limit_s : float
        Wall time of the search; none if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.
    """
    if isinstance(scenario, FinetuneScenario):
        return kv_finetune.plan(scenario, top=top, time_limit_s=time_limit_s, gap=gap)
    if isinstance(scenario, ElsewhereScenario):
        return kv_elsewhere.plan(scenario, top=top, time_limit_s=time_limit_s, gap=gap)
    return kv_serve.plan(scenario, top=top, time_limit_s=time_limit_s, gap=gap)


def predict(scenario: KvScenario | FinetuneScenario | ElsewhereScenario) -> Result:
    """Cost the plan that a scenario gives."""
    if isinstance(scenario, FinetuneScenario):
        return kv_finetune.predict(scenario)
    if isinstance(scenario, ElsewhereScenario):
        return kv_elsewhere.predict(scenario)
    return kv_serve.predict(scenario)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of all kinds of scenario."""
    written = [kv_schema(), FinetuneQuestion.model_json_schema(), ElsewhereQuestion.model_json_schema()]
    definitions: dict[str, Any] = {}
    for one in written:
        definitions |= one.pop("$defs", {})
    return {"anyOf": written, "$defs": definitions}
