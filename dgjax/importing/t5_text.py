"""Read the config of a text encoder of T5, as the library transformers saves it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["T5_RENAMES", "read_t5_text", "tied"]

# The layers of a block are numbered there, and the first block holds the biases of all blocks.
T5_RENAMES = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "final_norm."),
    (
        r"^encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.",
        "distance_embedding.",
    ),
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.", r"layers.\1.attention_norm."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"layers.\1.attention."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.", r"layers.\1.mlp_norm."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.", r"layers.\1.mlp."),
)
# transformers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
KIND = "T5EncoderModel"


def read_t5_text(config: Mapping[str, Any]) -> dict[str, Any]:
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
    if kind != KIND:
        raise ValueError(f"the text encoder {kind} is not supported here; supported: {KIND}")
    c = {**DEFAULTS, **config}
    if c["feed_forward_proj"] != "gated-gelu":
        raise ValueError(
            f"feed_forward_proj {c['feed_forward_proj']!r} of {kind} is not supported; supported: "
            "gated-gelu, as in T5 1.1"
        )
    return {
        "kind": "t5_text",
        "vocabulary": c["vocab_size"],
        "size": c["d_model"],
        "inner": c["d_ff"],
        "layers": c["num_layers"],
        "heads": c["num_heads"],
        "head_size": c["d_kv"],
        "buckets": c["relative_attention_num_buckets"],
        "furthest": c["relative_attention_max_distance"],
        "eps": c["layer_norm_epsilon"],
    }


def tied(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of tokens where older files store it a second time.

    Args:
        weights: the arrays by their names.

    Returns:
        `constants` of `dgjax.importing.state_dict.load_state_dict`.
    """
    if "encoder.embed_tokens.weight" not in weights or "shared.weight" not in weights:
        return {}
    return {r"encoder\.embed_tokens\.weight": np.asarray(weights["shared.weight"])}
