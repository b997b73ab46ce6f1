"""The short description of a model: the sizes alone, without a ``config.json``."""

import json
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import GenerateJsonSchema

from hardware.faults import KeyFaultsError
from perfmodel.architecture.fields import MOST_LAYERS
from perfmodel.architecture.shapes import Architecture, Attention, FeedForward, LayerGroup

Count = Annotated[int, Field(strict=True, ge=1)]
CountOrNone = Annotated[int, Field(strict=True, ge=0)]


class ModelDescription(BaseModel):
    """A model by its sizes; what is left out is as in Llama."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(strict=True, min_length=1)]
    """Name of the model."""
    hidden: Count
    """Width of the residual stream."""
    layers: Annotated[int, Field(strict=True, ge=1, le=MOST_LAYERS)]
    """Number of layers."""
    heads: Count
    """Number of attention heads."""
    kv_heads: Count | None = None
    """Number of key and value heads. As many as heads if left out."""
    head_dim: Count | None = None
    """Width of an attention head. hidden / heads if left out."""
    ffn: Count | None = None
    """Inner width of the feed-forward part. With experts, that of the dense layers, and of an expert by default."""
    vocab: Count
    """Rows of the token table, padding included."""
    gated: Annotated[bool, Field(strict=True)] = True
    """Whether the feed-forward part has three matrices (SwiGLU) or two."""
    experts: CountOrNone = 0
    """Number of routed experts. 0 = dense."""
    experts_per_token: CountOrNone = 0
    """Number of experts a token visits."""
    expert_width: Count | None = None
    """Inner width of a routed expert. As ffn if left out."""
    shared_width: CountOrNone = 0
    """Inner width of all shared experts together. 0 = none."""
    dense_layers: CountOrNone = 0
    """Leading layers without experts."""
    tied_embeddings: Annotated[bool, Field(strict=True)] = False
    """Whether the output projection is the token table."""
    learned_positions: CountOrNone = 0
    """Rows of the table of learned positions. 0 = none."""
    position: Literal["rope", "learned", "alibi", "none"] | None = None
    """How a token knows its place. learned with learned_positions, else rope, if left out."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Kind of normalisation. layernorm has a bias."""
    bias: Annotated[bool, Field(strict=True)] = False
    """Whether the projections and the feed-forward part carry biases."""
    source: Annotated[str, Field(strict=True)] = ""
    """Where the sizes come from."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        if self.head_dim is None and self.hidden % self.heads:
            faults.append(("heads", f"should divide hidden, {self.hidden}, unless head_dim is given"))
        if self.kv_heads is not None and self.heads % self.kv_heads:
            faults.append(("kv_heads", f"should divide heads, {self.heads}"))
        faults += self._mixture_faults() if self.experts else self._dense_faults()
        if (self.position == "learned") != bool(self.learned_positions) and self.position is not None:
            faults.append(("learned_positions", 'goes with position "learned", and the other way round'))
        if faults:
            raise KeyFaultsError(*(((key,), message) for key, message in faults))
        return self

    def _dense_faults(self) -> list[tuple[str, str]]:
        faults = [("ffn", "missing; inner width of the feed-forward part")] if self.ffn is None else []
        given = [
            key for key in ("experts_per_token", "expert_width", "shared_width", "dense_layers") if vars(self)[key]
        ]
        return faults + [(key, "goes with experts, which is not given") for key in given]

    def _mixture_faults(self) -> list[tuple[str, str]]:
        faults = []
        if not 1 <= self.experts_per_token <= self.experts:
            faults.append(("experts_per_token", f"should be at least 1 and at most experts, {self.experts}"))
        if self.expert_width is None and self.ffn is None:
            faults.append(("expert_width", "missing; inner width of a routed expert"))
        if self.dense_layers and self.ffn is None:
            faults.append(("ffn", "missing; inner width of the dense layers"))
        if self.dense_layers >= self.layers:
            faults.append(("dense_layers", f"should be less than layers, {self.layers}"))
        return faults


def from_description(description: ModelDescription) -> Architecture:
    """Build the architecture a short description means.

    Parameters
    ----------
    description
        The description.

    Returns
    -------
    Architecture
        The sizes.
    """
    head_dim = description.head_dim or description.hidden // description.heads
    attention = Attention(
        kind="full",
        heads=description.heads,
        kv_heads=description.kv_heads or description.heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        bias_qkv=description.bias,
        bias_out=description.bias,
    )
    norm = description.hidden * (2 if description.norm == "layernorm" else 1)
    ffn = description.ffn or 0
    dense = FeedForward(ffn, description.gated, description.bias)
    mixture = FeedForward(
        width=0,
        gated=description.gated,
        bias=description.bias,
        experts=description.experts,
        experts_per_token=description.experts_per_token,
        expert_width=description.expert_width or ffn,
        shared_width=description.shared_width,
    )
    leading = description.dense_layers
    stack = [(leading, dense), (description.layers - leading, mixture if description.experts else dense)]
    return Architecture(
        name=description.name,
        hidden=description.hidden,
        vocab=description.vocab,
        layers=tuple(LayerGroup(count, attention, part, 2 * norm) for count, part in stack if count),
        leading=leading,
        tied_embeddings=description.tied_embeddings,
        learned_positions=description.learned_positions,
        final_norm_parameters=norm,
        norm=description.norm,
        position=description.position or ("learned" if description.learned_positions else "rope"),
        max_positions=description.learned_positions,
        source=description.source,
    )


def json_schema() -> dict[str, Any]:
    """Write the JSON Schema of a short description.

    Returns
    -------
    dict
        The schema.
    """
    schema = ModelDescription.model_json_schema()
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": "model.schema.json", **schema}


def write_schema(directory: FilePath) -> None:
    """Write the JSON Schema of a short description for editors; it is kept in ``perfmodel/schemas``.

    Parameters
    ----------
    directory
        Where to write ``model.schema.json``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    (directory / "model.schema.json").write_text(text, encoding="utf-8", newline="\n")
