"""Claims of the papers where everything is known: a 16-D mixture of five Gaussians.

1. The log-density tracked along the reverse SDE ([HD]) against that of the PF-ODE at the same
   sample, which is the true one here: correlation over samples, by the number of Euler-Maruyama
   steps.
2. Its bias under a wrong score s + e. With the SDE of the wrong score the tracked log-density is,
   along each path and in the limit of small steps,

       log p + 1/2 integral of g^2 |e|^2 |dt| + integral of g <e, dW>,

   so that its mean is too high by half the integral of g^2 E|e|^2.
3. The mode-tracking ODE ([HD]) beside the high-density sampler. The mode y of p(x_t | x_s) has
   score(y) = (y - x_s)/(w_s^2 - w^2), and with the variance v = w^2 and d = v_s - v it moves by

       dy/dv = (I - d H)^-1 (d ds/dv - s),    ds/dv = 1/2 grad(Lap log p + |s|^2),

   with H the Hessian of log p. Without the terms in d, dy/dv = -s is the ODE with twice the score.
4. Latents at the median of the chi distribution, the published convention, beside free ones.
5. Guided samples reweighed to the model by the density of where they fall: the mean weight is 1.

    python experiments/low_dimension.py
"""

import argparse
from functools import partial

import claims
import diffrax
import imperfect_score
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from stochastic import small

import dgjax

SIGMAS, COUNT = (0.05, 20.0), 128
STEPS = (16, 64, 256, 1024)
SIZES = (0.05, 0.1, 0.2, 0.4)  # of the error of sigma x score, in each dimension
STARTS = (0.3, 0.6, 1.0, 2.0)  # noise levels at which x_s is
EXACT = dgjax.Exact(chunk=16)
GUIDES = {
    "temperature 0.95": dgjax.temperature(0.95, scale=1.0),
    "temperature 1.05": dgjax.temperature(1.05, scale=1.0),
    "density guidance, q = 0.52, bound 0.1": dgjax.density_guidance(0.52, bound=0.1),
}


def latents(model, count=COUNT, seed=0):
    """Return (n, D) latents and (n,) keys."""
    keys = jax.random.split(jax.random.key(seed), (2, count))
    draw = lambda k: dgjax.prior_sample(model, k, model.network.shape)
    return jax.vmap(draw)(keys[0]), keys[1]


def closed(mixture):
    return dgjax.closed_form(mixture, dgjax.edm(), t_min=SIGMAS[0], t_max=SIGMAS[1])


def reverse(model, x, key, steps, true=None):
    """Sample the reverse SDE, with its tracked log-density.

    `true` is the mixture of the true score. Returned are (x, tracked, integral of g^2 |e|^2/2, the
    same plus integral of g <e, dW>), the last two 0 without it.
    """
    grid = dgjax.grid_logsnr(model, steps)
    found = dgjax.sample(
        model,
        x,
        grid,
        key=key,
        noise=dgjax.reverse_sde_ito(),
        divergence=dgjax.Untracked(),
        solver=diffrax.Euler(),
        save=dgjax.Trajectory,
    )
    if true is None:
        return found.x, found.log_density, 0.0, 0.0
    xs, widths = found.trajectory.x, -jnp.diff(grid**2)  # g^2 |dt|
    scores = jax.vmap(partial(dgjax.score, model))(grid[:-1], xs[:-1])
    errors = scores - jax.vmap(lambda t, x: -true.pair(x, t).eps / t)(grid[:-1], xs[:-1])
    bias = 0.5 * jnp.sum(widths * jnp.sum(errors**2, 1))
    noise = jnp.diff(xs, axis=0) - widths[:, None] * scores  # of the step, g dW
    return found.x, found.log_density, bias, bias + jnp.sum(errors * noise)


