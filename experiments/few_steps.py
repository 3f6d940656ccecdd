"""Few evaluations: solvers of others beside ours, in sampling and in the likelihood of real images.

Sampling: RMS distance per element from a converged solve, in units of the data, for the same
latents and noise levels. DPM-Solver++(2M), UniPC and DEIS are written below as exponential
integrators in NumPy; all solvers have the same number of evaluations, products with the Jacobian
not counted. Multistep(2, 2, 2) and (3, 3, 2) take one more product a step than the others.

Likelihood: RMS error in bits per dimension from a converged solve with the same fixed probe, of the
model's own samples, of held-out images (photographs, if its data are not at hand) and of images out
of distribution, both dequantized. *Stated* is the RMS of `solver_error`, and *covered* the share of
images whose error is at most three times theirs. An adaptive Tsit5 is the rival there, written with
diffrax alone.

    python experiments/few_steps.py
    python experiments/few_steps.py --model photo-patches --only likelihood --evaluations 16
"""

import argparse
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import claims
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from out_of_distribution import digits, photographs

import dgjax
from dgjax.data.named_datasets import DATASETS
from dgjax.pictures.quantization import to_uint8

SAMPLING, LIKELIHOOD = (8, 12, 16, 24, 32), (4, 6, 8, 12, 16, 24)  # evaluations
CONVERGED = 128  # steps
GRIDS = {"log-SNR": dgjax.grid_logsnr, "sigma^(1/7)": dgjax.grid_karras}
TOLERANCES, TIGHT = (0.1, 0.03, 0.01, 0.003), 1e-4
OURS = {
    "Multistep(), the default": dgjax.Multistep(),
    "Multistep(3)": dgjax.Multistep(3),
    "Multistep(2)": dgjax.Multistep(2),
    "Multistep(3, 4)": dgjax.Multistep(3, 4),
    "Multistep(2, 2, 2)": dgjax.Multistep(2, 2, 2),
    "Multistep(3, 3, 2)": dgjax.Multistep(3, 3, 2),
}
FROM_DATA = "Multistep(), grid_from_data"  # the same as grid_logsnr below 16 evaluations
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


class Integrator(NamedTuple):
    """An exponential integrator of other people, with polynomials in log sigma.

    Attributes:
        order: points that a step uses; the last steps use fewer, as their authors have it.
        noise: whether the polynomial is of the noise and not of the denoised image.
        corrected: whether a step is taken again with the evaluation at its end.
        halved: whether two points get half of their difference and not the exact integral.
    """

    order: int
    noise: bool
    corrected: bool
    halved: bool


RIVALS = {
    "DPM-Solver++(2M)": Integrator(2, noise=False, corrected=False, halved=True),
    "UniPC, order 2": Integrator(2, noise=False, corrected=True, halved=True),
    "UniPC, order 3": Integrator(3, noise=False, corrected=True, halved=True),
    "DEIS, order 3": Integrator(3, noise=True, corrected=False, halved=False),
}


def advance(method, x, now, after, points):
    """Take x from one noise level to another through points (sigma, value), of which the first is
    at the start.
    """
    sigmas, values = (np.array(a) for a in zip(*points, strict=True))
    h = np.log(now / after)
    if method.halved and len(points) == 2:
        share = np.log(now / sigmas[1]) / h
        value = values[0] + 0.5 * (values[1] - values[0]) / share
        return after / now * x - np.expm1(-h) * value
    middle, half = (np.log(after) + np.log(now)) / 2, (np.log(after) - np.log(now)) / 2
    at = np.exp(middle + half * NODES)
    kernel = at if method.noise else -after / at
    weights = []
    for j, one in enumerate(np.log(sigmas)):
        others = np.delete(np.log(sigmas), j)
        lagrange = np.prod((np.log(at)[:, None] - others) / (one - others), 1)
        weights.append(half * np.sum(WEIGHTS * kernel * lagrange))
    start = x if method.noise else after / now * x
    return start + np.tensordot(np.array(weights), values, 1)


