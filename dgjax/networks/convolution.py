"""A convolution whose reverse mode is fast inside loops on processors.

XLA has fast code on processors for convolutions whose kernel has the axes (sides, inputs, outputs).
It brings other orders to this one, but not in the body of a loop, such as that of a solve. Reverse
mode in JAX swaps the last two axes by name and leaves the kernel as it is, so that there the code
is several times slower. Here the kernel itself is transposed. On other devices this changes little.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.lax import ConvDimensionNumbers, conv_general_dilated
from jax.sharding import AxisType
from jaxtyping import Array

__all__ = ["convolve"]


def convolve(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Convolve like `jax.lax.conv_general_dilated`, with a reverse mode that is fast in loops.

    Pass it to a convolution of Flax as `conv_general_dilated`. Layers that keep the resolution and
    have odd kernels get the fast reverse mode. Other layers have that of JAX.

    Args:
        lhs: (N, *sides, inputs) images.
        rhs: (*sizes, inputs, outputs) kernel.
        window_strides: steps between outputs, one for each side.
        padding: "SAME", or what else `jax.lax.conv_general_dilated` takes.
        options: its other arguments, among them `dimension_numbers`, the order of axes.

    Returns:
        (N, *sides, outputs), in the order of axes of Flax.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dgjax
        >>> layer = nnx.Conv(
        ...     3, 8, (3, 3), conv_general_dilated=dgjax.networks.convolve, rngs=nnx.Rngs(0)
        ... )
        >>> layer(jnp.ones((1, 16, 16, 3))).shape
        (1, 16, 16, 8)
    """
    sizes = rhs.shape[:-2]
    simple = (
        padding == "SAME"
        and options.get("dimension_numbers") == _axes(len(sizes))
        and lhs.dtype == rhs.dtype
        and lhs.ndim == rhs.ndim
        and lhs.shape[-1] == rhs.shape[-2]
        and all(size % 2 for size in sizes)
        and set(window_strides) <= {1}
        and all(_is_simple(name, value) for name, value in options.items())
        # Where JAX keeps track of how arrays lie on devices, its own operations do so.
        and set(jax.sharding.get_abstract_mesh().axis_types) <= {AxisType.Auto}
    )
    if not simple:
        return conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    precision = options.get("precision")
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _convolution.bind(lhs, rhs, precision=precision)


def _is_simple(name: str, value: Any) -> bool:
    """Return whether an option has the value that `_convolve` takes."""
    match name:
        case "precision" | "dimension_numbers":
            return True
        case "lhs_dilation" | "rhs_dilation":
            return value is None or set(value) <= {1}
        case "feature_group_count":
            return value == 1
    return value is None


def _axes(rank: int) -> ConvDimensionNumbers:
    """Return the order of axes of Flax: channels last."""
    sides = tuple(range(rank))
    images = (0, rank + 1, *(side + 1 for side in sides))
    return ConvDimensionNumbers(images, (rank + 1, rank, *sides), images)


def _convolve(x: Array, kernel: Array, *, precision: Any) -> Array:
    rank = kernel.ndim - 2
    return conv_general_dilated(
        x, kernel, (1,) * rank, "SAME", dimension_numbers=_axes(rank), precision=precision
    )


def _correlate(x: Array, y: Array, *, sizes: tuple[int, ...], precision: Any) -> Array:
    """Return the transpose of `_convolve` in its kernel, as JAX makes it."""
    kernel = jax.ShapeDtypeStruct((*sizes, x.shape[-1], y.shape[-1]), x.dtype)
    run = partial(_convolve, x, precision=precision)
    return jax.linear_transpose(run, kernel)(y)[0]


def _correlate_in_order(x: Array, y: Array, *, sizes: tuple[int, ...], precision: Any) -> Array:
    """Return the same by operations that have fast code on processors."""
    rank = len(sizes)
    sides = tuple(range(1, rank + 1))
    if set(sizes) == {1}:
        pixels = (0, *sides)
        found = jax.lax.dot_general(x, y, ((pixels, pixels), ((), ())), precision=precision)
        return found.reshape(*sizes, *found.shape)
    # Images over images: channels are the batch, and the batch is the channels.
    found = conv_general_dilated(
        x.transpose(rank + 1, *sides, 0),
        y.transpose(*sides, 0, rank + 1),
        (1,) * rank,
        [(size // 2, size // 2) for size in sizes],
        dimension_numbers=_axes(rank),
        precision=precision,
    )
    return found.transpose(*sides, 0, rank + 1)


def _convolved(x, kernel, *, precision):
    del precision
    return x.update(shape=(*x.shape[:-1], kernel.shape[-1]), weak_type=False)


def _correlated(x, y, *, sizes, precision):
    del precision
    return x.update(shape=(*sizes, x.shape[-1], y.shape[-1]), weak_type=False)


def _flip(kernel: Array) -> Array:
    return jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)


def _to_images(cotangent, x, kernel, *, precision):
    del x
    return _convolution.bind(cotangent, _flip(kernel), precision=precision)


def _to_kernel(cotangent, x, kernel, *, precision):
    sizes = kernel.aval.shape[:-2]
    return _correlation.bind(x, cotangent, sizes=sizes, precision=precision)


def _to_first(cotangent, x, y, *, sizes, precision):
    del x, sizes
    return _convolution.bind(y, _flip(cotangent), precision=precision)


def _to_second(cotangent, x, y, *, sizes, precision):
    del y, sizes
    return _convolution.bind(x, cotangent, precision=precision)


def _batch_convolution(operands, axes, *, precision):
    x, kernel = operands
    if axes[1] is not None:
        return jax.vmap(partial(_convolve, precision=precision), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    several, count, *rest = x.shape
    found = _convolution.bind(x.reshape(several * count, *rest), kernel, precision=precision)
    return found.reshape(several, count, *found.shape[1:]), 0


def _batch_correlation(operands, axes, **settings):
    return jax.vmap(partial(_correlate, **settings), axes)(*operands), 0


def _primitive(name, run, settings, shape, transposes, batch) -> Primitive:
    """Make a primitive that is linear in each of its two operands."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(run, static_argnames=settings))
    primitive.def_abstract_eval(shape)
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))
    return primitive


_convolution = _primitive(
    "convolution",
    _convolve,
    ("precision",),
    _convolved,
    (_to_images, _to_kernel),
    _batch_convolution,
)
_correlation = _primitive(
    "correlation",
    _correlate,
    ("sizes", "precision"),
    _correlated,
    (_to_first, _to_second),
    _batch_correlation,
)
mlir.register_lowering(
    _correlation, mlir.lower_fun(_correlate_in_order, multiple_results=False), platform="cpu"
)
