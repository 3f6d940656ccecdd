"""Bad inputs of commands and Python functions, as tables of mutations, and what comes of each.

    python tests/cli/bad_inputs.py

runs all of them in one process and prints a table: how many were tried, were refused in one plain
line, ended in a traceback, hung, or were taken for good ones. `test_bad_inputs.py` runs the same.
"""

import collections
import contextlib
import copy
import functools
import inspect
import io
import json
import os
import signal
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dgjax.checkpoints import load, save
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.cli import COMMANDS, main
from dgjax.data import load_dataset, load_folder
from dgjax.importing import import_model
from dgjax.training import load_config
from dgjax.training.components import model_shapes

SECONDS = 60  # after which a case counts as hanging, on a busy machine too
NASTY = "\x1b[31m[bold]a[/]b[/nothing]\x1b]8;;http://x\x07\u202e\n\r$x$ "
LONG = "n" * 300
DEEP = 3000  # levels of nesting


class Case(NamedTuple):
    """One bad input: its group, its name, and what is done with it in a folder of its own."""

    group: str
    name: str
    act: Callable[[Path], None]


class Outcome(NamedTuple):
    """What came of a case: "clean", "traceback", "hang" or "accepted", with the message.

    `shown` is whether a command printed the message.
    """

    kind: str
    message: str
    shown: bool = False


def write_models(folder: Path) -> None:
    """Write the small model that the cases change."""
    spec = ModelSpec(
        (4, 4, 1),
        {"kind": "mlp", "width": 8, "depth": 1, "num_classes": 3},
        {"kind": "edm"},
        {"kind": "preconditioned", "sigma_data": 0.5},
        0.02,
        80.0,
    )
    save(folder / "model", build(spec), Meta(spec, "npz", (-1.0, 1.0), "none", 3))
    levels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    np.savez(folder / "good.npz", x=levels, labels=np.arange(5) % 3)
    Image.fromarray(levels[0, ..., 0]).save(folder / "good.png")


# Changes of a checkpoint's config.json

WRONG: dict[str, Any] = {
    "null": None,
    "true": True,
    "text": "text",
    "empty": "",
    "nasty": NASTY,
    "list": [],
    "lists": [[1], [2]],
    "table": {},
    "kind": {"kind": "nothing"},
    "negative": -1,
    "zero": 0,
    "half": 0.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "huge": 10**7,
    "absurd": 10**30,
    "digits": "9" * 5000,
    "deep": functools.reduce(lambda inside, _: [inside], range(300), 1),
}
# What is no mistake there, or a harmless one.
HARMLESS = {
    "dataset": {"text", "empty", "nasty", "digits"},
    "licence": {"text", "empty", "nasty", "digits"},
    "source": {"text", "empty", "nasty", "digits"},
    "version": {"text", "empty", "nasty", "digits"},
    "steps": {"zero", "huge", "absurd"},
    "held_out": {"zero", "half"},
    "labels": {"list"},
    "model.network.num_classes": {"null"},
    "model.t_min": {"half"},
    "model.t_max": {"huge", "half", "absurd"},
    "model.clock": {"table"},
    "model.parametrization.sigma_data": {"half", "huge", "absurd"},
    "data_range.0": {"negative", "zero", "half"},
    "sha256": {"table", "kind"},
}
PLACES = [
    "format", "model", "model.shape", "model.shape.0", "model.network", "model.network.kind",
    "model.network.width", "model.network.depth", "model.network.num_classes", "model.path",
    "model.path.kind", "model.parametrization", "model.parametrization.kind",
    "model.parametrization.sigma_data", "model.t_min", "model.t_max", "model.clock", "dataset",
    "data_range", "data_range.0", "licence", "steps", "version", "held_out", "source",
    "autoencoder", "autoencoder.kind", "labels", "sha256", "sha256.weights.safetensors",
    "model.unknown", "unknown",
]  # fmt: skip


