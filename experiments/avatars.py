"""Avatars: 40x40 cartoon portraits in eight styles, in front of colours and photographs.

The drawings are those of DiceBear's packages of npm, whose licences allow this; avatars.mjs puts
the portraits together. The backgrounds are plain colours, gradients, and crops of the photographs
of photo_patches.toml, which Debian's packages lomiri-wallpapers-16.04 and -20.04 bring. So there is
a subject that everybody recognises, and detail between none and foliage behind it.

    npm install ...                              # as the first lines of avatars.mjs say
    node experiments/avatars.mjs 3000 avatars.jsonl
    python experiments/avatars.py avatars.jsonl  # --photographs FOLDER: unpacked by `dpkg-deb -x`

A class is a style. Portraits are held out by a hash of their seeds, and those that are equal to the
byte are kept once. Pictures held out have the photographs that photo_patches.py holds out, and
training pictures the others. Portrait and background are joined at the size of the portrait and
reduced by means of squares of pixels.

The arrays (`x`, `labels`, the same of the part held out, and the names `classes`) go to
./avatars.npz, credits and figures of the set to avatars_credits.md, a sample to figures/.
"""

import argparse
import base64
import colorsys
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from photo_patches import (
    ALIKE,
    LICENCES,
    LIST,
    Photograph,
    locate,
    read_list,
    reduce,
    sizes,
    thumbnail,
    whole,
)
from PIL import Image
from rich.progress import track

from dgjax.data.image_folder import is_held_out
from dgjax.pictures.image_files import convert_colours, read_image

SIDE = 40
HELD_OUT = 0.1  # of the portraits
SEED = 0
BACKGROUNDS = {"flat": 0.2, "gradient": 0.2, "photograph": 0.6}  # shares of the pictures
CROP = (2, 6)  # least and largest side of a crop of a photograph, in sides of a picture
COLUMNS = 16  # pictures of each style in the figure
VERSION = "9.4.3"  # of DiceBear's packages
RENDERER = "@resvg/resvg-js@2.6.2"
HERE = Path(__file__).parent
CREDITS, FIGURE = HERE / "avatars_credits.md", HERE / "figures" / "avatars.png"
OUT = Path("avatars.npz")


@dataclass(frozen=True)
class Style:
    """One style of portraits.

    Attributes:
        name: of the style, and of its package of npm after "@dicebear/".
        title, source, author, page, licence: as the package's LICENSE gives them.
    """

    name: str
    title: str
    source: str
    author: str
    page: str
    licence: str

    def __post_init__(self):
        if self.licence not in LICENCES:
            raise ValueError(f"{self.name}: licence {self.licence} is none of {list(LICENCES)}")

    @property
    def package(self) -> str:
        """Package of npm, with its version."""
        return f"@dicebear/{self.name}@{VERSION}"


FIGMA = "https://www.figma.com/community/file/"
STYLES = (
    Style(
        "adventurer",
        "Adventurer",
        FIGMA + "1184595184137881796",
        "Lisa Wischofsky",
        "https://www.instagram.com/lischi_art/",
        "CC-BY-4.0",
    ),
    Style(
        "big-smile",
        "Custom Avatar",
        FIGMA + "881358461963645496",
        "Ashley Seo",
        "http://www.ashleyseo.com/",
        "CC-BY-4.0",
    ),
    Style(
        "dylan",
        "Dylan! The Avatar Generator",
        FIGMA + "1356575240759683500",
        "Natalia Spivak",
        "https://nataspvk.tilda.ws/",
        "CC-BY-4.0",
    ),
    Style(
        "lorelei",
        "Lorelei",
        FIGMA + "1198749693280469639",
        "Lisa Wischofsky",
        "https://www.instagram.com/lischi_art/",
        "CC0-1.0",
    ),
    Style(
        "miniavs",
        "Miniavs - Free Avatar Creator",
        FIGMA + "923211396597067458",
        "Webpixels",
        "https://webpixels.io/",
        "CC-BY-4.0",
    ),
    Style(
        "open-peeps",
        "Open Peeps",
        "https://www.openpeeps.com/",
        "Pablo Stanley",
        "https://twitter.com/pablostanley",
        "CC0-1.0",
    ),
    Style(
        "pixel-art",
        "Pixel Art",
        FIGMA + "1198754108850888330",
        "DiceBear",
        "https://www.dicebear.com",
        "CC0-1.0",
    ),
    Style(
        "thumbs",
        "Thumbs",
        "https://www.dicebear.com",
        "DiceBear",
        "https://www.dicebear.com",
        "CC0-1.0",
    ),
)


