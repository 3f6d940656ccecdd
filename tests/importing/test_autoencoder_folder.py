"""Networks of EDM and EDM2 for latents take the autoencoder beside them."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_edm
import test_edm2
from flax import nnx
from safetensors.numpy import save_file

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.checkpoint import load_autoencoder, save
from dgjax.importing import import_edm, import_edm2
from dgjax.networks import AutoencoderKL

pytestmark = pytest.mark.usefixtures("float32")

SIZES = {"channels": (4, 4), "layers": 1, "groups": 2, "attention": False}
CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 4],
    "down_block_types": 2 * ["DownEncoderBlock2D"],
    "up_block_types": 2 * ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
    "scaling_factor": 0.4,
}
LATENT = test_edm2.PLAIN | {"img_channels": 4}


@pytest.fixture(scope="module")
def plain():
    """The autoencoder itself: its latents are neither scaled nor shifted."""
    shape = (8, 8, 4)
    return AutoencoderKL(shape, **SIZES, scaling_factor=1.0, rngs=nnx.Rngs(0))


def write_autoencoder(folder, autoencoder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    found = {}
    for name, value in to_named(autoencoder).items():
        owner, _, last = name.rpartition(".")
        axes = (3, 2, 0, 1) if last == "kernel" else range(value.ndim)
        array = np.ascontiguousarray(np.asarray(value, np.float32).transpose(*axes))
        found[f"{owner}.{'weight' if last in ('kernel', 'scale') else last}"] = array
    save_file(found, folder / "model.safetensors")


def images(autoencoder, x):
    autoencoder = jax.tree.map(jnp.asarray, autoencoder)
    return np.asarray(jax.jit(lambda a, x: a.decode(x))(autoencoder, jnp.float32(x)))


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((8, 8, 4))


@pytest.mark.slow
@pytest.mark.parametrize("stated", [False, True], ids=["EDM2's defaults", "other statistics"])
def test_latents_of_edm2_are_whitened_per_channel(stated, plain, x, tmp_path):
    mean, std, final = [5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28], (0.0, 0.5)
    more = {}
    if stated:
        mean, std, final = [1.0, 2.0, 3.0, -1.0], [2.0, 1.0, 3.0, 4.0], (0.3, 0.9)
        more = {"raw_mean": mean, "raw_std": std, "final_mean": 0.3, "final_std": 0.9}
        more = {"encoder": {"class_name": "StabilityVAEEncoder", **more}}
    folder = test_edm2.write(tmp_path / "source", LATENT, **more)
    write_autoencoder(folder / "vae", plain)
    found = import_edm2(folder)
    # EDM2 standardizes the autoencoder's own latents, without its config's scaling_factor.
    z = (x - final[0]) / final[1] * np.array(std) + np.array(mean)
    np.testing.assert_allclose(images(found.autoencoder, x), images(plain, z), rtol=0, atol=1e-4)
    picture = jnp.float32(np.random.default_rng(1).random((16, 16, 3)))
    (one, spread), (own, wide) = found.autoencoder.posterior(picture), plain.posterior(picture)
    right = (own - np.array(mean)) / np.array(std) * final[1] + final[0]
    np.testing.assert_allclose(one, right, atol=1e-5)
    right = wide + 2 * np.log(final[1] / np.array(std))
    np.testing.assert_allclose(spread, right, atol=1e-5)
    assert found.meta.data_range == (0.0, 1.0)  # of EDM2's pictures


def test_a_checkpoint_keeps_the_statistics(plain, x, tmp_path):
    folder = test_edm2.write(tmp_path / "source", LATENT)
    write_autoencoder(tmp_path / "elsewhere", plain)
    with pytest.raises(
        ValueError, match=r"no autoencoder at .*vae: name the folder of stabilityai/sd-vae-ft-mse"
    ):
        import_edm2(folder)
    found = import_edm2(folder, autoencoder=tmp_path / "elsewhere")
    save(tmp_path / "model", found.model, found.meta, autoencoder=found.autoencoder, dtype=None)
    again = load_autoencoder(tmp_path / "model")
    np.testing.assert_array_equal(images(again, x), images(found.autoencoder, x))


def test_one_command_joins_a_network_of_edm2_and_an_autoencoder_on_the_hub(
    plain, x, tmp_path, monkeypatch, run
):
    source = test_edm2.write(tmp_path / "source", LATENT | {"label_dim": 5})
    write_autoencoder(tmp_path / "remote", plain)
    asked = []

    def snapshot_download(name, **options):
        asked.append(name)
        return str(tmp_path / "remote")

    files = ["config.json", "model.safetensors"]
    hub = SimpleNamespace(
        snapshot_download=snapshot_download, list_repo_files=lambda *_, **__: files
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    options = ("--autoencoder", "stabilityai/sd-vae-ft-mse")
    status, out, complaint = run("import", source, tmp_path / "model", *options)
    assert status == 0, complaint
    assert "pictures" in out
    assert "--class 0" in out
    assert set(asked) == {"stabilityai/sd-vae-ft-mse"}
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "autoencoder.safetensors",
        "config.json",
        "weights.safetensors",
    ]
    wanted = import_edm2(source, autoencoder=tmp_path / "remote").autoencoder
    found = load_autoencoder(tmp_path / "model")
    np.testing.assert_array_equal(images(found, x), images(wanted, x))


def test_trouble_with_the_autoencoder_is_one_line(plain, tmp_path):
    folder = test_edm2.write(tmp_path / "pixels", test_edm2.PLAIN)
    write_autoencoder(tmp_path / "vae", plain)
    with pytest.raises(ValueError, match="is a model of pixels: leave the autoencoder out"):
        import_edm2(folder, autoencoder=tmp_path / "vae")
    for settings, message in (
        ({"raw_mean": [1.0, 2.0]}, "raw_mean .* one for each of 4 channels"),
        ({"raw_std": [1.0, 2.0, 0.0, 1.0]}, "raw_std of StabilityVAEEncoder must be"),
        ({"raw_var": 1.0}, "did you mean 'raw_"),
    ):
        encoder = {"class_name": "StabilityVAEEncoder", **settings}
        folder = test_edm2.write(tmp_path / "latent", LATENT, encoder=encoder)
        with pytest.raises(ValueError, match=message):
            import_edm2(folder, autoencoder=tmp_path / "vae")
    edm = test_edm.write(tmp_path / "edm", test_edm.SONG)
    write_autoencoder(edm / "vae", plain)
    with pytest.raises(ValueError, match="latents of 4 channels and the network takes 3"):
        import_edm(edm)
    test_edm.write(tmp_path / "named", test_edm.SONG, autoencoder="missing")
    with pytest.raises(ValueError, match=r"there is no folder .*missing of an autoencoder"):
        import_edm(tmp_path / "named")


@pytest.mark.parametrize("named", [False, True])
def test_a_folder_of_edm_names_an_autoencoder(named, plain, x, tmp_path):
    config = test_edm.SONG | {"img_channels": 4}
    more = {"autoencoder": "kl"} if named else {}
    folder = test_edm.write(tmp_path / "source", config, **more)
    write_autoencoder(folder / ("kl" if named else "vae"), plain)
    found = import_edm(folder)
    # Latents are in the coordinates of diffusers: scaled by the config.
    np.testing.assert_allclose(images(found.autoencoder, x), images(plain, x / 0.4), atol=1e-5)
    assert found.meta.latent
