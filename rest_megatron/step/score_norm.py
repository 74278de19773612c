"""The true score norm of some of a step's tokens: which tokens, which candidates, and what is known of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rest_megatron.actor.dealing import deal_costs
from rest_megatron.actor.score_norm import Norm, distributions, score_norms
from rest_megatron.data.tokens import decode
from rest_megatron.method.regions import Region
from rest_megatron.method.score_norm import Candidates, choose_candidates, choose_tokens, expected_norm
from rest_megatron.session import Session
from rest_megatron.step.batch import make_batch
from rest_megatron.types import Batch, Experience, Trajectory
from rest_megatron.utils.text import clean

LEAST = 25  # a region has at least one in so many of the tokens asked for, where it has as many itself
CONTEXT = 6  # tokens shown before and after


@dataclass(frozen=True)
class TokenNorm:
    """One sampled token. Squared norms are of the gradient of log p over all parameters of the model."""

    region: str
    """Its label."""
    norm: float
    """E|g|^2 over next tokens."""
    error: float
    """Its standard error, of the draws."""
    sampled: float
    """|g|^2 of the token that was sampled."""
    ends: float
    """Share of the squared norm in embedding and LM head."""
    passes: int
    probability: float
    """Of the sampled token."""
    entropy: float
    collision: float
    hidden_norm_squared: float
    before: str
    token: str
    after: str


def token_norms(session: Session, experience: Experience, count: int) -> tuple[list[TokenNorm], list[float]]:
    """About `count` tokens in the order of their answers, and each region's share of all tokens. Collective.

    The tokens are drawn by run.seed, some of each region; they and what is found do not depend on the layout, but for
    rounding. Data-parallel ranks take answers in turn. Weights, optimizer and schedule stay as they are.
    """
    parallel, seed = session.parallel, session.config.run.seed
    batch = make_batch(session, experience, whole=True)
    chosen = choose_tokens(batch.regions.cpu().numpy(), count, max(2, count // LEAST), seed)
    places: dict[int, list[int]] = {}
    starts = np.cumsum([0, *batch.lengths])
    for token in chosen.tolist():
        answer = int(np.searchsorted(starts, token, side="right")) - 1
        places.setdefault(answer, []).append(token - int(starts[answer]))
    answers = sorted(places)
    hands = deal_costs([len(places[a]) * batch.trajectories[a].length for a in answers], parallel.dp_size)
    mine = [answers[i] for i in hands[parallel.dp_rank]]
    found: dict[int, list[TokenNorm]] = {}
    for turn in range(max(map(len, hands))):
        if turn < len(mine):
            own = mine[turn]
            found[own] = _answer_norms(session, batch, batch.trajectories[own], places[own], int(starts[own]))
        else:
            _take_part(session)
    parts = {a: norms for part in parallel.gather_over_data_parallel(found) for a, norms in part.items()}
    counts = torch.bincount(batch.regions.cpu(), minlength=len(Region)).double()
    return [norm for a in answers for norm in parts[a]], (counts / counts.sum()).tolist()


def _take_part(session: Session) -> None:
    """In the passes over an answer that another data-parallel rank has and this one does not."""
    session.actor.log_probs([])
    distributions(session.actor, None)
    score_norms(session.actor, [])


def _answer_norms(
    session: Session, batch: Batch, whole: Trajectory, places: Sequence[int], first: int
) -> list[TokenNorm]:
    """Of the tokens at `places` of the answer's targets; `first` is the place of its first in the batch. Collective."""
    actor = session.actor
    positions = [whole.target_positions[place] for place in places]
    marked = _marked(whole, positions)
    stats = actor.log_probs([marked])
    p = distributions(actor, marked).cpu().numpy()
    seeds = ((session.config.run.seed, first + place) for place in places)
    candidates = [choose_candidates(row, seed) for row, seed in zip(p, seeds, strict=True)]
    wanted = [
        (position, token)
        for position, one in zip(positions, candidates, strict=True)
        for token in dict.fromkeys((*one.exact, *one.drawn, whole.response_ids[position]))
    ]
    norms = dict(zip(wanted, score_norms(actor, [_prefix(whole, *each) for each in wanted]), strict=True))
    found = []
    for i, (place, position) in enumerate(zip(places, positions, strict=True)):
        own = {token: norm for (at, token), norm in norms.items() if at == position}
        sampled = whole.response_ids[position]
        estimates = _estimates(p[i], candidates[i], own)
        found.append(
            TokenNorm(
                region=Region(int(batch.regions[first + place])).label,
                **estimates,
                passes=len(own),
                sampled=own[sampled].total,
                probability=float(p[i][sampled]),
                hidden_norm_squared=float(stats.hidden_norm_squared[i]),
                before=_text(session.token_table, whole, position - CONTEXT, position),
                token=_text(session.token_table, whole, position, position + 1),
                after=_text(session.token_table, whole, position + 1, position + 1 + CONTEXT),
            )
        )
    return found


def _marked(whole: Trajectory, positions: Sequence[int]) -> Trajectory:
    wanted = set(positions)
    return whole._replace(response_mask=[i in wanted for i in range(len(whole.response_ids))])


def _prefix(whole: Trajectory, position: int, token: int) -> Trajectory:
    """The trajectory that ends with a candidate in place of the token at `position`."""
    return Trajectory(whole.prompt_ids, [*whole.response_ids[:position], token])


def _estimates(p: np.ndarray, candidates: Candidates, norms: dict[int, Norm]) -> dict[str, float]:
    exact, drawn = ([norms[y] for y in tokens] for tokens in (candidates.exact, candidates.drawn))
    likely = [float(p[y]) for y in candidates.exact]
    norm, error = expected_norm(likely, [n.total for n in exact], [n.total for n in drawn], candidates.tail_mass)
    total, ends = (sum(w * getattr(n, name) for w, n in zip(likely, exact, strict=True)) for name in ("total", "ends"))
    positive = p[p > 0]
    return {
        "norm": norm,
        "error": error,
        "ends": ends / total if total > 0 else math.nan,
        "entropy": float(-(positive * np.log(positive)).sum()),
        "collision": float(np.square(p).sum()),
    }


def _text(table: Sequence[bytes], whole: Trajectory, start: int, stop: int) -> str:
    """Tokens start to stop of the response, as one line that steers no terminal; before 0 those of the prompt."""
    ids, shift = [*whole.prompt_ids, *whole.response_ids], len(whole.prompt_ids)
    part = ids[max(0, shift + start) : max(0, shift + stop)]
    text = decode(part, table).decode("utf-8", errors="replace")
    return clean(text).replace("\n", "\\n")
