"""What the tests stand on leaves somebody's broker as it found it."""

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from testbed.broker import Broker, NoBrokerError
from testbed.named import NamedBroker


@pytest.mark.parametrize("queue", ["hello", "jobs"])
def test_a_broker_that_has_what_a_run_would_delete_is_refused(
    broker: Broker, channel: BlockingChannel, queue: str
) -> None:
    channel.queue_declare(queue=queue, durable=True)
    with pytest.raises(NoBrokerError, match=f"has the queue '{queue}' already"):
        NamedBroker(broker.url)
    channel.queue_declare(queue=queue, passive=True)
