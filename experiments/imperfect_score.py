"""High densities by an imperfect score: how much of the tracked log-density is real?

On a 16-D mixture of five Gaussians, whose log-density is known, the score is made wrong in two
ways: by a smooth random error of chosen size at every noise level, another one for each latent, and
as an MLP's that was trained for too few steps. The same latents go through the PF-ODE, density
guidance and the high-density sampler of each model. *Tracked* is what the model says of its sample,
*true* what the mixture says; their difference is the bias. The question is ours: whoever looks for
the highest density that a model knows may find the places where it is most wrong.

    python experiments/imperfect_score.py
    python experiments/imperfect_score.py --latents 16 --training 50 200     see that it runs
"""

import argparse
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from scipy.optimize import minimize
from stochastic import small

import dgjax
from dgjax.model.parametrization import NoisePrediction, preconditioned
from dgjax.networks import MLP
from dgjax.training.loss import EDMWeighting, denoising_loss
from dgjax.training.noise_distribution import UniformLogSNR, low_discrepancy_draw
from dgjax.typing import register_dataclass

SIZES, TRAINING = (0.0, 0.025, 0.05, 0.1, 0.2, 0.4), (100, 400, 1600, 6400)
LATENTS, STEPS, SIGMAS = 128, 128, (0.05, 20.0)
NOISE_LEVELS = 64  # noise levels at which a score is held against the true one
WAVES, LENGTH = 64, 2.0  # of the error, in units of the noisy data's deviation
WIDTH, BATCH = 128, 512  # of the MLP
GUIDES = {
    "density guidance, q = 0.2": (dgjax.density_guidance(0.2),),
    "PF-ODE": (),
    "density guidance, q = 0.65": (dgjax.density_guidance(0.65),),
    "density guidance, q = 0.8": (dgjax.density_guidance(0.8),),
    "high density below sigma = 1": (dgjax.high_density(0.0),),
    "high density always": (dgjax.high_density(-jnp.inf),),
}


@register_dataclass
@dataclass(frozen=True)
class Wrong:
    """eps of a mixture plus `size` times a smooth random field of unit variance.

    A sum of waves cos(<k, x>/sqrt(1 + sigma^2) + c log sigma + phase) in random directions; no
    gradient, nor does it obey the heat equation.
    """

    mixture: dgjax.GaussianMixture
    size: jax.Array
    amplitudes: jax.Array
    k: jax.Array
    c: jax.Array
    phases: jax.Array

    def __call__(self, x, sigma, cond=None):
        del cond
        place = self.k @ x / jnp.sqrt(1 + sigma**2) + self.c * jnp.log(sigma)
        error = jnp.cos(place + self.phases) @ self.amplitudes
        return self.mixture.pair(x, sigma).eps + self.size * error


class Found(NamedTuple):
    """Tracked and true log-density of every latent, (n,), in nats."""

    tracked: np.ndarray
    true: np.ndarray


def wrong(mixture, size, key):
    """Make the field whose eps has an error of `size` in every dimension (RMS)."""
    keys = jax.random.split(key, 4)
    dimensions = mixture.means.shape[1]
    network = Wrong(
        mixture,
        jnp.asarray(size, float),
        jnp.sqrt(2 / WAVES) * jax.random.normal(keys[0], (WAVES, dimensions)),
        jax.random.normal(keys[1], (WAVES, dimensions)) / LENGTH,
        jax.random.normal(keys[2], (WAVES,)) / LENGTH,
        2 * jnp.pi * jax.random.uniform(keys[3], (WAVES,)),
    )
    return dgjax.field(
        network, dgjax.edm(), NoisePrediction(), t_min=SIGMAS[0], t_max=SIGMAS[1], prior=mixture
    )


def trained(mixture, steps, seed=0):
    """Train the field of an MLP on samples of the mixture, for the given number of steps."""
    network = MLP(mixture.shape, WIDTH, rngs=nnx.Rngs(seed))
    make = partial(dgjax.field, t_min=SIGMAS[0], t_max=SIGMAS[1], prior=mixture)
    graph, weights = nnx.split(network)
    rule = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    levels, weighting = UniformLogSNR(*SIGMAS), EDMWeighting(1.0)

    def model(weights):
        return make(nnx.merge(graph, weights), dgjax.edm(), preconditioned(1.0))

    def loss(weights, key):
        keys = jax.random.split(key, 3)
        sigmas = levels.quantile(low_discrepancy_draw(keys[0], BATCH))
        data = jax.vmap(mixture.sample)(jax.random.split(keys[1], BATCH))
        noise = jax.random.normal(keys[2], data.shape)
        losses = jax.vmap(partial(denoising_loss, model(weights)))(sigmas, data, noise)
        return jnp.mean(jax.vmap(weighting)(sigmas, levels.density(sigmas)) * losses)

    def step(state, key):
        weights, memory = state
        updates, memory = rule.update(jax.grad(loss)(weights, key), memory)
        return (optax.apply_updates(weights, updates), memory), None

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    keys = jax.random.split(jax.random.key(seed), steps)
    return model(run((weights, rule.init(weights)), keys)[0])


