"""The augmented equation, state and log-density together, as one term for diffrax's solvers.

Its control is (dt, dW), its vector field is the `Local` at (t, x), so the network runs once a
stage whatever is asked.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox
import jax
import jax.numpy as jnp
from jaxtyping import Array

from dgjax.divergence import Divergence
from dgjax.fields import Field, Local, evaluate
from dgjax.guidance import Guide, SteersScore, apply_guides
from dgjax.noise import ItoNoise
from dgjax.results import State
from dgjax.typing import Cond, Key, Sample, Scalar, inner

__all__ = ["Augmented", "Problem"]


class Problem(NamedTuple):
    """What travels in diffrax's `args`."""

    model: Field
    guides: tuple[Guide, ...]
    noise: Any
    divergence: Divergence
    cond: Cond


class Augmented(diffrax.AbstractTerm):
    """The increment of `State` over (dt, dW); the problem travels in `args`."""

    grid: Array
    probe_key: Key
    noise_key: Key
    like: jax.ShapeDtypeStruct = equinox.field(static=True)
    stochastic: bool = equinox.field(static=True)

    def _passed(self, times, t):
        """How many of `times` lie at or before t, in the direction of the solve."""
        sign = jnp.sign(self.grid[-1] - self.grid[0])
        return jnp.sum(sign * times <= sign * t)

    def _probe_key(self, t):
        # One probe to the half steps on both sides of a grid point: stages at a step's end then
        # share it with the next step's start, and every Runge-Kutta method here puts positive
        # weights on both halves (Tsit5's weights at the very end of a step are -1.3 and 2.3).
        middles = 0.5 * (self.grid[1:] + self.grid[:-1])
        return jax.random.fold_in(self.probe_key, self._passed(middles, t))

    def _local(self, t, y: State, args: Problem) -> tuple[Sample, Local]:
        local = evaluate(
            args.model,
            t,
            y.x,
            divergence=args.divergence,
            key=self._probe_key(t),
            log_densities=y.log_densities,
            cond=args.cond,
        )
        return apply_guides(args.guides, local), local

    def vf(self, t, y, args):
        drift, local = self._local(t, y, args)
        return drift, local._replace(jvp=None), _stopped(args.guides, local), args.noise

    def contr(self, t0, t1, **kwargs):
        del kwargs
        dt = t1 - t0
        if not self.stochastic:
            return dt, None
        step = jnp.minimum(self._passed(self.grid, t0), self._passed(self.grid, t1))
        key = jax.random.fold_in(self.noise_key, step)
        scale = jnp.sqrt(jnp.abs(dt)).astype(self.like.dtype)
        return dt, scale * jax.random.normal(key, self.like.shape, self.like.dtype)

    def prod(self, vf, control):
        drift, local, stopped, noise = vf
        dt, dW = control
        dx = drift * dt
        if noise is not None:
            dx = dx + noise.increment(local, dt, dW)
        gain = inner(dx - local.velocity * dt, local.score) - local.divergences * dt
        return _increment(dx, gain, local, stopped, dt)

    def vf_prod(self, t, y, args, control):
        if not isinstance(args.noise, ItoNoise):
            return self.prod(self.vf(t, y, args), control)
        drift, local = self._local(t, y, args)
        dx, gain = args.noise.step(drift, local, *control)
        return _increment(dx, gain, local, _stopped(args.guides, local), control[0])


def _stopped(guides: Sequence[Guide], local: Local) -> Scalar:
    stopped = jnp.zeros((), local.x.dtype)
    for guide in guides:
        if isinstance(guide, SteersScore):
            stopped = jnp.maximum(stopped, (guide.excess(local) > 0).astype(stopped.dtype))
    return stopped


def _increment(dx, gain, local: Local, stopped, dt) -> State:
    # g^2 = -sigma^2 dlogsnr/dt, and |sigma s|^2 dlogsnr is then -g^2 |s|^2 dt.
    passed = -local.g2 * dt
    scale = jnp.where(local.sigma == 0, 1, local.sigma)  # stage buffers start as zeros
    return State(dx, gain, passed * jnp.sum(local.score**2), stopped * passed / scale**2)
