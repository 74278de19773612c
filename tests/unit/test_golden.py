"""The golden files are what their derivations give: a changed formula shows as a changed file."""

from collections.abc import Iterator

import pytest

from tests.golden import files


def leaves(value: object, where: str = "") -> Iterator[tuple[str, object]]:
    """Every number and text of a nested value, with its place."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{where}/{key}")
    else:
        yield where, value


@pytest.mark.parametrize("name", files.FILES)
def test_a_golden_file_is_what_its_derivation_gives(name):
    found, derived = dict(leaves(files.read(name))), dict(leaves(files.FILES[name]()))
    assert found.keys() == derived.keys(), "write it anew: python -m tests.golden"
    for where, value in derived.items():
        # The file has twelve digits, and exp may differ in the last of sixteen from one machine to the next.
        assert found[where] == (pytest.approx(value, rel=1e-10) if isinstance(value, float) else value), where
