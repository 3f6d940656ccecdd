"""Samples of many files as one array, of which a file at a time is in memory."""

import numpy as np

from dgjax.pictures.sample_files import LazySamples, SampleFile, find_samples


def test_samples_are_those_of_the_files_read_once_each_in_turn():
    rng = np.random.default_rng(0)
    files = [
        rng.integers(0, 256, (1, 2, 2)).astype(np.uint8),
        rng.standard_normal((5, 2, 2)).astype(np.float32),
        rng.integers(0, 256, (2, 2, 2)).astype(np.uint8),
    ]
    reads = []

    def source(i):
        names = [str(j) for j in range(len(files[i]))]
        return SampleFile(names, files[i].dtype == np.uint8, lambda: reads.append(i) or files[i])

    rows = LazySamples([source(i) for i in range(3)], (2, 2))
    assert rows.shape == (8, 2, 2)
    assert reads == []
    index = [np.arange(s, s + 3).clip(max=7) for s in (0, 3, 6)]  # the last batch is padded
    found = [rows[i] for i in index]
    expected = np.concatenate([f.astype(np.float32) for f in files])
    for batch, i in zip(found, index, strict=True):
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, expected[i])
    assert reads == [0, 1, 2]


def test_files_that_are_left_out_of_a_folder_are_named(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("cat/a.PNG", "b.npy", "cat/notes.txt", ".DS_Store", ".git", "c.heic"):
        (tmp_path / name).touch()
    said = []
    found = find_samples([tmp_path, tmp_path / "b.npy"], said.append)
    assert found == [tmp_path / name for name in ("b.npy", "cat/a.PNG", "b.npy")]
    assert said == [
        f"skipped 2 files in {tmp_path}, neither images nor arrays: c.heic, cat/notes.txt"
    ]


def test_figures_of_samples_are_no_samples(tmp_path):
    for folder, names in (
        ("whole", ("samples.npz", "samples.png", "summary.json")),
        ("shards", ("00000.npz", "samples.png", "summary.json")),
        ("edit", ("edit.npz", "edit.png", "edit.json")),
        ("pictures", ("a.png", "samples.png")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    said = []
    found = find_samples([tmp_path], said.append)
    names = ["edit/edit.npz", "pictures/a.png", "pictures/samples.png", "shards/00000.npz"]
    assert [f.relative_to(tmp_path).as_posix() for f in found] == [*names, "whole/samples.npz"]
    figures = "edit/edit.png, shards/samples.png, whole/samples.png"
    assert said[0] == f"left out of {tmp_path}, figures of the samples beside them: {figures}"
