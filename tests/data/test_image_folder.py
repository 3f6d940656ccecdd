"""Folders of images: known pixels come back, windows are windows, splits and batches stay."""

import io
import json
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from dgjax.data.dataset import UncroppedImages
from dgjax.data.image_folder import is_held_out, load_folder
from dgjax.pictures.image_files import convert_colours, read_image
from dgjax.training import TrainConfig, export, fit, load_data
from dgjax.training.components import make_augment
from dgjax.training.pipeline import training_batches

RNG = np.random.default_rng(0)


def write(file, levels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(levels, np.uint8)).save(file, **options)
    return file


def levels(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


# Pixels


def test_images_of_the_models_size_come_back_as_they_are(tmp_path):
    first, second, third = levels(3, 8, 6, 3)
    write(tmp_path / "b/deep/2.PNG", second)
    write(tmp_path / "a.png", first)
    write(tmp_path / "c.webp", third, lossless=True)
    data = load_folder(tmp_path, (8, 6, 3))
    np.testing.assert_array_equal(data.values, [first, second, third])
    assert data.values.dtype == np.uint8
    expected = second / 127.5 - 1
    np.testing.assert_allclose(data.batch([1])[0], expected, atol=1e-6)
    np.testing.assert_allclose(
        data.batch([1], mirrored=np.array([True]))[0], expected[:, ::-1], atol=1e-6
    )
    assert data.data_range == (-1, 1)
    assert data.labels is None


def test_jpeg_comes_back_nearly(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(16))[..., None] * [4, 3, 2]
    write(tmp_path / "a.jpeg", smooth, quality=95)
    values = load_folder(tmp_path, (16, 16, 3)).values
    assert np.abs(values[0].astype(int) - smooth).max() <= 8


def test_grey_models_get_grey(tmp_path):
    grey, colour = levels(4, 4), levels(4, 4, 3)
    write(tmp_path / "a.png", grey)
    write(tmp_path / "b.png", colour)
    values = load_folder(tmp_path, (4, 4, 1)).values[..., 0]
    np.testing.assert_array_equal(values[0], grey)
    luma = colour @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(values[1], luma, atol=1)
    both = load_folder(tmp_path, (4, 4, 3)).values
    np.testing.assert_array_equal(both[0], np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_is_kept_and_scaled(tmp_path, turned):
    # 4 x 12: the middle 4 x 4 is one colour, what is cut off another; then 20 times that.
    wide = np.full((4, 12, 3), 255)
    wide[:, 4:8] = [10, 90, 170]
    whole = np.kron(wide, np.ones((20, 20, 1)))
    write(tmp_path / "a.png", whole.swapaxes(0, 1) if turned else whole)
    values = load_folder(tmp_path, (8, 8, 3)).values[0]
    # Lanczos rings by 4 at the edge; cut half a pixel off the middle, it would be 12.
    np.testing.assert_allclose(
        values[1:-1, 1:-1], np.broadcast_to([10, 90, 170], (6, 6, 3)), atol=5
    )


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_small_images_are_enlarged(tmp_path, crop):
    write(tmp_path / "a.png", np.full((3, 5, 3), [1, 2, 3]))
    data = load_folder(tmp_path, (8, 16, 3), crop=crop)
    batch = (data.batch([0], positions=np.random.default_rng(0).random((1, 2))) + 1) * 127.5
    np.testing.assert_allclose(batch, np.broadcast_to([1, 2, 3], (1, 8, 16, 3)), atol=1e-4)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = (np.arange(16).reshape(4, 4) * 4369).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mode == "I;16"
    values = load_folder(tmp_path, (4, 4, 1)).values[0, ..., 0]
    np.testing.assert_array_equal(values, np.arange(16).reshape(4, 4) * 17)
    with pytest.raises(ValueError, match="levels of 32 bits; save it"):
        convert_colours(Image.new("F", (4, 4)), (4, 4, 1))


# Windows


@pytest.mark.parametrize("size", [(6, 14), (13, 6), (6, 6)])
def test_random_crops_are_windows_of_the_image_at_every_place(tmp_path, size):
    image = np.arange(np.prod(size)).reshape(size)  # every pixel tells its place
    write(tmp_path / "a.png", image)
    data = load_folder(tmp_path, (6, 6, 1), crop="random")
    assert data.shape == (6, 6, 1)
    batch = data.batch(np.zeros(400, int), positions=np.random.default_rng(3).random((400, 2)))
    found = np.rint((batch[..., 0] + 1) * 127.5).astype(int)
    places = [divmod(corner, size[1]) for corner in found[:, 0, 0]]
    for (top, left), window in zip(places, found, strict=True):
        np.testing.assert_array_equal(window, image[top : top + 6, left : left + 6])
    counts = np.bincount([top + left for top, left in places])
    assert len(counts) == max(size) - 5
    if len(counts) > 1:
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_windows_come_from_the_images_that_are_asked_for():
    uncropped = UncroppedImages(
        [np.full((4 + i, 9 - i, 1), i, np.uint8) for i in range(5)], (4, 4, 1)
    )
    assert uncropped.shape == (5, 4, 4, 1)
    cut = uncropped.crop(np.array([3, 0, 3]), np.random.default_rng(0).random((3, 2)))
    np.testing.assert_array_equal(cut, np.broadcast_to([[[[3]]], [[[0]]], [[[3]]]], (3, 4, 4, 1)))


def test_random_crops_need_places(tmp_path):
    write(tmp_path / "a.png", levels(4, 8))
    with pytest.raises(ValueError, match="pass positions"):
        load_folder(tmp_path, (4, 4, 1), crop="random").batch([0])


# Labels and parts


def test_sub_folders_are_classes_if_all_images_are_in_them(tmp_path):
    for name in ("owl/2.png", "cat/x/1.png", "owl/1.png", "ant/9.png"):
        write(tmp_path / name, levels(4, 4))
    data = load_folder(tmp_path, (4, 4, 1))
    assert data.classes == ("ant", "cat", "owl")
    np.testing.assert_array_equal(data.labels, [0, 1, 2, 2])  # ant/9, cat/x/1, owl/1, owl/2
    assert data.summary == "4 samples of 3 classes (ant, cat, owl)"
    assert data.notes == ()
    write(tmp_path / "stray.png", levels(4, 4))
    data = load_folder(tmp_path, (4, 4, 1))
    assert data.classes is None
    assert data.labels is None
    assert data.summary == "5 samples"
    (note,) = data.notes
    assert note.startswith("no classes, since not all images lie in sub-folders")
    assert "stray.png" in note


def test_hidden_and_other_files_are_passed_over(tmp_path):
    write(tmp_path / "a.png", levels(4, 4))
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/b.png").write_bytes(b"thumbnail")
    (tmp_path / "readme.txt").write_text("hello")
    data = load_folder(tmp_path, (4, 4, 1))
    assert len(data) == 1
    assert data.notes == (f"skipped 1 file in {tmp_path}, not images: readme.txt",)


def test_pictures_of_twelve_bits_in_sixteen_are_said(tmp_path):
    """They come out nearly black, in 17 of 256 levels."""
    deep = (np.arange(16) * 273).reshape(4, 4).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    (note,) = load_folder(tmp_path, (4, 4, 1)).notes
    assert note.startswith(
        "pictures of 16 bits have levels up to 4,095 of 65,535, and become 16 of"
    )
    assert "set data.levels, such as [0, 4095]" in note
    Image.fromarray(deep * 16).save(tmp_path / "b.png")
    assert load_folder(tmp_path, (4, 4, 1)).notes == ()


def test_training_says_what_the_data_are(folder, tmp_path, capsys):
    (folder / "notes.txt").write_text("hello")
    fit(replace(config(folder), steps=1), tmp_path / "run")
    said = capsys.readouterr().err
    assert "data: " in said
    assert "not images: notes.txt" in said


def test_parts_are_disjoint_whole_and_do_not_move_when_files_are_added(tmp_path):
    def parts():
        found = [
            load_folder(tmp_path, (1, 1, 3), held_out=0.3, part=part)
            for part in ("train", "held-out")
        ]
        return [{tuple(v.reshape(-1).tolist()) for v in data.values} for data in found], found

    def add(numbers):  # the colour tells the number
        for i in numbers:
            write(tmp_path / f"{'odd' if i % 2 else 'even'}/{i}.png", [[[i, 7, 9]]])

    add(range(40))
    (train, held), _ = parts()
    assert train
    assert held
    assert not train & held
    assert len(train | held) == 40
    add(range(40, 90))
    (more_train, more_held), found = parts()
    assert train < more_train
    assert held < more_held
    for data in found:
        assert data.classes == ("even", "odd")
        np.testing.assert_array_equal(data.labels, data.values[:, 0, 0, 0] % 2)


def test_the_held_out_share_is_the_fraction_and_grows_with_it():
    names = [f"{i % 7}/{i}.jpg" for i in range(4000)]
    parts = [{n for n in names if is_held_out(n, f)} for f in (0.0, 0.05, 0.4)]
    assert not parts[0]
    assert parts[1] < parts[2]
    for part, fraction in zip(parts[1:], (0.05, 0.4), strict=True):
        assert scipy.stats.binomtest(len(part), 4000, fraction).pvalue > 1e-3


def test_accents_split_alike_however_they_are_spelt():
    for i in range(50):
        assert is_held_out(f"caf\u00e9/{i}.png", 0.5) == is_held_out(f"cafe\u0301/{i}.png", 0.5)


# Bad input


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*none; set data.path"):
        load_folder(tmp_path / "none", (4, 4, 1))
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="no image in"):
        load_folder(tmp_path, (4, 4, 1))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("crop", ["centre", "random"])
def test_damaged_files_are_named(tmp_path, kind, share, crop):
    write(tmp_path / "good.png", levels(32, 32, 3))
    stream = io.BytesIO()
    Image.fromarray(levels(32, 32, 3)).save(stream, kind)
    content = stream.getvalue()
    (tmp_path / f"sub.{kind}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"sub\.{kind} .*take it out of the folder") as caught:
        load_folder(tmp_path, (8, 8, 3), crop=crop)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4,)}, r"needs shape \(H, W, 1\)"),
        ({"shape": (4, 4, 2)}, r"needs shape \(H, W, 1\)"),
        ({"crop": "center"}, "did you mean 'centre'"),
        ({"part": "test"}, "part 'test' is unknown"),
        ({"held_out": 1.0}, r"held_out must be in \[0, 1\)"),
        ({"part": "held-out"}, "leaves none of the 1 images"),
        ({"held_out": 0.999999}, "to the part 'train'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    write(tmp_path / "a.png", levels(4, 4))
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path, **{"shape": (4, 4, 1), **options})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"dataset": "folder"}, "needs a path"),
        ({"dataset": "folder", "path": ".", "crop": "middle"}, "crop 'middle' is unknown"),
        ({"dataset": "folder", "path": ".", "held_out": 1.5}, "held_out must be"),
        ({"dataset": "digits", "crop": "random"}, "for folders, not for digits"),
        ({"dataset": "npz", "held_out": 0.1}, "for folders, not for npz"),
    ],
)
def test_wrong_configurations_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        config(None, table)


