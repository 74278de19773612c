"""`rest_megatron.data.tokens`: the bytes behind token ids, and the ids that end an answer."""

import json
import lzma
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rest_megatron.data.tokens import decode, stop_token_ids, token_bytes
from rest_megatron.errors import CheckpointError, ConfigError
from tests.paths import SHARED

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


@pytest.fixture(scope="module", params=["small_bpe.json", "qwen3_tokenizer.json.xz"])
def tokenizer(request):
    raw = (SHARED / "tokenizer" / request.param).read_bytes()
    text = lzma.decompress(raw) if request.param.endswith(".xz") else raw
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text.decode()))


@pytest.fixture(scope="module")
def table(tokenizer):
    return token_bytes(tokenizer)


def byte_level(vocab: dict[str, int]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def all_bytes_vocab() -> dict[str, int]:
    return {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@needs_shared
def test_decode_gives_back_the_text_of_real_answers(tokenizer, table):
    rows = json.loads((SHARED / "rlla_sft_sample.json").read_text())
    for row in rows:
        ids = tokenizer.encode(row["output"], add_special_tokens=False)
        assert decode(ids, table) == row["output"].encode()


@needs_shared
@pytest.mark.parametrize(
    "text", ["héllo 日本語 🙂", "\x00\x01\x7f\t\r\n", "a\u00a0b\u200b", "<|im_end|><think></think>"]
)
def test_decode_gives_back_any_text(tokenizer, table, text):
    assert decode(tokenizer.encode(text, add_special_tokens=False), table) == text.encode()


@needs_shared
def test_random_ids_agree_with_the_tokenizer_where_they_are_text(tokenizer, table):
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(tokenizer)) for _ in range(20)]
        expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert decode(ids, table).decode("utf-8", "replace") == expected


def test_every_byte_has_a_token():
    vocab = all_bytes_vocab()
    table = token_bytes(byte_level(vocab))
    assert sorted(table) == [bytes([byte]) for byte in range(256)]
    assert decode([], table) == b""


def test_an_answer_cut_inside_a_character_keeps_its_bytes():
    tokenizer = byte_level(all_bytes_vocab())
    ids = tokenizer.encode("é", add_special_tokens=False)
    assert decode(ids[:1], token_bytes(tokenizer)) == b"\xc3"


def test_special_and_added_tokens_are_their_own_text():
    tokenizer = byte_level(all_bytes_vocab() | {"<pad 日>": 256})
    tokenizer.add_special_tokens({"eos_token": "<|end é|>"})
    tokenizer.add_tokens(["<tool call>"])
    table = token_bytes(tokenizer)
    assert table[256:] == ["<pad 日>".encode(), "<|end é|>".encode(), b"<tool call>"]


def test_ids_beyond_the_tokenizer_are_empty():
    tokenizer = byte_level(all_bytes_vocab())
    table = token_bytes(tokenizer, vocab_size=300)
    assert len(table) == 300
    assert table[256:] == [b""] * 44


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="token id 255 .* vocab_size is 200"):
        token_bytes(byte_level(all_bytes_vocab()), vocab_size=200)


def test_a_tokenizer_without_bytes_is_refused():
    backend = Tokenizer(models.WordLevel(vocab={"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(ConfigError, match="byte-level"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize("listed, expected", [("257", [256, 257]), ("[65, 257]", [65, 256, 257]), ("null", [256])])
def test_stop_tokens_of_generation_config_are_added(tmp_path, listed, expected):
    tokenizer = byte_level(all_bytes_vocab())
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>"})
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {listed}}}')
    assert stop_token_ids(tmp_path, tokenizer) == expected


@pytest.mark.parametrize("names", [[], ["<pad>"], ["<|eot_id|>"], ["<|im_end|>", "<|eot_id|>"], ["<|eom_id|>"]])
@pytest.mark.parametrize("eos", [None, "<end>"])
def test_turn_ends_are_known_by_name_where_no_stop_token_is(tmp_path, names, eos):
    tokenizer = byte_level(all_bytes_vocab())
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    known = [256 + i for i, name in enumerate(names) if name != "<pad>"]
    if eos is not None:
        tokenizer.add_special_tokens({"eos_token": eos})
        known = [256 + len(names)]
    assert stop_token_ids(tmp_path, tokenizer) == known


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_generation_config_that_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="generation_config.json cannot be read"):
        stop_token_ids(tmp_path, byte_level(all_bytes_vocab()))


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_generation_config_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="generation_config.json .* must be an object"):
        stop_token_ids(tmp_path, byte_level(all_bytes_vocab()))


@pytest.mark.parametrize("listed", ["true", "2.0", '"<end>"', "[1, true]", "[1, [2]]", "{}", "[null]"])
def test_stop_tokens_that_are_no_ids_are_refused(tmp_path, listed):
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {listed}}}')
    with pytest.raises(CheckpointError, match="eos_token_id .*must be a token id, a list of them or null"):
        stop_token_ids(tmp_path, byte_level(all_bytes_vocab()))
