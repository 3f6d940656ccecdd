"""Published scale: what do the papers' claims cost on published networks?

Networks of published sizes without weights: one evaluation of each kind that the experiments make
is lowered for abstract arrays, and XLA counts its floating-point operations. *Plain* is the
denoised sample, *with log-density* has five products with the Jacobian, *pushed* is the derivative
of one with ten along a tangent, which score alignment needs. Hours are by calculation, not by
measurement: the operations of all images of the preset, at a rate that --tflops gives. Memory is
that of one sample in the compiled program (--memory, minutes of compilation).

    python experiments/published_scale.py
    XLA_FLAGS=--xla_backend_optimization_level=0 python experiments/published_scale.py --memory
"""

import argparse
from typing import NamedTuple

import high_density
import jax
import jax.numpy as jnp
import model_memory
import png_size
import reverse_sde_correlation
import score_alignment
from claims import PRESETS, report
from flax import nnx

import dgjax
import dgjax.networks.attention
from dgjax.networks import DhariwalUNet, EDM2UNet, SongUNet

KINDS = ("plain", "with log-density", "pushed")
GIB = 2**30


class Network(NamedTuple):
    """A published network: its constructor, its preset, and the command that runs a claim."""

    make: object
    preset: str
    options: str


def edm(kind, shape, **arguments):
    return lambda: kind(shape, **arguments, rngs=nnx.Rngs(0))


NETWORKS = {
    "EDM, CIFAR-10 (DDPM++)": Network(
        edm(SongUNet, (32, 32, 3), channel_mult=[2, 2, 2], num_classes=10, augment_dim=9),
        "cifar10",
        "--class 3 --data cifar10.npz",
    ),
    "EDM, ImageNet 64x64 (ADM)": Network(
        edm(DhariwalUNet, (64, 64, 3), num_classes=1000), "imagenet", "--class 207 --data photos/"
    ),
    "EDM2-S, ImageNet 512x512": Network(
        lambda: EDM2UNet((64, 64, 4), 1000, 192, rngs=nnx.Rngs(0)), "imagenet", "--class 207"
    ),
    "Stable Diffusion 1.5": Network("sd15", "imagenet", '--prompt "a mountain lake" --batch 4'),
}


def abstract(make):
    """Return a field of abstract weights, one abstract sample and an abstract condition."""
    if isinstance(make, str):
        return model_memory.abstract(model_memory.MODELS[make], jnp.float32)
    net = nnx.eval_shape(make)
    field = dgjax.field(net, dgjax.edm(), dgjax.preconditioned(0.5), t_min=0.02, t_max=80.0)
    return field, jax.ShapeDtypeStruct(net.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)


def plain(field, x, cond):
    return dgjax.denoise(field, 1.0, x, cond)


def with_log_density(field, x, cond, divergence=png_size.DIVERGENCE):
    local = dgjax.evaluate(field, 1.0, x, divergence=divergence, key=jax.random.key(0), cond=cond)
    return local.velocity, local.score, local.divergences


def pushed(field, x, cond):
    run = lambda x: with_log_density(field, x, cond, score_alignment.DIVERGENCE)
    return jax.jvp(run, (x,), (x,))


def evaluations(preset, real):
    """Return {experiment: numbers of evaluations of each of `KINDS`} of one preset.

    `real` says whether there are real images, which are measured, too.
    """
    count, steps, _ = PRESETS[preset]
    solve, groups = steps + 1, len(png_size.QUANTILES)
    thresholds = len(high_density.SIGMAS)
    walks = reverse_sde_correlation.STEPS
    return {
        "score_alignment": (9 * count, 0, count * solve),
        "png_size": (groups * count, (groups + real) * count * solve, 0),
        "high_density": (thresholds * count // 4, thresholds * count // 4 * 3 * solve, 0),
        "reverse_sde_correlation": (count * sum(walks), len(walks) * count * solve, 0),
    }


def measure(make, memory):
    """Return bytes of the weights, GFLOP of each kind, and bytes of one sample's evaluation."""
    field, x, cond = abstract(make)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(field.network))
    lowered = [jax.jit(run).lower(field, x, cond) for run in (plain, with_log_density, pushed)]
    flops = [program.cost_analysis()["flops"] for program in lowered]
    room = lowered[1].compile().memory_analysis().temp_size_in_bytes if memory else None
    return weights, flops, room


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=20.0, help="operations a second, in 1e12")
    parser.add_argument("--memory", action="store_true", help="compile, for the memory")
    parser.add_argument("--only", choices=NETWORKS, help="this network alone")
    return parser.parse_args()


def main():
    asked = arguments()
    # XLA counts the body of a loop once: attention must not be cut into chunks.
    dgjax.networks.attention.LOGITS = 2**62
    sizes, costs = [], []
    for name, network in NETWORKS.items():
        if asked.only not in (None, name):
            continue
        weights, flops, room = measure(network.make, asked.memory)
        sizes.append(
            [
                name,
                f"{weights / GIB:.2f}",
                "" if room is None else f"{room / GIB:.2f}",
                *(f"{f / 1e9:,.0f}" for f in flops),
            ]
        )
        work = [
            sum(n * f for n, f in zip(numbers, flops, strict=True))
            for numbers in evaluations(network.preset, "--data" in network.options).values()
        ]
        hours = [f"{w / 1e15:,.0f}, {w / (asked.tflops * 3.6e15):.1f} h" for w in work]
        options = f"`--preset {network.preset} --model FOLDER {network.options}`"
        costs.append([name, options, *hours])
    header = ["network", "weights, GiB", "one sample, GiB", *(f"{kind}, GFLOP" for kind in KINDS)]
    report("published_scale", header, sizes)
    print()
    header = ["network", "options", *(f"{name}.py" for name in evaluations("laptop", False))]
    report("published_scale_hours", header, costs)


if __name__ == "__main__":
    main()
