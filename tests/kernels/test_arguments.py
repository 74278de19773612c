"""What the public functions refuse, and what they say."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from rest_kernels import vocab_parallel_logprob_entropy
from rest_kernels.backend import choose_backend
from tests.kernels.oracle import BF16, F32, F64, make_logits, make_ppo
from tests.kernels.target import available_targets

INF = math.inf
LOGPROB_ENTROPY = {
    "integer logits": (TypeError, "logits are torch.int64", {"logits": torch.zeros(3, 7, dtype=torch.int64)}),
    "int32 labels": (TypeError, "labels are torch.int32", {"labels": torch.zeros(3, dtype=torch.int32)}),
    "scalar logits": (ValueError, "scalar", {"logits": torch.tensor(1.0)}),
    "label shape": (ValueError, r"\[4\].*\[3\]", {"labels": torch.zeros(4, dtype=torch.int64)}),
    "zero temperature": (ValueError, "temperature is 0", {"temperature": 0.0}),
    "negative temperature": (ValueError, "temperature is -1", {"temperature": -1.0}),
    "infinite temperature": (ValueError, "temperature is inf", {"temperature": INF}),
    "temperature too small": (ValueError, "temperature is 1e-39.*at least 1e-06", {"temperature": 1e-39}),
    "temperature of each token": (TypeError, "temperature is a Tensor", {"temperature": torch.ones(3)}),
    "temperature not a number": (ValueError, "temperature is nan", {"temperature": math.nan}),
    "vocab_size too large": (ValueError, "vocab_size is 8.*= 7 columns", {"vocab_size": 8}),
    "vocab_size zero": (ValueError, "vocab_size is 0", {"vocab_size": 0}),
    "vocab_start of another": (ValueError, "vocab_start is 3; without a tp_group", {"vocab_start": 3}),
    "unknown backend": (ValueError, "backend is 'cuda'", {"backend": "cuda"}),
}
PPO = {
    "dual clip of one": (ValueError, "clip_ratio_dual is 1.0", {"clip_ratio_dual": 1.0}),
    "dual clip nan": (ValueError, "clip_ratio_dual is nan", {"clip_ratio_dual": math.nan}),
    "negative low clip": (ValueError, "clip_ratio_low is -0.1", {"clip_ratio_low": -0.1}),
    "low clip above one": (ValueError, "clip_ratio_low is 1.5", {"clip_ratio_low": 1.5}),
    "negative high clip": (ValueError, "clip_ratio_high is -0.1", {"clip_ratio_high": -0.1}),
    "infinite high clip": (ValueError, "clip_ratio_high is inf", {"clip_ratio_high": INF}),
    "clip of each token": (TypeError, "clip_ratio_high is a Tensor", {"clip_ratio_high": torch.ones(3)}),
    "kl without reference": (ValueError, "ref_log_probs is None", {"kl_coef": 0.1}),
    "nan kl_coef": (ValueError, "kl_coef is nan", {"kl_coef": math.nan}),
    "nan entropy_coef": (ValueError, "entropy_coef is nan", {"entropy_coef": math.nan}),
    "temperature": (ValueError, "temperature is 0", {"temperature": 0.0}),
    "advantages": (ValueError, r"advantages has the shape \[1\]; labels have \[3\]", {"advantages": torch.ones(1)}),
    "integer weights": (TypeError, "loss_weights is torch.int64", {"loss_weights": torch.ones(3, dtype=torch.int64)}),
    "reference shape": (ValueError, "ref_log_probs has the shape", {"ref_log_probs": torch.ones(3, 1)}),
}
LABELS = {
    "beyond the vocabulary": (r"1 of 3 labels.*\[0, 7\).*is 7", {"labels": torch.tensor([0, 7, 1])}),
    "in the padding": (r"\[0, 5\)", {"labels": torch.tensor([0, 5, 1]), "vocab_size": 5}),
    "negative": ("is -1", {"labels": torch.tensor([0, 1, -1])}),
    "the ignored one of another call": ("is -100", {"labels": torch.tensor([0, 1, -100]), "ignore_index": 0}),
}


def plain_arguments():
    return {"logits": torch.zeros(3, 7), "labels": torch.zeros(3, dtype=torch.int64)}


@pytest.mark.parametrize("name", LOGPROB_ENTROPY)
def test_bad_arguments_are_refused(name):
    error, message, change = LOGPROB_ENTROPY[name]
    with pytest.raises(error, match=message):
        vocab_parallel_logprob_entropy(**(plain_arguments() | change))


def test_a_vocabulary_that_is_not_contiguous_is_refused(target):
    logits = target.put(torch.zeros(7, 3)).t()
    with pytest.raises(ValueError, match="last dimension.*stride 3"):
        target.logprob_entropy(logits, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("name", PPO)
def test_bad_arguments_of_the_loss_are_refused(target, name):
    error, message, change = PPO[name]
    vectors = dict.fromkeys(("old_log_probs", "advantages", "loss_weights"), torch.ones(3))
    with pytest.raises(error, match=message):
        target.ppo_loss(**(plain_arguments() | vectors | change))


@pytest.mark.parametrize("name", LABELS)
def test_a_label_outside_the_vocabulary_is_refused_where_looking_is_free(target, name):
    message, change = LABELS[name]
    if target.device == "cpu":
        with pytest.raises(ValueError, match=message):
            target.logprob_entropy(**(plain_arguments() | change))
    else:
        assert target.logprob_entropy(**(plain_arguments() | change)).log_probs.isnan().sum() == 1


def test_a_cpu_takes_torch_unless_told_otherwise():
    cpu = torch.device("cpu")
    for dtype in (BF16, F32, F64):
        assert choose_backend("auto", dtype, cpu) is choose_backend("torch", dtype, cpu)


@pytest.mark.gpu
def test_auto_on_a_gpu_takes_triton_but_for_float64(cuda_triton):
    gpu = torch.device(cuda_triton.device)
    assert choose_backend("auto", BF16, gpu) is choose_backend("triton", BF16, gpu)
    assert choose_backend("auto", F64, gpu) is choose_backend("torch", F64, gpu)


def test_triton_has_no_float64():
    with pytest.raises(TypeError, match="not float64"):
        vocab_parallel_logprob_entropy(*make_logits(3, 7, F64), backend="triton")


def test_triton_on_a_cpu_needs_its_interpreter():
    pytest.importorskip("triton")
    logits, labels = make_logits(3, 7)
    if any(target.interpreted for target in available_targets()):
        assert vocab_parallel_logprob_entropy(logits, labels, backend="triton").log_probs.shape == (3,)
    else:
        with pytest.raises(ValueError, match="backend='triton' needs CUDA tensors; these are on cpu"):
            vocab_parallel_logprob_entropy(logits, labels, backend="triton")


def test_numbers_of_any_kind_are_taken(target):
    logits, labels, vectors = make_ppo(4, 37)
    plain = {"temperature": 0.5, "clip_ratio_high": 0.25, "entropy_coef": 1.0}
    kinds = {"temperature": np.float32(0.5), "clip_ratio_high": np.float64(0.25), "entropy_coef": 1}
    losses = [target.ppo_loss(logits, labels, **vectors, **settings).loss for settings in (plain, kinds)]
    assert torch.equal(*losses)


def test_triton_is_all_that_the_kernels_import_beside_torch():
    code = "import sys; sys.modules['numpy'] = None; import rest_kernels.triton_backend"
    # Triton's interpreter itself is made of numpy.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
