"""Import the autoencoder of a model of latents, which diffusers saved, from a folder or the hub."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from dgjax.checkpoints.autoencoder_spec import Autoencoder, build_autoencoder
from dgjax.importing.diffusers_autoencoder import read_autoencoder
from dgjax.importing.diffusers_unet2d import RENAMES
from dgjax.importing.hub import is_hub_name, local_snapshot, open_hub
from dgjax.importing.model_folder import read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import open_weights

__all__ = ["import_autoencoder"]


def import_autoencoder(
    place: str | os.PathLike, shape: tuple[int, ...], **changes: Any
) -> tuple[dict[str, Any], Autoencoder]:
    """Import an autoencoder.

    Args:
        place: folder of an `AutoencoderKL` of diffusers with config.json and weights, its folder in
            the hub's cache, or its name on the Hugging Face hub.
        shape: (h, w, c) of one latent.
        **changes: arguments of `dgjax.networks.AutoencoderKL` that differ from those of the
            config, such as the coordinates of the latents.

    Returns:
        The autoencoder as `dgjax.checkpoints.Meta` describes it, and itself with NumPy weights.

    Raises:
        ValueError: if something is missing, damaged or not supported, or its latents are not of
            this shape; the message names it.
    """
    folder, weights = _open(place)
    config = read_json(folder / "config.json")
    spec, inside = read_autoencoder(config)
    spec |= changes
    if inside != shape[-1]:
        raise ValueError(
            f"the autoencoder in {folder} has latents of {inside} channels and the network takes "
            f"{shape[-1]}: they do not belong together"
        )
    autoencoder = load_state_dict(
        nnx.eval_shape(lambda: build_autoencoder(spec, shape)),
        weights(folder),
        f"the autoencoder in {folder}",
        renames=RENAMES,
    )
    return spec, autoencoder


def _open(place: str | os.PathLike) -> tuple[Path, Callable[[Path], Mapping[str, Any]]]:
    """Return the folder of the config, and what opens the weights in it."""
    folder = Path(place)
    if folder.is_dir():
        return local_snapshot(folder), open_weights
    if not is_hub_name(str(place)):
        raise ValueError(f"there is no folder {place} of an autoencoder")
    found = open_hub(str(place))
    return found.folder, found.open_weights
