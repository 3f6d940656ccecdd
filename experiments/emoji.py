"""Emoji: 32x32 colour pictures of things that everybody recognises, in three styles, with credits.

The pictures come from three packages of npm, whose licences allow this. `npm pack NAME@VERSION`
gets each as one file; its checksum is compared.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
        @lobehub/fluent-emoji-3d@1.1.0
    python experiments/emoji.py FOLDER_OF_THE_FILES
    dgjax train emoji

Smileys and people are taken, since after 8,000 steps with all themes the network drew animals and
things as blobs. Variants of skin are left out. Pictures lie on white and are reduced by means of
squares of pixels. A class is a style and a theme, "flat people". A subject in all styles, with the
variants of its gender, is either in training or held out, by a hash of its code.

The arrays (`x`, `labels`, `subjects`, the same of the part held out, and the names `classes`) go to
./emoji.npz, credits and figures of the set to emoji_credits.md, a sample to figures/.
"""

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from photo_patches import contact_sheet, sizes, whole
from PIL import Image
from rich.progress import track

from dgjax.data.image_folder import is_held_out

SIDE = 32
HELD_OUT = 0.1  # of the subjects
SEED = 0
HERE = Path(__file__).parent
CREDITS, FIGURE = HERE / "emoji_credits.md", HERE / "figures" / "emoji.png"
OUT = Path("emoji.npz")
THEMES = {  # Unicode's groups, and our words
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
}
PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man and woman are drawn like the person
IGNORED = {"2640", "2642", "fe0f", "200d"}  # signs of gender, variant and joining


@dataclass(frozen=True)
class Style:
    """One set of pictures.

    Attributes:
        name: of the style.
        package: of npm, with its version.
        sha256: of the package's file.
        folder: of the pictures inside it.
        ending: of the names of the pictures, which are the codes of the characters.
        set, author, licence, source: of the pictures, as their makers give them.
    """

    name: str
    package: str
    sha256: str
    folder: str
    ending: str
    set: str
    author: str
    licence: str
    source: str

    @property
    def file(self) -> str:
        """Name of the file that `npm pack` writes."""
        return self.package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"


STYLES = (
    Style(
        "shaded",
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64/",
        ".png",
        "Noto Emoji",
        "Google",
        "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Style(
        "flat",
        "emoji-datasource-twitter@16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64/",
        ".png",
        "Twemoji",
        "Twitter and other contributors",
        "[CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)",
        "https://github.com/jdecked/twemoji",
    ),
    Style(
        "3D",
        "@lobehub/fluent-emoji-3d@1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets/",
        ".webp",
        "Fluent Emoji",
        "Microsoft",
        "[MIT](https://opensource.org/license/mit)",
        "https://github.com/microsoft/fluentui-emoji",
    ),
)
LIST = "package/emoji.json"  # in the first package: codes, names and groups of the characters


class Emoji(NamedTuple):
    """Shuffled pictures (N, 32, 32, 3), their classes (N,) and the names of their subjects (N,)."""

    x: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray


def class_names() -> list[str]:
    """Return the names of the classes in the order of their labels."""
    return [f"{style.name} {theme}" for style in STYLES for theme in THEMES.values()]


def subject(code: str) -> str:
    """Return the code of a subject without gender, so that variants stay in one part.

    Args:
        code: hexadecimal numbers of the characters, with hyphens.
    """
    parts = (PERSON.get(part, part) for part in code.lower().split("-"))
    return "-".join(part for part in parts if part not in IGNORED)


def on_white(content: bytes) -> np.ndarray:
    """Decode a picture, lay it on a white square and reduce it to (32, 32, 3) bytes."""
    image = Image.open(io.BytesIO(content), formats=("PNG", "WEBP")).convert("RGBA")
    side = max(image.size)
    white = Image.new("RGBA", (side, side), "white")
    white.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def read_package(folder: Path, style: Style) -> dict[str, bytes]:
    """Read the pictures of a package by their codes, and its list under the name "".

    Raises:
        ValueError: if the package is missing, or another one than is meant.
    """
    file = folder / style.file
    if not file.is_file():
        raise ValueError(f"there is no {style.file} in {folder}: `npm pack {style.package}` there")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != style.sha256:
        raise ValueError(
            f"{file} is not {style.package} (its sha256 is {digest}): "
            f"`npm pack {style.package}` gets that again"
        )
    contents: dict[str, bytes] = {}
    with tarfile.open(file) as archive:
        for member in archive:
            name = member.name
            if name == LIST:
                contents[""] = archive.extractfile(member).read()
            elif name.startswith(style.folder) and name.endswith(style.ending):
                code = name[len(style.folder) : -len(style.ending)]
                contents[code] = archive.extractfile(member).read()
    return contents


