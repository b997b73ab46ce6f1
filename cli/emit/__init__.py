"""Launch arguments of an answer's plan, one file for each launch system."""

from collections.abc import Callable

from cli.emit.deepspeed import deepspeed
from cli.emit.megatron_lm import megatron_lm
from cli.emit.torchtitan import torchtitan
from solvers.result import Result

SYSTEMS: dict[str, Callable[[Result], str]] = {
    "megatron-lm": megatron_lm,
    "torchtitan": torchtitan,
    "deepspeed": deepspeed,
}
"""Name of a launch system of training -> what writes its script."""

ENGINES = ("vllm", "sglang", "trtllm")
"""Names of the inference engines of `cli.emit.engines`."""
