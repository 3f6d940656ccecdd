"""Checkpoints come back as they were, and damaged or foreign ones are refused by name."""

import errno
import json
import shutil
import stat
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file

import dgjax
from dgjax.checkpoints import checkpoint
from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.checkpoint import digest, load, save
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.pretrained import load_pretrained, pretrained_models
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.networks.trace_head import DiagonalHead

SPEC = ModelSpec(
    shape=(8, 8, 1),
    network={"kind": "unet", "channels": [8, 16], "blocks": 1, "embedding": 16},
    path={"kind": "edm"},
    parametrization={"kind": "preconditioned", "sigma_data": 0.7},
    t_min=0.02,
    t_max=80.0,
)
META = Meta(SPEC, "none", (-1.0, 1.0), "none", 7)


def filled_model(spec=SPEC, value=None):
    """The model with weights drawn anew, or all of one value."""
    rng = np.random.default_rng(1)
    like = nnx.eval_shape(lambda: build_network(spec))
    named = {
        name: 0.2 * rng.standard_normal(p.shape) if value is None else np.full(p.shape, value)
        for name, p in to_named(like).items()
    }
    return build(spec, from_named(like, named, "the test"))


def output(model):
    x = jax.random.normal(jax.random.key(0), SPEC.shape)
    return np.asarray(jax.jit(model.pair)(jnp.array(0.5), x).x0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(folder, filled_model(), META)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


PROMPTS = ModelSpec(
    shape=(4, 4, 2),
    network={
        "kind": "unet2d_condition",
        "block_out_channels": [8],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "cross_attention_dim": 6,
        "heads": [2],
        "layers_per_block": [1],
        "transformer_layers": [1],
        "norm_num_groups": 4,
    },
    path={"kind": "edm"},
    parametrization={"kind": "noise"},
    t_min=0.02,
    t_max=80.0,
)


@pytest.mark.slow
def test_bfloat16_weights_do_not_round_the_arithmetic(tmp_path):
    """Evaluations agree to all digits with those of the same weights in the dtype of the sample."""
    save(tmp_path / "model", filled_model(PROMPTS), replace(META, model=PROMPTS), dtype=None)
    short, _ = load(tmp_path / "model", dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(short.network)} == {jnp.dtype("bfloat16")}
    x = jax.random.normal(jax.random.key(0), PROMPTS.shape)
    options = {"divergence": dgjax.Hutchinson(), "key": jax.random.key(1)}
    cond = jnp.linspace(-1, 1, 18).reshape(3, 6)
    run = jax.jit(lambda model: dgjax.evaluate(model, 0.7, x, cond=cond, **options)[7:10])
    found, expected = (run(m) for m in (short, jax.tree.map(lambda a: a.astype(x.dtype), short)))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == x.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6)  # bfloat16 has 4e-3


def test_a_float32_checkpoint_comes_back_exactly(tmp_path):
    model = filled_model()
    save(tmp_path / "model", model, META, dtype=jnp.float32)
    loaded, meta = load(tmp_path / "model")
    assert loaded.shape == tuple(SPEC.shape)
    assert meta == META
    # By name: whether flax calls two modules' structures equal depends on its release.
    got, expected = to_named(loaded), to_named(model)
    assert got.keys() == expected.keys()
    for name, leaf in expected.items():
        assert got[name].dtype == leaf.dtype
        np.testing.assert_array_equal(got[name], leaf)


