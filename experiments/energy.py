"""Energy networks beside score networks: is the learned log-density one?

On a mixture whose log-density is known, and on digits (8x8), two models are trained with equal
steps and nearly equal parameters: a score network by denoising, and an energy network by denoising
and time-score matching. Printed are the time of a step; on the mixture the error of log p against
the truth, by the probability-flow ODE and by one evaluation; on held-out digits log p by the ODE,
and its difference to one evaluation.

    python experiments/energy.py [--steps 2000] [--part mixture]
"""

import argparse
import tempfile
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.data.named_datasets import load_data
from dgjax.training import TrainConfig, fit, load_config

T = 0.02
MEANS = np.array([[3.0, -1.0], [-2.0, 4.0], [1.0, 1.0]])
SPREADS = np.array([0.5, 1.5, 0.25])
WEIGHTS = np.array([0.3, 0.5, 0.2])


def config_of(kind, shape, steps, sigma_data, data, width, depth, batch):
    """The configuration of one run; `kind` is "score" or "energy"."""
    energy = kind == "energy"
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
                "network": {
                    "kind": "energy_mlp" if energy else "mlp",
                    "width": width,
                    "depth": depth,
                },
                "parametrization": {
                    "kind": "energy" if energy else "preconditioned",
                    "sigma_data": sigma_data,
                },
            },
            **({"time_score": {}} if energy else {}),
            "records": {"validate_every": 0, "save_every": steps},
        }
    )


def train(config):
    """Return the trained model, its parameters and the seconds of a step, compilation included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model = fit(config, folder, progress=False).model
        seconds = (time.perf_counter() - start) / config.steps
    size = sum(a.size for a in jax.tree.leaves(model.network))
    return model, size, seconds


def by_ode(model, x, steps=64):
    grid = dgjax.grid_logsnr(model, steps)
    one = lambda x: (
        dgjax.likelihood(
            model, x, grid, key=jax.random.key(0), divergence=dgjax.Exact()
        ).log_density
    )
    return jax.jit(jax.vmap(one))(x)


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
            config = config_of(kind, (2,), steps, sigma, data, 128, 4, 512)
            model, size, seconds = train(config)
            model = replace(model, prior=prior)
            print(f"mixture {kind:6} parameters {size} step {1e3 * seconds:.1f} ms", flush=True)
            print(f"  PF-ODE - true: RMS {rms(by_ode(model, x) - exact) / 2:.4f} nats/dim")
            if kind == "energy":
                report(model, x, exact, 2)


def report(model, x, reference, size):
    """Print one evaluation against a reference, and return it."""
    model, error = dgjax.normalize(model, jax.random.key(3), samples=1024)
    found = jax.vmap(lambda x: dgjax.log_density(model, T, x))(x)
    off = found - reference
    print(f"  log Z {float(model.parametrization.log_normalizer):.4f} +- {float(error):.4f}")
    print(
        f"  one evaluation - reference: RMS {rms(off) / size:.4f}, mean "
        f"{float(off.mean()) / size:.4f} nats/dim",
        flush=True,
    )
    return found


def digits(steps):
    """Print log p of held-out digits by the ODE, and by one evaluation."""
    config = load_config("digits")
    sigma = config.data.sigma_data
    held = load_data(config.data, (8, 8, 1), "held-out")
    rows = np.arange(min(len(held), 128))
    clean = jnp.asarray(held.batch(rows, positions=np.full((len(rows), 2), 0.5)))
    x = clean + T * jax.random.normal(jax.random.key(4), clean.shape)
    for kind in ("score", "energy"):
        data = {"dataset": "digits", "sigma_data": sigma}
        run = config_of(kind, (8, 8, 1), steps, sigma, data, 256, 3, 128)
        model, size, seconds = train(run)
        print(f"digits {kind:6} parameters {size} step {1e3 * seconds:.1f} ms", flush=True)
        ode = by_ode(model, x)
        print(f"  held-out log p by PF-ODE: {float(ode.mean()) / 64:.4f} nats/dim", flush=True)
        if kind == "energy":
            report(model, x, ode, 64)


def main():
    """Run both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--part", choices=["mixture", "digits"], default=None)
    given = parser.parse_args()
    for part in (mixture, digits):
        if given.part in (None, part.__name__):
            part(given.steps)


if __name__ == "__main__":
    main()
