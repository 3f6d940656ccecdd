"""Accept what users pass for the options of a solve, or say in one line what to pass."""

from collections.abc import Iterable
from typing import Any

import diffrax

from dgjax.guidance.guide import Guide
from dgjax.typing import check_made

__all__ = ["as_guides", "check_options"]


def as_guides(guides: Any) -> tuple[Guide, ...]:
    """Return `guides` as a tuple; one guide alone becomes a tuple of one.

    Args:
        guides: a guide, or any iterable of guides.

    Raises:
        ValueError: if one of them is a class or a constructor that was not called, or is not a
            function `(drift, local) -> drift`.
    """
    if callable(guides):
        guides = (guides,)
    if not isinstance(guides, Iterable):
        raise ValueError(
            f"guides must be guides such as density_guidance(0.7), got {type(guides).__name__}"
        )
    guides = tuple(guides)
    for guide in guides:
        check_made("a guide", guide, arguments=2)
        if not callable(guide):
            raise ValueError(
                "a guide must be a function (drift, local) -> drift, such as "
                f"density_guidance(0.7), got {type(guide).__name__}"
            )
    return guides


def check_options(
    *, noise: Any, divergence: Any, solver: Any, controller: Any, adjoint: Any, progress: Any
) -> None:
    """Raise a ValueError if an option of a solve is of the wrong kind.

    Args:
        noise: a stochastic term, or None.
        divergence: a trace estimator.
        solver: a diffrax solver, or None.
        controller: a step-size controller of diffrax, or None.
        adjoint: an adjoint of diffrax, or None.
        progress: a progress meter of diffrax, or None.

    Raises:
        ValueError: with what to pass instead.
    """
    made = {"noise": noise, "divergence": divergence, "solver": solver}
    made |= {"controller": controller, "adjoint": adjoint}
    for name, value in made.items():
        check_made(name, value)
    if not hasattr(divergence, "standard_error"):
        raise ValueError(
            "divergence must be a trace estimator such as dgjax.Hutchinson(), got "
            f"{type(divergence).__name__}"
        )
    if noise is not None and not (hasattr(noise, "increment") or hasattr(noise, "step")):
        raise ValueError(
            "noise must be a stochastic term such as dgjax.level_set_noise(), got "
            f"{type(noise).__name__}"
        )
    if progress is not None and not isinstance(progress, diffrax.AbstractProgressMeter):
        raise ValueError(
            "progress must be a progress meter of diffrax, which shows the bar: pass "
            "diffrax.TextProgressMeter()"
        )
