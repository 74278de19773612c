"""`rest_megatron.commands.weigh`: regions and weights of answers on file."""

import json
import lzma
import math
from functools import partial

import pytest

from rest_megatron.errors import CheckpointError, ConfigError, DataError
from tests.paths import SHARED
from tests.unit.commands.weighing import ANSWER, REGIONS, encoder, save_byte_tokenizer, weigh_rows

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encode(tokenizer_dir):
    return encoder(tokenizer_dir)


@pytest.fixture
def run(tmp_path, tokenizer_dir):
    """`run(rows, *overrides, **file arguments)` -> (output rows, what was reported)."""
    return partial(weigh_rows, tmp_path, tokenizer_dir)


def region_weights(row: dict) -> dict[str, float]:
    """The weight of each region, which all its tokens share."""
    pairs = set(zip(row["regions"], row["weights"], strict=True))
    assert len(pairs) == len({region for region, _ in pairs})
    return dict(pairs)


def entropies(regions, **of_region):
    return [of_region[region] for region in regions]


def test_weights_by_hand(run, encode):
    ids = [*encode(ANSWER), 256]
    regions = [*REGIONS, "format"]
    entropy = entropies(regions, format=0.1, tool_name=0.2, parameters=0.4, cot=1.0)
    (row,), report = run([{"ids": ids, "entropy": entropy}], "weights.rule=inverse_entropy", progress=0.5)
    assert row["ids"] == ids
    assert row["regions"] == regions
    assert row["entropy"] == entropy
    # 1/H = 10, 5, 2.5, 1 over their mean 4.625, held in [0.3, 2]; half the curriculum's 0.3 falls or rises.
    raw = {
        "format": 2.0 - 0.15,
        "tool_name": 5 / 4.625,
        "parameters": 2.5 / 4.625 + 0.15,
        "cot": 0.3 + 0.15,
    }
    mean = sum(raw[region] for region in regions) / len(regions)
    assert row["weights"] == pytest.approx([raw[region] / mean for region in regions], abs=1e-6)
    assert report.endswith(": 1 row\n")


def test_region_means_are_those_of_the_whole_file_or_of_each_answer(run, encode):
    ids = encode(ANSWER)
    sure = entropies(REGIONS, format=0.1, tool_name=0.1, parameters=0.4, cot=0.4)
    unsure = entropies(REGIONS, format=0.9, tool_name=0.9, parameters=0.6, cot=0.6)
    rows = [{"ids": ids, "entropy": sure}, {"ids": ids, "entropy": unsure}]
    overrides = ["weights.rule=inverse_entropy", "weights.curriculum=none"]
    (first, second), _ = run(rows, *overrides)
    # Both files' means are 0.5 in every region.
    assert first["weights"] == second["weights"] == pytest.approx([1.0] * len(ids), abs=1e-6)
    (first, second), _ = run(rows, *overrides, "weights.scope=response")
    assert region_weights(first)["tool_name"] / region_weights(first)["cot"] == pytest.approx(4.0, rel=1e-5)
    assert region_weights(second)["tool_name"] / region_weights(second)["cot"] == pytest.approx(2 / 3, rel=1e-5)


