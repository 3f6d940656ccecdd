"""The convolution of the networks: JAX's own in every transformation, in an order that is fast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.lax import conv_general_dilated

from dgjax.networks import UNet
from dgjax.networks.convolution import convolve

SIZES = {"1-D": (3,), "point": (1, 1), "square": (3, 3), "oblong": (3, 5), "volume": (3, 1, 3)}
SIDES = 6, 5, 4


def layers(sizes, inputs=2, outputs=3, **options):
    """Return the layer with JAX's convolution and with ours, of the same weights."""

    def make(convolution):
        return nnx.Conv(
            inputs,
            outputs,
            sizes,
            kernel_init=nnx.initializers.normal(0.4),
            bias_init=nnx.initializers.normal(0.7),
            conv_general_dilated=convolution,
            rngs=nnx.Rngs(0),
            **options,
        )

    return make(conv_general_dilated), make(convolve)


def images(rank, channels=2):
    x = jax.random.normal(jax.random.key(1), (3, *SIDES[:rank], channels))
    return 0.7 + 1.3 * x


def loss(layer, x):
    return jnp.sum(jnp.sin(layer(x)))


def jvp(layer, x):
    return jax.jvp(lambda layer, x: layer(x), (layer, x), (layer, jnp.cos(x)))[1]


def second(layer, x):
    def value(layer, x):
        found = jax.tree.leaves(jax.grad(loss, (0, 1))(layer, x))
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in found)

    return jax.grad(value, (0, 1))(layer, x)


def each_image(layer, x):
    """Gradients of each image by vmap, in the weights too."""
    return jax.vmap(jax.grad(loss, (0, 1)), (None, 0))(layer, x)


def each_layer(layer, x):
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), layer)
    return jax.vmap(jax.grad(loss, (0, 1)), (0, None))(several, x)


def last_axis(layer, x):
    return jax.vmap(layer, in_axes=-1)(jnp.stack([x, x + 1], -1))


TRANSFORMS = {
    "value": lambda layer, x: layer(x),
    "jvp": jvp,
    "gradient": jax.grad(loss, (0, 1)),
    "gradient of the gradient": second,
    "each image": each_image,
    "each layer": each_layer,
    "last axis": last_axis,
    "remat": jax.grad(jax.checkpoint(loss), (0, 1)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", SIZES)
def test_is_that_of_jax(name, transform):
    check_equal(jax.jit(TRANSFORMS[transform]), SIZES[name])


def test_without_a_compiler():
    check_equal(TRANSFORMS["gradient of the gradient"], (3, 5))


def check_equal(run, sizes):
    x = images(len(sizes))
    right, found = (jax.tree.leaves(run(layer, x)) for layer in layers(sizes))
    assert len(found) == len(right)
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


OTHERS = {
    "stride": {"strides": 2},
    "dilation": {"kernel_dilation": 2},
    "groups": {"feature_group_count": 2, "outputs": 4},
    "padding": {"padding": "VALID"},
    "circular": {"padding": "CIRCULAR"},
    "even": {"sizes": (2, 4)},
    "wide type": {"preferred_element_type": jnp.float64},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_are_left_to_jax(options):
    sizes = options.get("sizes", (3, 3))
    rest = {name: value for name, value in options.items() if name != "sizes"}
    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    right, found = (jax.tree.leaves(run(layer, images(2))) for layer in layers(sizes, **rest))
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert "conv_general_dilated[" in str(jax.make_jaxpr(layers(sizes, **rest)[1])(images(2)))


def kernel_orders(program):
    """Return the order of axes of each convolution in a compiled program, as XLA writes it."""
    return re.findall(r" convolution\(.*dim_labels=\w+?_(\w+)->", program.as_text())


def by_steps(function):
    """Return a loop that moves x by what `function` returns."""
    return lambda x: jax.lax.scan(lambda x, _: (x + 0.1 * function(x), None), x, None, length=3)[0]


@pytest.mark.parametrize("wanted", ["images", "weights"])
def test_kernels_keep_their_order_in_loops(wanted):
    """Where XLA finds another order in a loop, its code for processors is slow."""
    net = UNet((16, 16, 2), (8, 16), 1, 8, rngs=nnx.Rngs(0))

    def total(net, x):
        return jnp.sum(by_steps(jax.vmap(lambda x: net(x, jnp.full((), 0.3))))(x))

    x = jnp.ones((2, 16, 16, 2), jnp.float32)
    program = jax.jit(jax.grad(total, 1 if wanted == "images" else 0)).lower(net, x).compile()
    orders = kernel_orders(program)
    assert len(orders) > 20
    assert set(orders) == {"01io"}


def test_the_precision_of_products_is_that_at_the_call():
    layer, x = layers((3, 3))[1], images(2).astype(jnp.float32)
    text = lambda: jax.jit(jax.grad(loss, (0, 1))).lower(layer, x).as_text()
    assert "HIGHEST" not in text()
    with jax.default_matmul_precision("highest"):
        asked = text()
    assert asked.count("stablehlo.convolution") == 3
    assert asked.count("HIGHEST") == 2 * 3


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_accelerators_have_as_many_convolutions(platform):
    x = images(2)
    right, found = (
        jax.jit(jax.grad(loss, (0, 1)))
        .trace(layer, x)
        .lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.convolution")
        for layer in layers((3, 3))
    )
    assert found == right == 3


def test_bfloat16_of_training_is_kept():
    right, found = (layer(images(2)) for layer in layers((3, 3), dtype=jnp.bfloat16))
    assert found.dtype == right.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, right)


def test_other_channels_are_refused_at_the_call():
    with pytest.raises(ValueError, match="feature dimension size"):
        jax.make_jaxpr(layers((3, 3))[1])(images(2, channels=3))


def test_an_empty_batch():
    run = jax.vmap(layers((3, 3))[1])
    assert run(jnp.ones((0, 2, 4, 4, 2))).shape == (0, 2, 4, 4, 3)


def test_inside_a_shard_map():
    """There JAX sums gradients over devices by what its operations say of their operands."""
    mesh = jax.make_mesh((1,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    right, found = layers((3, 3))
    specs = {"in_specs": (jax.P(), jax.P("n")), "out_specs": (jax.P(), jax.P("n"))}
    total = lambda layer, x: jax.lax.psum(loss(layer, x), "n")
    gradients = [
        jax.jit(jax.shard_map(jax.grad(total, (0, 1)), mesh=mesh, **specs))(layer, images(2))
        for layer in (found, right)
    ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_mesh_with_explicit_axes():
    mesh = jax.make_mesh((1,), ("n",), axis_types=(jax.sharding.AxisType.Explicit,))
    right, found = layers((3, 3))
    with jax.set_mesh(mesh):
        x = jax.device_put(images(2), jax.sharding.NamedSharding(mesh, jax.P("n")))
        run = jax.jit(jax.grad(loss, 1))
        assert "conv_general_dilated[" in str(jax.make_jaxpr(found)(x))
        assert jax.typeof(run(found, x)).sharding == jax.typeof(run(right, x)).sharding
        np.testing.assert_allclose(run(found, x), run(right, x), rtol=1e-10)
