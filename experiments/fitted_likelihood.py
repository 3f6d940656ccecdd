"""Log-density in a few evaluations: fitted weights beside the general ones of a solver.

`dgjax.fit_likelihood` fits to training images. Then own samples of the model, held-out images and
images out of distribution are measured, and compared with a solve of 64 steps with derivatives. The
rival is that solver, `Multistep(3, 3, 2)`, with as many evaluations. With `--probes fixed` one
probe is used for everything, so that the error is that of the weights. With `--probes fresh` all
take 5 probes by colours, anew at every evaluation, and the error has their noise, too. `--probes
head` is for a model that `dgjax distil` has given a head: it predicts the divergence without a
product, and is compared with fresh probes; the rival is `Multistep()`, which takes no product
either. *Within* is the share of images whose error is at most the stated one, or twice this.

    python experiments/fitted_likelihood.py
    python experiments/fitted_likelihood.py --model photo-patches --data photo-patches.npz
"""

import argparse
from functools import partial

import claims
import jax
import numpy as np
from few_steps import Groups, dequantized, on_edm, rms, solved, test_levels

import dgjax
from dgjax.pictures.quantization import to_uint8
from dgjax.sampling.fitted_likelihood import least_samples

EVALUATIONS = (4, 6, 8)
STEPS = 64  # of the solve that is compared with
PROBES = {
    "fixed": dgjax.FixedProbe(dgjax.Hutchinson(), jax.random.key(9)),
    "fresh": dgjax.Coloured(5),
    "head": dgjax.Distilled(),
}


def likelihoods(setup, x, steps, probes):
    """Return log-densities by the solver and their stated errors, in nats."""
    grid = dgjax.grid_logsnr(setup.model.field, steps)
    solver = dgjax.Multistep() if probes == "head" else dgjax.Multistep(3, 3, 2)

    def one(field, x, key):
        options = {"key": key, "divergence": PROBES[probes], "solver": solver}
        found = dgjax.likelihood(field, x, grid, **options)
        noise = 0.0 if probes == "fixed" else found.info.standard_error
        return found.log_density, found.info.solver_error + noise

    keys = claims.keys(setup, len(x), 3 + steps)
    return claims.each(f"{steps + 1} evaluations", one, setup, x, keys)


def fitted(setup, trained, known, x, grid, probes):
    """Return the log-densities, stated errors and leverages of x by weights fitted to others."""
    options = {"divergence": PROBES[probes], "batch": setup.preset.batch}
    key = jax.random.key(setup.seed)
    fit = dgjax.fit_likelihood(setup.model.field, trained, known, grid, key=key, **options)

    def one(field, x, key):
        return dgjax.fitted_likelihood(field, fit, x, key=key, divergence=PROBES[probes])[:3]

    keys = claims.keys(setup, len(x), 3 + len(grid))
    return claims.each(f"{len(grid)} evaluations, fitted", one, setup, x, keys)


def rows(setup, trained, groups, asked):
    """Yield the rows of the table."""
    field, unit = setup.model.field, setup.model.size * np.log(2)
    solve = partial(likelihoods, setup, np.concatenate([trained, groups.x]))
    probes = "fresh" if asked.probes == "head" else asked.probes
    name = f"fitted-{STEPS}-{probes}-{len(trained)}-{len(groups.x)}"
    exact, _ = claims.kept(setup, name, lambda: solve(STEPS, probes))
    known, exact = exact[: len(trained)], exact[len(trained) :]
    for count in asked.evaluations:
        general = likelihoods(setup, groups.x, count - 1, asked.probes)
        grid = dgjax.grid_logsnr(field, count - 1, noise=asked.noise * np.std(trained))
        own = fitted(setup, trained, known, groups.x, grid, asked.probes)
        for weights, found in (("general", general), ("fitted", own)):
            error, stated = np.abs(found[0] - exact), found[1]
            leverage = np.full_like(error, np.nan) if len(found) < 3 else found[2]
            columns = (groups.split(a) for a in (error, stated, leverage))
            for group in zip(*columns, strict=True):
                images, (e, s, of) = group[0][0], (column[1] for column in group)
                within = f"{np.mean(e <= s):.0%}, {np.mean(e <= 2 * s):.0%}"
                numbers = [f"{rms(e) / unit:.4f}", f"{rms(e):.1f}", f"{rms(s):.1f}", within]
                level = "" if np.isnan(of).any() else f"{np.median(of):.1f}"
                yield [images, str(count), weights, *numbers, level]


def main():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    options.add_argument("--probes", choices=PROBES, default="fixed")
    options.add_argument(
        "--noise", type=float, default=3.5, help="of the grid, in standard deviations of the data"
    )
    options.add_argument("--samples", type=int, default=192, help="training images of the fit")
    setup = claims.start(__doc__, options)
    asked = options.parse_known_args()[0]
    if asked.samples < (least := least_samples(max(asked.evaluations))):
        raise SystemExit(f"error: {max(asked.evaluations)} evaluations need --samples {least}")
    levels = to_uint8(claims.images(setup, asked.samples, "train"), setup.model.meta.data_range)
    trained = dequantized(setup, {"training images": levels}, stream=4)["training images"]
    groups = dequantized(setup, test_levels(setup))
    setup = on_edm(setup)
    draw = lambda key: dgjax.prior_sample(setup.model.field, key, setup.model.meta.shape)
    latents = np.asarray(jax.vmap(draw)(claims.keys(setup, setup.preset.count, 1)))
    grid = dgjax.grid_logsnr(setup.model.field, STEPS)
    groups = Groups({"own samples": solved(setup, latents, dgjax.Multistep(), grid), **groups})
    header = ["images", "evaluations", "weights", "error, bits/dim RMS", "nats", "stated", "within"]
    found = sorted(rows(setup, trained, groups, asked), key=lambda row: groups.names.index(row[0]))
    title = f"fitted_likelihood-{setup.title}-{asked.probes}"
    claims.report(title, [*header, "leverage"], found)


if __name__ == "__main__":
    main()
