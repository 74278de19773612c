"""Which answers an update runs."""

import pytest
import torch

from rest_megatron.actor.learning import learning
from rest_megatron.types import PolicyStreams, Trajectory

# Targets: 2, 3, 0, 1 and 2.
TRAJECTORIES = [
    Trajectory((1,), (2, 3)),
    Trajectory((1,), (2, 3, 4)),
    Trajectory((1,), (2,), (False,)),
    Trajectory((1,), (5,)),
    Trajectory((1,), (6, 7)),
]
ADVANTAGES = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 2.0, -1.0, -1.0])
WEIGHTS = torch.tensor([0.5, 0.0, 0.1, 0.2, 0.0, 0.0, 0.0, 0.3])


def streams(advantages=ADVANTAGES):
    return PolicyStreams(torch.arange(8.0), advantages, WEIGHTS)


@pytest.mark.parametrize("regularised, kept, left_out", [(False, [0, 4], 2), (True, [0, 1, 4], 0)])
def test_an_answer_is_run_whole_where_some_token_has_weight_and_advantage(regularised, kept, left_out):
    found = learning(TRAJECTORIES, streams(), regularised)
    assert found.trajectories == [TRAJECTORIES[i] for i in kept]
    places = {0: [0, 1], 1: [2, 3, 4], 4: [6, 7]}
    wanted = [place for i in kept for place in places[i]]
    assert found.places.tolist() == found.streams.old_log_probs.tolist() == wanted
    assert found.others == [t for i, t in enumerate(TRAJECTORIES) if i not in kept]
    assert sorted([*wanted, *found.other_places.tolist()]) == list(range(8))
    assert float(found.left_out) == left_out


def test_an_advantage_that_is_no_number_is_not_hidden():
    advantages = ADVANTAGES.clone()
    advantages[2] = torch.nan
    assert learning(TRAJECTORIES, streams(advantages), False).trajectories == [TRAJECTORIES[i] for i in (0, 1, 4)]


def test_no_answers_are_none():
    empty = torch.zeros(0)
    found = learning([], PolicyStreams(empty, empty, empty), False)
    assert (found.trajectories, found.places.tolist(), float(found.left_out)) == ([], [], 0)
