"""Over eight devices samples are drawn and measured without a word between them.

In a process of its own, which takes its processor for eight devices.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import devices
from jax.sharding import PartitionSpec

from dgjax.devices.placement import smallest_memory
from dgjax.devices.sharding import device_mesh, replicate, shard_batch

# Each also begins the names of its asynchronous halves, such as all-gather-start.
COLLECTIVES = [
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
]

PRELUDE = """
import json, re
import jax, jax.numpy as jnp, numpy as np
import dgjax
from dgjax.devices.sharding import device_mesh, over_devices, replicate, shard_batch

mesh = device_mesh()
assert mesh.size == 8

def words(compiled):
    text = compiled.as_text()
    return re.findall(r" ((?:COLLECTIVES)[-a-z]*)\\(", text) + re.findall("callback", text)
""".replace("COLLECTIVES", "|".join(COLLECTIVES))

DENSITY = (
    PRELUDE
    + """
means = jnp.array([[1.0, 0.0, 0.5], [-1.0, 0.5, 0.0]])
mixture = dgjax.gaussian_mixture(jnp.ones(2), means, jnp.stack([0.1 * jnp.eye(3)] * 2))
model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.05, t_max=20.0)
grid = dgjax.grid_karras(model, 5)
guides, noise = (dgjax.density_guidance(0.6),), dgjax.level_set_noise(0.5)

def sampled(model, x, key):
    return dgjax.sample(model, x, grid, key=key, guides=guides, noise=noise)

def measured(model, x, key):
    return dgjax.likelihood(model, x, grid, key=key)

rng = np.random.default_rng(0)
keys = jax.random.split(jax.random.key(1), 16)
found = {}
for one, scale in ((sampled, 20.0), (measured, 1.0)):
    batch = (jnp.asarray(scale * rng.standard_normal((16, 3)), jnp.float32), keys)
    run = jax.jit(lambda model, batch: jax.vmap(lambda x, k: one(model, x, k))(*batch))
    here = run(model, batch)
    arguments = replicate(model, mesh), shard_batch(batch, mesh)
    compiled = run.lower(*arguments).compile()
    there = compiled(*arguments)
    found[one.__name__] = {
        "words": words(compiled),
        "rows a device": [s.data.shape[0] for s in there[0].addressable_shards],
        "axes": [list(a.sharding.spec) for a in there[:2]],
        "apart": [float(jnp.abs(np.asarray(a) - b).max()) for a, b in zip(there[:2], here[:2])],
        "spread": float(jnp.std(here.log_density)),
    }
print(json.dumps(found))
"""
)

LOOP = (
    PRELUDE
    + """
def halvings(scale, batch):  # until all of a batch are below 1
    go, halve = lambda c: c[1] >= 1, lambda c: (c[0] + 1, c[1] / 2)
    return jax.vmap(lambda x: jax.lax.while_loop(go, halve, (0, scale * x))[0])(batch)

arguments = replicate(jnp.float32(1.0), mesh), shard_batch(2.0 ** jnp.arange(16) + 0.5, mesh)
found = {}
for name, run in (("together", halvings), ("apart", over_devices(halvings, mesh))):
    compiled = jax.jit(run).lower(*arguments).compile()
    found[name] = {"words": words(compiled), "result": np.asarray(compiled(*arguments)).tolist()}
print(json.dumps(found))
"""
)


EXPLICIT = (
    PRELUDE
    + """
from jax.sharding import NamedSharding, PartitionSpec
data = dgjax.gaussian(jnp.array([1.0, -0.5]), 1.5)
model = dgjax.closed_form(data, dgjax.edm(), t_min=0.05, t_max=20.0)
grid = dgjax.grid_logsnr(model, 6)
keys = jax.random.split(jax.random.key(0), 16)
xs = 20 * jax.random.normal(jax.random.key(1), (16, 2))
explicit, each = jax.make_mesh((8,), ("data",)), PartitionSpec("data")
assert "Explicit" in str(explicit.axis_types)

def sampled(x, key):
    return dgjax.sample(model, x, grid, key=key, guides=dgjax.density_guidance(0.6))[:2]

def measured(x, key):
    return dgjax.likelihood(model, x / 20, grid, key=key)[:2]

def quadrature(x, key):
    path = (grid / grid[0])[:, None] * x
    return dgjax.quadrature(model, grid, path, key=key).log_density, x

