"""Two ways to learn a divergence: from products with the Jacobian, and from Stein's identity.

Both train the same head (`dgjax.networks.trace_head.DiagonalHead`) to predict T(y) = tr d x0/dy of
a denoiser. `dgjax distil` takes the mean of v.Jv over signs v as the target. The other way needs no
target: with the noise n = (y - x0)/w, and y from the density whose score is -n/w, integration by
parts gives for any function h

    E[h tr d x0/dy] = E[h (D - |n|^2) + w n.grad h],

so that the minimum of E[T^2 - 2 T (D - |n|^2) - 2 w n.grad T] is the divergence (Langevin-Stein
operator, arXiv 2605.16486). The last term is one derivative of the head along n, through the
denoiser too if the head reads it. Gaussian mixtures have both exactly, so the error is known.

    python experiments/stein_divergence.py
"""

import argparse
from functools import partial
from itertools import pairwise

import claims
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dgjax
from dgjax.networks.trace_head import DiagonalHead

LOW, HIGH, BATCH, PRODUCTS, TESTED = 0.02, 20.0, 128, 4, 2048
RATE = 2e-3
EDGES = np.geomspace(LOW, HIGH, 5)


def cloud(size, seed=0):
    """Return a mixture of five Gaussians, with means away from 0 and unequal scales."""
    rng = np.random.default_rng(seed)
    roots = 0.4 * rng.normal(size=(5, size, size)) / np.sqrt(size)
    covariances = roots @ roots.mT + 0.02 * np.eye(size)
    means = 0.3 + 0.5 * rng.normal(size=(5, size))
    return dgjax.gaussian_mixture(jnp.ones(5), jnp.asarray(means), jnp.asarray(covariances))


def draw(mixture, keys):
    """Return noise levels, uniform in their logarithm, and noisy points."""
    w = jnp.exp(jax.random.uniform(keys[0], (), minval=np.log(LOW), maxval=np.log(HIGH)))
    return w, mixture.sample(keys[1], w)


def denoise(model, w, y):
    return model.pair(w, y).x0


def trace(model, head, w, y):
    """Return the trace that a head predicts."""
    return jnp.sum(head((), y, denoise(model, w, y), w))


def by_products(model, head, w, y, key):
    """Return the squared error against the mean of products with random signs."""
    _, push = jax.linearize(partial(denoise, model, w), y)
    signs = jax.random.rademacher(key, (PRODUCTS, *y.shape), y.dtype)
    target = jnp.mean(jax.vmap(lambda v: jnp.vdot(v, push(v)))(signs))
    return (trace(model, head, w, y) - target) ** 2


def by_stein(model, head, w, y, key):
    """Return the loss of Stein's identity; its mean is that of the squared error less T^2."""
    del key
    noise = (y - denoise(model, w, y)) / w
    value, change = jax.jvp(lambda y: trace(model, head, w, y), (y,), (w * noise,))
    return value**2 - 2 * value * (y.size - jnp.sum(noise**2)) - 2 * change


def train(model, mixture, one, steps, size):
    """Return a head trained on fresh points by one of the losses."""
    deviation = float(jnp.std(jax.vmap(mixture.sample)(jax.random.split(jax.random.key(8), 512))))
    head = DiagonalHead((size,), sigma_data=deviation, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(head)
    rule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps))
    )

    def loss(weights, key):
        head = nnx.merge(graph, weights)

        def each(key):
            keys = jax.random.split(key, 3)
            return one(model, head, *draw(mixture, keys), keys[2])

        return jnp.mean(jax.vmap(each)(jax.random.split(key, BATCH)))

    @jax.jit
    def run(weights):
        def step(carry, key):
            weights, memory = carry
            updates, memory = rule.update(jax.grad(loss)(weights, key), memory)
            return (optax.apply_updates(weights, updates), memory), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (weights, rule.init(weights)), keys)[0][0]

    return nnx.merge(graph, run(weights))


def errors(model, mixture, head):
    """Return noise levels, and the error of the trace by a head (None: of no training)."""

    @jax.jit
    @jax.vmap
    def run(key):
        w, y = draw(mixture, jax.random.split(key))
        exact = jnp.trace(jax.jacfwd(partial(denoise, model, w))(y))
        noise = (y - denoise(model, w, y)) / w
        return w, trace(model, head, w, y) - exact, y.size - jnp.sum(noise**2) - exact

    return tuple(map(np.asarray, run(jax.random.split(jax.random.key(2), TESTED))))


def scatter(model, mixture):
    """Return noise levels, and the error of the target that one mean of products is."""

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 3)
        w, y = draw(mixture, keys)
        jacobian = jax.jacfwd(partial(denoise, model, w))(y)
        signs = jax.random.rademacher(keys[2], (PRODUCTS, *y.shape), y.dtype)
        return w, jnp.mean(jnp.sum(signs * (signs @ jacobian.T), 1)) - jnp.trace(jacobian)

    return tuple(map(np.asarray, run(jax.random.split(jax.random.key(3), TESTED))))


def by_level(w, off):
    """Return the RMS of errors between neighbouring noise levels."""
    level = np.clip(np.digitize(w, EDGES) - 1, 0, len(EDGES) - 2)
    rms = [np.sqrt(np.mean(off[level == i] ** 2)) for i in range(len(EDGES) - 1)]
    return [f"{a:.2g}" for a in rms]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64])
    given = parser.parse_args()
    bounds = [f"{a:.2g} to {b:.2g}" for a, b in pairwise(EDGES)]
    header = ["D", "error of the trace, RMS", *(f"w = {b}" for b in bounds)]
    rows = []
    for size in given.sizes:
        mixture = cloud(size)
        model = dgjax.closed_form(mixture, dgjax.edm(), t_min=LOW, t_max=HIGH)
        heads = {
            f"head from {PRODUCTS} products a point": by_products,
            "head from Stein's identity": by_stein,
        }
        rows.append([str(size), "one target of products", *by_level(*scatter(model, mixture))])
        for name, one in heads.items():
            w, off, target = errors(model, mixture, train(model, mixture, one, given.steps, size))
            if one is by_products:
                rows.append([str(size), "D - \\|n\\|^2 at one point", *by_level(w, target)])
            rows.append([str(size), name, *by_level(w, off)])
        print(*rows[-4:], sep="\n", flush=True)
    claims.report("stein_divergence", header, rows)


if __name__ == "__main__":
    main()
