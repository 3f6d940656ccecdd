"""The option --export of `dgjax evaluate`: samples for other programs."""

from pathlib import Path

import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.devices.progress import say
from dgjax.evaluation.batched import SolverSettings, denoise_samples
from dgjax.pictures.exported import check_export, export_levels
from dgjax.pictures.latents import to_levels

__all__ = ["check_export_options", "export_samples"]


def check_export_options(
    model: Model, place: Path | None, denoised: bool, samples: list[Path] | None
) -> None:
    """Check --export and --export-denoised before anything is computed.

    Args:
        model: the model.
        place: file or folder to write; None for none.
        denoised: whether to write denoised samples.
        samples: files of samples to compare in place of new ones, if there are any.

    Raises:
        ValueError: if the samples cannot be written there, or cannot be denoised.
    """
    if place is None:
        if denoised:
            raise ValueError("--export-denoised needs --export: say where to write the samples")
        return
    if not model.has_pictures:
        raise ValueError(f"samples of shape {model.image_shape} are no images: leave --export out")
    if denoised and samples:
        raise ValueError(
            "--export-denoised is for samples that are drawn now: leave --samples or it out"
        )
    check_export(place)


def export_samples(
    model: Model,
    samples: np.ndarray,
    labels: np.ndarray | None,
    settings: SolverSettings,
    place: Path,
    denoised: bool,
) -> None:
    """Write samples as `export_levels` does, and say so.

    Args:
        model: the model.
        samples: (n, *shape) floats at t_min, or uint8 levels.
        labels: (n,) labels with which they were drawn, or None.
        settings: of the solver.
        place: file or folder to write.
        denoised: whether to denoise them first.

    Raises:
        ValueError: as of `export_levels`.
    """
    if denoised:
        samples = denoise_samples(model, samples, labels, settings)
    levels = samples if samples.dtype == np.uint8 else to_levels(model, samples)
    export_levels(place, levels)
    state = "denoised" if denoised else "undenoised"
    say(f"exported {len(levels):,} {state} samples to {place}")
