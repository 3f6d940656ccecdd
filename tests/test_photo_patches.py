"""The photo patch set, made of photographs whose every pixel is known: cuts, parts, refusals."""

import hashlib
import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgjax.data.image_folder import is_held_out
from dgjax.pictures.image_files import read_image
from dgjax.pictures.png import encode_png

SCRIPT = Path(__file__).parent.parent / "experiments" / "photo_patches.py"
if not SCRIPT.exists():
    pytest.skip("experiments/ is not in source distributions", allow_module_level=True)
spec = importlib.util.spec_from_file_location("photo_patches", SCRIPT)
photo_patches = importlib.util.module_from_spec(spec)
sys.modules["photo_patches"] = photo_patches  # where dataclasses look their module up
spec.loader.exec_module(photo_patches)

TRAIN = [f"{i}.png" for i in range(20) if not is_held_out(f"{i}.png", photo_patches.HELD_OUT)]
HELD = [f"{i}.png" for i in range(90) if is_held_out(f"{i}.png", photo_patches.HELD_OUT)]


def levels(seed, height=96, width=128):
    """Noise on a colour of its own, so that thumbnails differ."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-20, 20, (height, width, 3))
    colour = rng.permutation([40, 120, 200])
    colour[1] += 5 * seed
    return (colour + noise).astype(np.uint8)


def add(root, name, pixels, licence="CC-BY-4.0"):
    file = root / "usr" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return photo_patches.Photograph(
        file=f"usr/{name}",
        title=name,
        author=f"Author of {name}",
        year=2020,
        licence=licence,
        package="nice-pictures",
        version="1.2-3",
        source="https://example.org/pictures",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


@pytest.fixture
def photographs(tmp_path):
    names = [TRAIN[0], HELD[0], TRAIN[1]]
    return [add(tmp_path, name, levels(i)) for i, name in enumerate(names)]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds the set into a folder; returns the arrays and the credits."""
    monkeypatch.setattr(photo_patches, "SHEET", (2, 8))

    def call(photographs, folder="out"):
        out = tmp_path / folder
        places = {"credits_file": out / "credits.md", "figure": out / "figures" / "sheet.png"}
        photo_patches.build(photographs, [tmp_path], out=out / "set.npz", **places)
        with np.load(out / "set.npz") as arrays:
            return dict(arrays), (out / "credits.md").read_text()

    return call


def test_patches_are_windows_of_their_photograph_in_its_part(photographs, build):
    arrays, credits_text = build(photographs)
    assert arrays["names"].tolist() == [p.name for p in photographs]
    found = {"train": Counter(), "held-out": Counter()}
    for part, prefix in (("train", ""), ("held-out", "held_out_")):
        x = arrays["x" if part == "train" else "held_out"]
        assert x.dtype == np.uint8
        for patch, source in zip(x, arrays[f"{prefix}photograph"], strict=True):
            found[part][int(source), patch.tobytes()] += 1
    expected = {"train": Counter(), "held-out": Counter()}
    for i, part in enumerate(("train", "held-out", "train")):
        image = levels(i)
        for top in range(0, 96 - 31, 16):
            for left in range(0, 128 - 31, 16):
                expected[part][i, image[top : top + 32, left : left + 32].tobytes()] += 1
    assert found == expected  # 35 of each, all different
    assert (np.diff(arrays["photograph"]) < 0).any()  # shuffled
    for i, part in enumerate(("train", "held-out", "train")):
        name = photographs[i].name
        assert f"| {name} | Author of {name}, 2020 | [CC-BY-4.0](http" in credits_text
        assert f" 1.2-3 | {part} | 35 | `{photographs[i].sha256}` |" in credits_text


def test_the_figures_in_the_credits_are_those_of_the_training_patches(photographs, build):
    arrays, credits_text = build(photographs)
    x = arrays["x"] / 127.5 - 1
    assert f"in [-1, 1]: {x.mean():.4f}, {x.std():.4f}." in credits_text
    assert f"`{hashlib.sha256(arrays['x'].tobytes()).hexdigest()}` (`x`)" in credits_text


