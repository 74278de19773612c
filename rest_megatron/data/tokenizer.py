"""Tokenizers from local files alone, and the model's with the chat template of the configuration."""

from pathlib import Path

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rest_megatron.config.schema import Config
from rest_megatron.data.template import read_template
from rest_megatron.errors import CheckpointError, ConfigError


def read_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, with the template of data.chat_template when that is set.

    Raises CheckpointError when its files cannot be read, ConfigError when the template cannot be used.
    """
    path = config.model.path
    tokenizer = load_tokenizer(Path(path), f"model.path={path} ({config.where('model.path')})")
    if config.data.chat_template is not None:
        _set_template(tokenizer, config.data.chat_template, config.where("data.chat_template"))
    return tokenizer


def load_tokenizer(directory: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`, a Hugging Face one or one that holds tokenizer.json alone.

    Code beside it is never run. name: how the user named the directory, for the message.
    Raises CheckpointError when it cannot be read.
    """
    fix = "  Name a Hugging Face directory, or one that holds its tokenizer.json"
    if not directory.is_dir():  # a name that is no directory would be looked up on the network's hub
        raise CheckpointError(f"{name} {'is not a directory' if directory.exists() else 'does not exist'}\n{fix}")
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    # A broken tokenizer.json raises anything up to a bare Exception.
    except Exception as error:
        raise CheckpointError(f"the tokenizer in {name} cannot be read: {error}\n{fix}") from error


def _set_template(tokenizer: PreTrainedTokenizerBase, name: str, where: str) -> None:
    tokenizer.chat_template = read_template(name, where)
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"data.chat_template={name} is not valid Jinja, line {error.lineno}: {error.message}   ({where})\n"
            "  It must hold a Jinja template"
        ) from error
    except jinja2.TemplateError:
        # It refuses this dialogue, which says nothing about those of the rows.
        return
