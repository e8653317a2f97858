"""What the tests stand on leaves the process, and somebody's broker, as it found them."""

import signal

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from testbed.broker import Broker, NoBrokerError
from testbed.named import NamedBroker
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


@pytest.mark.parametrize("queue", ["hello", "jobs"])
def test_a_broker_that_has_what_a_run_would_delete_is_refused(
    broker: Broker, channel: BlockingChannel, queue: str
) -> None:
    channel.queue_declare(queue=queue, durable=True)
    with pytest.raises(NoBrokerError, match=f"has the queue '{queue}' already"):
        NamedBroker(broker.url)
    channel.queue_declare(queue=queue, passive=True)
