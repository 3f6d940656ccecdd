"""The hub is asked for configs first; weights follow only for models that are read, and few."""

import json
import shutil
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_diffusers import FILE, write

from dgjax.checkpoints.checkpoint import load
from dgjax.importing import import_model

NAME = "some/model"
CONFIGS = {
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the files in `remote`; it notes those that are downloaded, in order."""
    remote, cache = tmp_path / "remote", tmp_path / "cache" / "models--some--model"
    hub = SimpleNamespace(remote=remote, cache=cache, downloaded=[], online=True)
    monkeypatch.chdir(tmp_path)

    def names(folder):
        return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())

    def list_repo_files(name, *, revision=None):
        if not hub.online:
            raise OSError("no route to the hub")
        return names(remote)

    def snapshot_download(name, *, allow_patterns, revision=None):
        assert revision in (None, "c0ffee")
        folder = cache / "snapshots" / "c0ffee"
        if name != NAME or not (hub.online or folder.is_dir()):
            raise OSError("no route to the hub\nat all")
        folder.mkdir(parents=True, exist_ok=True)
        for file in names(remote) if hub.online else ():
            wanted = any(fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not (folder / file).exists():
                hub.downloaded.append(file)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(remote / file, folder / file)
        return str(folder)

    module = SimpleNamespace(snapshot_download=snapshot_download, list_repo_files=list_repo_files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return hub


def precisions(found):
    return {w.dtype.name for w in jax.tree.leaves(found.model.network)}


def test_a_model_is_its_configs_and_one_file_of_weights(hub, run):
    folder = write(hub.remote)
    whole = load_file(folder / "unet" / FILE)
    half = {name: w.astype(np.float16) for name, w in whole.items()}
    save_file(half, folder / "unet" / FILE.replace(".saf", ".fp16.saf"))
    for other in ("unet/diffusion_pytorch_model.bin", "pytorch_lora_weights.safetensors"):
        (folder / other).write_bytes(b"not asked for")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    status, _, complaint = run("import", NAME, "out")
    assert status == 0, complaint
    assert "not applied: pytorch_lora_weights.safetensors, a LoRA" in complaint
    assert load("out")[1].source == NAME
    assert set(hub.downloaded[:-1]) == CONFIGS
    assert hub.downloaded[-1] == f"unet/{FILE}"
    # Without a connection, what is in the cache serves.
    hub.online, hub.downloaded = False, []
    assert precisions(import_model(NAME)) == {"float32"}
    weights = hub.cache / "snapshots" / "c0ffee" / "unet" / FILE
    weights.rename(weights.with_suffix(".away"))
    with pytest.raises(ValueError, match=r"hub, which cannot be reached, has no weights in unet/"):
        import_model(NAME)
    weights.with_suffix(".away").rename(weights)
    # And the root of the cache is a path like any other.
    assert precisions(import_model(hub.cache)) == {"float32"}
    (hub.cache / "refs").mkdir()
    (hub.cache / "refs" / "main").write_text("c0ffee")
    (hub.cache / "snapshots" / "older").mkdir()
    assert precisions(import_model(hub.cache)) == {"float32"}
    (hub.cache / "refs" / "main").unlink()
    with pytest.raises(ValueError, match=r"without refs/main: .* \(c0ffee, older\)"):
        import_model(hub.cache)


def test_a_model_in_half_precision_and_parts_is_read(hub):
    folder = write(hub.remote)
    whole = load_file(folder / "unet" / FILE)
    (folder / "unet" / FILE).unlink()
    names = sorted(whole)
    parts = {f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors": i for i in (1, 2)}
    places = {}
    for part, i in parts.items():
        arrays = {n: whole[n].astype(np.float16) for n in names[i - 1 :: 2]}
        save_file(arrays, folder / "unet" / part)
        places |= dict.fromkeys(arrays, part)
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    (folder / "unet" / index).write_text(json.dumps({"weight_map": places}))
    assert precisions(import_model(NAME)) == {"float16"}
    assert set(hub.downloaded) == CONFIGS | {f"unet/{f}" for f in (index, *parts)}


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"text_encoder": ["transformers", "CLIPTextModel"]},
            r"part 'text_encoder' \(CLIPTextModel\).*torch_network",
        ),
        ("unet/config.json", {"cross_attention_dim": 8}, "attends to a text.*torch_network"),
        ("unet/config.json", {"act_fn": "tanh"}, "act_fn 'tanh' is unknown"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "beta_schedule 'odd'"),
    ],
)
def test_what_is_not_read_is_refused_before_any_weights_are_downloaded(file, changes, message, hub):
    folder = write(hub.remote)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        import_model(NAME)
    assert set(hub.downloaded) == CONFIGS


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["network.pkl", "README.md"], "has no config .*network.pkl.*hf download some/model"),
        (["pytorch_lora_weights.safetensors"], "is a LoRA.* merge it"),
        (["config.json"], r"is a model of transformers \(Bert\)"),
    ],
)
def test_a_repository_without_a_model_is_refused_by_its_names(files, message, hub):
    hub.remote.mkdir()
    for name in files:
        (hub.remote / name).write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ValueError, match=message):
        import_model(NAME)
    assert not [f for f in hub.downloaded if f.endswith((".pkl", ".safetensors"))]


def test_only_what_looks_like_a_name_is_asked_for(hub, monkeypatch):
    for source in ("nothing", "a/b/c", "./some/model", "models/x.pt/", ""):
        with pytest.raises(ValueError, match=r"no file or folder|known here") as caught:
            import_model(source)
        assert "\n" not in str(caught.value)
    assert hub.downloaded == []
    with pytest.raises(
        ValueError, match=r"no file or folder other/model, and as a name on .*: no r"
    ):
        import_model("other/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"no file or folder some/model; .*pip install .*hub"):
        import_model(NAME)
