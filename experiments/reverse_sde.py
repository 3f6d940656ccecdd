"""Reverse SDE: log-density by the published tracking and by spacetime quadrature.

The reverse SDE is taken by Euler-Maruyama on the VP path, uniformly in log-SNR. Its log-density is
tracked as published, with no divergence, or measured by quadrature along the very same points. The
cost is in passes of the network: one a step for a trajectory with its tracking, and one product
with the Jacobian (`JVP` passes, the pass itself included) for each node of the quadrature.

On a Gaussian mixture (D = 256, float64, exact Laplacian) the error is against the closed form at
the point reached. On a shipped model it is the gap to the log-density of the same points by the
probability-flow ODE, converged, and what the probes add to either is said apart.

    python experiments/reverse_sde.py mixture
    python experiments/reverse_sde.py fashion-mnist
"""

import argparse
import time
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track

import dgjax

JVP = 2.3  # passes of the network that one product with its Jacobian costs, itself included
STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)  # of the mixture's trajectories
MOST = 128  # of them, for quadrature, which then costs about as much as 1,024 steps
QUADRATURES = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2))  # nodes, and the points of one segment
PATHS, DIMENSIONS, COMPONENTS, SCALES, LOGSNR = 4, 256, 3, (0.05, 2.0), 10.0
SHIPPED_STEPS, SAMPLES, BATCH = (64, 128, 256), 8, 4
PROBES, FINE, FINE_PROBES = 2, 64, 8  # of the quadrature; steps and probes of the likelihood
FIGURES = Path(__file__).parent / "figures"


def walk(model, x, key, steps):
    """Return the points of the reverse SDE from the latent x, and the final tracked log-density."""
    found = dgjax.sample(
        model,
        x,
        dgjax.grid_logsnr(model, steps),
        key=key,
        noise=dgjax.reverse_sde_ito(),
        divergence=dgjax.Untracked(),  # the published tracking needs none
        solver=diffrax.Euler(),
        save=dgjax.Trajectory,
    )
    return found.trajectory.t, found.trajectory.x, found.log_density


def cloud():
    """Make a mixture of full covariances in random directions, with means of unit spread."""
    keys = jax.random.split(jax.random.key(0), COMPONENTS + 1)
    draw = jax.vmap(lambda k: jax.random.normal(k, (DIMENSIONS, DIMENSIONS)))
    turns = jnp.linalg.qr(draw(keys[1:]))[0]
    variances = jnp.geomspace(*SCALES, DIMENSIONS) ** 2
    covariances = jnp.einsum("kij,j,klj->kil", turns, variances, turns)
    means = jax.random.normal(keys[0], (COMPONENTS, DIMENSIONS))
    return dgjax.gaussian_mixture(jnp.ones(COMPONENTS), means, covariances)


def rms(errors):
    return float(np.sqrt(np.mean(np.square(errors))))


