"""The reward of preset `poster`: the formula on the paper's poster, whose format share grows over progress nu.

    total = correctness + format,  correctness = b_a S_acc (1 - nu),  format = b_f S_format nu

S_acc and S_format are those of preset `paper`, see `paper.py`. An answer that breaks the format keeps all of S_acc, and
a perfect answer's reward moves from b_a to b_f. At the end of the run accuracy earns nothing.
"""

from rest_megatron.grammar import TOOLRL, Grammar
from rest_megatron.reward.paper import GroundTruth, check_progress, measure
from rest_megatron.types import Score


def poster_score(
    response: bytes,
    ground_truth: GroundTruth,
    *,
    progress: float,
    beta_accuracy: float,
    beta_format: float,
    grammar: Grammar = TOOLRL,
    think_open: bool = False,
) -> Score:
    """The poster's reward. Never raises on any bytes; progress nu outside [0, 1] raises ValueError.

    response, grammar, think_open: see `paper.measure`.
    """
    check_progress(progress)
    measured = measure(response, ground_truth, grammar, think_open=think_open)
    correctness = beta_accuracy * measured.accuracy * (1.0 - progress)
    format_ = beta_format * measured.parts["format"] * progress
    return Score(correctness + format_, format_, correctness, measured.parts, measured.reason)
