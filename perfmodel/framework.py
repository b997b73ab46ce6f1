"""Training frameworks: what they overlap, keep in memory and spend on the host, read from ``frameworks/*.yaml``."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hardware.schema import Provenance
from hardware.units import Bytes, Seconds
from hardware.yaml_source import read_yaml, validated


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StateBytes(_Strict):
    """Bytes per parameter."""

    weight: float
    """Weights as they are kept between steps."""
    compute_weight: float = 2
    """Weights as the operators read them (of a shard gathered for use)."""
    gradient: float
    """Accumulated gradients."""
    optimizer: float
    """Optimizer state, master weights included."""
    gradient_traffic: float
    """Gradients on the wire."""
    weight_traffic: float = 2
    """Gathered weights on the wire."""


class Reserve(_Strict):
    """Memory that is not the model's."""

    context: Bytes
    """Driver context, libraries and communicator buffers."""
    fragmentation: float
    """Reserved over allocated memory, minus one."""


class Defaults(_Strict):
    """What a run that does not say gets from this framework."""

    recompute: Literal["none", "selective", "full"] = "none"
    micro_batches_per_stage: int | None = None
    """Micro-batches over pipeline stages, where a run with stages does not state its micro-batch."""
    zero_stage: int = 1
    overlap_dp: bool = True
    overlap_tp: bool = False


class Framework(_Strict):
    """A training framework, or a release of one with other features."""

    kind: Literal["framework"]
    name: str
    matches: tuple[str, ...] = ()
    """Texts by which a measured row names it; the longest that occurs counts."""
    attention: Literal["flash", "unfused"]
    """Whether attention runs as one kernel or keeps its score matrix."""
    dropout: bool = False
    """Dropout and its masks."""
    selective: Literal["core-attention", "per-operator"] = "core-attention"
    """What selective recomputation computes again: the attention core, or every operator but every other product."""
    attention_share: float = 1.0
    """Speed of its attention kernels over that of the kernels the efficiencies were measured on."""
    sharded_bandwidth_share: float = 1.0
    """Share of a collective's bandwidth that gathering and scattering sharded weights (ZeRO-3) reaches."""
    expert_dispatch: Literal["per-expert", "per-node"] = "per-node"
    """Whether a token crosses the network once for every expert it visits, or once for every node."""
    reshards_in_pipeline: bool = True
    """With pipeline stages, sharded weights (ZeRO-3) are gathered anew for every micro-batch, not once a step."""
    overlap_pp: bool = False
    """Sends between pipeline stages run behind compute, in an interleaved schedule."""
    most_zero_with_pipeline: int = 3
    """Highest ZeRO stage beside pipeline stages."""
    states: StateBytes
    host_per_kernel: Seconds
    """Host time to launch one kernel; it bounds small layers."""
    host_spread: float | None = None
    """Spread of its host time, where that was fitted on its own runs; the spread across frameworks where not."""
    step_overhead: Seconds = 0.0
    """Host time of a step outside the model: data, gradient norm, logging."""
    logit_bytes: float = 8
    """Bytes that a logit takes at the loss: 16-bit logit, 32-bit softmax, 16-bit gradient, and the loss's copies."""
    reserve: Reserve
    defaults: Defaults = Defaults()
    provenance: dict[str, Provenance] = {}


@lru_cache(maxsize=1)
def frameworks() -> dict[str, Framework]:
    """Return every bundled framework by name."""
    found = {}
    for entry in sorted(files("perfmodel").joinpath("frameworks").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            framework = validated(Framework, read_yaml(entry.read_text(encoding="utf-8"), entry.name))
            found[framework.name] = framework
    return found


def framework_of(text: str) -> Framework | None:
    """Return the framework whose longest name or match occurs in `text`, ignoring case; None where none does."""
    wanted = text.lower()
    best: tuple[int, Framework] | None = None
    for framework in frameworks().values():
        for match in (framework.name, *framework.matches):
            if match.lower() in wanted and (best is None or len(match) > best[0]):
                best = (len(match), framework)
    return best[1] if best else None
