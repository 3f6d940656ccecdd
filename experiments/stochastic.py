"""Stochastic density guidance: does the log-density of a noisy path stay what was asked?

True minus tracked log-density at the end (RMS over paths, nats) on a 16-D five-component mixture
with noise along the level set at all noise levels, for every scheme and number of steps. Slopes
are of log error on log step over the finer half.

    python experiments/stochastic.py
"""

from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dgjax

SIZE, COMPONENTS, PATHS, Q = 16, 5, 64, 0.5
STEPS = (32, 64, 128, 256)
SCHEMES = {
    "published (Ito, exact Laplacian)": (diffrax.Euler(), dgjax.published_stochastic()),
    "noise-matched Ito": (diffrax.Euler(), dgjax.noise_matched()),
    "Stratonovich Heun": (diffrax.Heun(), dgjax.level_set_noise()),
    "Stratonovich RK4": (dgjax.RK4(), dgjax.level_set_noise()),
    "Stratonovich Dopri5": (diffrax.Dopri5(), dgjax.level_set_noise()),
}
OUT = Path(__file__).parent / "figures" / "stochastic.md"


def mixture(key):
    """Five full covariances, standard deviations from 0.3 to 1, means of unit spread."""
    keys = jax.random.split(key, 2)
    turns = jnp.linalg.qr(jax.random.normal(keys[0], (COMPONENTS, SIZE, SIZE)))[0]
    scales = jnp.logspace(jnp.log10(0.3), 0.0, SIZE)
    covariances = jnp.einsum("kij,j,klj->kil", turns, scales**2, turns)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    means = jax.random.normal(keys[1], (COMPONENTS, SIZE))
    return dgjax.gaussian_mixture(jnp.ones(COMPONENTS), means, covariances)


def main():
    jax.config.update("jax_enable_x64", True)
    clock = 1 / 7
    model = dgjax.closed_form(
        mixture(jax.random.key(0)), dgjax.edm(7.0), t_min=0.05**clock, t_max=20.0**clock
    )
    keys = jax.random.split(jax.random.key(1), PATHS)
    latents = jax.vmap(lambda k: dgjax.prior_sample(model, k, (SIZE,)))(keys)
    lines = [
        "| scheme | " + " | ".join(f"{n} steps" for n in STEPS) + " | slope |",
        "|---" * (2 + len(STEPS)) + "|",
    ]
    for name, (solver, noise) in SCHEMES.items():
        errors = []
        for steps in STEPS:
            grid = dgjax.grid_uniform(model, steps)

            def one(x, key, grid=grid, noise=noise, solver=solver):
                found = dgjax.sample(
                    model,
                    x,
                    grid,
                    key=key,
                    guides=(dgjax.density_guidance(Q),),
                    noise=noise,
                    divergence=dgjax.Exact(),
                    solver=solver,
                )
                return dgjax.log_density(model, model.t_min, found.x) - found.log_density

            errors.append(float(jnp.sqrt(jnp.mean(jax.jit(jax.vmap(one))(latents, keys) ** 2))))
        slope = -np.polyfit(np.log(STEPS[-2:]), np.log(errors[-2:]), 1)[0]
        lines.append(f"| {name} | " + " | ".join(f"{e:.2g}" for e in errors) + f" | {slope:.1f} |")
        print(lines[-1], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
