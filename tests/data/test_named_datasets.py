"""Arrays in npz files: what cannot be data is refused, and the message names the row."""

import gzip
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dgjax
from dgjax.data import named_datasets
from dgjax.data.named_datasets import load_dataset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({(3, 0): np.nan}, r"x has nan in row 3 \(1 of 64 rows are bad\).*take these rows out"),
        ({(3, 0): 1e300, (5, 1): -np.inf}, r"x has 1e\+300 in row 3 \(2 of 64 rows are bad\)"),
        (0.25, r"x is 0.25 everywhere: constant data"),
    ],
)
def test_numbers_that_are_no_data(tmp_path, change, message):
    x = np.random.default_rng(0).normal(size=(64, 4))
    if isinstance(change, float):
        x[:] = change
    else:
        for at, value in change.items():
            x[at] = value
    np.savez(tmp_path / "rows.npz", x=x)
    with pytest.raises(ValueError, match=message):
        load_dataset("npz", path=tmp_path / "rows.npz")


def test_whole_numbers_of_another_kind_are_refused(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.ones((4, 2), np.int32))
    with pytest.raises(ValueError, match="must be uint8 or floating numbers, got int32"):
        load_dataset("npz", path=tmp_path / "rows.npz")


def test_names_of_the_labels_come_from_the_file_and_must_name_each_label(tmp_path):
    x, labels = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2), np.array([0, 2, 1, 0])
    np.savez(tmp_path / "rows.npz", x=x, labels=labels, classes=np.array(["a", "b", "c d"]))
    assert load_dataset("npz", path=tmp_path / "rows.npz").classes == ("a", "b", "c d")
    np.savez(tmp_path / "rows.npz", x=x, labels=labels, classes=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="labels 0 to 1, and there are labels from 0 to 2"):
        load_dataset("npz", path=tmp_path / "rows.npz")
    np.savez(tmp_path / "rows.npz", x=x, labels=labels, classes=np.arange(3))
    with pytest.raises(ValueError, match="classes must be strings"):
        load_dataset("npz", path=tmp_path / "rows.npz")


@pytest.mark.parametrize("installed", [True, False])
def test_what_to_do_about_missing_files_of_fashion_mnist_depends_on_what_is_missing(
    installed, tmp_path, monkeypatch
):
    def retrieve(*arguments):
        raise ConnectionError("a long text of the network library")

    pooch = SimpleNamespace(os_cache=Path, retrieve=retrieve) if installed else None
    monkeypatch.setitem(sys.modules, "pooch", pooch)
    monkeypatch.setattr(named_datasets, "DEBIAN", tmp_path / "none")
    with pytest.raises(ValueError, match=r"set data\.path to it") as caught:
        load_dataset("fashion-mnist")
    assert ("pip install" in str(caught.value)) == (not installed)
    assert ("(ConnectionError): try again with a network" in str(caught.value)) == installed


def test_classes_of_fashion_mnist_have_names(tmp_path):
    images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (10, 28, 28)) + bytes(7840)
    labels = b"\0\0\x08\x01" + (10).to_bytes(4, "big") + bytes(range(10))
    for name, content in zip(
        named_datasets.FASHION_MNIST_FILES["train"], (images, labels), strict=True
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
    data = load_dataset("fashion-mnist", tmp_path)
    assert data.classes[data.labels[1]] == "Trouser"
    assert data.classes == dgjax.load_pretrained("fashion-mnist")[1].labels