def integrate(method, denoise, x, sigmas):
    """Return the sample at the last noise level after one evaluation a step."""
    points, kept, used = [], x, 0
    steps = list(pairwise(sigmas))
    for i, (now, after) in enumerate(steps):
        image = denoise(x, now)
        value = (x - image) / now if method.noise else image
        if method.corrected and i > 0:
            before = steps[i - 1][0]
            x = advance(method, kept, before, now, [points[0], (now, value), *points[1:used]])
        points = [(now, value), *points][: method.order]
        kept, used = x, min(len(points), len(steps) - i)
        x = advance(method, x, now, after, points[:used])
    return x


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def on_edm(setup):
    """Return the setup with the field in units of the data, whose time is sigma."""
    model = setup.model
    return setup._replace(model=model._replace(field=dgjax.repath(model.field, dgjax.edm())))


def solved(setup, latents, solver, times):
    """Sample without guides."""
    probe = dgjax.FixedProbe(dgjax.Hutchinson(), jax.random.key(9))

    def one(field, x, key):
        return dgjax.sample(field, x, times, key=key, divergence=probe, solver=solver).x

    return claims.each("samples", one, setup, latents, claims.keys(setup, len(latents)))


def sampling(setup, latents, exact):
    """Yield rows of endpoint errors."""
    field = setup.model.field
    score = jax.jit(jax.vmap(dgjax.score, (None, None, 0)))

    def denoise(x, sigma):
        return x + sigma**2 * np.float64(score(field, jnp.float32(sigma), jnp.float32(x)))

    for grid_name, grid in GRIDS.items():
        rows = {name: [] for name in (*OURS, *RIVALS)}
        for count in SAMPLING:
            times = grid(field, count)
            for name, solver in OURS.items():
                rows[name].append(rms(solved(setup, latents, solver, times) - exact))
            for name, method in RIVALS.items():
                found = integrate(method, denoise, np.float64(latents), np.float64(times))
                rows[name].append(rms(found - exact))
        for name, errors in rows.items():
            yield [name, grid_name, *(f"{e:.4f}" for e in errors)]


def likelihoods(setup, x, solver, times):
    """Return log-densities and their stated errors, with one fixed probe an image."""

    def one(field, x, key):
        probe = dgjax.FixedProbe(dgjax.Hutchinson(), key)
        found = dgjax.likelihood(field, x, times, key=key, divergence=probe, solver=solver)
        return found.log_density, found.info.solver_error

    return claims.each("likelihood", one, setup, x, claims.keys(setup, len(x)))


def adaptive(field, x, key, tolerance):
    """Return log p(x) and evaluations by Tsit5 with diffrax alone."""
    probe = jax.random.rademacher(key, x.shape, x.dtype)

    def rates(t, state, args):
        del args
        u, pushed = jax.jvp(lambda x: dgjax.velocity(field, t, x), (state[0],), (probe,))
        return u, jnp.vdot(probe, pushed)

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(rates),
        diffrax.Tsit5(),
        field.t_min,
        field.t_max,
        None,
        (x, jnp.zeros(())),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
    )
    end, gain = (a[0] for a in found.ys)
    prior = -0.5 * jnp.sum((end / field.t_max) ** 2)  # up to a constant
    return prior + gain, 6 * found.stats["num_steps"] + 1


class Groups:
    """Images by the names of their groups, in one array.

    Attributes:
        names: of the groups.
        x: all images, (N, *shape).
    """

    def __init__(self, images):
        self.names, self.x = list(images), np.concatenate(list(images.values()))
        self._ends = np.cumsum([len(group) for group in images.values()])[:-1]

    def split(self, values):
        """Return pairs of a group's name and its values."""
        return zip(self.names, np.split(values, self._ends), strict=True)


def test_levels(setup):
    """Return groups of images as levels: held-out ones, and some out of distribution."""
    shape, num = setup.model.meta.shape, setup.preset.count
    rng = np.random.default_rng(0)
    if setup.data is not None or setup.model.name in DATASETS:
        groups = {
            "held-out images": to_uint8(claims.images(setup, num), setup.model.meta.data_range)
        }
    else:
        groups = {"photographs": photographs(shape, num, rng)}
    other = digits if shape[-1] == 3 else photographs
    groups[other.__name__] = other(shape, num, rng)
    return groups


