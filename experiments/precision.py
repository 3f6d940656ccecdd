"""Precision: how far does a log-density move when the network multiplies in less than float32?

On a shipped model, with everything but the network in float32: the same latents, data and fixed
probes, sampled at q = 0.5 and measured by likelihood. Every matrix product and convolution of the
network, and of its jvps, has its operands rounded as an accelerator rounds them and is summed in
float32: once to bfloat16, once to TF32, and by three products of bfloat16 parts. *Layers in
bfloat16* is what training may do, where results are rounded too. *This device* is not rounded here:
it multiplies as JAX has it by default, where nobody asks for more. The error is split: *values* has
them alone from the rounded network, so that the trajectory moves and with it what is integrated,
*jvps* only the divergence, along the same trajectory.

    python experiments/precision.py
    python experiments/precision.py --only TF32 "this device"
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.extend.core import Literal
from rich.progress import track

import dgjax
from dgjax.checkpoints.spec import build_network
from dgjax.model.parametrization import Network
from dgjax.training.precision import in_precision
from dgjax.typing import register_dataclass

MODEL, Q, STEPS, COUNT = "fashion-mnist", 0.5, 24, 8
BFLOAT16, TF32 = 7, 10  # bits of the mantissa; the exponent has the 8 of float32
# Steps that hold a program, which is run in their place, and where they keep it.
INNER = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
OUT = Path(__file__).parent / "figures" / "precision.md"


def to_bits(bits, a):
    return jax.lax.reduce_precision(a, 8, bits)


def one_pass(bits, multiply, a, b):
    return multiply(to_bits(bits, a), to_bits(bits, b))


def three_passes(multiply, a, b):
    """Multiply in three bfloat16 products: operands in two parts, without the smallest term."""
    large_a, large_b = to_bits(BFLOAT16, a), to_bits(BFLOAT16, b)
    small_a, small_b = to_bits(BFLOAT16, a - large_a), to_bits(BFLOAT16, b - large_b)
    return multiply(large_a, large_b) + (multiply(large_a, small_b) + multiply(small_a, large_b))


PRODUCTS = {
    "bfloat16": partial(one_pass, BFLOAT16),
    "TF32": partial(one_pass, TF32),
    "3 x bfloat16": three_passes,
}


def with_products(function, product):
    """Replace each product and convolution of `function` by `product(multiply, a, b)`."""

    def call(*operands):
        program, like = jax.make_jaxpr(function, return_shape=True)(*operands)
        found = interpret(program, jax.tree.leaves(operands), product)
        return jax.tree.unflatten(jax.tree.structure(like), found)

    return call


def interpret(program, values, product):
    """Run a closed jaxpr; derivatives pass through, so their products are rounded too."""
    jaxpr = program.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *values], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else known[variable]

    for step in jaxpr.eqns:
        operands = [read(v) for v in step.invars]
        name, bind = step.primitive.name, partial(step.primitive.bind, **step.params)
        if name in ("dot_general", "conv_general_dilated"):
            found = product(bind, *operands)
        elif name in INNER:
            found = interpret(step.params[INNER[name]], operands, product)
        else:
            found = bind(*operands)
        found = found if step.primitive.multiple_results else [found]
        known.update(zip(step.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


@register_dataclass
@dataclass(frozen=True)
class Rounded:
    """A network with other products."""

    network: Network
    product: Callable = field(metadata={"static": True})

    def __call__(self, x, t, cond):
        def call(network, x, t):
            return network(x, t, cond)

        return with_products(call, self.product)(self.network, x, t)


@register_dataclass
@dataclass(frozen=True)
class ByDefault:
    """A network with JAX's default products on this device."""

    network: Network

    def __call__(self, x, t, cond):
        with jax.default_matmul_precision("default"):
            return self.network(x, t, cond)


@register_dataclass
@dataclass(frozen=True)
class Mixed:
    """The values of one network and the derivatives of another."""

    values: Network
    derivatives: Network

    def __call__(self, x, t, cond):
        found = self.derivatives(x, t, cond)
        return found + jax.lax.stop_gradient(self.values(x, t, cond) - found)


def solves(steps):
    """Sampling and likelihood, compiled for each network."""
    options = {"solver": dgjax.Multistep()}

    def grid_and_probe(model, key):
        options = {"key": key, "divergence": dgjax.FixedProbe(dgjax.Hutchinson(), key)}
        return dgjax.grid_karras(model, steps), options

    @jax.jit
    def sampled(model, latents, keys):
        def one(x, key):
            grid, probe = grid_and_probe(model, key)
            guides = (dgjax.density_guidance(Q),)
            found = dgjax.sample(model, x, grid, guides=guides, **probe, **options)
            return found.x, found.log_density

        return jax.vmap(one)(latents, keys)

    @jax.jit
    def measured(model, data, keys):
        def one(x, key):
            grid, probe = grid_and_probe(model, key)
            found = dgjax.likelihood(model, x, grid, **probe, **options)
            return found.latent, found.log_density

        return jax.vmap(one)(data, keys)

    return {"sampling": sampled, "likelihood": measured}


def networks(model, meta):
    """Return a network for each precision."""
    in_bfloat16 = in_precision(lambda: build_network(meta.model), "bfloat16")
    yield "layers in bfloat16", in_bfloat16(model.network)
    for name, product in PRODUCTS.items():
        yield name, Rounded(model.network, product)
    yield "this device", ByDefault(model.network)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of Multistep")
    parser.add_argument("--count", type=int, default=COUNT, help="latents")
    parser.add_argument("--only", nargs="+", help="names of precisions, for all")
    asked = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")  # for what is not rounded here
    model, meta = dgjax.load_pretrained(MODEL)
    rounded = dict(networks(model, meta))
    if unknown := set(asked.only or ()) - set(rounded):
        parser.error(f"no precision {', '.join(unknown)}: there are {', '.join(rounded)}")
    size = int(np.prod(meta.shape))
    keys = jax.random.split(jax.random.key(0), asked.count)
    latents = jax.vmap(lambda key: dgjax.prior_sample(model, key, meta.shape))(keys)
    runs = solves(asked.steps)
    starts = {"sampling": latents, "likelihood": runs["sampling"](model, latents, keys)[0]}
    exact = {what: run(model, starts[what], keys) for what, run in runs.items()}
    device = jax.devices()[0]
    lines = [
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}",
        "",
        "| precision | | error, nats (RMS) | nats per dimension | mean, nats | from values | "
        "from jvps | end moved (RMS) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in track(asked.only or list(rounded), "precision"):
        network = rounded[name]
        kinds = network, Mixed(network, model.network), Mixed(model.network, network)
        for what, run in runs.items():
            found = [run(replace(model, network=n), starts[what], keys) for n in kinds]
            whole, values, jvps = (np.asarray(f[1] - exact[what][1]) for f in found)
            moved = rms(np.asarray(found[0][0] - exact[what][0]))
            lines.append(
                f"| {name} | {what} | {rms(whole):.2g} | {rms(whole) / size:.1e} | "
                f"{whole.mean():+.2g} | {rms(values):.2g} | {rms(jvps):.2g} | {moved:.1e} |"
            )
    print(*lines, sep="\n")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