def mixture():
    """Return rows (method, steps, cost, mean error, RMS error, Euler-Maruyama at that cost)."""
    jax.config.update("jax_enable_x64", True)
    data, path = cloud(), dgjax.vp()
    t_min, t_max = (path.time(jnp.asarray(sign * LOGSNR)) for sign in (1, -1))
    model = dgjax.closed_form(data, path, t_min=t_min, t_max=t_max)
    keys = jax.random.split(jax.random.key(1), (2, PATHS))
    latents = jax.vmap(lambda k: path.alpha(t_max) * data.sample(k, jnp.exp(0.5 * LOGSNR)))(keys[0])

    def tracked(steps):
        @jax.jit
        def run(x, key):
            t, x, log_density = walk(model, x, key, steps)
            true = dgjax.log_density(model, t[-1], x[-1])
            return t, x, true, (log_density - true) / DIMENSIONS

        # One after the other, so that memory is that of one path.
        return jax.tree.map(lambda *a: np.stack(a), *map(run, latents, keys[1]))

    def measured(t, x, true, nodes):
        @jax.jit
        def run(t, x, true):
            found = dgjax.quadrature(
                model, t, x, key=keys[0, 0], divergence=dgjax.Exact(), nodes=nodes, batch=8
            )
            return (found.log_density[-1] - true) / DIMENSIONS

        return np.stack([run(*one) for one in zip(t, x, true, strict=True)])

    def row(name, steps, cost, errors):
        euler = tracked(round(cost))[3]
        return name, steps, cost, errors.mean(), rms(errors), rms(euler)

    rows = []
    for steps in track(STEPS, "mixture"):
        t, x, true, errors = tracked(steps)
        rows.append(row("Euler-Maruyama tracking", steps, steps, errors))
        for nodes, thin in QUADRATURES if steps <= MOST else ():
            name = f"quadrature, nodes = {nodes}" + ", every second point" * (thin > 1)
            errors = measured(t[:, ::thin], x[:, ::thin], true, nodes)
            rows.append(row(name, steps, steps + steps // thin * nodes * JVP, errors))
    return rows


def mixture_table(rows):
    yield "| method | steps | cost | mean error per dim | RMS | tracking at that cost | ratio |"
    yield "|---" * 7 + "|"
    for name, steps, cost, mean, error, euler in rows:
        cells = [name, f"{steps}", f"{cost:,.0f}", f"{mean:+.2g}", f"{error:.2g}", f"{euler:.2g}"]
        ratio = "" if euler == error else f"{euler / error:,.3g}"
        yield f"| {' | '.join(cells)} | {ratio} |"


def draw(rows, file):
    plt.style.use("tableau-colorblind10")
    figure, axis = plt.subplots(figsize=(8, 4))
    for marker, name in zip("osD^vP", dict.fromkeys(r[0] for r in rows), strict=True):
        points = [(r[2], r[4]) for r in rows if r[0] == name]
        axis.loglog(*zip(*points, strict=True), marker=marker, label=name)
    axis.set(
        title=f"Reverse SDE, {DIMENSIONS}-D mixture",
        xlabel="cost, passes of the network",
        ylabel="error of the log-density,\nnats per dimension (RMS)",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def shipped(name):
    """Return rows (steps, tracked gap, quadrature's gap, their probe errors) in nats."""
    model, meta = dgjax.load_pretrained(name)
    there, flow = dgjax.repath(model, dgjax.vp()), dgjax.repath(model, dgjax.edm(7.0))
    size = int(np.prod(meta.shape))
    keys = jax.random.split(jax.random.key(1), (SAMPLES, 4))
    scale = there.path.alpha(there.t_min)

    def run(there, flow, keys, steps):
        def one(key):
            x = dgjax.prior_sample(there, key[0], meta.shape)
            t, xs, log_density = walk(there, x, key[1], steps)
            found = dgjax.quadrature(
                there, t, xs, key=key[2], divergence=dgjax.Hutchinson(PROBES), batch=1
            )
            right = dgjax.likelihood(
                flow,
                xs[-1] / scale,
                dgjax.grid_uniform(flow, FINE),
                key=key[3],
                divergence=dgjax.Hutchinson(FINE_PROBES),
                solver=dgjax.Multistep(),
            )
            # Of the same point on two paths log-densities differ by D log alpha at t_min.
            base = right.log_density - size * jnp.log(scale)
            return (
                log_density - base,
                found.log_density[-1] - base,
                found.standard_error[-1],
                right.info.standard_error,
            )

        return jax.vmap(one)(keys)

    run = jax.jit(run, static_argnames="steps")
    for steps in track(SHIPPED_STEPS, "reverse SDE"):
        parts = [
            run(there, flow, keys[i : i + BATCH], steps=steps) for i in range(0, SAMPLES, BATCH)
        ]
        yield steps, size, *(np.concatenate(column) for column in zip(*parts, strict=True))


def shipped_table(rows):
    yield (
        "| steps | tracking, gap in nats | per dim | quadrature, gap in nats | per dim | ratio "
        "| probes of quadrature, s.e. of the mean | of the likelihood |"
    )
    yield "|---" * 8 + "|"
    for steps, size, *columns in rows:
        (euler, e0), (found, e1) = ((c.mean(), c.std(ddof=1) / c.size**0.5) for c in columns[:2])
        probes = [float(np.sqrt(np.mean(c**2) / c.size)) for c in columns[2:]]
        yield (
            f"| {steps} | {euler:+.1f} ± {e0:.1f} | {euler / size:+.4f} "
            f"| {found:+.1f} ± {e1:.1f} | {found / size:+.4f} | {abs(euler / found):.1f} "
            f"| {probes[0]:.1f} | {probes[1]:.1f} |"
        )


def jvp_cost(name):
    """Measure the cost of one Jacobian product in passes of the network, at batch size `BATCH`."""
    model, meta = dgjax.load_pretrained(name)
    x = jax.random.normal(jax.random.key(0), (BATCH, *meta.shape))
    one = jax.jit(jax.vmap(lambda x: dgjax.denoise(model, jnp.array(1.0), x)))
    both = jax.jit(lambda x: jax.jvp(one, (x,), (x,)))

    def seconds(function):
        jax.block_until_ready(function(x))
        began = time.perf_counter()
        jax.block_until_ready(function(x))
        return time.perf_counter() - began

    pairs = [(seconds(both), seconds(one)) for _ in range(15)]  # side by side
    return float(np.median([a / b for a, b in pairs]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", nargs="?", default="mixture", choices=["mixture", *dgjax.pretrained_models()]
    )
    name = parser.parse_args().model
    FIGURES.mkdir(exist_ok=True)
    if name == "mixture":
        rows = mixture()
        lines = list(mixture_table(rows))
        draw(rows, FIGURES / "reverse_sde.png")
    else:
        cost = jvp_cost(name)
        lines = list(shipped_table(shipped(name)))
        lines += ["", f"A product with the Jacobian costs {cost:.2f} passes of this network."]
    print("\n".join(lines))
    (FIGURES / f"reverse_sde-{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
