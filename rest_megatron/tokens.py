"""The bytes behind token ids.

Rewards and regions read the sampled tokens themselves. Text is never tokenised again: ids that come back from a
second tokenisation are not always the ids the model sampled.
"""

from collections.abc import Iterable, Sequence

from tokenizers import decoders

from rest_megatron.errors import ConfigError


def token_bytes(tokenizer, vocab_size: int | None = None) -> list[bytes]:
    """The raw bytes of every token id of a byte-level BPE tokenizer (Qwen, Llama 3, GPT-2).

    tokenizer: a Hugging Face fast tokenizer.
    vocab_size: length of the table, the model's vocabulary when that is larger than the tokenizer's; ids without
        a token map to b"". None: up to the tokenizer's last id.
    Added and special tokens map to their own text in UTF-8.
    Raises ConfigError for a tokenizer whose tokens are not bytes, or with an id outside the table.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.decoder, decoders.ByteLevel):
        raise ConfigError(
            f"{type(tokenizer).__name__} is not a byte-level BPE fast tokenizer, so its tokens have no exact bytes; "
            "use the model's own tokenizer.json (Qwen and Llama 3 ship a byte-level one)"
        )
    to_byte = _byte_alphabet()
    pieces = {}
    for text, index in backend.get_vocab(with_added_tokens=False).items():
        try:
            pieces[index] = bytes([to_byte[char] for char in text])
        except KeyError:
            pieces[index] = text.encode("utf-8")  # a special token listed in the base vocabulary
    for index, token in backend.get_added_tokens_decoder().items():
        pieces[index] = token.content.encode("utf-8")

    size = max(pieces) + 1 if vocab_size is None else vocab_size
    if max(pieces) >= size:
        raise ConfigError(
            f"the tokenizer has token id {max(pieces)} but the model's vocab_size is {size}; "
            "tokenizer and config.json must belong to the same model"
        )
    return [pieces.get(index, b"") for index in range(size)]


def decode(ids: Iterable[int], table: Sequence[bytes]) -> bytes:
    """The bytes of `ids` in a row. They need not be valid UTF-8: a model may stop inside a character."""
    return b"".join(table[index] for index in ids)


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes a byte as one printable character: itself if visible in Latin-1, else from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}
