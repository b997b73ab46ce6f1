"""Intervals of serving predictions: what measured operating points leave unexplained, by what is predicted."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from perfmodel.kernels.model import Z90


@lru_cache(maxsize=1)
def spreads() -> dict[str, float]:
    """Return the standard deviation of ln(measured/predicted) by what is predicted."""
    import yaml

    text = files("perfmodel").joinpath("calibrated/serving.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return {str(name): float(value) for name, value in data["spreads"].items()}


def interval(kind: str) -> tuple[float, float]:
    """Return P10 and P90 over the prediction of a kind of figure: ``tpot``, ``ttft``, ``throughput``, ``step``."""
    deviation = Z90 * spreads()[kind]
    return float(np.exp(-deviation)), float(np.exp(deviation))
