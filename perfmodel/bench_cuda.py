"""The kernels of ``bench`` on a CUDA machine: PyTorch's, timed by events around replays of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hardware.faults import Fault, InputError
from perfmodel.bench import WEIGHT_COPIES, Case, Kernel, replays

LAUNCHES = 10
"""Launches of a kernel in one graph; for products a multiple of the copies of the weights."""


def torch_with_cuda() -> Any:
    """Return PyTorch.

    Raises
    ------
    InputError
        Where there is no PyTorch or no CUDA device.
    """
    try:
        torch: Any = import_module("torch")
    except ImportError:
        message = "needs PyTorch on a machine with a CUDA device; there is no PyTorch here (https://pytorch.org)"
        raise InputError([Fault("bench", 0, 0, "", message)]) from None
    if not torch.cuda.is_available():
        message = "needs a CUDA device; this PyTorch sees none"
        raise InputError([Fault("bench", 0, 0, "", message)])
    return torch


class CudaMachine:
    """The first CUDA device.

    Parameters
    ----------
    torch : module
        PyTorch.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.name = str(torch.cuda.get_device_name()).removeprefix("NVIDIA ")
        self.memory_bytes = float(torch.cuda.get_device_properties(0).total_memory)

    def prepare(self, case: Case) -> Kernel:
        """Return a kernel that runs `LAUNCHES` times what the case says.

        Parameters
        ----------
        case : Case
            What to run.
        """
        torch, shape = self.torch, case.shape
        torch.cuda.empty_cache()

        def random(*size: int) -> Any:
            return torch.randn(size, dtype=torch.bfloat16, device="cuda")

        if case.kind == "copy":
            half = max(int(shape["bytes"]) // 2, 1)  # as much is read as is written
            source = torch.zeros(half, dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            return self._captured([lambda: target.copy_(source)] * LAUNCHES)
        if case.kind == "gemm":
            tokens = random(shape["m"], shape["k"])
            weights = [random(shape["n"], shape["k"]) for _ in range(WEIGHT_COPIES)]
            result = torch.empty((shape["m"], shape["n"]), dtype=torch.bfloat16, device="cuda")
            turns = [lambda weight=weight: torch.mm(tokens, weight.T, out=result) for weight in weights]
            return self._captured(turns * (LAUNCHES // WEIGHT_COPIES))
        causal = case.kind == "attention-prefill"
        batch, head_dim = shape["batch"], shape["head_dim"]
        length = shape["seq"] if causal else shape["kv_len"]
        query = random(batch, shape["heads"], length if causal else 1, head_dim)
        key, value = (random(batch, shape["kv_heads"], length, head_dim) for _ in range(2))
        grouped = {"enable_gqa": True} if shape["kv_heads"] != shape["heads"] else {}

        def attend() -> None:
            torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, **grouped)

        return self._captured([attend] * LAUNCHES)

    def _captured(self, launches: Sequence[Any]) -> Kernel:
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            for launch in launches:  # libraries choose their kernels and workspaces before the graph is taken
                launch()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            for launch in launches:
                launch()

        def replay() -> None:
            graph.replay()

        return replay

    def timed(self, kernel: Kernel) -> list[float]:
        """Return the time of one launch in every replay [s].

        Parameters
        ----------
        kernel : callable
            As of `prepare`.
        """
        for _ in range(2):
            self._replay(kernel)
        first = self._replay(kernel)
        return [self._replay(kernel) / LAUNCHES for _ in range(replays(first))]

    def _replay(self, kernel: Kernel) -> float:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        kernel()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3
