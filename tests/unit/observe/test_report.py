"""The report of a run."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rest_megatron.config import dump, load
from rest_megatron.errors import DataError
from rest_megatron.observe.report import HELD_OUT, PANELS, final_table, write_report
from tests.paths import ROOT
from tests.unit.observe.shown import Page

BEFORE = {"reward/mean": 1.0, "reward/format": 0.5, "reward/name": 0.4, "reward/parameter_values": 0.2}
AFTER = {"reward/mean": 3.25, "reward/format": 0.95, "reward/name": 0.9, "reward/parameter_values": 0.1}


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    names = [name for _, _, series in PANELS for name in series.values()]
    rows = [{"step": step, "time/step": 2.0} | {name: step / 3 for name in names} for step in (1, 2, 3)]
    rows[1] |= {"entropy/cot": None, "rollout/tokens_per_second": 377.0}
    write_rows(directory / "metrics.jsonl", rows)
    write_rows(directory / "eval.jsonl", [{"step": 0} | BEFORE, {"step": 2, "reward/mean": 9.0}, {"step": 3} | AFTER])
    (directory / "config.yaml").write_text(dump(load([], ["model.path=tiny", "deepspeed.password=hunter2"])))
    return directory


def test_the_page_compares_held_out_metrics_before_and_after(run_dir):
    rows = Page(write_report(run_dir).read_text()).rows
    assert ["", "before", "after", "change"] in rows
    assert ["reward", "1.000", "3.250", "+2.250"] in rows
    assert ["format", "0.500", "0.950", "+0.450"] in rows
    assert ["tool name", "0.400", "0.900", "+0.500"] in rows
    assert ["parameter values", "0.200", "0.100", "-0.100"] in rows
    assert not any(row[0] == "exact answers" for row in rows)


def test_the_page_states_the_facts_of_the_run(run_dir):
    rows = Page(write_report(run_dir).read_text()).rows
    for row in (["steps", "3"], ["training time", "6s"], ["sampled tokens per second", "377"], ["model", "tiny"]):
        assert row in rows
    assert ["method", "paper"] in rows and ["answers per prompt", "8"] in rows
    assert not any(row[0] == "held-out prompts" for row in rows)


def test_the_page_needs_nothing_but_itself(run_dir):
    text = write_report(run_dir).read_text()
    page = Page(text)
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert png == (run_dir / "report.png").read_bytes() and png.startswith(b"\x89PNG")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://", text)


def test_the_page_escapes_everything_and_shows_no_secret(run_dir):
    hostile = "<script>alert(1)</script>\x1b\u202e"
    config = load([], ["deepspeed.password=hunter2"])
    text = dump(config).replace("path: ''", f"path: {json.dumps(hostile)}")
    (run_dir / "config.yaml").write_text(text)
    page = write_report(run_dir).read_text()
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page and "\u202e" not in page and "hunter2" not in page


def test_every_panel_is_drawn_from_its_metrics(run_dir, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    write_report(run_dir)
    (figure,) = figures
    for axes, (title, scale, series) in zip(figure.axes, PANELS, strict=True):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert (axes.get_title(), axes.get_yscale()) == (title, scale)
        assert lines.keys() == set(series)
        assert all(list(line.get_xdata()) == [1, 2, 3] for line in lines.values())
    held_out = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in held_out] == [([0, 2, 3], [1.0, 9.0, 3.25])]


def test_a_panel_that_was_not_measured_is_left_out_and_a_single_point_shows(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    rows = [
        {"step": 1, "reward/mean": 1.0, "clip_fraction/cot": None},
        {"step": 2, "gradient_variance/uniform/variance": 3.0},
    ]
    write_rows(tmp_path / "metrics.jsonl", rows)
    write_report(tmp_path)
    first, second = figures[0].axes
    assert [first.get_title(), second.get_title()] == ["reward", "gradient variance over groups"]
    assert [(line.get_marker(), list(line.get_ydata())) for axes in (first, second) for line in axes.lines] == [
        (".", [1.0]),
        (".", [3.0]),
    ]


@pytest.mark.parametrize("row", [{"step": 1}, {"step": 1, "actor/loss": 0.5}, {"step": 1, "entropy/cot": 0.0}])
def test_a_run_with_few_metrics_and_no_evaluation_has_a_report(tmp_path, row):
    write_rows(tmp_path / "metrics.jsonl", [row])
    assert "No held-out prompts were evaluated" in write_report(tmp_path).read_text()


def test_a_run_without_metrics_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no metrics"):
        write_report(tmp_path)


def test_the_final_table_aligns_before_after_and_change():
    assert final_table(BEFORE, AFTER).splitlines() == [
        "held-out prompts      before     after    change",
        "reward                 1.000     3.250    +2.250",
        "format                 0.500     0.950    +0.450",
        "tool name              0.400     0.900    +0.500",
        "parameter values       0.200     0.100    -0.100",
    ]
    assert set(BEFORE) <= set(HELD_OUT.values())


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, rest_megatron.observe.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
