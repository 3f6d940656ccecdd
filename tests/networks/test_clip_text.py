"""CLIPText is transformers' CLIPTextModel, with and without a projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.configuration import construct
from dgjax.checkpoints.spec import TEXT_ENCODERS
from dgjax.importing.clip_text import RENAMES, positions, read_clip_text
from dgjax.importing.state_dict import load_state_dict

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("float32")

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "projection_dim": 10,
    "bos_token_id": 38,
    "eos_token_id": 39,
}
CONFIGS = {
    "1.5": ("CLIPTextModel", {"eos_token_id": 2}),
    "2.1": ("CLIPTextModel", {"hidden_act": "gelu"}),
    "xl": ("CLIPTextModelWithProjection", {"hidden_act": "gelu", "layer_norm_eps": 1e-3}),
}
# Of the second prompt the end comes before a greater token and a second end.
TOKENS = np.array([[38, 5, 7, 3, 39, 39, 39, 39, 39], [38, 17, 30, 39, 0, 0, 0, 0, 39]])


def original(name, **changes):
    kind, config = CONFIGS[name]
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(**{**SMALL, **config, **changes})
    network = getattr(transformers, kind)(text).eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.2 * torch.randn_like(weights))
    return network


def copied(network, more=None):
    config = {**network.config.to_dict(), "architectures": [type(network).__name__]}
    spec = read_clip_text(config)
    make = lambda: construct("text encoder", TEXT_ENCODERS, spec, rngs=nnx.Rngs(0))
    weights = {name: value.numpy() for name, value in network.state_dict().items()} | (more or {})
    loaded = load_state_dict(
        nnx.eval_shape(make), weights, "it", renames=RENAMES, constants=positions(spec)
    )
    return jax.tree.map(jnp.asarray, loaded)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_equal(name):
    network = original(name)
    encoder = copied(network)
    with torch.no_grad():
        out = network(torch.from_numpy(TOKENS), output_hidden_states=True)
    pooled = out.text_embeds if name == "xl" else out.pooler_output
    expected = (out.last_hidden_state, out.hidden_states[-2], pooled)
    for i, tokens in enumerate(TOKENS):
        for found, wanted in zip(encoder(tokens), expected, strict=True):
            np.testing.assert_allclose(found, wanted[i].numpy(), rtol=1e-5, atol=1e-5)


def test_the_end_is_the_first_of_its_kind_or_the_greatest_token():
    tokens = TOKENS[1].copy()
    tokens[5] = 1
    network = original("2.1", eos_token_id=0)
    encoder = copied(network)
    with torch.no_grad():
        wanted = network(torch.from_numpy(tokens)[None]).pooler_output[0].numpy()
    found = encoder(tokens)
    np.testing.assert_allclose(found.pooled, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.pooled, found.last[4])


def test_files_of_older_versions_hold_the_numbers_of_the_positions():
    network = original("1.5")
    stored = {"text_model.embeddings.position_ids": np.arange(9)[None]}
    copied(network, stored)
    stored = {"text_model.embeddings.position_ids": 1 + np.arange(9)[None]}
    with pytest.raises(ValueError, match="the constant 'position_ids' is not"):
        copied(network, stored)


def test_wrong_tokens_are_refused():
    encoder = copied(original("1.5"))
    with pytest.raises(ValueError, match="the tokens go to 40 and this encoder knows 40"):
        encoder(np.array([38, 40]))
    with pytest.raises(ValueError, match="at most 9 tokens"):
        encoder(np.zeros(10, int))


def test_other_encoders_are_refused():
    with pytest.raises(ValueError, match="T5EncoderModel is not supported; supported: CLIPText"):
        read_clip_text({"architectures": ["T5EncoderModel"]})
    config = {**SMALL, "architectures": ["CLIPTextModel"], "hidden_act": "relu"}
    with pytest.raises(ValueError, match="activation 'relu' is unknown"):
        construct("text encoder", TEXT_ENCODERS, read_clip_text(config), rngs=nnx.Rngs(0))
