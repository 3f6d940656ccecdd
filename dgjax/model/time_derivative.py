"""Find out whether a network has a derivative in its time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dgjax.model.field import Field
from dgjax.model.parametrization import Network
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["has_time_derivative"]


class _Asked:
    """A network whose outputs, at inputs x without a derivative, pass through a function."""

    def __init__(self, network: Network, see: Callable[[Array], Array]):
        self.network, self.see, self.called = network, see, False

    def __call__(self, x: Sample, t: Scalar, cond: Cond) -> Sample:
        self.called = True
        return self.see(self.network(jax.lax.stop_gradient(x), t, cond))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def has_time_derivative(model: Field, t: Scalar, x: Sample, cond: Cond = None) -> bool:
    """Return whether JAX can differentiate the output of a model's network in its time.

    It cannot where all that the network does with the time goes through a rounding, the choice of
    a row of a table, or `jax.lax.stop_gradient`. If a part of it goes another way, this is not
    seen, nor is what a network outside of JAX does. The network is traced and not run.

    Args:
        model: the field.
        t: a time on the field's path.
        x: one sample, of any shape.
        cond: condition of the network.
    """
    found = []

    @jax.custom_jvp
    def see(out):
        return out

    @see.defjvp
    def _(primals, tangents):  # JAX calls it for outputs that have a tangent
        found.append(True)
        return primals[0], tangents[0]

    # The scales of a parametrization depend on the time as well: the network alone is asked.
    network = _Asked(model.network, see)
    asked = replace(model, network=network, trace_head=None)
    pair = lambda t: asked.pair(t, x, cond)
    jax.eval_shape(lambda t: jax.jvp(pair, (t,), (jnp.ones_like(t),))[0], jnp.asarray(t))
    if found or not network.called:  # a closed form is not called as a network is
        return True
    return not _depends(lambda t: model.network(jax.lax.stop_gradient(x), t, cond), t)


def _depends(function: Callable[[Scalar], Any], t: Scalar) -> bool:
    """Return whether the output of a function may depend on its argument."""
    # Mapped over times, what does not depend on them is not mapped.
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), jnp.asarray(t)[None])
    except ValueError:
        return True
    return False