class Portrait(NamedTuple):
    """A portrait (H, H, 4) with transparency, the label of its style, and its seed."""

    pixels: np.ndarray
    label: int
    seed: str


class Avatars(NamedTuple):
    """Shuffled pictures (N, SIDE, SIDE, 3) and their labels (N,)."""

    x: np.ndarray
    labels: np.ndarray


def part_of(seed: str) -> str:
    """Return "train" or "held-out" for a portrait."""
    return "held-out" if is_held_out(seed, HELD_OUT) else "train"


def read_portraits(file: Path, side: int) -> Iterator[Portrait]:
    """Yield the portraits of a file that avatars.mjs wrote, those equal to the byte once.

    Args:
        file: one JSON object a line, with `style`, `seed` and `png`.
        side: of the pictures, of which that of the portraits must be a multiple.

    Raises:
        ValueError: if the file is missing, or a line is not a portrait.
    """
    if not file.is_file():
        raise ValueError(f"there is no {file}: `node avatars.mjs 3000 {file}` draws it")
    seen: set[bytes] = set()
    with file.open("rb") as lines:
        for number, line in enumerate(track(list(lines), "portraits"), 1):
            try:
                portrait = read_line(line, side)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
            if (key := hashlib.sha256(portrait.pixels.tobytes()).digest()) not in seen:
                seen.add(key)
                yield portrait


def read_line(line: bytes, side: int) -> Portrait:
    """Read one portrait.

    Raises:
        ValueError: if it is not one, of an unknown style, or of another size.
    """
    again = "draw the file again by avatars.mjs"
    names = [style.name for style in STYLES]
    try:
        entry = json.loads(line)
        style, seed, content = (str(entry[key]) for key in ("style", "seed", "png"))
        png = io.BytesIO(base64.b64decode(content, validate=True))
        image = Image.open(png, formats=("PNG",)).convert("RGBA")
    except (KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"not a style, a seed and a PNG in base64 ({error}): {again}") from error
    if style not in names:
        raise ValueError(f"style {style!r} is none of {names}: {again}, or add its credits")
    if image.width != image.height or image.width % side:
        raise ValueError(
            f"the portrait is {image.width}x{image.height}, not a square whose side is a multiple "
            f"of {side}: `node avatars.mjs 3000 FILE {4 * side}`"
        )
    return Portrait(np.asarray(image), names.index(style), seed)


def read_photographs(
    photographs: Sequence[Photograph], roots: Sequence[Path]
) -> tuple[list[Photograph], dict[str, list[Image.Image]]]:
    """Return the photographs without duplicates, and those of each part, decoded.

    Raises:
        ValueError: as `locate`, or if a file cannot be decoded or a part is left empty.
    """
    files = [locate(photograph, roots) for photograph in photographs]  # fail before the work
    kept: list[Photograph] = []
    thumbnails: list[np.ndarray] = []
    images: dict[str, list[Image.Image]] = {"train": [], "held-out": []}
    for photograph, file in zip(track(photographs, "photographs"), files, strict=True):
        image = convert_colours(read_image(file), (SIDE, SIDE, 3))
        small = thumbnail(reduce(image))
        if any(np.sqrt(np.mean((small - other) ** 2)) < ALIKE for other in thumbnails):
            continue  # the same again, which might be in the other part
        images[photograph.part].append(image)
        kept.append(photograph)
        thumbnails.append(small)
    for part, found in images.items():
        if not found:
            raise ValueError(f"no photograph is left to the part {part!r}: list more")
    return kept, images


