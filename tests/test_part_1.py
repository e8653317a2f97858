"""Hello World: the statements of Part I, in the order in which the text makes them."""

import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.broker import Broker
from tests.conftest import Run


@pytest.mark.claim("I-hello")
def test_what_the_sender_sends_the_receiver_prints(run: Run) -> None:
    receiver = run("part_1/receive.py").expect_ready()
    sender = run("part_1/sender.py")
    assert sender.wait() == 0
    assert sender.out == [" [x] Sent 'Hello World!'"]
    receiver.expect(" [x] Received 'Hello World!'")


@pytest.mark.claim("I-buffer")
def test_messages_wait_in_order_for_a_consumer(run: Run, broker: Broker, channel: Channel) -> None:
    assert run("part_1/sender.py").wait() == 0
    for number in range(1, 101):
        channel.basic_publish(exchange="", routing_key="hello", body=b"message %d" % number)
    assert run("part_1/sender.py").wait() == 0
    assert broker.ready("hello") == 102

    receiver = run("part_1/receive.py").expect("Received", times=102)
    assert receiver.out[1:] == [
        " [x] Received 'Hello World!'",
        *(f" [x] Received 'message {number}'" for number in range(1, 101)),
        " [x] Received 'Hello World!'",
    ]
    assert broker.ready("hello") == 0


@pytest.mark.claim("I-idempotent")
def test_either_script_may_start_first(run: Run, managed_broker: Broker) -> None:
    before = set(managed_broker.queues())
    assert run("part_1/sender.py").wait() == 0
    receiver = run("part_1/receive.py").expect("Received")
    assert run("part_1/sender.py").wait() == 0
    receiver.expect("Received", times=2)
    assert set(managed_broker.queues()) - before == {"hello"}


@pytest.mark.claim("I-both")
def test_one_program_produces_and_consumes(channel: Channel) -> None:
    channel.queue_declare(queue="hello")
    channel.basic_publish(exchange="", routing_key="hello", body=b"to myself")
    _, _, body = next(channel.consume(queue="hello", auto_ack=True, inactivity_timeout=10))
    assert body == b"to myself"


@pytest.mark.claim("I-default-exchange")
def test_the_default_exchange_delivers_to_the_queue_that_the_routing_key_names(
    run: Run, channel: Channel
) -> None:
    # Neither queue was ever bound to anything.
    other = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.queue_declare(queue="hello")
    channel.basic_publish(exchange="", routing_key=other, body=b"for the other")
    assert run("part_1/sender.py").wait() == 0

    for queue, body in ((other, b"for the other"), ("hello", b"Hello World!")):
        assert channel.basic_get(queue=queue, auto_ack=True)[2] == body
        assert channel.basic_get(queue=queue) == (None, None, None)
