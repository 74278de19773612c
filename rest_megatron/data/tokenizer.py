"""The model's tokenizer, from local files alone."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rest_megatron.config.schema import Config
from rest_megatron.errors import CheckpointError


def read_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model.

    Raises CheckpointError when its files cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(config.model.path, local_files_only=True)
    # A broken tokenizer.json raises anything up to a bare Exception.
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in model.path={config.model.path} cannot be read: {error}   "
            f"({config.where('model.path')})\n"
            "  A Hugging Face directory holds tokenizer.json and tokenizer_config.json beside config.json"
        ) from error