def colour(rng: np.random.Generator) -> np.ndarray:
    """Draw a colour (3,), neither dark nor glaring, as levels."""
    hue, saturation, value = rng.uniform((0, 0.2, 0.6), (1, 0.7, 1))
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw a linear gradient (side, side, 3) of two colours in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    place = np.linspace(-1, 1, side)
    height = np.cos(angle) * place[:, None] + np.sin(angle) * place
    fraction = ((height - height.min()) / np.ptp(height))[..., None]
    return np.rint((1 - fraction) * colour(rng) + fraction * colour(rng)).astype(np.uint8)


def crop(rng: np.random.Generator, photographs: Sequence[Image.Image], side: int) -> np.ndarray:
    """Draw a photograph and a square of it, and reduce that to (side, side, 3)."""
    image = photographs[int(rng.integers(len(photographs)))]
    low, high = (min(factor * side, *image.size) for factor in CROP)
    size = int(rng.integers(low, high + 1))
    left, top = (int(rng.integers(length - size + 1)) for length in image.size)
    box = (left, top, left + size, top + size)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX, box))


def background(seed: str, photographs: Sequence[Image.Image], side: int) -> np.ndarray:
    """Draw the background (side, side, 3) of the portrait of a seed."""
    # Seeded by the portrait itself: what else is drawn does not change it.
    digest = hashlib.sha256(seed.encode()).digest()
    rng = np.random.default_rng([SEED, int.from_bytes(digest[:8])])
    kind = rng.choice(list(BACKGROUNDS), p=list(BACKGROUNDS.values()))
    if kind == "flat":
        return np.full((side, side, 3), np.rint(colour(rng)), np.uint8)
    return gradient(rng, side) if kind == "gradient" else crop(rng, photographs, side)


