"""How old the weights are that a step's answers were drawn with."""

from types import SimpleNamespace

import pytest

from rest_megatron.observe.mismatch import version_metrics


@pytest.mark.parametrize(
    "groups, version, newest, lag", [([[4, 4], [4, 4]], 4, 4.0, 0.0), ([[5, 3], [7, 6]], 9, 7.0, 6.0)]
)
def test_the_newest_answers_version_and_how_far_the_oldest_lie_behind(groups, version, newest, lag):
    samples = [[SimpleNamespace(weight_version=v) for v in group] for group in groups]
    metrics = version_metrics(SimpleNamespace(groups=samples), version)
    assert metrics == {"rollout/weight_version": newest, "rollout/weight_lag": lag}
