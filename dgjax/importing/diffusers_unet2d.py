"""Read the config of diffusers' `UNet2DModel` as arguments of `dgjax.networks.UNet2D`."""

from collections.abc import Mapping
from typing import Any

__all__ = ["RENAMES", "read_unet2d"]

# Names of the parts of attention in files from before 2023, as patterns, with today's names.
RENAMES = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)
# diffusers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D"] + 3 * ["AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": 3 * ["AttnUpBlock2D"] + ["UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,  # for training only: nothing is dropped here
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,  # for a learnt time embedding only, which is not supported
}
# Settings that `dgjax.networks.UNet2D` has under the same names.
SAME_NAMES = (
    *("center_input_sample", "time_embedding_dim", "freq_shift", "flip_sin_to_cos"),
    *("down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("mid_block_scale_factor", "downsample_padding", "downsample_type", "upsample_type"),
    *("act_fn", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups", "norm_eps"),
    "add_attention",
)
# The only values that `dgjax.networks.UNet2D` has; diffusers has more.
SUPPORTED = {
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}


def read_unet2d(config: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Convert the config of a U-Net.

    Args:
        config: the content of its config.json.

    Returns:
        The shape of one image, the `network` of a `dgjax.checkpoints.ModelSpec`, and the time
        that the network takes: "time_step" or "noise_level".

    Raises:
        ValueError: if a setting is unknown or its value is not supported; the message names it.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(f"the setting {unknown[0]!r} of UNet2DModel is unknown")
    c = {**DEFAULTS, **given}
    for key, choices in SUPPORTED.items():
        if c[key] not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(
                f"{key} {c[key]!r} of UNet2DModel is not supported; supported: {known}"
            )
    size = c["sample_size"]
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    shape = (*sides, c["in_channels"])
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"sample_size and in_channels of UNet2DModel must be whole numbers, got {size} and "
            f"{c['in_channels']}: give the size of the images, by the option shape"
        )
    fourier = c["time_embedding_type"] == "fourier"
    network = {
        "kind": "unet2d",
        **{key: c[key] for key in SAME_NAMES},
        "outputs": c["out_channels"],
        "time_embedding": c["time_embedding_type"],
        "middle": c["mid_block_type"] is not None,
        "scale_shift": c["resnet_time_scale_shift"] == "scale_shift",
        "class_embedding": c["class_embed_type"],
    }
    if c["class_embed_type"] is None:
        network["num_classes"] = c["num_class_embeds"]
    return shape, network, "noise_level" if fourier else "time_step"
