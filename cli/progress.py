"""A sign of life for work that takes over a second; on a terminal only, and never on standard output."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

DELAY_S = 1.0
"""How long work may take before anything is shown [s]."""


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[float], None]]:
    """Show that work goes on.

    Parameters
    ----------
    what : str
        What is being done.

    Yields
    ------
    callable
        Takes the share that is done, from 0 to 1; until it is called a bar moves without saying how far.
    """
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)
    lock = threading.Lock()
    over = False

    def start() -> None:
        with lock:
            if not over:
                bar.start()

    timer = threading.Timer(DELAY_S, start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda share: bar.update(task, total=1.0, completed=share)
    finally:
        timer.cancel()
        with lock:
            over = True
            bar.stop()
