"""The options --mask and --band: guide a part of the samples, and hold the rest."""

from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import typer

from dgjax.checkpoints.opened import Model
from dgjax.guidance.hold import Hold, hold
from dgjax.guidance.parts import Part, band, region
from dgjax.model.field import Field
from dgjax.pictures.image_files import read_image
from dgjax.sampling.results import Trajectory
from dgjax.sampling.sample import sample

__all__ = ["BAND", "MASK", "choose_part", "hold_rest"]

EDGE = 0.125  # cycles per pixel between the bands

MASK = Annotated[
    Path | None,
    typer.Option(
        help="Guide only where this picture is white, and keep the rest as it is at q = 0.5.",
        show_default="all of the picture",
    ),
]
BAND = Annotated[
    Literal["low", "high"] | None,
    typer.Option(
        help=f"Guide only spatial frequencies below or above {EDGE} cycles per pixel, and keep "
        "the others as they are at q = 0.5.",
        show_default="all",
    ),
]


def choose_part(
    chosen: Model, mask: Path | None, named: str | None, *, noise: float, by_target: bool
) -> Part | None:
    """Return the part of the samples that is guided, None for all of it.

    Args:
        chosen: the model.
        mask: a picture of the size of the model's: white is guided, grey in part.
        named: the band of frequencies.
        noise: of the option --noise.
        by_target: whether the dials are target log-densities.

    Raises:
        ValueError: if both are given, they do not go with the other options or with the model, or
            the mask cannot be read, has another size or is black.
    """
    if mask is None and named is None:
        return None
    if mask is not None and named is not None:
        raise ValueError("choose either --mask or --band, not both")
    if noise or by_target:
        other = "--noise" if noise else "--target-log-density"
        raise ValueError(f"--mask and --band keep the rest along samples of --q, without {other}")
    shape = chosen.meta.shape
    if len(chosen.image_shape) != 3 or len(shape) != 3:
        raise ValueError(f"--mask and --band are for pictures; samples here have shape {shape}")
    if named is not None:
        return band(shape, high=EDGE) if named == "low" else band(shape, low=EDGE)
    assert mask is not None
    image = read_image(mask).convert("L")
    height, width, _ = chosen.image_shape
    if image.size != (width, height):
        raise ValueError(
            f"the mask {mask} has {image.width} x {image.height} pixels (width x height) and "
            f"pictures of this model have {width} x {height}: scale it"
        )
    weights = np.asarray(image, np.float32) / 255
    if not weights.any():
        raise ValueError(f"the mask {mask} is black: make what is guided white")
    # A latent has one weight for each block of pixels.
    blocks = weights.reshape(shape[0], height // shape[0], shape[1], width // shape[1])
    return region(blocks.mean((1, 3))[..., None])


def hold_rest(
    part: Part, field: Field, x: Any, grid: jax.Array, *, key: jax.Array, **options: Any
) -> Hold:
    """Sample without the dial, and return the guide that holds the rest of the part there.

    Args:
        part: what is guided.
        field: the model.
        x: the latent.
        grid: times.
        key: for probes.
        options: of `dgjax.sample`, with the guides before the dial.
    """
    course = sample(field, x, grid, key=key, save=Trajectory, **options).trajectory
    return hold(part.rest(), field, course.t, course.x)
