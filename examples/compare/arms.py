"""The arms of the comparison: name, and the configurations laid over task.yaml."""

ARMS: dict[str, tuple[str, ...]] = {
    "GRPO": ("baselines/grpo.yaml",),
    "Dr.GRPO": ("baselines/dr_grpo.yaml",),
    "DAPO": ("baselines/dapo.yaml", "compare/dapo_toy.yaml"),
    "ResT (reference)": ("ablations/published_code.yaml",),
    "ResT (paper)": ("ablations/rest.yaml",),
    "ResT, feedback curriculum": ("ablations/feedback_curriculum.yaml",),
    "ResT without curriculum": ("ablations/no_curriculum.yaml",),
    "ResT without CoT gradient": ("ablations/no_cot_gradient.yaml",),
    "ResT without reward ramp": ("ablations/no_dynamic_reward.yaml",),
}
BASELINE = "GRPO"


def directory(name: str, seed: int) -> str:
    """Where a run of an arm lies, below the comparison's directory."""
    plain = "".join(c if c.isalnum() else "-" for c in name.lower())
    return f"{plain.strip('-')}/seed-{seed}"