def draw_all(
    entries: list[dict[str, Any]], pictures: Mapping[str, Mapping[str, bytes]]
) -> dict[str, Emoji]:
    """Return the parts "train" and "held-out".

    Args:
        entries: characters, each with `unified` (its code), `short_name` and `category`.
        pictures: of each style, the content of files by code.

    Raises:
        ValueError: if a part is empty.
    """
    names, themes = class_names(), list(THEMES)
    found: dict[str, list[tuple[np.ndarray, int, str]]] = {"train": [], "held-out": []}
    seen: set[bytes] = set()
    for entry in track([e for e in entries if e["category"] in THEMES], "emoji"):
        code = entry["unified"].lower()
        part = "held-out" if is_held_out(subject(code), HELD_OUT) else "train"
        for s, style in enumerate(STYLES):
            if (content := pictures[style.name].get(code)) is None:
                continue  # newer than the set
            x = on_white(content)
            if (key := x.tobytes()) in seen:
                continue  # person, man and woman may be drawn alike
            seen.add(key)
            label = s * len(themes) + themes.index(entry["category"])
            found[part].append((x, label, entry["short_name"]))
    for part, rows in found.items():
        if not rows:
            raise ValueError(f"no picture is left to the part {part!r} of {len(names)} classes")
    return {part: shuffle(rows) for part, rows in found.items()}


def shuffle(rows: list[tuple[np.ndarray, int, str]]) -> Emoji:
    """Shuffle the pictures of one part by the seed."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    x, labels, subjects = zip(*(rows[i] for i in order), strict=True)
    return Emoji(np.stack(x), np.array(labels, np.int32), np.array(subjects))


def credits_of(parts: dict[str, Emoji]) -> str:
    """Write the credits and the numbers of the set as Markdown."""
    train, held_out = parts["train"], parts["held-out"]
    levels = train.x / 127.5 - 1
    quantiles = np.quantile(sizes(train.x), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    themes = len(THEMES)
    lines = [
        "# Emoji: credits",
        "",
        f"The pictures ({SIDE}x{SIDE} pixels) are those below, each laid on white and reduced in "
        "size; nothing else was changed.",
        "Together they may be passed on under "
        "[CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/), with these credits.",
        "",
        "| style | pictures | author | licence | package | training | held out | sha256 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {style.name} | [{style.set}]({style.source}) | {style.author} | {style.licence} | "
        f"{style.package} | {np.sum(train.labels // themes == s)} | "
        f"{np.sum(held_out.labels // themes == s)} | `{style.sha256}` |"
        for s, style in enumerate(STYLES)
    ]
    lines += [
        "",
        f"Training: {len(train.x)} pictures of {len(set(train.subjects))} characters; held out: "
        f"{len(held_out.x)} of {len(set(held_out.subjects))}.",
        f"Mean and standard deviation of the training pictures in [-1, 1]: {levels.mean():.4f}, "
        f"{levels.std():.4f}.",
        "Bytes of a training picture as a PNG: "
        + ", ".join(f"{q:.0f}" for q in quantiles)
        + " (least, 5 %, 25 %, 50 %, 75 %, 95 %, most).",
        "",
        "Another decoder of WebP may round otherwise; with this one the bytes of the arrays have "
        "the sha256",
        f"`{hashlib.sha256(train.x.tobytes()).hexdigest()}` (`x`) and",
        f"`{hashlib.sha256(held_out.x.tobytes()).hexdigest()}` (`held_out`).",
    ]
    return "\n".join(lines) + "\n"


def build(
    folder: Path, *, out: Path = OUT, credits_file: Path = CREDITS, figure: Path = FIGURE
) -> None:
    """Draw the set, and write arrays, credits and figure: all of them or none.

    Raises:
        ValueError: as `read_package` and `draw_all`.
    """
    contents = {style.name: read_package(folder, style) for style in STYLES}
    parts = draw_all(json.loads(contents[STYLES[0].name][""]), contents)
    train, held_out = parts["train"], parts["held-out"]
    text, sheet = credits_of(parts), contact_sheet(train.x)
    with whole(out) as arrays, whole(credits_file) as words, whole(figure) as picture:
        with arrays.open("wb") as stream:
            np.savez_compressed(
                stream,
                x=train.x,
                labels=train.labels,
                subjects=train.subjects,
                held_out=held_out.x,
                held_out_labels=held_out.labels,
                held_out_subjects=held_out.subjects,
                classes=np.array(class_names()),
            )
        words.write_text(text)
        sheet.save(picture, "PNG", optimize=True)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files of `npm pack` are")
    parser.add_argument("--out", type=Path, default=OUT, help="the npz file")
    arguments = parser.parse_args()
    try:
        build(arguments.folder, out=arguments.out)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
