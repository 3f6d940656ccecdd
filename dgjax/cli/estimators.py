"""The option --divergence: how commands find the divergence of the velocity."""

from typing import Annotated

import typer

from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.opened import Model
from dgjax.model.distilled import Distilled
from dgjax.model.divergence import Divergence
from dgjax.sampling.solvers import Solver, default_divergence

__all__ = ["DIVERGENCE", "choose_divergence"]

KINDS = ("probes", "distilled")
DIVERGENCE = Annotated[
    str,
    typer.Option(
        help="How log-density is found: probes (unbiased, one Jacobian product each), or distilled "
        "(by the model's head, see `dgjax distil`: without products, with the head's bias)."
    ),
]


def choose_divergence(kind: str, probes: int, solver: Solver, chosen: Model) -> Divergence:
    """Return the estimator that --divergence and --probes name.

    Args:
        kind: the option --divergence.
        probes: the option --probes.
        solver: of the solve.
        chosen: the model.

    Raises:
        ValueError: if there is no such kind, or the model has no head.
    """
    if kind not in KINDS:
        raise unknown_name("divergence", kind, KINDS)
    if kind == "probes":
        return default_divergence(probes, solver, chosen.size)
    if chosen.field.trace_head is None:
        raise ValueError(
            f"the model {chosen.name} has no head that predicts its divergence: make a copy that "
            f"has one with `dgjax distil {chosen.name} --out FOLDER`, and take --model FOLDER"
        )
    return Distilled()
