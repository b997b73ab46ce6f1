"""What a command writes beside its answer, or in its place: a picture, a launch script."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.emit import SYSTEMS
from cli.options import one_of, save
from hardware.faults import Fault, InputError
from solvers.result import Result

if TYPE_CHECKING:
    from solvers.serve_scenario import ServeScenario


def check(system: str | None, picture: Path | None, systems: Collection[str] = tuple(SYSTEMS)) -> None:
    """Refuse what cannot be written: before the search, not after it.

    Parameters
    ----------
    system : str or None
        Launch system to write a script for.
    picture : Path or None
        Where to draw the answer.
    systems : collection of str
        Launch systems that there are.

    Raises
    ------
    InputError
        There is no such system, no such form of pictures, or nothing to draw with.
    """
    if system is not None:
        one_of("--emit", system, tuple(systems))
    if picture is not None:
        from cli import plots

        plots.check(picture)


def draw(result: Result, picture: Path | None, drawing: Callable[[Result, Path], None] | None = None) -> None:
    """Draw an answer, if that was asked for.

    Parameters
    ----------
    result : Result
        The answer.
    picture : Path or None
        Where to draw it.
    drawing : callable
        What draws it; an answer about training if left out.

    Raises
    ------
    InputError
        It cannot be written there.
    """
    if picture is None:
        return
    if result.plan is None:
        typer.echo(f"--plot {picture}: nothing to draw, the answer is {result.status}", err=True)
        return
    from cli import plots

    try:
        (drawing or plots.draw)(result, picture)
    except OSError as error:
        raise InputError([Fault(f"--plot {picture}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None


def emit(result: Result, system: str | None, output: Path | None) -> bool:
    """Write what launches an answer's plan, if that was asked for.

    Parameters
    ----------
    result : Result
        The answer.
    system : str or None
        The launch system.
    output : Path or None
        Where to write; None is standard output.

    Returns
    -------
    bool
        Whether a script stands in the place of the answer.
    """
    if system is None:
        return False
    if result.plan is None:
        typer.echo(f"--emit {system}: nothing to launch, the answer is {result.status}", err=True)
        return False
    _script(_told_of_cap(SYSTEMS[system](result), result.plan, system), output)
    return True


def emit_serving(result: Result, question: "ServeScenario", system: str | None, output: Path | None) -> bool:
    """Write what launches an answer's deployment, if that was asked for, and tell what the engine cannot express.

    Parameters
    ----------
    result : Result
        The answer.
    question : ServeScenario
        What was asked.
    system : str or None
        The inference engine.
    output : Path or None
        Where to write; None is standard output.

    Returns
    -------
    bool
        Whether a script stands in the place of the answer.
    """
    if system is None:
        return False
    if result.plan is None:
        typer.echo(f"--emit {system}: nothing to launch, the answer is {result.status}", err=True)
        return False
    from cli.emit.engines import ENGINES

    launch = ENGINES[system](result, question)
    for text in launch.missing:
        typer.echo(f"--emit {system}: not expressible: {text}", err=True)
    _script(_told_of_cap(launch.text, result.plan, system), output)
    return True


def _told_of_cap(script: str, plan: Mapping[str, Any], system: str) -> str:
    """Return a script that says to which power accelerators are held, which no launcher does; tell it too."""
    if plan.get("power_cap_w") is None:
        return script
    watts = int(plan["power_cap_w"])
    text = f"not expressible: power_cap_w {watts}: before, on every node, such as nvidia-smi --power-limit={watts}"
    typer.echo(f"--emit {system}: {text}", err=True)
    first, _, rest = script.partition("\n")
    return f"{first}\n# {text}\n{rest}"


def _script(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
    else:
        save(text, output, "--output")
