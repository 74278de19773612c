"""What is saved of a training run, and when: every checkpoint.interval steps, at the end, and when it is stopped."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rest_megatron.checkpoint.resume import CHECKPOINTS, Resumed, RunIdentity
from rest_megatron.checkpoint.rng import rng_states
from rest_megatron.checkpoint.store import CheckpointStore
from rest_megatron.config.changes import shaping_keys
from rest_megatron.errors import CheckpointError, EngineError, Preempted, RestError
from rest_megatron.model.huggingface import write_companions
from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.step.dump import experience_rows
from rest_megatron.types import Experience

EXPERIENCE = "experience.jsonl"


@dataclass(frozen=True)
class Mark:
    """A run as it would be saved."""

    loop: dict[str, Any]
    """Of `RunState.to_dict`, and cursor_before: the cursor before `experience` was sampled."""
    experience: Experience | None
    """The scored answers of the step that has begun."""
    rng: dict[str, Tensor]


class Saver:
    """Saves a session's actor and `state`. Every method is collective.

    A run that is stopped is saved as it was at the last `mark`: between steps, or before a step's first update, then
    with the answers that were already scored.

    Args:
        identity: what the checkpoints are those of.
    """

    def __init__(self, session: Session, state: RunState, identity: RunIdentity) -> None:
        self.session = session
        self.state = state
        config, actor = session.config, session.actor
        # As JSON gives it back.
        shaping = json.loads(json.dumps(shaping_keys(config, identity.command)))
        self._about = {"command": identity.command, "config": shaping, "data": identity.data}
        self.store = CheckpointStore(
            session.run_dir / CHECKPOINTS,
            actor,
            session.parallel,
            config.checkpoint,
            lambda directory: write_companions(actor.policy.hf, actor.model_path, directory, session.chat_template),
        )
        self._seconds = 0.0
        self._marked: Mark
        self.mark()
        self._steps = getattr(config, identity.command).steps

    def restore(self, read_experience: Callable[[Path], Experience] | None = None) -> Experience | None:
        """Load the checkpoint that the session resumes from; a run without one of its own is saved as it starts.

        read_experience: reads scored answers that a stopped run had kept; those are returned. Raises CheckpointError
        when it cannot be loaded.
        """
        resumed, parallel = self.session.resumed, self.session.parallel
        experience, cursor_before = None, None
        if resumed is not None:
            with parallel.watch.phase("resume"), parallel.watch.patient():
                same_layout = self.store.load(resumed.directory, resumed.manifest)
            # A file that the manifest does not list is not the run's.
            kept = EXPERIENCE in resumed.manifest.files and all(
                resumed.loop[name] == about for name, about in self._about.items()
            )
            self.state.load(self._loop(resumed, kept), self.session.config.alarms)
            if kept and read_experience is not None:
                experience, cursor_before = (
                    read_experience(resumed.directory / EXPERIENCE),
                    resumed.loop["cursor_before"],
                )
            self._report(resumed, same_layout)
        self.mark(experience, cursor_before)
        if (resumed is None or not resumed.is_own) and self.session.config.checkpoint.interval:
            self.save()
        return experience

    def _loop(self, resumed: Resumed, kept: bool) -> dict[str, Any]:
        """What the loop had saved. The cursor is before the answers that are not kept; over other rows it is new."""
        loop, ours = resumed.loop, self.state.cursor.state_dict()
        cursor = loop["cursor"] if kept else loop["cursor_before"]
        same = loop["data"] == self._about["data"] and cursor["seed"] == ours["seed"]
        return loop | {"cursor": cursor if same else ours}

    def _report(self, resumed: Resumed, same_layout: bool) -> None:
        text = f"resuming after step {self.state.step} of {self._steps} from {resumed.directory}"
        if not same_layout:
            saved = {name: size for name, size in resumed.manifest.layout.items() if size is not None}
            text += f"\n  It was saved on another layout, {saved}: same state, other rounding; RNG states begin anew"
        self.session.progress.write(text)

    def mark(self, experience: Experience | None = None, cursor_before: dict[str, int] | None = None) -> None:
        """A stop saves the run as it is now.

        experience: the scored answers of the step that has begun. cursor_before: where the cursor was before they were
        sampled; None: where it was at the last mark.
        """
        loop = self.state.to_dict()
        if experience is None:
            cursor_before = loop["cursor"]
        elif cursor_before is None:
            cursor_before = self._marked.loop["cursor"]
        rng = rng_states(self.session.parallel.device)
        self._marked = Mark(loop | {"cursor_before": cursor_before}, experience, rng)

    def save(self) -> None:
        """Save the run as it was at the last mark. Raises CheckpointError on all ranks alike."""
        started = time.perf_counter()
        marked, attachments = self._marked, {}
        if marked.experience is not None and self.session.is_main:
            rows = experience_rows(marked.experience, self.session.token_table, {})
            attachments[EXPERIENCE] = "".join(json.dumps(row) + "\n" for row in rows)
        parallel = self.session.parallel
        with parallel.watch.phase("checkpoint"):
            self.store.save(marked.loop["step"], self._about | marked.loop, attachments, rng=marked.rng)
        self._seconds += time.perf_counter() - started

    def save_if_due(self) -> None:
        """Save after a step, where checkpoint.interval says so or the run ends."""
        interval, step = self.session.config.checkpoint.interval, self.state.step
        if step == self._steps or (interval and step % interval == 0):
            self.save()

    def take_seconds(self) -> float:
        """How long saves have kept the run waiting since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Inside, a run that is to stop is saved before Preempted leaves; afterwards no save is under way."""
        try:
            yield
        except Preempted as stop:
            self._settle()
            with suppress(EngineError):  # an engine on the same accelerators gives back the memory that a save needs
                self.session.rollout.sleep()
            self.save()
            self.store.close()
            step = self._marked.loop["step"]
            raise Preempted(
                f"{stop.args[0]}: saved after step {step} of {self._steps} in {self.store.directory}; the same command "
                "resumes from there"
            ) from stop
        except RestError:
            self._settle()
            raise
        self.store.close()

    def _settle(self) -> None:
        """Wait for the save under way; what it fails with is reported, and does not hide why the run ends."""
        try:
            self.store.close()
        except CheckpointError as error:
            self.session.progress.write(f"the last save in the background failed: {error}")


class NoSaver:
    """The saver of a run that is not saved."""

    def mark(self, experience: Experience | None = None) -> None:
        """Remember nothing."""

    def save_if_due(self) -> None:
        """Save nothing."""

    def take_seconds(self) -> float:
        """Nothing is saved, in no time."""
        return 0.0