def test_the_means_of_a_run_s_step_weigh_in_place_of_those_of_the_file(run, encode, tmp_path):
    ids, names = encode(ANSWER), ("format", "tool_name", "parameters", "cot")
    means = dict(zip(names, (0.1, 0.2, 0.4, 1.0), strict=True))
    rows = [{"step": 1}, {"step": 2} | {f"statistic/{name}": mean for name, mean in means.items()}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flat = {"ids": ids, "entropy": [1.0] * len(ids)}
    (ours,), _ = run([flat], run=tmp_path, step=2)
    (same,), _ = run([flat | {"entropy": entropies(REGIONS, **means)}], step=2)
    assert ours["weights"] == pytest.approx(same["weights"], rel=1e-6)
    for step in (1, 3):
        with pytest.raises(DataError, match=f"step {step}"):
            run([flat], run=tmp_path, step=step)


@pytest.mark.parametrize("scope", ["batch", "response"])
def test_without_entropies_regions_weigh_one_before_the_curriculum(run, encode, scope):
    (row,), _ = run([{"ids": encode(ANSWER)}], f"weights.scope={scope}", progress=1.0)
    weights = region_weights(row)
    assert "entropy" not in row
    assert weights["format"] / weights["tool_name"] == pytest.approx(0.7, abs=1e-5)
    assert weights["cot"] / weights["tool_name"] == pytest.approx(1.3, abs=1e-5)


@pytest.mark.parametrize("other", [{}, {"collision": [0.5] * len(REGIONS)}])
def test_a_row_without_entropies_takes_the_means_of_the_others(run, encode, other):
    ids = encode(ANSWER)
    entropy = entropies(REGIONS, format=0.5, tool_name=0.5, parameters=0.5, cot=2.0)
    (alone,), _ = run([{"ids": ids, "entropy": entropy}], "weights.curriculum=none")
    (given, missing), _ = run([{"ids": ids, "entropy": entropy}, {"ids": ids, **other}], "weights.curriculum=none")
    assert given["weights"] == alone["weights"]
    assert given["weights"] == missing["weights"]
    assert region_weights(missing)["cot"] < region_weights(missing)["format"]


@pytest.mark.parametrize("rule", ["collision", "lm_head"])
def test_rules_on_other_statistics_read_their_own_fields(run, encode, rule):
    collision = entropies(REGIONS, format=0.9, tool_name=0.9, parameters=0.8, cot=0.6)
    norms = [4.0] * len(REGIONS)
    row = {"ids": encode(ANSWER), "collision": collision, "hidden_norm_squared": norms}
    (row,), _ = run([row], f"weights.rule={rule}", "weights.curriculum=none")
    weights = region_weights(row)
    assert weights["format"] / weights["parameters"] == pytest.approx(2.0, rel=1e-5)
    assert weights["parameters"] / weights["cot"] == pytest.approx(2.0, rel=1e-5)


def test_a_region_switched_off_weighs_nothing(run, encode):
    (row,), _ = run([{"ids": encode(ANSWER)}], "weights.use_cot=false")
    weights = region_weights(row)
    assert weights["cot"] == 0.0
    assert sum(row["weights"]) / len(row["ids"]) == pytest.approx(1.0, abs=1e-6)


def test_padding_after_the_end_of_turn_weighs_nothing_and_counts_in_no_mean(run, encode):
    ids = [*encode(ANSWER), 256]
    entropy = entropies([*REGIONS, "format"], format=0.1, tool_name=0.2, parameters=0.4, cot=1.0)
    (alone,), _ = run([{"ids": ids, "entropy": entropy}])
    padding = [257, 256, 65]
    (padded,), _ = run([{"ids": ids + padding, "entropy": [*entropy, 50.0, 50.0, 50.0]}])
    assert padded["regions"] == alone["regions"] + ["format"] * 3
    assert padded["weights"] == alone["weights"] + [0.0] * 3


def test_another_answer_format_gives_its_own_regions(run, encode):
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    text = call + "\n" + call.replace('"f"', '"g"')
    (row,), _ = run([{"ids": encode(text)}], "data.answer_format=hermes")
    names = [text[i] for i, region in enumerate(row["regions"]) if region == "tool_name"]
    assert names == ["f", "g"]


def test_rows_that_cannot_be_used_are_reported_and_the_others_weighed(run, encode):
    good = {"ids": encode(ANSWER)}
    rows = [
        good,
        {"ids": [0, 258]},
        {"ids": [-1]},
        {"ids": [True]},
        {"ids": [1.0]},
        {"ids": "abc"},
        {},
        {"ids": [1, 2], "entropy": [0.5]},
        '{"ids": [1], "entropy": [NaN]}',
        '{"ids": [1], "entropy": [1e999]}',
        {"ids": [1], "entropy": [10**400]},
        {"ids": [1], "entropy": ["0.5"]},
        {"ids": [1], "entropy": [None]},
        {"ids": [1], "collision": 0.5},
        {"ids": [1], "entropy": [-0.001]},
        {"ids": [1], "entropy": [50.1]},
        {"ids": [1], "collision": [-0.001]},
        {"ids": [1], "collision": [1.001]},
        {"ids": [1], "hidden_norm_squared": [-1.0]},
        {"ids": [1], "think_open": 1},
        "[1, 2]",
        "{not json",
        "[" * 100_000,
        '{"ids": [' + "9" * 5000 + "]}",
        "",
        good,
    ]
    written, report = run(rows)
    # Blank lines are skipped; lines count from 1.
    lines = [number for number, row in enumerate(rows, start=1) if row != ""]
    assert len(written) == len(lines)
    for row, number in zip(written, lines, strict=True):
        if number in (1, len(rows)):
            assert row["regions"] == REGIONS
        else:
            assert row["error"].startswith(f"line {number}: ")
            assert report.count(f"line {number}: ") == 1
    assert "token id in [0, 257]" in report
    assert "1 values for 2 ids" in report
    assert "25 rows, 23 of them" in report


def test_no_ids_are_an_answer_without_tokens(run):
    (row,), _ = run([{"ids": []}])
    assert row == {"ids": [], "regions": [], "weights": []}


def test_the_feedback_curriculum_is_refused(run):
    with pytest.raises(ConfigError, match="weights.curriculum=feedback"):
        run([{"ids": [1]}], "weights.curriculum=feedback")


def test_the_reference_rule_reads_no_other_key(run, encode):
    rows = [{"ids": encode(ANSWER)}]
    (row,), _ = run(rows, "weights.preset=reference", "weights.curriculum=feedback", "weights.use_cot=false", step=100)
    assert [w > 0 for w in row["weights"][:9]] == [True] * 6 + [False, True, False]
    assert row["regions"] == REGIONS


@needs_shared
@pytest.mark.parametrize("tokenizer", ["small_bpe", "qwen3"])
@pytest.mark.parametrize("step", ["0", "400"])
def test_the_reference_preset_writes_the_published_weights(run, tmp_path, tokenizer, step):
    cases = [json.loads(line) for line in (SHARED / "golden" / "weights.jsonl").read_text().splitlines()]
    cases = [c for c in cases if c["tokenizer"] == tokenizer and c["retok_equal"]]
    if tokenizer == "qwen3":
        text = lzma.decompress((SHARED / "tokenizer" / "qwen3_tokenizer.json.xz").read_bytes())
    else:
        text = (SHARED / "tokenizer" / "small_bpe.json").read_bytes()
    # Nothing but the tokenizer: which token ends a turn is known by its name.
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes(text)
    rows, _ = run(
        [{"ids": c["ids"]} for c in cases], "weights.preset=reference", tokenizer=tmp_path / "bare", step=int(step)
    )
    for case, row in zip(cases, rows, strict=True):
        published = [value for value, count in case["weights"][step] for _ in range(count)]
        assert row["weights"] == pytest.approx(published, abs=1e-6, rel=0), case["name"]


@needs_shared
def test_a_tokenizer_of_words_is_refused(run, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((SHARED / "tokenizer" / "word_level.json").read_bytes())
    with pytest.raises(ConfigError, match="byte-level"):
        run([{"ids": [1]}], tokenizer=tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="--tokenizer "):
        run([{"ids": [1]}], tokenizer=tmp_path / "nothing")


def test_weights_are_finite_numbers_at_zero_entropy(run, encode):
    (row,), _ = run([{"ids": encode(ANSWER), "entropy": [0.0] * len(REGIONS)}], "weights.scope=response")
    assert all(math.isfinite(w) and w > 0 for w in row["weights"])


def test_statistics_may_miss_their_bounds_by_rounding(run, encode):
    ids = encode(ANSWER)
    row = {"ids": ids, "entropy": [-1e-5] * len(ids), "collision": [1.00005] * len(ids)}
    (written,), _ = run([row], "weights.curriculum=none")
    assert written["weights"] == pytest.approx([1.0] * len(ids))
    assert "error" not in run([row], "weights.rule=collision")[0][0]


@pytest.mark.parametrize(
    "rule, lacking", [("score_bound", 2), ("collision", 2), ("lm_head", 3), ("constant", 0), (None, 0)]
)
def test_rows_that_lack_what_the_rule_reads_are_counted(run, rule, lacking):
    rows = [{"ids": [1]}, {"ids": [1], "entropy": [1.0]}, {"ids": [1], "collision": [0.5]}, {"ids": "x"}]
    _, report = run(rows, f"weights.rule={rule}" if rule else "weights.preset=reference")
    said = [line for line in report.splitlines() if " without " in line]
    assert len(said) == bool(lacking)
    assert not lacking or said[0].startswith(f"{lacking} rows without ")


def test_rules_of_single_tokens_take_the_file_for_the_batch(run):
    rows = [{"ids": [65] * 3, "entropy": [0.1, 0.2, 0.3]}, {"ids": [65] * 2, "entropy": [2.0, 0.25]}, {"ids": [65]}]
    written, report = run(rows, "method.preset=grpo", "weights.rule=top_entropy", "weights.keep_share=0.4")
    assert [row["weights"] for row in written] == [[0.0, 0.0, 1.0], [1.0, 0.0], [1.0]]
    assert "1 row without entropy, which weights.rule=top_entropy reads: their tokens weigh 1\n" in report


def test_rsi_s_reads_the_log_probs_beside_the_entropy(run):
    settings = ["method.preset=grpo", "weights.rule=rsi_s"]
    rows = [
        {"ids": [65] * 3, "entropy": [1.0, 0.5, 1.0], "log_probs": [-1.0, -0.01, -5.0]},
        {"ids": [65], "entropy": [1]},
    ]
    (whole, lacking), report = run(rows, *settings)
    assert (whole["weights"], lacking["weights"]) == ([1.0, 0.0, 0.0], [1.0])
    assert "1 row without entropy and log_probs" in report
    bad = {"ids": [65], "entropy": [1.0], "log_probs": [0.5]}
    assert "log_probs[0] is" in run([rows[0], bad], *settings)[0][1]["error"]
    assert "error" not in run([bad], "method.preset=grpo")[0][0]


def test_a_thought_that_the_prompt_opened_is_a_thought(run, encode):
    ids = encode("hm</think>")
    (opened, closed, null), _ = run([{"ids": ids, "think_open": x} for x in (True, False, None)])
    assert opened["regions"][:2] == ["cot", "cot"]
    assert closed["regions"] == null["regions"]
    _, row = run([{"ids": ids}, {"ids": ids, "think_open": True}], "data.answer_format=llama3")[0]
    assert "'think_open' is true, but answers in this data.answer_format have no thought" in row["error"]
