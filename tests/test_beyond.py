"""What comes before production: a broker on another host, tasks that fail, limits, good habits."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import ChannelClosedByBroker
from pika.spec import BasicProperties

from testbed.broker import Broker, OwnBroker
from testbed.programs import NEW_TASK, WORKER
from testbed.programs import TASK_QUEUE as QUEUE
from testbed.settings import MAX_MESSAGE_SIZE
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.scripts import after, fails_with_one_line, page_commands, publish_keys, queue_bound_to
from tests.test_part_2 import WORK, received, send

# worker.py, with tasks that can fail: each is to be a number.
NUMBERS_ONLY = (WORK, "    int(task)")


@pytest.mark.claim("beyond-own-user")
def test_a_user_and_a_virtual_host_of_its_own(run: Run, own_broker: OwnBroker) -> None:
    commands = [shlex.split(line)[1:] for line in page_commands("rabbitmqctl", "tutorial")]
    assert [command[0] for command in commands] == ["add_user", "add_vhost", "set_permissions"]
    login, _, host = own_broker.url.partition("@")
    assert login == "amqp://guest:guest"
    url = f"amqp://tutorial:a%20secret@{host.replace('%2F', 'tutorial')}"
    try:
        for command in commands:
            own_broker.ctl(*command)
        receiver = run("part_1/receive.py", url=url).expect_ready()
        elsewhere = run("part_1/receive.py").expect_ready()
        assert run("part_1/sender.py", url=url).wait() == 0
        receiver.expect("Received 'Hello World!'")
        # Another virtual host has queues of its own, whatever their names.
        with own_broker.channel() as channel:
            channel.basic_publish(exchange="", routing_key="hello", body=b"elsewhere")
        elsewhere.expect("Received")
        assert elsewhere.messages == ["Received 'elsewhere'"]
        stranger = run("part_1/sender.py", url=url.removesuffix("tutorial") + "%2F")
        fails_with_one_line(stranger, "NOT_ALLOWED - access to vhost")
    finally:
        own_broker.management("vhosts/tutorial", "DELETE")
        own_broker.management("users/tutorial", "DELETE")


@pytest.mark.claim("beyond-tls")
def test_tls_with_a_certificate_that_is_trusted_and_one_that_is_not(
    run: Run, own_broker: OwnBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script in (NEW_TASK, WORKER):
        refused = run(script, url=own_broker.tls_url)
        fails_with_one_line(refused, "certificate verify failed")
        assert refused.out == []

    authority = tmp_path / "authority.pem"
    authority.write_bytes(own_broker.authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert run(NEW_TASK, "secret", url=own_broker.tls_url).wait() == 0
    worker = run(WORKER, url=own_broker.tls_url).expect("Done")
    assert received(worker) == ["secret"]


@pytest.mark.claim("beyond-poison")
def test_a_task_that_always_fails_ends_one_worker_after_the_other(
    run: Run, broker: Broker, channel: Channel, variant: Variant
) -> None:
    send(channel, "poison")
    script = variant(WORKER, NUMBERS_ONLY)
    for _ in range(3):
        worker = run(script)
        assert worker.wait() == 1
        assert received(worker) == ["poison"]
        assert any(line.startswith("ValueError") for line in worker.error)
        broker.wait_for_ready(QUEUE, 1)
    method, _, _ = channel.basic_get(queue=QUEUE)
    assert method
    assert method.redelivered


# What worker.py does about a task that failed, and what the page puts before it.
FAILED = '        raise RuntimeError("the task failed") from error\n'
SET_ASIDE = """\
        if isinstance(error, ValueError):  # another try would end the same way
            print(f" [!] Set aside: {error}", file=sys.stderr)
            channel.basic_nack(delivery_tag=method.delivery_tag, requeue=False)
            now.busy = False
            return
