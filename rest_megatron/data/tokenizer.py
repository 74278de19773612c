"""The model's tokenizer, from local files alone, with the chat template of the configuration."""

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rest_megatron.config.schema import Config
from rest_megatron.data.template import read_template
from rest_megatron.errors import CheckpointError, ConfigError


def read_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, with the template of data.chat_template when that is set.

    Raises CheckpointError when its files cannot be read, ConfigError when the template cannot be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, local_files_only=True)
    # A broken tokenizer.json raises anything up to a bare Exception.
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in model.path={config.model.path} cannot be read: {error}   "
            f"({config.where('model.path')})\n"
            "  A Hugging Face directory holds tokenizer.json and tokenizer_config.json beside config.json"
        ) from error
    if config.data.chat_template is not None:
        _set_template(tokenizer, config.data.chat_template, config.where("data.chat_template"))
    return tokenizer


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
