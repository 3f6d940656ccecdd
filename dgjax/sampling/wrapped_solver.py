"""Explicit Runge-Kutta methods around another one, whose orders and tableau they keep."""

from typing import Any

import diffrax
import numpy as np

__all__ = ["WrappedSolver", "stage_times"]


class WrappedSolver(diffrax.AbstractWrappedSolver):
    """A solver that is another one in all but its steps.

    Args:
        solver: an explicit Runge-Kutta method.
    """

    solver: Any  # type: ignore[misc]  # as in diffrax's own wrappers

    @property
    def tableau(self) -> diffrax.ButcherTableau:
        """Coefficients of the method."""
        return self.solver.tableau

    @property
    def term_structure(self):
        """Structure of the terms."""
        return self.solver.term_structure

    @property
    def interpolation_cls(self):  # type: ignore[override]
        """Interpolation within a step."""
        return self.solver.interpolation_cls

    def order(self, terms):
        """Return the order for ODEs."""
        return self.solver.order(terms)

    def strong_order(self, terms):
        """Return the pathwise order with noise."""
        return self.solver.strong_order(terms)

    def error_order(self, terms):
        """Return the order of the error estimate of adaptive steps."""
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        """Evaluate the terms."""
        return self.solver.func(terms, t0, y0, args)


def stage_times(tableau: diffrax.ButcherTableau) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of the stages as fractions of a step, and the square matrix of weights.

    Args:
        tableau: of an explicit method with n stages.

    Returns:
        c (n,) and a (n, n): the point of a stage is that of the start plus its row of `a` times the
        increments.
    """
    c = np.concatenate([[0.0], tableau.c])
    a = np.zeros((len(c), len(c)))
    for i, row in enumerate(tableau.a_lower):
        a[i + 1, : len(row)] = row
    return c, a
