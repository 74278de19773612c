"""Updates whose loss or gradient is not finite: skipped on every rank, dumped, counted, and not too many in a row."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import NonFiniteError
from rest_megatron.types import PolicyStreams, Trajectory

logger = logging.getLogger(__name__)


class SkipBudget:
    """Counts skipped updates in a row; `in_row` is carried through a checkpoint.

    Args:
        most: train.max_nonfinite.
        directory: where the batches of skipped updates are written, one file per data-parallel rank.
    """

    def __init__(self, most: int, directory: Path, parallel: Parallel):
        self.most = most
        self.directory = directory
        self.parallel = parallel
        self.in_row = 0

    def count(
        self,
        step: int,
        metrics: Mapping[str, float],
        trajectories: Sequence[Trajectory],
        streams: PolicyStreams | None = None,
    ) -> None:
        """Take note of an update's metrics, the same on every rank; `trajectories` and `streams` are this rank's.

        Raises NonFiniteError for one skipped update too many.
        """
        if math.isfinite(metrics["actor/grad_norm"]):
            self.in_row = 0
            return
        self.in_row += 1
        if self.parallel.tp_rank == self.parallel.pp_rank == 0:
            name = f"step-{step}-skip-{self.in_row}-rank-{self.parallel.dp_rank}.jsonl"
            _dump(self.directory / name, _rows(trajectories, streams))
        if self.in_row > self.most:
            loss, norm = metrics["actor/loss"], metrics["actor/grad_norm"]
            raise NonFiniteError(
                f"step {step}: loss {loss}, gradient norm {norm}: skipped updates in a row: {self.in_row}, "
                f"train.max_nonfinite={self.most}. No weight was changed by them; their batches: {self.directory}\n"
                "  Look for what they have in common, lower optim.lr, or go on from an earlier checkpoint, with "
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
