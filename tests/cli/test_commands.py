"""The list of commands: help without imports, and the same words as in the commands themselves."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dgjax
from dgjax.cli import COMMANDS, main
from dgjax.training import load_config

HEAVY = ("jax", "diffrax", "flax", "orbax", "scipy", "matplotlib")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name):
    module = importlib.import_module(f"dgjax.cli.{COMMANDS[name].module}")
    assert module.command.__doc__.splitlines()[0] == COMMANDS[name].help


def test_the_readme_names_every_command():
    readme = Path(__file__).parents[2] / "README.md"
    named = re.search(r"The commands are (.*?)\. Each", readme.read_text("utf-8"), re.DOTALL)[1]
    assert sorted(re.findall(r"`(?:dgjax )?(\w+)`", named)) == sorted(COMMANDS)


@pytest.mark.parametrize("options", [["--help"], ["--version"], ["nothing"]])
def test_help_and_version_import_nothing_heavy(options):
    program = f"""
import sys
from dgjax.cli import main
sys.argv = ["dgjax", *{options}]
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
    shown = {"--help": "sample", "--version": dgjax.__version__, "nothing": ""}
    assert shown[options[0]] in done.stdout
    assert done.returncode == (2 if options == ["nothing"] else 0)


def test_what_most_use_imports_little_beyond_what_it_builds_on():
    names = ("scipy.interpolate", "scipy.stats", "orbax.checkpoint", "matplotlib", "grain")
    program = f"""
import sys
import dgjax
dgjax.sample, dgjax.likelihood, dgjax.field, dgjax.load_pretrained, dgjax.density_guidance
print([name for name in {names} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_mistyped_command_is_corrected(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dgjax", "smaple", "--num", "3"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "'smaple', did you mean 'sample'?" in capsys.readouterr().err


def test_several_values_after_one_option_are_explained(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dgjax", "sample", "--q", "0.2", "0.8"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "repeat it for more, as in --q 0.2 --q 0.8" in capsys.readouterr().err


def test_the_package_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "dgjax", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"dgjax {dgjax.__version__}\n"


def test_a_shipped_configuration_is_shown_to_copy(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dgjax", "train", "digits", "--show"])
    with pytest.raises(SystemExit, match="0"):
        main()
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert load_config("mine.toml") == load_config("digits")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]  # it trained nothing


def test_every_name_is_imported_when_it_is_used():
    for name in dgjax.__all__:
        assert getattr(dgjax, name) is not None
    assert set(dgjax.__all__) <= set(dir(dgjax))
    with pytest.raises(AttributeError, match="nothing"):
        dgjax.nothing  # noqa: B018
