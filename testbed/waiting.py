"""Waiting for a state, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], what: str, seconds: float = 60, pause: float = 0.02
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
