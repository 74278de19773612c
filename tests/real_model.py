"""A small random Qwen3 with the real 151,936-entry vocabulary, for tests on real rows."""

import lzma
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config

from tests.paths import SHARED
from tests.tiny import NARROW

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_qwen3(directory: Path, **sizes) -> Path:
    """Write config.json and the real tokenizer to `directory`; weights come from model.random_init."""
    packed = SHARED / "tokenizer" / "qwen3_tokenizer.json.xz"
    backend = Tokenizer.from_str(lzma.decompress(packed.read_bytes()).decode("utf-8"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(directory)
    defaults = dict(vocab_size=151_936, max_position_embeddings=4096, tie_word_embeddings=True)
    Qwen3Config(**{**NARROW, **defaults, **sizes}).save_pretrained(directory)
    return directory
