"""The heatmap of one answer: the row that is read, the terminal's text, the page."""

import re

import pytest

from rest_megatron.data.rows import BadRow
from rest_megatron.observe.heatmap import html_page, terminal_text
from rest_megatron.observe.response import read_response, visible
from tests.unit.observe.shown import Page, spans

TABLE = [b"<think>", b"a <b>\n", "漢".encode()[:2], "漢".encode()[2:], b"\x1b[31m", b"get_weather", b"<|im_end|>"]
ROW = {
    "prompt": 17,
    "ids": [0, 1, 2, 3, 4, 5, 6],
    "text": "<think>a <b>\n漢\x1b[31mget_weather",
    "finish_reason": "stop",
    "score": 1.25,
    "format": 0.0,
    "correctness": 1.25,
    "parts": {"name": 0.5, "exact": 0.0},
    "reason": "wrong_name",
    "advantage": -0.75,
    "log_probs": [-0.5, -1.0, -2.0, -0.25, -3.0, -0.125, -0.0625],
    "regions": ["format", "cot", "cot", "cot", "cot", "tool_name", "format"],
    "entropy": [0.5, 1.0, 2.0, 0.25, 3.0, 0.125, 0.0625],
    "weights": [0.5, 1.25, 1.25, 1.25, 1.25, 1.5, 0.0],
    "ratio": [1.0, 1.5, 0.5, 1.0, 1.0, 1.0, None],
    "clipped": [False, True, False, False, False, False, False],
}
MINIMAL = {"ids": [0, 5], "regions": ["format", "tool_name"], "weights": [0.5, 1.5]}


def response(row: dict = ROW):
    return read_response(row, TABLE)


@pytest.mark.parametrize(
    "piece, shown",
    [
        (b" caf\xc3\xa9", " café"),
        (b"a\nb\r\t", "a↵\nb⟨U+000D⟩⟨U+0009⟩"),
        ("漢".encode()[:2], "⟨E6⟩⟨BC⟩"),
        (b"ok" + "漢".encode()[2:], "ok⟨A2⟩"),
        ("x\u202ey\u200b\x9b".encode(), "x⟨U+202E⟩y⟨U+200B⟩⟨U+009B⟩"),
        (b"\xed\xa0\x80", "⟨ED⟩⟨A0⟩⟨80⟩"),
        (b"", ""),
    ],
)
def test_a_token_is_shown_whole_and_safe(piece, shown):
    assert visible(piece) == shown


def test_every_byte_can_be_shown():
    for byte in range(256):
        shown = visible(bytes([byte]))
        assert shown and shown.removesuffix("\n").isprintable()


def test_the_terminal_shows_facts_runs_and_sums():
    facts, key, answer, sums = terminal_text(response(), colors=False).split("\n\n")
    lines = dict(line.split(maxsplit=1) for line in facts.splitlines() if not line.startswith("part "))
    assert lines["prompt"] == "17" and lines["advantage"] == "-0.75" and lines["reason"] == "wrong_name"
    assert "part name            0.5" in facts
    assert key == "[region weight]: F format, N tool_name, P parameters, C cot"
    assert answer == ("[F 0.50]<think>[C 1.25]a <b>↵\n漢⟨U+001B⟩[31m[N 1.50]get_weather[F 0.00]<|im_end|>")
    assert [line.split() for line in sums.splitlines()] == [
        "region tokens share weight weight share entropy ratio clipped".split(),
        "format 2 0.286 0.50 0.071 0.281 1.000 0".split(),
        "tool_name 1 0.143 1.50 0.214 0.125 1.000 0".split(),
        "parameters 0 0.000 0.00 0.000".split(),
        "cot 4 0.571 5.00 0.714 1.562 1.000 1".split(),
    ]


