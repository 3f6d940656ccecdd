"""Any path: who reads it, or in the first line of a refusal what it is and what to do."""

import io
import json
import pickle
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file
from test_diffusers import FILE, write

from dgjax.importing import READERS, Refusal, import_model, open_weights
from dgjax.importing import source as source_module


@pytest.fixture
def pipeline(tmp_path):
    return write(tmp_path / "pipeline")


def test_a_model_is_found_from_each_of_its_files_and_folders(pipeline):
    steps = pipeline / "scheduler"
    for path, options in [
        (pipeline, {}),
        (pipeline / "model_index.json", {}),
        (pipeline / "unet", {"scheduler": steps}),
        (pipeline / "unet" / "config.json", {"scheduler": steps}),
        (pipeline / "unet" / FILE, {"scheduler": steps / "scheduler_config.json"}),
    ]:
        found = import_model(path, **options)
        assert (found.architecture, found.meta.source) == ("UNet2DModel", str(path))
        assert found.meta.shape == (4, 4, 1)


def test_the_file_that_was_given_is_the_one_that_is_read(pipeline):
    weights = load_file(pipeline / "unet" / FILE)
    half = {name: w.astype(np.float16) for name, w in weights.items()}
    save_file(half, pipeline / "unet" / "other.safetensors")
    found = import_model(pipeline / "unet" / "other.safetensors", scheduler=pipeline / "scheduler")
    assert found.model.network.conv_in.bias[...].dtype == np.float16


def test_a_lora_beside_a_model_is_said_not_to_be_applied(pipeline):
    assert not [n for n in import_model(pipeline).notes if "LoRA" in n]
    for place in (pipeline, pipeline / "unet"):
        (place / "pytorch_lora_weights.safetensors").write_bytes(b"not read")
        note = "not applied: pytorch_lora_weights.safetensors, a LoRA, which changes the weights"
        assert note in import_model(pipeline).notes
        (place / "pytorch_lora_weights.safetensors").unlink()


def test_a_reader_more_is_one_line(tmp_path, monkeypatch):
    asked = []

    def recognise(path):
        return path.suffix == ".new"

    def read_new(path, *, source, licence=None):
        asked.append((path, source, licence))
        return SimpleNamespace(notes=(), _replace=lambda notes: asked)

    monkeypatch.setattr(source_module, "READERS", ((recognise, read_new), *READERS))
    file = tmp_path / "x.new"
    file.write_bytes(b"")
    assert import_model(file, licence="MIT") == [(file, str(file), "MIT")]
    # It is asked for the only file of weights in a folder, too.
    (tmp_path / "run").mkdir()
    save_file({}, tmp_path / "run" / "a.safetensors")
    monkeypatch.setattr(source_module, "READERS", ((lambda path: path.is_file(), read_new),))
    assert import_model(tmp_path / "run")[1][0] == tmp_path / "run" / "a.safetensors"
    with pytest.raises(ValueError, match="read_new, which takes no scheduler: leave it out"):
        import_model(file, scheduler="steps")


def made(folder, name, arrays=None, text="{}"):
    folder.mkdir(parents=True, exist_ok=True)
    if arrays is None:
        (folder / name).write_text(text)
    else:
        save_file({key: np.zeros(2, np.float32) for key in arrays}, folder / name)
    return folder / name


