"""DiT, SiT and REPA by name: outputs of PyTorch, their three processes, and what is refused.

The reference is a function of PyTorch that makes a random array whenever it asks for a new name: so
it writes the file of weights, too.
"""

import argparse
import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from flax import nnx
from test_autoencoder_folder import SIZES, write_autoencoder

import dgjax
from dgjax.checkpoints import load, save
from dgjax.checkpoints.spec import build
from dgjax.importing import import_model
from dgjax.importing.dit import import_dit, is_dit
from dgjax.networks import AutoencoderKL

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SIDE, PATCH, CHANNELS, WIDTH, DEPTH, HEADS, CLASSES = 6, 2, 4, 16, 2, 4, 5

SETTINGS = {"num_heads": HEADS}


class Reference:
    """The transformer by its structure: `net(x, t, label)` on a batch (n, c, h, w)."""

    def __init__(self, outputs=CHANNELS):
        self.outputs, self.weights = outputs, {}
        self.random = torch.Generator().manual_seed(3)

    def get(self, name, *shape):
        if name not in self.weights:
            draw = torch.randn(shape, generator=self.random)
            self.weights[name] = draw / math.sqrt(math.prod(shape[1:]))
        return self.weights[name]

    def linear(self, name, h, size):
        weight = self.get(f"{name}.weight", size, h.shape[-1])
        return functional.linear(h, weight, self.get(f"{name}.bias", size))

    def positions(self, rows):
        """Sines and cosines of each token's column, then of its row."""
        rates = 1e4 ** (-torch.arange(WIDTH // 4, dtype=torch.float64) / (WIDTH // 4))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij")
        angles = [place.flatten()[:, None] * rates for place in (column, row)]
        return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1).float()[None]

    def attend(self, name, h):
        n, tokens, _ = h.shape
        rows = self.linear(f"{name}.qkv", h, 3 * WIDTH)
        q, k, v = rows.reshape(n, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        return self.linear(f"{name}.proj", out, WIDTH)

    def __call__(self, x, t, label):
        rates = 1e4 ** (-torch.arange(128) / 128)
        waves = torch.cat([(t[:, None] * rates).cos(), (t[:, None] * rates).sin()], 1)
        vector = functional.silu(self.linear("t_embedder.mlp.0", waves, WIDTH))
        vector = self.linear("t_embedder.mlp.2", vector, WIDTH)
        table = self.get("y_embedder.embedding_table.weight", CLASSES + 1, WIDTH)
        vector = functional.silu(vector + table[label])
        self.weights["pos_embed"] = self.positions(SIDE // PATCH)
        weight = self.get("x_embedder.proj.weight", WIDTH, CHANNELS, PATCH, PATCH)
        h = functional.conv2d(x, weight, self.get("x_embedder.proj.bias", WIDTH), PATCH)
        h = h.flatten(2).mT + self.weights["pos_embed"]
        normal = lambda h: functional.layer_norm(h, (WIDTH,), eps=1e-6)
        for i in range(DEPTH):
            name = f"blocks.{i}"
            made = self.linear(f"{name}.adaLN_modulation.1", vector, 6 * WIDTH)[:, None].chunk(
                6, -1
            )
            shift, scale, gate, shift_2, scale_2, gate_2 = made
            h = h + gate * self.attend(f"{name}.attn", normal(h) * (1 + scale) + shift)
            out = self.linear(f"{name}.mlp.fc1", normal(h) * (1 + scale_2) + shift_2, 4 * WIDTH)
            out = self.linear(f"{name}.mlp.fc2", functional.gelu(out, approximate="tanh"), WIDTH)
            h = h + gate_2 * out
        made = self.linear("final_layer.adaLN_modulation.1", vector, 2 * WIDTH)[:, None]
        shift, scale = made.chunk(2, -1)
        size = PATCH * PATCH * self.outputs
        h = self.linear("final_layer.linear", normal(h) * (1 + scale) + shift, size)
        h = h.reshape(len(x), SIDE // PATCH, SIDE // PATCH, PATCH, PATCH, self.outputs)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, SIDE, SIDE)


def sample():
    return np.random.default_rng(5).normal(size=(SIDE, SIDE, CHANNELS)).astype(np.float32)


def output(net, x, t, label=0):
    with torch.no_grad():
        images = torch.tensor(x.transpose(2, 0, 1))[None]
        out = net(images, torch.tensor([t]), torch.tensor([label]))
    return out[0, :CHANNELS].numpy().transpose(1, 2, 0)


def write(folder, name="SiT.pt", settings=SETTINGS, net=None, table=lambda w: w):
    """Save weights, with settings beside them."""
    net = Reference() if net is None else net
    output(net, sample(), 0.5)
    file = folder / name
    torch.save(table(net.weights), file)
    if settings is not None:
        file.with_suffix(".json").write_text(json.dumps(settings))
    return file


def projected(weights):
    """Weights with REPA's heads for training."""
    return {**weights, "projectors.0.0.weight": torch.zeros(8, WIDTH)}


@pytest.mark.parametrize("family", slow_but(["DiT", "SiT", "REPA"], "SiT"))
def test_outputs_are_those_of_pytorch(family, tmp_path):
    net = Reference(CHANNELS if family == "REPA" else 2 * CHANNELS)
    table = projected if family == "REPA" else lambda weights: weights
    found = import_dit(write(tmp_path, f"{family}-XL-2-256x256.pt", net=net, table=table))
    assert found.architecture == family
    x, time = sample(), 500.0 if family == "DiT" else 0.3
    for label in (0, CLASSES):
        expected = output(net, x, time, label)
        got = found.model.network(jnp.asarray(x), jnp.asarray(time), None if label else 0)
        np.testing.assert_allclose(got, expected, atol=5e-6 * np.abs(expected).max())
    assert found.meta.model.network["norm_eps"] == 1e-6
    kinds = {"DiT": "noise", "SiT": "velocity", "REPA": "velocity"}
    assert found.meta.model.parametrization["kind"] == kinds[family]
    assert any("learned variance" in note for note in found.notes) == (family != "REPA")
    assert any("projectors" in note for note in found.notes) == (family == "REPA")
    assert any("latents" in note for note in found.notes)
    t = jnp.asarray(0.7)
    if family != "DiT":
        sign, own = (-1, 0.3) if family == "SiT" else (1, 0.7)
        velocity = dgjax.velocity(found.model, t, jnp.asarray(x), 2)
        np.testing.assert_allclose(velocity, sign * output(net, x, own, 2), atol=1e-5)


def test_the_two_rows_of_blocks_of_older_files_are_one(tmp_path):
    net = Reference()
    older = lambda w: {k.replace("blocks.1.", "decoder_blocks.0."): v for k, v in w.items()}
    found = import_dit(write(tmp_path, "last.pt", SETTINGS, net, lambda w: projected(older(w))))
    got = found.model.network(jnp.asarray(sample()), 0.3, 1)
    np.testing.assert_allclose(got, output(net, sample(), 0.3, 1), atol=1e-5)


MEAN, SCALE = np.array([1.5, -0.7, 0.4]), 0.6  # of the data


def gaussian(alpha, sigma, x):
    """The expected data and noise at x, for Gaussian data."""
    variance = (alpha * SCALE) ** 2 + sigma**2
    noise = sigma * (x - alpha * MEAN) / variance
    return (x - sigma * noise) / alpha, noise


def log_density(alpha, sigma, x):
    variance = (alpha * SCALE) ** 2 + sigma**2
    return -0.5 * (
        np.sum((x - alpha * MEAN) ** 2) / variance + x.size * np.log(2 * np.pi * variance)
    )


def sit_path(kind, s):
    """SiT's alpha and sigma, with data at s = 1."""
    if kind == "Linear":
        return s, 1 - s
    if kind == "GVP":
        return jnp.sin(s * jnp.pi / 2), jnp.cos(s * jnp.pi / 2)
    log_alpha = -0.25 * (1 - s) ** 2 * 19.9 - 0.5 * (1 - s) * 0.1
    return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))


def repa_path(kind, s):
    """REPA's alpha and sigma, with data at s = 0."""
    if kind == "linear":
        return 1 - s, s
    return jnp.cos(s * jnp.pi / 2), jnp.sin(s * jnp.pi / 2)


PROCESSES = [
    ("SiT", "Linear", "velocity"),
    ("SiT", "GVP", "velocity"),
    ("SiT", "VP", "velocity"),
    ("SiT", "Linear", "score"),
    ("SiT", "GVP", "noise"),
    ("REPA", "linear", "v"),
    ("REPA", "cosine", "v"),
]


@pytest.mark.parametrize(("family", "path", "prediction"), slow_but(PROCESSES, PROCESSES[3]))
def test_the_log_density_is_that_of_the_data(family, path, prediction, tmp_path):
    settings = {"model": family, "num_heads": HEADS, "path_type": path, "prediction": prediction}
    found = import_dit(write(tmp_path, "last.pt", settings))
    curve = sit_path if family == "SiT" else repa_path

    def network(x, s, cond=None):
        s = jnp.asarray(s)
        (alpha, sigma), (dalpha, dsigma) = jax.jvp(
            lambda s: curve(path, s), (s,), (jnp.ones_like(s),)
        )
        data, noise = gaussian(alpha, sigma, x)
        outputs = {"noise": noise, "score": -noise / sigma}
        return outputs.get(prediction, dalpha * data + dsigma * noise)

    model = build(replace(found.meta.model, shape=(3,)), network)
    assert float(model.t_min) == pytest.approx(1e-3)
    x = jnp.array([1.1, -0.2, 1.3])
    ends = curve(path, jnp.asarray(1 - 1e-3 if family == "SiT" else 1e-3))
    got = dgjax.likelihood(model, x, dgjax.grid_logsnr(model, 64), key=jax.random.key(0))
    assert float(got.log_density) == pytest.approx(float(log_density(*ends, x)), abs=0.01)


def test_the_arguments_of_a_run_say_what_it_is(tmp_path):
    net = Reference()
    run = argparse.Namespace(model="SiT-S/2", path_type="GVP", num_heads=HEADS, lr=1e-4)
    last = lambda weights: {name: torch.zeros_like(w) for name, w in weights.items()}
    table = lambda w: {"model": last(w), "ema": w, "opt": {"state": {}}, "args": run}
    found = import_model(write(tmp_path, "0050000.pt", None, net, table))
    assert found.architecture == "SiT"
    assert found.meta.model.path == {"kind": "cosine"}
    assert any("ema and model the first is read" in note for note in found.notes)
    x = sample()
    np.testing.assert_allclose(found.model.network(x, 0.3, 1), output(net, x, 0.3, 1), atol=1e-5)
    save(tmp_path / "saved", found.model, found.meta, dtype=None)
    model, meta = load(tmp_path / "saved")
    assert meta.model == found.meta.model
    pairs = [m.pair(jnp.asarray(0.3), jnp.asarray(x), 1) for m in (model, found.model)]
    np.testing.assert_allclose(pairs[0].x0, pairs[1].x0, atol=1e-6)


def changed(**changes):
    return {"num_heads": HEADS, **changes}


def named(name):
    return lambda weights: {**weights, name: torch.zeros(2)}


def without(name):
    return lambda weights: {k: v for k, v in weights.items() if k != name}


same = lambda weights: weights
WRONG = {
    "no family": ("last.pt", changed(), same, r'add "model" \(DiT, SiT or REPA\) to .*last\.json'),
    "another model": ("a.pt", changed(model="U-ViT"), same, "'U-ViT' is unknown.*DiT, SiT, REPA"),
    "unknown heads": ("SiT.pt", {}, same, r'add "num_heads" to .*SiT\.json'),
    "wrong heads": ("SiT.pt", {"num_heads": 3}, same, "3 heads do not divide"),
    "a typing error": ("SiT.pt", changed(path_typ="GVP"), same, "did you mean 'path_type'"),
    "an unknown path": ("SiT.pt", changed(path_type="linear"), same, "there is Linear, GVP, VP"),
    "labels": ("SiT.pt", changed(num_classes=6), same, "num_classes = 6.*6 labels"),
    "normalized queries": ("SiT.pt", changed(), named("blocks.0.attn.q_norm.weight"), "qk_norm"),
    "more weights": ("SiT.pt", changed(), named("blocks.0.more.weight"), "has no place"),
    "no positions": ("SiT.pt", changed(), without("pos_embed"), "no pos_embed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_known_is_refused_in_one_line(case, tmp_path):
    name, settings, table, message = WRONG[case]
    file = write(tmp_path, name, settings, table=table)
    with pytest.raises(ValueError, match=message) as error:
        import_dit(file)
    assert "\n" not in str(error.value)


def test_the_autoencoder_of_the_latents_is_given_or_named(tmp_path):
    decoder = AutoencoderKL((SIDE, SIDE, CHANNELS), **SIZES, scaling_factor=1.0, rngs=nnx.Rngs(0))
    write_autoencoder(tmp_path / "vae", decoder)
    file = write(tmp_path)
    given = import_dit(file, autoencoder=tmp_path / "vae")
    named = import_dit(write(tmp_path, settings={**SETTINGS, "autoencoder": "vae"}))
    for found in (given, named):
        assert found.autoencoder.image_shape == (2 * SIDE, 2 * SIDE, 3)
        assert found.meta.autoencoder["scaling_factor"] == 0.4
        assert not any("latents" in note for note in found.notes)
    with pytest.raises(ValueError, match=r"no folder .* of an autoencoder"):
        import_dit(file, autoencoder=tmp_path / "none")


def test_other_positions_are_refused(tmp_path):
    shifted = lambda weights: {**weights, "pos_embed": weights["pos_embed"] + 0.1}
    with pytest.raises(ValueError, match=r"pos_embed.* is not what this network computes"):
        import_dit(write(tmp_path, table=shifted))


def test_settings_are_read_from_yaml_and_args(tmp_path):
    file = write(tmp_path, "last.pt", None)
    assert is_dit(file)
    assert is_dit(tmp_path)
    (tmp_path / "args.json").write_text(
        json.dumps({"model": "DiT-S/2", "num-heads": HEADS, "unknown": 3})
    )
    assert import_dit(tmp_path).architecture == "DiT"
    (tmp_path / "last.yaml").write_text(f"model: SiT-S/2\nnum_heads: {HEADS}\n")
    assert import_dit(file).architecture == "SiT"
    (tmp_path / "last.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"last\.yaml cannot be read"):
        import_dit(file)