def changed(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a copy of a config with another value at a dotted place."""
    made = copy.deepcopy(config)
    inside, keys = made, place.split(".", 1 if place.startswith("sha256") else -1)
    for key in keys[:-1]:
        inside = inside[key]
    inside[int(keys[-1]) if isinstance(inside, list) else keys[-1]] = value
    return made


def write_checkpoint(folder: Path, text: str) -> Path:
    """Write a checkpoint with the weights of the good one and another config.json."""
    made = folder / "changed"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text(text)
    weights = made / "weights.safetensors"
    if not weights.exists():
        weights.write_bytes((folder / "model" / weights.name).read_bytes())
    return made


def configs() -> Iterator[Case]:
    """Checkpoints whose config.json has one wrong value, or is no JSON at all."""

    def read(folder: Path, place: str, value: Any) -> None:
        config = json.loads((folder / "model" / "config.json").read_text())
        load(write_checkpoint(folder, json.dumps(changed(config, place, value))))

    for place in PLACES:
        for name, value in WRONG.items():
            if name not in HARMLESS.get(place, ()):
                act = functools.partial(read, place=place, value=value)
                yield Case("config.json", f"{place}={name}", act)
    texts = {
        "empty": "",
        "cut": '{"format": "dgjax-che',
        "list": "[]",
        "number": "1",
        "deep": "[" * DEEP + "]" * DEEP,
        "deep table": '{"a":' * DEEP + "1" + "}" * DEEP,
        "bytes": "\x00\x01",
        "twice": "{}{}",
        "future": '{"format": "dgjax-checkpoint-99"}',
    }
    for name, text in texts.items():
        yield Case(
            "config.json",
            name,
            lambda folder, text=text: load(write_checkpoint(folder, text)) and None,
        )


# Names of models and files

NAMES = {
    "empty": "",
    "missing": "./nothing",
    "long": LONG,
    "long path": f"./{LONG}/x",
    "nasty": NASTY,
    "nasty path": f"./{NASTY}",
    "null": "a\0b",
    "device": "/dev/null",
    "file": "good.png",
    "code": "nothing.py:make",
    "code long": f"{LONG}.py:make",
    "dots": "..",
    "surrogate": "a\udcffb",
}


def names() -> Iterator[Case]:
    """Wrong names of models, files and folders, for every command that takes one."""
    for name, text in NAMES.items():
        for words in (
            ["sample", "--model", text],
            ["edit", "good.png", "--model", text],
            ["explore", "--model", text],
            ["likelihood", "good.npz", "--model", text],
            ["align", "--model", text],
            ["evaluate", "--model", text],
            ["sample", "--model", "./model", "--guidance", "2", "--guidance-model", text],
            ["evaluate", "--model", "./model", "--samples", text],
            ["evaluate", "--model", "./model", "--data", text],
            ["edit", text, "--model", "./model"],
            ["likelihood", text, "--model", "./model"],
            ["train", text],
            ["import", text, "out"],
            ["sample", "--model", "./model", "--class", text],
        ):
            if "likelihood" in words and text in ("good.png", "", ".."):
                continue  # a good input, and folders, of which every image is measured
            if words[0] == "edit" and words[1] == text == "good.png":
                continue
            if "--samples" in words and text in ("..", "good.png"):
                continue
            yield Case(
                "names", f"{' '.join(w for w in words if w != text)} {name}", _command(words)
            )
        yield Case("names", f"load {name}", lambda folder, text=text: load(text) and None)
        yield Case(
            "names", f"load_config {name}", lambda folder, text=text: load_config(text) and None
        )
        yield Case(
            "names", f"import_model {name}", lambda folder, text=text: import_model(text) and None
        )


def _command(words: list[str]) -> Callable[[Path], None]:
    return lambda folder: run_command(words)


# Values of options, by the annotations of the commands

BAD_VALUES: dict[Any, list[str]] = {
    int: ["-1", "1.5", "x", "", "1e3", str(10**11), str(2**70), "9" * 5000, NASTY],
    float: ["nan", "x", "", NASTY, "9" * 400],
    str: ["", "nothing", NASTY, LONG],
}
FIRST = {
    "edit": ["good.png"],
    "likelihood": ["good.npz"],
    "train": ["fashion-mnist"],
    "import": ["model", "out"],
    "distil": ["./model", "--out", "distilled"],
}
# Options whose bad values other groups have, or of which every value is a good one.
NOT_HERE = {"model", "guidance_model", "class_", "data", "licence"}


def options() -> Iterator[Case]:
    """Each option of each command with values that it cannot have."""
    for command in COMMANDS:
        function = import_module(f"dgjax.cli.{COMMANDS[command].module}").command
        for name, parameter in inspect.signature(function).parameters.items():
            kinds = [k for k in _kinds(parameter.annotation) if k in BAD_VALUES]
            if name in NOT_HERE or not kinds or parameter.default is inspect.Parameter.empty:
                continue
            flag = f"--{name.replace('_', '-')}"
            without = ("train", "import", "check", "distil")
            model = [] if command in without else ["--model", "./model"]
            for i, value in enumerate(BAD_VALUES[kinds[0]]):
                count = 2 if "tuple" in str(parameter.annotation) else 1
                words = [command, *FIRST.get(command, []), *model, flag, *[value] * count]
                yield Case("options", f"{command} {flag} {i}", _command(words))


def _kinds(annotation: Any) -> list[Any]:
    if annotation in BAD_VALUES or not typing.get_args(annotation):
        return [annotation]
    return [kind for one in typing.get_args(annotation) for kind in _kinds(one)]


# Files of data


def data_files() -> dict[str, Callable[[Path], Any]]:
    """Return, by name, what writes a bad file of samples to a path."""
    rng = np.random.default_rng(0)
    good = rng.normal(size=(5, 4, 4, 1)).astype(np.float32)

    def broken(value):
        x = good.astype(np.float64)
        x[3, 1, 2] = value
        return x

    arrays = {
        "nan": broken(np.nan),
        "inf": broken(np.inf),
        "1e300": broken(1e300),
        "constant": np.full_like(good, 0.25),
        "shape": good[:, :3],
        "empty": good[:0],
        "scalar": np.float32(1),
        "int64": np.ones((5, 4, 4, 1), np.int64),
        "bool": np.ones((5, 4, 4, 1), bool),
        "text": np.array(["a"] * 5),
        "complex": good.astype(complex),
        "objects": np.array([{}], object),
    }
    writers = {k: lambda file, x=x: np.savez(file, x=x) for k, x in arrays.items()}
    writers |= {
        "no x": lambda file: np.savez(file, y=good),
        "no zip": lambda file: file.write_bytes(b"no zip file"),
        "no bytes": lambda file: file.write_bytes(b""),
        "cut": lambda file: (np.savez(file, x=good), os.truncate(file, file.stat().st_size // 2)),
        "a folder": lambda file: file.mkdir(),
        "labels": lambda file: np.savez(file, x=good, labels=np.zeros(4, int)),
        "float labels": lambda file: np.savez(file, x=good, labels=np.zeros(5)),
    }
    return writers


def pictures() -> dict[str, Callable[[Path], Any]]:
    """Return, by name, what writes a file that is no picture of the model's size to a path."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    made = io.BytesIO()
    Image.new("L", (4, 4)).save(made, "PNG")
    png = made.getvalue()

    def grey(file, size, mode="L", kind="PNG"):
        Image.new(mode, size).save(file, kind)

    return {
        "size": lambda file: grey(file, (5, 4)),
        "32 bits": lambda file: grey(file, (4, 4), "F", "TIFF"),
        "eps": lambda file: file.write_bytes(eps),
        "pcx": lambda file: grey(file, (4, 4), kind="PCX"),
        "ico": lambda file: grey(file, (4, 4), kind="ICO"),
        "empty": lambda file: file.write_bytes(b""),
        "text": lambda file: file.write_text("no picture"),
        "cut": lambda file: file.write_bytes(png[:40]),
        "bomb": lambda file: file.write_bytes(png[:16] + b"\x00\x01\x00\x00" * 2 + png[24:]),
        "a folder": lambda file: file.mkdir(),
    }


def data() -> Iterator[Case]:
    """Bad files of arrays and pictures, for what reads them."""

    def words(folder, write, name, command):
        write(folder / name)
        run_command([word.replace("FILE", name) for word in command])

    for name, write in data_files().items():
        for command in (
            ["likelihood", "FILE", "--model", "./model"],
            ["evaluate", "--model", "./model", "--data", "FILE"],
            ["evaluate", "--model", "./model", "--samples", "FILE"],
        ):
            # The model takes pictures, so labels do not matter to it, and levels do.
            if "labels" in name and "--data" not in command:
                continue
            if name == "constant" and "--data" not in command:
                continue
            act = functools.partial(words, write=write, name="bad.npz", command=command)
            yield Case("data", f"{' '.join(command[:1] + command[-2:])} {name}", act)

        def dataset(folder, write=write):
            write(folder / "bad.npz")
            load_dataset("npz", folder / "bad.npz")

        if name != "shape":
            yield Case("data", f"load_dataset {name}", dataset)
    for name, write in pictures().items():
        for command in (
            ["likelihood", "FILE", "--model", "./model"],
            ["edit", "FILE", "--model", "./model"],
        ):
            if command[0] == "edit" and name == "size":
                continue
            act = functools.partial(words, write=write, name="bad.png", command=command)
            yield Case("data", f"{command[0]} {name}", act)

        def images(folder, write=write):
            (folder / "images").mkdir()
            write(folder / "images" / "bad.png")
            load_folder(folder / "images", (4, 4, 1))

        if name != "size":
            yield Case("data", f"load_folder {name}", images)


# Configurations of training

TOML = """
steps = 2
batch = 2
[model]
shape = [4, 4, 1]
network = {kind = "mlp", width = 8, depth = 1}
path = {kind = "edm"}
parametrization = {kind = "preconditioned", sigma_data = 0.5}
t_min = 0.02
t_max = 80.0
[data]
dataset = "npz"
sigma_data = 0.5
path = "good.npz"
"""
LINES = [line for line in TOML.splitlines() if " = " in line]
TOML_VALUES = ["true", '"text"', "[]", "{}", "-1", "nan", "inf", str(10**18), "1979-05-27"]
TOML_VALUES += ["[" * 2000 + "]" * 2000, '"\\u001b[31m"']

# What only the run itself can judge: files, names of data, times of a path.
LATER = {
    *((key, value) for key in ("path", "dataset") for value in ('"text"', '"\\u001b[31m"')),
    *((key, value) for key in ("t_min", "t_max") for value in ("-1", str(10**18))),
    ("sigma_data", str(10**18)),
}

# Numbers that training cannot use, by their section; "" is the top of the file.
ODD = {
    "": [
        "batch = 100000000000", "steps = 1e3", "ema_widths = [0]", "ema_widths = [0.5]",
        "ema_widths = [1e-300]", "ema_widths = [0.1, 0.1]", "ema_snapshots = 1000000000000",
        "label_dropout = 2", "label_dropout = 0.5", "seed = 4294967296", "init_from = 3",
    ],
    "optimiser": [
        "learning_rate = 0", "learning_rate = -1", "learning_rate = nan", "learning_rate = 1e300",
        "learning_rate = 1e-300", 'learning_rate = "1e-3"', "learning_rate = true", "clip = 0",
        "clip = 1e-300", "warmup = -1", "warmup = 1.5", "beta2 = 1", 'schedule = "linear"',
        "momentum = 0.9",
    ],
    "noise_distribution": [
        'kind = "lognormal"\nstd = 0', 'kind = "lognormal"\nstd = 1e30',
        'kind = "lognormal"\nstd = 1e-30', 'kind = "lognormal"\nmean = 1e30',
        'kind = "lognormal"\nmean = -100', 'kind = "lognormal"\nlow = 0',
        'kind = "lognormal"\nlow = 5\nhigh = 1', 'kind = "lognormal"\nhigh = 1e35',
        'kind = "lognormal"\nuniform = 1', 'kind = "uniform_logsnr"\nlow = 1\nhigh = 1', "low = 1",
    ],
    "importance_sampling": [
        "bins = 1", "bins = 100000000000", "memory = 0", "floor = 2", "patience = inf", "x = 1",
    ],
    "loss": ['kind = "sigmoid"\nbias = 1e300', 'kind = "edm"\nsigma_data = 0', "bias = 1"],
    "execution": [
        "threads = 0", "threads = 100000000000", "ahead = 1000000000000", "accumulate = 0",
        'precision = "float16"', 'parameters = "split"',
    ],
    "records": ["save_every = 0", "keep = -1", "keep_every = 3", "log_every = 0"],
    "model.clock": ["rate = 0\noffset = 0", "rate = 1", "rate = 1e300\noffset = 0"],
}  # fmt: skip
OF_NETWORK = [
    "channels = []", "channels = [0]", "channels = [7]", "channels = [-8]", "channels = [100]",
    "channels = 8", "channels = [8.0]", "channels = [10000000]", "blocks = -1", "blocks = 1001",
    "embedding = -1", "embedding = 0", "embedding = 8.5", "num_classes = 0", "num_classes = -1",
    "num_classes = 2.5", "frequencies = [1e30]", "frequencies = 4.0", "dropout = 1.0",
    "dropout = -1.0", "num_augmentations = 5", "heads = 4",
]  # fmt: skip
INSTEAD = {  # of lines of the configuration
    "t_min": ["0", "90", "80.0", "1e-30"],
    "t_max": ["0", "0.01", "1e300"],
    "shape": ["[]", "[0]", "[-8, 8, 1]", "[8.0, 8, 1]", "[100000, 100000, 3]", "8"],
    "sigma_data": ["0", "1e300", "1e-300", '"x"'],
    "path": ['{kind = "edm", rho = 0}', '{kind = "edm", rho = 1e300}', '{kind = "rectified_flow"}',
             '{kind = "discrete_time"}', '{kind = "discrete_time", alphas_cumprod = []}'],
    "parametrization": ['{kind = "preconditioned", sigma_data = 0}',
                        '{kind = "preconditioned", sigma_data = 1e300}',
                        '{kind = "noise", sigma_data = 1}'],
}  # fmt: skip


def numbers() -> Iterator[Case]:
    """Training configurations with a number that is extreme, or of the wrong place."""

    def read(folder, text):
        (folder / "bad.toml").write_text(text)
        model_shapes(load_config("./bad.toml"))

    for section, entries in ODD.items():
        for entry in entries:
            first = entry.split(" = ")[0]
            kept = "\n".join(line for line in TOML.splitlines() if not line.startswith(f"{first} "))
            text = f"{kept}\n[{section}]\n{entry}\n" if section else f"{entry}\n{kept}"
            yield Case("numbers", f"{section}: {entry}", functools.partial(read, text=text))
    for entry in OF_NETWORK:
        network = f'network = {{kind = "unet", {entry}}}'
        text = TOML.replace(next(line for line in LINES if line.startswith("network")), network)
        yield Case("numbers", f"network: {entry}", functools.partial(read, text=text))
    for key, values in INSTEAD.items():
        line = next(line for line in LINES if line.startswith(f"{key} "))
        for value in values:
            text = TOML.replace(line, f"{key} = {value}", 1)
            yield Case("numbers", f"{key} = {value}", functools.partial(read, text=text))


def toml() -> Iterator[Case]:
    """Training configurations in which one value is wrong, or that are no TOML."""

    def read(folder, text):
        (folder / "bad.toml").write_text(text)
        load_config("./bad.toml")

    for number, line in enumerate(LINES):
        key = line.split(" = ")[0]
        for i, value in enumerate(TOML_VALUES):
            if (key, value) in LATER:
                continue
            text = TOML.replace(line, f"{key} = {value}")
            yield Case("TOML", f"{number} {key} {i}", functools.partial(read, text=text))
    for name, text in {
        "no TOML": "a = ",
        "binary": "\x00",
        "twice": "a = 1\na = 2",
        "unknown": TOML + "x = 1",
    }.items():
        yield Case("TOML", name, functools.partial(read, text=text))


# Folders of models of other libraries


def foreign() -> Iterator[Case]:
    """Folders that `dgjax import` cannot read."""
    weights = "diffusion_pytorch_model.safetensors"
    unet = {"_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1}
    network = json.dumps(unet).encode()
    files = {
        "nothing": {},
        "text": {"readme.txt": b"text"},
        "config cut": {"config.json": b'{"_class'},
        "config list": {"config.json": b"[]"},
        "config deep": {"config.json": b"[" * DEEP + b"]" * DEEP},
        "config bytes": {"config.json": b"\xff\xfe\x00"},
        "unknown class": {"config.json": b'{"_class_name": "Nothing"}'},
        "class number": {"config.json": b'{"_class_name": 3}'},
        "nasty class": {"config.json": json.dumps({"_class_name": NASTY}).encode()},
        "no weights": {"config.json": network},
        "empty weights": {"config.json": network, weights: b""},
        "weights text": {"config.json": network, weights: b"x" * 100},
        "header": {"config.json": network, weights: (2**62).to_bytes(8, "little") + b"{}"},
        "pickle": {"model.pkl": b"cos\nsystem\n(S'true'\ntR."},
        "index": {"model_index.json": b'{"_class_name": "DDPMPipeline"}'},
        "index list": {"model_index.json": b"[1]"},
        "card": {"README.md": b"---" + b"\n" * 60000, "config.json": network},
        "card licence": {"README.md": b"---\nlicense: " + b" " * 60000, "config.json": b"{}"},
    }

    def act(folder, contents, command):
        made = folder / "foreign"
        made.mkdir()
        for name, content in contents.items():
            (made / name).write_bytes(content)
        run_command(["import", "foreign", "out"]) if command else import_model(made)

    for name, contents in files.items():
        for command in (True, False):
            what = "command" if command else "import_model"
            yield Case(
                "import",
                f"{what} {name}",
                functools.partial(act, contents=contents, command=command),
            )


def cases() -> list[Case]:
    """Return all cases."""
    groups = (configs, names, options, data, toml, numbers, foreign)
    return [case for group in groups for case in group()]


CASES = cases()

# Running a case


class Refused(Exception):
    """A command refused its input with this message."""


class TimeOut(BaseException):
    """A case took too long."""


def run_command(words: list[str]) -> None:
    """Run `dgjax WORDS` in this process; raise `Refused` if it ends with an exit status."""
    errors, before = io.StringIO(), sys.argv
    sys.argv = ["dgjax", *words]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as stop:
        if stop.code:
            raise Refused(errors.getvalue()) from None
    finally:
        sys.argv = before


def run_case(case: Case, folder: Path) -> Outcome:
    """Run a case with `folder`, which has the good inputs, as the working folder."""

    def stop(*_):
        raise TimeOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    try:
        with contextlib.chdir(folder):
            case.act(folder)
    except (ValueError, Refused) as error:
        return Outcome("clean", str(error), isinstance(error, Refused))
    except TimeOut:
        return Outcome("hang", f"{SECONDS} s")
    except Exception as error:
        return Outcome("traceback", f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return Outcome("accepted", "")


def faults(outcome: Outcome) -> list[str]:
    """Return what is wrong with the message of a refusal."""
    message, found = outcome.message, []
    if "Traceback" in message:
        found.append("traceback")
    if outcome.shown and not all(c.isprintable() or c == "\n" for c in message):
        found.append("control characters")
    if len(message.strip()) < 15:
        found.append("says nothing")
    if len(message) > 4000:
        found.append("too long")
    return found


def show(wanted: str = "") -> None:
    """Run all cases and print the table, and whatever was not clean."""
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        base.mkdir()
        write_models(base)
        for case in CASES:
            if wanted not in f"{case.group} {case.name}":
                continue
            with tempfile.TemporaryDirectory() as own:
                folder = link_inputs(base, Path(own))
                begin = time.monotonic()
                outcome = run_case(case, folder)
                took = time.monotonic() - begin
            table[case.group]["tried"] += 1
            table[case.group][outcome.kind] += 1
            bad = outcome.kind != "clean" or faults(outcome)
            if bad or took > 1 or wanted:
                print(
                    outcome.kind,
                    f"{took:.1f}s",
                    case.group,
                    case.name,
                    repr(outcome.message[-300:]),
                    *faults(outcome),
                )
    columns = ["tried", "clean", "traceback", "hang", "accepted"]
    rows = [*table.items(), ("all", sum(table.values(), collections.Counter()))]
    print(f"{'':12}", *(f"{c:>10}" for c in columns))
    for group, counts in rows:
        print(f"{group:12}", *(f"{counts[c]:>10}" for c in columns))
    print(f"{time.monotonic() - start:.0f} s")


def link_inputs(base: Path, folder: Path) -> Path:
    """Make the good inputs available in an empty folder."""
    for path in base.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


if __name__ == "__main__":
    show(*sys.argv[1:])