def correlations(mixture):
    """Yield rows of the tracked against the true log-density."""
    model = closed(mixture)
    for steps in STEPS:
        run = jax.jit(jax.vmap(partial(reverse, model, steps=steps)))
        x, tracked, *_ = run(*latents(model))
        true = np.asarray(jax.vmap(partial(dgjax.log_density, model, model.t_min))(x))
        off = np.asarray(tracked) - true
        yield [
            f"{steps:,}",
            claims.between(claims.correlation(tracked, true), 3),
            claims.mean_error(off, 2),
            f"{off.std(ddof=1):.2f}",
            f"{true.std(ddof=1):.2f}",
        ]


def biases(mixture, steps=STEPS[-1]):
    """Yield rows of the bias under a wrong score, measured and by the formula."""
    for size in SIZES:

        def one(x, key, size=size):
            wrong = imperfect_score.wrong(mixture, size, jax.random.fold_in(key, 1))
            exact = reverse(closed(mixture), x, key, steps)
            found = reverse(wrong, x, key, steps, mixture)
            log_p = lambda x: mixture.log_density(x, SIGMAS[0])
            return *found, log_p(found[0]), exact[1] - log_p(exact[0])

        x, keys = latents(closed(mixture))
        _, tracked, bias, path, true, euler = map(np.asarray, jax.jit(jax.vmap(one))(x, keys))
        off = tracked - true
        yield [
            f"{size:g}",
            claims.mean_error(off, 2),
            claims.mean_error(off - euler, 2),
            claims.mean_error(bias, 2),
            claims.between(claims.correlation(off, path), 3),
        ]


def mode_tracking(mixture, x, sigma, steps=200):
    """Follow the mode of p(x_t | x_s) from x_s = `x` at noise `sigma` to the least noise."""
    score = lambda y, v: -mixture.pair(y, jnp.sqrt(v)).eps / jnp.sqrt(v)

    def rate(v, y):
        hessian = jax.jacfwd(score)(y, v)
        inner = lambda y: jnp.trace(jax.jacfwd(score)(y, v)) + jnp.sum(score(y, v) ** 2)
        far = sigma**2 - v
        right = 0.5 * far * jax.grad(inner)(y) - score(y, v)
        return jnp.linalg.solve(jnp.eye(y.size) - far * hessian, right)

    return follow(rate, x, sigma, steps)


def weighted_score(mixture, x, sigma, weight, steps=200):
    """Follow the ODE of the score times `weight`: 1 is the PF-ODE, 2 the high-density sampler."""
    rate = lambda v, y: 0.5 * weight * mixture.pair(y, jnp.sqrt(v)).eps / jnp.sqrt(v)
    return follow(rate, x, sigma, steps)


def follow(rate, x, sigma, steps):
    """Integrate dy/dv = rate(v, y) down to the least noise by RK4, uniformly in log v."""
    levels = jnp.geomspace(sigma**2, SIGMAS[0] ** 2, steps + 1)

    def step(y, ends):
        v, h = ends[0], ends[1] - ends[0]
        a = rate(v, y)
        b = rate(v + h / 2, y + h / 2 * a)
        c = rate(v + h / 2, y + h / 2 * b)
        d = rate(v + h, y + h * c)
        return y + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(step, x, (levels[:-1], levels[1:]))[0]


def modes(mixture, count=64):
    """Yield rows of log p(x_0 | x_s), less that of the best mode found, for three samplers."""
    low, keys = SIGMAS[0], jax.random.split(jax.random.key(2), count)
    for sigma in STARTS:
        x = jax.vmap(lambda k, s=sigma: mixture.sample(k, s))(keys)

        def posterior(y, x, sigma=sigma):  # up to a constant
            return mixture.log_density(y, low) - jnp.sum((y - x) ** 2) / (2 * (sigma**2 - low**2))

        runs = [partial(mode_tracking, mixture, sigma=sigma)]
        runs += [partial(weighted_score, mixture, sigma=sigma, weight=w) for w in (2, 1)]
        ends = [jax.jit(jax.vmap(run))(x) for run in runs]
        slope = jax.jit(jax.value_and_grad(lambda y, x: -posterior(y, x)))
        best = [
            -min(
                minimize(slope, np.asarray(start), (one,), jac=True, method="BFGS").fun
                for start in (*mixture.means, *(end[i] for end in ends))
            )
            for i, one in enumerate(x)
        ]
        lost = [np.asarray(best) - np.asarray(jax.vmap(posterior)(end, x)) for end in ends]
        yield [
            f"{sigma:g}",
            *(claims.mean_error(a, 3) for a in lost),
            f"{np.mean(lost[0] < 0.01):.0%}",
            f"{np.mean(lost[1] < 0.01):.0%}",
        ]


