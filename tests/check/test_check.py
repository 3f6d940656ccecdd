"""`dgjax check` passes in float32, and each of its rows can fail.

Tests that break something drop every compiled function before and after, since those would not
see the change.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgjax import check
from dgjax.check import closed_forms, error_bars, guides, mixture_solves, traced_checks
from dgjax.check.finding import PRECISION_FIX, judge
from dgjax.checkpoints.pretrained import pretrained_models
from dgjax.guidance.density import density_guidance
from dgjax.model.divergence import Hutchinson, gaussian, rademacher
from dgjax.model.gaussian_mixture import GaussianMixture
from dgjax.sampling.results import Info, Sampled
from dgjax.sampling.solvers import SOLVERS
from dgjax.typing import register_dataclass

NETWORK = (check.network_precision, check.network_batched)
ROUNDING = (
    check.matrix_products,
    check.convolutions,
    check.sums,
    check.mixture_log_density,
    check.mixture_score,
    check.mixture_laplacian,
)

RUN = """
import json, jax
from dgjax.check import CHECKS
assert not jax.config.jax_enable_x64
for one in CHECKS:
    print(json.dumps(one()), flush=True)
"""


def names(checks):
    return [c.__name__ for c in checks]


@pytest.fixture
def recompiled():
    """Nothing compiled before is used in the test, nor anything compiled in it afterwards."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
def test_every_claim_holds_in_float32():
    env = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    out = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, env=env, check=False
    )
    assert out.returncode == 0, out.stderr
    findings = [check.Finding(*json.loads(line)) for line in out.stdout.splitlines()]
    assert len(findings) == len(check.CHECKS)
    assert len({f.claim for f in findings}) == len(findings)
    assert [f for f in findings if not f.passed] == []
    # float32 leaves something, or this was not float32.
    assert findings[0].measured > 1e-8


@pytest.mark.skipif(check.SHIPPED not in pretrained_models(), reason="no shipped model here")
@pytest.mark.parametrize("one", NETWORK, ids=names(NETWORK))
def test_claims_of_the_shipped_model_hold(one):
    assert one in check.CHECKS
    assert one().passed


@pytest.mark.parametrize("one", ROUNDING, ids=names(ROUNDING))
def test_what_float32_leaves_is_rounding(one):
    """In float64 the same comparison comes down to float64's own rounding."""
    assert one().measured < 1e-12


@pytest.mark.slow
def test_products_of_reduced_precision_fail(float32, recompiled, monkeypatch):
    """Operands rounded as TF32 rounds them; on a CPU the precision flag does nothing."""

    def narrow(function):
        def call(*operands, **options):
            return function(*(round_array(a) for a in operands), **options)

        return call

    def round_array(a):
        return a if isinstance(a, str) else jax.lax.reduce_precision(a, 8, 10)

    monkeypatch.setattr(jnp, "einsum", narrow(jnp.einsum))
    monkeypatch.setattr(jnp, "matmul", narrow(jnp.matmul))
    whole = jax.lax.conv_general_dilated

    def convolve(x, kernel, *layout, **options):
        return whole(round_array(x), round_array(kernel), *layout, **options)

    monkeypatch.setattr(jax.lax, "conv_general_dilated", convolve)
    findings = {one: one() for one in ROUNDING}
    assert {one for one, f in findings.items() if not f.passed} == {*ROUNDING} - {check.sums}
    for one in (check.matrix_products, check.convolutions):
        assert "JAX_DEFAULT_MATMUL_PRECISION" in findings[one].fix


def test_sums_of_reduced_precision_fail(float32, recompiled, monkeypatch):
    wide = jnp.sum
    monkeypatch.setattr(jnp, "sum", lambda a: jax.lax.reduce_precision(wide(a), 8, 10))
    assert not check.sums().passed


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["gaussian", "too long"])
def test_wrong_probes_fail(probe, recompiled, monkeypatch):
    """Gaussian probes are unbiased with another variance; long ones are biased."""

    def too_long(key, x):
        return 1.05 * rademacher(key, x)

    sample = {"gaussian": gaussian, "too long": too_long}[probe]
    monkeypatch.setattr(closed_forms, "Hutchinson", partial(Hutchinson, sample=sample))
    assert check.hutchinson_bias().passed == (probe == "gaussian")
    assert not check.hutchinson_variance().passed


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_wrong_score_fails(factor, float32, recompiled, monkeypatch):
    """By a thousandth, or NaN: rows fail, and none of them raises."""
    right = GaussianMixture.pair

    def wrong(self, y, w):
        return jax.tree.map(lambda part: factor * part, right(self, y, w))

    monkeypatch.setattr(GaussianMixture, "pair", wrong)
    assert check.mixture_log_density().passed  # does not go through the field
    rows = [
        check.mixture_score,
        check.mixture_laplacian,
        check.gaussian_likelihood,
        check.low_density,
        check.high_density,
        check.level_set,
        check.reverse_sde_quadrature,
    ]
    if np.isnan(factor):
        rows += [check.hutchinson_bias, check.hutchinson_variance, check.round_trip]
    passed = [one.__name__ for one in rows if one().passed]
    assert passed == []