def gradient(x, key):
    return jax.grad(lambda x: sampled(x, key)[1])(x), x

found = {}
placed = jax.device_put((xs, keys), NamedSharding(explicit, each))
try:
    jax.jit(jax.vmap(sampled))(*placed)
except ValueError as error:
    found["no mesh"] = str(error)
for one in (sampled, measured, quadrature, gradient):
    here = jax.jit(jax.vmap(one))(xs, keys)
    with jax.set_mesh(explicit):
        placed = jax.device_put((xs, keys), NamedSharding(explicit, each))
        compiled = jax.jit(jax.vmap(one)).lower(*placed).compile()
        there = compiled(*placed)
    found[one.__name__] = {
        "words": words(compiled),
        "rows a device": [s.data.shape[0] for s in there[0].addressable_shards],
        "apart": max(float(jnp.abs(np.asarray(a) - b).max()) for a, b in zip(there, here)),
    }

placed = jax.device_put((xs, keys), NamedSharding(mesh, each))
for check in (False, True):
    run = jax.shard_map(
        jax.vmap(sampled), mesh=mesh, in_specs=(each, each), out_specs=each, check_vma=check
    )
    try:
        there = jax.jit(run)(*placed)
        here = jax.jit(jax.vmap(sampled))(xs, keys)
        said = max(float(jnp.abs(np.asarray(a) - b).max()) for a, b in zip(there, here)) < 1e-4
    except ValueError as error:
        said = str(error)
    found[f"check_vma={check}"] = said
print(json.dumps(found))
"""
)

MODEL = (
    PRELUDE
    + """
from dgjax.checkpoints.checkpoint import load, save, weight_bytes
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from flax import nnx

network = {"kind": "mlp", "width": 64, "depth": 3}
preconditioned = {"kind": "preconditioned", "sigma_data": 0.7}
spec = ModelSpec((5,), network, {"kind": "edm"}, preconditioned, 0.02, 80.0)
like = nnx.eval_shape(lambda: build_network(spec))
rng, out = np.random.default_rng(0), {}
drawn = {k: 0.2 * rng.standard_normal(v.shape) for k, v in to_named(like).items()}
model = build(spec, from_named(like, drawn, "the test"))
folder = "./model"
save(folder, model, Meta(spec, "none", (-1.0, 1.0), "none", 0))
"""
)

CHECKPOINT = (
    MODEL
    + """
import pathlib, shutil
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from dgjax.devices.sharding import weight_sharding

run = jax.jit(lambda model, x: model.pair(jnp.float32(0.5), x).x0)
x = jnp.arange(5.0)
whole = load(folder)[0]
everywhere = NamedSharding(mesh, PartitionSpec())
old = pathlib.Path("older").absolute()  # the same checkpoint in the older format
shutil.copytree(folder, old)
ocp.PyTreeCheckpointer().save(old / "weights", load_file(old / "weights.safetensors"))
config = json.loads((old / "config.json").read_text()) | {"format": "dgjax-checkpoint-1"}
del config["sha256"]
(old / "config.json").write_text(json.dumps(config))
(old / "weights.safetensors").unlink()
for name, place, sharding in (
    ("cut", folder, weight_sharding(mesh)),
    ("older cut", old, weight_sharding(mesh)),
    ("everywhere", folder, everywhere),
    ("older everywhere", old, everywhere),
):
    placed = load(place, sharding)[0]
    pairs = zip(*(jax.tree.leaves(m.network) for m in (whole, placed)), strict=True)
    out[name] = {
        "equal": all(a.dtype == b.dtype and (a == np.asarray(b)).all() for a, b in pairs),
        "parts": {
            k: [list(v.shape), sorted({s.data.shape for s in v.addressable_shards})]
            for k, v in to_named(placed.network).items()
        },
        "devices": sorted({len(v.devices()) for v in jax.tree.leaves(placed.network)}),
        "apart": float(jnp.abs(run(whole, x) - np.asarray(run(placed, x))).max()),
    }
try:
    load(folder, NamedSharding(mesh, PartitionSpec("data")))
except ValueError as error:
    out["refused"] = str(error)
print(json.dumps(out))
"""
)

COMMAND = (
    MODEL
    + """