def medians(mixture):
    """Yield rows of log p of samples from free latents and from ones of the median norm."""
    model = closed(mixture)
    x, keys = latents(model, 512)
    grid = dgjax.grid_logsnr(model, 32)
    run = lambda x, key: dgjax.sample(model, x, grid, key=key, divergence=EXACT).log_density
    median = lambda x: dgjax.prior_guidance(model, x, 0.5)
    for name, start in (("free", x), ("of the median norm", jax.vmap(median)(x))):
        norms = np.linalg.norm(start, axis=1) / float(np.linalg.norm(start, axis=1).mean())
        found = np.asarray(jax.jit(jax.vmap(run))(start, keys), np.float64)
        spread = claims.between(claims.deviation(found))
        yield [name, f"{norms.std():.3f}", claims.mean_error(found, 2), spread]


def weights(mixture, count=512):
    """Yield rows of guided samples reweighed to the model, by the law of the sampler."""
    model = closed(mixture)
    x, keys = latents(model, count)
    grid, options = dgjax.grid_logsnr(model, 48), {"divergence": EXACT}
    free = lambda x, key: dgjax.sample(model, x, grid, key=key, **options).log_density
    true = np.asarray(jax.jit(jax.vmap(free))(x, keys))
    for name, guide in GUIDES.items():

        def one(x, key, guide=guide):
            run = dgjax.sample(
                model, x, grid, key=key, guides=guide, save=dgjax.Trajectory, **options
            )
            law = dgjax.sampler_law(model, run.trajectory, guide, key=key, **options)
            return run.log_density, law.log_weight[-1], law.solver_error[-1]

        log_p, log_weights, errors = map(np.asarray, jax.jit(jax.vmap(one))(x, keys))
        yield [
            name,
            claims.mean_error(np.exp(log_weights), 3),
            f"{dgjax.effective_sample_size(log_weights) / count:.0%}",
            f"{np.median(errors):.2g}",
            claims.mean_error(log_p, 2),
            claims.between(dgjax.weighted_mean(log_p, log_weights)),
            claims.mean_error(true, 2),
        ]


def main():
    parts = ("correlations", "biases", "modes", "medians", "weights")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(parts)}; all if none is given")
    asked = parser.parse_args().part or parts
    mixture = jax.jit(small)()
    if "correlations" in asked:
        header = ["steps", "correlation [95 %]", "tracked less true, nats", "its deviation"]
        header += ["deviation of log p"]
        claims.report("reverse_correlation", header, correlations(mixture))
    if "biases" in asked:
        header = ["error of sigma x score, per dim", "tracked less true, nats"]
        header += ["less that of the steps", "formula", "correlation with the formula of the path"]
        claims.report("reverse_bias", header, biases(mixture))
    if "modes" in asked:
        header = ["sigma of x_s", "mode tracking: nats below the mode", "twice the score"]
        header += ["PF-ODE", "mode tracking: at it", "twice the score: at it"]
        with jax.enable_x64():
            claims.report("mode_tracking", header, modes(jax.jit(small)()))
    if "medians" in asked:
        header = ["latents", "deviation of the norm", "log p, nats", "its deviation"]
        claims.report("median_norm", header, medians(mixture))
    if "weights" in asked:
        header = ["guide", "mean weight", "effective", "stated error of log w, median, nats"]
        header += ["log p of samples", "reweighed [95 %]", "log p of the model's samples"]
        claims.report("guided_weights", header, weights(mixture))


if __name__ == "__main__":
    main()
