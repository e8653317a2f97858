"""How long a broker runs: for a `with` statement, which what ends the program ends too."""

import contextlib
import signal
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from testbed.broker import Broker, NoBrokerError
from testbed.choice import KINDS, prepare

B = TypeVar("B", bound=Broker)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl+C and SIGTERM raise KeyboardInterrupt, so that no broker is left behind.

    A pipeline that is cancelled sends SIGTERM. A shell starts what it runs in the background with
    Ctrl+C ignored, and scripts that are started from there would inherit that, and be deaf to it.
    """
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, signal.default_int_handler)
            stack.callback(signal.signal, number, before)
        yield


@contextlib.contextmanager
def running(broker: B) -> Iterator[B]:
    """Yield the broker, started; discard it in the end."""
    with interruptible():
        try:
            broker.start()
            yield broker
        finally:
            broker.discard()


def parser_with_broker(description: str | None, kinds: Sequence[str] = KINDS) -> ArgumentParser:
    """Return the parser of a program that is started by hand and takes --broker, of those kinds."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=kinds, default="auto", help="as pytest's option")
    return parser


def telling() -> Callable[[str], None]:
    """Return what prints a line behind the seconds that have gone since."""
    began = time.monotonic()
    return lambda line: print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)


@contextlib.contextmanager
def running_by_hand(kind: str) -> Iterator[Broker]:
    """Yield a running broker of that kind (see `prepare`) to a program that is started by hand.

    Where there is none, or a wait is in vain, that ends with one line; on Ctrl+C with code 130.
    """
    try:
        with running(prepare(kind)) as broker:
            print(f"RabbitMQ {broker.version}, {broker.description}", flush=True)
            yield broker
    except NoBrokerError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except (AssertionError, TimeoutError) as error:
        sys.exit(f"The run ends here: {error}")
