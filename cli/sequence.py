"""Commands about sequences of unequal length on groups of accelerators."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.answer import ask, need_plan, stop_at, write_result
from cli.options import Debug, Explain, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, write_answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.result import Result
    from solvers.sequence_scenario import SequenceScenario

# Everything slow to import is imported by the command that needs it.

Batches = Annotated[
    Path | None,
    typer.Option("--batches", metavar="DIR", help="Plan every file of lengths in a folder, one after another."),
]

_BATCH_TIME_LIMIT_S = 1.0
_ENDINGS = (".csv", ".csv.gz", ".parquet")
_COLUMNS = (
    "batch", "status", "sequences", "tokens", "schedule", "step_time_s", "best_bound", "gap", "best_static_step_time_s",
    "gain", "running_gain", "solve_time_s",
)  # fmt: skip


def plan_sequence(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    batches: Batches = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """Which group of accelerators computes which of a batch's unequal sequences."""
    from cli import extras

    extras.check(None, plot)
    if batches is not None:
        limit_s = _BATCH_TIME_LIMIT_S if time_limit is None else time_limit
        _write_rows(_stream(scenario, overrides, batches, limit_s), form, output)
        return

    def solve(source: "Source", progress: "Progress") -> "tuple[SequenceScenario, Result]":
        from solvers.sequence import plan
        from solvers.sequence_scenario import load_sequence

        question = load_sequence(source, scenario.parent)
        return question, plan(question, time_limit_s=time_limit, gap=stop_at(gap), progress=progress)

    question, result, given = ask(scenario, overrides, "searching", solve)
    _answer(question, result, given, form, output, top, explain, plot)


