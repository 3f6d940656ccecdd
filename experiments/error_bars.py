"""Compare the stated error of the solver with the true one on random Gaussian mixtures.

The log-density of a mixture is known in closed form at every noise level, and so is the true error
of `sample`, of `likelihood`, of `quadrature` and `node_quadrature` along the trajectory of
`sample`, and of `quadrature` along the reverse SDE. Mixtures of three components are drawn in
several kinds: ordinary ones, scales from 1e-3 to 10, nearly discrete ones (variance 1e-8), a weight
of 1e-6, means at a distance of 50, and ordinary ones scaled by 100 and by 1/100. `solver_error`
covers a case if the true error is at most three times it. It understates a case if the true error
is above 0.1 nats per dimension and more than ten times it.

    python experiments/error_bars.py
    python experiments/error_bars.py --mixtures 1 --latents 1 --sizes 2 --steps 16    # a minute
    python experiments/error_bars.py --solver rk4    # or with noise: --noise level_set
"""

import argparse
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.sampling.solvers import SOLVERS

W_MIN, W_MAX = 0.02, 80.0
PATHS = {"EDM": partial(dgjax.edm, 7.0), "rectified flow": dgjax.rectified_flow, "VP": dgjax.vp}
KINDS = ("ordinary", "scales", "discrete", "rare", "far", "large", "small")
NOISES = {"none": None, "level_set": dgjax.level_set_noise(), "reverse_sde": dgjax.reverse_sde()}
DEFAULTS = {"none": "multistep", "level_set": "level_set_euler", "reverse_sde": "dopri5"}
QUANTILES = (0.3, 0.5, 0.7)
ROUNDING = 1e-6  # nats below which an error is not looked at
COUNT = 3  # components
MEASURES = ("sample", "likelihood", "quadrature", "node quadrature", "quadrature of the SDE")
QUADRATURES = (dgjax.quadrature, dgjax.node_quadrature)
UNGUIDED = ("likelihood", "quadrature of the SDE")


