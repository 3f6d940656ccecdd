"""Folders as diffusers writes them: averages, halves, shards, runs, latents with a codebook."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.checkpoint import load, load_autoencoder
from dgjax.importing import import_model

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
training_utils = pytest.importorskip("diffusers.training_utils")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.usefixtures("float32")

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "mid_block_type": None,
}
RNG = np.random.default_rng(0)


def drawn(module):
    """The module with every weight drawn, near half precision's numbers, and none zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            size = 0.3 if weight.ndim == 1 else 0.7 / np.sqrt(weight[0].numel())
            weight.add_(size * torch.randn(weight.shape, generator=generator))
            weight.copy_(weight.half().float())
    return module.eval()


@pytest.fixture(scope="module")
def unet():
    return drawn(diffusers.UNet2DModel(**SMALL))


@pytest.fixture
def scheduler(tmp_path):
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "steps")
    return tmp_path / "steps"


def images(shape=(8, 8, 1)):
    return RNG.standard_normal(shape).astype(np.float32)


def theirs(module, x, *arguments):
    with torch.no_grad():
        out = module(torch.tensor(np.moveaxis(x, -1, 0)[None]), *arguments)
    return np.moveaxis(out.sample[0].numpy(), 0, -1)


def assert_same(found, module, shape=(8, 8, 1), atol=2e-5):
    """Their network and ours give the same, at one time of the training."""
    x = images(shape)
    network = jax.tree.map(jnp.asarray, found.model.network)
    ours = jax.jit(lambda network, x, t: network(x, t))(network, x, jnp.float32(437.0))
    np.testing.assert_allclose(ours, theirs(module, x, 437), atol=atol)


def assert_same_weights(found, module):
    """The weights are those of the module, whose outputs another test compares."""
    ours = to_named(found.model.network)
    expected = {k: w.numpy() for k, w in module.state_dict().items()}
    assert len(ours) == len(expected)
    for name, array in ours.items():
        owner, _, last = name.rpartition(".")
        last = "weight" if last in ("kernel", "scale") else last
        if last == "weight" and array.ndim > 1:
            array = array.transpose((1, 0) if array.ndim == 2 else (3, 2, 0, 1))
        np.testing.assert_array_equal(np.float32(array), expected[f"{owner}.{last}"])


def save_average(module, folder):
    average = training_utils.EMAModel(
        module.parameters(), model_cls=diffusers.UNet2DModel, model_config=module.config
    )
    average.step(module.parameters())
    average.save_pretrained(folder)