def test_half_precision_on_disk_moves_outputs_by_its_rounding_only(folder):
    loaded, _ = load(folder)
    assert {p.dtype for p in jax.tree.leaves(loaded.network)} == {jnp.dtype(jnp.float32)}
    exact = output(filled_model())
    error = np.sqrt(np.mean((output(loaded) - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 3 * 2**-11


def test_every_kind_of_model_comes_back(tmp_path):
    mlp = {"kind": "mlp", "width": 8, "depth": 2, "num_classes": 3}
    flow = replace(
        SPEC,
        network=mlp,
        path={"kind": "rectified_flow"},
        parametrization={"kind": "velocity"},
        t_min=0.01,
        t_max=0.99,
    )
    vp = replace(SPEC, network=mlp, path={"kind": "vp", "beta_max": 15.0}, t_max=1.0)
    to_data = replace(flow, clock={"rate": -1.0, "offset": 1.0})
    for spec in (flow, vp, to_data):
        model = filled_model(spec)
        save(tmp_path / "model", model, replace(META, model=spec), dtype=jnp.float32)
        loaded, meta = load(tmp_path / "model")
        assert meta.model == spec
        assert jax.tree.structure(loaded) == jax.tree.structure(model)
        np.testing.assert_array_equal(output(loaded), output(model))


def test_a_clock_is_the_time_of_the_network():
    """A specification without one is as it was before there were clocks."""
    assert "clock" not in SPEC.to_dict()
    assert ModelSpec.from_dict(SPEC.to_dict()) == SPEC
    velocity = {"kind": "velocity"}
    flow = replace(SPEC, path={"kind": "rectified_flow"}, parametrization=velocity)
    flow = replace(flow, t_min=0.01, t_max=0.99, shape=(2,))
    to_data = replace(flow, clock={"rate": -2.0, "offset": 3.0})
    assert ModelSpec.from_dict(json.loads(json.dumps(to_data.to_dict()))) == to_data
    model = build(to_data, lambda x, s, cond: 0 * x + s)
    t = jnp.asarray(0.25)
    # dx/dt = -2 dx/ds at s = 3 - 2 t
    np.testing.assert_allclose(dgjax.velocity(model, t, jnp.ones(2)), -2 * 2.5, rtol=1e-5)
    for clock, message in (
        ({"rate": -1.0}, "offset missing"),
        ({"rate": -1.0, "offset": 1.0, "speed": 2.0}, "'speed' is unknown"),
        ({"rate": "fast", "offset": 1.0}, "rate must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(flow, clock=clock)


def test_the_constant_of_an_energy_model_is_kept(tmp_path):
    spec = replace(
        SPEC,
        network={**SPEC.network, "kind": "energy_unet"},
        parametrization={"kind": "energy", "sigma_data": 0.7},
    )
    model, _ = dgjax.normalize(filled_model(spec), jax.random.key(0), samples=4)
    constant = float(model.parametrization.log_normalizer)
    assert abs(constant) > 0.01
    folder = tmp_path / "energy"
    save(folder, model, replace(META, model=spec), dtype=None)
    again, meta = load(folder)
    assert float(again.parametrization.log_normalizer) == pytest.approx(constant, rel=1e-6)
    x = jax.random.normal(jax.random.key(1), spec.shape)
    before, after = (float(dgjax.log_density(m, 0.3, x)) for m in (model, again))
    assert after == pytest.approx(before, rel=1e-5)
    save(folder, again, meta, dtype=None)
    assert load(folder)[1] == meta


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda model: replace(model, t_min=0.03), "t_min"),
        (
            lambda model: replace(model, parametrization=dgjax.preconditioned(0.5)),
            "parametrization",
        ),
        (lambda model: replace(model, prior=dgjax.gaussian_prior(0.7)), "prior"),
        (lambda model: replace(model, path=dgjax.vp()), "path"),
        (lambda model: replace(dgjax.repath(model, dgjax.edm(7.0)), t_min=0.6), "t_min"),
    ],
)
def test_a_model_that_its_facts_do_not_describe_is_not_saved(tmp_path, change, name):
    with pytest.raises(ValueError, match=f"the model's {name} is not that of meta.model"):
        save(tmp_path / "model", change(filled_model()), META)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("path", [dgjax.edm(7.0), dgjax.vp(0.1, 40.0), dgjax.edm()])
def test_a_model_on_another_path_is_stored_on_its_own(tmp_path, path):
    model = filled_model()
    there = dgjax.repath(dgjax.repath(model, path), dgjax.edm(3.0))
    for moved in (dgjax.repath(model, path), there, dgjax.repath(there, model.path)):
        save(tmp_path / "model", moved, META, dtype=None)
        again = load(tmp_path / "model")[0]
        assert again.native is None
        assert again.path == model.path
        assert float(again.t_max) == float(model.t_max)
        np.testing.assert_array_equal(output(again), output(model))


def test_a_prior_is_not_held(tmp_path):
    model = replace(filled_model(), prior=dgjax.gaussian_prior(0.5))
    with pytest.raises(ValueError, match="a checkpoint holds none"):
        save(tmp_path / "model", model, META)


def test_another_network_than_that_of_the_facts_replaces_nothing(folder):
    wide = replace(SPEC, network={**SPEC.network, "embedding": 2 * SPEC.network["embedding"]})
    conditioned = dgjax.condition(filled_model(), jnp.asarray(1))
    for model, message in (
        (filled_model(wide), "the weight '.*' has shape .*, and meta.model says"),
        (conditioned, "save it without and condition it again"),
    ):
        with pytest.raises(ValueError, match=message):
            save(folder, model, META)
        assert load(folder)[1] == META


def test_a_model_need_not_know_its_shape_to_be_saved(tmp_path):
    save(tmp_path / "model", replace(filled_model(), shape=None), META)
    assert load(tmp_path / "model")[0].shape == SPEC.shape


def test_saving_replaces_a_checkpoint_and_nothing_else(folder):
    save(folder, filled_model(), replace(META, steps=9))
    assert load(folder)[1].steps == 9
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    for name, content, message in (
        ("notes", "mine", "cannot write to .*: it has files and is no dgjax checkpoint"),
        ("config.json", '{"architectures": []}', r"no.* checkpoint"),
    ):
        foreign = folder.parent / f"foreign-{name}"
        foreign.mkdir()
        (foreign / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            save(foreign, filled_model(), META)
        assert (foreign / name).read_text() == content


@pytest.mark.parametrize("value", [np.nan, 1e5])
def test_weights_that_do_not_fit_leave_the_old_checkpoint_whole(folder, value):
    with pytest.raises(ValueError, match="not finite as float16"):
        save(folder, filled_model(value=value), META)
    assert load(folder)[1] == META
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        save(tmp_path / "file" / "model", filled_model(), META)


def test_missing_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load(tmp_path)
    for content, message in [
        ('{"format": "dgj', "cannot be read as JSON"),
        ("[1, 2]", "not of a dgjax checkpoint"),
        ('{"architectures": ["UNet2DModel"]}', "not of a dgjax checkpoint"),
        ('{"format": "dgjax-checkpoint-1", "model": {}}', "missing"),
    ]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def as_orbax(folder):
    """Rewrite a checkpoint in the older format, as released versions of dgjax may have left it."""
    config = json.loads((folder / "config.json").read_text())
    for file in list(folder.glob("*.safetensors")):
        ocp.PyTreeCheckpointer().save(folder / file.stem, load_file(file))
        file.unlink()
    config.pop("sha256", None)
    (folder / "config.json").write_text(json.dumps(config | {"format": "dgjax-checkpoint-1"}))
    return folder


def test_checkpoints_of_the_older_format_still_load(folder):
    expected, meta = load(folder)
    found, also = load(as_orbax(folder))
    assert meta == also
    assert digest(found, also) == digest(expected, meta)
    save(folder, found, also)  # and are replaced by the new format
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights.safetensors"]
    assert digest(*load(folder)) == digest(expected, meta)


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.float16, jnp.bfloat16])
def test_weights_come_back_as_the_chosen_dtype_rounds_them(tmp_path, dtype):
    model = filled_model()
    save(tmp_path / "model", model, META, dtype=dtype)
    found = to_named(load(tmp_path / "model")[0].network)
    for name, weight in to_named(model.network).items():
        assert found[name].dtype == weight.dtype
        rounded = np.asarray(weight).astype(dtype or weight.dtype).astype(weight.dtype)
        np.testing.assert_array_equal(found[name], rounded)


def test_weights_in_memory_in_any_order_are_written_as_they_are(tmp_path):
    model = filled_model()
    turned = jax.tree.map(lambda a: np.asfortranarray(a), model.network)
    save(tmp_path / "model", replace(model, network=turned), META, dtype=None)
    found = to_named(load(tmp_path / "model")[0].network)
    for name, weight in to_named(model.network).items():
        np.testing.assert_array_equal(found[name], weight)


def test_other_programs_read_the_weights(folder):
    found = load_file(folder / "weights.safetensors")
    expected = to_named(filled_model().network)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == np.float16
        np.testing.assert_array_equal(found[name], np.asarray(weight).astype(np.float16))


def test_what_is_saved_can_be_read_by_those_who_may_read_its_neighbours(folder):
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 1


def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(folder, monkeypatch):
    def full(file, arrays):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_weights", full)
    with pytest.raises(ValueError, match=rf"cannot write to {folder}: .*No space left"):
        save(folder, filled_model(), replace(META, steps=9))
    assert load(folder)[1] == META
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def refused(folder, message="missing or damaged"):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, verify=message != "missing or damaged")
    assert "\n" not in str(caught.value)