def test_colours_are_added_to_the_same_text_and_end_before_each_line_break():
    coloured = terminal_text(response(), colors=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == terminal_text(response(), colors=False)
    for line in coloured.splitlines():
        assert "\x1b" not in line or line.rindex("\x1b[0m") == line.rindex("\x1b")


def test_the_background_follows_the_weight_and_the_rendition_the_region():
    def style(weight: float, region: str) -> str:
        row = {"ids": [5], "regions": [region], "weights": [weight]}
        return re.search(r"\x1b\[38;5;16;48;5;(\d+[^m]*)m", terminal_text(response(row), colors=True)).group(1)

    assert [style(w, "format") for w in (0.0, 1.0, 2.0, 1e9)] == ["75", "231", "209", "209"]
    assert [style(1.0, r) for r in ("tool_name", "parameters", "cot")] == ["231;1;4", "231;4", "231;3"]


def test_no_escape_of_the_answer_or_the_row_reaches_the_terminal():
    row = ROW | {"reason": "bad\x1b[2J\nscore 99", "parts": {"\x1b]0;x\x07": 1.0}}
    text = terminal_text(response(row), colors=False)
    assert "\x1b" not in text and "\x07" not in text
    assert "reason               bad[2J score 99" in text


def test_the_page_shows_every_token_in_its_place():
    tokens = spans(html_page(response(), "row 3"))
    assert [text for *_, text in tokens] == [
        *("<think>", "a <b>↵\n", "⟨E6⟩⟨BC⟩", "⟨A2⟩", "⟨U+001B⟩[31m", "get_weather", "<|im_end|>")
    ]
    assert [region for region, *_ in tokens] == ROW["regions"]
    assert tokens[1][2] == "cot, weight 1.250, entropy 1.000, log-prob -1.000, ratio 1.500, clipped yes"
    assert tokens[6][2] == "format, weight 0.000, entropy 0.062, log-prob -0.062, clipped no"


def test_the_page_colours_by_weight_on_one_scale():
    row = {"ids": [0] * 5, "regions": ["cot"] * 5, "weights": [0.0, 0.5, 1.0, 2.0, 7.0]}
    backgrounds = [background for _, background, _, _ in spans(html_page(response(row), "t"))]
    blue, half, white, orange, more = [tuple(map(int, re.findall(r"\d+", text))) for text in backgrounds]
    assert white == (255, 255, 255) and orange == more
    assert blue[2] > blue[0] and orange[0] > orange[2]
    assert all(a < b < c for a, b, c in zip(blue[:2], half[:2], white[:2], strict=True))


def test_the_page_has_facts_sums_and_a_row_per_token():
    rows = Page(html_page(response(), "row 3")).rows
    assert ["prompt", "17"] in rows and ["advantage", "-0.75"] in rows and ["part name", "0.5"] in rows
    assert ["cot", "4", "0.571", "5.00", "0.714", "1.562", "1.000", "1"] in rows
    start = rows.index(["token", "id", "region", "entropy", "log-prob", "ratio", "clipped", "weight"])
    assert rows[start + 2] == ["a <b>↵", "1", "cot", "1.000", "-1.000", "1.500", "yes", "1.250"]
    assert rows[start + 7] == ["<|im_end|>", "6", "format", "0.062", "-0.062", "", "no", "0.000"]
    assert len(rows) == start + 8


def test_the_page_needs_nothing_but_itself_and_runs_nothing():
    hostile = b"</span><script>alert(1)</script><img src=//x onerror=y>"
    row = {
        "ids": [0],
        "regions": ["cot"],
        "weights": [1.0],
        "reason": '"><script>',
        "parts": {"<b>": "<i>"},
        "score": "</table>",
    }
    page = html_page(read_response(row, [hostile]), "<script>\u202e")
    tags = {tag for tag, _ in Page(page).tags}
    assert not {"script", "link", "iframe", "object", "img", "b", "i"} & tags
    assert not re.search(r"https?://", page) and "\u202e" not in page
    assert any("default-src 'none'" in attributes.get("content", "") for _, attributes in Page(page).tags)


@pytest.mark.parametrize("missing", ["entropy", "log_probs", "ratio", "clipped"])
def test_a_vector_that_is_missing_has_no_column(missing):
    heading = missing.replace("log_probs", "log-prob")
    for row in ({name: value for name, value in ROW.items() if name != missing}, ROW | {missing: None}):
        assert heading not in terminal_text(response(row), colors=False)
        page = Page(html_page(response(row), "t"))
        shown = [cell for cells in page.rows for cell in cells] + [about.get("title", "") for _, about in page.tags]
        assert not [text for text in shown if heading in text]


def test_a_row_of_ids_regions_and_weights_is_enough():
    assert "[F 0.50]<think>[N 1.50]get_weather" in terminal_text(response(MINIMAL), colors=False)
    rows = Page(html_page(response(MINIMAL), "t")).rows
    assert ["get_weather", "5", "tool_name", "1.500"] in rows


def test_an_answer_whose_tokens_all_weigh_nothing_can_be_shown():
    row = MINIMAL | {"weights": [0, 0]}
    assert "[F 0.00]<think>" in terminal_text(response(row), colors=False)
    assert len(spans(html_page(response(row), "t"))) == 2


def test_an_id_of_a_padded_vocabulary_is_shown_by_its_number_where_the_text_proves_it():
    row = MINIMAL | {"ids": [0, 9000], "text": "<think>", "finish_reason": "length"}
    assert response(row).texts == ["<think>", "⟨9000⟩"]


HUGE = 10**400


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"ids": None}, "'ids' is missing"),
        ({"weights": None}, "'weights' is missing"),
        ({"regions": None}, "'regions' is missing"),
        ({"ids": [], "regions": [], "weights": []}, "holds no tokens"),
        ({"ids": [0, True]}, "'ids' holds bool True, must be a list of ints"),
        ({"ids": [0, None]}, "'ids' holds NoneType None"),
        ({"ids": [0, -1]}, "spans -1 to 0, must lie in 0..6"),
        ({"ids": [0, 7]}, "spans 0 to 7, must lie in 0..6"),
        ({"ids": [0, HUGE]}, "must lie in 0..6"),
        ({"weights": [1.0]}, "'weights' has 1 entries for 2 ids"),
        ({"weights": [1.0, -0.5]}, "negative or not finite"),
        ({"weights": [1.0, float("nan")]}, "negative or not finite"),
        ({"weights": [1.0, HUGE]}, "negative or not finite"),
        ({"weights": [1.0, 1e308]}, "negative or not finite as a float32"),
        ({"weights": ["x", 1.0]}, "'weights' holds str 'x', must be a list of numbers"),
        ({"weights": [None, 1.0]}, "'weights' holds NoneType None, must be a list of numbers"),
        ({"ratio": [True, 1.0]}, "'ratio' holds bool True, must be a list of numbers"),
        ({"regions": ["format", "Format"]}, "'regions' holds str 'Format'"),
        ({"regions": "format"}, "'regions' is str"),
        ({"entropy": [0.5]}, "'entropy' has 1 entries"),
        ({"entropy": ["x", 1.0]}, "'entropy' holds str 'x', must be a list of numbers"),
        ({"clipped": [0.5, True]}, "'clipped' holds float 0.5, must be a list of bools"),
        ({"text": "something else", "finish_reason": "length"}, "does not spell"),
        ({"text": "<think>get_weather", "finish_reason": "stop"}, "does not spell"),
    ],
)
def test_a_row_that_cannot_be_shown_is_refused(change, complaint):
    with pytest.raises(BadRow, match=re.escape(complaint)):
        response(MINIMAL | change)


