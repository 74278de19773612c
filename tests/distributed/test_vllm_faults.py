"""Every fault of a vLLM server ends in answers from the right weights or in one clear error on every rank, in time."""

import itertools

import pytest

from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.delivery import Delivery
from rest_megatron.rollout.vllm.replies import prompt_seed
from tests.distributed.cases import Layout
from tests.distributed.fake_faults import BAD_REPLIES, Fault
from tests.distributed.fake_vllm import FAULT_TEXT, FakeServer, FakeVLLM
from tests.distributed.published import PROBED, PUSH, largest_error
from tests.distributed.vllm_cases import GENERATE_SECONDS, GROUP_SIZE, PROMPTS, SYNC_SECONDS, Scenario, faults_in_a_row
from tests.tensors import read

ALWAYS = 1000
UPDATE_CALLS = [*PUSH, "probe"]
WORKER_CALLS = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
GENERATED = ["generate"] * len(PROMPTS)

WELL = {"nothing fails": Scenario(), "over a socket": Scenario(uds=True)}
# One failure of a call: everything is sent once more, also where the server still thinks it is being updated.
ONCE = {f"{kind} at {call}": Scenario([Fault(call, kind)]) for call in UPDATE_CALLS for kind in ("error", "close")}
WORKER = {f"unusable at {call}": Scenario([Fault(call, "unusable")], restartable=False) for call in WORKER_CALLS}
HANGS = {f"hang at {call}": Scenario([Fault(call, "hang")]) for call in ("/pause", "/update_weights", "probe")} | {
    f"lost at {call}": Scenario([Fault(call, "lost")], restartable=False)
    for call in ("/start_weight_update", "/finish_weight_update")
}
OPEN = {"left open by a trainer that died": Scenario(modes=["open_update"], restartable=False)}
# The probe asks twice at once.
TWICE = {
    f"{call} fails twice": Scenario([Fault(call, "error", times=4 if call == "probe" else 2)]) for call in UPDATE_CALLS
}
DEATHS = {f"death at {call}": Scenario([Fault(call, "die")]) for call in [*UPDATE_CALLS, "generate"]}
SAMPLING = {
    f"{kind} once while generating": Scenario([Fault("generate", kind)])
    for kind in ("error", "close", "hang", *BAD_REPLIES)
} | {"another version after generating": Scenario([Fault("/weight_info", "other_run", skip=1)])}
MENDED = WELL | ONCE | WORKER | HANGS | OPEN | TWICE | DEATHS | SAMPLING

HOPELESS = {
    "always fails": (
        Scenario([Fault("/update_weights", "error", ALWAYS)]),
        [FAULT_TEXT, "after a restart", "fake's log"],
    ),
    "attached, fails twice": (
        Scenario([Fault("/update_weights", "error", 2)], restartable=False),
        [FAULT_TEXT, "POST /update_weights gave HTTP status 500", "left paused", "restart it"],
    ),
    "attached, dies": (
        Scenario([Fault("/finish_weight_update", "die")], restartable=False),
        ["failed after", "restart"],
    ),
    "attached, hangs": (
        Scenario([Fault("/start_weight_update", "hang", 2)], restartable=False),
        ["POST /start_weight_update: no whole reply within 2 s"],
    ),
    "attached, weights that do not load": (
        Scenario([Fault("/update_weights", "unusable", 2)], restartable=False),
        [f"could not take over the weights: {FAULT_TEXT}", "left paused"],
    ),
    "another run": (
        Scenario([Fault("/weight_info", "other_run", ALWAYS)]),
        ["serves weight version '3-00000000', must be '3-", "another run"],
    ),
    "old weights are kept": (Scenario(modes=["stale_weights"]), ["does not sample from the actor's weights", "0.001"]),
    "a tensor is not loaded": (Scenario(modes=["missing_tensor"]), ["does not sample from the actor's weights"]),
    "always hangs while generating": (Scenario([Fault("generate", "hang", ALWAYS)]), ["within 3 s", "fake's log"]),
    **{
        f"always {kind} while generating": (Scenario([Fault("generate", kind, ALWAYS)]), [text, "fake's log"])
        for kind, text in {
            "error": FAULT_TEXT,
            "nan": "token_logprobs nan at token 0",
            "empty": "token_ids [] 0 of them, must be 1 to 12",
            "half": "asked for 3",
            "too_long": "must be 1 to 12",
            "outside_vocabulary": "token_ids 1000000 must be ids from 0 to 499",
            "no_log_probs": "token_logprobs 'no list' must be",
            "abort": "finish_reason 'abort' must be stop or length",
            "other_prompt": "prompt_token_ids [1] not (",
        }.items()
    },
}
LAYOUT = Layout(tp=2)


@pytest.fixture(scope="module")
def outcomes(pool, tiny_model, tmp_path_factory):
    """What every rank got in each scenario: `outcomes(name)`, all run on one actor."""
    scenarios = MENDED | {name: scenario for name, (scenario, _) in HOPELESS.items()}
    directory = tmp_path_factory.mktemp("sync")
    results = pool.run(faults_in_a_row, LAYOUT.world_size, tiny_model(), LAYOUT, directory, scenarios)
    return lambda name: [result[name] for result in results]


