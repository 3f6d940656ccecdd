"""The address of the repository for the package index, read from the clone line of README.md."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

CLONE = re.compile(r"^git clone (\S+?)(?:\.git)?$", re.MULTILINE)
RELATIVE = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Make relative links absolute, since the index shows README.md without the repository."""

    def update(self, metadata: dict) -> None:
        """Set the fields `readme` and `urls`."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        address = CLONE.search(text)[1]
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, address)}
        metadata["urls"] = {
            "Repository": address,
            "Changelog": f"{address}/blob/main/CHANGELOG.md",
        }


def absolute(text: str, address: str) -> str:
    """Return Markdown whose relative links lead to files of the repository at `address`."""

    def link(match: re.Match) -> str:
        kind = "raw" if match[1].endswith(".png") else "blob"
        return f"]({address}/{kind}/main/{match[1]})"

    return RELATIVE.sub(link, text)
