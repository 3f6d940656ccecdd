"""Read the config of diffusers' `SD3Transformer2DModel` as arguments of `SD3Transformer`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dgjax.networks.dit_embeddings import positions

__all__ = ["read_sd3_transformer", "share_positions"]

KIND = "SD3Transformer2DModel"
# diffusers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}
NORMS = {None: False, "rms_norm": True}
# The size of the latents, where it is not the one of the training. No setting of diffusers.
LATENTS = "latent_size"
POSITIONS = "pos_embed.pos_embed"


def read_sd3_transformer(
    config: Mapping[str, Any],
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Convert the config of a transformer of Stable Diffusion 3 or 3.5.

    Args:
        config: the content of its config.json; with "latent_size", a list of height and width, for
            latents of another size than in training.

    Returns:
        The shape of one latent, the `network` of a `dgjax.checkpoints.ModelSpec`, and
        "time_step", the time that the network takes.

    Raises:
        ValueError: if a setting is unknown or its value is not supported; the message names it.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS.keys() - {LATENTS}):
        raise ValueError(f"the setting {unknown[0]!r} of {KIND} is unknown")
    c = {**DEFAULTS, **given}
    channels = c["in_channels"] if c["out_channels"] is None else c["out_channels"]
    if c["in_channels"] != channels:
        raise ValueError(
            f"{KIND} takes {c['in_channels']} channels and returns {channels}: networks that take "
            "a picture beside the noise are not supported"
        )
    numbers = [key for key in DEFAULTS if key not in ("dual_attention_layers", "qk_norm")]
    c["out_channels"] = channels
    if wrong := [key for key in numbers if not (isinstance(c[key], int) and c[key] > 0)]:
        raise ValueError(
            f"{wrong[0]} of {KIND} must be a positive whole number, got {c[wrong[0]]!r}"
        )
    if c["qk_norm"] not in NORMS:
        raise ValueError(
            f"qk_norm {c['qk_norm']!r} of {KIND} is not supported; supported: None, rms_norm"
        )
    size = c["num_attention_heads"] * c["attention_head_dim"]
    if c["caption_projection_dim"] != size:
        raise ValueError(
            f"caption_projection_dim {c['caption_projection_dim']} of {KIND} must be the length of "
            f"a token, num_attention_heads times attention_head_dim, {size}"
        )
    sides = given.get(LATENTS, 2 * [c["sample_size"]])
    network = {
        "kind": "sd3_transformer",
        **{
            key: c[key]
            for key in (
                *("patch_size", "num_layers", "num_attention_heads", "attention_head_dim"),
                *("joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size"),
            )
        },
        "base_size": c["sample_size"] // c["patch_size"],
        "dual_attention_layers": list(c["dual_attention_layers"]),
        "qk_norm": NORMS[c["qk_norm"]],
    }
    return (*sides, c["in_channels"]), network, "time_step"


def share_positions(
    network: dict[str, Any], weights: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Leave out the position embedding that files store where the network computes it.

    Args:
        network: as `read_sd3_transformer` returns it.
        weights: the arrays by name; they are read one at a time.

    Returns:
        Both; with the position embedding as a weight where it is not sinusoids.
    """
    if POSITIONS not in weights:
        return network, weights
    stored, n = np.asarray(weights[POSITIONS]), network["pos_embed_max_size"]
    size = network["num_attention_heads"] * network["attention_head_dim"]
    table = positions(n, n, size, density=n / network["base_size"])[None]
    rounding = 4 * max(float(jnp.finfo(d).eps) for d in (stored.dtype, table.dtype))
    if stored.shape != table.shape or np.abs(stored.astype(table.dtype) - table).max() > rounding:
        return {**network, "position_table": True}, weights
    return network, {name: array for name, array in weights.items() if name != POSITIONS}
