"""Energy networks beside score networks: is the learned log-density one?

On a mixture whose log-density is known two models are trained with equal steps and nearly equal
parameters: a score network by denoising, and an energy network by denoising and time-score
matching. Printed are the time of a step and the error of log p against the truth, by the
probability-flow ODE and by one evaluation. Digits have a script of their own (`energy_digits.py`).

    python experiments/energy.py [--steps 2000]

On images (fashion-mnist) U-Nets are trained, a third one with the likelihood weighting. They are
kept, so that a stopped run continues and other commands can measure them.

    python experiments/energy.py --part images --steps 3000 --keep runs
    python experiments/agreement.py --model runs/energy/model
    dgjax evaluate --model runs/energy/model --data fashion-mnist
"""

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.data.named_datasets import load_data
from dgjax.training import TrainConfig, export, fit, load_config

T = 0.02
MEANS = np.array([[3.0, -1.0], [-2.0, 4.0], [1.0, 1.0]])
SPREADS = np.array([0.5, 1.5, 0.25])
WEIGHTS = np.array([0.3, 0.5, 0.2])
MLP = {"kind": "mlp", "width": 128, "depth": 3}
UNET = {"kind": "unet", "channels": [32, 64], "blocks": 2, "embedding": 64}


def config_of(kind, shape, steps, data, network, batch, save_every=None):
    """The configuration of one run; `network` is that of the score.

    `kind` is "score", "likelihood" (a score network with the likelihood weighting) or "energy".
    """
    energy = kind == "energy"
    if energy:
        network = network | {"kind": f"energy_{network['kind']}"}
    return TrainConfig.from_dict(
        {
            "steps": steps,
            "batch": batch,
            "ema_snapshots": 1,
            "data": data,
            "model": {
                "shape": list(shape),
                "t_min": T,
                "t_max": 80.0,
                "path": {"kind": "edm"},
                "network": network,
                "parametrization": {
                    "kind": "energy" if energy else "preconditioned",
                    "sigma_data": data["sigma_data"],
                },
            },
            "optimiser": {"learning_rate": 1e-3, "warmup": 100, "schedule": "cosine"},
            **({"time_score": {}} if energy else {}),
            **({"loss": {"kind": "likelihood"}} if kind == "likelihood" else {}),
            "records": {"validate_every": 0, "save_every": save_every or steps},
        }
    )


def train(config, folder=None):
    """Return the trained model, its parameters and the seconds of a step, compilation included."""
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        model = fit(config, folder or temporary, progress=folder is not None).model
        seconds = (time.perf_counter() - start) / config.steps
        if folder is not None:
            export(folder, folder / "model")
    size = sum(a.size for a in jax.tree.leaves(model.network))
    return model, size, seconds


def by_ode(model, x, steps=64, divergence=None):
    grid, divergence = dgjax.grid_logsnr(model, steps), divergence or dgjax.Exact()

    def one(model, x):
        found = dgjax.likelihood(model, x, grid, key=jax.random.key(0), divergence=divergence)
        return found.log_density

    return jax.jit(lambda model, x: jax.lax.map(partial(one, model), x, batch_size=64))(model, x)


def rms(a):
    return float(jnp.sqrt(jnp.mean(a**2)))


def mixture(steps):
    """Print the RMS error of log p per dimension, against the true mixture, at t_min."""
    true = dgjax.gaussian_mixture(WEIGHTS, MEANS, SPREADS[:, None, None] ** 2 * np.eye(2)[None])
    draws = np.asarray(jax.vmap(true.sample)(jax.random.split(jax.random.key(1), 50_000)))
    x = jax.vmap(lambda k: true.sample(k, T))(jax.random.split(jax.random.key(2), 256))
    exact = jax.vmap(lambda x: true.log_density(x, T))(x)
    sigma = float(draws.std())
    prior = dgjax.gaussian_prior(sigma)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/x.npz", x=draws.astype(np.float32))
        data = {"dataset": "npz", "path": f"{folder}/x.npz", "sigma_data": sigma}
        for kind in ("score", "energy"):
            config = config_of(kind, (2,), steps, data, MLP | {"depth": 4}, 512)
            model, size, seconds = train(config)
            model = replace(model, prior=prior)
            print(f"mixture {kind:6} parameters {size} step {1e3 * seconds:.1f} ms", flush=True)
            print(f"  PF-ODE - true: RMS {rms(by_ode(model, x) - exact) / 2:.4f} nats/dim")
            if kind == "energy":
                report(model, x, exact)


def report(model, x, reference, samples=1024):
    """Print one evaluation against a reference."""
    size = x[0].size
    model, error = dgjax.normalize(model, jax.random.key(3), samples=samples)
    one = lambda model, x: dgjax.log_density(model, T, x)
    found = jax.jit(lambda m, x: jax.lax.map(partial(one, m), x, batch_size=64))(model, x)
    off = found - reference
    print(f"  log Z {float(model.parametrization.log_normalizer):.4f} +- {float(error):.4f}")
    print(
        f"  one evaluation - reference: RMS {rms(off) / size:.4f}, mean "
        f"{float(off.mean()) / size:.4f}, deviation {float(off.std()) / size:.4f} nats/dim",
        flush=True,
    )


def held_out(data, shape, count, noise=T):
    """Return held-out images with noise of this size."""
    held = load_data(data, shape, "held-out")
    rows = np.arange(min(len(held), count))
    clean = jnp.asarray(held.batch(rows, positions=np.full((len(rows), 2), 0.5)))
    return clean + noise * jax.random.normal(jax.random.key(4), clean.shape)


def images(steps, keep):
    """Train U-Nets on fashion-mnist, keep them, and print log p of held-out images."""
    config = load_config("fashion-mnist")
    shape, size = config.model.shape, np.prod(config.model.shape)
    x = held_out(config.data, shape, 32)
    data = {"dataset": "fashion-mnist", "sigma_data": config.data.sigma_data}
    for kind in ("score", "likelihood", "energy"):
        run = config_of(kind, shape, steps, data, UNET, 32, save_every=250)
        model, weights, seconds = train(run, Path(keep) / kind)
        print(f"images {kind:10} parameters {weights} step {1e3 * seconds:.1f} ms", flush=True)
        ode = by_ode(model, x, 32, dgjax.Coloured(5))
        print(f"  held-out log p by PF-ODE: {float(ode.mean()) / size:.4f} nats/dim", flush=True)
        if kind == "energy":
            report(model, x, ode, samples=256)


def main():
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--part", choices=["mixture", "images"], default="mixture")
    parser.add_argument("--keep", default="runs", help="folder of the models of images")
    given = parser.parse_args()
    parts = {"mixture": mixture, "images": partial(images, keep=given.keep)}
    parts[given.part](given.steps)


if __name__ == "__main__":
    main()
