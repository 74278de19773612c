"""The passes through torch.compile on a CPU: the same numbers, one compilation for all sizes, little memory."""

import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from rest_kernels import vocab_parallel_ppo_loss
from rest_kernels.shard import VocabShard
from rest_kernels.tokens import Softmax, Tokens
from rest_kernels.torch_backend import compiled, softmax_stats
from rest_kernels.torch_backend.rows import Rows
from tests.kernels.oracle import (
    BF16,
    F32,
    assert_gradient,
    assert_values,
    exact_gradient,
    exact_ppo,
    exact_values,
    gradient,
    make_logits,
    make_ppo,
    upstream,
)
from tests.kernels.target import UNITS, Target

INF = math.inf
CPU = Target("cpu", "torch")
DTYPES = [F32, BF16]


# Elsewhere the functions run eagerly, after a warning; tests/kernels has their numbers.
NO_VECTORS = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
needs_vectors = pytest.mark.skipif(NO_VECTORS, reason="torch.compile's C++ needs a CPU with vector instructions")


@pytest.fixture
def compiles(monkeypatch):
    """Calls of any size compile, and read a few rows at a time. They must not have fallen back."""
    if NO_VECTORS:
        pytest.skip("torch.compile's C++ needs a CPU with vector instructions")
    monkeypatch.setattr(compiled, "COMPILE_MIN_LOGITS", 0)
    monkeypatch.setattr(compiled, "COMPILED_CHUNK_ELEMENTS", 1 << 14)
    yield
    assert compiled._COMPILER.works


def assert_matches_the_reference(logits, labels, temperature=1.0):
    result = CPU.logprob_entropy(logits, labels, temperature=temperature)
    assert_values(result, exact_values(logits, labels, temperature))
    grads = upstream(len(labels))
    exact = exact_gradient(logits, labels, grads, temperature)
    assert_gradient(gradient(CPU, logits, labels, grads, temperature=temperature), exact, UNITS[logits.dtype])


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens, vocab, temperature", [(37, 1187, 0.7), (64, 300, 2.0), (5, 4096, 0.3)])
def test_values_and_gradients(dtype, num_tokens, vocab, temperature):
    assert_matches_the_reference(*make_logits(num_tokens, vocab, dtype), temperature)


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_sums_over_a_whole_vocabulary_keep_their_digits(monkeypatch, dtype, spread, shift):
    monkeypatch.setattr(compiled, "COMPILED_CHUNK_ELEMENTS", 1 << 20)
    logits, labels = make_logits(2, 151936, F32, spread)
    assert_matches_the_reference((logits + shift).to(dtype), labels)


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_without_probability(dtype):
    logits, labels = make_logits(8, 1187, dtype)
    labels = labels.clamp(min=600)
    logits[:, :600] = -INF
    logits[1::2, 601:] = -INF
    labels[1::2] = 600
    assert_matches_the_reference(logits, labels)


@pytest.mark.usefixtures("compiles")
def test_a_shard_without_any_probability_has_the_neutral_statistics():
    logits, labels = torch.full((4, 1187), -INF), torch.full((4,), 2000)
    softmax = Softmax(VocabShard(0, 1187, 3000, None), 0.7)
    stats = softmax_stats(logits, Tokens(labels, -100, None), softmax, collision=False)
    assert stats.tolist() == [[-INF, 0, 0, 0, -INF]] * 4


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_stays_in_sight(dtype):
    logits, labels = make_logits(6, 1187, dtype)
    logits[2, 7] = logits[4, labels[4]] = math.nan
    result = CPU.logprob_entropy(logits, labels)
    bad = [False, False, True, False, True, False]
    assert result.log_probs.isnan().tolist() == bad
    assert result.entropy.isnan().tolist() == bad
    assert gradient(CPU, logits, labels, upstream(6)).isnan().any(-1).tolist() == bad


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_label_keeps_its_gradient_near_certainty(dtype):
    logits, labels = torch.zeros(6, 1187, dtype=dtype), torch.arange(6) * 100
    chosen = (torch.arange(6), labels)
    logits[chosen] = torch.linspace(8, 28, 6).to(dtype)
    grads = upstream(6)
    found, exact = gradient(CPU, logits, labels, grads), exact_gradient(logits, labels, grads)
    torch.testing.assert_close(found[chosen].double(), exact[chosen], rtol=max(UNITS[dtype], 2e-6), atol=0)


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("entropy_coef", [0.0, 0.05])
@pytest.mark.parametrize("case", ["all rows", "some rows", "padding", "slice", "in place"])
def test_the_loss_and_its_gradient(case, entropy_coef):
    logits, labels, vectors = make_ppo(64, 1187, BF16)
    settings = {"temperature": 0.7, "entropy_coef": entropy_coef, "kl_coef": 0.1}
    if case == "some rows":
        vectors["loss_weights"][::3] = 0
    expected, exact = exact_ppo(logits, labels, vectors, **settings)
    if case == "some rows":
        logits[::3] = math.nan
    if case == "padding":
        logits = torch.cat([logits, torch.full((64, 13), 99.0, dtype=BF16)], -1)
        settings["vocab_size"] = 1187
    if case == "slice":
        logits = torch.cat([logits.view(4, 16, -1), torch.full((4, 1, 1187), math.nan, dtype=BF16)], 1)[:, :-1]
        labels, vectors = labels.view(4, 16), {name: vector.view(4, 16) for name, vector in vectors.items()}
    logits = logits.requires_grad_() if case == "slice" else logits.clone().requires_grad_() * 1
    loss = vocab_parallel_ppo_loss(logits, labels, **vectors, inplace_backward=case == "in place", **settings).loss
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (grad[..., 1187:] == 0).all()
    assert_gradient(grad.reshape(64, -1)[:, :1187], exact, UNITS[BF16])