def compose(pixels: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Lay a portrait (H, H, 4) over a background (side, side, 3), and reduce it to that side."""
    size, side = pixels.shape[:2], behind.shape[:2]
    scene = Image.fromarray(behind).resize(size, Image.Resampling.NEAREST).convert("RGBA")
    scene.alpha_composite(Image.fromarray(pixels))
    return np.asarray(scene.convert("RGB").resize(side, Image.Resampling.BOX))


def draw_all(
    file: Path, photographs: Mapping[str, Sequence[Image.Image]], side: int
) -> dict[str, Avatars]:
    """Return the parts "train" and "held-out".

    Args:
        file: of the portraits.
        photographs: of each part.
        side: of the pictures.

    Raises:
        ValueError: as `read_portraits`, or if a part lacks a style.
    """
    found: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "held-out": []}
    for portrait in read_portraits(file, side):
        part = part_of(portrait.seed)
        behind = background(portrait.seed, photographs[part], side)
        found[part].append((compose(portrait.pixels, behind), portrait.label))
    for part, rows in found.items():
        labels = {label for _, label in rows}
        if missing := [s.name for i, s in enumerate(STYLES) if i not in labels]:
            raise ValueError(
                f"no portrait of {', '.join(missing)} in the part {part!r}: draw more by "
                "avatars.mjs"
            )
    return {part: shuffle(rows) for part, rows in found.items()}


def shuffle(rows: Sequence[tuple[np.ndarray, int]]) -> Avatars:
    """Shuffle the pictures of one part by the seed."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    x, labels = zip(*(rows[i] for i in order), strict=True)
    return Avatars(np.stack(x), np.array(labels, np.int32))


def contact_sheet(avatars: Avatars) -> Image.Image:
    """Draw a row for each style, by rising PNG size to the right, each pixel doubled."""
    rows = []
    for label in range(len(STYLES)):
        x = avatars.x[avatars.labels == label][:COLUMNS]
        x = x[np.argsort(sizes(x), kind="stable")]
        x = np.pad(x, ((0, COLUMNS - len(x)), (1, 1), (1, 1), (0, 0)), constant_values=255)
        rows.append(np.concatenate(x, 1))
    image = Image.fromarray(np.concatenate(rows))
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def credits_of(photographs: Sequence[Photograph], parts: Mapping[str, Avatars]) -> str:
    """Write the credits and the numbers of the set as Markdown."""
    train, held_out = parts["train"], parts["held-out"]
    levels = train.x / 127.5 - 1
    quantiles = np.quantile(sizes(train.x), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    side = train.x.shape[1]
    flat, smooth, photograph = (f"{100 * share:.0f} %" for share in BACKGROUNDS.values())
    lines = [
        "# Avatars: credits",
        "",
        f"Each picture ({side}x{side} pixels) shows a portrait before a background. DiceBear put "
        "the portrait together from the drawings below; it was enlarged and cropped, and three "
        "styles (dylan, miniavs, thumbs) were given further colours.",
        f"The background is one colour ({flat} of the pictures), a gradient of two ({smooth}) or "
        f"a piece of one of the photographs below ({photograph}). Then the picture was reduced in "
        "size.",
        "Together they may be passed on under "
        f"[CC-BY-SA-4.0]({LICENCES['CC-BY-SA-4.0']}), with these credits.",
        "",
        "| style | drawings | author | licence | package | training | held out |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.name} | [{s.title}]({s.source}) | [{s.author}]({s.page}) | "
        f"[{s.licence}]({LICENCES[s.licence]}) | {s.package} | {np.sum(train.labels == i)} | "
        f"{np.sum(held_out.labels == i)} |"
        for i, s in enumerate(STYLES)
    ]
    lines += [
        "",
        "| photograph | author | licence | package | part | sha256 of the file |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.title} | {p.author}, {p.year} | [{p.licence}]({LICENCES[p.licence]}) "
        f"| [{p.package}]({p.source}) {p.version} | {p.part} | `{p.sha256}` |"
        for p in photographs
    ]
    lines += [
        "",
        f"Training: {len(train.x)} pictures; held out: {len(held_out.x)}.",
        f"Mean and standard deviation of the training pictures in [-1, 1]: {levels.mean():.4f}, "
        f"{levels.std():.4f}.",
        "Bytes of a training picture as a PNG: "
        + ", ".join(f"{q:.0f}" for q in quantiles)
        + " (least, 5 %, 25 %, 50 %, 75 %, 95 %, most).",
        "",
        f"The portraits were drawn by @dicebear/core@{VERSION} and {RENDERER}. Another renderer or "
        "JPEG decoder may round otherwise; with these the bytes of the arrays have the sha256",
        f"`{hashlib.sha256(train.x.tobytes()).hexdigest()}` (`x`) and",
        f"`{hashlib.sha256(held_out.x.tobytes()).hexdigest()}` (`held_out`).",
    ]
    return "\n".join(lines) + "\n"


def build(
    file: Path,
    photographs: Sequence[Photograph],
    roots: Sequence[Path],
    *,
    side: int = SIDE,
    out: Path = OUT,
    credits_file: Path = CREDITS,
    figure: Path = FIGURE,
) -> None:
    """Draw the set, and write arrays, credits and figure: all of them or none.

    Args:
        file: of the portraits.
        photographs: the list for the backgrounds.
        roots: folders that their packages are unpacked into.
        side: of the pictures.
        out: the file of the arrays.
        credits_file: the file of the credits.
        figure: the file of the sample.

    Raises:
        ValueError: as `read_photographs` and `draw_all`.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}")
    kept, images = read_photographs(photographs, roots)
    parts = draw_all(file, images, side)
    train, held_out = parts["train"], parts["held-out"]
    text, sheet = credits_of(kept, parts), contact_sheet(train)
    with whole(out) as arrays, whole(credits_file) as words, whole(figure) as picture:
        with arrays.open("wb") as stream:
            np.savez_compressed(
                stream,
                x=train.x,
                labels=train.labels,
                held_out=held_out.x,
                held_out_labels=held_out.labels,
                classes=np.array([style.name for style in STYLES]),
            )
        words.write_text(text)
        sheet.save(picture, "PNG", optimize=True)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="the portraits that avatars.mjs drew")
    parser.add_argument(
        "--photographs",
        nargs="+",
        type=Path,
        default=[Path("/")],
        help="where the packages of the photographs are unpacked",
    )
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    parser.add_argument("--out", type=Path, default=OUT, help="the npz file")
    arguments = parser.parse_args()
    try:
        build(
            arguments.file,
            read_list(LIST),
            arguments.photographs,
            side=arguments.side,
            out=arguments.out,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
