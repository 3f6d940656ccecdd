"""Read the config of a text encoder of CLIP, as the library transformers saves it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["RENAMES", "positions", "read_clip_text"]

# Files hold the parts of the encoder below names that say nothing, and differ between versions.
RENAMES = (
    (r"^text_model\.", ""),
    (r"^embeddings\.", ""),
    (r"^encoder\.", ""),
)
# transformers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
CLASSES = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
# In older configs, where the token that ends a text is the greatest in it.
WRONG_END = 2


def read_clip_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the config of a text encoder.

    Args:
        config: the content of its config.json. Settings that do not concern the encoder are
            ignored: these configs hold settings of everything that transformers can do.

    Returns:
        The text encoder as `dgjax.checkpoints.Meta` describes it: a `kind` and arguments.

    Raises:
        ValueError: if the encoder is of another class, or a value is not supported.
    """
    kind = (config.get("architectures") or ["?"])[0]
    if kind not in CLASSES:
        raise ValueError(
            f"the text encoder {kind} is not supported; supported: {', '.join(CLASSES)}"
        )
    if config.get("use_attention_mask"):
        raise ValueError(f"use_attention_mask of {kind} is not supported")
    c = {**DEFAULTS, **config}
    return {
        "kind": "clip_text",
        "vocabulary": c["vocab_size"],
        "length": c["max_position_embeddings"],
        "size": c["hidden_size"],
        "inner": c["intermediate_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "activation": c["hidden_act"],
        "eps": c["layer_norm_eps"],
        "end": None if c["eos_token_id"] == WRONG_END else c["eos_token_id"],
        "projection": c["projection_dim"] if CLASSES[kind] else None,
    }


def positions(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the positions that older files store among the weights.

    Args:
        text: as `read_clip_text` returns it.

    Returns:
        `constants` of `dgjax.importing.state_dict.load_state_dict`.
    """
    return {"position_ids": np.arange(text["length"])[None]}