def copies(model, count):
    """Repeat the model (count,) times, once for each random error."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), model)


@jax.jit
def score_error(models, mixture, key):
    """Return the RMS error of eps = -sigma score per dimension, on data at all noise levels."""

    def one(model, key, u):
        sigma = UniformLogSNR(*SIGMAS).quantile(u)
        x = mixture.sample(key, sigma)
        return jnp.mean((model.pair(sigma, x).eps - mixture.pair(x, sigma).eps) ** 2)

    keys = jax.random.split(key, (models.t_min.size, NOISE_LEVELS))
    levels = (jnp.arange(NOISE_LEVELS) + 0.5) / NOISE_LEVELS
    every = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, 0, None))
    return jnp.sqrt(jnp.mean(every(models, keys, levels)))


@jax.jit
def reached(models, guides, mixture, keys):
    """Return `Found` for one latent of each key, each with its own model."""

    def one(model, key):
        latent, probes = jax.random.split(key)
        x = mixture.sample(latent, SIGMAS[1])
        grid = dgjax.grid_logsnr(model, STEPS)
        found = dgjax.sample(
            model, x, grid, key=probes, guides=guides, divergence=dgjax.Exact(chunk=16)
        )
        return Found(found.log_density, mixture.log_density(found.x, SIGMAS[0]))

    return jax.vmap(one)(models, keys)


def summit(mixture):
    """Find the highest log-density at t_min, by ascent from the mean of every component."""
    depth = jax.jit(jax.value_and_grad(lambda x: -mixture.log_density(x, SIGMAS[0])))
    return -min(minimize(depth, mean, jac=True).fun for mean in np.asarray(mixture.means))


def row(name, error, sampler, found, top):
    bias = found.tracked - found.true
    return [
        name,
        f"{error:.3f}",
        sampler,
        claims.mean_error(found.tracked),
        claims.mean_error(found.true),
        claims.mean_error(bias, 2),
        f"{bias.std(ddof=1):.2f}",
        f"{np.mean(found.tracked > top):.0%}",
    ]


def draw(groups, top):
    """Draw bias and true log-density against the error of the score."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    bias, reach = lambda f: np.mean(f.tracked - f.true), lambda f: np.mean(f.true)
    for axis, kind, of, line in (
        (axes[0], "error", bias, "-"),
        (axes[1], "MLP", bias, ":"),
        (axes[2], "error", reach, "-"),
        (axes[2], "MLP", reach, ":"),
    ):
        for i, sampler in enumerate(GUIDES):
            points = sorted(
                (e, of(found))
                for (name, e, s), found in groups.items()
                if s == sampler and name.startswith(kind) and e > 1e-9
            )
            style = {"color": claims.COLOURS[i], "marker": "osD^vP"[i], "ms": 5, "ls": line}
            style["mfc"] = "white" if kind == "MLP" else None
            axis.plot(*zip(*points, strict=True), **style, label=sampler)
    for axis, title in zip(
        axes, ("Bias, random errors", "Bias, MLPs", "Reached (dotted: MLPs)"), strict=True
    ):
        axis.set(xlabel="error of sigma times the score, per dimension (RMS)", title=title)
        axis.set_xscale("log")
        axis.set_xticks(SIZES[1:], [f"{size:g}" for size in SIZES[1:]])
        axis.minorticks_off()
        axis.set_xlim(0.02, 0.5)
    axes[0].set(ylabel="tracked less true log p, nats (mean)", yscale="log")
    axes[1].set(ylabel="tracked less true log p, nats (mean)")
    axes[1].set_yscale("symlog", linthresh=0.3)
    axes[1].axhline(0, color="black", lw=0.8)
    axes[2].axhline(top, color="black", lw=0.8, ls="--")
    axes[2].annotate("highest there is", (0.022, top), fontsize=8, va="bottom")
    axes[2].set(ylabel="true log p, nats (mean)")
    axes[0].legend(fontsize=8)
    claims.save(figure, "imperfect_score")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=LATENTS)
    parser.add_argument("--training", type=int, nargs="+", default=TRAINING, help="steps")
    asked = parser.parse_args()
    plt.rcParams["axes.grid"], plt.rcParams["grid.alpha"] = True, 0.3
    mixture = small()
    keys, top, groups = jax.random.split(jax.random.key(1), asked.latents), summit(mixture), {}
    draws = jax.random.split(jax.random.key(2), asked.latents)
    models = {f"error {size:g}": jax.vmap(partial(wrong, mixture, size))(draws) for size in SIZES}
    models |= {
        f"MLP, {steps:,} steps": copies(trained(mixture, steps), asked.latents)
        for steps in asked.training
    }
    for name, model in models.items():
        error = float(score_error(model, mixture, jax.random.key(3)))
        for sampler, guides in GUIDES.items():
            found = reached(model, guides, mixture, keys)
            groups[name, error, sampler] = Found(*map(np.asarray, found))
    header = [
        "model",
        "error of sigma x score, RMS per dim",
        "sampler",
        "tracked, nats",
        "true, nats",
    ]
    header += ["bias, nats", "its deviation", "tracked above the highest there is"]
    claims.report("imperfect_score", header, [row(*key, f, top) for key, f in groups.items()])
    print(f"\nThe highest log-density at sigma = {SIGMAS[0]:g} is {top:.2f} nats.")
    draw(groups, top)


if __name__ == "__main__":
    main()
