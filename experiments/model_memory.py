"""Memory of one evaluation of Stable Diffusion's networks, from the compiled program.

One evaluation is the value and one Hessian product: a step of one sample with log-density. The
networks have their published sizes and no weights: the program is lowered for abstract arrays and
compiled, and XLA says what it reserves on each device: weights and other arguments, and
intermediate results. Cut weights (`dgjax.devices.weight_sharding`) need several devices; a cut
batch has one sample on each. All collectives that gather a whole parameter are counted. A second
table says how many samples a card holds at a time: nine tenths of its memory, less the weights, by
the intermediate results of one sample. Of transformers only the weights are counted.

    python experiments/model_memory.py sd15 --whole
    XLA_FLAGS=--xla_backend_optimization_level=0 python experiments/model_memory.py xl
    python experiments/model_memory.py --attention
    python experiments/model_memory.py --transformers
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python experiments/model_memory.py xl --cut
"""

import argparse
import re
import time
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import dgjax
import dgjax.networks.attention
from dgjax.checkpoints.spec import NETWORKS, TEXT_ENCODERS
from dgjax.devices.sharding import AXIS, device_mesh, weight_sharding
from dgjax.importing.diffusers_flux import read_flux_transformer
from dgjax.importing.diffusers_sd3 import read_sd3_transformer
from dgjax.importing.diffusers_unet2d_condition import read_unet2d_condition
from dgjax.importing.t5_text import read_t5_text
from dgjax.networks import UNet2DCondition
from dgjax.networks.unet2d_transformer import Context, CrossAttention

