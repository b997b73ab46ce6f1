"""How the program ends: an answer, a fault of the input, or a fault of ours."""

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from hardware.faults import InputError

# Typer brings its own copy of click or the real one, depending on its release; both have this ancestor.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

_DEBUG = "perfmodel.debug"


def debug(context: typer.Context, value: bool) -> None:
    """Remember that `--debug` was given, to whichever command.

    Parameters
    ----------
    context : typer.Context
        Context of the command.
    value : bool
        Whether the option stands there.
    """
    if value:
        context.meta[_DEBUG] = True


class Program(TyperGroup):
    """The program: tells faults of the input, one per line, from faults of its own."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Parameters
        ----------
        ctx : typer.Context
            Context of the program.

        Returns
        -------
        object
            What the command returns.

        Raises
        ------
        typer.Exit
            With status 2 if the input is wrong, with 1 if the program is.
        """
        try:
            return super().invoke(ctx)
        except InputError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
        except (_UsageError, typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exc(file=sys.stderr)
            else:
                said = " ".join(str(error).split())
                text = f"{type(error).__name__}: {said}" if said else type(error).__name__
                typer.echo(f"perfmodel: {text} (a fault of the program; --debug shows where)", err=True)
            raise typer.Exit(1) from None
