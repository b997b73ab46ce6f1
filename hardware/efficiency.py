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

    def launch_s(self, clock: float) -> float:
        """Return the floor of a launch on a device of this clock [Hz], in seconds."""
        return float(getattr(self, "launch_us", 0.0)) * 1e-6 + float(getattr(self, "launch_clocks", 0.0)) / clock


class GemmParameters(KernelParameters):
    """Matrix product, in tiles; latencies in clocks, since faster clocks shorten them."""

    launch_clocks: Annotated[float, fitted(500, 50_000)]
    """Floor of a launch [clocks]."""
    compute: Annotated[float, fitted(0.1, 1.0)]
    """Share of peak inside a tile."""
    memory: Annotated[float, fitted(0.1, 1.0)]
    """Share of memory bandwidth."""
    split_clocks: Annotated[float, fitted(300, 100_000)]
    """Synchronisation of units that share an inner product (split-K); large where a library does not split [clocks]."""


class PrefillParameters(KernelParameters):
    """Causal attention over new tokens, in tiles of queries by keys."""

    launch_us: Annotated[float, fitted(1, 60)]
    """Floor of a launch [us]."""
    compute: Annotated[float, fitted(0.02, 1.0)]
    """Share of peak of a tile's products, exponentials apart."""
    memory: Annotated[float, fitted(0.05, 0.85)]
    """Share of memory bandwidth. Streaming reaches 0.85; libraries that convert queries in a pass of its own less."""
    key_value_passes: Annotated[float, fitted(0.5, 30)]
    """How often keys and values of new tokens travel: the library writes them to the cache and reads them back."""


class DecodeParameters(KernelParameters):
    """One new token a sequence against its cache; a work item is one sequence and key-value head."""

    launch_clocks: Annotated[float, fitted(1000, 100000)]
    """Floor of a launch, a chain of dependent latencies [clocks]."""
    compute: Annotated[float, fitted(0.01, 1.0)]
    """Share of peak, on query rows filled up to the tile of the tensor cores."""
    piece_kib: Annotated[float, fitted(8, 20000)]
    """Cache in one piece of a work item that is split over units [KiB]."""
    item_clocks: Annotated[float, fitted(20, 40000)]
    """Cost of a work item beyond its bytes [clocks of a unit]: a property of the kernel library, not of the device."""
    head_clocks: Annotated[float, fitted(0.1, 5000)]
    """Cost of each query head of a work item [clocks of a unit], of the library as well."""
    softness: Annotated[float, fitted(1, 10)]
    """Exponent of the soft maximum of streaming, arithmetic and the cost of work items."""


class MoeParameters(KernelParameters):
    """Fused expert network: products grouped by expert, activation, reduction.

    The last two say what a library did where a timing gathered the tokens of a whole expert-parallel group on one rank.
    They say nothing where tokens go only to the ranks that hold their experts.
    """

    launch_clocks: Annotated[float, fitted(1000, 200_000)]
    """Floor of its launches: sorting, two products, activation, reduction [clocks]."""
    compute: Annotated[float, fitted(0.02, 1.0)]
    """Share of peak of the grouped products, on rows and columns filled up to tiles."""
    memory: Annotated[float, fitted(0.05, 1.0)]
    """Share of memory bandwidth when streaming the weights of experts."""
    traffic: Annotated[float, fitted(0.05, 1.0)]
    """Share of memory bandwidth of rows that are written and read between the products."""
    foreign_computed: Annotated[float, fitted(0.001, 1.0)]
    """Share of choices of other ranks' experts, by tokens that chose one here too, that are computed."""
    foreign_carried: Annotated[float, fitted(0.001, 1.0)]
    """Share of all choices of other ranks' experts whose rows are written as zeros and summed up."""


class MemoryParameters(KernelParameters):
    """Kernels that only move memory: norms, activations, rotations, additions, look-ups, optimizer updates."""

    launch_us: Annotated[float, fitted(0.1, 30)]
    """Floor of a launch [us]."""
    memory: Annotated[float, fitted(0.1, 1.0)]
    """Share of memory bandwidth when streaming."""
    row_clocks: Annotated[float, fitted(0.001, 10)]
    """Time of one row in its block of threads, for each byte of it [clocks/byte]."""
    resident: Annotated[float, fitted(0.25, 64)]
    """Rows that a unit works on at a time."""
    warm_gain: Annotated[float, fitted(1, 5)]
    """How much faster than memory the L2 cache is, where what a kernel moves stays in it."""


class PowerParameters(KernelParameters):
    """What a board draws for each kind of work, in shares of its highest power limit."""

    context: Annotated[float, fitted(0.05, 0.5, log=False)]
    """With a process on it that does nothing."""
    memory: Annotated[float, fitted(0.0, 2.0, log=False)]
    """More at the full rate of its memory."""
    compute: Annotated[float, fitted(0.0, 3.0, log=False)]
    """More at the peak of its 16-bit arithmetic."""


class ThrottleParameters(KernelParameters):
    """How a board meets a power cap."""

    static: Annotated[float, fitted(0.02, 0.36, log=False)]
    """Part of the highest limit that does not change with the clock."""
    fluctuation: Annotated[float, fitted(0.02, 0.6, log=False)]
    """Standard deviation of ln(power) within a step around its mean."""
    voltage_floor: Annotated[float, fitted(0.2, 1.0, log=False)]
    """Clock over the highest below which the voltage falls no further."""
