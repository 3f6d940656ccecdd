"""How sampling scales over devices: samples a second on 1, 2, 4, ... of those there are.

The same U-Net, of random weights, on every number of devices in turn, with as many samples on each
device as ever (weak scaling), and REPEATS times over so that a slow moment of the machine meets
all of them; the best of each counts. Nothing is communicated, so accelerators should scale in
proportion. Devices that XLA makes of one processor share its cores and show what the spreading
costs, no more:

    python experiments/scaling.py
    XLA_FLAGS=--xla_force_host_platform_device_count=4 JAX_PLATFORMS=cpu \
        python experiments/scaling.py --per-device 4 --width 16 --steps 4
"""

import argparse
import time

import jax
import jax.numpy as jnp

import dgjax
from dgjax.sharding import device_mesh, replicate, shard_batch
from dgjax.spec import ModelSpec, build

SHAPE, Q, REPEATS = (28, 28, 1), 0.6, 3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-device", type=int, default=64, help="samples on each device")
    parser.add_argument(
        "--width", type=int, default=64, help="channels of the U-Net at its upper level"
    )
    parser.add_argument("--steps", type=int, default=16, help="of Heun's method")
    return parser.parse_args()


def make_model(width):
    spec = ModelSpec(
        shape=SHAPE,
        network={"kind": "unet", "channels": [width, 2 * width]},
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": 0.5},
        t_min=0.02,
        t_max=80.0,
    )
    return dgjax.repath(build(spec), dgjax.edm(7.0))


def main():
    asked = arguments()
    model = make_model(asked.width)
    grid = dgjax.grid_uniform(model, asked.steps)
    guides = (dgjax.density_guidance(Q),)

    @jax.jit
    def run(model, keys):
        def one(key):
            x = dgjax.prior_sample(model, key, SHAPE)
            return dgjax.sample(model, x, grid, key=key, guides=guides)

        found = jax.vmap(one)(keys)
        return found.x, found.log_density

    devices = jax.devices()
    counts = [2**i for i in range(len(devices).bit_length()) if 2**i <= len(devices)]
    ready = {}
    for count in counts:
        over = device_mesh(devices[:count])
        keys = jax.random.split(jax.random.key(0), count * asked.per_device)
        ready[count] = replicate(model, over), shard_batch(keys, over)
        x, log_density = jax.block_until_ready(run(*ready[count]))  # compiles
        if not (jnp.isfinite(x).all() and jnp.isfinite(log_density).all()):
            raise RuntimeError(f"samples on {count} devices are not finite")
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(REPEATS):
        for count in counts:
            began = time.perf_counter()
            jax.block_until_ready(run(*ready[count]))
            best[count] = min(best[count], time.perf_counter() - began)

    print(f"{devices[0].device_kind} ({devices[0].platform}), jax {jax.__version__}")
    print("| devices | samples | seconds | samples a second | over one device |")
    print("|---|---|---|---|---|")
    rates = {count: count * asked.per_device / best[count] for count in counts}
    for count, rate in rates.items():
        samples = count * asked.per_device
        ratio = rate / rates[1]
        print(f"| {count} | {samples} | {best[count]:.3f} | {rate:.1f} | {ratio:.2f} |")
    if devices[0].platform == "cpu":
        print("(CPU devices share the cores of one machine: this shows the overhead, not scaling)")


if __name__ == "__main__":
    main()
