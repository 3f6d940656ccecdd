"""T5Text is the T5EncoderModel of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.configuration import construct
from dgjax.checkpoints.spec import TEXT_ENCODERS
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.t5_text import T5_RENAMES, read_t5_text, tied

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("float32")

SMALL = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
CONFIGS = {
    "as published": {},
    "one layer": {"num_layers": 1, "num_heads": 3, "d_kv": 4, "layer_norm_epsilon": 1e-2},
    "few distances": {
        "relative_attention_num_buckets": 10,
        "relative_attention_max_distance": 20,
    },
}


def original(**changes):
    torch.manual_seed(0)
    network = transformers.T5EncoderModel(transformers.T5Config(**(SMALL | changes))).eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.2 * torch.randn_like(weights))
    return network


def spec(network, **changes):
    config = {**network.config.to_dict(), "architectures": [type(network).__name__]}
    return read_t5_text(config | changes)


def copied(network, precision=np.float32, **changes):
    weights = {n: v.numpy().astype(precision) for n, v in network.state_dict().items()}
    weights = {n: changes.get(n, v) for n, v in weights.items()}
    make = lambda: construct("text encoder", TEXT_ENCODERS, spec(network), rngs=nnx.Rngs(0))
    like = nnx.eval_shape(make)
    loaded = load_state_dict(like, weights, "it", renames=T5_RENAMES, constants=tied(weights))
    return jax.tree.map(jnp.asarray, loaded)


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_are_equal(name):
    """For prompts longer than the furthest distance too: all biases are used."""
    network = original(**CONFIGS[name])
    tokens = np.random.default_rng(0).integers(0, 40, 300)
    with torch.no_grad():
        out = network(torch.from_numpy(tokens)[None], output_hidden_states=True)
    found = copied(network)(tokens)
    for ours, theirs in (
        (found.last, out.last_hidden_state),
        (found.penultimate, out.hidden_states[-2]),
    ):
        theirs = theirs[0].numpy()
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert found.pooled.shape == (0,)


def test_vectors_do_not_overflow_in_half_precision():
    network = original()
    with torch.no_grad():
        for block in network.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e4)
    half = copied(network, np.float16)
    exact = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    found, wanted = (encoder(np.arange(9)) for encoder in (half, exact))
    assert jnp.abs(wanted.penultimate).max() > jnp.finfo(jnp.float16).max
    np.testing.assert_allclose(found.last, wanted.last, rtol=1e-5)


def test_a_table_that_is_stored_twice_must_be_the_same():
    network = original()
    name = "encoder.embed_tokens.weight"
    assert name in network.state_dict()
    copied(network)
    with pytest.raises(ValueError, match=r"the constant 'encoder\.embed_tokens\.weight' is not"):
        copied(network, **{name: np.ones((40, 16), np.float32)})


def test_what_is_not_taken_is_refused():
    network = original()
    encoder = copied(network)
    with pytest.raises(ValueError, match="the tokens go to 40 and this encoder knows 40"):
        encoder(np.array([3, 40]))
    with pytest.raises(ValueError, match="this encoder takes one prompt"):
        encoder(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="UMT5EncoderModel is not supported here; supported: T5E"):
        spec(network, architectures=["UMT5EncoderModel"])
    with pytest.raises(ValueError, match="feed_forward_proj 'relu' of T5EncoderModel"):
        spec(network, feed_forward_proj="relu")
    wrong = spec(network, relative_attention_num_buckets=7)
    with pytest.raises(ValueError, match="buckets must be an even number"):
        construct("text encoder", TEXT_ENCODERS, wrong, rngs=nnx.Rngs(0))