def test_one_changed_bit_is_noticed(folder):
    file = folder / "weights.safetensors"
    whole = file.read_bytes()
    for at in (len(whole) - 1, len(whole) // 2, 12):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        refused(folder, "is not as it was written")
    file.write_bytes(whole)
    before = load(folder)[0]
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    after = load(folder, verify=False)[0]  # numbers have no other mark
    assert digest(after, META) != digest(before, META)
    file.unlink()
    refused(folder, "has lost its file")
    config = json.loads((folder / "config.json").read_text()) | {"sha256": 3}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "must be a table of files")


def test_shipped_models_have_checksums():
    for name in pretrained_models():
        with as_file(files("dgjax") / "pretrained" / name) as folder:
            known = json.loads((folder / "config.json").read_text())["sha256"]
            found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            assert set(known) == found - {"config.json", "CARD.md"}


def test_files_of_the_user_stay_in_a_folder_that_is_saved_to_again(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "samples" / "deep").mkdir(parents=True)
    (folder / "samples" / "deep" / "a.npz").write_text("mine, too")
    (folder / "link").symlink_to("nowhere")
    save(folder, filled_model(), replace(META, steps=9))
    assert load(folder)[1].steps == 9
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "samples" / "deep" / "a.npz").read_text() == "mine, too"
    assert (folder / "link").is_symlink()
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    save(as_orbax(folder), filled_model(), META)
    mine = {"link", "notes.txt", "samples"}
    assert {p.name for p in folder.iterdir()} == mine | {"config.json", "weights.safetensors"}


