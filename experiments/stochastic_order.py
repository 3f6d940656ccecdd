"""Order of convergence of the schemes for stochastic density guidance.

True minus tracked log-density at the end against the number of steps, RMS over 64 paths of a 16-D
mixture (sigma 0.05 to 20, float64, exact divergence), with noise along the level set at all noise
levels and no guidance, on one grid for all, uniform in log-SNR. `stochastic.py` compares the
schemes at equal evaluations near a mode, where none of these has reached its order.

    python experiments/stochastic_order.py
"""

from typing import NamedTuple

import claims
import diffrax
import jax
import matplotlib.pyplot as plt
import numpy as np
from stochastic import ALONG, rms, small

import dgjax

STEPS, LAST, PATHS, SIGMAS = (64, 128, 256, 512, 1024), 4, 64, (0.05, 20.0)


class Scheme(NamedTuple):
    solver: diffrax.AbstractSolver
    noise: object
    divergence: object
    order: int  # expected


EXACT = dgjax.Exact(chunk=16)
SCHEMES = {
    "published (Ito, Rademacher probe)": Scheme(
        diffrax.Euler(), dgjax.published_stochastic(), dgjax.Hutchinson(), 0
    ),
    "published (Ito, exact Laplacian)": Scheme(
        diffrax.Euler(), dgjax.published_stochastic(), EXACT, 0
    ),
    "noise-matched Ito": Scheme(diffrax.Euler(), dgjax.noise_matched(), EXACT, 1),
    "Stratonovich Heun": Scheme(diffrax.Heun(), ALONG, EXACT, 1),
    "Stratonovich RK4": Scheme(dgjax.RK4(), ALONG, EXACT, 2),
}


def errors_of(mixture, scheme, steps, paths=PATHS):
    """Return tracked minus true log-density of every path, in nats."""
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=SIGMAS[0], t_max=SIGMAS[1])
    grid = dgjax.grid_logsnr(model, steps)

    @jax.jit
    @jax.vmap
    def one(key):
        start, walk = jax.random.split(key)
        found = dgjax.sample(
            model,
            mixture.sample(start, SIGMAS[1]),
            grid,
            key=walk,
            noise=scheme.noise,
            divergence=scheme.divergence,
            solver=scheme.solver,
        )
        return found.log_density - dgjax.log_density(model, model.t_min, found.x)

    return np.asarray(one(jax.random.split(jax.random.key(1), paths)))


def slope(steps, errors):
    """Return the order: minus the slope of log error on log steps."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def main():
    jax.config.update("jax_enable_x64", True)
    mixture, rows = small(), []
    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for i, (name, scheme) in enumerate(SCHEMES.items()):
        every = [errors_of(mixture, scheme, steps) for steps in STEPS]
        errors = [rms(e) for e in every]
        order = slope(STEPS[-LAST:], errors[-LAST:])
        cells = [f"{error:.2g}" for error in errors]
        rows.append([name, *cells, f"{every[-1].mean():+.2g}", f"{order:.2f}", f"{scheme.order}"])
        style = {"color": claims.COLOURS[i], "marker": "osD^v"[i]}
        if i == 0:  # the second lies upon it
            style |= {"lw": 6, "ms": 13, "alpha": 0.5}
        axis.loglog(STEPS, errors, label=name, **style)
    axis.set_xticks(STEPS, [str(n) for n in STEPS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.set(xlabel="steps", ylabel="true minus tracked log-density, nats (RMS)")
    axis.legend(fontsize=8)
    header = ["scheme", *(f"{n} steps" for n in STEPS), "mean at the last", "slope", "expected"]
    claims.report("stochastic_order", header, rows)
    claims.save(figure, "stochastic_order")


if __name__ == "__main__":
    main()
