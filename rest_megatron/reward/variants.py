"""The scales of preset `reference`: what format and correctness are worth at a step, in each published variant.

The published code picks a variant by environment variables; here it is `reward.reference_variant`, and its
SCHEDULEREWARD is `reward.ramp`. A range is (worth when wrong, worth when right). Its ramp runs over 150 steps whatever
the length of the run.

|             | no ramp   | ramp, step s                                       |
|-------------|-----------|----------------------------------------------------|
| format      | (0, 1)    | (min(-1, -2 + 2 s/150), max(1, 2 - s/150))         |
| correctness | (-3, 3)   | (-(2 + s/150), 2 + s/150), at most 3 from zero     |

| variant             | what differs                                                                              |
|---------------------|-------------------------------------------------------------------------------------------|
| correct_max_1       | correctness (-1, 1)                                                                       |
| max_1_step_30_max_3 | correctness (-1, 1) before step 30; from there (-3, 3) and format (0, 0.5)                |
| coarse              | any list of calls but the wanted one is worth the least                                   |
| refined             | lists of names that are not equal, order included, count 0 instead of their Jaccard index |
| intermediate        | a wanted call counts 1 when an equal one was made, else 0                                 |

The last three change how calls are compared, see `reference_calls.py`; the others change the ranges here. With a ramp,
the upper ends in this table are those it comes to at step 150: a ramp always starts from 2.
"""

RAMP_STEPS = 150
SWITCH_STEP = 30

Range = tuple[float, float]


def format_range(step: int, *, ramp: bool, variant: str) -> Range:
    """(wrong, right) of the format at a training step, counted from 1."""
    high = 0.5 if variant == "max_1_step_30_max_3" and step >= SWITCH_STEP else 1.0
    if not ramp:
        return 0.0, high
    return min(-1.0, -2.0 + 2.0 * step / RAMP_STEPS), max(1.0, 2.0 - (2.0 - high) * step / RAMP_STEPS)


def correctness_range(step: int, *, ramp: bool, variant: str) -> Range:
    """(nothing right, all right) of the calls at a training step, counted from 1."""
    small = variant == "correct_max_1" or (variant == "max_1_step_30_max_3" and step < SWITCH_STEP)
    high = 1.0 if small else 3.0
    if ramp:
        high = min(3.0, 2.0 + (high - 2.0) * step / RAMP_STEPS)
    return -high, high
