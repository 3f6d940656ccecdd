"""Checks of a network's inputs."""

from collections.abc import Mapping

from dgjax.typing import Cond, Sample, concrete

__all__ = ["check_label", "check_shape"]


def check_shape(x: Sample, shape: tuple[int, ...]) -> None:
    """Raise an error unless `x` is one sample of `shape`.

    Raises:
        ValueError: if the shapes differ.
    """
    if x.shape != shape:
        raise ValueError(
            f"x has shape {x.shape} and this network takes {shape}: pass one sample, and batch "
            "with jax.vmap"
        )


def check_label(label: Cond, last: int, null: int | None = None) -> None:
    """Raise an error if the class label is out of range.

    Labels that JAX is tracing cannot be checked, and pass.

    Args:
        label: an integer or an array of integers.
        last: the greatest label; the least is 0.
        null: the label that stands for "no label", `last + 1`, or None if there is none.

    Raises:
        ValueError: if a label is neither in 0 to `last` nor `null`, or no number at all.
    """
    if isinstance(label, Mapping):
        raise ValueError(f"this network takes the number of a class, and cond has {sorted(label)}")
    number = concrete(label)
    most = last if null is None else null
    if number is not None and not ((number >= 0) & (number <= most)).all():
        none = "" if null is None else f", or {null} for no label"
        raise ValueError(f"label {number} is out of range: this network takes 0 to {last}{none}")
