"""Explicit Runge-Kutta steps as a scan over their stages.

diffrax loops over stages in a way that serves one mode of differentiation, or both at the price of
a copy of the network's weights for every stage. In this scan each stage is a checkpoint: in reverse
mode it is computed again, so that memory holds the intermediate results of one evaluation.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from dgjax.sampling.wrapped_solver import WrappedSolver, stage_times

__all__ = ["ScannedStages"]


class _Last(NamedTuple):
    """The last evaluation of a step that begins the next one, and whether there is one."""

    evaluation: Any
    known: Array


class ScannedStages(WrappedSolver):
    """An explicit Runge-Kutta method whose steps take their stages in one scan, on fixed grids.

    Args:
        solver: with a Butcher tableau of explicit stages.
    """

    def init(self, terms, t0, t1, y0, args):
        """Return that no evaluation is known, if the method begins a step with the last one."""
        del t1
        if not self.tableau.fsal:
            return None
        shapes = jax.eval_shape(lambda t, y: terms.vf(t, y, args), t0, y0)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return _Last(zeros, jnp.array(False))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Make a step."""
        del made_jump
        dtype = jnp.result_type(*jax.tree.leaves(y0))
        fractions, rows = stage_times(self.tableau)
        a, b = jnp.asarray(rows, dtype), jnp.asarray(self.tableau.b_sol, dtype)
        c = jnp.asarray(fractions, jnp.result_type(t0, t1))
        times = jnp.where(c == 1, t1, t0 + c * (t1 - t0))
        control = terms.contr(t0, t1)

        def evaluate(first, t, y, last):
            if solver_state is None:
                return terms.vf_prod(t, y, args, control), None
            new = lambda: terms.vf(t, y, args)
            found = jax.lax.cond(first & last.known, lambda: last.evaluation, new)
            return terms.prod(found, control), _Last(found, jnp.array(True))

        def stage(carry, row):
            increments, last = carry
            i, t, weights = row
            y = jax.tree.map(lambda y, k: y + _sum(weights, k), y0, increments)
            k, last = jax.checkpoint(evaluate, prevent_cse=False)(i == 0, t, y, last)
            increments = jax.tree.map(lambda old, new: old.at[i].set(new), increments, k)
            return (increments, last), None

        none = jax.tree.map(lambda y: jnp.zeros((len(b), *y.shape), y.dtype), y0)
        stages = jnp.arange(len(b)), times, a
        (increments, last), _ = jax.lax.scan(stage, (none, solver_state), stages)
        y1 = jax.tree.map(lambda y, k: y + _sum(b, k), y0, increments)
        dense = {"y0": y0, "y1": y1, "k": increments}
        return y1, None, dense, last, diffrax.RESULTS.successful


def _sum(weights: Array, increments: Array) -> Array:
    return jnp.tensordot(weights, increments, 1, precision="highest").astype(increments.dtype)
