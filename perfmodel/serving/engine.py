"""Inference engines: what they schedule, keep in memory and spend on the host, read from ``engines/*.yaml``."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hardware.schema import Provenance
from hardware.units import Bytes, Seconds
from hardware.yaml_source import read_yaml, validated


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EngineMemory(_Strict):
    """Memory of an accelerator as an engine divides it."""

    fraction: float = Field(gt=0, le=1)
    """Share that it takes."""
    of: Literal["device", "free"]
    """Whether of the whole device, weights and workspace included, or of what these leave free."""
    context: Bytes
    """Driver context, libraries, communication buffers and graphs."""
    reserves: Literal["whole", "grown"] = "grown"
    """Whether a sequence starts only when the cache has room for its whole answer, or for what it has so far (some are
    put off then when all have grown)."""


class EngineTransfer(_Strict):
    """How keys and values go from one instance to another."""

    start: Seconds
    """Time before the first byte."""
    efficiency: float = Field(gt=0, le=1)
    """Share of the network adapters' rate."""


class EngineDefaults(_Strict):
    """What a deployment that does not say gets from this engine."""

    max_num_seqs: int
    """Sequences that run at once on a rank of attention data parallelism."""
    max_num_batched_tokens: int
    """Tokens of a step."""
    attention_data_parallel: bool = False
    """Ranks have sequences of their own in mixtures of experts."""
    whole_experts: bool = False
    """Experts are spread over ranks that have sequences of their own, none is split."""
    cache_as_weights: bool = False
    """Keys and values are kept in 8 bits where weights take 8 bits or fewer; otherwise in 16."""


class Engine(_Strict):
    """An inference engine."""

    kind: Literal["engine"]
    name: str
    matches: tuple[str, ...] = ()
    """Other names by which a measured row tells it."""
    batching: Literal["mixed", "chunked", "prefill_first"]
    """Whether a step takes whole prompts beside the running sequences, parts of prompts, or prompts alone."""
    step_overhead: Seconds
    """Time of a step that no kernel fills: scheduling, sampling, copies to and from the host."""
    sequence_overhead: Seconds
    """The same for every running sequence."""
    layer_overhead: Seconds
    """The same for every layer: gaps between kernels, small kernels that the models leave out."""
    prompt_overhead: Seconds
    """Time of a request before its prompt is computed: receiving, tokens from text, queues between processes."""
    request_overhead: Seconds = 0.0
    """The same, of what the host does for one request after another: those that come at once wait for each other."""
    intake_steps: float = Field(default=1.0, ge=0)
    """Steps from one look at new requests to the next."""
    handoff_overhead: Seconds = 0.0
    """Time of a request between an instance for prompts and one for answers, beside the bytes that cross."""
    eager_overhead: Seconds
    """Host time to launch a layer of a step with prompts, which is not captured as a graph; it bounds short prompts."""
    launch: float
    """Launch of a kernel in a captured graph over its launch alone."""
    speed: float
    """Speed of the kernels over that of the kernels measured alone."""
    expert_speed: float = 1.0
    """The same of its kernels for experts, beside `speed`."""
    windows: bool = True
    """Whether layers with a window read and keep no more than what is inside it."""
    memory: EngineMemory
    defaults: EngineDefaults
    release_overhead: dict[str, float] = {}
    """Releases whose overheads of steps are so many times these."""
    uncaptured: tuple[str, ...] = ()
    """Releases that capture no step as a graph."""
    transfer: EngineTransfer | None = None
    """How keys and values go from instances for prompts to those for answers, where it is known."""
    spreads: dict[Literal["tpot", "ttft", "throughput"], float]
    """Standard deviation of ln(measured/predicted) of the time of a token, of that to the first one, and of rates."""
    pool_spreads: dict[Literal["tpot", "ttft"], float] = {}
    """The same where prompts and answers have instances of their own; `spreads` where it is not known."""
    measured_families: tuple[str, ...] = ()
    """Families of accelerators whose points these are."""
    provenance: dict[str, Provenance] = {}


@lru_cache(maxsize=1)
def engines() -> dict[str, Engine]:
    """Return every bundled engine by name."""
    found = {}
    for entry in sorted(files("perfmodel").joinpath("engines").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            engine = validated(Engine, read_yaml(entry.read_text(encoding="utf-8"), entry.name))
            found[engine.name] = engine
    return found


def engine_of(text: str) -> Engine | None:
    """Return the engine of a name or match, ignoring case; None where there is none."""
    wanted = text.strip().lower()
    for engine in engines().values():
        if wanted in (engine.name, *engine.matches):
            return engine
    return None
