"""The avatar set, made of portraits and photographs that are known: parts, layers, refusals."""

import base64
import hashlib
import io
import json
import sys
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

import avatars  # noqa: E402
import photo_patches  # noqa: E402

SIDE = 8
NAMES = [style.name for style in avatars.STYLES]
COLOURS = {"train": (10, 60, 110), "held-out": (200, 150, 100)}  # of the photographs of a part


def seeds(style, part, count):
    found = (f"{style} {i}" for i in range(1000))
    held = [seed for seed in found if is_held_out(seed, avatars.HELD_OUT) == (part == "held-out")]
    return held[:count]


def portrait(seed):
    """Opaque noise whose squares of 2x2 pixels are of one colour, so that means are exact."""
    rng = np.random.default_rng(list(seed.encode()))
    pixels = rng.integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    return np.kron(pixels, np.ones((2, 2, 1), np.uint8))


def line(style, seed, pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    png = base64.b64encode(stream.getvalue()).decode()
    return json.dumps({"style": style, "seed": seed, "png": png})


def write(file, pixels=portrait):
    """Four portraits of each style for training and two held out."""
    lines = [
        line(style, seed, pixels(seed))
        for style in NAMES
        for part, count in (("train", 4), ("held-out", 2))
        for seed in seeds(style, part, count)
    ]
    file.write_text("\n".join(lines) + "\n")
    return lines


@pytest.fixture
def photographs(tmp_path):
    """A photograph of one colour for each part."""
    names = [f"{i}.png" for i in range(100)]
    entries = []
    for part, colour in COLOURS.items():
        held = part == "held-out"
        name = next(n for n in names if is_held_out(n, photo_patches.HELD_OUT) == held)
        file = tmp_path / "photographs" / name
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60), colour).save(file)
        entries.append(
            photo_patches.Photograph(
                file=name,
                title=name,
                author=f"Author of {part}",
                year=2020,
                licence="CC-BY-SA-4.0",
                package="nice-pictures",
                version="1.2-3",
                source="https://example.org/pictures",
                sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            )
        )
    return entries


def build(folder, photographs, **options):
    places = {"credits_file": folder / "credits.md", "figure": folder / "figures" / "sheet.png"}
    avatars.build(
        folder / "set.jsonl",
        photographs,
        [folder / "photographs"],
        **{"side": SIDE, "out": folder / "set.npz", **places, **options},
    )


def parts_of(folder):
    return {p: load_dataset("npz", folder / "set.npz", p) for p in ("train", "held-out")}


def test_each_portrait_is_once_in_the_part_of_its_seed_with_its_class(tmp_path, photographs):
    write(tmp_path / "set.jsonl")
    build(tmp_path, photographs)
    for part, count in (("train", 4), ("held-out", 2)):
        data = parts_of(tmp_path)[part]
        assert data.classes == tuple(NAMES)
        assert data.values.shape == (count * len(NAMES), SIDE, SIDE, 3)
        found = {x.tobytes(): label for x, label in zip(data.values, data.labels, strict=True)}
        for label, style in enumerate(NAMES):
            for seed in seeds(style, part, count):
                assert found[portrait(seed)[::2, ::2, :3].tobytes()] == label


def test_a_portrait_that_comes_again_is_left_out_of_the_other_part(tmp_path, photographs):
    lines = write(tmp_path / "set.jsonl")
    first, again = seeds(NAMES[0], "train", 1)[0], seeds(NAMES[0], "held-out", 3)[-1]
    lines.append(line(NAMES[0], again, portrait(first)))
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    build(tmp_path, photographs)
    parts = parts_of(tmp_path)
    assert [len(parts[part]) for part in ("train", "held-out")] == [4 * len(NAMES), 2 * len(NAMES)]


def test_portraits_of_a_part_have_its_photographs_behind_them(tmp_path, photographs, monkeypatch):
    def corner(seed):  # transparent, but for one square of a colour of its own
        pixels = np.zeros((2 * SIDE, 2 * SIDE, 4), np.uint8)
        pixels[:2, :2] = portrait(seed)[:2, :2]
        return pixels

    monkeypatch.setattr(avatars, "BACKGROUNDS", {"flat": 0.0, "gradient": 0.0, "photograph": 1.0})
    write(tmp_path / "set.jsonl", corner)
    build(tmp_path, photographs)
    for part, data in parts_of(tmp_path).items():
        behind = np.delete(data.values.reshape(len(data), -1, 3), 0, axis=1)
        np.testing.assert_array_equal(behind, np.broadcast_to(COLOURS[part], behind.shape))


