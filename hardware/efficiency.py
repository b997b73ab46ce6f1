"""Parameters of the kernel models: few, named, each with a physical meaning.

A field's ``low`` and ``high`` bound what a fit may choose. Families (architecture generation and kernel library) hold
them in ``hardware/catalog/kernels``; an accelerator's own, from ``perfmodel calibrate``, go before its family's.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


def fitted(low: float, high: float, *, log: bool = True) -> Any:
    """Return the annotation of a parameter that a fit may choose between `low` and `high`, on a log scale if `log`."""
    return Field(ge=0, json_schema_extra={"low": low, "high": high, "log": log})


class KernelParameters(BaseModel):
    """What every kernel model has.

    ``spread`` is the standard deviation of ln(measured/predicted) of the rows it was fitted on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    spread: Annotated[float, Field(ge=0)] = 0.3
    """Standard deviation of ln(measured/predicted)."""


class GemmParameters(KernelParameters):
    """Matrix product."""

    launch_us: Annotated[float, fitted(0.1, 30)]
    """Floor of a launch that does not depend on the clock [us]."""
    compute: Annotated[float, fitted(0.1, 1.0)]
    """Share of peak of long products."""
    memory: Annotated[float, fitted(0.1, 1.0)]
    """Share of memory bandwidth when streaming weights."""


class PrefillParameters(KernelParameters):
    """Causal attention over new tokens."""

    launch_us: Annotated[float, fitted(0.1, 60)]
    """Floor of a launch [us]."""
    compute: Annotated[float, fitted(0.05, 1.0)]
    """Share of peak of long sequences."""
    memory: Annotated[float, fitted(0.05, 1.0)]
    """Share of memory bandwidth."""


class DecodeParameters(KernelParameters):
    """One new token a sequence against its cache."""

    launch_us: Annotated[float, fitted(0.1, 60)]
    """Floor of a launch [us]."""
    compute: Annotated[float, fitted(0.01, 1.0)]
    """Share of peak."""
    memory: Annotated[float, fitted(0.1, 1.0)]
    """Share of memory bandwidth when streaming the cache."""


class MoeParameters(KernelParameters):
    """Fused expert network."""

    launch_us: Annotated[float, fitted(0.1, 100)]
    """Floor of a launch [us]."""
    compute: Annotated[float, fitted(0.02, 1.0)]
    """Share of peak of the grouped product."""
    memory: Annotated[float, fitted(0.1, 1.0)]
    """Share of memory bandwidth when streaming experts."""
