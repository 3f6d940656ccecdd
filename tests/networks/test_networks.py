"""Networks act on one sample, batch under vmap, start at zero and use all of their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.spec import build_network
from dgjax.networks import MLP, UNet
from dgjax.networks.unet import fold, unfold
from dgjax.training import load_config


def unet(shape=(8, 8, 1), **kwargs):
    arguments = {"channels": (8, 16), "blocks": 1, "embedding": 16} | kwargs
    return lambda: UNet(shape, **arguments, rngs=nnx.Rngs(0))


def mlp(shape=(3,), **kwargs):
    return lambda: MLP(shape, width=32, depth=3, **kwargs, rngs=nnx.Rngs(0))


def filled(make, size=0.2):
    """The network with every weight drawn anew, so that nothing is zero by construction."""
    rng = np.random.default_rng(1)
    like = nnx.eval_shape(make)
    named = {
        name: size * rng.standard_normal(leaf.shape) + name.endswith("scale")
        for name, leaf in to_named(like).items()
    }
    return from_named(like, named, "the test")


def samples(network, count):
    return jax.random.normal(jax.random.key(2), (count, *network.shape))


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet(), unet((7, 10, 3)), mlp((2, 2))])
def test_one_sample_equals_the_same_sample_in_a_batch(make):
    network = filled(make)
    x, t = samples(network, 4), jnp.linspace(-1.0, 1.0, 4)
    apply = jax.jit(lambda x, t: network(x, t, None))
    batched = jax.jit(jax.vmap(apply))(x, t)
    single = jnp.stack([apply(x[i], t[i]) for i in range(4)])
    assert batched.shape == x.shape
    np.testing.assert_allclose(batched, single, atol=2e-5)


@pytest.mark.parametrize("make", [unet(channels=(8,)), mlp()])
def test_a_new_network_is_zero_everywhere(make):
    network = jax.jit(make)()
    apply = jax.jit(jax.vmap(lambda x: network(x, jnp.array(0.3), None)))
    out = apply(samples(network, 3))
    assert (out == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet(num_classes=3), mlp(num_classes=3)])
def test_every_weight_is_a_float_and_gets_a_gradient(make):
    network = filled(make)

    def loss(network, x):
        return jnp.sum(network(x, jnp.array(0.3), 1) ** 2)

    gradient = jax.jit(jax.grad(loss))(network, samples(network, 1)[0])
    for name, g in to_named(gradient).items():
        assert jnp.issubdtype(g.dtype, jnp.floating)  # so no random state is among the leaves
        assert jnp.isfinite(g).all(), name
        assert (g != 0).any(), name


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet((7, 10, 3)), unet((8, 8, 1), channels=(8,))])
def test_every_pixel_reaches_every_output_padded_or_not(make):
    network = filled(make)
    x = samples(network, 1)[0]
    jacobian = jax.jit(jax.jacfwd(lambda x: network(x, jnp.array(0.3), None)))(x)
    assert jacobian.shape == x.shape + x.shape
    assert (jacobian != 0).all()


def test_jvp_is_the_directional_derivative():
    network = filled(unet())
    x, z = samples(network, 2)
    # Small, since the fastest sinusoid turns by 32 h z; group normalisation reduces in float32,
    # whatever the dtype, which leaves 1e-7 / h.
    h = 1e-4

    @jax.jit
    def along(s):
        return network(x + s * z, jnp.array(0.3), None)

    _, tangent = jax.jvp(along, (jnp.array(0.0),), (jnp.array(1.0),))
    np.testing.assert_allclose((along(h) - along(-h)) / (2 * h), tangent, rtol=1e-3, atol=1e-3)


def test_unfold_inverts_fold_and_fold_gathers_neighbours():
    x = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)[:1]
    np.testing.assert_array_equal(unfold(fold(x)), x)
    np.testing.assert_array_equal(fold(x)[0, 0, 0], x[0, :2, :2].reshape(-1))


def test_the_shipped_network_has_about_two_million_weights():
    shapes = nnx.eval_shape(lambda: build_network(load_config("fashion-mnist").model))
    assert 2.0e6 < sum(p.size for p in jax.tree.leaves(shapes)) < 2.5e6


@pytest.mark.parametrize("make", [unet, mlp])
def test_noise_level_and_label_matter(make):
    network = filled(make(num_classes=3))
    x = samples(network, 1)[0]
    apply = jax.jit(lambda t, c: network(x, t, c))
    outs = [apply(jnp.array(t), c) for t in (-1.0, 1.0) for c in (None, 0, 2)]
    for i, a in enumerate(outs):
        assert all(jnp.max(jnp.abs(a - b)) > 1e-3 for b in outs[i + 1 :])


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, mlp])
def test_the_number_of_classes_is_the_label_of_none(make):
    """As data, so that a batch may mix samples with and without labels."""
    network = filled(make(num_classes=3))
    x, t = samples(network, 1)[0], jnp.array(0.3)
    apply = jax.jit(jax.vmap(lambda c: network(x, t, c)))
    mixed, none = apply(jnp.array([0, 3, 2])), network(x, t, None)
    np.testing.assert_allclose(mixed[1], none, atol=1e-6)
    np.testing.assert_allclose(mixed[2], network(x, t, 2), atol=1e-6)
    assert jnp.abs(mixed[0] - none).max() > 1e-3
    for label in (-1, 4):
        with pytest.raises(ValueError, match=f"label {label} is out of range.* 0 to 2, or 3"):
            network(x, t, label)


@pytest.mark.parametrize("make", [unet, mlp])
def test_wrong_use_is_refused(make):
    network = filled(make())
    x = samples(network, 1)[0]
    with pytest.raises(ValueError, match="num_classes"):
        jax.eval_shape(lambda x: network(x, jnp.array(0.0), 1), x)
    with pytest.raises(ValueError, match="has shape"):
        jax.eval_shape(lambda x: network(x, jnp.array(0.0), None), x[None])


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(H, W, C\)"):
        unet((8,))()
    with pytest.raises(ValueError, match="multiples"):
        unet(channels=(8, 100))()
    with pytest.raises(ValueError, match="positive"):
        MLP((3,), depth=0, rngs=nnx.Rngs(0))
