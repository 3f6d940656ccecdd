"""Save and load models: weights and facts in one folder, and the models that come with dgjax."""

from dgjax.checkpoints.autoencoder_spec import Autoencoder, build_autoencoder
from dgjax.checkpoints.checkpoint import (
    digest,
    load,
    load_autoencoder,
    load_prompt_encoder,
    save,
    weight_bytes,
)
from dgjax.checkpoints.conditions import Condition, condition_model, find_condition
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.opened import Model, condition_on_class, find_label, open_model
from dgjax.checkpoints.pretrained import load_pretrained, pretrained_models
from dgjax.checkpoints.prompts import PromptEncoder
from dgjax.checkpoints.spec import ModelSpec, build, build_network

__all__ = [
    "Autoencoder",
    "Condition",
    "Meta",
    "Model",
    "ModelSpec",
    "PromptEncoder",
    "build",
    "build_autoencoder",
    "build_network",
    "condition_model",
    "condition_on_class",
    "digest",
    "find_condition",
    "find_label",
    "load",
    "load_autoencoder",
    "load_pretrained",
    "load_prompt_encoder",
    "open_model",
    "pretrained_models",
    "save",
    "weight_bytes",
]
