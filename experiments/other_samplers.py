"""Log-density of other samplers, from their trajectories alone.

DDIM, DPM-Solver++(2M), ancestral sampling of DDPM and the churned Heun of EDM are written below as
their users would: NumPy, a loop over noise levels, a denoiser to call. Spacetime quadrature finds
the log-density of the last point. On a mixture (256-D, float64, exact divergence) its error is
against the closed form; for deterministic samplers beside that of summing the divergence of the
PF-ODE over the very steps. On fashion-mnist it is the gap to the log-density of the same images by
the PF-ODE. Churn adds as much noise as there is in one step, a jump that asks for more nodes; it is
measured with the points after the noise and without them.

    python experiments/other_samplers.py
    python experiments/other_samplers.py --preset cifar10 --model FOLDER
"""

from functools import partial
from itertools import pairwise

import claims
import jax
import jax.numpy as jnp
import numpy as np
from reverse_sde import cloud, rms

import dgjax
from dgjax.pictures.grid import image_grid

STEPS, NODES, RANGE, PATHS = (16, 32, 64), (2, 3, 4), (0.02, 80.0), 8  # on the mixture
PROBES, DIVERGENCE = dgjax.Hutchinson(2), dgjax.Coloured()  # of quadrature, and of the PF-ODE


def ddim(denoise, x, sigmas, rng):
    """DDIM (Song et al. 2021) with eta = 0."""
    del rng
    points = [x]
    for now, after in pairwise(sigmas):
        x0 = denoise(x, now)
        x = x0 + after / now * (x - x0)
        points.append(x)
    return sigmas, np.stack(points)


def dpm_solver(denoise, x, sigmas, rng):
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2 with alpha = 1."""
    del rng
    points, before, last = [x], None, None
    for now, after in pairwise(sigmas):
        h = np.log(now / after)
        x0 = denoise(x, now)
        guess = x0 if before is None else x0 + 0.5 * h / last * (x0 - before)
        x = after / now * x - np.expm1(-h) * guess
        before, last = x0, h
        points.append(x)
    return sigmas, np.stack(points)


def ancestral(denoise, x, sigmas, rng):
    """DDPM, Ho et al. 2020, eq. 7 and algorithm 2: on its own, variance-preserving scale."""
    products = 1 / (1 + sigmas**2)  # alpha-bar
    x = np.sqrt(products[0]) * x
    points = [x]
    for i in range(len(sigmas) - 1):
        now, after = products[i], products[i + 1]
        beta = 1 - now / after
        x0 = denoise(x / np.sqrt(now), sigmas[i])
        mean = np.sqrt(after) * beta * x0 + np.sqrt(1 - beta) * (1 - after) * x
        variance = (1 - after) / (1 - now) * beta
        x = mean / (1 - now) + np.sqrt(variance) * rng.standard_normal(x.shape)
        points.append(x)
    # Back to the scale of the data: what is handed over is x/alpha at sigma/alpha.
    return sigmas, np.stack([p / np.sqrt(a) for p, a in zip(points, products, strict=True)])


def churned_heun(denoise, x, sigmas, rng, churn=40.0, least=0.05, most=50.0, noise=1.003):
    """Karras et al. 2022, algorithm 2, with the points after each addition of noise."""
    levels, points = [sigmas[0]], [x]
    for now, after in pairwise(sigmas):
        gamma = min(churn / (len(sigmas) - 1), np.sqrt(2) - 1) if least <= now <= most else 0.0
        higher = now * (1 + gamma)
        if gamma:
            x = x + np.sqrt(higher**2 - now**2) * noise * rng.standard_normal(x.shape)
            levels.append(higher)
            points.append(x)
        slope = (x - denoise(x, higher)) / higher
        guess = x + (after - higher) * slope
        x = x + (after - higher) * 0.5 * (slope + (guess - denoise(guess, after)) / after)
        levels.append(after)
        points.append(x)
    return np.array(levels), np.stack(points)


def churned_heun_on_grid(denoise, x, sigmas, rng):
    """Churned Heun, returning only the points at `sigmas`."""
    levels, points = churned_heun(denoise, x, sigmas, rng)
    kept = np.isin(levels, sigmas)
    return levels[kept], points[kept]


SAMPLERS = {
    "DDIM": ddim,
    "DPM-Solver++(2M)": dpm_solver,
    "ancestral (DDPM)": ancestral,
    "churned Heun (EDM)": churned_heun,
    "churned Heun, without the points after noise": churned_heun_on_grid,
}


def karras(low, high, steps, rho=7.0):
    """Return noise levels from `high` to `low`, uniform in sigma^(1/rho)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps + 1) ** rho


def denoiser(model):
    """Make a function for E[x_0 | x] of a batch (n, *shape) with noise sigma, on NumPy arrays."""
    run = jax.jit(
        lambda model, x, t: jax.vmap(
            lambda x: dgjax.denoise(model, model.path.time(-2 * jnp.log(t)), x)
        )(x)
    )
    return lambda x, sigma: np.asarray(run(model, jnp.asarray(x), jnp.asarray(sigma)), x.dtype)


