"""Read the encoder of an EDM2 network: pixels, or latents of Stable Diffusion's autoencoder.

EDM2 scales and shifts each channel of the autoencoder's own latents, to a stated mean and standard
deviation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dgjax.checkpoints.configuration import is_number, unknown_name

__all__ = ["Latents", "read_encoder"]

# EDM2's defaults for the latents of Stable Diffusion's autoencoder.
STATISTICS: dict[str, Any] = {
    "raw_mean": [5.81, 3.25, 0.12, -2.15],
    "raw_std": [4.17, 4.62, 3.71, 3.28],
    "final_mean": 0.0,
    "final_std": 0.5,
}
RGB, LATENT = "StandardRGBEncoder", "StabilityVAEEncoder"


class Latents(NamedTuple):
    """The autoencoder of a network of latents.

    Attributes:
        name: its name on the Hugging Face hub.
        coordinates: arguments of `dgjax.networks.AutoencoderKL` that scale and shift the latents.
    """

    name: str
    coordinates: dict[str, Any]


def read_encoder(stated: Any, channels: int) -> tuple[Latents | None, tuple[str, ...]]:
    """Read the encoder that a config states.

    Args:
        stated: its class as `class_name` and its `init_kwargs`; None takes EDM2's encoder of
            latents for 4 channels, and pixels for others.
        channels: channels of the network's input.

    Returns:
        The autoencoder, or None for pixels; and notes for the user.

    Raises:
        ValueError: if the class or a setting is unknown or has no sound value.
    """
    notes: tuple[str, ...] = ()
    if stated is None:
        stated = {"class_name": LATENT if channels == 4 else RGB}
        notes = (f"config.json states no encoder: taking EDM2's {stated['class_name']}",)
    if not isinstance(stated, Mapping):
        raise ValueError(f"encoder in config.json must be a table with class_name, got {stated!r}")
    values = dict(stated)
    name = str(values.pop("class_name", None)).rpartition(".")[-1]
    if name not in (RGB, LATENT):
        raise unknown_name("encoder of EDM2", name, (RGB, LATENT))
    if name == RGB:
        return None, notes
    vae_name = values.pop("vae_name", "stabilityai/sd-vae-ft-mse")
    values.pop("batch_size", None)
    for key in values:
        if key not in STATISTICS:
            raise unknown_name(f"setting of {LATENT}", key, STATISTICS)
    values = {**STATISTICS, **values}
    for key, value in values.items():
        numbers = value if isinstance(value, list) and len(value) == channels else [value]
        if not all(map(is_number, numbers)) or (key.endswith("std") and not np.all(numbers)):
            raise ValueError(
                f"{key} of {LATENT} must be numbers, one for each of {channels} channels or one "
                f"for all, got {value!r}"
            )
    # EDM2's latents are (z - raw_mean) final_std / raw_std + final_mean.
    raw_mean, final_mean, raw_std, final_std = (
        np.broadcast_to(np.asarray(values[key], float), channels)
        for key in ("raw_mean", "final_mean", "raw_std", "final_std")
    )
    scale = final_std / raw_std
    shift = raw_mean - final_mean / scale
    coordinates = {"scaling_factor": scale.tolist(), "shift_factor": shift.tolist()}
    return Latents(vae_name, coordinates), notes
