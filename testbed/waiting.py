"""Waiting for a state, with a deadline."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: The limit, in seconds, of a wait that is given none of its own: on a busy machine all is slow.
PATIENCE = float(os.environ.get("TESTBED_PATIENCE", "60"))


def wait_until(
    condition: Callable[[], T | None], what: str, seconds: float = PATIENCE, pause: float = 0.02
) -> T:
    """Return the first true result of `condition`, which is asked again after each pause.

    Raises:
        TimeoutError: There was none for `seconds`; the text says `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}; last seen: {result!r}")
        time.sleep(pause)
    return result
