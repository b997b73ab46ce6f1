"""The models: their sizes, parameters and arithmetic, read from a catalogue, a config.json or a short description."""

from perfmodel.architecture.config import MODEL_TYPES, from_config
from perfmodel.architecture.flops import attention_flops_per_token, model_flops_per_token
from perfmodel.architecture.shapes import (
    Architecture,
    Attention,
    FeedForward,
    LayerGroup,
    LayerParameters,
    layer_parameters,
)

__all__ = [
    "MODEL_TYPES",
    "Architecture",
    "Attention",
    "FeedForward",
    "LayerGroup",
    "LayerParameters",
    "attention_flops_per_token",
    "from_config",
    "layer_parameters",
    "model_flops_per_token",
]