@pytest.mark.slow
def test_a_solver_of_another_order_fails(float32, recompiled, monkeypatch):
    heun, rk4 = SOLVERS["heun"], SOLVERS["rk4"]
    monkeypatch.setitem(SOLVERS, "heun", rk4)
    monkeypatch.setitem(SOLVERS, "rk4", heun)
    rows = [check.heun_order, check.low_density, check.level_set]
    passed = [one.__name__ for one in rows if one().passed]
    assert passed == []


@pytest.mark.slow
def test_the_published_rule_fails_at_high_q(float32, monkeypatch):
    monkeypatch.setattr(guides, "density_guidance", partial(density_guidance, bound=np.inf))
    assert not check.high_density().passed
    assert not check.bound_reported().passed


@register_dataclass
@dataclass(frozen=True)
class StaticGuide:
    """A guide whose number is part of its type."""

    q: float = field(metadata={"static": True})

    def __call__(self, drift, local):
        return drift


@pytest.mark.parametrize(("guide", "count"), [(density_guidance, 0), (StaticGuide, 4)])
def test_recompilations_are_counted(guide, count, recompiled, monkeypatch):
    def no_solve(model, x, grid, *, log_density, **options):
        info = Info(*[jnp.zeros(())] * len(Info._fields))
        return Sampled(x, log_density, info, None)

    monkeypatch.setattr(mixture_solves, "sample", no_solve)
    monkeypatch.setattr(guides, "density_guidance", guide)
    finding = check.one_compilation()
    assert finding.measured == count
    assert finding.passed == (count == 0)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["log-density", "name"])
def test_a_function_that_hides_a_fault_fails(broken, float32, recompiled, monkeypatch):
    right = traced_checks.likelihood

    def wrong(*args, **options):
        out = right(*args, **options)
        if broken == "log-density":
            return out._replace(log_density=jnp.zeros_like(out.log_density))
        return out._replace(info=out.info._replace(fault=jnp.zeros_like(out.info.fault)))

    monkeypatch.setattr(traced_checks, "likelihood", wrong)
    assert check.fitting_numbers().passed
    assert check.unfitting_numbers().measured == 3


@pytest.mark.parametrize(
    ("value", "refused", "missed"), [(0.0, 0, 10), (np.nan, 3, 10), (np.inf, 3, 10)]
)
def test_results_without_a_fault_are_counted(value, refused, missed, monkeypatch):
    """Whatever the numbers, the result is `value` with the code 0."""
    found = np.full(3, value), np.zeros(3, np.int32)
    monkeypatch.setattr(traced_checks, "_solve", lambda *numbers: found)
    assert check.fitting_numbers().measured == refused
    assert check.unfitting_numbers().measured == missed


@pytest.mark.parametrize(
    ("stated", "covered", "sized"),
    [(1.0, True, True), (0.1, False, False), (100.0, True, False), (np.inf, True, False)],
)
def test_stated_errors_of_another_size_fail(stated, covered, sized, monkeypatch):
    true = np.linspace(0.5, 1.5, 24)
    monkeypatch.setattr(error_bars, "_errors", lambda: (true, np.full(24, stated)))
    assert check.errors_covered().passed == covered
    assert check.errors_not_inflated().passed == sized


def test_the_command_warns_once_of_reduced_precision(run, monkeypatch):
    rows = {"products": 3e-4, "network": 2e-4, "other": 0.0}
    checks = [
        partial(judge, claim, found, 2e-6, fix=PRECISION_FIX) for claim, found in rows.items()
    ]
    monkeypatch.setattr("dgjax.cli.check.CHECKS", checks)
    code, _, complaints = run("check")
    assert code == 1
    assert complaints.count("warning") == 1
    assert f"warning: {PRECISION_FIX}" in complaints.splitlines()
    monkeypatch.setattr("dgjax.cli.check.CHECKS", checks[-1:])
    code, _, complaints = run("check")
    assert code == 0
    assert "warning" not in complaints


@pytest.mark.parametrize(
    ("measured", "passed"),
    [(0.5, True), (1.0, True), (1.1, False), (-0.1, False), (np.nan, False), (np.inf, False)],
)
def test_a_finding_passes_within_its_bounds(measured, passed):
    assert judge("a", measured, 1.0).passed is passed
