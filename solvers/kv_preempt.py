"""What to do with a sequence that has to make room: move its keys and values out and back, or compute them again."""

from __future__ import annotations

from typing import Any

import numpy as np

from perfmodel.kv_equations import swap_time
from perfmodel.offload import Offload, held_bytes
from perfmodel.serving.step import Deployment, Load, step

PAGE_TOKENS = 16
"""Tokens of a page of keys and values, as engines allot memory."""


def preemption(asked: Offload) -> dict[str, Any]:
    """Return how long a sequence in the middle of its answer takes to come back, by what was done with it.

    Parameters
    ----------
    asked : Offload
        The question.

    Returns
    -------
    dict
        ``tokens`` of the sequence, ``recompute_s``, for each tier ``pages_s`` and ``merged_s``, out and back page by
        page and layer by layer, and the ``choice``.

    Notes
    -----
    A copy starts as a kernel that copies nothing does. Pages lie apart, each layer's is a copy of its own; merged, a
    layer is one copy (FastSwitch, arXiv 2411.18424).
    """
    server = asked.server
    tokens = asked.prompt + asked.generated / 2
    again = step(server, Deployment(tp=asked.accelerators), Load(prompts=1.0, prompt_tokens=tokens)).seconds
    size = held_bytes(asked, asked.own_tokens(min(tokens, asked.seen_tokens)))
    name = next(name for name in server.kernels if name.startswith("memory."))
    start_s = server.kernels[name].parameters.launch_s(server.device.clock)
    tiers = []
    times = {"recompute": float(np.asarray(again))}
    for path in asked.paths:
        rates = [min(domain.node_down for domain in path.domains), min(domain.node_up for domain in path.domains)]
        pages = asked.depth * int(np.ceil(tokens / PAGE_TOKENS))
        paged, merged = (
            sum(float(swap_time(size, count, start_s, rate)) for rate in rates) for count in (pages, asked.depth)
        )
        tiers.append({"tier": path.name, "pages_s": paged, "merged_s": merged})
        times[f"swap to {path.name}"] = merged
    choice = min(times, key=lambda name: times[name])
    return {"tokens": tokens, "recompute_s": times["recompute"], "tiers": tiers, "choice": choice}
