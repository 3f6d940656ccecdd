"""Weights of other libraries: read lazily, by name, into a Flax network, or refused in one line."""

import argparse
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dgjax.checkpoints.arrays import to_named
from dgjax.importing import load_state_dict, open_weights
from dgjax.importing.weights import training_run
from dgjax.importing.weights_files import choose_file

RNG = np.random.default_rng(0)


class Small(nnx.Module):
    """A part of every kind."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.layers = nnx.List(nnx.Linear(4, 5, rngs=rngs) for _ in range(2))
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.table = nnx.Embed(6, 4, rngs=rngs)


def like():
    return nnx.eval_shape(lambda: Small(nnx.Rngs(0)))


def named(dtype=np.float32):
    """What PyTorch would call and shape it."""
    shapes = {
        "conv.weight": (8, 3, 3, 3),
        "conv.bias": (8,),
        "layers.0.weight": (5, 4),
        "layers.0.bias": (5,),
        "layers.1.weight": (5, 4),
        "layers.1.bias": (5,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "table.weight": (6, 4),
    }
    return {name: RNG.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def test_every_leaf_gets_its_array_in_its_layout():
    weights = named()
    found = to_named(load_state_dict(like(), weights, "the test"))
    layouts = {
        "conv.kernel": weights["conv.weight"].transpose(2, 3, 1, 0),
        "layers.1.kernel": weights["layers.1.weight"].T,
        "norm.scale": weights["norm.weight"],
        "table.embedding": weights["table.weight"],
        "layers.0.bias": weights["layers.0.bias"],
    }
    assert len(found) == len(weights)
    for name, array in layouts.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_precision_is_the_source_s_but_for_double(dtype):
    found = to_named(load_state_dict(like(), named(dtype), "the test"))
    kept = np.float32 if dtype == np.float64 else dtype
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(kept)}


def test_renames_apply_in_order_and_constants_are_compared():
    weights = named()
    old = {name.replace("layers.", "old_layer_"): array for name, array in weights.items()}
    old["filter"] = np.float32([1, 3, 3, 1])
    options = {"renames": [(r"old_layer_", "layer."), (r"^layer\.", "layers.")]}
    options["constants"] = {r"fil\w+": [1.0, 3.0, 3.0, 1.0]}
    found = to_named(load_state_dict(like(), old, "the test", **options))
    np.testing.assert_array_equal(found["layers.1.bias"], weights["layers.1.bias"])
    old["filter"] = np.float32([1, 3, 3, 1.001])
    with pytest.raises(ValueError, match="the constant 'filter' is not what"):
        load_state_dict(like(), old, "the test", **options)


def without(weights, name):
    return {key: array for key, array in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"extra.weight": w["conv.bias"]}, r"'extra.weight' has no place.*\(1 such"),
        (lambda w: without(w, "norm.bias"), r"'norm.bias' is missing"),
        (lambda w: w | {"conv.bias": np.zeros(9, np.float32)}, r"\(9,\) where \(8,\) is expected"),
        (lambda w: {k: np.ones(a.shape, int) for k, a in w.items()}, "holds .* as int64"),
        (lambda w: w | {"conv_.bias": w["conv.bias"]}, "two arrays for 'conv.bias'"),
    ],
)
def test_weights_that_do_not_fit_name_the_first(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_state_dict(like(), change(named()), "the test", renames=[("conv_", "conv")])
    assert "\n" not in str(caught.value)


def test_nothing_is_read_before_all_names_and_shapes_have_been_compared():
    class Unread:
        shape, dtype = (8,), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("it was read")

    with pytest.raises(ValueError, match=r"norm\.bias"):
        load_state_dict(like(), without(named(), "norm.bias") | {"conv.bias": Unread()}, "the test")


def check_same(found, weights):
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(np.asarray(found[name]), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_a_file_of_safetensors_is_read_exactly(tmp_path, dtype):
    weights = named(dtype)
    save_file(weights, tmp_path / "any.safetensors")
    check_same(open_weights(tmp_path / "any.safetensors"), weights)
    check_same(open_weights(tmp_path), weights)


def save_shards(folder, weights, name="diffusion_pytorch_model"):
    parts = {f"{name}-0000{i + 1}-of-00002.safetensors": {} for i in range(2)}
    for i, (key, array) in enumerate(weights.items()):
        parts[list(parts)[i % 2]][key] = array
    for file, part in parts.items():
        save_file(part, folder / file)
    places = {key: file for file, part in parts.items() for key in part}
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index, sorted(parts)


def test_shards_are_one_mapping_and_each_must_be_there(tmp_path):
    weights = named()
    index, parts = save_shards(tmp_path, weights)
    check_same(open_weights(tmp_path), weights)
    whole = json.loads(index.read_text())
    for places, message in [
        ({**whole["weight_map"], "more": parts[0]}, "'more' is in one of them only"),
        ({"a": "../other.safetensors"}, "outside its folder"),
    ]:
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ValueError, match=message):
            open_weights(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match="not an index of weights"):
        open_weights(tmp_path)
    index.write_text(json.dumps(whole))
    (tmp_path / parts[1]).unlink()
    with pytest.raises(ValueError, match=f"names {parts[1]}, which is not in"):
        open_weights(tmp_path)


def test_a_folder_prefers_the_standard_name_and_asks_between_others(tmp_path):
    weights = named()
    for name in ("a", "b"):
        save_file({"x": weights["conv.bias"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"several files of weights: .* a.safetensors, b"):
        open_weights(tmp_path)
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    assert open_weights(tmp_path).keys() == weights.keys()


ST, PT, NAME = ".safetensors", ".bin", "diffusion_pytorch_model"
INDEX = f"{NAME}{ST}.index.fp16.json"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([f"{NAME}.fp16{ST}", f"{NAME}{PT}"], f"{NAME}{PT}"),  # full precision first
        ([f"{NAME}.fp16{PT}", f"{NAME}.fp16{ST}"], f"{NAME}.fp16{ST}"),
        ([f"{NAME}.non_ema{ST}", f"{NAME}{ST}", f"{NAME}.fp16{ST}"], f"{NAME}{ST}"),
        ([f"{NAME}.fp16-00001-of-00001{ST}", f"{NAME}{ST}.index.fp16.json"], INDEX),
        ([f"pytorch_lora_weights{ST}", f"exploration{ST}"], f"exploration{ST}"),
        (["optimizer.bin", "random_states_0.pkl", "a.pt"], "a.pt"),
        (["adapter_model.safetensors", "config.json"], None),
    ],
)
def test_the_best_of_several_files_is_chosen(names, chosen):
    assert choose_file(names) == choose_file(names[::-1]) == chosen


def test_parts_without_their_index_are_refused():
    with pytest.raises(ValueError, match="is a part of weights, and the index of the parts is mis"):
        choose_file([f"{NAME}-0000{i}-of-00002{ST}" for i in (1, 2)])


def test_what_is_missing_damaged_or_foreign_is_one_line(tmp_path):
    empty, pickled = tmp_path / "empty", tmp_path / "pickled"
    empty.mkdir()
    pickled.mkdir()
    (pickled / "network.pkl").write_bytes(pickle.dumps({}))
    good, cut = tmp_path / "good.safetensors", tmp_path / "cut.safetensors"
    save_file(named(), good)
    cut.write_bytes(good.read_bytes()[:-4])
    other = tmp_path / "network.h5"
    other.write_bytes(b"")
    eight = tmp_path / "eight.safetensors"
    save_file({"x": np.zeros(3, np.int8)}, eight)
    for source, message in [
        (tmp_path / "none", "there are no weights at"),
        (empty, "has no weights"),
        (cut, "damaged or not safetensors"),
        (other, "not a file of weights"),
        (eight, "holds x as I8"),
        (pickled, "runs code of its author"),
        (pickled / "network.pkl", "runs code of its author"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            open_weights(source)
        assert ("\n" in str(caught.value)) == ("pickled" in str(source))  # code that converts it


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


def test_files_of_pytorch_are_read_by_its_safe_loader_only(tmp_path):
    torch = pytest.importorskip("torch")
    weights = named()
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    file = tmp_path / "diffusion_pytorch_model.bin"
    for content in (tensors, {"state_dict": tensors, "epoch": 3}):
        for new in (True, False):
            torch.save(content, file, _use_new_zipfile_serialization=new)
            check_same(open_weights(tmp_path), weights)
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, file)
    half = open_weights(file)
    assert {stored.dtype for stored in half.values()} == {np.dtype(jnp.bfloat16)}
    expected = jnp.asarray(weights["conv.weight"]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(half["conv.weight"]), expected)

    last = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    run = argparse.Namespace(lr=0.1)
    torch.save({"model": last, "ema": tensors, "args": run}, file)
    check_same(open_weights(file), weights)
    assert training_run(file) == (("ema", "model"), {"lr": 0.1})
    torch.save(tensors, file)
    assert training_run(tmp_path) == ((), {})
    torch.save({"first": tensors, "second": tensors}, file)
    with pytest.raises(ValueError, match=r"2 tables of weights \(first, second\)"):
        open_weights(file)
    torch.save({"weights": Evil(str(tmp_path / "mark"))}, file)
    with pytest.raises(ValueError, match="not read for safety") as caught:
        open_weights(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_without_pytorch_its_files_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"needs PyTorch: pip install .*torch.*, or convert"):
        open_weights(tmp_path)


def test_the_filled_network_runs():
    network = jax.tree.map(jnp.asarray, load_state_dict(like(), named(), "the test"))
    assert network.conv(jnp.ones((1, 5, 5, 3))).shape == (1, 5, 5, 8)
