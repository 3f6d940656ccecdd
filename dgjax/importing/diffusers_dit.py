"""Read the config of diffusers' `DiTTransformer2DModel` as arguments of `dgjax.networks.DiT`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgjax.networks.dit_embeddings import positions

__all__ = ["read_dit", "share_embedding", "stored_positions"]

# diffusers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
# `Transformer2DModel`, the older name of the class, had other networks, too. With these values of
# its settings (the first is the default) it is a DiT.
DIT_VALUES: dict[str, tuple[Any, ...]] = {
    "attention_type": ("default",),
    "caption_channels": (None,),
    "cross_attention_dim": (None,),
    "double_self_attention": (False,),
    "interpolation_scale": (None,),
    "norm_type": ("ada_norm_zero",),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "use_additional_conditions": (None, False),
    "use_linear_projection": (False,),
}
# About training, other networks and precision.
IGNORED = {"dropout", "norm_num_groups", "upcast_attention"}


def read_dit(config: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Convert the config of a diffusion transformer.

    Args:
        config: the content of its config.json.

    Returns:
        The shape of one sample, the `network` of a `dgjax.checkpoints.ModelSpec`, and
        "time_step", the time that the network takes.

    Raises:
        ValueError: if a setting is unknown or its value is not supported; the message names it.
    """
    kind = str(config.get("_class_name"))
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS.keys() - DIT_VALUES.keys() - IGNORED):
        raise ValueError(f"the setting {unknown[0]!r} of {kind} is unknown")
    for key, values in DIT_VALUES.items():
        if given.get(key, values[0]) not in values:
            raise ValueError(f"{kind} with {key} {given[key]!r} is not a DiT, and is not supported")
    c = {**DEFAULTS, **given}
    shape = (c["sample_size"], c["sample_size"], c["in_channels"])
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"sample_size and in_channels of {kind} must be whole numbers, got {shape[0]} and "
            f"{shape[2]}"
        )
    network = {
        "kind": "dit",
        **{
            key: c[key]
            for key in (
                *("patch_size", "num_layers", "num_attention_heads", "attention_head_dim"),
                *("out_channels", "attention_bias", "norm_eps"),
            )
        },
        "num_classes": c["num_embeds_ada_norm"],
        "activation": c["activation_fn"],
        "norm_affine": c["norm_elementwise_affine"],
    }
    return shape, network, "time_step"


def stored_positions(shape: tuple[int, ...], network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the position embeddings that older files store among the weights.

    Args:
        shape: (H, W, C) of one sample.
        network: as `read_dit` returns it.

    Returns:
        `constants` of `dgjax.importing.state_dict.load_state_dict`.
    """
    patch = network["patch_size"]
    size = network["num_attention_heads"] * network["attention_head_dim"]
    table = positions(shape[0] // patch, shape[1] // patch, size)
    return {r"pos_embed\.pos_embed": table[None]}


def share_embedding(
    network: dict[str, Any], weights: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Keep one embedding of time and label where all blocks have the same.

    diffusers stores one per block. In networks of DiT's authors all blocks share one.

    Args:
        network: as `read_dit` returns it.
        weights: the arrays by name; they are read one at a time.

    Returns:
        Both, changed if all embeddings are equal.
    """
    parts: dict[str, list[str]] = {}
    for name in weights:
        if match := re.fullmatch(r"transformer_blocks\.\d+\.norm1\.(emb\..+)", name):
            parts.setdefault(match[1], []).append(name)
    for names in parts.values():
        first = np.asarray(weights[names[0]])
        if len(names) != network["num_layers"] or any(
            not np.array_equal(first, np.asarray(weights[name])) for name in names[1:]
        ):
            return network, weights
    copies = {name for names in parts.values() for name in names}
    kept = {name: array for name, array in weights.items() if name not in copies}
    kept |= {part: weights[names[0]] for part, names in parts.items()}
    return {**network, "shared_embedding": True}, kept
