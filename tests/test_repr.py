"""`repr` of models, guides and checkpoints fits in a few lines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dgjax
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network


def test_networks_and_paths():
    network = nnx.Linear(300, 100, rngs=nnx.Rngs(0))
    called = jax.tree_util.Partial(lambda net, x, t, cond: net(x), network)
    predicts = dgjax.NoisePrediction()
    for given, name in ((network, "Linear (30.1 k parameters)"), (called, "<lambda>")):
        model = dgjax.field(given, dgjax.edm(7.0), predicts, t_min=0.02, t_max=80)
        text = repr(model)
        start = f"Field(network={name}, parametrization=NoisePrediction(), path=EDM(rho=7)"
        assert text.startswith(start)
        assert "t_min=0.02, t_max=80, prior=GaussianPrior(scale=0)" in text
        assert len(text) < 250
        traced = []
        jax.jit(lambda m, traced=traced: traced.append(repr(m)))(model)
        jax.eval_shape(lambda m, traced=traced: traced.append(repr(m)), model)
        repr(jax.tree.map(lambda _: object(), model))
        assert all(len(text) < 300 for text in traced)


def test_density_guidance_shows_q():
    assert repr(dgjax.density_guidance(0.7)) == "DensityGuidance(q=0.7, bound=1)"
    text = repr(dgjax.density_guidance([0.7, 0.5], knots=[-1.0, 1.0], bound=jnp.inf))
    assert text == "DensityGuidance(q=[0.7 0.5], bound=inf)"
    guides = jax.vmap(dgjax.density_guidance)(jnp.linspace(0.1, 0.9, 50))
    assert repr(guides) == "DensityGuidance(q=float64[50], bound=float64[50])"


def test_metadata_of_a_thousand_classes_and_levels():
    spec = ModelSpec(
        shape=(8,),
        network={"kind": "mlp", "width": 8, "depth": 1},
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": 0.5},
        t_min=0.02,
        t_max=80.0,
    )
    model = build(spec, nnx.eval_shape(lambda: build_network(spec)))
    assert "MLP (" in repr(model)
    levels = {"kind": "discrete_time", "levels": list(np.linspace(0, 1, 1000))}
    long = dataclasses.replace(Meta(spec, "x", (0, 1), "none", 0), autoencoder=levels)
    text = repr(dataclasses.replace(long, labels=tuple(map(str, range(1000)))))
    assert "1000 in all" in text
    assert "ModelSpec(shape=(8,), network={'kind': 'mlp'" in text
    assert len(text) < 800


def test_a_class_keeps_a_repr_of_its_own():
    @dgjax.register_dataclass
    @dataclasses.dataclass(frozen=True, repr=False)
    class Own:
        number: float

        def __repr__(self):
            return "mine"

    assert repr(Own(1.0)) == "mine"