"""


@pytest.mark.claim("beyond-set-aside")
def test_a_rejected_task_is_discarded_or_kept_in_a_queue_for_it(
    run: Run, own_broker: OwnBroker, channel: Channel, variant: Variant
) -> None:
    set_policy, clear_policy, _ = map(shlex.split, page_commands("rabbitmqctl", "failed_tasks"))
    worker = run(variant(WORKER, NUMBERS_ONLY, (FAILED, SET_ASIDE + FAILED))).expect_ready()
    send(channel, "poison 1", "1")
    worker.expect("Set aside").expect("Done")
    try:
        channel.queue_declare(queue="failed_tasks", durable=True)
        own_broker.ctl(*set_policy[1:])
        send(channel, "poison 2", "2")
        worker.expect("Set aside", times=2).expect("Done", times=2)
        wait_until(lambda: own_broker.ready("failed_tasks") == 1, "the failed task to be set aside")
        _, kept, body = channel.basic_get(queue="failed_tasks", auto_ack=True)
        assert kept
        assert body == b"poison 2"
        assert [death["reason"] for death in kept.headers["x-death"]] == ["rejected"]
    finally:
        channel.queue_delete(queue="failed_tasks")
        own_broker.ctl(*clear_policy[1:])
    # Neither came again.
    assert received(worker) == ["poison 1", "1", "poison 2", "2"]
    send(channel, "poison 3")
    worker.expect("Set aside", times=3)
    own_broker.wait_for_acknowledgements(QUEUE)
    worker.terminate()
    assert worker.wait() == 0
    # It is not busy with what it set aside.
    assert not any("Finishing" in line for line in worker.error)
    assert own_broker.ready(QUEUE) == 0


@pytest.fixture
def impatient_broker(own_broker: OwnBroker) -> Iterator[OwnBroker]:
    """A broker that closes a channel whose delivery is unacknowledged for half a second."""
    if own_broker.release >= (4, 3):
        pytest.skip("holds for quorum queues only, from 4.3 on")
    set_limits = (
        "application:set_env(rabbit, consumer_timeout, {}),"
        "application:set_env(rabbit, channel_tick_interval, {})."
    )
    # In milliseconds: what a delivery may take, and how often RabbitMQ looks.
    own_broker.ctl("eval", set_limits.format(500, 100))
    yield own_broker
    own_broker.ctl("eval", set_limits.format(1_800_000, 60_000))


@pytest.mark.claim("beyond-consumer-timeout", "beyond-reason")
def test_a_task_unacknowledged_for_too_long_comes_again_and_pika_logs_why(
    run: Run, impatient_broker: OwnBroker, channel: Channel
) -> None:
    worker = run(*after("import logging; logging.basicConfig()"), WORKER).expect_ready()
    send(channel, "long..")
    worker.expect("Connection lost").expect("Received 'long..'", times=2)
    worker.kill()
    reason = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"
    assert worker.error[0].startswith("WARNING:pika.channel:")
    assert reason in worker.error[0]

    # Without that line nobody hears of it.
    silent = run(WORKER).expect("Connection lost")
    silent.kill()
    assert reason not in "".join(silent.error)


@pytest.mark.claim("beyond-transient-queues")
def test_hello_may_be_transient_until_4_3_and_durable_in_any_version(
    run: Run, broker: Broker, variant: Variant
) -> None:
    durable = ("queue_declare(queue=QUEUE)", "queue_declare(queue=QUEUE, durable=True)")
    receiver = run(variant("part_1/receive.py", durable)).expect_ready()
    assert run(variant("part_1/sender.py", durable)).wait() == 0
    receiver.expect("Received 'Hello World!'")
    receiver.kill()
    broker.clean()

    # A run's own broker permits it in any version.
    sender = run("part_1/sender.py")
    if isinstance(broker, OwnBroker) or broker.release < (4, 3):
        assert sender.wait() == 0
    else:
        fails_with_one_line(sender, "transient_nonexcl_queues")


@pytest.mark.claim("beyond-delivery-limit")
def test_a_quorum_queue_gives_a_message_up_from_4_0_on(broker: Broker, channel: Channel) -> None:
    failed_tasks = channel.queue_declare(queue="", exclusive=True).method.queue
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": failed_tasks,
    }
    channel.queue_declare(queue=QUEUE, durable=True, arguments=arguments)
    channel.basic_publish(exchange="", routing_key=QUEUE, body=b"poison")

    def given_up() -> bool:
        declared = channel.queue_declare(queue=failed_tasks, passive=True)
        return bool(declared.method.message_count)

    def taken_or_given_up() -> bool:
        mine = channel.connection.channel()
        method, _, _ = mine.basic_get(queue=QUEUE)
        mine.close()
        return bool(method) or given_up()

    for _ in range(25):
        wait_until(taken_or_given_up, "the message to come again")
    assert given_up() == (broker.release >= (4, 0))


@pytest.mark.claim("beyond-message-size")
def test_a_message_that_is_too_large_is_refused(own_broker: OwnBroker) -> None:
    with own_broker.channel() as channel:
        channel.queue_declare(queue=QUEUE, durable=True)
        channel.confirm_delivery()
        channel.basic_publish(exchange="", routing_key=QUEUE, body=bytes(MAX_MESSAGE_SIZE))
        words = "PRECONDITION_FAILED - message size 2000001 is larger than .* max size 2000000"
        with pytest.raises(ChannelClosedByBroker, match=words) as caught:
            channel.basic_publish(exchange="", routing_key=QUEUE, body=bytes(MAX_MESSAGE_SIZE + 1))
        assert caught.value.reply_code == 406
    assert own_broker.ready(QUEUE) == 1


@pytest.mark.claim("beyond-two-connections")
def test_an_alarm_holds_up_acknowledgements_on_a_connection_that_publishes(
    own_broker: OwnBroker,
) -> None:
    def take(channel: Channel) -> int:
        method, _, _ = channel.basic_get(queue=QUEUE)
        assert method
        return int(method.delivery_tag)

    with own_broker.channel() as both, own_broker.channel() as consuming:
        send(both, "1", "2")
        tags = {channel: take(channel) for channel in (both, consuming)}
        with own_broker.blocking_publishers():
            both.basic_publish(exchange="", routing_key=QUEUE, body=b"3")
            both.basic_ack(delivery_tag=tags[both])
            consuming.basic_ack(delivery_tag=tags[consuming])
            # Whatever else the publishing connection asks for waits as well.
            consuming.queue_declare(queue=QUEUE, passive=True)
            wait_until(lambda: own_broker.unacknowledged(QUEUE) == 1, "one acknowledgement of two")
            assert own_broker.ready(QUEUE) == 0
        own_broker.wait_for_ready(QUEUE, 1)  # the message that was held up
        own_broker.wait_for_acknowledgements(QUEUE)


@pytest.mark.claim("beyond-connection-name")
def test_a_connection_has_a_name(managed_broker: Broker) -> None:
    parameters = pika.URLParameters(managed_broker.url)
    parameters.client_properties = {"connection_name": "resize on web-3"}
    with pika.BlockingConnection(parameters):

        def names() -> list[str]:
            listed = managed_broker.management("connections")
            return [connection.get("user_provided_name") for connection in listed]

        wait_until(lambda: "resize on web-3" in names(), "the connection to be listed by its name")


@pytest.mark.claim("beyond-queue-type")
def test_a_queue_keeps_the_type_that_it_was_declared_with(broker: Broker, channel: Channel) -> None:
    quorum, classic = ({"x-queue-type": kind} for kind in ("quorum", "classic"))
    for _ in range(2):
        channel.queue_declare(queue=QUEUE, durable=True, arguments=quorum)
    if broker.has_management:
        assert broker.queues()[QUEUE]["type"] == "quorum"
    with pytest.raises(ChannelClosedByBroker, match="inequivalent arg 'x-queue-type'"):
        channel.queue_declare(queue=QUEUE, durable=True, arguments=classic)


@pytest.mark.claim("beyond-direct-reply-to")
def test_an_answer_needs_no_queue(broker: Broker, channel: Channel) -> None:
    answers: list[bytes] = []
    channel.basic_consume(
        queue="amq.rabbitmq.reply-to",
        on_message_callback=lambda _, __, ___, body: answers.append(body),
        auto_ack=True,
    )
    requests = channel.queue_declare(queue="", exclusive=False, auto_delete=True).method.queue
    channel.basic_publish(
        exchange="",
        routing_key=requests,
        body=b"question",
        properties=BasicProperties(reply_to="amq.rabbitmq.reply-to"),
    )
    with broker.channel() as server:
        _, properties, _ = server.basic_get(queue=requests, auto_ack=True)
        assert properties
        server.basic_publish(exchange="", routing_key=properties.reply_to, body=b"answer")
        channel.connection.process_data_events(time_limit=10)
        assert answers == [b"answer"]
    channel.queue_delete(queue=requests)


@pytest.mark.claim("beyond-single-active-consumer")
def test_one_consumer_gets_all_until_it_goes(broker: Broker, channel: Channel) -> None:
    channel.queue_declare(queue=QUEUE, durable=True, arguments={"x-single-active-consumer": True})
    got: list[tuple[str, bytes]] = []

    def consume(name: str, mine: Channel) -> None:
        mine.basic_consume(
            queue=QUEUE,
            on_message_callback=lambda _, __, ___, body: got.append((name, body)),
            auto_ack=True,
        )

    def all_served(number: int, *channels: Channel) -> bool:
        for mine in channels:
            mine.connection.process_data_events()
        return len(got) == number

    with broker.channel() as second:
        with broker.channel() as first:
            consume("first", first)
            consume("second", second)
            for body in (b"1", b"2", b"3"):
                channel.basic_publish(exchange="", routing_key=QUEUE, body=body)
            wait_until(lambda: all_served(3, first, second), "three messages")
        channel.basic_publish(exchange="", routing_key=QUEUE, body=b"4")
        wait_until(lambda: all_served(4, second), "a fourth")
    assert got == [("first", b"1"), ("first", b"2"), ("first", b"3"), ("second", b"4")]


@pytest.mark.claim("beyond-alternate-exchange")
def test_what_fits_no_binding_goes_to_the_alternate_exchange(
    broker: Broker, channel: Channel
) -> None:
    channel.exchange_declare(exchange="logs", exchange_type="fanout")
    astray = queue_bound_to(channel, "logs")
    channel.exchange_declare(
        exchange="direct_logs", exchange_type="direct", arguments={"alternate-exchange": "logs"}
    )
    bound = queue_bound_to(channel, "direct_logs", "error")
    publish_keys(channel, "direct_logs", "error", "nobody")
    assert channel.basic_get(queue=astray, auto_ack=True)[2] == b"nobody"
    assert channel.basic_get(queue=bound, auto_ack=True)[2] == b"error"
    assert channel.basic_get(queue=astray, auto_ack=True)[0] is None
