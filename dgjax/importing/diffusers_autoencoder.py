"""Read the config of diffusers' `AutoencoderKL` or `VQModel` as arguments of the one here."""

from collections.abc import Mapping
from typing import Any

__all__ = ["read_autoencoder"]

# diffusers' defaults for what a config leaves out.
BOTH: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        **BOTH,
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    "VQModel": {
        **BOTH,
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
    },
}
# The only values that the autoencoders here have; diffusers has more.
SUPPORTED = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "norm_type": ("group",),
}
# About tiling and precision, and about uses without the encoder.
IGNORED = {"sample_size", "force_upcast", "lookup_from_codebook"}


def read_autoencoder(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Convert the config of an autoencoder.

    Args:
        config: the content of its config.json.

    Returns:
        The autoencoder as `dgjax.checkpoints.Meta` describes it (a `kind` and arguments), and the
        number of channels of its latents.

    Raises:
        ValueError: if a setting is unknown or its value is not supported; the message names it.
    """
    kind = str(config.get("_class_name"))
    if kind not in DEFAULTS:
        raise ValueError(
            f"the autoencoder {kind} is not supported; supported: {', '.join(DEFAULTS)}"
        )
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS[kind].keys() - IGNORED):
        raise ValueError(f"the setting {unknown[0]!r} of {kind} is unknown")
    c = {**DEFAULTS[kind], **given}
    levels = len(c["block_out_channels"])
    blocks = {
        "down_block_types": (levels * ["DownEncoderBlock2D"],),
        "up_block_types": (levels * ["UpDecoderBlock2D"],),
        "out_channels": (c["in_channels"],),
    }
    for key, choices in {**SUPPORTED, **blocks}.items():
        if key in c and c[key] not in choices:
            raise ValueError(
                f"{key} {c[key]!r} of {kind} is not supported; supported: {choices[0]}"
            )
    both = {
        "image_channels": c["in_channels"],
        "channels": list(c["block_out_channels"]),
        "layers": c["layers_per_block"],
        "groups": c["norm_num_groups"],
        "scaling_factor": c["scaling_factor"],
        "attention": c["mid_block_add_attention"],
    }
    if kind == "VQModel":
        size = c["vq_embed_dim"] or c["latent_channels"]
        own = {"entries": c["num_vq_embeddings"], "inside": c["latent_channels"]}
        return {"kind": "vq_model", **both, **own}, size
    own = {
        "shift_factor": c["shift_factor"] or 0.0,
        "quant": c["use_quant_conv"],
        "post_quant": c["use_post_quant_conv"],
    }
    return {"kind": "autoencoder_kl", **both, **own}, c["latent_channels"]