def test_layers_are_joined_and_then_reduced():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :2] = (200, 100, 0, 255)  # opaque
    pixels[:2, 2:] = (200, 100, 0, 51)  # a fifth
    pixels[2:, :1] = (255, 255, 255, 255)  # half of a square
    behind = np.full((2, 2, 3), (100, 50, 250), np.uint8)
    behind[1] = (1, 101, 201)
    expected = [
        [(200, 100, 0), (120, 60, 200)],
        [(128, 178, 228), (1, 101, 201)],
    ]
    np.testing.assert_array_equal(avatars.compose(pixels, behind), expected)


def test_a_crop_is_two_to_six_times_as_large_as_the_picture():
    ramp = np.zeros((250, 250, 3), np.uint8)
    ramp[..., 0] = np.arange(250)  # the column
    ramp[..., 1] = np.arange(250)[:, None]  # the row
    rng = np.random.default_rng(0)
    crops = [avatars.crop(rng, [Image.fromarray(ramp)], 10).astype(int) for _ in range(300)]
    columns = np.array([(x[0, -1, 0] - x[0, 0, 0]) / 9 for x in crops])  # columns in a pixel
    rows = np.array([(x[-1, 0, 1] - x[0, 0, 1]) / 9 for x in crops])
    np.testing.assert_allclose(rows, columns, atol=0.12)  # both are rounded
    assert columns.min() == pytest.approx(2, abs=0.12)
    assert columns.max() == pytest.approx(6, abs=0.12)


def test_a_fifth_is_flat_and_a_fifth_a_gradient_whatever_else_is_drawn():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    images = [Image.fromarray(noise)]
    drawn = [avatars.background(f"dylan {i}", images, SIDE).astype(int) for i in range(1000)]
    flat = [np.ptp(x, (0, 1)).max() == 0 for x in drawn]
    smooth = [max(np.abs(np.diff(x, 2, axis)).max() for axis in (0, 1)) <= 2 for x in drawn]
    # Within four standard deviations of 1000 draws.
    assert np.mean(flat) == pytest.approx(0.2, abs=0.05)
    assert np.mean(smooth) - np.mean(flat) == pytest.approx(0.2, abs=0.05)
    again = avatars.background("dylan 999", images, SIDE)
    np.testing.assert_array_equal(again, drawn[-1])


def test_a_row_of_the_figure_has_a_style_by_rising_size(tmp_path, photographs):
    def detail(seed):  # in more or fewer rows
        pixels = portrait(seed)
        pixels[2 * (int(seed.split()[1]) % SIDE) :] = pixels[0, 0]
        return pixels

    write(tmp_path / "set.jsonl", detail)
    build(tmp_path, photographs)
    data = parts_of(tmp_path)["train"]
    sheet = np.asarray(Image.open(tmp_path / "figures" / "sheet.png"))[::2, ::2]
    step = SIDE + 2  # with a white edge
    assert sheet.shape == (len(NAMES) * step, avatars.COLUMNS * step, 3)
    for label in range(len(NAMES)):
        row = sheet[label * step :][1 : 1 + SIDE]
        shown = [row[:, i * step :][:, 1 : 1 + SIDE] for i in range(5)]
        x = data.values[data.labels == label]
        expected = x[np.argsort(photo_patches.sizes(x), kind="stable")]
        np.testing.assert_array_equal(shown[:4], expected)
        assert shown[4].min() == 255  # there are four
    assert sheet[0].min() == 255


def test_credits_name_every_style_photograph_and_the_bytes(tmp_path, photographs):
    write(tmp_path / "set.jsonl")
    build(tmp_path, photographs)
    text = (tmp_path / "credits.md").read_text()
    with np.load(tmp_path / "set.npz") as arrays:
        x, held_out = arrays["x"], arrays["held_out"]
    assert f"`{hashlib.sha256(x.tobytes()).hexdigest()}` (`x`)" in text
    assert f"`{hashlib.sha256(held_out.tobytes()).hexdigest()}` (`held_out`)" in text
    assert f"{(x / 127.5 - 1).mean():.4f}, {(x / 127.5 - 1).std():.4f}" in text
    assert "[CC-BY-SA-4.0]" in text  # of the whole
    for style in avatars.STYLES:
        row = next(row for row in text.splitlines() if row.startswith(f"| {style.name} |"))
        for words in (style.source, style.author, style.licence, style.package, "| 4 | 2 |"):
            assert words in row
    for photograph in photographs:
        assert photograph.author in text
        assert photograph.sha256 in text


