"""Read the config of diffusers' `UNet2DConditionModel` as arguments of `UNet2DCondition`."""

from collections.abc import Mapping
from typing import Any

__all__ = ["RENAMES", "read_unet2d_condition"]

# The feed-forward layers of transformers are numbered there.
RENAMES = (
    (r"\.ff\.net\.0\.proj\.", ".ff.proj_in."),
    (r"\.ff\.net\.2\.", ".ff.proj_out."),
)
# diffusers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": 3 * ["CrossAttnDownBlock2D"] + ["DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D"] + 3 * ["CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
}
# The only values that `UNet2DCondition` has, the first of them the default; diffusers has more.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "addition_embed_type": (None, "text_time"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "class_embeddings_concat": (False,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
}
# About training, precision (scores of attention are in float32 here), and a layer that is absent.
IGNORED = {"dropout", "upcast_attention", "addition_embed_type_num_heads"}


def read_unet2d_condition(
    config: Mapping[str, Any],
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Convert the config of a U-Net with prompts.

    Args:
        config: the content of its config.json.

    Returns:
        The shape of one latent, the `network` of a `dgjax.checkpoints.ModelSpec`, and
        "time_step", the time that the network takes.

    Raises:
        ValueError: if a setting is unknown or its value is not supported; the message names it.
    """
    kind = "UNet2DConditionModel"
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    known = DEFAULTS.keys() | SUPPORTED.keys() | IGNORED
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"the setting {unknown[0]!r} of {kind} is unknown")
    for key, choices in SUPPORTED.items():
        if given.get(key, choices[0]) not in choices:
            names = ", ".join(map(str, choices))
            raise ValueError(f"{key} {given[key]!r} of {kind} is not supported; supported: {names}")
    c = {**DEFAULTS, **given}
    if c["in_channels"] != c["out_channels"]:
        raise ValueError(
            f"{kind} takes {c['in_channels']} channels and returns {c['out_channels']}: networks "
            "that take a picture beside the noise (inpainting, upscaling) are not supported"
        )
    size = c["sample_size"]
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    shape = (*sides, c["in_channels"])
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"sample_size and in_channels of {kind} must be whole numbers, got {size} and "
            f"{c['in_channels']}: give the size of the latents, by the option shape"
        )
    levels = len(c["block_out_channels"])
    up = c["reverse_transformer_layers_per_block"]
    added = c["addition_embed_type"] == "text_time"
    network = {
        "kind": "unet2d_condition",
        **{
            key: c[key]
            for key in (
                *("block_out_channels", "down_block_types", "up_block_types", "mid_block_type"),
                *("mid_block_scale_factor", "center_input_sample", "freq_shift"),
                *("flip_sin_to_cos", "time_embedding_dim", "downsample_padding", "act_fn"),
                *("norm_num_groups", "norm_eps"),
            )
        },
        "cross_attention_dim": _same_for_all(c["cross_attention_dim"]),
        # diffusers keeps the number of heads under the name of their size.
        "heads": _by_level("attention_head_dim", c, levels),
        "layers_per_block": _by_level("layers_per_block", c, levels),
        "transformer_layers": _by_level("transformer_layers_per_block", c, levels),
        "up_transformer_layers": (
            None if up is None else _by_level("reverse_transformer_layers_per_block", c, levels)
        ),
        "linear_projection": c["use_linear_projection"],
        "scale_shift": c["resnet_time_scale_shift"] == "scale_shift",
        "added_size": c["addition_time_embed_dim"] if added else None,
        "added_inputs": c["projection_class_embeddings_input_dim"] if added else None,
    }
    return shape, network, "time_step"


def _same_for_all(sizes: int | list[int]) -> int:
    """Return the length of the embedding of a token, which must be one for all levels."""
    found = set(sizes) if isinstance(sizes, list | tuple) else {sizes}
    if len(found) != 1:
        raise ValueError(
            f"cross_attention_dim {sizes} of UNet2DConditionModel differs between levels, which is "
            "not supported"
        )
    return found.pop()


def _by_level(key: str, config: Mapping[str, Any], levels: int) -> list[int]:
    """Return a setting as one number for each level."""
    value = config[key]
    numbers = list(value) if isinstance(value, list | tuple) else levels * [value]
    if not all(isinstance(n, int) for n in numbers):
        raise ValueError(
            f"{key} {value!r} of UNet2DConditionModel is not supported; supported: one whole "
            "number, or one for each level"
        )
    return numbers
