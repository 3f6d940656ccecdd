"""`dgjax check`: compare the library with closed forms on this machine."""

import jax
import typer
from rich.progress import track

from dgjax.check import CHECKS
from dgjax.cli.options import JSON, table
from dgjax.devices.progress import console, say
from dgjax.files import as_json

__all__ = ["command"]


def command(json: JSON = False) -> None:
    """Compare the library with closed forms on the device of this machine."""
    findings = [measure() for measure in track(CHECKS, "checking", console=console, transient=True)]
    failed = [f for f in findings if not f.passed]
    device = jax.devices()[0]
    if json:
        print(as_json({"device": str(device), "findings": [f._asdict() for f in findings]}))
    else:
        table(
            f"closed forms on {device.device_kind} ({device.platform}), jax {jax.__version__}",
            ["claim", "expected", "measured", "pass"],
            [
                [f.claim, f.expected, f"{f.measured:.3g}", "yes" if f.passed else "NO"]
                for f in findings
            ],
        )
    if failed:
        names = "; ".join(f.claim for f in failed)
        say(f"{len(failed)} of {len(findings)} checks failed: {names}")
        for fix in dict.fromkeys(f.fix for f in failed if f.fix):
            say(f"warning: {fix}", warning=True)
        raise typer.Exit(1)
