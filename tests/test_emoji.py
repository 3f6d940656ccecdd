"""The emoji set, made of packages whose every picture is known: parts, classes, refusals."""

import hashlib
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgjax.data.image_folder import is_held_out
from dgjax.data.named_datasets import load_dataset

FOLDER = Path(__file__).parent.parent / "experiments"
if not FOLDER.exists():
    pytest.skip("experiments/ is not in source distributions", allow_module_level=True)
sys.path.insert(0, str(FOLDER))  # it imports photo_patches from beside it

import emoji  # noqa: E402

CODES = [f"1f{i:03x}" for i in range(0x600, 0x640)]
HELD = [code for code in CODES if is_held_out(code, emoji.HELD_OUT)]
GROUPS = [*emoji.THEMES, "Flags"]  # the last of which is left out


def picture(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (32, 32, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    return np.kron(pixels, np.ones((2, 2, 1), np.uint8))  # so that means of squares are exact


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Packages with one picture of each code in each style, known by their seeds."""
    entries = [
        {"unified": code.upper(), "short_name": f"name {i}", "category": GROUPS[i % len(GROUPS)]}
        for i, code in enumerate(CODES)
    ]
    styles = []
    for s, style in enumerate(emoji.STYLES):
        with tarfile.open(tmp_path / style.file, "w:gz") as archive:
            for i, code in enumerate(CODES):
                stream = io.BytesIO()
                Image.fromarray(picture(100 * s + i)).save(
                    stream, "PNG" if style.ending == ".png" else "WEBP", lossless=True
                )
                put(archive, f"{style.folder}{code}{style.ending}", stream.getvalue())
            put(archive, emoji.LIST, json.dumps(entries).encode())
        digest = hashlib.sha256((tmp_path / style.file).read_bytes()).hexdigest()
        styles.append(replace(style, sha256=digest))
    monkeypatch.setattr(emoji, "STYLES", tuple(styles))
    return tmp_path


def put(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def build(folder):
    places = {"credits_file": folder / "credits.md", "figure": folder / "figures" / "sheet.png"}
    emoji.build(folder, out=folder / "set.npz", **places)


def test_each_picture_is_once_in_the_part_of_its_subject_with_its_class(folder):
    build(folder)
    parts = [load_dataset("npz", folder / "set.npz", part) for part in ("train", "held-out")]
    assert HELD
    seen = 0
    for part, data in zip(("train", "held-out"), parts, strict=True):
        found = {x.tobytes(): label for x, label in zip(data.values, data.labels, strict=True)}
        for i, code in enumerate(CODES):
            if GROUPS[i % len(GROUPS)] == "Flags" or (code in HELD) != (part == "held-out"):
                continue
            for s, style in enumerate(emoji.STYLES):
                key = picture(100 * s + i)[::2, ::2, :3].tobytes()
                theme = emoji.THEMES[GROUPS[i % len(GROUPS)]]
                assert data.classes[found[key]] == f"{style.name} {theme}"
                seen += 1
    assert seen == sum(map(len, parts)) == 3 * 43  # two of three groups of 64 codes


def test_credits_name_every_style_and_the_bytes(folder):
    build(folder)
    text = (folder / "credits.md").read_text()
    with np.load(folder / "set.npz") as arrays:
        x = arrays["x"]
    assert f"`{hashlib.sha256(x.tobytes()).hexdigest()}` (`x`)" in text
    assert f"{(x / 127.5 - 1).mean():.4f}, {(x / 127.5 - 1).std():.4f}" in text
    for style in emoji.STYLES:
        assert style.licence in text
        assert style.sha256 in text


def test_a_picture_lies_in_the_middle_of_a_white_square():
    pixels = np.zeros((64, 32, 4), np.uint8)
    pixels[:32] = (200, 100, 0, 255)  # the lower half is transparent
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    x = emoji.on_white(stream.getvalue())
    expected = np.full((32, 32, 3), 255, np.uint8)
    expected[:16, 8:24] = (200, 100, 0)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("1F468-200D-1F33E", "1F469-200D-1F33E", True),  # man and woman of one trade
        ("1F3C3", "1F3C3-200D-2640-FE0F", True),
        ("1F468-200D-1F33E", "1F468-200D-1F373", False),
        ("1F600", "1F603", False),
    ],
)
def test_variants_of_gender_are_one_subject(first, second, same):
    assert (emoji.subject(first) == emoji.subject(second)) is same


def test_another_package_and_a_missing_one_are_refused_and_nothing_is_written(folder):
    file = folder / emoji.STYLES[1].file
    with file.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(ValueError, match=r"is not emoji-datasource-twitter@16\.0\.0"):
        build(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"npm pack emoji-datasource-twitter@16\.0\.0"):
        build(folder)
    assert not {"set.npz", "credits.md"} & {file.name for file in folder.iterdir()}
