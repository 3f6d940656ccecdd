"""diffusers' `DiTTransformer2DModel`: its config as arguments of `dgjax.networks.DiT`."""

from collections.abc import Mapping
from typing import Any

from dgjax.networks.dit import positions

__all__ = ["read_dit", "stored_positions"]

# What diffusers takes where a config does not say.
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
# Settings of the class's older name, which had other networks too; only these values are a DiT.
NEUTRAL: dict[str, tuple[Any, ...]] = {
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
UNREAD = {
    "dropout",
    "norm_num_groups",
    "upcast_attention",
}  # of training, other networks, precision


def read_dit(config: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Shape of one sample, the network of a `ModelSpec`, and its clock, "step".

    Raises:
        ValueError: naming the key that is unknown or has a value not known here.
    """
    kind = str(config.get("_class_name"))
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS.keys() - NEUTRAL.keys() - UNREAD):
        raise ValueError(f"the setting {unknown[0]!r} of {kind} is unknown here")
    for key, values in NEUTRAL.items():
        if given.get(key, values[0]) not in values:
            raise ValueError(f"{kind} with {key} {given[key]!r} is no DiT, and is not read here")
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
    return shape, network, "step"


def stored_positions(shape: tuple[int, ...], network: Mapping[str, Any]) -> dict[str, Any]:
    """The table of positions that older files store: a constant of `dgjax.importing.state_dict.fill`."""
    patch = network["patch_size"]
    size = network["num_attention_heads"] * network["attention_head_dim"]
    table = positions(shape[0] // patch, shape[1] // patch, size)
    return {r"pos_embed\.pos_embed": table[None]}
