"""Probe noise: error of the log-density by an estimated divergence, and its cost.

Points of a trajectory of the model are held fixed, and at each of them every estimator draws many
times, so that the figures are of probes alone, free of solver errors. The standard error of the
whole log-density follows from the variances at the points and the weights that the integral gives
them. `products` are jvps to a point; the gain is the ratio of variances to plain random signs with
as many products.

    python experiments/probe_noise.py fashion-mnist
    python experiments/probe_noise.py photo-patches
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dgjax
from dgjax.model.divergence import gaussian, sphere

STEPS, LATENTS, DRAWS = 24, 2, 16
ESTIMATORS = {  # products to a draw, and the estimator
    "random signs": (1, dgjax.Hutchinson()),
    "Gaussian": (1, dgjax.Hutchinson(1, gaussian)),
    "sphere": (1, dgjax.Hutchinson(1, sphere)),
    "Hutch++ (4, 4)": (12, dgjax.HutchPP(4, 4)),
    "2 colours": (2, dgjax.Coloured(2)),
    "5 colours": (5, dgjax.Coloured(5)),
    "8 colours": (8, dgjax.Coloured(8)),
    "13 colours": (13, dgjax.Coloured(13)),
}
OUT = Path(__file__).parent / "figures"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=dgjax.pretrained_models())
    name = parser.parse_args().model
    model, meta = dgjax.load_pretrained(name)
    model = dgjax.repath(model, dgjax.edm(7.0))
    grid = dgjax.grid_uniform(model, STEPS)
    keys = jax.random.split(jax.random.key(0), LATENTS)

    @jax.jit
    def trajectory(model, key):
        x = dgjax.prior_sample(model, key, meta.shape)
        options = {"divergence": dgjax.Untracked(), "save": dgjax.Trajectory}
        return dgjax.sample(model, x, grid, key=key, **options).trajectory.x

    @jax.jit
    def variances(model, t, x, key):
        """Return the variance of one draw of each estimator of the divergence of x0 at (t, x)."""
        _, jvp = jax.linearize(lambda x: dgjax.denoise(model, t, x), x)
        draws = jax.random.split(key, DRAWS)
        found = {}
        for name, (products, estimator) in ESTIMATORS.items():
            times = max(1, 4 // products)  # draws are cheap for one product
            more = jax.vmap(lambda k, n=times: jax.random.split(k, n))(draws).reshape(-1)
            call = lambda key, e=estimator: jnp.mean(e(jvp, x, key))
            found[name] = jnp.var(jax.lax.map(call, more, batch_size=8), ddof=1)
        return found

    # By the trapezium, d log p = -div u dt = (div x0 - D) d log sigma along the PF-ODE.
    log_sigma = np.log(np.asarray(jax.vmap(model.path.sigma)(grid), np.float64))
    weights = np.gradient(log_sigma)
    weights[[0, -1]] /= 2

    parts = {name: np.zeros(STEPS + 1) for name in ESTIMATORS}
    for key in track(keys, "probe noise"):
        for i, x in enumerate(trajectory(model, key)):
            found = variances(model, grid[i], x, jax.random.fold_in(key, i))
            for name, variance in found.items():
                parts[name][i] += weights[i] ** 2 * float(variance) / LATENTS

    plain = parts["random signs"]
    lines = [
        "| estimator | products a step | s.e. of the log-density, nats | gain at equal products |",
        "|---|---|---|---|",
    ]
    for estimator, (products, _) in ESTIMATORS.items():
        total = parts[estimator].sum()
        gain = plain.sum() / products / total
        lines.append(f"| {estimator} | {products} | {np.sqrt(total):.2f} | {gain:.2f} |")
    spread = plain.sum() / (np.sqrt(plain).sum() ** 2 / len(plain))
    lines.append("")
    lines.append(f"As many random signs, spread over the steps as is best: gain {spread:.2f}.")
    print("\n".join(lines))
    OUT.mkdir(exist_ok=True)
    (OUT / f"probe-noise-{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
