"""Clipped losses of two or three short answers, and their gradients by hand; see `files`.

With r = exp(log_prob - old): l = max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0 and a dual clip c is given,
l = min(l, -A c). dl/dlog_prob is -A r where the first of the two is the larger and no dual clip holds, else 0. The
estimate k3 of KL is e^d - 1 - d with d = ref - log_prob, and its derivative 1 - e^d. In GSPO every token of an answer
has the answer's ratio, exp of the mean of log_prob - old.
"""

import math
import random

LENGTHS = ((3, 1), (2, 4, 5), (6,))
SETTINGS = {
    "ppo": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},
    "clip higher": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    "dual clip": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_dual": 1.5},
}
KL_COEF = 0.05
MODES = ("seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm")
MAX_NEW_TOKENS = 8


def rows() -> list[dict]:
    """A row for each batch, setting and way to add up."""
    rng = random.Random(20)
    made = []
    for lengths in LENGTHS:
        batch = _batch(lengths, rng)
        for name, settings in SETTINGS.items():
            for mode in MODES:
                scale = _scale(lengths, batch["token_weights"], mode)
                row = {"name": f"{name}, {mode}", "lengths": list(lengths), **batch, "settings": settings, "mode": mode}
                row |= {"max_new_tokens": MAX_NEW_TOKENS, "kl_coef": KL_COEF, "loss_weights": scale}
                row |= {"token": _added(batch, scale, settings, _ratios(batch))}
                if "clip_ratio_dual" not in settings:
                    row |= {"sequence": _added(batch, scale, settings, _answer_ratios(batch, lengths), kl_coef=0.0)}
                made.append(row)
    return made


def _batch(lengths: tuple[int, ...], rng: random.Random) -> dict[str, list[float]]:
    """Numbers with three digits. Advantages are those of the answers, at each token."""
    count = sum(lengths)
    log_probs = [round(rng.uniform(-4.0, -0.1), 3) for _ in range(count)]
    # Far enough apart for every clip to hold somewhere.
    old = [round(x + rng.choice((-0.9, -0.3, -0.05, 0.05, 0.3, 0.9)), 3) for x in log_probs]
    return {
        "log_probs": log_probs,
        "old_log_probs": old,
        "ref_log_probs": [round(x + rng.uniform(-0.5, 0.5), 3) for x in log_probs],
        "advantages": [a for n in lengths for a in [round(rng.choice((-1, 1)) * rng.uniform(0.2, 2.0), 3)] * n],
        "token_weights": [round(rng.choice((0.0, 0.4, 1.0, 1.7)), 3) for _ in range(count)],
    }


def _scale(lengths: tuple[int, ...], weights: list[float], mode: str) -> list[float]:
    """What each token's loss is multiplied by."""
    own = [length for length in lengths for _ in range(length)]
    return {
        "seq-mean-token-mean": [w / n / len(lengths) for w, n in zip(weights, own, strict=True)],
        "token-mean": [w / sum(weights) for w in weights],
        "seq-mean-token-sum-norm": [w / MAX_NEW_TOKENS / len(lengths) for w in weights],
    }[mode]


def _ratios(batch: dict) -> list[float]:
    return [math.exp(new - old) for new, old in zip(batch["log_probs"], batch["old_log_probs"], strict=True)]


def _answer_ratios(batch: dict, lengths: tuple[int, ...]) -> list[float]:
    gaps = [new - old for new, old in zip(batch["log_probs"], batch["old_log_probs"], strict=True)]
    ratios, start = [], 0
    for length in lengths:
        ratios += [math.exp(sum(gaps[start : start + length]) / length)] * length
        start += length
    return ratios


def _added(batch: dict, scale: list[float], settings: dict, ratios: list[float], kl_coef: float = KL_COEF) -> dict:
    """The loss and its gradient to each log-prob."""
    loss, gradient = 0.0, []
    for i, ratio in enumerate(ratios):
        value, slope = _clipped(batch["advantages"][i], ratio, **settings)
        d = batch["ref_log_probs"][i] - batch["log_probs"][i]
        loss += scale[i] * (value + kl_coef * (math.exp(d) - 1 - d))
        gradient.append(scale[i] * (slope + kl_coef * (1 - math.exp(d))))
    return {"loss": loss, "gradient": gradient}


def _clipped(
    advantage: float, ratio: float, clip_ratio_low: float, clip_ratio_high: float, clip_ratio_dual: float = math.inf
) -> tuple[float, float]:
    """A token's loss, and its derivative to the log-prob."""
    free = -advantage * ratio
    held = -advantage * min(max(ratio, 1 - clip_ratio_low), 1 + clip_ratio_high)
    loss, slope = (free, free) if free >= held else (held, 0.0)
    most = -advantage * clip_ratio_dual
    return (most, 0.0) if advantage < 0 and loss > most else (loss, slope)
