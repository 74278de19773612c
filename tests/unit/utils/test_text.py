"""Text for people."""

import pytest

from rest_megatron.utils.text import clean, duration, text_table


def test_a_table_aligns_names_to_the_left_and_numbers_to_the_right():
    assert text_table(("", "count"), [("a", "5"), ("long name", "12345678")]) == (
        "              count\na                 5\nlong name  12345678"
    )


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (3599.6, "1h00m"),
        (18240, "5h04m"),
        (360000, "100h00m"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\x1b[31mb\x07", "a[31mb"),
        ("a\rb\tc\x00\x9b2J", "abc2J"),
        ("x\u202ey\u200bz\ufeff", "xyz"),
        ("lone \udc80 surrogate", "lone  surrogate"),
        ("two\nlines é 漢 😀", "two\nlines é 漢 😀"),
    ],
)
def test_nothing_steers_the_terminal(text, shown):
    assert clean(text) == shown
    clean(text).encode("utf-8")
