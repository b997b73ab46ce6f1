"""The busiest window of recorded requests: what a service is planned for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from perfmodel.request_traces import trace_pieces
from perfmodel.requests import RequestList


def busiest(path: Path, window_s: float) -> RequestList:
    """Return the requests of the window with the most, of windows that follow one another from the first request.

    Parameters
    ----------
    path : Path
        The file; it is read twice, some requests at a time.
    window_s : float
        Length of a window [s].

    Raises
    ------
    InputError
        With every fault of the file.
    """
    counts: Counter[int] = Counter()
    for piece in trace_pieces(path):
        numbers, held = np.unique((piece.arrival_s // window_s).astype(np.int64), return_counts=True)
        counts.update(dict(zip(numbers.tolist(), held.tolist(), strict=True)))
    most = max(counts, key=lambda number: counts[number])
    parts = []
    for piece in trace_pieces(path):
        inside = (piece.arrival_s // window_s).astype(np.int64) == most
        if inside.any():
            parts.append((piece.arrival_s[inside], piece.prompt_tokens[inside], piece.output_tokens[inside]))
    arrival, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
    return RequestList(arrival - arrival[0], prompt, output)
