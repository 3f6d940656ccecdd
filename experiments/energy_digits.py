"""Energy network beside a score network on digits (8x8): how far is each from one density?

Both are trained with equal steps and nearly equal parameters, the score network by denoising and
the energy network by denoising and time-score matching. Held-out digits are measured, with exact
divergences, so that what differs is the networks': log p by the PF-ODE and by two other routes (a
straight line, `dgjax.route_gap`, and one evaluation of the energy), log-density tracked under
density guidance less recomputed by the PF-ODE, and the inconsistency at five noise levels.

    python experiments/energy_digits.py
"""

import argparse
from functools import partial

import claims
import jax
import jax.numpy as jnp
import numpy as np
from consistency_penalty import guided_gaps, route_gaps
from energy import MLP, T, by_ode, config_of, held_out, train

import dgjax
from dgjax.model.energy import EnergyPrediction
from dgjax.training import load_config

SHAPE, COUNT, BATCH = (8, 8, 1), 128, 128
QUANTILES = 0.2, 0.35, 0.5, 0.65, 0.8
LEVELS = np.geomspace(T, 80.0, 5)


def one_evaluation(model, x):
    """Return log p(x) by one evaluation of the normalized energy."""
    model, _ = dgjax.normalize(model, jax.random.key(3), samples=1024)
    return jax.jit(jax.vmap(lambda m, x: dgjax.log_density(m, T, x), (None, 0)))(model, x)


def routes(model, clean, noise, log_p):
    """Return a row: log p by the PF-ODE, and other routes less it, in nats per dimension."""
    size, gaps = clean[0].size, [route_gaps(model, clean, noise)]
    if isinstance(model.parametrization, EnergyPrediction):
        gaps.append(one_evaluation(model, clean + T * noise) - log_p)
    cells = [f"{float(a.mean()) / size:+.4f}, {float(a.std()) / size:.4f}" for a in gaps]
    return [claims.mean_error(np.asarray(log_p) / size, 3), *cells, *[""] * (2 - len(cells))]


def levels(model, clean, noise):
    """Yield noise level, transport, residual and curl, nats per dimension."""
    keys = jax.random.split(jax.random.key(7), len(clean))

    def one(model, t, x, key):
        return dgjax.inconsistency(model, t, x, key=key, divergence=dgjax.Exact())

    run = jax.jit(lambda m, t, x, k: jax.lax.map(lambda a: one(m, t, *a), (x, k), batch_size=16))
    for sigma in LEVELS:
        points = run(model, jnp.float32(sigma), clean + sigma * noise, keys)
        found = dgjax.inconsistency_statistics(points)
        shown = found.transport, found.residual, found.curl
        yield [f"{sigma:.3g}", *(claims.between(a, 3) for a in shown)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args().steps
    config = load_config("digits")
    data = {"dataset": "digits", "sigma_data": config.data.sigma_data}
    clean = held_out(config.data, SHAPE, COUNT, noise=0.0)
    noise = jax.random.normal(jax.random.key(4), clean.shape)
    tables = [], [], []
    for kind in ("score", "energy"):
        run = config_of(kind, SHAPE, steps, data, MLP | {"width": 256}, BATCH)
        model, weights, seconds = train(run)
        log_p = by_ode(model, clean + T * noise)
        facts = f"{weights:,}", f"{1e3 * seconds:.1f}"
        tables[0].append([kind, *facts, *routes(model, clean, noise, log_p)])
        print(tables[0][-1], flush=True)
        guided = map(partial(guided_gaps, model), QUANTILES)
        tables[1].append([kind, *(claims.mean_error(np.asarray(a) / 64, 4) for a in guided)])
        print(tables[1][-1], flush=True)
        tables[2].extend([kind, *row] for row in levels(model, clean, noise))
    headers = (
        ["network", "weights", "ms a step", "log p, nats/dim", "line less PF-ODE", "one less it"],
        ["network", *(f"q = {q}" for q in QUANTILES)],
        ["network", "noise", "transport [95 %]", "residual", "curl"],
    )
    names = "energy_digits", "energy_digits-guided", "energy_digits-levels"
    for name, header, rows in zip(names, headers, tables, strict=True):
        claims.report(name, header, rows)


if __name__ == "__main__":
    main()