def test_the_script_for_node_draws_the_styles_that_have_credits():
    text = (FOLDER / "avatars.mjs").read_text()
    options = text[text.index("function options") : text.index("function locate")]
    assert [row.split('"')[1] for row in options.splitlines() if row.startswith('    "')] == NAMES
    assert f'VERSIONS = {{ dicebear: "{avatars.VERSION}"' in text
    assert avatars.RENDERER in text


def test_a_licence_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="free for personal use is none of"):
        replace(avatars.STYLES[0], licence="free for personal use")


SEED = seeds(NAMES[0], "train", 1)[0]
SMALL = portrait(SEED)[:12, :12]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("bottts", SEED, portrait(SEED)), "line 2: style 'bottts' is none of .* its credits"),
        (line(NAMES[0], SEED, SMALL), "12x12, not a square .* multiple of 8: `node .* FILE 32`"),
        (line(NAMES[0], SEED, portrait(SEED)[:8]), "16x8, not a square"),
        (line(NAMES[0], SEED, portrait(SEED))[:-9], "line 2: not a style.*draw the file again"),
        ('{"style": "dylan", "seed": "dylan 1"}', "line 2: not a style, a seed and a PNG .*'png'"),
        ('{"style": "dylan", "seed": "dylan 1", "png": "bm8="}', "line 2: not a style, a seed and"),
        ('["dylan", "dylan 1", "bm8="]', "line 2: not a style, a seed and a PNG"),
    ],
)
def test_a_line_that_is_no_portrait_is_refused_and_nothing_is_written(
    tmp_path, photographs, bad, message
):
    lines = write(tmp_path / "set.jsonl")
    (tmp_path / "set.jsonl").write_text("\n".join([lines[0], bad, *lines[1:]]))
    with pytest.raises(ValueError, match=message):
        build(tmp_path, photographs)
    assert {file.name for file in tmp_path.iterdir()} == {"set.jsonl", "photographs"}


def test_a_style_without_portraits_and_a_part_without_photographs_are_refused(
    tmp_path, photographs
):
    lines = write(tmp_path / "set.jsonl")
    (tmp_path / "set.jsonl").write_text("\n".join(lines[:-1]))
    build(tmp_path, photographs)  # one portrait of the last style is still held out
    (tmp_path / "set.jsonl").write_text("\n".join(lines[:-2]))
    with pytest.raises(ValueError, match=f"no portrait of {NAMES[-1]} in the part 'held-out'"):
        build(tmp_path, photographs)
    with pytest.raises(ValueError, match="no photograph is left to the part 'held-out'"):
        build(tmp_path, photographs[:1])


def test_a_photograph_that_comes_again_is_left_out(tmp_path, photographs):
    _, held = photographs
    names = (f"{i}.png" for i in range(100, 200))
    name = next(n for n in names if not is_held_out(n, photo_patches.HELD_OUT))
    Image.new("RGB", (90, 70), COLOURS["held-out"]).save(tmp_path / "photographs" / name)
    content = (tmp_path / "photographs" / name).read_bytes()
    twin = replace(held, file=name, sha256=hashlib.sha256(content).hexdigest())
    kept, images = avatars.read_photographs([*photographs, twin], [tmp_path / "photographs"])
    assert kept == photographs
    assert [len(found) for found in images.values()] == [1, 1]


def test_arrays_are_not_written_where_the_figure_cannot_be(tmp_path, photographs):
    write(tmp_path / "set.jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        build(tmp_path, photographs, figure=tmp_path / "file" / "sheet.png")
    assert not {"set.npz", "credits.md"} & {file.name for file in tmp_path.iterdir()}


def test_the_script_ends_with_one_line_where_something_is_missing(
    tmp_path, photographs, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(avatars, "read_list", lambda file: photographs)
    command = ["avatars.py", "none.jsonl", "--photographs"]
    monkeypatch.setattr(sys, "argv", [*command, "photographs"])
    with pytest.raises(SystemExit, match=r"there is no none\.jsonl: `node avatars\.mjs 3000"):
        avatars.main()
    monkeypatch.setattr(sys, "argv", [*command, "elsewhere"])
    with pytest.raises(SystemExit, match="`apt install nice-pictures`"):
        avatars.main()
    monkeypatch.setattr(sys, "argv", [*command, "photographs", "--side", "0"])
    with pytest.raises(SystemExit, match="side must be at least 1, got 0"):
        avatars.main()
    assert not (tmp_path / "avatars.npz").exists()
