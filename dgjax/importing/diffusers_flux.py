"""Read the config of diffusers' `FluxTransformer2DModel` as arguments of `FluxTransformer`."""

from collections.abc import Mapping
from typing import Any

__all__ = ["read_flux_transformer"]

KIND = "FluxTransformer2DModel"
# diffusers' defaults for what a config leaves out.
DEFAULTS: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
# The size of the latents, which is no setting of diffusers.
LATENTS = "latent_size"
# That of the pictures of 1024 x 1024 pixels for which Flux was published.
DEFAULT_LATENTS = (128, 128)
PACKED = 4  # latent pixels in one token


def read_flux_transformer(
    config: Mapping[str, Any],
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Convert the config of a transformer of Flux.

    Args:
        config: the content of its config.json; with "latent_size", a list of height and width, for
            latents of another size than 128 x 128.

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
    if c["patch_size"] != 1:
        raise ValueError(f"patch_size {c['patch_size']!r} of {KIND} is not supported; supported: 1")
    if c["out_channels"] not in (None, c["in_channels"]):
        raise ValueError(
            f"{KIND} takes {c['in_channels']} channels and returns {c['out_channels']}: networks "
            "that take a picture beside the noise (fill, depth, canny) are not supported"
        )
    channels = c["in_channels"]
    if not isinstance(channels, int) or channels < PACKED or channels % PACKED:
        raise ValueError(
            f"in_channels of {KIND} must be a multiple of {PACKED}, got {channels!r}: its tokens "
            "are patches of 2 x 2 pixels"
        )
    network = {
        "kind": "flux_transformer",
        **{
            key: c[key]
            for key in (
                *("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim"),
                *("joint_attention_dim", "pooled_projection_dim", "guidance_embeds"),
            )
        },
        "axes_dims_rope": list(c["axes_dims_rope"]),
    }
    return (*given.get(LATENTS, DEFAULT_LATENTS), channels // PACKED), network, "time_step"
