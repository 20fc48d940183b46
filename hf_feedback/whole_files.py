"""Files that are written completely or not at all, and values as JSON has them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Context with a temporary path, which is renamed to the file when it is completely written."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def finite(value: object) -> object:
    """Replaces numbers that are not finite, which JSON does not have, by `None`.

    Example:

    ```python
    >>> finite({"residuals": [0.5, float("nan")]})
    {'residuals': [0.5, None]}

    ```
    """
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
