"""The policy loss's coefficients."""

import math
from dataclasses import dataclass, fields
from numbers import Real


@dataclass(frozen=True)
class PPOSettings:
    """Clip bounds of the ratio and coefficients of the two regularisers, see `reference.ppo_loss`.

    Any real numbers; kept as float. Raises TypeError for what is no number, ValueError for clip bounds that do not
    enclose 1 and for coefficients that are not finite.
    """

    clip_ratio_low: float
    clip_ratio_high: float
    clip_ratio_dual: float | None
    kl_coef: float
    entropy_coef: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, Real):
                raise TypeError(f"{field.name} is a {type(value).__name__}; it must be a number.")
            object.__setattr__(self, field.name, None if value is None else float(value))
        if not 0 <= self.clip_ratio_low <= 1:
            raise ValueError(f"clip_ratio_low is {self.clip_ratio_low}; it must lie in [0, 1].")
        if not (math.isfinite(self.clip_ratio_high) and self.clip_ratio_high >= 0):
            raise ValueError(f"clip_ratio_high is {self.clip_ratio_high}; it must be finite and at least 0.")
        dual = self.clip_ratio_dual
        if dual is not None and not (math.isfinite(dual) and dual > 1):
            raise ValueError(f"clip_ratio_dual is {dual}; it must be finite and above 1, or None for none.")
        for name in ("kl_coef", "entropy_coef"):
            coefficient = getattr(self, name)
            if not math.isfinite(coefficient):
                raise ValueError(f"{name} is {coefficient}; it must be finite.")

    @property
    def upper_bound_of_negative(self) -> float:
        """The dual clip, infinite where there is none: what holds the ratio of a token with A < 0 from above."""
        return math.inf if self.clip_ratio_dual is None else self.clip_ratio_dual
