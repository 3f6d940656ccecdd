"""How to install the packages of an extra, from wherever dgjax was installed."""

from importlib.metadata import PackageNotFoundError, requires

__all__ = ["install_line"]


def install_line(extra: str) -> str:
    """Return the command that installs what an extra of dgjax stands for.

    It names the packages, so it works for a clone as for a release.

    Args:
        extra: name of the extra, such as "train".
    """
    try:
        needed = requires("dgjax") or []
    except PackageNotFoundError:  # run from its folder, without being installed
        needed = []
    wanted = f"extra=='{extra}'"
    found = []
    for line in needed:
        package, _, marker = line.partition(";")
        if wanted in marker.replace(" ", "").replace('"', "'"):
            found.append(f"'{package.strip()}'")
    return f"pip install {' '.join(found) or repr(f'.[{extra}]')}"
