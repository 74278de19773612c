"""The reference of the configuration is the one that the schema gives."""

import re

import pytest

from rest_megatron.config.keys import keys, sections
from rest_megatron.config.page import markdown
from tests.paths import ROOT

FIX = "python tools/configuration_page.py > docs/configuration.md"


def test_the_committed_page_is_what_the_schema_says():
    committed = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert committed == markdown(), f"docs/configuration.md and the schema differ; renew the page: {FIX}"


def test_every_key_has_a_row_in_its_section():
    page = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", markdown(), re.MULTILINE | re.DOTALL))
    for name in keys():
        section, _, key = name.partition(".")
        assert section in page and (not key or f"| `{key}` |" in page[section]), name
    assert list(sections()) == [name for name in page if name in sections()]


@pytest.mark.parametrize(
    "row",
    [
        "| `lr` | number > 0 | `1e-6` | Peak learning rate. |",
        "| `eval` | text, or `null` | `null` | Held-out prompts in the same schema. |",
        "| `overlong` | `error`, `drop` | `error` | What to do with a longer prompt at load. |",
        "| `scope` | `batch`, `response` | `batch` | Where a region's mean is taken: `batch`: all answers that are "
        "trained on, over steps as `freeze_after` says; `response`: each answer of this step by itself. |",
        "| `weights.preset=uniform` | `weights.rule=constant`, `weights.curriculum=none` |",
        "| `model`, `model_tag`, `tokenizer` | decided by `model.path` |",
    ],
)
def test_a_row_says_what_may_be_written(row):
    assert f"\n{row}\n" in markdown()


def test_no_cell_breaks_its_table():
    for line in markdown().splitlines():
        if line.startswith("|"):
            assert len(re.split(r"(?<!\\)\|", line)) in (4, 6), line
