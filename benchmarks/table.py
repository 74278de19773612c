"""The table for people."""

from dataclasses import dataclass

from .floors import Rates, floor_seconds
from .worker import Result

# Rounding of the gradient to its dtype stays below the first; at level "hidden" the logits are rounded as well.
TOLERANCE = {"bf16": (1e-2, 5e-2), "fp16": (2e-3, 1e-2), "fp32": (1e-4, 1e-4)}
HEADER = ("contestant", "time", "x floor", "x ours", "extra memory", "error", "does")


@dataclass(frozen=True)
class Row:
    """One result beside what it is compared with. `floor` in seconds; the ratios are None where it did not run."""

    result: Result
    floor: float
    per_floor: float | None
    per_ours: float | None


def make_rows(results: list[Result], rates: Rates) -> list[Row]:
    """Ratios to the floor of the same case and to the contestant called "ours" in the same case."""
    ours = {r.case: r.seconds for r in results if r.contestant == "ours" and r.seconds is not None}
    rows = []
    for result in results:
        floor = floor_seconds(result.case, result.fraction, rates)
        if result.seconds is None:
            rows.append(Row(result, floor, None, None))
            continue
        own = ours.get(result.case)
        rows.append(Row(result, floor, result.seconds / floor, result.seconds / own if own else None))
    return rows


def format_table(rows: list[Row], rates: Rates) -> str:
    """Text: a block per case, in the order of the rows, and what could not run at the end of each block."""
    copy, gemm = rates.copy / 1e9, rates.gemm / 1e12
    blocks = [f"{rates.hardware}: copy {copy:.1f} GB/s (read + written), GEMM {gemm:.2f} TFLOP/s"]
    for case in dict.fromkeys(row.result.case for row in rows):
        mine = [row for row in rows if row.result.case == case]
        floor = next((f" (floor {format_seconds(row.floor)})" for row in mine if row.result.fraction == 1), "")
        lines = [_cells(row) for row in mine if not row.result.reason]
        block = [f"{case.title()}{floor}", *_align([HEADER, *lines])] if lines else [f"{case.title()}{floor}"]
        block += [f"  {row.result.contestant}: {row.result.reason}" for row in mine if row.result.reason]
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)


def is_wrong(result: Result) -> bool:
    """Whether its error is beyond the rounding of its dtype."""
    if result.error is None:
        return False
    return result.error > TOLERANCE[result.case.dtype][result.case.level == "hidden"]


def format_seconds(seconds: float) -> str:
    """Milliseconds, or seconds from 1 on."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.4g} ms"


def format_bytes(size: int | None) -> str:
    """MiB, or GiB from 1 on."""
    if size is None:
        return "-"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _cells(row: Row) -> tuple[str, ...]:
    result = row.result
    error = "-" if result.error is None else f"{result.error:.1e}"
    return (
        result.contestant,
        format_seconds(result.seconds),
        f"{row.per_floor:.2f}",
        "-" if row.per_ours is None else f"{row.per_ours:.2f}",
        format_bytes(result.extra_bytes),
        f"{error} WRONG" if is_wrong(result) else error,
        result.does,
    )


def _align(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  " + "  ".join(_pad(i, cell, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]


def _pad(column: int, cell: str, width: int) -> str:
    is_text = column in (0, len(HEADER) - 1)
    return cell.ljust(width) if is_text else cell.rjust(width)
