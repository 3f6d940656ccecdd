"""Class labels as networks take them."""

from dgjax.typing import Cond, concrete

__all__ = ["check_label"]


def check_label(label: Cond, last: int, null: int | None = None) -> None:
    """Raise a ValueError if a known `label` is not one of 0 to `last`, nor `null` for none."""
    number = concrete(label)
    most = last if null is None else null
    if number is not None and not ((number >= 0) & (number <= most)).all():
        none = "" if null is None else f", or {null} for no label"
        raise ValueError(f"label {number} is out of range: this network takes 0 to {last}{none}")