from dgjax.devices import placement
from dgjax.devices.batches import map_batches
from dgjax.checkpoints.opened import open_model
from dgjax.devices.sharding import weight_sharding

x = rng.standard_normal((11, 5)).astype(np.float32)
run = jax.jit(lambda model, x: jax.vmap(lambda x: model.pair(jnp.float32(0.9), x).x0)(x))
size = weight_bytes(folder)
assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(model.network))

def parts(tree):
    largest = max(jax.tree.leaves(tree), key=lambda leaf: leaf.size)
    return largest.size // largest.addressable_shards[0].data.size

for name, room in (("says nothing", None), ("fits", 2 * size), ("too large", 2 * size - 1)):
    placement.smallest_memory = lambda devices: room
    field = open_model(folder).field
    placed = placement.place_shared(field, mesh)[0]
    devices = sorted({len(leaf.devices()) for leaf in jax.tree.leaves(placed)})
    found = map_batches("test", run, x, 8, field)
    out[name] = [parts(field.network), parts(placed.network), devices, found.tolist()]

# What a device needs for a loop of evaluations, as users compile it, in sizes of the weights.
jax.config.update("jax_disable_most_optimizations", False)
unet = {"kind": "unet", "channels": [128], "blocks": 1, "embedding": 32}
spec = ModelSpec((8, 8, 1), unet, {"kind": "edm"}, preconditioned, 0.02, 80.0)
large = build(spec)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(large.network))

def solve(model, x):
    step = lambda x, t: (model.pair(t, x).x0, None)
    return jax.lax.scan(step, x, dgjax.grid_logsnr(model, 4))[0]

for name, sharding in (("whole", None), ("cut", weight_sharding(mesh))):
    shared = large if sharding is None else jax.tree.map(
        lambda a: jax.device_put(a, sharding(a.shape)), large
    )
    placed, place_batch = placement.place_shared(shared, mesh)
    images = place_batch(jnp.zeros((8, 8, 8, 1)), mesh)
    needs = jax.jit(jax.vmap(solve, (None, 0))).lower(placed, images).compile()
    needs = needs.memory_analysis()
    out[name] = (needs.argument_size_in_bytes + needs.temp_size_in_bytes) / size
print(json.dumps(out))
"""
)

GATHERS = (
    PRELUDE
    + """
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from dgjax.devices.sharding import weight_sharding
from dgjax.networks import UNet2DCondition

# 6x6 pixels and 5 tokens, so that no activation has as many elements as a cut weight.
net = nnx.eval_shape(lambda: UNet2DCondition(
    (6, 6, 4), (64,), ("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",), 72, (2,), (1,), (1,),
    linear_projection=True, mid_block_type=None, rngs=nnx.Rngs(0)
))
large = {a.size for a in jax.tree.leaves(net) if a.size >= 2**12}
abstract = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
cut, whole = weight_sharding(mesh), NamedSharding(mesh, PartitionSpec())
net = jax.tree.map(lambda a: abstract(a.shape, cut(a.shape)), net)
model = dgjax.field(net, dgjax.edm(), dgjax.NoisePrediction(), t_min=0.02, t_max=80.0)
prompt = abstract((5, 72), whole)

def evaluated(model, x, cond):
    key = jax.random.key(0)
    local = dgjax.evaluate(model, 1.0, x, divergence=dgjax.Hutchinson(), key=key, cond=cond)
    return local.velocity, local.divergences

def value(model, x, cond):
    return model.pair(jnp.float32(1.0), x, cond).eps

found = {"large": len(large)}
for name, run, rows in (
    ("batch whole", evaluated, whole),
    ("batch cut", value, NamedSharding(mesh, PartitionSpec("data"))),
):
    batch = abstract((8, 6, 6, 4), rows)
    text = jax.jit(jax.vmap(run, (None, 0, None))).lower(model, batch, prompt).compile().as_text()
    shapes = re.findall(r"= [a-z0-9]+\\[([0-9,]*)\\][^=]*? all-gather(?:-start)?\\(", text)
    gathered = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
    found[name] = [sum(size in large for size in gathered), text.count("all-reduce(")]