def test_averaged_weights_are_read_as_their_library_writes_them(unet, scheduler, tmp_path):
    save_average(unet, tmp_path / "run" / "unet_ema")
    assert "decay" in json.loads((tmp_path / "run" / "unet_ema" / "config.json").read_text())
    assert_same(import_model(tmp_path / "run" / "unet_ema", scheduler=scheduler), unet)
    # A training run's folder has the last weights beside the averages, which are preferred.
    drawn(diffusers.UNet2DModel(**SMALL)).save_pretrained(tmp_path / "run" / "unet")
    (tmp_path / "run" / "optimizer.bin").write_bytes(b"")
    found = import_model(tmp_path / "run", scheduler=scheduler)
    assert_same_weights(found, unet)
    assert "of unet_ema and unet the first is read" in found.notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("safe", "shards"), [(True, "1GB"), (True, "5KB"), (False, "1GB"), (False, "5KB")]
)
def test_half_precision_alone_is_read_whole_and_in_parts(safe, shards, unet, scheduler, tmp_path):
    half = diffusers.UNet2DModel(**SMALL)
    half.load_state_dict(unet.state_dict())
    half.half().save_pretrained(
        tmp_path / "unet", variant="fp16", safe_serialization=safe, max_shard_size=shards
    )
    assert (len(list((tmp_path / "unet").glob("*fp16*"))) > 2) == (shards == "5KB")
    found = import_model(tmp_path / "unet", scheduler=scheduler)
    assert {w.dtype.name for w in jax.tree.leaves(found.model.network)} == {"float16"}
    assert_same_weights(found, unet)
    # With full precision beside it, that is read.
    unet.save_pretrained(tmp_path / "unet")
    found = import_model(tmp_path / "unet", scheduler=scheduler)
    assert {w.dtype.name for w in jax.tree.leaves(found.model.network)} == {"float32"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_and_mixed_weights_are_read(prefix, unet, scheduler, tmp_path, run):
    """Half precision with normalizations in float32, and names as a wrapper writes them."""
    unet.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {k: w if "norm" in k else w.half() for k, w in safetensors.load_file(file).items()}
    safetensors.save_file({prefix + k: w for k, w in weights.items()}, file)
    found = import_model(tmp_path / "unet", scheduler=scheduler)
    assert_same_weights(found, unet)
    if prefix != "module.":
        return
    status, printed, complaint = run(
        "import", tmp_path / "unet", tmp_path / "out", "--scheduler", scheduler
    )
    assert status == 0, complaint
    assert "float16 and float32" in printed
    assert_same(found._replace(model=load(tmp_path / "out")[0]), unet)


def test_a_size_that_the_config_lacks_is_given(scheduler, tmp_path, run):
    module = drawn(diffusers.UNet2DModel(**(SMALL | {"sample_size": None})))
    module.save_pretrained(tmp_path / "unet")
    arguments = ("import", tmp_path / "unet", tmp_path / "out", "--scheduler", scheduler)
    status, _, complaint = run(*arguments)
    assert (status, len(complaint.splitlines())) == (1, 1)
    assert "give the size of the images, by the option shape" in complaint
    status, printed, complaint = run(*arguments, "--shape", 6, 10)
    assert status == 0, complaint
    assert "6 x 10 x 1" in printed
    found = import_model(tmp_path / "unet", scheduler=scheduler, shape=(6, 10))
    assert_same(found, module, (6, 10, 1))
    # Their network fails on odd sizes as ours does: the ways down and up do not meet.
    with pytest.raises(ValueError, match="H and W multiples of 2"):
        import_model(tmp_path / "unet", scheduler=scheduler, shape=(7, 7))
    with pytest.raises(RuntimeError, match="must match"):
        theirs(module, images((7, 7, 1)), 3)


def test_another_size_than_the_config_s_is_noted(unet, scheduler, tmp_path):
    unet.save_pretrained(tmp_path / "unet")
    found = import_model(tmp_path / "unet", scheduler=scheduler, shape=(4, 4))
    assert found.meta.shape == (4, 4, 1)
    assert "the config has sample_size 8, and 4 x 4 was given" in found.notes


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DDPMScheduler", {"timestep_values": None, "tensor_format": "pt"}),
        ("DDIMScheduler", {"tensor_format": None}),
    ],
)
def test_settings_of_old_schedulers_that_say_nothing_are_passed_over(
    kind, settings, unet, scheduler, tmp_path
):
    unet.save_pretrained(tmp_path / "unet")
    config = {"_class_name": kind, **settings}
    (scheduler / "scheduler_config.json").write_text(json.dumps(config))
    assert_same_weights(import_model(tmp_path / "unet", scheduler=scheduler), unet)
    config["timestep_values"] = [1, 5, 9]
    (scheduler / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="timestep_values"):
        import_model(tmp_path / "unet", scheduler=scheduler)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A pipeline of latents with a codebook, as LDM's for faces."""
    folder = tmp_path_factory.mktemp("ldm")
    vqvae = drawn(
        diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            vq_embed_dim=3,
            num_vq_embeddings=16,
            scaling_factor=0.5,
        )
    )
    with torch.no_grad():
        vqvae.quantize.embedding.weight.mul_(3)
    unet = drawn(diffusers.UNet2DModel(**(SMALL | {"in_channels": 3, "out_channels": 3})))
    diffusers.LDMPipeline(vqvae, unet, diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder, vqvae, unet


@pytest.mark.slow
def test_latents_with_a_codebook_are_those_of_pytorch(latents, tmp_path, run):
    folder, vqvae, unet = latents
    found = import_model(folder)
    assert_same_weights(found, unet)
    assert not [note for note in found.notes if "scaling_factor" in note]
    status, printed, complaint = run("import", folder, tmp_path / "out")
    assert status == 0, complaint
    assert "latents 8 x 8 x 3" in printed
    assert "16 x 16 x 3" in printed
    autoencoder = load_autoencoder(tmp_path / "out")
    assert load(tmp_path / "out")[1].latent
    x, image = 0.5 * images((8, 8, 3)), images((16, 16, 3))
    with torch.no_grad():
        decoded = vqvae.decode(torch.tensor(np.moveaxis(x / 0.5, -1, 0)[None])).sample[0].numpy()
        encoded = vqvae.encode(torch.tensor(np.moveaxis(image, -1, 0)[None])).latents[0].numpy()
    decode, encode = (jax.jit(getattr(type(autoencoder), name)) for name in ("decode", "encode"))
    np.testing.assert_allclose(decode(autoencoder, x), np.moveaxis(decoded, 0, -1), atol=1e-4)
    np.testing.assert_allclose(
        encode(autoencoder, image), 0.5 * np.moveaxis(encoded, 0, -1), atol=1e-4
    )
    entries = autoencoder.quantize(x[None] / 0.5)[0].reshape(-1, 3)
    assert len(np.unique(np.asarray(entries), axis=0)) > 5  # the codebook is in use
    # Old configs lack the scale of the latents.
    old = shutil.copytree(folder, tmp_path / "old") / "vqvae" / "config.json"
    config = json.loads(old.read_text())
    del config["scaling_factor"]
    old.write_text(json.dumps(config))
    found = import_model(tmp_path / "old")
    assert found.meta.autoencoder["scaling_factor"] == 0.18215
    assert any("no scaling_factor, and 0.18215 is taken" in note for note in found.notes)


def test_a_network_of_latents_is_not_read_alone_without_a_word(latents, tmp_path, scheduler):
    folder, *_ = latents
    with pytest.raises(ValueError, match=r"network of a pipeline of latents.*: import "):
        import_model(folder / "unet", scheduler=scheduler)
    shutil.copytree(folder / "unet", tmp_path / "unet")
    found = import_model(tmp_path / "unet", scheduler=scheduler)
    assert any("if it was trained on latents" in note for note in found.notes)
    four = drawn(diffusers.UNet2DModel(**(SMALL | {"in_channels": 4, "out_channels": 4})))
    four.save_pretrained(tmp_path / "four")
    notes = import_model(tmp_path / "four", scheduler=scheduler).notes
    assert "samples of 4 channels are no pictures: they are arrays alone" in notes


@pytest.mark.parametrize(
    ("settings", "command", "advice"),
    [
        ({"num_class_embeds": 3}, ("--class", "2"), "--class 0"),
        ({"class_embed_type": "identity", "time_embedding_dim": 8}, (), "--cond FILE"),
    ],
)
def test_conditions_that_commands_can_and_cannot_give(
    settings, command, advice, scheduler, tmp_path, run
):
    drawn(diffusers.UNet2DModel(**(SMALL | settings))).save_pretrained(tmp_path / "unet")
    out = tmp_path / "out"
    status, printed, complaint = run("import", tmp_path / "unet", out, "--scheduler", scheduler)
    assert status == 0, complaint
    assert advice in printed.split("next: ")[1]
    options = ("sample", "--model", out, "--out", tmp_path / "made", "--class", "2")
    status, _, complaint = run(*options, "--guidance", "2")
    assert (status, len(complaint.splitlines())) == (1, 1)
    expected = "leave --guidance out" if command else "a number or a vector, not a class"
    assert expected in complaint
    assert not (tmp_path / "made").exists()