LEVELS = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
SD = {
    "down_block_types": LEVELS,
    "up_block_types": tuple(name.replace("Down", "Up") for name in LEVELS[::-1]),
}
XL = {
    "down_block_types": LEVELS[3:] + LEVELS[:2],
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
MODELS = {  # diffusers' configs
    "sd15": {**SD, "sample_size": 64, "cross_attention_dim": 768},
    "sd21": {
        **SD,
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "xl": XL,
    "xl-2": {**XL, "transformer_layers_per_block": [1, 2, 2]},  # compiles faster
    "xl-4": {**XL, "transformer_layers_per_block": [1, 2, 4]},
}
SD3 = {"in_channels": 16, "out_channels": 16, "sample_size": 128, "pos_embed_max_size": 192}
LARGE = {
    **SD3,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 38 * 64,
    "qk_norm": "rms_norm",
}
MEDIUM = {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 24 * 64}
T5 = {
    "architectures": ["T5EncoderModel"],
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
TRANSFORMERS = {
    "Stable Diffusion 3 medium": (read_sd3_transformer, MEDIUM),
    "Stable Diffusion 3.5 large": (read_sd3_transformer, LARGE),
    "Flux": (read_flux_transformer, {"guidance_embeds": True}),
}
TOKENS = 77
GIB = 2**30
CARDS = {"16 GB": 16e9, "24 GB": 24e9, "80 GB": 80e9}


def abstract(config, dtype):
    """Return the field of abstract weights, and the condition."""
    shape, network, _ = read_unet2d_condition(config)
    del network["kind"]
    net = nnx.eval_shape(lambda: UNet2DCondition(shape, **network, rngs=nnx.Rngs(0)))
    net = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), net)
    field = dgjax.field(net, dgjax.edm(), dgjax.NoisePrediction(), t_min=0.03, t_max=15.0)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    cond = {"encoder_hidden_states": array(TOKENS, network["cross_attention_dim"])}
    if network["added_inputs"]:
        text = network["added_inputs"] - 6 * network["added_size"]
        cond["added_cond_kwargs"] = {"text_embeds": array(text), "time_ids": array(6)}
    return field, array(*shape), cond


def one(field, x, cond):
    """Evaluate velocity, score and divergence of one sample."""
    local = dgjax.evaluate(
        field, 1.0, x, divergence=dgjax.Hutchinson(), key=jax.random.key(0), cond=cond
    )
    return local.velocity, local.score, local.divergences


def placed(tree, sharding):
    """Return abstract arrays with a sharding, or with a function from shape to sharding."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=sharding(a.shape) if callable(sharding) else sharding
        ),
        tree,
    )


def compiled(config, dtype, placement):
    """Compile one evaluation; return the program and the bytes of all weights."""
    field, x, cond = abstract(config, dtype)
    weights = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(field.network))
    if placement == "one device":
        # A function of its own each time: JAX would reuse the trace of one that it knows.
        return jax.jit(lambda *args: one(*args)).lower(field, x, cond).compile(), field, weights
    mesh = device_mesh()
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(AXIS)) if placement == "both cut" else whole
    count = mesh.size if placement == "both cut" else 1
    batch = jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=rows)
    net = placed(field.network, weight_sharding(mesh))
    moved = dgjax.field(net, dgjax.edm(), dgjax.NoisePrediction(), t_min=0.03, t_max=15.0)
    run = jax.jit(jax.vmap(lambda *args: one(*args), (None, 0, None)))
    return run.lower(moved, batch, placed(cond, whole)).compile(), field, weights


def gathered(program, field):
    """Return how many all-gathers there are, and how many of them make a whole parameter."""
    sizes = {a.shape for a in jax.tree.leaves(field.network) if a.size >= 2**12}
    found = re.findall(r"= \(?\w+\[([\d,]*)\][^\n]*? all-gather(?:-start)?\(", program.as_text())
    shapes = [tuple(int(n) for n in text.split(",") if n) for text in found]
    return len(shapes), sum(shape in sizes for shape in shapes)


def row(name, dtype, placement, whole):
    """Compile and print one row; return the bytes of all weights and of intermediate results."""
    dgjax.networks.attention.LOGITS = 2**62 if whole else 2**25
    began = time.perf_counter()
    program, field, weights = compiled(MODELS[name], dtype, placement)
    memory = program.memory_analysis()
    gathers, parameters = gathered(program, field)
    cells = [
        name,
        jnp.dtype(dtype).name,
        placement,
        "whole" if whole else "in chunks",
        f"{weights / GIB:.2f}",
        f"{memory.argument_size_in_bytes / GIB:.2f}",
        f"{memory.temp_size_in_bytes / GIB:.2f}",
        f"{gathers}, {parameters}",
        f"{time.perf_counter() - began:.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return weights, memory.temp_size_in_bytes


def plan(found):
    """Print how many samples each card holds at a time, for {cells: bytes} of one device."""
    header = ["model", "weights in", "attention", "weights, GiB", "one sample, GiB", *CARDS]
    print(f"\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for names, (weights, sample) in found.items():
        cells = [*names, f"{weights / GIB:.2f}", f"{sample / GIB:.2f}"]
        cells += [f"{max(0, (0.9 * memory - weights) // sample):.0f}" for memory in CARDS.values()]
        print(f"| {' | '.join(cells)} |")


LAYERS = {  # self-attention at the highest resolution that has it: pixels, channels, heads
    "sd15, 512x512": (64 * 64, 320, 8),
    "sd21, 768x768": (96 * 96, 320, 5),
    "xl, 1024x1024": (64 * 64, 640, 10),
}


def attention_rows():
    """Compile and run one self-attention with one product, whole and in chunks."""
    for name, (tokens, channels, heads) in LAYERS.items():
        layer = CrossAttention(channels, channels, heads, rngs=nnx.Rngs(0))
        h = jax.random.normal(jax.random.key(0), (1, tokens, channels))
        cells = [name, f"{tokens:,}", str(heads)]
        for limit in (2**62, 2**25):
            dgjax.networks.attention.LOGITS = limit

            def run(layer, h):
                out, push = jax.linearize(lambda h: layer(h, Context(h)), h)
                return out, push(h)

            program = jax.jit(run).lower(layer, h).compile()
            jax.block_until_ready(program(layer, h))
            began = time.perf_counter()
            jax.block_until_ready(program(layer, h))
            seconds = time.perf_counter() - began
            memory = program.memory_analysis().temp_size_in_bytes
            cells += [f"{memory / GIB:.2f}", f"{seconds:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def transformer_rows():
    """Count the weights of transformers and of the text encoder T5, without making any."""
    builders = {}
    for name, (read, config) in TRANSFORMERS.items():
        shape, network, _ = read(config)
        builders[name] = partial(NETWORKS[network.pop("kind")], shape, **network)
    encoder = read_t5_text(T5)
    builders["T5, for the encoding only"] = partial(TEXT_ENCODERS[encoder.pop("kind")], **encoder)
    for name, make in builders.items():
        module = nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
        print(f"| {name} | {count:,} | {4 * count / GIB:.3g} | {2 * count / GIB:.3g} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--attention", action="store_true", help="of one layer, and its seconds")
    parser.add_argument("--transformers", action="store_true", help="weights of SD3, Flux, T5")
    parser.add_argument("--cut", action="store_true", help="cut over all devices, too")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--whole", action="store_true", help="attention without chunks, too")
    asked = parser.parse_args()
    if asked.attention:
        header = ["model", "pixels", "heads", "whole, GiB", "seconds", "in chunks, GiB", "seconds"]
        print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
        attention_rows()
    if asked.transformers:
        header = ["", "weights", "in float32, GiB", "in bfloat16, GiB"]
        print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
        transformer_rows()
    if not asked.models:
        return
    header = ["model", "weights in", "placement", "attention", "weights, GiB"]
    header += ["arguments a device, GiB", "intermediate a device, GiB"]
    header += ["all-gathers, of parameters", "compiled in s"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    found = {}
    for name in asked.models:
        for dtype in asked.dtype:
            for whole in (True, False) if asked.whole else (False,):
                for placement in ("weights cut", "both cut") if asked.cut else ("one device",):
                    cells = name, dtype, "whole" if whole else "in chunks"
                    found[cells] = row(name, dtype, placement, whole)
    if not asked.cut:
        plan(found)


if __name__ == "__main__":
    main()
