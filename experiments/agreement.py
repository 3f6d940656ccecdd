"""Shipped model: does the log-density tracked under guidance equal that by the PF-ODE?

For each q the log-density tracked while sampling is compared with the likelihood of the samples,
and the mean difference is split into what the solvers leave (coarse against fine grid, same
probes), what the probes leave (a standard error), and the rest: the model's own inconsistency,
since a learned score is not exactly a gradient that obeys the heat equation.

    python experiments/agreement.py [--model FOLDER] [--q 0.2 0.5 0.8]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dgjax
from dgjax.checkpoints.opened import open_model

LATENTS, BATCH = 16, 8
SPLIT = 8  # latents used for the split, which takes fine grids
STEPS, FINE, PROBES = 32, 64, 4
QUANTILES = (0.2, 0.35, 0.5, 0.65, 0.8)
SOLVER = dgjax.Multistep()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist", help="shipped model or folder")
    parser.add_argument("--q", type=float, nargs="+", default=QUANTILES)
    given = parser.parse_args()
    opened = open_model(given.model)
    model, meta = opened.field, opened.meta
    size = int(np.prod(meta.shape))
    keys = jax.random.split(jax.random.key(3), LATENTS)
    latents = jax.vmap(lambda k: dgjax.prior_sample(model, k, meta.shape))(keys)

    def tracked(model, x, key, q, steps, divergence):
        grid, guide = dgjax.grid_logsnr(model, steps), dgjax.density_guidance(q)
        found = dgjax.sample(
            model, x, grid, key=key, guides=(guide,), divergence=divergence, solver=SOLVER
        )
        return found.x, found.log_density, found.info.standard_error

    def recomputed(model, x, key, steps, divergence):
        grid = dgjax.grid_logsnr(model, steps)
        found = dgjax.likelihood(model, x, grid, key=key, divergence=divergence, solver=SOLVER)
        return found.log_density, found.info.standard_error

    def both(steps, probes):
        """Sample and measure with different probes, like the commands."""

        @jax.jit
        def run(model, x, keys, q):
            def one(x, key):
                a, b = jax.random.split(key)
                y, log_density, _ = tracked(model, x, a, q, steps, dgjax.Hutchinson(1))
                return y, log_density, *recomputed(model, y, b, steps, dgjax.Hutchinson(probes))

            return jax.vmap(one)(x, keys)

        return run

    def split(steps):
        """Sample and measure with the same probes on all grids, so that only the grid differs."""

        @jax.jit
        def run(model, x, keys, q):
            def one(x, key):
                fixed = dgjax.FixedProbe(dgjax.Hutchinson(2), key)
                y, log_density, error = tracked(model, x, key, q, steps, fixed)
                return log_density, error, *recomputed(model, y, key, steps, fixed)

            return jax.vmap(one)(x, keys)

        return run

    plain, coarse, fine = both(STEPS, PROBES), split(STEPS), split(FINE)
    header = [
        "| q | tracked, nats | recomputed | difference per dim | correlation "
        "| solver per dim (tracked, recomputed) | probes, s.e. per dim | model per dim "
        "| PNG bytes |",
        "|---" * 9 + "|",
    ]
    print(*header, sep="\n")
    for q in track(given.q, "agreement"):
        parts = [
            plain(model, latents[i : i + BATCH], keys[i : i + BATCH], q)
            for i in range(0, LATENTS, BATCH)
        ]
        x, t, r, _ = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in range(4))
        bytes_ = np.mean([dgjax.png_bytes(i, meta.data_range) for i in x])
        few = (model, latents[:SPLIT], keys[:SPLIT], jnp.asarray(q))
        t0, _, r0, _ = map(np.asarray, coarse(*few))
        t1, te, r1, re = map(np.asarray, fine(*few))
        # The same probes serve both directions, so their errors do not add: the difference's own.
        spread = np.std(t1 - r1, ddof=1) / np.sqrt(SPLIT)
        print(
            f"| {q} | {t.mean():.1f} | {r.mean():.1f} | {(t - r).mean() / size:+.4f} "
            f"| {np.corrcoef(t, r)[0, 1]:.4f} "
            f"| {(t0 - t1).mean() / size:+.5f}, {(r0 - r1).mean() / size:+.5f} "
            f"| {np.sqrt((te**2 + re**2).mean() / SPLIT) / size:.4f} "
            f"| {(t1 - r1).mean() / size:+.4f} ± {spread / size:.4f} | {bytes_:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