def draw_mixtures(kind: str, size: int, number: int, seed: int):
    """Draw weights (n, 3), means (n, 3, size) and covariances (n, 3, size, size)."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(COUNT, 3.0), number)
    means = rng.normal(size=(number, COUNT, size)) * rng.uniform(0.5, 3, (number, 1, 1))
    low, high = (1e-3, 10.0) if kind == "scales" else (0.1, 1.5)
    scales = np.exp(rng.uniform(np.log(low), np.log(high), (number, COUNT, size)))
    if kind == "discrete":
        scales = np.full_like(scales, 1e-4)
    if kind == "rare":
        weights = np.broadcast_to([1e-6, 0.5, 0.5 - 1e-6], weights.shape)
    if kind == "far":
        means = 50 * means / np.linalg.norm(means, axis=-1, keepdims=True)
    factor = {"large": 100.0, "small": 0.01}.get(kind, 1.0)
    turns = np.linalg.qr(rng.normal(size=(number, COUNT, size, size)))[0]
    covariances = np.einsum("nkij,nkj,nklj->nkil", turns, (factor * scales) ** 2, turns)
    return weights, factor * means, covariances


def make_measure(path, steps: int, solver, noise=None):
    """Make a compiled function from mixtures, keys and q to true and stated errors in nats."""
    t_min, t_max = (path.time(jnp.asarray(-2 * np.log(w))) for w in (W_MIN, W_MAX))

    def one(q, mixture, key):
        model = dgjax.closed_form(mixture, path, t_min=t_min, t_max=t_max)
        grid = dgjax.grid_logsnr(model, steps)
        keys = jax.random.split(key, 3)
        latent = mixture.sample(keys[0], path.sigma(t_max) / path.alpha(t_max))
        data = mixture.sample(keys[1], path.sigma(t_min) / path.alpha(t_min))
        latent, x = latent * path.alpha(t_max), data * path.alpha(t_min)
        exact = {"key": keys[2], "divergence": dgjax.Exact()}
        saved = {**exact, "save": dgjax.Trajectory}
        options = {**saved, "solver": solver, "noise": noise}
        guides = (dgjax.density_guidance(q),)
        drawn = dgjax.sample(model, latent, grid, guides=guides, **options)
        backward = solver if noise is None else None  # a likelihood has no noise
        found = dgjax.likelihood(model, x, grid, solver=backward, **exact)

        def error(end, log_density, stated):
            return jnp.abs(log_density - dgjax.log_density(model, t_min, end)), stated

        def along(quadrature, run):
            by = quadrature(model, run.trajectory.t, run.trajectory.x, **exact)
            return error(run.x, by.log_density[-1], by.solver_error[-1])

        errors = [
            error(drawn.x, drawn.log_density, drawn.info.solver_error),
            error(x, found.log_density, found.info.solver_error),
        ]
        if noise is not None:
            return errors
        ito = {"noise": dgjax.reverse_sde_ito(), "solver": diffrax.Euler()}
        rough = dgjax.sample(model, latent, grid, **ito, **saved)
        errors += [along(quadrature, drawn) for quadrature in QUADRATURES]
        return [*errors, along(dgjax.quadrature, rough)]

    @jax.jit
    def measure(q, weights, means, covariances, keys):
        def each(weights, means, covariances, keys):
            mixture = dgjax.gaussian_mixture(weights, means, covariances)
            return jax.vmap(lambda key: one(q, mixture, key))(keys)

        return jax.vmap(each)(weights, means, covariances, keys)

    return measure


def summary(name: str, errors: np.ndarray) -> str:
    """One row of the table, of errors (n, 3): true, stated, and the dimension."""
    true, stated, size = errors.T
    covered = np.mean(true <= 3 * stated + ROUNDING)
    large = true > 0.1 * size
    understated = np.sum(large & (true > 10 * stated))
    ratio = np.median((stated / true)[true > 1e-4]) if (true > 1e-4).any() else np.nan
    quantiles = " | ".join(f"{np.quantile(true, q):.2g}" for q in (0.5, 0.99, 1))
    return (
        f"| {name} | {len(true)} | {quantiles} | {covered:.1%} | {large.sum()} | {understated} "
        f"| {ratio:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixtures", type=int, default=4, help="of each kind and size")
    parser.add_argument("--latents", type=int, default=4, help="of each mixture")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 5, 16, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--memory", type=int, default=4, help="of Multistep")
    parser.add_argument("--solver", choices=SOLVERS, help="instead of the default")
    parser.add_argument("--noise", choices=NOISES, default="none")
    options = parser.parse_args()
    name = options.solver or DEFAULTS[options.noise]
    solver = dgjax.Multistep(options.memory) if name == "multistep" else SOLVERS[name]()
    jax.config.update("jax_enable_x64", True)
    found: dict[tuple[str, str, int], list] = {}
    for name, make_path in PATHS.items():
        for size in options.sizes:
            for steps in options.steps:
                measure = make_measure(make_path(), steps, solver, NOISES[options.noise])
                for i, kind in enumerate(KINDS):
                    mixtures = draw_mixtures(kind, size, options.mixtures, 1000 * size + i)
                    keys = jax.random.split(
                        jax.random.key(steps), (options.mixtures, options.latents)
                    )
                    for q in QUANTILES:
                        measured = jax.device_get(measure(q, *mixtures, keys))
                        for what, errors in zip(MEASURES, measured, strict=False):
                            if what in UNGUIDED and q != 0.5:
                                continue  # nothing guides it
                            rows = np.stack([np.ravel(e) for e in errors], -1)
                            rows = np.column_stack([rows, np.full(len(rows), size)])
                            found.setdefault((what, kind, steps), []).append(rows)
        print(f"{name} done", flush=True)
    total = sum(options.mixtures for _ in KINDS) * len(options.sizes)
    print(f"\n{total} mixtures, {len(PATHS)} paths, {solver}, noise {options.noise}, nats\n")
    print("| | cases | median | 99 % | largest | covered | large | understated | stated/true |")
    print("|---|---|---|---|---|---|---|---|---|")
    for what in dict.fromkeys(key[0] for key in found):
        print(
            summary(
                what, np.concatenate([np.concatenate(v) for k, v in found.items() if k[0] == what])
            )
        )
        for kind in KINDS:
            rows = [np.concatenate(v) for k, v in found.items() if k[:2] == (what, kind)]
            print(summary(f"{what}, {kind}", np.concatenate(rows)))
        for steps in options.steps:
            rows = [np.concatenate(v) for k, v in found.items() if k[0] == what and k[2] == steps]
            print(summary(f"{what}, {steps} steps", np.concatenate(rows)))


if __name__ == "__main__":
    main()
