"""The tokenizer that a command over files is told of."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rest_megatron.errors import CheckpointError


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`, a Hugging Face one or one that holds tokenizer.json alone.

    Raises CheckpointError when it cannot be read.
    """
    if not directory.is_dir():  # a name that is no directory would be looked up on the network's hub
        raise CheckpointError(
            f"tokenizer={directory} is no directory\n"
            "  Name a Hugging Face directory, or one that holds its tokenizer.json"
        )
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    # A broken tokenizer.json raises anything up to a bare Exception.
    except Exception as error:
        raise CheckpointError(
            f"tokenizer={directory} cannot be read: {error}\n"
            "  Name a Hugging Face directory, or one that holds its tokenizer.json"
        ) from error
