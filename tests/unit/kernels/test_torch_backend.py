"""The passes in torch, called by themselves."""

import pytest
import torch

from rest_kernels.settings import PPOSettings
from rest_kernels.shard import VocabShard
from rest_kernels.tokens import PPOInputs, Softmax, Tokens
from rest_kernels.torch_backend import ppo_rows


def test_the_policy_loss_is_refused_without_weights():
    tokens = Tokens(torch.tensor([1]), -100, loss_weights=None)
    inputs = PPOInputs(torch.zeros(1), torch.ones(1), None)
    softmax, settings = Softmax(VocabShard(0, 3, 3, None), 1.0), PPOSettings(0.2, 0.2, None, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"tokens\.loss_weights is None"):
        ppo_rows(torch.ones(1, 1, 5), tokens, softmax, inputs, settings)
