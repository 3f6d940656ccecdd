"""Closed-form oracles on the device at hand, in the precision JAX is configured to use.

Each function in `CHECKS` measures one claim and says within which bounds float32 must keep it.
Expected values come from NumPy and SciPy in float64, given the very numbers the library gets.
Comments say what float32 leaves on a CPU, so how much room a bound gives, and what would fail.
"""

from collections.abc import Callable

from dgjax.check.arithmetic import convolutions, matrix_products, sums
from dgjax.check.closed_forms import (
    hutchinson_bias,
    hutchinson_variance,
    mixture_laplacian,
    mixture_log_density,
    mixture_score,
)
from dgjax.check.dynamics import (
    gaussian_likelihood,
    heun_order,
    level_set,
    reverse_sde_quadrature,
    round_trip,
)
from dgjax.check.finding import Finding
from dgjax.check.guides import (
    bound_reported,
    closed_loop,
    high_density,
    low_density,
    one_compilation,
)
from dgjax.check.shipped import SHIPPED, network_batched, network_precision
from dgjax.checkpoints.pretrained import pretrained_models

__all__ = ["CHECKS", "Finding", "run_checks"]

CHECKS: tuple[Callable[[], Finding], ...] = (
    matrix_products,
    convolutions,
    sums,
    mixture_log_density,
    mixture_score,
    mixture_laplacian,
    hutchinson_bias,
    hutchinson_variance,
    gaussian_likelihood,
    round_trip,
    heun_order,
    low_density,
    high_density,
    bound_reported,
    one_compilation,
    level_set,
    closed_loop,
    reverse_sde_quadrature,
    *((network_precision, network_batched) if SHIPPED in pretrained_models() else ()),
)


def run_checks(on_finding: Callable[[Finding], None] | None = None) -> list[Finding]:
    """All findings, each handed to `on_finding` as soon as it is there."""
    findings = []
    for check in CHECKS:
        finding = check()
        if on_finding is not None:
            on_finding(finding)
        findings.append(finding)
    return findings
