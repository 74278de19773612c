"""Keeps the libraries' start-up chatter out of the progress: our own lines and real warnings remain."""

import logging
import warnings

CHATTY_MODULES = ("megatron", "deepspeed", "transformers", "torch")


def quiet_libraries() -> None:
    """Call before Megatron and DeepSpeed are imported, which is when they talk most."""
    for module in CHATTY_MODULES:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    # A filter, because DeepSpeed sets its logger's level itself when it is imported.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
