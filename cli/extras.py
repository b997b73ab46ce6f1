"""What a command writes beside its answer, or in its place: a picture, a launch script."""

from collections.abc import Callable, Mapping
from pathlib import Path

import typer

from cli.emit import SYSTEMS
from cli.options import one_of, save
from hardware.faults import Fault, InputError
from solvers.result import Result


def check(system: str | None, picture: Path | None, systems: Mapping[str, Callable[[Result], str]] = SYSTEMS) -> None:
    """Refuse what cannot be written: before the search, not after it.

    Parameters
    ----------
    system : str or None
        Launch system to write a script for.
    picture : Path or None
        Where to draw the answer.
    systems : mapping
        Those there are.

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


def draw(result: Result, picture: Path | None) -> None:
    """Draw an answer, if that was asked for.

    Parameters
    ----------
    result : Result
        The answer.
    picture : Path or None
        Where to draw it.

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
        plots.draw(result, picture)
    except OSError as error:
        raise InputError([Fault(f"--plot {picture}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None


def emit(
    result: Result,
    system: str | None,
    output: Path | None,
    systems: Mapping[str, Callable[[Result], str]] = SYSTEMS,
) -> bool:
    """Write what launches an answer's plan, if that was asked for.

    Parameters
    ----------
    result : Result
        The answer.
    system : str or None
        The launch system.
    output : Path or None
        Where to write; None is standard output.
    systems : mapping
        Those there are.

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
    text = systems[system](result)
    if output is None:
        typer.echo(text, nl=False)
    else:
        save(text, output, "--output")
    return True
