"""The same checks on CUDA: parity with Hugging Face in bf16, one training step, the quickstart.

Each case runs in a fresh process, because the CPU tests teach this one's Megatron to live without CUDA.
"""

import json
import math
import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.config.schema import RolloutConfig
from rest_megatron.model.attention import CoreAttention
from rest_megatron.model.packed import PackedSequences
from rest_megatron.rollout.engine import number_requests
from tests.distributed.cases import Layout, gradients_and_updates, sampled
from tests.distributed.method_cases import measured, updated, weighed
from tests.distributed.pool import WorkerPool
from tests.system.runs import ROOT, run
from tests.tiny import make_answers, oracle, relative_error
from tests.unit.model.packs import PACKS, alone, inputs, inverse_frequencies, with_gradients

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="no CUDA device on this machine")]
LAYOUTS = [Layout(device="cuda"), Layout(device="cuda", max_tokens=2000)]
if GPUS >= 2:
    LAYOUTS += [Layout(tp=2, sp=True, device="cuda"), Layout(pp=2, device="cuda"), Layout(dp=2, device="cuda")]


@pytest.fixture(scope="module")
def cuda_pool():
    # What is imported asks for devices: after that CUDA does not start in a fork.
    workers = WorkerPool(multiprocessing.get_context("spawn"))
    yield workers
    workers.close()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bf16_is_no_worse_than_hugging_faces_own_bf16(cuda_pool, tiny_model, layout, tied):
    model, answers = tiny_model(tied=tied), make_answers(shared=True)
    exact, peer = oracle(model, answers), oracle(model, answers, torch.bfloat16)
    results = cuda_pool.run(gradients_and_updates, layout.world_size, model, layout, answers, "bfloat16", 2)
    gradients = {name: value for result in results for name, value in result["gradients"].items()}
    assert gradients.keys() == exact.gradients.keys()
    ours = max(relative_error(gradients[name], value) for name, value in exact.gradients.items())
    theirs = max(relative_error(peer.gradients[name], value) for name, value in exact.gradients.items())
    assert ours <= 1.5 * theirs
    assert abs(results[0]["grad_norm"] - exact.grad_norm) <= 0.02 * exact.grad_norm
    assert max(result["replicas"] for result in results) == 0.0
    assert all(torch.isfinite(torch.tensor(list(m.values()))).all() for m in results[0]["metrics"])


@pytest.mark.parametrize("name", PACKS)
def test_a_packs_tokens_see_their_own_sequences_alone(name):
    """One variable-length call: the last query of a span is aligned with the last of the keys gathered for it."""
    spans = PACKS[name]
    *tensors, upstream = (x.cuda().bfloat16() for x in inputs(spans))
    frequencies = inverse_frequencies().cuda()
    packed = PackedSequences.of(spans, torch.device("cuda")).prepared(frequencies, torch.bfloat16)
    attention = CoreAttention(SimpleNamespace(attention_dropout=0.0), 1, None, "self")
    ours = with_gradients(
        lambda q, k, v: attention(q, k, v, packed_seq_params=packed), [x.clone() for x in tensors], upstream
    )
    exact = with_gradients(
        lambda q, k, v: alone(spans, q, k, v), [x.cpu().double() for x in tensors], upstream.cpu().double()
    )
    for what, a, b in zip(("output", "query", "key", "value"), ours, exact, strict=True):
        # A few roundings to bfloat16; a query one key off would be wrong by the size of the values.
        assert (a.cpu().double() - b).norm() <= 2**-6 * b.norm(), what


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_sampler_and_the_actor_agree(cuda_pool, tiny_model, layout):
    rollout = RolloutConfig(group_size=3, max_new_tokens=12, max_batch_size=6)
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]
    requests = number_requests(prompts, rollout.max_new_tokens)
    result = cuda_pool.run(sampled, layout.world_size, tiny_model(), layout, requests, rollout, [0])[0]
    drawn = torch.tensor([x for s in result["samples"] for x in s.log_probs])
    assert torch.allclose(drawn, result["log_probs"], atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("algorithm", [{"kl_coef": 0.1}, {"ratio": "sequence"}], ids=["kl", "gspo"])
def test_every_loss_steps_and_the_initial_weights_stay(cuda_pool, tiny_model, layout, algorithm):
    for result in cuda_pool.run(updated, layout.world_size, tiny_model(), layout, make_answers(), algorithm):
        assert all(math.isfinite(value) for value in result["metrics"].values()) and result["moved"] > 0
        assert result["reference_stays"] is (True if "kl_coef" in algorithm else None)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradient_variance_is_that_of_the_cpu(cuda_pool, pool, tiny_model, layout):
    groups = tuple(i // 4 for i in range(16))
    (want,) = pool.run(measured, 1, tiny_model(), Layout(), make_answers(), groups, True)
    for result in cuda_pool.run(measured, layout.world_size, tiny_model(), layout, make_answers(), groups, True):
        for arm in ("weights", "uniform"):
            assert result["comparison"][arm]["variance"] == pytest.approx(want["comparison"][arm]["variance"], rel=1e-3)
            assert result["comparison"][arm]["gain"] == pytest.approx(want["comparison"][arm]["gain"], rel=1e-2)


@pytest.mark.parametrize("overrides", [(), ("weights.scope=response",), ("weights.preset=reference",)], ids=str)
def test_token_weights_are_those_of_the_cpu(cuda_pool, pool, tiny_model, overrides):
    presets = {"these": overrides}
    (want,) = pool.run(weighed, 1, tiny_model(), Layout(max_tokens=2000), presets, 2)
    for result in cuda_pool.run(weighed, 1, tiny_model(), Layout(max_tokens=2000, device="cuda"), presets, 2):
        for number, weights in result["these"]["weights"].items():
            assert torch.allclose(weights, want["these"]["weights"][number], rtol=1e-3)


@pytest.mark.timeout(1000)
def test_the_quickstart_trains_on_cuda(tmp_path):
    done = run(["bash", "examples/quickstart/run.sh", tmp_path, 1, "cuda"], ROOT, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "rest" / "report.html").exists()
    evaluations = [json.loads(line) for line in (tmp_path / "rest" / "eval.jsonl").read_text().splitlines()]
    assert evaluations[-1]["reward/mean"] > evaluations[0]["reward/mean"] + 0.5
