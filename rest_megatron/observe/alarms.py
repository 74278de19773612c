"""Alarms for ways in which a run goes wrong quietly.

Answers that grow short, format without correctness, an engine that samples from another policy than the actor's, and
control tokens whose probability jumps.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev

from rest_megatron.config.schema import AlarmsConfig
from rest_megatron.observe.jumps import log_odds, probability, usual_range
from rest_megatron.reward.paper import ACCURACY_PARTS

SHORT, HACKING, MISMATCH, CONTROL = "short_answers", "format_hacking", "mismatch", "control_tokens"
LENGTH = ("rollout/length",)
FORMAT = ("reward/format",)
PROBABILITY = ("probability/format",)
ACCURACY = tuple(f"reward/{name}" for name in ACCURACY_PARTS if name != "exact")
RISE = 0.002  # of the accuracy, per step of the window: less is noise, which a run that learns nothing has, too


@dataclass
class _State:
    """The last window of each quantity, and what is remembered of the windows before."""

    lengths: list[float] = field(default_factory=list)
    formats: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    first_length: float | None = None
    risen_accuracy: float = 0.0
    """The mean at the last rise."""
    best_accuracy: float = 0.0
    steps_since_rise: int = 0
    active: list[str] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    """Log-odds of the format tokens' probability, of the last steps in its range."""
    control_outside: list[float] = field(default_factory=list)
    """Those since it left that range."""