print(json.dumps(found))
"""
)


def on_eight_devices(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **devices(8)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_samples_and_likelihoods_need_no_communication(tmp_path):
    for found in on_eight_devices(DENSITY, tmp_path).values():
        assert found["words"] == []
        assert found["rows a device"] == [2] * 8
        assert found["axes"] == [["data"], ["data"]]
        assert max(found["apart"]) < 1e-4
        assert found["spread"] > 0.1  # they differ from each other by more


def test_a_loop_until_all_are_done_is_each_devices_own(tmp_path):
    found = on_eight_devices(LOOP, tmp_path)
    assert any("all-reduce" in word for word in found["together"]["words"])  # the search finds one
    assert found["apart"]["words"] == []
    assert found["apart"]["result"] == found["together"]["result"] == list(range(1, 17))


@pytest.mark.slow
def test_meshes_with_explicit_axes(tmp_path):
    """JAX's default. Solves run there as on any mesh: a share of the batch on each device."""
    found = on_eight_devices(EXPLICIT, tmp_path)
    for name in ("sampled", "measured", "quadrature", "gradient"):
        run = found.pop(name)
        assert run["words"] == []
        assert run["rows a device"] == [2] * 8
        assert run["apart"] < 1e-4
    assert "with jax.set_mesh(mesh)" in found["no mesh"]
    assert found["check_vma=False"] is True
    assert "pass check_vma=False" in found["check_vma=True"]
    assert "\n" not in found["check_vma=True"]


@pytest.mark.slow
def test_weights_come_from_disk_cut_over_the_devices(tmp_path):
    found = on_eight_devices(CHECKPOINT, tmp_path)
    for name in ("cut", "everywhere"):
        assert found[name]["equal"]
        assert found[name]["devices"] == [8]
        assert found[name]["apart"] < 1e-5
        assert found[f"older {name}"] == found[name]
    assert all(parts == [whole] for whole, parts in found["everywhere"]["parts"].values())
    cut = {
        name: parts for name, (whole, parts) in found["cut"]["parts"].items() if parts != [whole]
    }
    # Of the large ones an eighth is on each device.
    large = {n for n, (whole, _) in found["cut"]["parts"].items() if np.prod(whole) >= 64 * 64}
    assert large
    assert cut == {name: [[8, 64]] for name in large}
    assert "cannot be cut as" in found["refused"]
    assert "weight_sharding(mesh)" in found["refused"]


@pytest.mark.slow
def test_no_device_gathers_a_cut_weight_unless_the_batch_is_cut(tmp_path):
    """Seen in the compiled program of one evaluation with its Hessian product."""
    found = on_eight_devices(GATHERS, tmp_path)
    gathered, reduced = found["batch whole"]
    assert gathered == 0
    assert reduced > 0  # activations are exchanged instead
    assert found["batch cut"][0] >= found["large"] > 3  # and there the search finds them


@pytest.mark.slow
def test_commands_cut_a_model_that_one_device_is_too_small_for(tmp_path):
    found = on_eight_devices(COMMAND, tmp_path)
    whole = found["says nothing"]
    assert whole[:3] == found["fits"][:3] == [1, 1, [8]]
    assert found["too large"][:3] == [8, 8, [8]]
    assert found["fits"][3] == whole[3]
    np.testing.assert_allclose(found["too large"][3], whole[3], atol=1e-5)
    assert found["whole"] > 1
    assert found["cut"] < 0.5


def test_memory_is_that_of_the_smallest_device_that_says():
    def device(stats):
        return SimpleNamespace(memory_stats=lambda: stats)

    silent = device(None)
    assert smallest_memory([device({"bytes_limit": 5}), device({"bytes_limit": 3}), silent]) == 3
    assert smallest_memory([silent, device({})]) is None


def test_a_batch_is_placed_along_its_leading_axis_and_a_model_whole():
    mesh = device_mesh()
    x = jnp.zeros((2 * mesh.size, 3))
    assert shard_batch({"x": x}, mesh)["x"].sharding.spec == PartitionSpec("data")
    assert replicate(x, mesh).sharding.is_fully_replicated


def test_a_batch_that_devices_do_not_divide_is_refused():
    class Mesh:  # of three devices, which no machine need have
        size = 3

    with pytest.raises(ValueError, match=r"3 devices do not divide .* \(4, 2\): pad"):
        shard_batch((np.zeros((3, 2)), np.zeros((4, 2))), Mesh())
    with pytest.raises(ValueError, match="do not divide"):
        shard_batch(np.float32(1), Mesh())