def summed(model, ts, xs):
    """Sum the divergence of the PF-ODE at the start of every step to a log-density."""

    def rate(t, x):
        return dgjax.evaluate(
            model, t, x, divergence=dgjax.Exact(), key=jax.random.key(0)
        ).divergence

    rates = jax.lax.map(lambda item: rate(*item), (ts[:-1], xs[:-1]))
    return dgjax.log_prior(model, xs[0]) - jnp.sum(rates * jnp.diff(ts))


def of_mixture(model, data, sampler, steps, paths=PATHS):
    """Return log-densities (paths,) of end points: exact, by quadrature for NODES, summed."""
    sigmas = karras(*RANGE, steps)
    keys = jax.random.split(jax.random.key(1), paths)
    x = np.asarray(jax.vmap(lambda key: data.sample(key, RANGE[1]))(keys))
    levels, xs = sampler(denoiser(model), x, sigmas, np.random.default_rng(0))
    ts = jnp.asarray(levels)

    @jax.jit
    def run(xs):
        find = partial(dgjax.quadrature, model, ts, xs, key=keys[0], divergence=dgjax.Exact())
        by = [find(nodes=nodes).log_density[-1] for nodes in NODES]
        return dgjax.log_density(model, ts[-1], xs[-1]), *by, summed(model, ts, xs)

    return np.array([run(jnp.asarray(one)) for one in xs.swapaxes(0, 1)]).T


def mixture_rows():
    data = cloud()
    model = dgjax.closed_form(data, dgjax.edm(), t_min=RANGE[0], t_max=RANGE[1])
    for name, sampler in SAMPLERS.items():
        for steps in STEPS:
            true, *found, naive = of_mixture(model, data, sampler, steps)
            cells = [f"{rms(f - true):.2g}" for f in (naive, *found)]
            if sampler not in (ddim, dpm_solver):
                cells[0] = ""
            yield [name, str(steps), claims.mean_error(true), *cells]


def of_images(setup, sampler, steps):
    """Return (denoised, log p by quadrature, its s.e., by the PF-ODE, its s.e.)."""
    field, count = setup.model.field, max(setup.preset.count // 4, claims.LEAST)
    sigmas = karras(*setup.sigmas, steps)
    latents = jax.vmap(lambda key: dgjax.prior_sample(field, key, setup.model.meta.shape))
    x = np.asarray(latents(claims.keys(setup, count)))
    rng = np.random.default_rng(setup.seed)
    levels, xs = sampler(denoiser(field), x, sigmas, rng)
    ts = jax.vmap(field.path.time)(-2 * jnp.log(jnp.asarray(levels, jnp.float32)))
    ts = ts.at[0].set(field.t_max).at[-1].set(field.t_min)  # to the last digit
    grid = dgjax.grid_logsnr(field, 2 * setup.preset.steps)

    def one(field, xs, key):
        keys = jax.random.split(key)
        found = dgjax.quadrature(field, ts, xs, key=keys[0], divergence=PROBES, batch=1)
        again = dgjax.likelihood(field, xs[-1], grid, key=keys[1], divergence=DIVERGENCE)
        denoised = dgjax.denoise(field, grid[-1], xs[-1])
        error = found.standard_error[-1]
        return denoised, found.log_density[-1], error, again.log_density, again.info.standard_error

    return claims.each(
        "quadrature", one, setup, xs.astype(np.float32).swapaxes(0, 1), claims.keys(setup, count, 1)
    )


def image_row(setup, name, steps, denoised, found, error, again, again_error):
    gap = (found - again) / setup.model.size
    return [
        name,
        str(steps),
        str(len(found)),
        claims.mean_error(found),
        claims.probe_error(error),
        claims.mean_error(again),
        claims.probe_error(again_error),
        claims.mean_error(found - again),
        f"{gap.mean():+.3f}",
        f"{np.corrcoef(found, again)[0, 1]:.4f}",
        claims.mean_error(claims.sizes(setup, denoised)),
    ]


def main():
    setup = claims.start(__doc__)
    steps = setup.preset.steps
    groups = {
        (name, n): of_images(setup, sampler, n)
        for name, sampler in SAMPLERS.items()
        for n in (steps, 2 * steps)
    }
    header = ["sampler", "steps", "images", "log p by quadrature, nats", "probes, s.e."]
    header += ["by the PF-ODE, nats", "probes, s.e.", "gap, nats", "per dim", "correlation"]
    header += ["PNG without noise, bytes"]
    rows = [image_row(setup, *key, *group) for key, group in groups.items()]
    claims.report("other_samplers", header, rows)
    shown = {name: group for (name, n), group in groups.items() if n == steps}
    del shown["churned Heun, without the points after noise"]  # the same images
    figure = image_grid(
        claims.levels(setup, np.stack([group[0][:8] for group in shown.values()])),
        [f"{name}\nlog p {group[1].mean():,.0f}" for name, group in shown.items()],
        title=f"Four samplers from the same latents, {steps} steps",
        caption="Mean log p in nats at t_min by quadrature; images without the noise of t_min.",
    )
    claims.save(figure, "other_samplers")
    print()
    jax.config.update("jax_enable_x64", True)
    header = ["sampler", "steps", "true log p, nats", "error, divergence summed"]
    header += [f"error, quadrature with {nodes} nodes" for nodes in NODES]
    claims.report("other_samplers_mixture", header, mixture_rows())


if __name__ == "__main__":
    main()
