"""Models of latents: commands show pixels and measure the latent.

The diffusion model is exact for latents from N(0, s^2 I), as in test_cli.py; the autoencoder has
random weights, so that nothing but decoding gives its pictures.
"""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import stats

from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.autoencoder_spec import build_autoencoder
from dgjax.checkpoints.checkpoint import digest, load, load_autoencoder, save
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.pretrained import load_pretrained
from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.networks import IdentityAutoencoder
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import to_uint8

SHAPE, SPREAD, T_MIN = (4, 4, 2), 0.7, 0.02
IMAGE = (8, 8, 3)
SPEC = ModelSpec(
    shape=SHAPE,
    network={"kind": "mlp", "width": 8, "depth": 1},
    path={"kind": "edm"},
    parametrization={"kind": "preconditioned", "sigma_data": SPREAD},
    t_min=T_MIN,
    t_max=80.0,
)
KL = {
    "kind": "autoencoder_kl",
    "channels": [4, 4],
    "layers": 1,
    "groups": 2,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
}
META = Meta(SPEC, "none", (-1.0, 1.0), "none", 0, autoencoder=KL)


def random_autoencoder(seed=0):
    rng = np.random.default_rng(seed)
    like = nnx.eval_shape(lambda: build_autoencoder(KL, SHAPE))
    named = {
        name: name.endswith("scale") + 0.2 * rng.standard_normal(leaf.shape)
        for name, leaf in to_named(like).items()
    }
    return from_named(like, named, "the test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its network is fresh, and so returns zero."""
    folder = tmp_path_factory.mktemp("latent") / "model"
    save(folder, build(SPEC), META, autoencoder=random_autoencoder(), dtype=jnp.float32)
    return folder


@pytest.fixture
def autoencoder(folder, float32):
    return load_autoencoder(folder)


@pytest.fixture
def picture(tmp_path):
    levels = np.random.default_rng(1).integers(0, 256, IMAGE).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def log_density(x):
    return stats.norm(scale=np.hypot(SPREAD, T_MIN)).logpdf(x).sum((-3, -2, -1))


def levels_of(autoencoder, x):
    images = jax.jit(jax.vmap(lambda x: autoencoder.decode(x)))(x.reshape(-1, *SHAPE))
    return to_uint8(images).reshape(*x.shape[:-3], *IMAGE)


def mean_of(autoencoder, picture):
    image = np.asarray(Image.open(picture)) / np.float32(127.5) - 1
    return np.asarray(jax.jit(lambda image: autoencoder.encode(image))(image))


def test_a_checkpoint_brings_its_autoencoder(folder):
    model, meta = load(folder)
    assert (meta, meta.latent, meta.shape) == (META, True, SHAPE)
    found, saved = to_named(load_autoencoder(folder)), to_named(random_autoencoder())
    assert found.keys() == saved.keys()
    for name, leaf in saved.items():
        np.testing.assert_array_equal(found[name], leaf)
    both = [digest(model, meta, random_autoencoder(seed)) for seed in (0, 0, 1)]
    assert both[0] == both[1] != both[2]


def test_each_part_is_checked_where_it_is_loaded(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "autoencoder.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    load(copy)  # reads the weights of the model alone
    with pytest.raises(ValueError, match="is not as it was written"):
        load_autoencoder(copy)
    load_autoencoder(copy, verify=False)


def test_samples_of_other_models_are_pixels(tmp_path):
    _, meta = load_pretrained("fashion-mnist")
    assert not meta.latent
    save(tmp_path / "m", build(SPEC), Meta(SPEC, "none", (-1.0, 1.0), "none", 0))
    identity = load_autoencoder(tmp_path / "m")
    assert isinstance(identity, IdentityAutoencoder)
    assert identity.image_shape == SHAPE
    x = np.ones(SHAPE)
    assert identity.decode(x) is identity.encode(x) is x


def test_a_latent_model_without_its_autoencoder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="pass autoencoder"):
        save(tmp_path / "m", build(SPEC), META)
    assert not (tmp_path / "m").exists()
    save(tmp_path / "m", build(SPEC), META, autoencoder=random_autoencoder())
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["autoencoder"]["channels"] = [4, 8]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the autoencoder in .* does not fit its config"):
        load_autoencoder(tmp_path / "m")
    config["autoencoder"] = {"kind": "autoencoder_kl", "chanels": [4]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="did you mean 'channels'"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": [4, 6], "groups": 4}, "multiples of 4"),
        ({"scaling_factor": 0.0}, "must not be 0"),
        ({"channels": []}, "multiples of 2"),
    ],
)
def test_an_impossible_autoencoder_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: build_autoencoder({**KL, **changes}, SHAPE))


def test_pictures_and_latents_of_other_shapes_are_refused():
    autoencoder = random_autoencoder()
    with pytest.raises(ValueError, match="takes"):
        autoencoder.encode(jnp.ones(SHAPE))
    with pytest.raises(ValueError, match="takes"):
        autoencoder.decode(jnp.ones(IMAGE))


