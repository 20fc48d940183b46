"""Exit of a command: errors that the user can correct are one line on stderr, others a traceback."""

import sys
from collections.abc import Callable, Sequence

import torch

from ..run import Interrupted

PACKAGE = __name__.split(".")[0]


def describe_user_error(error: Exception) -> str | None:
    """Returns the message, in one line, of an error that the user can correct.

    Returns:
        `None` for an error of the program.

    Example:

    ```python
    >>> describe_user_error(ImportError("No module named 'peft'", name="peft"))
    "a package is missing: No module named 'peft'"
    >>> describe_user_error(KeyError("x")) is None
    True

    ```
    """
    message = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return None if (error.name or "").split(".")[0] == PACKAGE else f"a package is missing: {message}"
    if isinstance(error, ValueError | OSError):
        return message
    if isinstance(error, RuntimeError) and "to be installed" in message:  # transformers' callbacks for logs
        return f"a package is missing: {message}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in message:
        return f"there is not enough memory ({message.split('. ')[0]}); use a smaller batch or model."
    return None


def run_command(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit status: 2 for wrong input, 130 after Ctrl-C.

    Args:
        command: returns the exit status.
        arguments: as on the command line.
    """
    try:
        return command(arguments)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except Exception as error:
        message = describe_user_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