# Runs


def config(folder, table=None, **changes):
    data = table or {"dataset": "folder", "path": str(folder)}
    values = {
        "model": {
            "shape": [4, 4, 3],
            "network": {"kind": "mlp", "width": 8, "depth": 1, "num_classes": 2},
            "path": {"kind": "edm"},
            "parametrization": {"kind": "preconditioned", "sigma_data": 0.5},
            "t_min": 0.02,
            "t_max": 80.0,
        },
        "data": {"sigma_data": 0.5, **data},
        "steps": 6,
        "batch": 8,
        "records": {"save_every": 2, "validate_every": 0},
    }
    return TrainConfig.from_dict(values | changes)


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        write(tmp_path / f"images/{'ab'[i % 2]}/{i:02}.png", levels(4, 5 + i, 3))
    return tmp_path / "images"


def test_batches_are_the_same_whenever_the_step_is_reached(folder):
    table = {"dataset": "folder", "path": str(folder), "crop": "random", "held_out": 0.2}
    chosen = config(folder, {**table, "flip": True})
    shape = chosen.model.shape
    data = load_data(chosen.data, shape)
    assert len(data) + len(load_data(chosen.data, shape, "held-out")) == 20
    augment = make_augment(chosen)

    def feed(data, start, seed=chosen.seed):
        return training_batches(data, augment, batch=chosen.batch, seed=seed, start=start)

    through = list(islice(feed(data, 0), 6))
    resumed = next(feed(load_data(chosen.data, shape), 5))
    np.testing.assert_array_equal(resumed.data, through[5].data)
    np.testing.assert_array_equal(resumed.labels, through[5].labels)

    def places(step, seed=0):  # of the same images, so that only where they are cut differs
        monotone = np.broadcast_to(np.arange(250, dtype=np.uint8)[:, None], (4, 250, 3))
        images = replace(data, values=UncroppedImages([monotone] * len(data), shape))
        return next(feed(images, step, seed)).data[:, 0, 0, 0]

    assert (places(5) != places(4)).any()
    assert (places(5) != places(5, seed=1)).any()
    np.testing.assert_array_equal(places(5), places(5))


