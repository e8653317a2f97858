"""Publish/Subscribe: the statements of Part III, in the order in which the text makes them."""

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import ChannelClosedByBroker, ConsumerCancelled, UnroutableError
from pika.spec import Basic

from part_3 import receive_logs
from testbed.broker import Broker
from testbed.waiting import wait_until
from tests.conftest import Run
from tests.scripts import publish_keys, queue_bound_to

EMIT, RECEIVE, EXCHANGE = "part_3/emit_log.py", "part_3/receive_logs.py", "logs"


def publish(channel: Channel, *messages: str) -> None:
    """Send the messages as emit_log.py does, but without a process for each."""
    channel.exchange_declare(exchange=EXCHANGE, exchange_type="fanout")
    for message in messages:
        channel.basic_publish(exchange=EXCHANGE, routing_key="", body=message.encode())


def bodies(channel: Channel, queue: str) -> list[str]:
    """Take all messages out of the queue and return their bodies."""
    taken = iter(lambda: channel.basic_get(queue=queue, auto_ack=True)[2], None)
    return [body.decode() for body in taken]


@pytest.mark.claim("III-fanout")
def test_a_fanout_exchange_copies_each_message_whatever_it_is_to_every_queue(
    run: Run, channel: Channel
) -> None:
    receivers = [run(RECEIVE).expect_ready() for _ in range(3)]
    words = ["naïve ☃", "\x1b[31m", "'\"\n", "$HOME", "x" * 100_000]
    emitter = run(EMIT, *words)
    assert emitter.wait() == 0
    assert emitter.messages == [f"Sent {' '.join(words)!r}"]
    publish_keys(channel, EXCHANGE, "some", "other.key")
    assert run(EMIT).wait() == 0
    for receiver in receivers:
        receiver.expect("'Hello World!'")
        said = [" ".join(words), "some", "other.key", "Hello World!"]
        assert receiver.messages == list(map(repr, said))


@pytest.mark.claim("III-headers-type")
def test_a_headers_exchange_goes_by_the_values_of_headers(channel: Channel) -> None:
    wanted = {"format": "pdf", "type": "report"}
    all_of = queue_bound_to(channel, "amq.headers", **{"x-match": "all", **wanted})
    any_of = queue_bound_to(channel, "amq.headers", **{"x-match": "any", **wanted})
    for body, headers in {
        "both": wanted,
        "both and more": {**wanted, "year": "1999"},
        "one": {"format": "pdf"},
        "one and another": {"format": "pdf", "type": "log"},
        "neither": {"format": "zip"},
        "none": {},
    }.items():
        channel.basic_publish(
            exchange="amq.headers",
            routing_key="ignored " + body,
            body=body.encode(),
            properties=BasicProperties(headers=headers),
        )
    assert bodies(channel, all_of) == ["both", "both and more"]
    assert bodies(channel, any_of) == ["both", "both and more", "one", "one and another"]


@pytest.mark.claim("III-no-queue-discards", "III-only-current")
def test_a_receiver_hears_what_is_sent_while_it_listens_and_without_one_it_is_discarded(
    run: Run, channel: Channel
) -> None:
    emitter = run(EMIT, "unheard")
    assert emitter.wait() == 0
    assert emitter.messages == ["Sent 'unheard'"]
    # It is confirmed all the same. Only asked to does the broker return what it would discard.
    channel.confirm_delivery()
    channel.basic_publish(exchange=EXCHANGE, routing_key="", body=b"unheard")
    with pytest.raises(UnroutableError):
        channel.basic_publish(exchange=EXCHANGE, routing_key="", body=b"unheard", mandatory=True)

    always = run(RECEIVE).expect_ready()
    publish(channel, "early")
    late = run(RECEIVE).expect_ready()
    publish(channel, "late")
    always.expect("'late'")
    late.expect("'late'")
    assert always.messages == ["'early'", "'late'"]
    assert late.messages == ["'late'"]


@pytest.mark.claim("III-server-named")
def test_a_queue_without_a_name_is_new_and_named_by_the_server_and_gone_with_its_receiver(
    run: Run, managed_broker: Broker, channel: Channel
) -> None:
    declared = [channel.queue_declare(queue="", exclusive=True).method for _ in range(2)]
    names = {queue.queue for queue in declared}
    assert len(names) == 2
    assert all(name.startswith("amq.gen-") for name in names)
    assert all(queue.message_count == 0 for queue in declared)

    before = set(managed_broker.queues())
    receivers = [run(RECEIVE).expect_ready() for _ in range(2)]
    bound = {binding["destination"] for binding in managed_broker.bindings(EXCHANGE)}
    assert len(bound - before) == 2
    assert all(name.startswith("amq.gen-") for name in bound)
    for receiver in receivers:
        receiver.kill()
    wait_until(lambda: set(managed_broker.queues()) <= before, "the receivers' queues to be gone")


@pytest.mark.claim("III-exclusive")
def test_an_exclusive_queue_is_its_connections_own(broker: Broker, channel: Channel) -> None:
    with broker.channel() as owner:
        queue = queue_bound_to(owner, "amq.fanout")
        with pytest.raises(ChannelClosedByBroker, match="RESOURCE_LOCKED") as locked:
            channel.connection.channel().basic_consume(
                queue=queue, on_message_callback=lambda *_: None
            )
        assert locked.value.reply_code == 405
    with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
        channel.queue_declare(queue=queue, passive=True)


@pytest.mark.timeout(60)  # it waits for as long as there is no message
def test_the_ready_line_is_true(
    broker: Broker, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []

    def on_message(
        consumer: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        heard.append(body)
        consumer.stop_consuming()

    def say(line: str) -> None:
        said.append(line)
        publish(channel, "now")  # at the very moment at which the script says that it waits

    channel.confirm_delivery()
    said: list[str] = []
    monkeypatch.setattr(receive_logs, "on_message", on_message)
    monkeypatch.setattr("builtins.print", say)
    with pytest.raises(ConsumerCancelled):
        receive_logs.receive(pika.URLParameters(broker.url))
    assert said == [" [*] Waiting for logs. To exit press CTRL+C"]
    assert heard == [b"now"]


@pytest.mark.claim("III-binding")
def test_a_queue_gets_messages_as_long_as_it_is_bound(channel: Channel) -> None:
    publish(channel, "not bound yet")
    queue = queue_bound_to(channel, EXCHANGE)
    publish(channel, "bound")
    channel.queue_unbind(queue=queue, exchange=EXCHANGE, routing_key="")
    publish(channel, "bound no more")
    channel.queue_bind(queue=queue, exchange=EXCHANGE, routing_key="")
    publish(channel, "bound again")
    assert bodies(channel, queue) == ["bound", "bound again"]
