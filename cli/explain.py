"""A term of a breakdown: its equation, its source, and where it stands."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from cli.export import to_csv
from cli.options import Format, one_of, write_answer
from cli.tables import table
from perfmodel.equations import Explanation
from solvers.result import Result

_HEAD = ("path", "seconds", "hidden_seconds", "bound")


def write(
    result: Result, name: str, known: Mapping[str, Explanation], form: Format | None, output: Path | None
) -> None:
    """Write what a term of an answer's breakdown is.

    Parameters
    ----------
    result : Result
        The answer.
    name : str
        Name of the term.
    known : mapping
        Explanations of the terms of the kind.
    form, output
        How and where to write.
    """
    term = one_of("term", name, tuple(known))
    found = occurrences(result, term)
    write_answer(
        form,
        output,
        table=lambda: shown(term, known[term], found),
        data=lambda: data(term, known[term], found),
        csv=lambda: csv(term, known[term], found),
    )


def occurrences(result: Result, name: str) -> list[dict[str, Any]]:
    """Find a term in an answer's breakdown.

    Parameters
    ----------
    result : Result
        The answer.
    name : str
        Name of the term.

    Returns
    -------
    list of dict
        Path from the root, seconds [s], hidden seconds [s] and bound of every node of that name.
    """

    def walk(node: Mapping[str, Any], path: str) -> Iterator[dict[str, Any]]:
        if str(node["name"]).removesuffix(", hidden") == name:
            hidden = node.get("hidden_seconds", 0.0)
            yield {"path": path, "seconds": node["seconds"], "hidden_seconds": hidden, "bound": node.get("bound", "")}
        for child in node.get("children") or ():
            yield from walk(child, f"{path} > {child['name']}")

    return list(walk(result.breakdown, str(result.breakdown["name"]))) if result.breakdown else []


def data(name: str, known: Explanation, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the explanation as JSON holds it."""
    return {
        "term": name,
        "equation": known.equation,
        "source": known.source,
        "code": known.code,
        "occurrences": [dict(entry) for entry in found],
    }


def csv(name: str, known: Explanation, found: Sequence[Mapping[str, Any]]) -> str:
    """Return one row for every place the term stands at."""
    rows = [(name, known.equation, known.source, *(entry[key] for key in _HEAD)) for entry in found]
    return to_csv(("term", "equation", "source", "path", "seconds_s", "hidden_s", "bound"), rows)


def shown(name: str, known: Explanation, found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Show the explanation in tables that fit eighty columns."""
    rows = [
        (entry["path"], f"{entry['seconds']:.6g} s", f"{entry['hidden_seconds']:.6g} s", entry["bound"])
        for entry in found
    ]
    head = ("where", "time", "hidden", "bound")
    parts: list[RenderableType] = [
        table(
            "",
            ("", ""),
            [("term", name), ("equation", known.equation), ("source", known.source), ("code", known.code)],
            numbers=(),
        )
    ]
    if rows:
        parts.append(table("In this plan", head, rows, numbers=(1, 2)))
    return Group(*parts)
