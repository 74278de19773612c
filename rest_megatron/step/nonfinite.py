"""Updates whose loss or gradient is not finite: skipped on every rank, dumped, counted, and not too many in a row."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rest_megatron.errors import NonFiniteError
from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.types import PolicyStreams, Trajectory

logger = logging.getLogger(__name__)


def count_skipped(
    session: Session,
    state: RunState,
    step: int,
    metrics: Mapping[str, float],
    trajectories: Sequence[Trajectory],
    streams: PolicyStreams | None = None,
) -> None:
    """Take note of an update's metrics, the same on every rank, in state.skipped; a skipped one's batch is dumped.

    trajectories, streams: this rank's; they go to run.dir/nonfinite, a file per data-parallel rank.
    Raises NonFiniteError for more than train.max_nonfinite skipped updates in a row.
    """
    if math.isfinite(metrics["actor/grad_norm"]):
        state.skipped = 0
        return
    state.skipped += 1
    parallel, directory, most = session.parallel, session.run_dir / "nonfinite", session.config.train.max_nonfinite
    if parallel.tp_rank == parallel.pp_rank == 0:
        name = f"step-{step}-skip-{state.skipped}-rank-{parallel.dp_rank}.jsonl"
        _dump(directory / name, _rows(trajectories, streams))
    if state.skipped > most:
        loss, norm = metrics["actor/loss"], metrics["actor/grad_norm"]
        raise NonFiniteError(
            f"step {step}: loss {loss}, gradient norm {norm}: skipped updates in a row: {state.skipped}, "
            f"train.max_nonfinite={most}. No weight was changed by them; their batches: {directory}\n"
            "  Look for what they have in common, lower optim.lr, or resume from an earlier checkpoint, with "
            "checkpoint.resume=DIR in another run.dir"
        )


def _dump(path: Path, rows: list[dict]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        logger.warning("%s, the batch of a skipped update, cannot be written: %s", path, error)


def _rows(trajectories: Sequence[Trajectory], streams: PolicyStreams | None) -> list[dict]:
    """One row per trajectory: its ids, and its part of each stream, NaN and Infinity as Python's json writes them."""
    rows = [{"prompt_ids": t.prompt_ids, "ids": t.response_ids, "response_mask": t.response_mask} for t in trajectories]
    lengths = [t.num_targets for t in trajectories]
    for name, stream in ({} if streams is None else streams._asdict()).items():
        if stream is not None:
            for row, part in zip(rows, stream.cpu().split(lengths), strict=True):
                row[name] = part.tolist()
    return rows