@pytest.mark.slow
def test_a_run_keeps_what_is_known_of_the_data_and_exports_without_them(folder, tmp_path):
    chosen = config(folder)
    whole = fit(chosen, tmp_path / "run", progress=False)
    facts = json.loads((tmp_path / "run/data.json").read_text())
    assert facts["classes"] == ["a", "b"]
    assert facts["samples"] == 20
    write(folder / "a/new.png", levels(4, 4, 3))
    with pytest.raises(ValueError, match="other data: samples was 20 and is 21"):
        fit(chosen, tmp_path / "run", progress=False)
    shutil.rmtree(folder)
    meta = export(tmp_path / "run", tmp_path / "model")
    assert meta == whole.meta
    assert meta.dataset == "folder"
    (tmp_path / "run/data.json").unlink()
    with pytest.raises(ValueError, match=r"data.json is missing or damaged"):
        export(tmp_path / "run", tmp_path / "model")


def test_what_is_held_out_is_read_only_where_it_is_watched(folder, tmp_path):
    table = {"dataset": "folder", "path": str(folder), "held_out": 0.3}
    names = [f"{'ab'[i % 2]}/{i:02}.png" for i in range(20)]
    held = next(name for name in names if is_held_out(name, 0.3))
    (folder / held).write_bytes(b"damaged")
    chosen = config(folder, table)
    assert fit(chosen, tmp_path / "run", progress=False).meta.held_out == 0.3
    watched = replace(chosen, records=replace(chosen.records, validate_every=6))
    with pytest.raises(
        ValueError, match=f"the held-out part: .*{held}.* or set records.validate_ev"
    ):
        fit(watched, tmp_path / "watched", progress=False)


def test_other_data_sets_have_no_held_out_part(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(144.0).reshape(3, 4, 4, 3))
    data = config(None, {"dataset": "npz", "path": str(tmp_path / "x.npz")}).data
    assert len(load_data(data, (4, 4, 3))) == 3
    with pytest.raises(ValueError, match="npz has no held-out part"):
        load_data(data, (4, 4, 3), "held-out")


def test_every_format_is_read(tmp_path):
    """All that `dgjax likelihood` reads; classes of another format vanished without a word."""
    values = levels(8, 8)
    for name in ("a/0.png", "b/0.tiff", "b/1.tif", "c/0.gif", "d/0.bmp", "e/0.JPG"):
        write(tmp_path / name, values)
    found = load_folder(tmp_path, (8, 8, 1))
    assert found.classes == ("a", "b", "c", "d", "e")
    assert len(found) == 6
    for i in range(5):  # but the JPEG
        np.testing.assert_array_equal(found.values[i, ..., 0], values)
