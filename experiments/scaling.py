"""Scaling: cost of a sample with its log-density by D, batch, probes and devices.

Seconds for one evaluation (network and its jvps) of one sample, in solves of U-Nets of random
weights, with one of the four numbers varied at a time. Every panel is run REPEATS times over, so
that a slow moment of the machine meets all of it; the best of each counts. Each device has as many
samples as ever (weak scaling) and nothing is communicated, so accelerators should scale in
proportion. Devices that XLA makes of one processor share its cores and show what the spreading
costs, no more:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \
        python experiments/scaling.py
    python experiments/scaling.py --width 64 --per-device 64 --steps 16    # on accelerators
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

import dgjax
from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.devices.sharding import device_mesh, replicate, shard_batch

Q, REPEATS, SIDE = 0.6, 3, 28
SIDES = (8, 16, 32, 64)  # of grey images
BATCHES = (1, 4, 16, 64)
PROBES = (1, 2, 4, 8, 16)
# What to hold the cost of one sample against: the power of what is varied.
POWERS = {"dimensions D": 1, "samples in a batch": 0, "probes": 1, "devices": -1}
LABELS = {1: "in proportion", 0: "constant", -1: "in inverse proportion"}
FIGURES = Path(__file__).parent / "figures"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-device", type=int, default=4, help="samples on each device")
    parser.add_argument(
        "--width", type=int, default=16, help="channels of the U-Net at its upper level"
    )
    parser.add_argument("--steps", type=int, default=4, help="of Multistep")
    return parser.parse_args()


def make_model(side, width):
    spec = ModelSpec(
        shape=(side, side, 1),
        network={"kind": "unet", "channels": [width, 2 * width]},
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": 0.5},
        t_min=0.02,
        t_max=80.0,
    )
    return build(spec), spec.shape


def solve(asked, *, side=SIDE, samples=None, probes=1, devices=1):
    """Return (run, samples): a compiled solve of that many samples on the first `devices`."""
    samples = devices * asked.per_device if samples is None else samples
    model, shape = make_model(side, asked.width)
    grid = dgjax.grid_karras(model, asked.steps)
    guides = (dgjax.density_guidance(Q),)

    @jax.jit
    def run(model, keys):
        def one(key):
            return dgjax.sample(
                model,
                dgjax.prior_sample(model, key, shape),
                grid,
                key=key,
                guides=guides,
                divergence=dgjax.Hutchinson(probes),
                solver=dgjax.Multistep(),
            )

        found = jax.vmap(one)(keys)
        return found.x, found.log_density

    over = device_mesh(jax.devices()[:devices])
    keys = jax.random.split(jax.random.key(0), samples)
    ready = replicate(model, over), shard_batch(keys, over)
    x, log_density = jax.block_until_ready(run(*ready))  # compiles
    if not (jnp.isfinite(x).all() and jnp.isfinite(log_density).all()):
        raise RuntimeError(f"samples of side {side} on {devices} devices are not finite")
    return (lambda: jax.block_until_ready(run(*ready))), samples


def measure(asked, settings):
    """Return rows (value, samples, seconds) for settings {value: arguments of `solve`}."""
    solves = {value: solve(asked, **setting) for value, setting in settings.items()}
    best = dict.fromkeys(solves, float("inf"))
    for _ in range(REPEATS):
        for value, (run, _) in solves.items():
            began = time.perf_counter()
            run()
            best[value] = min(best[value], time.perf_counter() - began)
    return [(value, samples, best[value]) for value, (_, samples) in solves.items()]


def panels():
    """Return {varied quantity: {value: settings}}."""
    count = len(jax.devices())
    counts = [2**i for i in range(count.bit_length()) if 2**i <= count]
    return {
        "dimensions D": {side**2: {"side": side} for side in SIDES},
        "samples in a batch": {n: {"samples": n} for n in BATCHES},
        "probes": {n: {"probes": n} for n in PROBES},
        "devices": {n: {"devices": n} for n in counts},
    }


def costs(rows, evaluations):
    """Return milliseconds per evaluation of one sample for each row."""
    return [1e3 * seconds / (samples * evaluations) for _, samples, seconds in rows]


def table(found, evaluations):
    yield "| varied | value | samples | solve, s | ms a sample and evaluation | over the first |"
    yield "|---|---|---|---|---|---|"
    for name, rows in found.items():
        each = costs(rows, evaluations)
        for (value, samples, seconds), cost in zip(rows, each, strict=True):
            cells = name, value, samples, f"{seconds:.3f}", f"{cost:.3g}"
            yield f"| {' | '.join(map(str, cells))} | {cost / each[0]:.2f} |"


def draw(found, evaluations, file):
    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.4), sharey=True)
    for axis, (name, rows) in zip(axes, found.items(), strict=True):
        values, each = [value for value, _, _ in rows], costs(rows, evaluations)
        ideal = [each[0] * (value / values[0]) ** POWERS[name] for value in values]
        axis.loglog(values, ideal, ls="--", color="#999999", label=LABELS[POWERS[name]])
        axis.loglog(values, each, marker="o", color="#0072B2", label="measured")
        axis.set_xticks(values, [str(value) for value in values])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("ms for one evaluation of one sample")
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main():
    asked = arguments()
    found = {name: measure(asked, settings) for name, settings in panels().items()}
    evaluations = asked.steps + 1  # Multistep evaluates at every point of its grid
    device = jax.devices()[0]
    lines = [
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}; where it is not varied: "
        f"D = {SIDE**2}, {asked.per_device} samples, 1 probe, 1 device; U-Net of width "
        f"{asked.width}, {asked.steps} steps",
        "",
        *table(found, evaluations),
    ]
    if device.platform == "cpu":
        lines += ["", "(CPU devices share the cores of one machine: overhead, not scaling)"]
    print(*lines, sep="\n")
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / "scaling.md").write_text("\n".join(lines) + "\n")
    draw(found, evaluations, FIGURES / "scaling.png")


if __name__ == "__main__":
    main()