def dequantized(setup, groups, stream=2):
    """Return the groups dequantized, with keys of the stream."""
    one = partial(dgjax.dequantize, data_range=setup.model.meta.data_range)
    spread = lambda levels: jax.vmap(one)(claims.keys(setup, len(levels), stream), levels)
    return {name: np.asarray(spread(levels)) for name, levels in groups.items()}


def measured(setup, groups, tried):
    """Yield rows of the likelihood's error in bits per dimension by solvers with fixed steps.

    Args:
        setup: of the experiment.
        groups: the images.
        tried: (name, solver, grid, numbers of evaluations) of each.
    """
    field, unit = setup.model.field, setup.model.size * np.log(2)
    grid = dgjax.grid_logsnr(field, CONVERGED)
    exact, _ = likelihoods(setup, groups.x, dgjax.Multistep(), grid)
    for solver_name, solver, make_grid, counts in tried:
        for count in counts:
            found, stated = likelihoods(setup, groups.x, solver, make_grid(field, count - 1))
            errors = groups.split(np.abs(found - exact))
            for (name, error), (_, of) in zip(errors, groups.split(stated), strict=True):
                cells = [f"{rms(error) / unit:.4f}", f"{rms(of) / unit:.4f}"]
                cells.append(f"{np.mean(error <= 3 * of):.0%}")
                yield [name, solver_name, str(count), *cells]


def measured_adaptive(setup, groups):
    """Yield rows of the likelihood's error by Tsit5, whose number of evaluations is a mean."""
    keys, unit = claims.keys(setup, len(groups.x)), setup.model.size * np.log(2)

    def run(tolerance):
        one = partial(adaptive, tolerance=tolerance)
        return claims.each("Tsit5", one, setup, groups.x, keys)

    exact = run(TIGHT)[0]
    for tolerance in TOLERANCES:
        found, used = run(tolerance)
        errors = groups.split(found - exact)
        for (name, error), (_, count) in zip(errors, groups.split(used), strict=True):
            cells = [f"{np.mean(count):.0f}", f"{rms(error) / unit:.4f}", "", ""]
            yield [name, f"Tsit5, tolerance {tolerance:g}", *cells]


def main():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--only", choices=["sampling", "likelihood"])
    options.add_argument(
        "--evaluations", type=int, nargs="+", default=LIKELIHOOD, help="of likelihoods"
    )
    options.add_argument("--solver", action="append", choices=OURS, help="likelihoods of it alone")
    setup = claims.start(__doc__, options)
    asked = options.parse_known_args()[0]
    shape, num = setup.model.meta.shape, setup.preset.count
    groups = dequantized(setup, test_levels(setup))
    setup = on_edm(setup)
    field = setup.model.field
    draw = lambda key: dgjax.prior_sample(field, key, shape)
    latents = np.asarray(jax.vmap(draw)(claims.keys(setup, num, 1)))
    exact = solved(setup, latents, dgjax.Multistep(), dgjax.grid_logsnr(field, CONVERGED))
    title = f"few_steps-{setup.title}"
    if asked.only != "likelihood":
        header = ["solver", "grid", *(f"{n} evaluations" for n in SAMPLING)]
        claims.report(f"{title}-sampling", header, sampling(setup, latents, exact))
    if asked.only == "sampling":
        return
    images = Groups({"own samples": exact, **groups})
    solvers = asked.solver or OURS
    tried = [(name, OURS[name], dgjax.grid_logsnr, asked.evaluations) for name in solvers]
    if asked.solver is None:  # all that the table in RESULTS.md has
        many = [count for count in asked.evaluations if count >= 16]
        tried.append((FROM_DATA, dgjax.Multistep(), dgjax.grid_from_data, many))
    rows = list(measured(setup, images, tried))
    if asked.solver is None:
        rows.extend(measured_adaptive(setup, images))
    rows.sort(key=lambda row: images.names.index(row[0]))  # stable: solvers stay in their order
    header = ["images", "solver", "evaluations", "error, bits/dim RMS", "stated", "covered"]
    claims.report(f"{title}-likelihood", header, rows)


if __name__ == "__main__":
    main()
