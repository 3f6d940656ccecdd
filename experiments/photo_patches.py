"""Photo patches: 32x32 colour patches of freely licensed photographs, with credits.

The photographs are listed, with authors, licences and checksums, in photo_patches.toml; Debian's
packages lomiri-wallpapers-16.04 and -20.04 bring them. Each is reduced four times (means of 4x4
pixels) and cut at every half patch. Patches that are equal to the byte are kept once, and of each
photograph so many at most. The parts have no photograph in common: which one is held out is
decided by a hash of its name.

    python experiments/photo_patches.py                  # the packages are installed
    python experiments/photo_patches.py /tmp/unpacked    # by `dpkg-deb -x`
    dgjax train photo-patches

The arrays (`x`, `held_out`, the photograph of each patch, `names`) go to ./photo-patches.npz,
credits and figures of the set to photo_patches_credits.md, a sample to figures/.
"""

import argparse
import hashlib
import os
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from dgjax.data.image_folder import is_held_out
from dgjax.pictures.image_files import convert_colours, read_image
from dgjax.pictures.png import encode_png

SIDE, STRIDE = 32, 16
FACTOR, SHORT_SIDE = 4, 400  # reduced less where the shorter side would fall below
CAP = 2000  # patches of one photograph, so that none outweighs the others
HELD_OUT = 0.1  # of the photographs
ALIKE = 8.0  # RMS levels between thumbnails of one photograph in two sizes
SEED = 0
LICENCES = {  # what is made of these together can be passed on under CC BY-SA 4.0
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}
SHEET = (6, 16)  # rows and columns of patches in the figure
HERE = Path(__file__).parent
LIST, CREDITS = HERE / "photo_patches.toml", HERE / "photo_patches_credits.md"
FIGURE = HERE / "figures" / "photo_patches.png"
OUT = Path("photo-patches.npz")


@dataclass(frozen=True)
class Photograph:
    """One entry of the list.

    Attributes:
        file: below the folder that the package is unpacked into.
        title, author, year, licence: as its package's copyright file gives them.
        package, version, source: of the package, and where its makers publish it.
        sha256: of the file.
    """

    file: str
    title: str
    author: str
    year: int
    licence: str
    package: str
    version: str
    source: str
    sha256: str

    def __post_init__(self):
        if self.licence not in LICENCES:
            raise ValueError(f"{self.file}: licence {self.licence} is none of {list(LICENCES)}")

    @property
    def name(self) -> str:
        """Name of the file without folders."""
        return Path(self.file).name

    @property
    def part(self) -> str:
        """ "train" or "held-out"."""
        return "held-out" if is_held_out(self.name, HELD_OUT) else "train"


class Patches(NamedTuple):
    """Shuffled patches (N, 32, 32, 3), and the index (N,) of each one's photograph in the list."""

    x: np.ndarray
    photograph: np.ndarray


def read_list(file: Path) -> list[Photograph]:
    """Read the list of photographs in a TOML file.

    Raises:
        ValueError: if a licence is not one of `LICENCES`.
    """
    values = tomllib.loads(file.read_text())
    return [
        Photograph(**entry, **values["packages"][entry["package"]])
        for entry in values["photographs"]
    ]