def test_measures_that_are_not_finite_are_shown_all_the_same():
    infinite = float("inf")
    row = MINIMAL | {"entropy": [infinite, -infinite], "ratio": [HUGE, float("nan")], "regions": ["cot", "cot"]}
    assert "cot" in terminal_text(response(row), colors=True)
    assert len(spans(html_page(response(row), "t"))) == 2


def test_a_character_cut_into_tokens_is_whole_in_a_run_and_cut_between_runs():
    pieces = [bytes([byte]) for byte in "🙂é".encode()]

    def answer(weights: list[float]) -> str:
        row = {"ids": list(range(6)), "regions": ["cot"] * 6, "weights": weights}
        return terminal_text(read_response(row, pieces), colors=False)

    assert "[C 1.00]🙂é\n" in answer([1.0] * 6)
    assert "[C 1.00]🙂⟨C3⟩[C 2.00]⟨A9⟩\n" in answer([1.0] * 5 + [2.0])
    padded = read_response(
        {"ids": [0, 9, 1, 2, 3], "regions": ["cot"] * 5, "weights": [1] * 5, "text": "🙂", "finish_reason": "length"},
        pieces,
    )
    assert "[C 1.00]⟨F0⟩⟨9⟩⟨9F⟩⟨99⟩⟨82⟩" in terminal_text(padded, colors=False)


@pytest.mark.parametrize("colors", [True, False])
def test_only_a_line_break_breaks_a_line(colors):
    row = {"ids": [0], "regions": ["cot"], "weights": [1.0]}
    answer = read_response(row, ["a ↵ b\nc".encode()])
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal_text(answer, colors=colors))
    assert "[C 1.00]a ↵ b↵\nc\n" in text
    assert [text for *_, text in spans(html_page(answer, "t"))] == ["a ↵ b↵\nc"]


def test_the_largest_weights_have_shares():
    largest = 3.4028234663852886e38
    sums = terminal_text(response(MINIMAL | {"weights": [largest, largest]}), colors=False)
    assert "nan" not in sums and sums.count("0.500") == 4
