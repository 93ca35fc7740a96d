"""The metrics of a load test, against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bench.metrics import Distribution, Slo, percentile, span, summarize
from engine.bench.stream import Result


def answered(start_s: float, *token_times_s: float, end_s: float | None = None, **fields: object) -> Result:
    end = end_s if end_s is not None else token_times_s[-1] if token_times_s else start_s
    values = {"prompt_tokens": 10, "output_tokens": len(token_times_s), "wanted_tokens": len(token_times_s), **fields}
    return Result(start_s=start_s, token_times_s=list(token_times_s), end_s=end, **values)  # type: ignore[arg-type]


FAST = answered(0.0, 1.0, 2.0, 4.0, end_s=5.0)
SLOW = answered(1.0, 4.0, 5.0, end_s=9.0)


def values(found: Distribution | None) -> tuple[float, ...]:
    """mean, p50, p90, p99"""
    assert found is not None
    return found.mean, found.p50, found.p90, found.p99


def test_times_of_requests() -> None:
    summary = summarize([FAST, SLOW], wall_s=10.0)
    assert values(summary.ttft) == pytest.approx((2.0, 2.0, 2.8, 2.98))
    assert values(summary.tpot) == pytest.approx((1.25, 1.25, 1.45, 1.495))
    assert values(summary.e2e) == pytest.approx((6.5, 6.5, 7.7, 7.97))


def test_gaps_of_all_requests_together() -> None:
    assert values(summarize([FAST, SLOW], wall_s=10.0).itl) == pytest.approx((4 / 3, 1.0, 1.8, 1.98))


def test_rates() -> None:
    summary = summarize([FAST, SLOW], wall_s=10.0)
    assert (summary.requests_per_s, summary.output_tokens_per_s, summary.total_tokens_per_s) == (0.2, 0.5, 2.5)
    assert (summary.requests, summary.completed, summary.failed, summary.cut, summary.short) == (2, 2, 0, 0, 0)


def test_failures_count_for_nothing() -> None:
    failed = answered(0.0, 0.1, 0.2, error="the connection broke", cached_tokens=4)
    summary = summarize([FAST, failed], wall_s=10.0, slo=Slo(e2e_s=100.0))
    assert (summary.requests, summary.completed, summary.failed) == (2, 1, 1)
    assert (summary.output_tokens, summary.prompt_tokens, summary.goodput, summary.cached_tokens) == (3, 10, 0.1, 0)
    assert summary.ttft is not None
    assert summary.ttft.p50 == 1.0


def test_what_was_cut_counts_as_far_as_it_came() -> None:
    cut = answered(0.0, 0.1, 0.2, cut=True)
    nothing = answered(0.0, end_s=5.0, cut=True)
    summary = summarize([FAST, cut, nothing], wall_s=10.0)
    assert (summary.completed, summary.cut, summary.requests_per_s) == (1, 2, 0.1)
    assert (summary.output_tokens, summary.prompt_tokens) == (5, 20)
    assert summary.ttft is not None
    assert summary.ttft.p50 == 1.0


def test_goodput_needs_every_limit() -> None:
    def goodput(**limits: float) -> float | None:
        return summarize([FAST, SLOW], wall_s=1.0, slo=Slo(**limits)).goodput

    assert goodput() is None
    assert goodput(ttft_s=3.0) == 2
    assert goodput(ttft_s=2.9) == 1
    assert goodput(tpot_s=1.4) == 1
    assert goodput(e2e_s=7.0) == 1
    assert goodput(ttft_s=3.0, tpot_s=1.4, e2e_s=8.0) == 1
    assert goodput(ttft_s=3.0, tpot_s=1.4, e2e_s=7.9) == 0


def test_one_token_has_no_time_per_further_token() -> None:
    summary = summarize([answered(0.0, 1.0)], wall_s=1.0, slo=Slo(tpot_s=0.1))
    assert (summary.tpot, summary.itl, summary.goodput) == (None, None, 1.0)


def test_no_token_misses_every_limit_on_the_first() -> None:
    summary = summarize([answered(0.0, end_s=1.0)], wall_s=1.0, slo=Slo(ttft_s=100.0))
    assert (summary.ttft, summary.goodput) == (None, 0.0)


def test_answers_that_stopped_early_are_counted() -> None:
    assert summarize([answered(0.0, 1.0, wanted_tokens=2), FAST], wall_s=1.0).short == 1


def test_the_span_of_a_run() -> None:
    assert span([SLOW, FAST]) == 9.0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_numpys(values: list[float], p: float) -> None:
    assert percentile(sorted(values), p) == pytest.approx(float(np.percentile(values, p)))