def test_a_draw_has_the_posterior_s_mean_and_variance(autoencoder):
    image = jnp.asarray(np.random.default_rng(2).normal(size=IMAGE), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.jit(jax.vmap(lambda key: autoencoder.encode(image, key=key)))(keys)
    mean, log_variance = jax.jit(lambda image: autoencoder.posterior(image))(image)
    deviation = np.exp(0.5 * np.asarray(log_variance))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * deviation / np.sqrt(4000))
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.08)


@pytest.mark.slow
def test_sample_writes_pixels_beside_the_latents_that_it_measures(
    folder, autoencoder, tmp_path, run
):
    out = tmp_path / "out"
    options = ("--num", 2, "--q", 0.4, "--q", 0.6, "--out", out)
    code, printed, _ = run("sample", "--model", folder, *options)
    assert code == 0
    with np.load(out / "samples.npz") as arrays:
        found = dict(arrays)
    assert found["x"].shape == (2, 2, *SHAPE)
    np.testing.assert_allclose(found["log_density"], log_density(found["x"]), atol=0.05)
    expected = levels_of(autoencoder, found["x"])
    assert expected.std() > 10
    assert np.abs(found["pixels"].astype(int) - expected).max() <= 1
    for image, size in zip(
        found["pixels"].reshape(-1, *IMAGE), found["png_bytes"].ravel(), strict=True
    ):
        assert len(encode_png(image)) == size
    summary = json.loads((out / "summary.json").read_text())
    assert summary["latent"] is True
    assert all("bits_per_dim" not in row for row in summary["rows"])
    assert "bits" not in printed
    assert "log p of the latent" in " ".join(printed.split())
    assert (out / "samples.png").stat().st_size > 1000


@pytest.mark.slow
def test_likelihood_encodes_pictures_and_takes_latents_as_they_are(
    folder, autoencoder, picture, tmp_path, run
):
    x = np.random.default_rng(3).normal(size=(2, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "latents.npz", x=x)
    np.savez(tmp_path / "levels.npz", x=np.asarray(Image.open(picture)))
    files = (picture, tmp_path / "latents.npz", tmp_path / "levels.npz")
    code, printed, _ = run("likelihood", *files, "--model", folder, "--json", "--steps", 16)
    assert code == 0
    rows = json.loads(printed)["rows"]
    assert [row["data"] for row in rows] == ["encoded", "as given", "as given", "encoded"]
    mean = mean_of(autoencoder, picture)
    expected = log_density(np.stack([mean, *x, mean]))
    np.testing.assert_allclose([row["log_density"] for row in rows], expected, atol=0.05)
    assert "bits_per_dim" not in printed
    np.savez(tmp_path / "wrong.npz", x=x.astype(np.uint8))
    code, _, complaint = run("likelihood", tmp_path / "wrong.npz", "--model", folder)
    assert code == 1
    assert "of uint8" in complaint


@pytest.mark.slow
def test_edit_encodes_a_picture_and_decodes_its_edits(folder, autoencoder, picture, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(
        "edit", picture, "--model", folder, "--q", 0.5, "--steps", 16, "--out", out
    )
    assert code == 0
    assert "log p of the latent" in " ".join(printed.split())
    with np.load(out / "edit.npz") as arrays:
        found = dict(arrays)
    noise = (found["original"] - mean_of(autoencoder, picture)) / T_MIN
    assert 0.5 < noise.std() < 1.5  # of t_min, and no more
    assert found["original_log_density"] == pytest.approx(log_density(found["original"]), abs=0.05)
    pictures = levels_of(autoencoder, np.stack([found["original"], *found["x"]]))
    assert np.abs(found["pixels"].astype(int) - pictures).max() <= 1
    row = json.loads((out / "edit.json").read_text())["rows"][0]
    assert row["png_bytes"] == len(encode_png(found["pixels"][1]))
    assert row["rms_change"] < 0.02  # q = 1/2 is the reconstruction


@pytest.mark.slow
def test_explore_shows_pixels_and_no_bits(folder, tmp_path, run):
    page = tmp_path / "page.html"
    options = ("--num", 1, "--q", 0.4, "--noise", 0, "--steps", 6, "--out", page)
    assert run("explore", "--model", folder, *options)[0] == 0
    text = page.read_text()
    assert "images 8 × 8, RGB, D = 32 elements of the latent" in text
    data = json.loads(re.search(r'id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    sample = data["samples"][0][0][0]
    assert sample["bits"] is None
    assert np.isfinite(sample["nats"])


@pytest.mark.slow
def test_evaluate_compares_pixels_and_has_no_bits_of_latents(folder, tmp_path, run):
    levels = np.random.default_rng(4).integers(0, 256, (24, *IMAGE)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=levels)
    data = ("--data", tmp_path / "data.npz", "--num", 4, "--features", "pixels", "--steps", 4)
    where = ("--model", folder, "--part", "train", "--out", tmp_path / "out")
    sections = ("--only", "png", "--only", "normality", "--levels", 1)
    code, printed, complaint = run("evaluate", *where, *data, *sections, "--json")
    assert code == 0, complaint
    found = json.loads(printed)
    assert found["figures"]["png_bytes"]["value"] > 100
    assert len(found["normality"]) == 1
    code, _, complaint = run("evaluate", *where, *data, "--only", "bits")
    assert code == 1
    assert "leave bits out" in complaint
