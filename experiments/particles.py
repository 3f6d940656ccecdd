"""Samples of a model reweighed to a physical energy: DW-4 and LJ-13.

Four particles in the plane with a double well between each pair, and a Lennard-Jones cluster of 13
in space held by a weak spring (Koehler, Klein, Noe, arXiv 2006.02425; Klein, Kraemer, Noe, arXiv
2306.15030). Energies do not change when all particles move together, so that only coordinates with
mean 0 have a density. Orthonormal coordinates z of them, 6 and 36 numbers, are the samples of a
model, which is trained on samples of a Metropolis chain. Then its own samples get the weights
exp(-energy - log q), where log q is what the sampler states. *Law* is the log-density of where the
solver's steps put the sample, by the Jacobian of the whole solve.

    python experiments/particles.py dw4
    python experiments/particles.py lj13
"""

import argparse
import itertools
from functools import partial
from typing import NamedTuple

import claims
import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from particle_systems import SYSTEMS, distances, energy, metropolis, positions
from scipy.linalg import helmert

import dgjax
from dgjax.sampling.adjoints import FORWARD
from dgjax.training.loss import EDMWeighting, denoising_loss
from dgjax.training.noise_distribution import UniformLogSNR, low_discrepancy_draw

SIGMAS = (0.01, 40.0)
EULER = 1024
CLOSEST = 0.75  # distance of two particles


class Atoms(nnx.Module):
    """An energy of particles that no rotation, reflection or exchange changes.

    A pair of particles has features of its distance, blurred by the noise. Their sums at a particle
    go through another MLP, and the sum over particles is added to the energy of the target, which
    is faded out as the noise grows.
    """

    def __init__(self, system, sigma_data, width=32, *, rngs):
        self.system, self.count, self.space = system, system.count, system.space
        make = lambda sizes: nnx.List(
            nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)
        )
        self.pairs, self.atoms = make((18, width, width)), make((width + 4, width, width))
        self.leave = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.sigma_data = sigma_data

    def __call__(self, z, t, cond=None):
        del cond
        w2 = (self.sigma_data * jnp.exp(4 * t)) ** 2
        x = jnp.asarray(helmert(self.count), z.dtype).T @ z.reshape(-1, self.space)
        others = ~jnp.eye(self.count, dtype=bool)
        squares = jnp.sum((x[:, None] - x) ** 2, -1, where=others[..., None])
        squares = jnp.where(others, squares, 1) * (w2 + self.sigma_data**2)
        r = jnp.sqrt(squares)[..., None]
        v = self.sigma_data**2
        centres = self.sigma_data * jnp.linspace(0.7, 4, 12)
        known = jnp.stack([t, t**2, jnp.exp(4 * t) / (1 + jnp.exp(4 * t)), jnp.ones(())])
        features = [
            jnp.exp(-((r - centres) ** 2) / (0.1 * v + 2 * w2)),
            jnp.log(squares[..., None] + 2 * w2),
            r / jnp.sqrt(w2 + v),
            jnp.broadcast_to(known, (*r.shape[:2], 4)),
        ]
        h = jnp.concatenate(features, -1)
        for layer in self.pairs:
            h = nnx.silu(layer(h))
        h = jnp.sum(h, 1, where=others[..., None]) / self.count
        h = jnp.concatenate([h, jnp.broadcast_to(known, (self.count, 4))], -1)
        for layer in self.atoms:
            h = nnx.silu(layer(h))
        learnt = jnp.sum(self.leave(h)) * (1 + v / (w2 + 0.02 * v))
        # Straight below CLOSEST, where no data are: the energy there has no bound.
        near, pair = jnp.maximum(r[..., 0], CLOSEST), self.system.pair
        pairs = pair(near) + jax.grad(pair)(CLOSEST) * (r[..., 0] - near)
        spring = 0.5 * self.system.spring * jnp.sum(z**2) * (w2 + v)
        target = 0.5 * jnp.sum(pairs, where=others) + spring - 0.5 * jnp.sum(z**2)
        return learnt + target * jnp.exp(-w2 / (0.005 * v))