def locate(photograph: Photograph, roots: Sequence[Path]) -> Path:
    """Return the file of a photograph, in the first folder that has it.

    Raises:
        ValueError: if none has it, or it is another file than the list means.
    """
    package = photograph.package
    found = [root / photograph.file for root in roots if (root / photograph.file).is_file()]
    if not found:
        raise ValueError(
            f"there is no {photograph.file} in {', '.join(map(str, roots))}: "
            f"`apt install {package}`, or `apt-get download {package}`, "
            "`dpkg-deb -x` that file into a folder and name the folder here"
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != photograph.sha256:
        raise ValueError(
            f"{found[0]} is not the listed photograph (its sha256 is {digest}): "
            f"get it from {package} {photograph.version}"
        )
    return found[0]


def reduce(image: Image.Image) -> Image.Image:
    """Reduce an image by a whole factor; each pixel is the mean of a square."""
    factor = max(1, min(FACTOR, min(image.size) // SHORT_SIDE))
    width, height = (side // factor * factor for side in image.size)
    return image.reduce(factor, (0, 0, width, height))


def cut(image: Image.Image) -> np.ndarray:
    """Return all patches (N, 32, 32, 3), row by row."""
    levels = np.asarray(image)
    if min(levels.shape[:2]) < SIDE:
        return np.empty((0, SIDE, SIDE, 3), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(levels, (SIDE, SIDE), axis=(0, 1))
    windows = windows[::STRIDE, ::STRIDE].transpose(0, 1, 3, 4, 2)
    return windows.reshape(-1, SIDE, SIDE, 3)


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return (16, 16, 3): a thumbnail that does not depend on the size of the photograph."""
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), float)


def cut_all(
    photographs: Sequence[Photograph], roots: Sequence[Path]
) -> tuple[list[Photograph], dict[str, Patches]]:
    """Return the photographs without duplicates, and the patches of each part.

    Raises:
        ValueError: as `locate`, or if a file cannot be decoded or a part is left empty.
    """
    files = [locate(photograph, roots) for photograph in photographs]  # fail before the work
    kept: list[Photograph] = []
    thumbnails: list[np.ndarray] = []
    seen: set[bytes] = set()
    cuts: dict[str, list[tuple[int, np.ndarray]]] = {"train": [], "held-out": []}
    for photograph, file in zip(track(photographs, "photographs"), files, strict=True):
        image = reduce(convert_colours(read_image(file), (SIDE, SIDE, 3)))
        small = thumbnail(image)
        twins = [np.sqrt(np.mean((small - other) ** 2)) < ALIKE for other in thumbnails]
        if any(twins):
            print(f"{photograph.name} is {kept[twins.index(True)].name} again: left out")
            continue
        patches = cut(image)
        new = []
        for i, patch in enumerate(patches):
            if (key := patch.tobytes()) not in seen:
                seen.add(key)
                new.append(i)
        # Seeded by the photograph itself: what else is listed does not change the choice.
        rng = np.random.default_rng([SEED, int(photograph.sha256[:8], 16)])
        chosen = np.sort(rng.permutation(new)[:CAP]).astype(int)
        cuts[photograph.part].append((len(kept), patches[chosen]))
        kept.append(photograph)
        thumbnails.append(small)
    return kept, {part: shuffle(part, pieces) for part, pieces in cuts.items()}


def shuffle(part: str, pieces: Sequence[tuple[int, np.ndarray]]) -> Patches:
    """Shuffle the patches of one part by the seed."""
    if not sum(len(patches) for _, patches in pieces):
        raise ValueError(f"no photograph is left to the part {part!r}: list more, or larger ones")
    x = np.concatenate([patches for _, patches in pieces])
    photograph = np.repeat([i for i, _ in pieces], [len(patches) for _, patches in pieces])
    order = np.random.default_rng(SEED).permutation(len(x))
    return Patches(x[order], photograph[order].astype(np.int32))


def sizes(x: np.ndarray) -> np.ndarray:
    """Return the size (N,) of each patch as a PNG file, in bytes."""
    return np.array([len(encode_png(patch)) for patch in track(x, "PNG bytes")])


def contact_sheet(x: np.ndarray) -> Image.Image:
    """Draw random patches by rising PNG size, left to right and down, each pixel doubled."""
    rows, columns = SHEET
    chosen = np.random.default_rng(SEED).choice(len(x), rows * columns, len(x) < rows * columns)
    chosen = chosen[np.argsort(sizes(x[chosen]), kind="stable")]
    padded = np.pad(x[chosen], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    side = SIDE + 2
    sheet = padded.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    image = Image.fromarray(sheet.reshape(rows * side, columns * side, 3))
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def credits_of(photographs: Sequence[Photograph], parts: dict[str, Patches]) -> str:
    """Write the credits and the numbers of the set as Markdown."""
    train, held_out = parts["train"], parts["held-out"]
    counts = Counter(np.concatenate([part.photograph for part in parts.values()]).tolist())
    lines = [
        "# Photo patches: credits",
        "",
        f"The patches ({SIDE}x{SIDE} pixels) are cut from the photographs below, each reduced in "
        "size; nothing else was changed.",
        "Together they may be passed on under "
        f"[CC-BY-SA-4.0]({LICENCES['CC-BY-SA-4.0']}), with these credits.",
        "",
        "| photograph | author | licence | package | part | patches | sha256 of the file |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.title} | {p.author}, {p.year} | [{p.licence}]({LICENCES[p.licence]}) "
        f"| [{p.package}]({p.source}) {p.version} | {p.part} | {counts[i]} | `{p.sha256}` |"
        for i, p in enumerate(photographs)
    ]
    levels = train.x / 127.5 - 1
    quantiles = np.quantile(sizes(train.x), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    lines += [
        "",
        f"Training: {len(train.x)} patches of {len(np.unique(train.photograph))} photographs; "
        f"held out: {len(held_out.x)} of {len(np.unique(held_out.photograph))}.",
        f"Mean and standard deviation of the training patches in [-1, 1]: {levels.mean():.4f}, "
        f"{levels.std():.4f}.",
        "Bytes of a training patch as a PNG: "
        + ", ".join(f"{q:.0f}" for q in quantiles)
        + " (least, 5 %, 25 %, 50 %, 75 %, 95 %, most).",
        "",
        "Another JPEG decoder may round otherwise; with this one the bytes of the arrays have "
        "the sha256",
        f"`{hashlib.sha256(train.x.tobytes()).hexdigest()}` (`x`) and",
        f"`{hashlib.sha256(held_out.x.tobytes()).hexdigest()}` (`held_out`).",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `file` if the block ends without an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".photo-patches-") as folder:
        partial = Path(folder) / "partial"
        yield partial
        os.replace(partial, file)


def build(
    photographs: Sequence[Photograph],
    roots: Sequence[Path],
    *,
    out: Path = OUT,
    credits_file: Path = CREDITS,
    figure: Path = FIGURE,
) -> None:
    """Cut the patches, and write arrays, credits and figure: all of them or none.

    Raises:
        ValueError: as `cut_all`.
    """
    kept, parts = cut_all(photographs, roots)
    train, held_out = parts["train"], parts["held-out"]
    text, sheet = credits_of(kept, parts), contact_sheet(train.x)
    with whole(out) as arrays, whole(credits_file) as words, whole(figure) as picture:
        with arrays.open("wb") as stream:
            np.savez_compressed(
                stream,
                x=train.x,
                held_out=held_out.x,
                photograph=train.photograph,
                held_out_photograph=held_out.photograph,
                names=np.array([p.name for p in kept]),
            )
        words.write_text(text)
        sheet.save(picture, "PNG", optimize=True)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "roots", nargs="*", type=Path, default=[Path("/")], help="where packages are unpacked"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the npz file")
    arguments = parser.parse_args()
    try:
        build(read_list(LIST), arguments.roots, out=arguments.out)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
