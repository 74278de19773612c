"""The profile of a model, as text, JSON, picture and page."""

import base64
import json
import math
import subprocess
import sys
from copy import deepcopy

import pytest

from rest_megatron.observe.profile import profile_table, write_profile
from tests.paths import ROOT
from tests.unit.observe.profiles import ABSENT, NAN, PROFILE
from tests.unit.observe.shown import Page


def test_the_table_shows_every_region_in_columns():
    lines = profile_table(PROFILE).splitlines()
    assert (
        lines[0] == "model models/tiny  prompts 5  answers 20  mean length 50.0  reward/mean 2.500  reward/format 0.750"
    )
    start = lines.index("") + 1
    assert [line.split() for line in lines[start : start + 5]] == [
        "region tokens share length entropy score norm bound max/bound lm head weight weight share".split(),
        "format 600 0.600 30.0 0.0500 0.0200 0.0300 0.998 12.35 0.500 0.300".split(),
        "tool_name 0 0.000 0.0 - - - - - 1.000 0.000".split(),
        "parameters 150 0.150 7.5 0.4000 0.2000 0.2500 0.998 12.35 1.000 0.150".split(),
        "cot 250 0.250 12.5 1.3000 0.5000 0.6000 0.998 12.35 2.000 0.500".split(),
    ]
    assert len({len(line) for line in lines[start : start + 5]}) == 1
    assert "0 of 1000 tokens break it; the score norm is 0.877 of its bound on average" in profile_table(PROFILE)


def test_the_table_says_what_the_weights_do_to_the_variance_and_what_it_means():
    text = profile_table(PROFILE)
    assert "these change the variance by -75.0% +- 7.5%, the relative one by -50.0%" in text
    assert ["uniform", "4", "0.5", "0.5", "8", "16"] in [line.split() for line in text.splitlines()]
    assert "Token weights change the expected gradient" in " ".join(text.split()) and "noise to signal" in text


def test_the_table_says_what_a_step_gains_and_that_noise_to_signal_ranks_nothing():
    text = profile_table(PROFILE)
    assert "an Adam step with these gains +0.5 +- 0.12, 1.200 times as much; cosine 0.875" in text
    assert [["uniform", "2.5", "0.5"], ["these", "3", "0.75"]] == [
        line.split() for line in text.splitlines() if line.startswith(("uniform", "these ")) and len(line.split()) == 3
    ]
    assert "noise to signal did not rank methods" in " ".join(text.split())


def test_a_cosine_and_a_ratio_that_were_not_measured_are_said_so():
    profile = deepcopy(PROFILE)
    profile["gradient_variance"]["together"] |= {"cosine": NAN, "gain_ratio": NAN, "gain_difference_error": NAN}
    text = profile_table(profile)
    assert "gains +0.5 +- -; the cosine cannot be measured" in text and "nan" not in text


@pytest.mark.parametrize("kind, named", [("uniform", "uniform weights"), ("weights", "these weights")])
@pytest.mark.parametrize("value", [-0.125, 0.0])
def test_a_mean_gradient_lost_in_the_noise_is_said_so(kind, named, value):
    profile = deepcopy(PROFILE)
    profile["gradient_variance"][kind] |= {"mean_norm_squared": value, "relative": math.inf}
    text = profile_table(profile)
    assert (
        f"by -75.0% +- 7.5%; the relative one cannot be measured: the unbiased |mean|^2 is {value:.4g} of {named}"
        in text
    )
    assert "lost in the noise" in text and "profile.prompts" in text
    assert text.count("not measurable") == 1 and "inf" not in text.split("Against")[1]


def test_without_variance_nothing_is_said_of_it():
    assert "variance" not in profile_table(PROFILE | {"gradient_variance": None})


def test_the_files_hold_the_profile(tmp_path):
    path = write_profile(tmp_path / "new" / "profile", PROFILE)
    assert path == tmp_path / "new" / "profile" / "profile.html"
    stored = json.loads((path.parent / "profile.json").read_text(), parse_constant=pytest.fail)
    expected = deepcopy(PROFILE)
    for key in ("entropy", "score_norm", "bound", "score_norm_max_over_bound", "lm_head"):
        expected["regions"]["tool_name"][key] = None
    assert stored == expected

    page = Page(path.read_text())
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    png = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
    assert png == (path.parent / "profile.png").read_bytes() and png.startswith(b"\x89PNG")
    assert "format 600 0.600 30.0 0.0500 0.0200 0.0300 0.998 12.35 0.500 0.300".split() in page.rows
    assert ["these", "3", "0.75"] in page.rows
    assert ["these", "1", "0.25", "0.25", "4", "16"] in page.rows and ["reward/mean", "2.500"] in page.rows
    assert ["model", "models/tiny"] in page.rows
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_a_profile_without_variance_or_regions_with_tokens_has_its_files(tmp_path):
    profile = PROFILE | {"gradient_variance": None, "regions": dict.fromkeys(PROFILE["regions"], ABSENT)}
    assert "Gradient variance" not in write_profile(tmp_path, profile).read_text()


def test_bars_show_entropy_norm_beside_bound_and_length(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    write_profile(tmp_path, PROFILE)
    heights = [[bar.get_height() for bar in axes.patches] for axes in figures[0].axes]
    assert heights[0] == pytest.approx([0.05, NAN, 0.4, 1.3], nan_ok=True)
    assert heights[1] == pytest.approx([0.02, NAN, 0.2, 0.5, 0.03, NAN, 0.25, 0.6], nan_ok=True)
    assert heights[2] == [30.0, 0.0, 7.5, 12.5]
    assert [text.get_text() for text in figures[0].axes[1].get_legend().get_texts()] == [
        "exact: 1 - sum p^2",
        "bound: 1 - exp(-H)",
    ]


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, rest_megatron.observe.profile; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