def trained(system, draws, steps, seed=0):
    """Train a model on coordinates (n, D), turned and exchanged at random, and return it."""
    scale = float(draws.std())
    network = Atoms(system, scale, rngs=nnx.Rngs(seed))
    graph, weights, rest = nnx.split(network, nnx.Param, ...)
    rule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    )
    levels, weighting = UniformLogSNR(*SIGMAS), EDMWeighting(scale)
    draws, basis = jnp.asarray(draws), jnp.asarray(helmert(system.count), jnp.float32)

    def model(weights):
        network = nnx.merge(graph, weights, rest)
        options = {"t_min": SIGMAS[0], "t_max": SIGMAS[1], "prior": dgjax.gaussian_prior(scale)}
        return dgjax.field(
            network, dgjax.edm(), dgjax.energy_prediction(scale), shape=draws.shape[1:], **options
        )

    def turned(key):
        keys = jax.random.split(key, 3)
        x = positions(system, draws[jax.random.randint(keys[0], (), 0, len(draws))])
        x = jax.random.permutation(keys[1], x)
        turn = jnp.linalg.qr(jax.random.normal(keys[2], (system.space, system.space)))[0]
        return (basis @ x @ turn).reshape(-1)

    def loss(weights, key):
        keys = jax.random.split(key, 3)
        sigmas = levels.quantile(low_discrepancy_draw(keys[0], system.batch))
        data = jax.vmap(turned)(jax.random.split(keys[1], system.batch))
        noise = jax.random.normal(keys[2], data.shape)
        losses = jax.vmap(partial(denoising_loss, model(weights)))(sigmas, data, noise)
        return jnp.mean(jax.vmap(weighting)(sigmas, levels.density(sigmas)) * losses)

    def step(state, key):
        weights, memory = state
        value, gradient = jax.value_and_grad(loss)(weights, key)
        updates, memory = rule.update(gradient, memory)
        return (optax.apply_updates(weights, updates), memory), value

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    state = weights, rule.init(weights)
    for part in jax.random.split(jax.random.key(seed), (10, steps // 10)):
        state, losses = run(state, part)
        print(f"loss {float(losses.mean()):.4f}", flush=True)
    return model(state[0])


def drawn(model, z, steps, solver=None):
    """Return the sample of a latent on the EDM path, and its log-density as stated."""
    if solver is not None:  # what is common: Euler on the VP path
        model = dgjax.repath(model, dgjax.vp())
        z = z * model.path.alpha(model.t_max)
    grid = dgjax.grid_logsnr(model, steps)
    options = {} if solver is None else {"solver": solver}
    found = dgjax.sample(
        model,
        z,
        grid,
        key=jax.random.key(0),
        divergence=dgjax.Exact(),
        adjoint=FORWARD,
        **options,
    )
    alpha = model.path.alpha(model.t_min)
    # Coordinates of the data: the model at t_min has them times alpha.
    return found.x / alpha, found.log_density + found.x.size * jnp.log(alpha)


def law(model, z, steps):
    """Return the log-density of where the steps put the sample of a latent."""
    jacobian = jax.jacfwd(lambda z: drawn(model, z, steps)[0])(z)
    return dgjax.log_prior(model, z) - jnp.linalg.slogdet(jacobian)[1]


class Found(NamedTuple):
    """Samples of a model by one solver.

    Attributes:
        log_weights: (n,) -energy - log q, by the log-density that the sampler states.
        off: (n,) that log-density minus that of where the steps put the samples, in nats.
        energies: (n,) in units of kT.
        pairs: (n, pairs) distances.
    """

    log_weights: np.ndarray
    off: np.ndarray
    energies: np.ndarray
    pairs: np.ndarray


def measure(system, model, latents, steps, solver=None):
    """Return `Found` of the latents (n, D)."""

    def run(model, z):
        x, log_q = drawn(model, z, steps, solver)
        x = positions(system, x)
        total = energy(system, x)
        exact = law(model, z, steps) if steps == system.law else jnp.nan
        return -total - log_q, log_q - exact, total, distances(x)

    many = lambda model, latents: jax.lax.map(
        partial(run, model), latents, batch_size=system.together
    )
    return Found(*map(np.asarray, jax.jit(many)(model, latents)))


def row(name, evaluations, found):
    """Return a row of the table."""
    good = np.isfinite(found.log_weights) & np.isfinite(found.energies)
    found = Found(*(a[good] for a in found))  # the others have no weight
    share = dgjax.effective_sample_size(found.log_weights) / len(good)
    means = [
        dgjax.weighted_mean(a, found.log_weights) for a in (found.energies, found.pairs.mean(1))
    ]
    return [
        name,
        f"{evaluations:,}",
        f"{len(good):,}, {np.sum(~good)}",
        f"{share:.1%}",
        f"{1000 * share / evaluations:.2f}",
        "" if np.isnan(found.off).any() else f"{np.sqrt(np.mean(found.off**2)):.2g}",
        f"{found.energies.mean():.3f}",
        claims.between(means[0], 3),
        claims.between(means[1], 4),
    ]


def draw(name, system, reference, found):
    """Draw distances and energies by the chain, by the model, and reweighed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    found = Found(*(a[np.isfinite(found.log_weights)] for a in found))
    weights = dgjax.importance_weights(found.log_weights)
    pairs = found.pairs.shape[1]
    ends = np.quantile(reference["pairs"], (0.0005, 0.9995))
    bins = (
        np.linspace(*ends, 41),
        np.linspace(*np.quantile(reference["energies"], (0.0005, 0.9995)), 31),
    )
    shown = (
        (axes[0], bins[0], reference["pairs"], found.pairs.ravel(), np.repeat(weights, pairs)),
        (axes[1], bins[1], reference["energies"], found.energies, weights),
    )
    for axis, edges, truth, mine, weight in shown:
        axis.hist(truth, edges, density=True, color="0.8", label="Metropolis chain")
        axis.hist(mine, edges, density=True, histtype="step", label="model")
        axis.hist(
            mine, edges, density=True, weights=weight, histtype="step", lw=1.8, label="reweighed"
        )
    axes[0].set(xlabel="distance of a pair", ylabel="density")
    axes[1].set(xlabel="energy, kT")
    axes[0].legend(fontsize=8)
    claims.save(figure, f"particles_{name}")


def reference_of(system, chains):
    """Return energies, distances and rows of means from chains (chains, kept, D)."""
    x = jax.jit(jax.vmap(jax.vmap(partial(positions, system))))(chains)
    energies = np.asarray(jax.jit(jax.vmap(jax.vmap(partial(energy, system))))(x))
    pairs = np.asarray(jax.jit(jax.vmap(jax.vmap(distances)))(x))
    # Chains are independent, so their means say how well the mean of all is known.
    means = [
        claims.mean_error(a.mean(1), digits) for a, digits in ((energies, 3), (pairs.mean(2), 4))
    ]
    return {"energies": energies.ravel(), "pairs": pairs.ravel(), "means": means}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    name = parser.parse_args().system
    system = SYSTEMS[name]
    chains = metropolis(system, jax.random.key(0))
    reference = reference_of(system, chains)
    print("chain: energy, distance", *reference["means"], flush=True)
    model = trained(system, chains.reshape(-1, chains.shape[-1]), system.steps)
    key, rows = jax.random.key(1), []
    latents = jax.vmap(lambda k: dgjax.prior_sample(model, k, chains.shape[-1:]))(
        jax.random.split(key, system.samples)
    )
    for steps in (16, 32, 64):
        found = measure(system, model, latents, steps)
        rows.append(row("Multistep", steps, found))
        print(rows[-1], flush=True)
        if steps == 32:
            draw(name, system, reference, found)
    for steps in (128, EULER) if system.euler else ():
        found = measure(system, model, latents[: system.euler], steps, diffrax.Euler())
        rows.append(row("Euler, VP", steps, found))
        print(rows[-1], flush=True)
    rows.append(
        ["Metropolis chain", "", f"{len(reference['energies']):,}", *[""] * 4, *reference["means"]]
    )
    header = [
        "sampler",
        "evaluations",
        "samples, failed",
        "effective",
        "effective per 1,000 evaluations",
    ]
    header += [
        "log q stated less law, RMS nats",
        "energy of samples, kT",
        "energy reweighed [95 %]",
    ]
    claims.report(f"particles_{name}", [*header, "distance reweighed [95 %]"], rows)


if __name__ == "__main__":
    main()
