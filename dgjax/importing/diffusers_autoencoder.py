"""Read the config of diffusers' `AutoencoderKL` as arguments of `dgjax.networks.AutoencoderKL`."""

from collections.abc import Mapping
from typing import Any

__all__ = ["read_autoencoder"]

# diffusers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# The only values that `dgjax.networks.AutoencoderKL` has; diffusers has more.
SUPPORTED = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}
IGNORED = {"sample_size", "force_upcast"}  # about tiling and precision


def read_autoencoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the config of an autoencoder.

    Args:
        config: the content of its config.json.

    Returns:
        The autoencoder as `dgjax.checkpoints.Meta` describes it: a `kind` and arguments.

    Raises:
        ValueError: if a setting is unknown or its value is not supported; the message names it.
    """
    kind = config.get("_class_name")
    if kind != "AutoencoderKL":
        raise ValueError(f"the autoencoder {kind} is not supported; supported: AutoencoderKL")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS.keys() - IGNORED):
        raise ValueError(f"the setting {unknown[0]!r} of AutoencoderKL is unknown")
    c = {**DEFAULTS, **given}
    levels = len(c["block_out_channels"])
    blocks = {
        "down_block_types": (levels * ["DownEncoderBlock2D"],),
        "up_block_types": (levels * ["UpDecoderBlock2D"],),
        "out_channels": (c["in_channels"],),
    }
    for key, choices in {**SUPPORTED, **blocks}.items():
        if c[key] not in choices:
            raise ValueError(
                f"{key} {c[key]!r} of AutoencoderKL is not supported; supported: {choices[0]}"
            )
    return {
        "kind": "autoencoder_kl",
        "image_channels": c["in_channels"],
        "channels": list(c["block_out_channels"]),
        "layers": c["layers_per_block"],
        "groups": c["norm_num_groups"],
        "scaling_factor": c["scaling_factor"],
        "shift_factor": c["shift_factor"] or 0.0,
        "quant": c["use_quant_conv"],
        "post_quant": c["use_post_quant_conv"],
        "attention": c["mid_block_add_attention"],
    }
