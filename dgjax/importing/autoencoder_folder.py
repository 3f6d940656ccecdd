"""Import the autoencoder of a model of latents from a folder that diffusers saved."""

from pathlib import Path
from typing import Any

from flax import nnx

from dgjax.checkpoints.spec import Autoencoder, build_autoencoder
from dgjax.importing.diffusers_autoencoder import read_autoencoder
from dgjax.importing.diffusers_unet2d import RENAMES
from dgjax.importing.model_folder import read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import open_weights

__all__ = ["import_autoencoder"]


def import_autoencoder(
    folder: Path, shape: tuple[int, ...], **changes: Any
) -> tuple[dict[str, Any], Autoencoder]:
    """Import an autoencoder.

    Args:
        folder: folder of an `AutoencoderKL` of diffusers: config.json and weights.
        shape: (h, w, c) of one latent.
        **changes: arguments of `dgjax.networks.AutoencoderKL` that differ from those of the
            config, such as the coordinates of the latents.

    Returns:
        The autoencoder as `dgjax.checkpoints.Meta` describes it, and itself with NumPy weights.

    Raises:
        ValueError: if something is missing, damaged or not supported, or its latents are not of
            this shape; the message names it.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of an autoencoder")
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
        open_weights(folder),
        f"the autoencoder in {folder}",
        renames=RENAMES,
    )
    return spec, autoencoder
