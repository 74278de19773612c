"""Other people's packages: those that are used where they are installed, and those that say too much."""

import logging
import warnings
from importlib.util import find_spec

CHATTY_MODULES = ("megatron", "deepspeed", "transformers", "torch")


def has_apex() -> bool:
    """Whether NVIDIA Apex is installed with its compiled CUDA kernels: without them its fused AdamW cannot run."""
    return find_spec("apex") is not None and find_spec("amp_C") is not None


def has_transformer_engine() -> bool:
    """Whether NVIDIA Transformer Engine is installed."""
    return find_spec("transformer_engine") is not None


def quiet_libraries() -> None:
    """Keep the libraries' start-up chatter out of the progress: our own lines and real warnings remain.

    Call before Megatron and DeepSpeed are imported, which is when they talk most.
    """
    for module in CHATTY_MODULES:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    # A filter, because DeepSpeed sets its logger's level itself when it is imported.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