def predict_sequence(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """What a scatter of sequences costs."""
    from cli import extras

    extras.check(None, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[SequenceScenario, Result]":
        from solvers.sequence import predict
        from solvers.sequence_scenario import load_sequence

        question = load_sequence(source, scenario.parent)
        need_plan(source, question.given, "plan")
        return question, predict(question)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    _answer(question, result, given, form, output, top, explain, plot)


def _answer(
    question: "SequenceScenario",
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: Path | None,
    top: int,
    explain: str | None,
    plot: Path | None,
) -> None:
    if plot is not None:
        from cli import extras
        from cli.sequence_plot import draw

        extras.draw(result, plot, lambda drawn, file: draw(question, drawn, file))
    if explain is not None:
        from cli import explain as terms
        from perfmodel.sequence_equations import SEQUENCE_EXPLANATIONS

        terms.write(result, explain, SEQUENCE_EXPLANATIONS, form, output)
    else:
        write_result(result, given, form, output, lambda: _shown(result, top), _one_cell(result))


def _one_cell(result: "Result") -> "Result":
    """Return the answer with the memory of all groups as a list: one cell of a row, not a column for each group."""
    from dataclasses import replace

    def listed(prediction: "Mapping[str, Any]") -> dict[str, Any]:
        return {**prediction, "memory_bytes": list(prediction["memory_bytes"].values())}

    if result.prediction is None:
        return result
    others = [{**other, "prediction": listed(other["prediction"])} for other in result.alternatives]
    return replace(result, prediction=listed(result.prediction), alternatives=others)


def _shown(result: "Result", top: int) -> "RenderableType":
    """Show the answer, its plan by size of group."""
    from dataclasses import replace

    from cli import render

    if result.plan is None or result.prediction is None:
        return render.result(result, top)

    def brief(entry: "Mapping[str, Any]") -> dict[str, Any]:
        prediction = {key: value for key, value in entry["prediction"].items() if key != "memory_bytes"}
        plan = {"schedule": entry["plan"]["schedule"], "groups": len(entry["plan"]["groups"])}
        if "remap" in entry["plan"]:
            plan["remap"] = True
        return {**entry, "plan": plan, "prediction": prediction}

    short = replace(
        result,
        prediction={key: value for key, value in result.prediction.items() if key != "memory_bytes"},
        alternatives=[brief(entry) for entry in result.alternatives],
        baseline=brief(result.baseline) if result.baseline else None,
    )
    return render.result(short, top, _groups(result.plan, result.prediction))


def _groups(plan: "Mapping[str, Any]", prediction: "Mapping[str, Any]") -> "RenderableType":
    from cli.tables import number, quantity, table

    groups, memory = plan["groups"], prediction["memory_bytes"]
    degree = {group["id"]: group["degree"] for group in groups}
    rows = []
    for size in sorted(set(degree.values()), reverse=True):
        inside = [entry for entry in plan["assignment"] if degree[entry["group"]] == size]
        tokens = [entry["tokens"] for entry in inside]
        styles = sorted({entry["style"] for entry in inside} - {"none"})
        rows.append(
            (
                number(size),
                number(sum(one == size for one in degree.values())),
                number(len({(entry["group"], entry["micro_step"]) for entry in inside})),
                number(len(inside)),
                number(sum(tokens)),
                number(max(tokens, default=0)),
                quantity("bytes", max(memory[str(key)] for key, one in degree.items() if one == size)),
                ", ".join(styles) or "-",
            )
        )
    heads = ("size", "groups", "micro-\nsteps", "sequences", "tokens", "longest", "memory", "style")
    return table(f"Groups by size (schedule {plan['schedule']})", heads, rows, numbers=range(7))


def _stream(scenario: Path, overrides: list[str] | None, folder: Path, time_limit_s: float) -> list[dict[str, Any]]:
    """Plan the files of a folder in the order of their names."""
    from cli.load import load
    from cli.progress import working

    source = load(scenario, overrides or ())
    with working("searching") as progress:
        from solvers.sequence_scenario import load_sequence

        return _planned(load_sequence(source, scenario.parent), folder, time_limit_s, progress)


def _planned(
    question: "SequenceScenario", folder: Path, time_limit_s: float, progress: "Progress"
) -> list[dict[str, Any]]:
    from hardware.faults import Fault, InputError
    from solvers.backend import OPTIMAL_GAP, relative_gap
    from solvers.sequence import plan_batches
    from solvers.sequence_lengths import read_lengths

    paths = sorted(path for path in folder.glob("*") if path.name.endswith(_ENDINGS)) if folder.is_dir() else []
    if not paths:
        raise InputError([Fault(f"--batches {folder}", 0, 0, "", f"no folder with files {', '.join(_ENDINGS)}")])
    outside = sum(question.costs.outside_s.values())
    rows: list[dict[str, Any]] = []
    spent = saved = 0.0
    lengths = ((path.name, read_lengths(path)) for path in paths)
    for done, answer in enumerate(plan_batches(question, lengths, time_limit_s=time_limit_s), start=1):
        progress(done / len(paths))
        if isinstance(answer, str):
            rows.append({"batch": answer, "status": "infeasible"})
            continue
        time_s, bound = answer.best.makespan_s + outside, answer.bound_s + outside
        static_s = None
        if answer.static is not None:  # the running gain is over the batches that some single size can hold
            static_s = answer.static.makespan_s + outside
            spent, saved = spent + time_s, saved + static_s
        gap = relative_gap(time_s, bound)
        rows.append(
            {
                "batch": answer.name,
                "status": "optimal" if gap <= OPTIMAL_GAP else "time_limit" if answer.cut else "feasible",
                "sequences": len(answer.case.lengths),
                "tokens": int(answer.case.lengths.sum()),
                "schedule": answer.best.plan.schedule,
                "step_time_s": time_s,
                "best_bound": bound,
                "gap": gap,
                "best_static_step_time_s": static_s,
                "gain": static_s and static_s / time_s,
                "running_gain": saved / spent if spent else None,
                "solve_time_s": answer.solve_time_s,
            }
        )
    return rows


def _write_rows(rows: "Sequence[Mapping[str, Any]]", form: "Format | None", output: Path | None) -> None:
    from cli.export import to_csv
    from cli.tables import number, quantity, seconds, table, text

    def shown() -> "RenderableType":
        cells = [
            (
                text(row["batch"]),
                *(
                    (
                        number(row["sequences"]),
                        text(row["schedule"]),
                        seconds(row["step_time_s"]),
                        quantity("gap", row["gap"]),
                        *("-" if row[key] is None else f"{row[key]:.3f}" for key in ("gain", "running_gain")),
                        seconds(row["solve_time_s"]),
                    )
                    if row["status"] != "infeasible"
                    else ("", text("infeasible"), "", "", "", "", "")
                ),
            )
            for row in rows
        ]
        heads = ("batch", "sequences", "schedule", "step", "gap", "gain", "running\ngain", "solved in")
        return table("Batches", heads, cells, numbers=(1, 3, 4, 5, 6, 7))

    write_answer(
        form,
        output,
        table=shown,
        data=lambda: {"kind": "sequence", "batches": [{key: row.get(key) for key in _COLUMNS} for row in rows]},
        csv=lambda: to_csv(_COLUMNS, [[row.get(key) for key in _COLUMNS] for row in rows]),
    )
