"""Train the tokenizer in `model/` on the task's text: Qwen's way of splitting, tags and turn marks as single tokens.

Run once by the authors; the result is committed. `python examples/quickstart/train_tokenizer.py`
"""

import json
import random
from pathlib import Path

from corruptions import spoil
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tool_task import draw_task, think_aloud

MODEL_DIR = Path(__file__).parent / "model"
NUM_BPE_TOKENS = 651  # all merges the text has; with the 9 added tokens a multiple of 4
TURN_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def corpus(seed: int, num_tasks: int) -> list[str]:
    """Return the text of prompts and answers, without tags and turn marks."""
    rng = random.Random(seed)
    texts = ["system\nuser\nassistant\n"] * num_tasks
    for _ in range(num_tasks):
        task = draw_task(rng)
        texts += [message["content"] for message in task.messages()]
        texts += [think_aloud(rng, task.answer.thought), task.answer.action(), spoil(rng, task, task.answer)]
    for tag in TAGS:
        texts = [text.replace(tag, "") for text in texts]
    return texts


def train(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=NUM_BPE_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in TURN_MARKS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def main() -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    train(corpus(seed=0, num_tasks=4000)).save(str(MODEL_DIR / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (MODEL_DIR / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
