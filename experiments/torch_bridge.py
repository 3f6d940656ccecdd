"""Time a PyTorch U-Net through `torch_network` against the same U-Net called by PyTorch alone.

Both sides evaluate one batch: the network, and its product with one tangent, which is what a
step of the solver with one probe asks for. PyTorch's forward mode gives the output beside the
product; JAX asks for the output by itself, so that its product costs one evaluation more. Both take
turns; the least of several times counts.

    python experiments/torch_bridge.py
"""

import argparse
import time
from functools import partial

import jax
import numpy as np
import torch
from diffusers import UNet2DModel

from dgjax.networks import torch_network
from dgjax.networks.torch_primitive import Function, Jvp


def best(sides: list[partial], repeats: int) -> list[float]:
    """Least seconds of each side, which take turns after one call that does not count."""
    times = np.zeros((repeats + 1, len(sides)))
    for row in times:
        for i, side in enumerate(sides):
            begin = time.perf_counter()
            jax.block_until_ready(side())
            row[i] = time.perf_counter() - begin
    return list(times[1:].min(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="of the pictures")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    module = UNet2DModel(
        sample_size=options.size,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    ).eval()
    network = torch_network(module)
    value = jax.jit(jax.vmap(lambda x, v: network(x, 1.0)))
    product = jax.jit(jax.vmap(lambda x, v: jax.jvp(lambda x: network(x, 1.0), (x,), (v,))))

    def alone(x, v):
        with torch.no_grad():
            return module(x, torch.ones(len(x))).sample

    def alone_product(x, v):
        return Jvp(Function(lambda x: module(x, torch.ones(len(x))).sample), (0,)).run(x, v)

    print("| batch | what | PyTorch alone, ms | through JAX, ms | ratio |\n|---|---|---|---|---|")
    for batch in options.batches:
        x, v = (
            jax.random.normal(k, (batch, options.size, options.size, 3))
            for k in jax.random.split(jax.random.key(0))
        )
        there = [torch.tensor(np.array(a)).permute(0, 3, 1, 2).contiguous() for a in (x, v)]
        for name, mine, theirs in (
            ("network", value, alone),
            ("network and one product", product, alone_product),
        ):
            a, b = best([partial(theirs, *there), partial(mine, x, v)], options.repeats)
            print(f"| {batch} | {name} | {1e3 * a:.1f} | {1e3 * b:.1f} | {b / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