REFUSED = {
    "weights alone": (
        lambda f: made(f, "a.safetensors", ["a.weight", "b"]),
        r"holds 2 weights \(a.weight, b, ...\) of a network that is not known.*torch_network",
    ),
    "a LoRA": (
        lambda f: made(f, "a.safetensors", ["unet.down.lora_A.weight"]),
        "is a LoRA, a change to the weights of a model: merge it",
    ),
    "a LoRA in a folder": (
        lambda f: made(f, "pytorch_lora_weights.safetensors", ["unet.lora.up"]).parent,
        "is a LoRA, a change to the weights of a model: merge it",
    ),
    "latent diffusion in one file": (
        lambda f: made(f, "v1.safetensors", ["model.diffusion_model.out.0.bias"]),
        "is a checkpoint of latent diffusion in one file: convert it with from_single_file",
    ),
    "Flax": (lambda f: made(f, "checkpoint.msgpack"), "weights of Flax without their network"),
    "ONNX": (lambda f: made(f, "model.onnx"), "is a program of ONNX"),
    "quantized": (lambda f: made(f, "model.gguf"), "is quantized weights, which is not read"),
    "anything": (lambda f: made(f, "notes.txt"), "is no file of weights that is known here"),
    "an empty folder": (
        lambda f: made(f / "a", "notes.txt").parent,
        "holds no model that is known",
    ),
    "a checkpoint of ours": (
        lambda f: made(f, "config.json", text='{"format": "dgjax-checkpoint-2"}').parent,
        "is a checkpoint of dgjax already: pass it as the model",
    ),
    "a language model": (
        lambda f: made(f, "config.json", text='{"architectures": ["GPT"]}').parent,
        r"is a model of transformers \(GPT\)",
    ),
    "orbax": (lambda f: made(f, "_CHECKPOINT_METADATA").parent, "checkpoint of a JAX or Tensor"),
    "several models": (
        lambda f: (made(f / "a", "config.json"), made(f / "b", "model_index.json"))[0].parents[1],
        "is a folder of 2 models: import one of a, b",
    ),
    "several files": (
        lambda f: (made(f, "a.safetensors", "x"), made(f, "b.safetensors", "x"))[0].parent,
        "has the weights a.safetensors, b.safetensors and no config.json .*: import one",
    ),
    "weights of a checkpoint of ours": (
        lambda f: (
            made(f, "config.json", text='{"format": "dgjax-checkpoint-2"}'),
            made(f, "weights.safetensors", "x"),
        )[1],
        "is a checkpoint of dgjax already: pass it as the model",
    ),
    "weights of Flax in a pipeline": (
        lambda f: (
            write(f),
            (f / "unet" / FILE).rename(f / "unet" / "diffusion_flax_model.msgpack"),
        )[1].parents[1],
        "has weights of Flax only .*from_flax=True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_named_with_what_to_do(case, tmp_path, run):
    make, message = REFUSED[case]
    status, _, complaint = run("import", make(tmp_path / "given"), tmp_path / "out")
    assert status == 1
    assert re.search(message, complaint), complaint
    assert len(complaint.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_code_that_converts_a_pickle_converts_it(tmp_path, run):
    torch = pytest.importorskip("torch")
    weights = {"a.weight": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.float32)}
    file = tmp_path / "table.pkl"
    file.write_bytes(pickle.dumps({k: torch.tensor(w) for k, w in weights.items()}))
    with pytest.raises(Refusal, match="is a pickle, and reading it runs code") as caught:
        import_model(file)
    exec(caught.value.code, {})
    for name, array in open_weights(tmp_path / "table.safetensors").items():
        np.testing.assert_array_equal(array, weights[name])
    status, _, complaint = run("import", file, tmp_path / "out")
    assert status == 1
    assert complaint.startswith(f"dgjax: {file} is a pickle")
    assert len(complaint.splitlines()) == 4


class VPPrecond:
    """As the pickle of a network of EDM's."""

    def __init__(self):
        self.init_kwargs = {"img_resolution": 8, "class_name": "training.networks.VPPrecond"}

    def state_dict(self):
        import torch

        return {"model.b": torch.ones(3)}


def test_the_code_for_a_network_of_edm_writes_its_preconditioning(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    module = ModuleType("torch_utils.persistence")
    monkeypatch.setitem(sys.modules, "torch_utils", ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    monkeypatch.setattr(VPPrecond, "__module__", "torch_utils.persistence")
    module.VPPrecond = VPPrecond
    file = tmp_path / "edm.pkl"
    file.write_bytes(pickle.dumps({"ema": VPPrecond()}))
    with pytest.raises(Refusal, match="is a pickle of a network of EDM's kind") as caught:
        import_model(tmp_path)
    exec(caught.value.code, {})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"img_resolution": 8, "precond": "VPPrecond"}
    assert list(open_weights(tmp_path)) == ["model.b"]


def test_a_file_of_pytorch_with_more_than_weights_comes_with_code(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "run.pt"
    torch.save({"ema": {"b": torch.ones(3)}, "args": io.BytesIO(b"an object")}, file)
    with pytest.raises(Refusal, match="more than weights and is not read for safety") as caught:
        import_model(file)
    exec(caught.value.code, {})
    assert list(open_weights(tmp_path / "run.safetensors")) == ["b"]


def test_nothing_of_a_pickle_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "mark"), "w")

    for name in ("evil.pkl", "evil.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(ValueError, match="evil"):
            import_model(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def table_of_the_page():
    """Rows of the table of what people hold: what, what happens, and the test."""
    page = (ROOT / "docs" / "how-to" / "import.md").read_text()
    lines = page.split("| you have |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_row_of_the_table_in_the_docs_has_its_test():
    rows = table_of_the_page()
    assert len(rows) > 20
    for _, happens, test in rows:
        assert re.match(r"read|refused|by the bridge|\[four lines\]", happens), happens
        file, name = test.strip("`").split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test
