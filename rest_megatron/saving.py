"""What is saved of a training run, and when: every checkpoint.interval steps, at the end, and when it is stopped."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rest_megatron.checkpoint.hf import write_companions
from rest_megatron.checkpoint.rng import rng_states, set_rng_states
from rest_megatron.checkpoint.store import CheckpointStore
from rest_megatron.collecting import Experience
from rest_megatron.config.changes import shaping_keys
from rest_megatron.config.refuse import refuse
from rest_megatron.errors import Preempted
from rest_megatron.observe.rollouts import experience_rows
from rest_megatron.resume import CHECKPOINTS, Resumed
from rest_megatron.run_state import RunState
from rest_megatron.session import Session

EXPERIENCE = "experience.jsonl"


class Saver:
    """Saves a session's actor and `state`. Every method is collective.

    A run that is stopped is saved as it was at the last `mark`: between steps, or before a step's first update, then
    with the answers that were already scored.

    Args:
        command: train or sft.
        data: `data_hash` of what is trained on.
    """

    def __init__(self, session: Session, state: RunState, command: str, data: str):
        self.session = session
        self.state = state
        config, actor = session.config, session.actor
        self._about = {"command": command, "config": shaping_keys(config, command), "data": data}
        self.store = CheckpointStore(
            session.run_dir / CHECKPOINTS,
            actor,
            session.parallel,
            config.checkpoint,
            lambda directory: write_companions(actor.policy.hf, actor.model_path, directory, session.chat_template),
        )
        self.seconds = 0.0
        """That the last save kept the run waiting."""
        self._steps = getattr(config, command).steps

    def restore(self, read_experience: Callable[[Path], Experience] | None = None) -> Experience | None:
        """Load the checkpoint that the session goes on from; a run without one of its own is saved as it starts.

        read_experience: reads scored answers that a stopped run had kept; those are returned. Raises ConfigError for
        other data than the checkpoint's, CheckpointError when it cannot be loaded.
        """
        resumed = self.session.resumed
        experience = None
        if resumed is not None:
            with self.session.parallel.watch.phase("resume"), self.session.parallel.watch.patient():
                same_layout = self.store.load(resumed.directory, resumed.manifest)
            self.state.load(self._of_this_data(resumed), self.session.config.alarms)
            kept = EXPERIENCE in resumed.manifest.files  # a file that the manifest does not list is not the run's
            if read_experience is not None and kept and not self.session.config.checkpoint.allow_changes:
                experience = read_experience(resumed.directory / EXPERIENCE)
            self._tell(resumed, same_layout)
        self.mark(experience)
        if (resumed is None or not resumed.is_own) and self.session.config.checkpoint.interval:
            self.save()
        return experience

    def _tell(self, resumed: Resumed, same_layout: bool) -> None:
        text = f"going on after step {self.state.step} of {self._steps} from {resumed.directory}"
        if not same_layout:
            saved = {name: size for name, size in resumed.manifest.layout.items() if size is not None}
            text += f"\n  It was saved on another layout, {saved}: same state, other rounding; RNG states begin anew"
        self.session.progress.write(text)

    def _of_this_data(self, resumed: Resumed) -> dict[str, Any]:
        """What the loop had saved; over other data, where that is allowed, the order of its rows starts anew."""
        config, saved = self.session.config, resumed.loop
        if saved["data"] != self._about["data"] and not config.checkpoint.allow_changes:
            key = "data.train" if self._about["command"] == "train" else "sft.data"
            rule = f"gives other rows than those that {resumed.directory} was trained on (their hashes differ)"
            fix = "Restore the file, tokenizer and chat template, or allow it with checkpoint.allow_changes=true"
            refuse(config, key, rule, fix)
        ours = self.state.cursor.state_dict()
        same = saved["data"] == self._about["data"] and saved["cursor"]["seed"] == ours["seed"]
        return saved if same else saved | {"cursor": ours}

    def mark(self, experience: Experience | None = None) -> None:
        """A stop saves the run as it is now; experience: the scored answers of the step that has begun."""
        self._marked = (self.state.to_dict(), experience, rng_states(self.session.parallel.device))

    def save(self) -> None:
        """Save the run as it was at the last mark. Raises CheckpointError on all ranks alike."""
        started = time.perf_counter()
        state, experience, rng = self._marked
        attachments = {}
        if experience is not None and self.session.is_main:
            rows = experience_rows(experience, self.session.token_table, {})
            attachments[EXPERIENCE] = "".join(json.dumps(row) + "\n" for row in rows)
        parallel = self.session.parallel
        now = rng_states(parallel.device)
        set_rng_states(rng, parallel.device)
        with parallel.watch.phase("checkpoint"):
            self.store.save(state["step"], self._about | state, attachments)
        set_rng_states(now, parallel.device)
        self.seconds = time.perf_counter() - started

    def save_if_due(self) -> None:
        """Save after a step, where checkpoint.interval says so or the run ends."""
        interval, step = self.session.config.checkpoint.interval, self.state.step
        if step == self._steps or (interval and step % interval == 0):
            self.save()

    @contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Inside, a run that is asked to stop is saved before Preempted goes on; afterwards no save is under way."""
        try:
            yield
        except Preempted as stop:
            self.save()
            self.store.close()
            step = self._marked[0]["step"]
            raise Preempted(
                f"{stop.args[0]}: saved after step {step} of {self._steps} in {self.store.directory}; the same command "
                "goes on from there"
            ) from stop
        self.store.close()


class NoSaver:
    """The saver of a run that is not saved."""

    seconds = 0.0

    def mark(self, experience: Experience | None = None) -> None:
        """Remember nothing."""

    def save_if_due(self) -> None:
        """Save nothing."""
