"""What was fitted on measured training runs, and how far they lie from the predictions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Constants:
    """Constants of a training step beyond operators and collectives.

    Parameters
    ----------
    attention_backward : float
        Share of peak of the attention core's backward pass over its forward pass's.
    sustained : float
        Speed of arithmetic in a step that runs for hours over that of short kernels measured alone: the power limit
        lowers the clock.
    expert_products : float
        Speed of experts' grouped products over that of batched ones of even loads.
    overlap_slowdown : float
        Factor on the time of work and communication while both run.
    host_softness : float
        Exponent of the soft maximum of accelerator and host time.
    """

    attention_backward: float
    sustained: float
    expert_products: float
    overlap_slowdown: float
    host_softness: float


@lru_cache(maxsize=1)
def training_calibration() -> dict[str, Any]:
    """Return ``calibrated/training.yaml``: constants, residuals and where they come from."""
    import yaml

    text = files("perfmodel").joinpath("calibrated/training.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return data


def training_constants() -> Constants:
    """Return the shipped constants of the step."""
    return Constants(**training_calibration()["constants"])
