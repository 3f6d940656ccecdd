"""Move a model to another path: velocity and score remain those of one density."""

from dataclasses import replace

from dgjax.model.faults import Fault, check, numbers, refuse
from dgjax.model.field import Field, check_noise_range
from dgjax.model.paths import Path, logsnr
from dgjax.typing import check_made

__all__ = ["repath"]


def repath(model: Field, path: Path) -> Field:
    """Move a model to another path.

    Points of equal log-SNR correspond, and x is rescaled by the ratio of the alphas.

    Args:
        model: the field.
        path: a path that covers the noise range of the model.

    Returns:
        The model on `path`, with the same noise range.

    Raises:
        ValueError: if alpha or sigma vanishes on `path` within the noise range of the model, or
            `path` does not cover this range.
    """
    check_made("path", path)
    levels = logsnr(model.path, model.t_min), logsnr(model.path, model.t_max)
    t_min, t_max = path.time(levels[0]), path.time(levels[1])
    check_noise_range(path, t_min, t_max)
    for level, t in zip(levels, (t_min, t_max), strict=True):
        asked, found = numbers(level, logsnr(path, t))
        message = (
            "the model reaches log-SNR {asked:.3g}, but the path ends at {found:.3g}; "
            "take a path that covers the noise range of the model"
        )
        covered = check(
            abs(found - asked) <= 0.1, Fault.MODEL_RANGE, message, asked=asked, found=found
        )
        t_min = refuse(covered, t_min)
    native = model.path if model.native is None else model.native
    return replace(model, path=path, native=native, t_min=t_min, t_max=t_max)
