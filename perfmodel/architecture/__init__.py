"""The models: their sizes, parameters and arithmetic, read from a catalogue, a config.json or a short description."""

from perfmodel.architecture.catalogue import architecture_names, bundled_architecture, load_architecture, trainable
from perfmodel.architecture.columns import from_columns
from perfmodel.architecture.config import MODEL_TYPES, from_config
from perfmodel.architecture.coverage import ModelNotCovered
from perfmodel.architecture.description import ModelDescription, from_description, json_schema
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
    "ModelDescription",
    "ModelNotCovered",
    "architecture_names",
    "attention_flops_per_token",
    "bundled_architecture",
    "from_columns",
    "from_config",
    "from_description",
    "json_schema",
    "layer_parameters",
    "load_architecture",
    "model_flops_per_token",
    "trainable",
]