def test_the_same_files_give_the_same_bytes(photographs, build, tmp_path):
    build(photographs, "a")
    build(photographs, "b")
    for name in ("set.npz", "credits.md", "figures/sheet.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_figure_shows_patches_in_rising_png_size():
    x = levels(3, 32 * 120, 32).reshape(120, 32, 32, 3) // np.arange(1, 121)[:, None, None, None]
    sheet = np.asarray(photo_patches.contact_sheet(x.astype(np.uint8)))
    tiles = sheet.reshape(6, 68, 16, 68, 3).swapaxes(1, 2).reshape(96, 68, 68, 3)
    shown = tiles[:, 2:-2:2, 2:-2:2]
    assert {tile.tobytes() for tile in shown} <= {patch.astype(np.uint8).tobytes() for patch in x}
    found = [len(encode_png(tile)) for tile in shown]
    assert found == sorted(found)
    assert len({*found}) > 20


def test_large_photographs_are_reduced_by_means(tmp_path):
    small = levels(0, 450, 430)
    large = np.kron(small, np.ones((2, 2, 1), np.uint8))
    large[::2, ::2] += 2  # the means stay, to half a level
    large[1::2, 1::2] -= 2
    reduced = photo_patches.reduce(Image.fromarray(np.pad(large, ((0, 1), (0, 0), (0, 0)))))
    np.testing.assert_array_equal(np.asarray(reduced), small)
    for side, factor in ((399, 1), (799, 1), (800, 2), (1600, 4), (4000, 4)):
        assert photo_patches.reduce(Image.new("RGB", (side, side))).width == side // factor


def test_equal_patches_are_kept_once_over_both_parts(photographs, build, tmp_path):
    shared = levels(7, 32, 32)
    plain = np.full((32, 128, 3), [250, 0, 0], np.uint8)  # seven windows, all alike
    first = add(tmp_path, TRAIN[2], np.concatenate([plain, levels(8)]))
    wide = np.full((128, 32, 3), [0, 0, 250], np.uint8)
    second = add(tmp_path, HELD[1], np.concatenate([shared, wide]))
    third = add(tmp_path, TRAIN[3], shared)
    arrays, _ = build([photographs[0], first, second, third])
    patches = [*arrays["x"], *arrays["held_out"]]
    assert len({patch.tobytes() for patch in patches}) == len(patches)
    plain_patches = [p for p in arrays["x"] if (p == plain[:, :32]).all()]
    assert len(plain_patches) == 1
    # What a held-out photograph shows first is no training patch.
    assert any((p == shared).all() for p in arrays["held_out"])
    assert not any((p == shared).all() for p in arrays["x"])


def test_a_photograph_in_another_size_is_left_out(photographs, build, tmp_path, capsys):
    image = read_image(tmp_path / photographs[0].file).resize((256, 192), Image.Resampling.BICUBIC)
    again = add(tmp_path, TRAIN[5], np.asarray(image))
    arrays, credits_text = build([*photographs, again])
    assert arrays["names"].tolist() == [p.name for p in photographs]
    assert f"{again.name} is {photographs[0].name} again" in capsys.readouterr().out
    assert again.name not in credits_text


def test_no_photograph_gives_more_than_the_cap(photographs, build, monkeypatch):
    whole, _ = build(photographs, "whole")
    monkeypatch.setattr(photo_patches, "CAP", 10)
    arrays, _ = build(photographs)
    assert np.bincount(arrays["photograph"]).tolist() == [10, 0, 10]
    assert {p.tobytes() for p in arrays["x"]} < {p.tobytes() for p in whole["x"]}
    # Which ones are chosen does not hang on the rest of the list.
    fewer, _ = build(photographs[1:], "fewer")
    assert {p.tobytes() for p in fewer["held_out"]} == {p.tobytes() for p in arrays["held_out"]}


def nothing_written(tmp_path):
    return not any(file.is_file() for file in (tmp_path / "out").rglob("*"))


def test_missing_photographs_are_refused_with_the_mend(photographs, build, tmp_path):
    (tmp_path / photographs[2].file).unlink()
    with pytest.raises(ValueError, match=r"`apt install nice-pictures`, or .* `dpkg-deb -x`") as e:
        build(photographs)
    assert photographs[2].file in str(e.value)
    assert "\n" not in str(e.value)
    assert nothing_written(tmp_path)


def test_other_files_of_the_same_name_are_refused(photographs, build, tmp_path):
    add(tmp_path, photographs[1].name, levels(9))
    with pytest.raises(ValueError, match=r"is not the listed .* nice-pictures 1\.2-3"):
        build(photographs)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(("chosen", "part"), [([0, 2], "held-out"), ([1], "train")])
def test_empty_parts_are_refused(photographs, build, tmp_path, chosen, part):
    with pytest.raises(ValueError, match=f"left to the part '{part}'"):
        build([photographs[i] for i in chosen])
    assert nothing_written(tmp_path)


def test_a_failed_write_leaves_the_old_set(photographs, build, tmp_path, monkeypatch):
    build(photographs)
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert len(before) == 3

    def full(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space left"):
        photo_patches.build(
            [*photographs[:2]],
            [tmp_path],
            out=tmp_path / "out" / "set.npz",
            credits_file=tmp_path / "out" / "credits.md",
            figure=tmp_path / "out" / "figures" / "sheet.png",
        )
    after = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert after == before


def test_licences_outside_the_set_are_refused(photographs):
    with pytest.raises(ValueError, match="licence GPL-2 is none of"):
        replace(photographs[0], licence="GPL-2")


def test_the_command_says_what_is_missing_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["photo_patches.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"apt install lomiri-wallpapers-16\.04") as stop:
        photo_patches.main()
    assert "\n" not in stop.value.code


def test_the_committed_credits_are_of_the_committed_list():
    listed = photo_patches.read_list(photo_patches.LIST)
    text = photo_patches.CREDITS.read_text()
    assert len({p.name for p in listed}) == len({p.sha256 for p in listed}) == len(listed)
    for p in listed:
        line = next(line for line in text.splitlines() if p.sha256 in line)
        assert f"| {p.title} | {p.author}, {p.year} | [{p.licence}](" in line
        assert f"| {p.part} |" in line
    assert text.count(" | train | ") == sum(p.part == "train" for p in listed)
