"""Answers about what is computed elsewhere, as tables."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.


def shown(result: "Result", top: int) -> "RenderableType":
    """Show an answer that has a plan.

    Parameters
    ----------
    result : Result
        The answer.
    top : int
        How many alternatives to show.
    """
    from dataclasses import replace

    from rich.console import Group

    from cli import render
    from cli.kv_finetune import bought
    from cli.tables import compact, quantity, table, text
    from hardware.units import format_quantity

    said = dict(result.prediction or {})
    used, rooms = said.pop("memory_bytes"), said.pop("memory_available_bytes")
    stays, purchases = said.pop("stays", None), said.pop("purchases", None)
    plan = result.plan or {}
    fields = [(text(key), text(quantity(key, value))) for key, value in plan.items()]
    held = [
        (text(name), *(format_quantity(sizes[name], "bytes") for sizes in (used, rooms)))  # of one device
        for name in used
    ]
    parts = [table("Plan", ("", ""), fields), table("Memory of one device", ("", "used", "of"), held)]
    if stays is not None:
        parts.append(table("Best with nothing elsewhere", ("",), [(text(compact(stays)),)], numbers=()))
    if purchases:
        parts.append(bought(purchases))
    return render.result(replace(result, prediction=said), top, Group(*parts))