@pytest.fixture(scope="module")
def undisturbed(outcomes):
    """The answers when nothing fails."""
    return outcomes("nothing fails")[0]["samples"]


@pytest.mark.parametrize("name", MENDED)
def test_a_fault_that_passes_changes_no_answer(outcomes, undisturbed, name):
    for result in outcomes(name):
        assert result["error"] == ""
        assert result["samples"] == undisturbed
    assert outcomes(name)[0]["left"] == [], "no weights and no socket are left behind"


def test_answers_come_from_the_actors_weights(undisturbed, tiny_model):
    assert len(undisturbed) == GROUP_SIZE * len(PROMPTS)
    assert {sample.weight_version for sample in undisturbed} == {3}
    assert largest_error(tiny_model(), read(tiny_model()), undisturbed) < 1e-5


@pytest.mark.parametrize("name", WELL)
def test_calls_come_in_the_order_vllm_wants(outcomes, name):
    assert outcomes(name)[0]["calls"] == [*PUSH, *PROBED, *GENERATED, "/weight_info"]


@pytest.mark.parametrize("call", UPDATE_CALLS)
def test_after_one_failure_all_is_sent_again_without_sampling_or_a_restart(outcomes, call):
    (main, _) = outcomes(f"error at {call}")
    calls = main["calls"]
    assert main["restarts"] == 0
    assert calls.count("/start_weight_update") == (1 if call in PUSH[:2] else 2)
    again = len(calls) - calls[::-1].index("/pause") - 1
    assert calls[again:] == [*PUSH, *PROBED, *GENERATED, "/weight_info"]
    before_start = calls[:again].index(call)
    assert call == "probe" or "probe" not in calls[: before_start + 1]


@pytest.mark.parametrize("name", WORKER)
def test_what_a_worker_could_not_do_is_seen_before_anything_is_sampled(outcomes, name):
    calls = outcomes(name)[0]["calls"]
    assert calls.count("/start_weight_update") == 2 and calls.count("/resume") == 1


@pytest.mark.parametrize("name", [*TWICE, *DEATHS])
def test_a_server_that_stays_broken_or_dies_is_restarted_once(outcomes, name):
    assert outcomes(name)[0]["restarts"] == 1


@pytest.mark.parametrize("kind", [kind for kind in BAD_REPLIES])
def test_only_the_prompts_without_proper_answers_are_asked_again(outcomes, kind):
    calls = outcomes(f"{kind} once while generating")[0]["calls"]
    first = [*PUSH, *PROBED, *GENERATED, "/weight_info"]
    assert calls == [*first, *PUSH, *PROBED, "generate", "/weight_info"]


def test_answers_of_another_version_are_all_thrown_away(outcomes):
    calls = outcomes("another version after generating")[0]["calls"]
    assert calls.count("generate") == 2 * len(PROMPTS)


@pytest.mark.parametrize("name", HOPELESS)
def test_a_fault_that_stays_is_one_clear_error_on_every_rank(outcomes, name):
    results = outcomes(name)
    assert len({result["error"] for result in results}) == 1
    for text in HOPELESS[name][1]:
        assert text in results[0]["error"]
    assert results[0]["error"].startswith("rollout error: ")
    assert results[0]["left"] == []


@pytest.mark.parametrize("name", [*MENDED, *HOPELESS])
def test_every_outcome_comes_within_the_deadlines(outcomes, name):
    calls = 3 * SYNC_SECONDS + 2 * GENERATE_SECONDS
    assert outcomes(name)[0]["seconds"] < calls + 5


def test_a_failed_update_is_never_followed_by_a_resume(outcomes):
    calls = outcomes("attached, fails twice")[0]["calls"]
    assert calls == [*PUSH[:4], *PUSH[:4]]


@pytest.fixture
def server(tiny_model):
    """`server(*faults)`: a fake that a test drives without an engine."""
    fakes = []

    def make(*faults: Fault) -> FakeServer:
        fakes.append(FakeVLLM(tiny_model(), faults=faults))
        return FakeServer(fakes[-1])

    yield make
    for fake in fakes:
        fake.stop()


def test_two_runs_at_one_server_notice_each_other(server):
    shared = server()
    first, second = Delivery(shared, SYNC_SECONDS), Delivery(shared, SYNC_SECONDS)
    first.deliver([], 0, lambda client: first.require_version(0))
    second.deliver([], 0, lambda client: second.require_version(0))
    with pytest.raises(EngineError, match="another run updates its weights"):
        first.require_version(0)


def test_a_server_that_cannot_sleep_any_more_is_an_error_with_its_log(server):
    with pytest.raises(EngineError, match=rf"{FAULT_TEXT}\n[^$]*the last line of the fake's log"):
        Delivery(server(Fault("/sleep", "error")), SYNC_SECONDS).sleep()


def test_before_a_restart_the_log_is_shown(server, caplog):
    Delivery(server(Fault("/pause", "error", 2)), SYNC_SECONDS).deliver([], 0, lambda client: None)
    assert "the server is restarted" in caplog.text and "the last line of the fake's log" in caplog.text


def test_prompts_have_seeds_of_their_own():
    seeds = {prompt_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert min(b - a for a, b in itertools.pairwise(sorted(seeds))) > 1_000_000
    assert 0 <= min(seeds) and max(seeds) < 2**63 - 2**20