@pytest.mark.usefixtures("compiles")
def test_other_sizes_and_temperatures_do_not_compile_again():
    def run(num_tokens, vocab, temperature, first=0):
        logits, labels = make_logits(num_tokens, vocab, BF16)
        labels[:first] = -100
        gradient(CPU, logits, labels, upstream(num_tokens), temperature=temperature)

    run(64, 1187, 0.7)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for arguments in [(64, 1187, 1.0), (65, 1187, 0.7), (9, 5000, 0.3), (128, 700, 2.0), (40, 1200, 0.7, 3)]:
        run(*arguments)
    assert counters["stats"]["unique_graphs"] == graphs


def test_only_calls_that_read_many_logits_compile():
    logits = torch.empty(1).expand(1 << 11, 1 << 14)
    fewer, enough = (compiled.row_function(len, Rows(logits, torch.arange(number))) for number in (2047, 2048))
    assert fewer == compiled.RowFunction(len, compiled.CHUNK_ELEMENTS, compiled=False)
    assert enough.compiled


@pytest.mark.parametrize(
    "capability, options", [("AVX512", {"cpp.simdlen": 512}), ("AVX2", {"cpp.simdlen": 256}), ("DEFAULT", {})]
)
def test_the_cache_of_compiled_code_is_told_the_cpus_vector_width(monkeypatch, capability, options):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with mock.patch("torch.compile", return_value=len) as compile_function:
        assert compiled.RowCompiler().run(len, [1, 2]) == 2
    assert compile_function.call_args.kwargs["options"] == options


def test_without_a_compiler_the_functions_run_eagerly_after_one_warning(monkeypatch):
    def twice(values):
        return values * 2

    monkeypatch.setattr(compiled, "COMPILE_MIN_LOGITS", 0)
    monkeypatch.setattr(compiled, "_COMPILER", compiled.RowCompiler())
    ones = torch.ones(4, 37)
    rows = Rows(ones, torch.arange(4))
    function = compiled.row_function(twice, rows)
    assert function.compiled
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.warns(UserWarning, match="torch.compile of twice failed") as record:
            results = [function.run(ones), function.run(ones)]
    warned = [str(warning.message) for warning in record if "rest_kernels" in str(warning.message)]
    assert len(warned) == 1 and "no-such-compiler" in warned[0]
    assert all(torch.equal(result, ones * 2) for result in results)
    assert not compiled.row_function(twice, rows).compiled


MEASURE = """
import re, sys, torch
from pathlib import Path
from rest_kernels import vocab_parallel_ppo_loss
from rest_kernels.torch_backend import compiled

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
logits = torch.zeros(1 << 10, 1 << 15, dtype=torch.bfloat16, requires_grad=True)
zeros = torch.zeros(len(logits))
def run():
    loss = vocab_parallel_ppo_loss(logits, zeros.long(), zeros - 10, zeros + 1, zeros + 1, entropy_coef=0.01).loss
    return torch.autograd.grad(loss, logits)[0]

run()
assert compiled._COMPILER.works and "torch._inductor" in sys.modules
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
grad = run()
print(status("VmHWM") - before - grad.nbytes // 1024)
"""


@needs_vectors
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_large_call_needs_little_memory_beside_the_gradient():
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= 16 * 1024