def test_truncated_and_missing_weights_are_refused(folder):
    file = folder / "weights.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = [whole[:n] for n in (0, 4, header // 2, header, len(whole) // 2, len(whole) - 1)]
    damaged += [b"\0" * len(whole), whole[:8] + b"x" * header + whole[8 + header :], whole + b"0"]
    for content in damaged:
        file.write_bytes(content)
        refused(folder)
    file.unlink()
    refused(folder)
    file.write_bytes(whole)
    load(folder)


def test_truncated_and_missing_arrays_of_orbax_are_refused(folder):
    files = [f for f in (as_orbax(folder) / "weights").rglob("*") if f.is_file()]
    # Some releases of orbax leave a second copy that is not read: all that could hold the arrays.
    largest = max(f.stat().st_size for f in files)
    whole = {f: f.read_bytes() for f in files if f.stat().st_size > largest / 2}
    for file, content in whole.items():
        file.write_bytes(content[: len(content) // 2])
    refused(folder)
    for file in whole:
        file.unlink()
    refused(folder)
    for file, content in whole.items():
        file.write_bytes(content)
    load(folder)
    (folder / "weights").rename(folder / "elsewhere")
    refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {**SPEC.network, "kind": "unets"}}, "did you mean 'unet'"),
        ({"network": {**SPEC.network, "channel": [8]}}, "did you mean 'channels'"),
        ({"network": {**SPEC.network, "channels": 8}}, "does not take these values"),
        ({"network": {**SPEC.network, "channels": [8, 24]}}, "has shape"),
        ({"network": {**SPEC.network, "blocks": 2}}, "on one side only"),
        ({"network": None}, "needs a kind"),
        ({"path": {"kind": "edn"}}, "did you mean 'edm'"),
        ({"parametrization": {"kind": "precondition"}}, "did you mean 'preconditioned'"),
        ({"t_min": None}, "t_min must be a number"),
        ({"t_min": 90.0}, "t_min must be below t_max"),
        ({"shape": [8]}, r"\(H, W, C\)"),
        ({"shape": 8}, "shape must be a list"),
        ({"extra": 1}, "'extra' is unknown"),
    ],
)
def test_a_config_that_does_not_fit_says_where(folder, change, message):
    edit(folder, **change)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_unknown_pretrained_models_are_refused_by_name():
    hint = r"'fashion' is unknown \(did you mean 'fashion-mnist'\?\): there is"
    with pytest.raises(ValueError, match=hint):
        load_pretrained("fashion")


SHIPPED = {  # shape, licence
    "avatars": ((40, 40, 3), "CC-BY-SA-4.0"),
    "fashion-mnist": ((28, 28, 1), "MIT licence"),
    "photo-patches": ((32, 32, 3), "CC-BY-SA-4.0"),
}


def test_all_shipped_models_are_tested():
    assert sorted(SHIPPED) == pretrained_models()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_loads_is_small_and_has_a_card(name):
    model, meta = load_pretrained(name)
    shape, licence = SHIPPED[name]
    assert meta.shape == shape
    assert licence in meta.licence
    assert float(model.t_min) == pytest.approx(0.02)
    x = 0.02 * jax.random.normal(jax.random.key(0), meta.shape) - 1.0
    eps = jax.jit(model.pair)(model.t_min, x).eps
    # A blank image with a little noise: the model sees how much noise there is.
    assert 0.5 < float(jnp.std(eps)) < 1.5
    folder = Path(dgjax.__file__).parent / "pretrained" / name
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6
    card = (folder / "CARD.md").read_text()
    assert licence in card
    assert f"{meta.steps:,} steps" in card


def test_a_head_is_kept_with_the_model_and_does_not_change_its_digest(tmp_path):
    head = DiagonalHead(SPEC.shape, ("up.0.0",), ((1, 4, 4, 8),), 0.7, 16, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    random = lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype)
    head = jax.tree.map(random, head)
    plain = filled_model()
    save(tmp_path / "model", replace(plain, trace_head=head), META, dtype=None)
    model, meta = load(tmp_path / "model")
    assert jax.tree.structure(model.trace_head) == jax.tree.structure(head)
    assert all(map(jnp.array_equal, jax.tree.leaves(model.trace_head), jax.tree.leaves(head)))
    assert model.trace_head.layers == ("up.0.0",)
    assert digest(model, meta) == digest(plain, META)
    save(tmp_path / "model", replace(model, trace_head=None), meta)
    assert load(tmp_path / "model")[0].trace_head is None
    assert not (tmp_path / "model" / "trace_head.safetensors").exists()
