"""The ways to take a step that are compared."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Arm:
    """One way.

    who: whose code. level, shared: our `kernels.level` and `train.shared_prefixes`. one_pass: without a pass for the
    log-probs before the update, whose own forward gives them. zeros: a quarter of the groups has advantage 0.
    scored_rows: TRL's head multiplies sampled positions alone, as it does where there is Triton, not all positions, as
    it does elsewhere.
    """

    name: str
    who: Literal["hf", "trl", "ours"]
    level: str = "hidden"
    shared: bool = True
    one_pass: bool = False
    zeros: bool = False
    scored_rows: bool = False

    @property
    def plain(self) -> str | None:
        """The name of the arm that does the same in plain packs; None for others' code."""
        return f"ours, {self.level}, plain" if self.who == "ours" else None


ARMS = (
    Arm("hf", "hf"),
    Arm("hf, one pass", "hf", one_pass=True),
    *(Arm(f"ours, {level}, plain", "ours", level, shared=False) for level in ("logits", "hidden")),
    *(Arm(f"ours, {level}", "ours", level) for level in ("logits", "hidden")),
    *(Arm(f"ours, {level}, one pass", "ours", level, one_pass=True) for level in ("logits", "hidden")),
    *(Arm(f"ours, {level}, a quarter without advantage", "ours", level, zeros=True) for level in ("logits", "hidden")),
    Arm("trl", "trl"),
    Arm("trl, scored rows", "trl", scored_rows=True),
    Arm("trl, scored rows, one pass", "trl", scored_rows=True, one_pass=True),
)
