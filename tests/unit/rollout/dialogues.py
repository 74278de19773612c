"""Of dialogues with tools: a run of one rank, a prompt's ids, a tool's message."""

from types import SimpleNamespace

from rest_megatron.distributed.watch import Watch

ALONE = SimpleNamespace(on_main=lambda function: function(), watch=Watch())


def tool(content):
    return [{"role": "tool", "content": content}]


def prompt_ids(tokenizer, text="alarm?"):
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
