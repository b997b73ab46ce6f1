"""Inference engines that a plan of serving can be launched with."""

from collections.abc import Callable

from cli.emit.serving import Launch
from cli.emit.sglang import sglang
from cli.emit.trtllm import trtllm
from cli.emit.vllm import vllm
from solvers.result import Result
from solvers.serve_scenario import ServeScenario

ENGINES: dict[str, Callable[[Result, ServeScenario], Launch]] = {"vllm": vllm, "sglang": sglang, "trtllm": trtllm}
"""Name of an inference engine -> what writes the script that starts its instances."""