class Alarms:
    """Watches the metrics of a run; `to_dict` and `from_dict` carry it through a checkpoint.

    short_answers: the mean length over the last alarms.window steps is below alarms.min_length_ratio of that of the
    run's first window.
    format_hacking: over the last window the format rate is above alarms.format_high, the mean of the accuracy parts
    (name, parameter names, parameter values) is below alarms.correctness_low, and it has not risen for alarms.window
    steps. A rise is a mean above that of the last rise by more than 0.002 alarms.window. While the alarm lasts, it is
    one above the best of all by as much and by three standard errors of the window's mean, which noise seldom is.
    mismatch: the mean |log-prob difference| between actor and engine over the step's tokens is above
    alarms.max_mismatch.
    control_tokens: the mean probability of the step's sampled format tokens (tags, the JSON around a call, the end of a
    turn) is out of the range of the last window, see `usual_range`, with alarms.control_jump as floor. Such jumps come
    with the collapse of RL on tool use (arXiv 2606.26027). While the alarm lasts the range stays; it ends with a step
    within it, or when more than a window of steps in a row, of which the last window then is the range, were outside.
    A step that lacks a metric of an alarm, as with a reward of the user's own, leaves that alarm as it is.
    """

    def __init__(self, settings: AlarmsConfig) -> None:
        self._settings = settings
        self._state = _State()

    @property
    def metrics(self) -> dict[str, float]:
        """alarm/short_answers, /format_hacking, /mismatch and /control_tokens: 1 while the alarm lasts, else 0."""
        return {f"alarm/{name}": float(name in self._state.active) for name in (SHORT, HACKING, MISMATCH, CONTROL)}

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take the metrics of one step, counted from 1; returns a message for each alarm that begins or ends."""
        watches = (self._watch_length, self._watch_format, self._watch_mismatch, self._watch_control)
        return [message for watch in watches for message in watch(step, metrics)]

    def to_dict(self) -> dict:
        """The state as plain JSON."""
        return asdict(self._state)

    @classmethod
    def from_dict(cls, settings: AlarmsConfig, state: Mapping) -> "Alarms":
        """The alarms that `to_dict` describes, which resume exactly where those were."""
        alarms = cls(settings)
        alarms._state = _State(**deepcopy(dict(state)))
        return alarms

    def _watch_length(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        state, ratio = self._state, self._settings.min_length_ratio
        if not _measured(metrics, LENGTH) or not self._push(state.lengths, metrics[LENGTH[0]]):
            return []
        mean = fmean(state.lengths)
        if state.first_length is None:
            state.first_length = mean
        short = mean < ratio * state.first_length
        numbers = (
            f"over {self._settings.window} steps {mean:.1f} tokens, {'below' if short else 'at least'} "
            f"{ratio:g} x the {state.first_length:.1f} of the first (alarms.min_length_ratio)"
        )
        return self._switch(
            SHORT,
            short,
            begins=f"alarm at step {step}: answers grow short: {numbers}\n"
            f"  Read rollouts/step-{step}.jsonl. Where short answers score as well as long ones, look at the reward; "
            "else lower optim.lr, or raise weights.clamp_min so that thoughts keep their weight",
            ends=f"alarm ends at step {step}: answers are no longer short: {numbers}",
        )

    def _watch_format(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        state, settings = self._state, self._settings
        if not _measured(metrics, FORMAT + ACCURACY):
            return []
        full = self._push(state.formats, metrics[FORMAT[0]])
        self._push(state.accuracies, fmean(metrics[name] for name in ACCURACY))
        if not full:
            return []
        format_rate, accuracy = fmean(state.formats), fmean(state.accuracies)
        before, margin = state.risen_accuracy, RISE * settings.window
        if HACKING in state.active:
            before, margin = state.best_accuracy, max(margin, 3 * _standard_error(state.accuracies))
        if accuracy > before + margin:
            state.risen_accuracy, state.steps_since_rise = accuracy, 0
        else:
            state.steps_since_rise += 1
        state.best_accuracy = max(state.best_accuracy, accuracy)
        stalled = accuracy < settings.correctness_low and state.steps_since_rise >= settings.window
        numbers = f"over {settings.window} steps format {format_rate:.2f} and accuracy {accuracy:.2f}"
        return self._switch(
            HACKING,
            stalled and format_rate > settings.format_high,
            begins=f"alarm at step {step}: format without correctness: {numbers}, which has not risen for "
            f"{state.steps_since_rise} steps (alarms.format_high={settings.format_high:g}, "
            f"alarms.correctness_low={settings.correctness_low:g})\n"
            f"  Read rollouts/step-{step}.jsonl for well-formed answers that are wrong. Check that the format alone "
            "does not earn most of the reward; raise weights.alpha_format, or start from a better supervised model",
            ends=f"alarm ends at step {step}: no longer format without correctness: {numbers}",
        )

    def _watch_mismatch(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        limit, mean = self._settings.max_mismatch, metrics.get("mismatch/mean", math.nan)
        # Answers of older weights, as in a replay, differ for that reason.
        if limit == 0 or math.isnan(mean) or metrics.get("rollout/weight_lag", 0.0) != 0:
            return []
        numbers = f"mean |log-prob difference| {mean:.2g}, {'above' if mean > limit else 'at most'} {limit:g}"
        return self._switch(
            MISMATCH,
            mean > limit,
            begins=f"alarm at step {step}: actor and engine disagree: {numbers} (alarms.max_mismatch); largest "
            f"{metrics.get('mismatch/max', math.nan):.2g}, weight version "
            f"{metrics.get('rollout/weight_version', math.nan):.0f}\n"
            "  Rounding gives about 1e-6 in float32 and 0.02 in bfloat16, a stale or incomplete weight sync 0.2 and "
            "more. Check that the server runs model.dtype and returns processed log-probs at rollout.temperature, and "
            "that nothing else updates its weights; lower rollout.probe_tolerance to stop at the sync that goes wrong",
            ends=f"alarm ends at step {step}: actor and engine agree again: {numbers}",
        )

    def _watch_control(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        state, floor, window = self._state, self._settings.control_jump, self._settings.window
        if floor == 0 or not _measured(metrics, PROBABILITY):
            return []
        mean = metrics[PROBABILITY[0]]
        odds, usual = log_odds(mean), state.control[-window:]
        if len(usual) < window:
            self._push(state.control, odds)
            return []
        low, high = usual_range(usual, floor)
        state.control_outside = [] if low <= odds <= high else [*state.control_outside, odds]
        settled = len(state.control_outside) > window
        if settled:
            state.control, state.control_outside = state.control_outside[-window:], []
        elif not state.control_outside:
            self._push(state.control, odds)
        numbers = f"mean probability {mean:.4f}, usual {probability(low):.4f} to {probability(high):.4f}"
        how = f"has stayed outside for {window + 1} steps, which are usual from now on" if settled else "is usual again"
        return self._switch(
            CONTROL,
            bool(state.control_outside),
            begins=f"alarm at step {step}: control tokens jump: {numbers} after the last {window} steps "
            f"(alarms.control_jump={floor:g})\n"
            f"  Read rollouts/step-{step}.jsonl for tags and ends of a turn that are missing, repeated or misplaced. "
            "If reward/format falls, go back to an earlier checkpoint with a lower optim.lr or a higher "
            "algorithm.kl_coef, or train on demonstrations again (sft), which restores the format",
            ends=f"alarm ends at step {step}: the probability of control tokens {how}: {numbers}",
        )

    def _push(self, values: list[float], value: float) -> bool:
        """Append `value` and keep the last window; whether that is full."""
        values.append(value)
        del values[: -self._settings.window]
        return len(values) == self._settings.window

    def _switch(self, name: str, on: bool, *, begins: str, ends: str) -> list[str]:
        active = self._state.active
        if on == (name in active):
            return []
        if on:
            active.append(name)
            return [begins]
        active.remove(name)
        return [ends]


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean of `values`; 0 for a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _measured(metrics: Mapping[str, float], names: Sequence[str]) -> bool:
    return all(math.isfinite(metrics.get(name, math.nan)) for name in names)
