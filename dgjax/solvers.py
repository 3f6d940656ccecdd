"""Solvers: diffrax's explicit ones by their names, and the classical Runge-Kutta method."""

from typing import ClassVar

import diffrax
import numpy as np

__all__ = ["RK4", "SOLVERS"]


class RK4(diffrax.AbstractERK, diffrax.AbstractStratonovichSolver):
    """Classical fourth-order Runge-Kutta: four evaluations a step.

    For stochastic density guidance its pathwise order is 2. The embedded method, for adaptive
    steps, is the midpoint rule.
    """

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.array([1 / 6, -2 / 3, 1 / 3, 1 / 6]),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms) -> int:
        del terms
        return 4

    def strong_order(self, terms) -> float:
        del terms
        return 0.5


SOLVERS: dict[str, type[diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "bosh3": diffrax.Bosh3,
    "rk4": RK4,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
}
