"""How a model in training is doing: its loss on held-out data by noise level, and its samples."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from dgjax.data.dataset import Dataset
from dgjax.model.divergence import Untracked
from dgjax.model.field import Field, repath
from dgjax.model.paths import edm
from dgjax.model.prior import prior_sample
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.training.loss import EDMWeighting, denoising_loss
from dgjax.training.pipeline import HostBatch
from dgjax.training.data_parallel import bring, own_rows
from dgjax.training.step import Batch, split

__all__ = ["Watch", "held_out_losses", "watch"]

LEVELS = 8
SAMPLES = 16
STEPS = 24


class Watch(NamedTuple):
    """Two functions of a network's weights, each compiled once.

    Attributes:
        losses: (levels,) held-out loss at each of `w`, or None without held-out data.
        samples: (n, *shape) samples from the same latents each time.
        w: (levels,) noise levels sigma/alpha of the losses.
    """

    losses: Callable[[PyTree[Array]], np.ndarray] | None
    samples: Callable[[PyTree[Array]], np.ndarray]
    w: np.ndarray


def held_out_losses(
    model: Field, batch: Batch, w: Float[Array, " levels"], sigma_data: float, parts: int = 1
) -> Float[Array, " levels"]:
    """Mean loss over `batch` at each noise level, 1 for a network that says nothing.

    The noise of a sample is the same at every level and every time, so that two models differ by
    what they learnt. Weighted as in EDM, whatever training weighs by.

    Args:
        model: with the weights to be measured.
        batch: held-out data.
        w: the noise levels sigma/alpha.
        sigma_data: standard deviation of the data.
        parts: number of parts that the batch is worked through in, one after the other; it must
            divide the batch.
    """
    weighting = EDMWeighting(sigma_data)
    keys = jax.random.split(jax.random.key(0), batch.data.shape[0])
    noise = jax.vmap(lambda key: jax.random.normal(key, batch.data.shape[1:]))(keys)

    def at(w):
        t = model.path.time(-2 * jnp.log(w))
        loss = jax.vmap(lambda x, n, label: denoising_loss(model, t, x, n, label))
        means = jax.lax.map(lambda part: jnp.mean(loss(*part)), rows)
        return weighting(w, jnp.ones(())) * jnp.mean(means)

    rows = jax.tree.map(lambda a: split(a, parts), (batch.data, noise, batch.labels))
    return jax.lax.map(at, w)


def watch(
    model: Field,
    shape: tuple[int, ...],
    mesh: Mesh,
    *,
    held_out: Dataset | None,
    size: int,
    batch: int,
    sigma_data: float,
    classes: int | None,
) -> Watch:
    """What to watch of `model`, whose own weights are not used.

    Args:
        model: gives path, parametrization and range.
        shape: of one sample.
        mesh: of the devices, over which held-out samples are split.
        held_out: data that training does not see, or None.
        size: number of held-out samples; fewer if there are fewer, or to divide evenly.
        batch: number of samples that there is memory for at once.
        sigma_data: standard deviation of the data.
        classes: number of labels, or None.
    """
    path = model.path
    low, high = (float(path.sigma(t) / path.alpha(t)) for t in (model.t_min, model.t_max))
    w = np.geomspace(low, high, LEVELS).astype(np.float32)
    whole = NamedSharding(mesh, PartitionSpec())
    # Before the loops, or the compiler may gather weights that are cut in each of their rounds.
    put_together = lambda network: jax.lax.with_sharding_constraint(network, whole)

    losses = None
    size = 0 if held_out is None else min(size, len(held_out)) // mesh.size * mesh.size
    parts = max(-(-size // batch), 1)
    size -= size % (mesh.size * parts)
    if held_out is not None and size:
        rows = bring(_first(held_out, size, mesh, classes), mesh)

        @partial(jax.jit, out_shardings=whole)
        def measure(network, rows):
            with_weights = replace(model, network=put_together(network))
            return held_out_losses(with_weights, rows, jnp.asarray(w), sigma_data, parts)

        losses = lambda network: jax.device_get(measure(network, rows))

    sampled = repath(model, edm(7.0))
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    latents = jax.vmap(lambda key: prior_sample(sampled, key, shape))(keys)
    labels = None if classes is None else jnp.arange(SAMPLES) % classes
    grid = grid_logsnr(sampled, STEPS)

    def draw(network):
        network = put_together(network)

        def one(x, key, label):
            return sample(
                replace(sampled, network=network),
                x,
                grid,
                key=key,
                divergence=Untracked(),
                cond=label,
            ).x

        return jax.vmap(one)(latents, keys, labels)

    compiled = jax.jit(draw, out_shardings=whole)
    return Watch(losses, lambda network: np.asarray(compiled(network)), w)


def _first(held_out: Dataset, size: int, mesh: Mesh, classes: int | None) -> HostBatch:
    # Evenly through the data, which may be sorted; each host takes its own rows.
    indices = np.linspace(0, len(held_out) - 1, size).astype(int)[own_rows(size, mesh)]
    labels = None if classes is None else held_out.labels
    data = held_out.batch(indices, places=np.full((len(indices), 2), 0.5))
    return HostBatch(data, None if labels is None else labels[indices])
