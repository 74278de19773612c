"""Secrets out of everything that is shown."""

import pytest

from rest_megatron.config import Config, redact, to_dict


@pytest.mark.parametrize(
    "value, shown",
    [
        ({"password": "x1"}, {"password": "***"}),
        ({"a": {"API_KEY": "x1", "b": "y"}}, {"a": {"API_KEY": "***", "b": "y"}}),
        ({"secrets": {"a": ["x1", 2]}}, {"secrets": {"a": ["***", "***"]}}),
        ({"wandb_token": "x1", "token": None, "password": ""}, {"wandb_token": "***", "token": None, "password": ""}),
        ({"url": "https://me:x1@host/p"}, {"url": "https://***@host/p"}),
        (["postgres://me:x1@odd@host"], ["postgres://***@host"]),
        ({"max_new_tokens": 5, "tokens": True}, {"max_new_tokens": 5, "tokens": True}),
        ({"password": 5, "key": 5, "secret": True}, {"password": "***", "key": 5, "secret": True}),
        ({"moe_token_dispatcher_type": "alltoall"}, {"moe_token_dispatcher_type": "alltoall"}),
    ],
)
def test_secrets_are_hidden_and_numbers_are_not(value, shown):
    assert redact(value) == shown


def test_our_own_defaults_lose_nothing_to_redaction():
    plain = to_dict(Config())
    plain["optim"]["betas"] = list(plain["optim"]["betas"])
    assert redact(plain) == plain
