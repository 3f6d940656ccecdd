"""Validation during training: loss on held-out data per noise level, and pictures of samples."""

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
from dgjax.model.field import Field
from dgjax.model.paths import edm
from dgjax.model.prior import prior_sample
from dgjax.model.repath import repath
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.training.data_parallel import global_batch, host_rows
from dgjax.training.loss import EDMWeighting, denoising_loss
from dgjax.training.objective import Batch
from dgjax.training.pipeline import HostBatch
from dgjax.training.step import to_microbatches

__all__ = ["Validation", "held_out_losses", "make_validation"]

NUM_NOISE_LEVELS = 8
NUM_SAMPLES = 16
SAMPLING_STEPS = 24


class Validation(NamedTuple):
    """Two functions of a network, each compiled once.

    Attributes:
        losses: returns the held-out loss at each noise level, (levels,). None without held-out
            data.
        samples: returns samples from the same latents at every call, (n, *shape).
        w: the noise levels sigma/alpha of the losses, (levels,).
    """

    losses: Callable[[PyTree[Array]], np.ndarray] | None
    samples: Callable[[PyTree[Array]], np.ndarray]
    w: np.ndarray


def held_out_losses(
    model: Field, batch: Batch, w: Float[Array, " levels"], sigma_data: float, parts: int = 1
) -> Float[Array, " levels"]:
    """Return the mean EDM loss over a batch at each noise level.

    A network that returns 0 has a loss of about 1 at every noise level. The EDM weighting is used
    whatever the weighting of training. Each sample has noise of its own, the same at every noise
    level and in every call, so losses of two models differ only by the models.

    Args:
        model: the model to measure.
        batch: held-out data.
        w: noise levels sigma/alpha, (levels,).
        sigma_data: standard deviation of the data.
        parts: number of microbatches to evaluate one after the other; must divide the batch.

    Returns:
        Mean losses (levels,).
    """
    weighting = EDMWeighting(sigma_data)
    keys = jax.random.split(jax.random.key(0), batch.data.shape[0])
    noise = jax.vmap(lambda key: jax.random.normal(key, batch.data.shape[1:]))(keys)
    rows = (batch.data, noise, batch.labels)
    microbatches = jax.tree.map(lambda a: to_microbatches(a, parts), rows)

    def at(w):
        t = model.path.time(-2 * jnp.log(w))
        loss = jax.vmap(lambda x, n, label: denoising_loss(model, t, x, n, label))
        means = jax.lax.map(lambda part: jnp.mean(loss(*part)), microbatches)
        return weighting(w, jnp.ones(())) * jnp.mean(means)

    return jax.lax.map(at, w)


def make_validation(
    model: Field,
    shape: tuple[int, ...],
    mesh: Mesh,
    *,
    held_out: Dataset | None,
    size: int,
    batch: int,
    sigma_data: float,
    classes: int | None,
) -> Validation:
    """Make the validation functions of a run.

    Args:
        model: path, parametrization and time range; its own network is not used.
        shape: of one sample.
        mesh: of the devices over which held-out samples are split.
        held_out: data that training does not see, or None.
        size: number of held-out samples to use. It is lowered to what there is, and to a multiple
            of devices and microbatches.
        batch: number of samples that fit into memory at once.
        sigma_data: standard deviation of the data.
        classes: number of class labels, or None.
    """
    path = model.path
    low, high = (float(path.sigma(t) / path.alpha(t)) for t in (model.t_min, model.t_max))
    w = np.geomspace(low, high, NUM_NOISE_LEVELS).astype(np.float32)
    whole = NamedSharding(mesh, PartitionSpec())
    # Gather split weights before the loops: else the compiler may gather them in every round.
    gather = lambda network: jax.lax.with_sharding_constraint(network, whole)

    losses = None
    size = 0 if held_out is None else min(size, len(held_out)) // mesh.size * mesh.size
    parts = max(-(-size // batch), 1)
    size -= size % (mesh.size * parts)
    if held_out is not None and size:
        rows = global_batch(_validation_rows(held_out, size, mesh, classes), mesh)

        @partial(jax.jit, out_shardings=whole)
        def measure(network, rows):
            trained = replace(model, network=gather(network))
            return held_out_losses(trained, rows, jnp.asarray(w), sigma_data, parts)

        losses = lambda network: jax.device_get(measure(network, rows))

    sampler = repath(model, edm(7.0))
    keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
    latents = jax.vmap(lambda key: prior_sample(sampler, key, shape))(keys)
    labels = None if classes is None else jnp.arange(NUM_SAMPLES) % classes
    grid = grid_logsnr(sampler, SAMPLING_STEPS)

    def draw(network):
        network = gather(network)

        def one(x, key, label):
            return sample(
                replace(sampler, network=network),
                x,
                grid,
                key=key,
                divergence=Untracked(),
                cond=label,
            ).x

        return jax.vmap(one)(latents, keys, labels)

    compiled = jax.jit(draw, out_shardings=whole)
    return Validation(losses, lambda network: np.asarray(compiled(network)), w)


def _validation_rows(held_out: Dataset, size: int, mesh: Mesh, classes: int | None) -> HostBatch:
    """Take this host's rows of `size` samples, evenly spaced, since the data may be sorted."""
    indices = np.linspace(0, len(held_out) - 1, size).astype(int)[host_rows(size, mesh)]
    labels = None if classes is None else held_out.labels
    data = held_out.batch(indices, positions=np.full((len(indices), 2), 0.5))
    return HostBatch(data, None if labels is None else labels[indices])
