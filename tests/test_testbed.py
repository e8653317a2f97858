"""What the tests stand on leaves the process as it found it."""

import signal

from testbed.running import interruptible


def test_the_handlers_of_signals_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        with interruptible():
            assert all(signal.getsignal(n) is signal.default_int_handler for n in numbers)
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
