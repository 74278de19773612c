"""vocab_parallel_logprob_entropy on one shard: log-prob, entropy and collision against float64."""

import math

import pytest
import torch

from tests.kernels.oracle import BF16, F16, F32, F64, assert_values, exact_values, make_logits

INF = math.inf


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_values_match_float64(target, dtype, temperature):
    logits, labels = make_logits(24, 1187, dtype)
    result = target.logprob_entropy(logits, labels, temperature=temperature, return_collision=True)
    assert result.log_probs.dtype == result.entropy.dtype == result.collision.dtype == F32
    assert_values(result, exact_values(logits, labels, temperature))
    assert (result.entropy >= 0).all() and (result.log_probs <= 0).all()


@pytest.mark.parametrize("dtype", [F64])
def test_float64_logits_give_float64_results(target, dtype):
    logits, labels = make_logits(24, 1187, dtype)
    result = target.logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    for found, exact in zip(result, exact_values(logits, labels, 0.7), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shift", [1e4, -1e4, 150.0, -150.0, 100.0, -100.0])
def test_values_do_not_depend_on_a_shift_of_the_logits(target, shift):
    logits, labels = make_logits(16, 1187)
    logits += shift
    result = target.logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert_values(result, exact_values(logits, labels, 0.7))


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_values_over_a_range_of_plus_and_minus_1e4(target, temperature):
    logits, labels = make_logits(16, 1187)
    logits *= 1e4 / logits.abs().max()
    result = target.logprob_entropy(logits, labels, temperature=temperature, return_collision=True)
    assert_values(result, exact_values(logits, labels, temperature))


@pytest.mark.parametrize("vocab", [1, 2, 5, 1024, 1187, 4096, 4097, 18992, 19072, 75968])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_any_shard_width(target, vocab, dtype):
    logits, labels = make_logits(3, vocab, dtype)
    labels[-1] = vocab - 1
    assert_values(target.logprob_entropy(logits, labels, return_collision=True), exact_values(logits, labels))


@pytest.mark.parametrize("num_tokens", [1, 2, 128, 129])
def test_any_number_of_rows(target, num_tokens):
    logits, labels = make_logits(num_tokens, 5)
    assert_values(target.logprob_entropy(logits, labels, return_collision=True), exact_values(logits, labels))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_whole_vocabulary_of_151936_columns(target, dtype):
    logits, labels = make_logits(2, 151936, dtype)
    labels[0] = 151935
    assert_values(target.logprob_entropy(logits, labels, return_collision=True), exact_values(logits, labels))


@pytest.mark.parametrize("label", [0, 7, 8, 1023, 1024, 4095, 4096, 4100, 8191, 8192, 8999])
def test_a_label_in_any_block_of_columns(target, label):
    logits, _ = make_logits(1, 9000)
    labels = torch.tensor([label])
    assert_values(target.logprob_entropy(logits, labels, return_collision=True), exact_values(logits, labels))


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("label", [0, 5000, 8999])
def test_the_largest_column_in_any_block(target, place, label):
    logits, _ = make_logits(1, 9000)
    logits[0, {"first": 2, "middle": 6000, "last": 8998}[place]] = 40.0
    labels = torch.tensor([label])
    result = target.logprob_entropy(logits, labels, temperature=2.0, return_collision=True)
    assert_values(result, exact_values(logits, labels, 2.0))


MASKS = {
    "first 1024": (1187, slice(0, 1024)),
    "first block": (5000, slice(0, 4096)),
    "first two blocks": (9000, slice(0, 8192)),
    "middle": (1187, slice(400, 600)),
    "a middle block": (9000, slice(4096, 8192)),
    "tail": (1187, slice(1000, 1187)),
    "last block": (5000, slice(4096, 5000)),
    "all but one": (1187, slice(1, 1187)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_masked_columns_hold_no_probability(target, name, dtype):
    vocab, masked = MASKS[name]
    logits, _ = make_logits(4, vocab, dtype)
    logits[:, masked] = -INF
    open_columns = torch.isfinite(logits[0]).nonzero().squeeze(-1)
    labels = open_columns[torch.arange(4) % len(open_columns)]
    result = target.logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert_values(result, exact_values(logits, labels, 0.7))


@pytest.mark.parametrize("padding", [7.0, 1e4, math.nan, -INF, INF])
@pytest.mark.parametrize("vocab_size", [1000, 1024, 1186, 1187])
def test_padded_columns_are_not_trusted(target, padding, vocab_size):
    logits, labels = make_logits(6, 1187)
    labels %= vocab_size
    logits[:, vocab_size:] = padding
    result = target.logprob_entropy(logits, labels, temperature=0.7, vocab_size=vocab_size, return_collision=True)
    assert_values(result, exact_values(logits[:, :vocab_size], labels, 0.7))


@pytest.mark.parametrize("tail", [1e-2, 1e-4, 1e-6, 1e-9, 1e-20])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_prob_and_entropy_keep_their_digits_when_one_probability_nears_one(target, tail, temperature):
    logits = torch.zeros(1, 1001)
    logits[0, 3] = temperature * math.log(1000 * (1 - tail) / tail)
    result = target.logprob_entropy(logits, torch.tensor([3]), temperature=temperature)
    # By hand, with R = 1000 e^-z: log p_y = -log(1 + R), H = log(1 + R) + z R / (1 + R).
    z = logits[0, 3].item() / temperature
    rest = 1000 * math.exp(-z)
    assert result.log_probs.item() == pytest.approx(-math.log1p(rest), rel=1e-5)
    assert result.entropy.item() == pytest.approx(math.log1p(rest) + z * rest / (1 + rest), rel=1e-5)


def test_the_collision_is_given_only_when_asked_for_and_changes_nothing(target):
    logits, labels = make_logits(8, 300)
    without = target.logprob_entropy(logits, labels)
    with_it = target.logprob_entropy(logits, labels, return_collision=True)
    assert without.collision is None and with_it.collision is not None
    assert torch.equal(without.log_probs, with_it.log_probs) and torch.equal(without.entropy, with_it.entropy)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_equal_inputs_give_equal_bits(target, dtype):
    logits, labels = make_logits(8, 5000, dtype)
    first = target.logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    second = target.logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
