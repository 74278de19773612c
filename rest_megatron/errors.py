"""How a command ends that does not simply end: what a user can cause, each with the program's exit code.

A message says what is wrong, where, the numbers, the rule and the fix. Anything else that escapes is a bug
and ends the program with exit code 1 and its traceback.
"""


class RestError(Exception):
    """Base of every error the program reports without a traceback."""

    exit_code = 1
    kind = "error"

    def __str__(self) -> str:
        return f"{self.kind}: {super().__str__()}"


class ConfigError(RestError):
    """The configuration, the launch or the combination of options cannot work."""

    exit_code = 2
    kind = "config error"


class DataError(RestError):
    """A prompt, demonstration or reward file cannot be used."""

    exit_code = 3
    kind = "data error"


class CheckpointError(RestError):
    """Model weights or a checkpoint cannot be read or written as asked."""

    exit_code = 4
    kind = "checkpoint error"


class EngineError(RestError):
    """The rollout engine does not answer, fails, or samples from other weights than the actor's."""

    exit_code = 5
    kind = "rollout error"


class Preempted(RestError):
    """The run was asked to stop, and can resume from where it was; schedulers requeue on this code (EX_TEMPFAIL)."""

    exit_code = 75
    kind = "preempted"


class Stopped(RestError):
    """The run was asked to stop, and its command saves nothing: as if SIGTERM had ended it."""

    exit_code = 143
    kind = "stopped"


class Finished(RestError):
    """The command has nothing left to do: its run in run.dir is finished."""

    exit_code = 0
    kind = "finished"


class NonFiniteError(RestError):
    """More updates in a row than train.max_nonfinite had a loss or gradient that is not finite."""

    exit_code = 77
    kind = "not finite"


# The exit code of a rank that its watchdog ends.
HANG_EXIT_CODE = 76
