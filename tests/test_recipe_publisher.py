"""recipes/publisher.py: what its page states, on a broker that is restarted, killed and full."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pika
import psutil
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ShortStringTooLong
from pika.spec import Basic

from recipes.publisher import Publisher, PublishError
from testbed.broker import Broker, OwnBroker
from testbed.terminal import REPOSITORY, script_environment
from testbed.waiting import wait_until
from tests.conftest import Run

SCRIPT, QUEUE = "recipes/publisher.py", "jobs"


@pytest.fixture(autouse=True)
def jobs(broker: Broker) -> None:
    """Have the recipe's queue there, and empty."""
    with broker.channel() as channel:
        channel.queue_declare(queue=QUEUE, durable=True)


def program(broker: Broker, *arguments: str) -> subprocess.Popen[str]:
    """Start the program, with its standard input and output in pipes."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        cwd=REPOSITORY,
        env=script_environment(broker.url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def publisher_of(broker: Broker, options: str = "", in_flight: int = 1000) -> Publisher:
    """Return the recipe's publisher, as another program uses it."""
    return Publisher(pika.URLParameters(broker.url + options), QUEUE, in_flight)


def hold_up(publisher: Publisher) -> threading.Event:
    """Hold up the thread of a publisher that is connected, until that event is set."""
    held, go_on = threading.Event(), threading.Event()

    def wait_in_there() -> None:
        held.set()
        go_on.wait(30)

    publisher._ioloop.add_callback_threadsafe(wait_in_there)
    assert held.wait(30)
    return go_on


def lines(first: int, last: int) -> str:
    """Return what `seq` prints."""
    return "".join(f"{number}\n" for number in range(first, last + 1))


def messages(broker: Broker, queue: str = QUEUE) -> list[tuple[BasicProperties, bytes]]:
    """Take all messages out of the queue; return their properties and bodies, in order."""
    with broker.channel() as channel:
        count = channel.queue_declare(queue=queue, passive=True).method.message_count
        taken: list[tuple[BasicProperties, bytes]] = []
        if count:
            for _, properties, body in channel.consume(queue=queue, auto_ack=True):
                assert properties is not None
                assert body is not None
                taken.append((properties, body))
                if len(taken) == count:
                    break
        return taken


@pytest.mark.claim("recipe-confirmed", "recipe-message-id")
def test_each_line_is_a_persistent_message_with_an_id_in_order(broker: Broker) -> None:
    for queue, arguments in ((QUEUE, []), ("other_jobs", ["--queue", "other_jobs"])):
        process = program(broker, *arguments)
        out, error = process.communicate("first\n\nthird, ä\r\nlast", timeout=30)
        assert (process.returncode, out, error) == (0, " [x] Sent 4 messages\n", "")
        taken = messages(broker, queue)
        assert [body.decode() for _, body in taken] == ["first", "", "third, ä", "last"]
        assert {properties.delivery_mode for properties, _ in taken} == {2}
        assert len({properties.message_id for properties, _ in taken}) == 4
    with broker.channel() as channel:
        channel.queue_declare(queue=QUEUE, durable=True)  # as it is: refused if it were transient
        channel.queue_delete(queue="other_jobs")


@pytest.mark.claim("recipe-nothing-lost", "recipe-twice")
@pytest.mark.timeout(180)  # RabbitMQ starts twice in it
def test_ten_thousand_messages_while_rabbitmq_is_restarted_and_killed(
    own_broker: OwnBroker,
) -> None:
    process = program(own_broker, "--timeout", "120")
    assert process.stdin
    try:
        process.stdin.write(lines(1, 3_000))
        process.stdin.flush()
        wait_until(lambda: own_broker.ready(QUEUE) > 500, "some messages")
        own_broker.ctl("stop_app")  # RabbitMQ ends in order, in an Erlang that goes on
        process.stdin.write(lines(3_001, 6_000))
        process.stdin.flush()
        own_broker.ctl("start_app")
        wait_until(lambda: own_broker.ready(QUEUE) > 5_000, "more messages", 60)
        own_broker.kill()
        process.stdin.write(lines(6_001, 9_000))
        process.stdin.flush()
        own_broker.start()
        out, error = process.communicate(lines(9_001, 10_000), timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, " [x] Sent 10000 messages\n"), error
    assert error.count("Connection lost") >= 2
    body_of: dict[str | None, bytes] = {}
    for properties, body in messages(own_broker):
        assert body_of.setdefault(properties.message_id, body) == body  # a copy has the same id
    assert sorted(map(int, body_of.values())) == list(range(1, 10_001))


@pytest.mark.claim("recipe-in-flight")
def test_no_more_are_in_flight_than_may_be(broker: Broker) -> None:
    with publisher_of(broker, in_flight=10) as publisher:
        publisher.publish(b"connects").result(30)
        go_on = hold_up(publisher)
        held = [publisher.publish(b"held") for _ in range(10)]
        with pytest.raises(TimeoutError, match="10 messages"):
            publisher.publish(b"one too many", timeout=0.2)
        assert not any(future.done() for future in held)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(publisher.publish, b"waits for its turn")
            go_on.set()
            assert waiting.result(15).result(30) is None  # sooner than it would give up
        assert [future.result(30) for future in held] == [None] * 10
    bodies = [body for _, body in messages(broker)]
    assert bodies == [b"connects", *[b"held"] * 10, b"waits for its turn"]


@pytest.mark.claim("recipe-threads")
def test_eight_threads_publish_at_once_and_a_callback_may_publish(broker: Broker) -> None:
    answered: list[Future[None]] = []
    with publisher_of(broker, in_flight=5) as publisher, ThreadPoolExecutor(8) as threads:

        def publish(number: int) -> None:
            future = publisher.publish(str(number).encode())
            future.add_done_callback(lambda _: answered.append(publisher.publish(b"and another")))
            future.result(30)

        list(threads.map(publish, range(400)))
        wait_until(lambda: len(answered) == 400, "the callbacks")
        wait(answered, 30)
    bodies = [body for _, body in messages(broker)]
    assert sorted(bodies) == sorted(
        [*(str(n).encode() for n in range(400)), *[b"and another"] * 400]
    )


@pytest.mark.claim("recipe-rejected")
def test_what_a_full_queue_rejects_fails(own_broker: OwnBroker) -> None:
    with own_broker.rejecting(QUEUE, room=5):
        process = program(own_broker)
        _, error = process.communicate(lines(1, 50), timeout=30)
        assert process.returncode == 1
        (line,) = error.splitlines()
        assert line.startswith(" [!] ")
        assert "rejected" in line
        with publisher_of(own_broker) as publisher:
            futures = [publisher.publish(b"no room") for _ in range(3)]
            for future in futures:
                with pytest.raises(PublishError, match="rejected"):
                    future.result(30)
            assert len(messages(own_broker)) >= 5
            assert publisher.publish(b"room").result(30) is None


def publish_after_the_last(publisher: Publisher, number: int) -> tuple[bool, list[object]]:
    """Publish so many messages, and one more as soon as the last of them is settled.

    Returns:
        Whether earlier ones still waited at that moment, and what became of each.
    """
    futures = [publisher.publish(b"to disk, or rejected") for _ in range(number)]
    one_more = Future[tuple[bool, Future[None]]]()

    def on_done(_: Future[None]) -> None:
        earlier_wait = not all(future.done() for future in futures)
        one_more.set_result((earlier_wait, publisher.publish(b"one more")))

    futures[-1].add_done_callback(on_done)
    earlier_wait, future = one_more.result(30)
    return earlier_wait, [each.exception(30) for each in [*futures, future]]


@pytest.mark.claim("recipe-rejected")
def test_one_may_be_rejected_before_earlier_ones_are_confirmed(own_broker: OwnBroker) -> None:
    earlier_wait = False
    with own_broker.rejecting(QUEUE, room=5), publisher_of(own_broker) as publisher:
        while not earlier_wait:
            earlier_wait, errors = publish_after_the_last(publisher, 40)
            assert errors.count(None) == len(messages(own_broker))


@pytest.mark.claim("recipe-returned")
def test_what_no_queue_takes_fails(broker: Broker, channel: BlockingChannel) -> None:
    with publisher_of(broker) as publisher:
        assert publisher.publish(b"there").result(30) is None
        channel.queue_delete(queue=QUEUE)
        ids = ["order 17", "order 17", "order 17", b"order 18"]  # pika makes text of the last
        for future in [publisher.publish(b"gone", message_id=each) for each in ids]:
            with pytest.raises(PublishError, match="NO_ROUTE"):
                future.result(30)
        channel.queue_declare(queue=QUEUE, durable=True)
        assert publisher.publish(b"there again", message_id="order 17").result(30) is None
    (message,) = messages(broker)
    assert message[0].message_id == "order 17"


NO_NUMBER: dict[str, Any] = {"expiration": "soon"}  # it is milliseconds, in digits
TOO_LONG: dict[str, Any] = {"headers": {"long": "x" * 200_000}}


@pytest.mark.claim("recipe-refused")
def test_what_rabbitmq_refuses_fails_with_what_was_sent_after_it(broker: Broker) -> None:
    with publisher_of(broker) as publisher:
        with pytest.raises(ShortStringTooLong):  # pika would not send it
            publisher.publish(b"never", message_id="x" * 256)
        assert publisher.publish(b"before").result(30) is None
        # For the one RabbitMQ closes the channel, for the other the connection.
        for properties, reason in ((NO_NUMBER, "invalid expiration"), (TOO_LONG, "FRAME_ERROR")):
            go_on = hold_up(publisher)
            sent_together = [publisher.publish(b"never", **properties)]
            sent_together += [publisher.publish(b"never") for _ in range(3)]
            go_on.set()
            for future in sent_together:
                with pytest.raises(PublishError, match=reason):
                    future.result(30)
            assert publisher.publish(b"after").result(30) is None
    assert [body for _, body in messages(broker)] == [b"before", b"after", b"after"]


@pytest.mark.claim("recipe-too-large")
def test_a_message_that_is_too_large_is_refused(own_broker: OwnBroker) -> None:
    largest = bytes(2_000_000)  # as testbed/settings.py has it
    with publisher_of(own_broker) as publisher:
        assert publisher.publish(largest).result(30) is None
        with pytest.raises(PublishError, match="message size 2000001 is larger"):
            publisher.publish(largest + b"x").result(30)
        assert publisher.publish(largest).result(30) is None


@pytest.mark.claim("recipe-alarm")
def test_it_waits_while_rabbitmq_blocks_publishers(own_broker: OwnBroker) -> None:
    with publisher_of(own_broker, "?blocked_connection_timeout=2", in_flight=3) as publisher:
        assert publisher.publish(b"before").result(30) is None
        with own_broker.blocking_publishers():
            futures = [publisher.publish(b"during") for _ in range(3)]
            with pytest.raises(TimeoutError):
                publisher.publish(b"one too many", timeout=5)  # longer than a connection lasts
            assert not any(future.done() for future in futures)
        assert [future.result(30) for future in futures] == [None] * 3


@pytest.mark.claim("recipe-close")
def test_closing_is_quick_and_says_what_was_not_confirmed(own_broker: OwnBroker) -> None:
    publisher = publisher_of(own_broker)
    assert publisher.publish(b"before").result(30) is None
    own_broker.pause()
    try:
        future = publisher.publish(b"to somebody who is silent")
        began = time.monotonic()
        publisher.close(timeout=0.5)
        assert time.monotonic() - began < 4
        with pytest.raises(PublishError, match="before RabbitMQ confirmed"):
            future.result(1)
        with pytest.raises(PublishError, match="closed"):
            publisher.publish(b"after the end")
    finally:
        own_broker.resume()


@pytest.mark.claim("recipe-fork")
def test_a_publisher_from_before_a_fork_works_in_both_processes(run: Run, broker: Broker) -> None:
    script = run(
        "-c",
        "import os, pika\n"
        "from recipes.publisher import RABBITMQ_URL, Publisher\n"
        "publisher = Publisher(pika.URLParameters(RABBITMQ_URL), 'jobs')\n"
        "futures = [publisher.publish(b'parent, before') for _ in range(200)]\n"
        "child = os.fork()\n"
        "who = b'parent, after' if child else b'child'\n"
        "futures = [publisher.publish(who) for _ in range(200)]\n"
        "print([future.result(20) for future in futures] == [None] * 200, flush=True)\n"
        "publisher.close()\n"
        "if child: print(os.waitpid(child, 0)[1], flush=True)\n"
        "else: os._exit(0)\n",
    )
    assert script.wait(40) == 0
    assert script.out == ["True", "True", "0"]
    bodies = [body for _, body in messages(broker)]
    for who in (b"parent, before", b"parent, after", b"child"):
        assert bodies.count(who) == 200


def test_fifty_lost_connections_leave_nothing_behind(broker: Broker) -> None:
    process = psutil.Process()
    with publisher_of(broker) as publisher:

        def lose_a_connection() -> tuple[int, int]:
            publisher._pause = 0
            lost = publisher._channel
            future = publisher.publish(b"never", **TOO_LONG)
            with pytest.raises(PublishError):
                future.result(30)
            publisher.publish(b"after").result(30)
            assert publisher._channel is not lost
            return process.num_fds(), process.num_threads()

        before = [lose_a_connection() for _ in range(5)][-1]
        after = [lose_a_connection() for _ in range(50)][-1]
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 1


@pytest.mark.claim("recipe-interrupted")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_does_not_claim_success(broker: Broker, number: signal.Signals) -> None:
    process = program(broker)
    assert process.stdin
    process.stdin.write(lines(1, 100))
    process.stdin.flush()  # and no end of the input
    wait_until(lambda: broker.ready(QUEUE) == 100, "the messages")
    process.send_signal(number)
    out, error = process.communicate(timeout=10)
    assert process.returncode not in (0, None)
    assert "Sent" not in out
    assert "Traceback" not in error


def test_without_a_broker_it_says_so(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "url", "amqp://guest:guest@localhost:1/%2F")
    process = program(broker)
    out, error = process.communicate("1\n", timeout=30)
    assert (process.returncode, out) == (1, "")
    (line,) = error.splitlines()
    assert "Connection refused" in line


@pytest.mark.claim("recipe-returned")
def test_a_returned_message_is_told_from_another_with_its_id(own_broker: OwnBroker) -> None:
    with publisher_of(own_broker) as publisher:
        publisher.publish(b"connects").result(30)
        own_broker.pause()
        try:
            routed = publisher.publish(b"routed", message_id="17")
            other = publisher.publish(b"other", message_id="17")
            # What RabbitMQ says if the queue goes between the two.
            back = Basic.Return(312, "NO_ROUTE"), BasicProperties(message_id="17"), b"other"
            publisher._ioloop.add_callback_threadsafe(lambda: publisher._on_return(None, *back))
            with pytest.raises(PublishError, match="NO_ROUTE"):
                other.result(30)
        finally:
            own_broker.resume()
        assert routed.result(30) is None


def test_a_message_is_as_it_was_when_it_was_handed_over(broker: Broker) -> None:
    body, headers = bytearray(b"as it was"), {"as": "it was"}
    with publisher_of(broker) as publisher:
        publisher.publish(b"connected").result(30)
        with publisher._lock:  # it is not sent yet
            future = publisher.publish(body, headers=headers)  # type: ignore[arg-type]
            body[:], headers["what no message"] = b"is changed", object()  # type: ignore[assignment]
        assert future.result(30) is None
        assert publisher.publish(b"after").result(30) is None
    _, (properties, taken), _ = messages(broker)
    assert (taken, properties.headers) == (b"as it was", {"as": "it was"})


@pytest.mark.claim("recipe-close")
def test_callbacks_may_publish_close_and_raise(broker: Broker) -> None:
    published: list[Future[None]] = []
    with publisher_of(broker) as publisher:

        def publish_more(_: Future[None]) -> None:
            wait_until(lambda: publisher._changed._waiters, "close to wait")  # type: ignore[attr-defined]
            published.append(publisher.publish(b"more"))

        publisher.publish(b"first").add_done_callback(publish_more)
        publisher.close()
    assert [future.result(0) for future in published] == [None]

    with publisher_of(broker) as publisher:
        futures = [publisher.publish(b"one of many") for _ in range(500)]
        for future in futures:
            future.add_done_callback(lambda _: sys.exit("of this thread"))
        wait(futures, timeout=30)
        assert [future.result(0) for future in futures] == [None] * 500

    publisher = publisher_of(broker)
    closed = Future[float]()

    def close(_: Future[None]) -> None:
        began = time.monotonic()
        publisher.close(timeout=20)
        closed.set_result(time.monotonic() - began)

    publisher.publish(b"last").add_done_callback(close)
    assert closed.result(30) < 10
    assert publisher._thread
    publisher._thread.join(30)
    assert not publisher._thread.is_alive()


def test_two_threads_may_close_it(broker: Broker) -> None:
    for _ in range(20):
        publisher = publisher_of(broker)
        publisher.publish(b"one").result(30)
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda _: publisher.close(), range(2))) == [None, None]  # noqa: B023
        assert publisher._thread
        assert not publisher._thread.is_alive()


def test_it_goes_on_if_pika_could_not_start_a_thread(broker: Broker) -> None:
    with publisher_of(broker) as publisher:
        publisher.publish(b"before").result(30)
        size = threading.stack_size(1 << 46)  # so much that no thread can be started
        try:
            first = publisher._ioloop
            with pytest.raises(PublishError, match="refused"):
                publisher.publish(b"x", **TOO_LONG).result(30)
            wait_until(lambda: publisher._ioloop is not first, "it to try again")
        finally:
            threading.stack_size(size)
        assert publisher.publish(b"after").result(60) is None


INTERRUPTED = """
import signal, sys, time
import pika
from recipes.publisher import RABBITMQ_URL, Publisher

signal.signal(signal.SIGALRM, signal.default_int_handler)
with Publisher(pika.URLParameters(RABBITMQ_URL), "jobs", in_flight=10**6) as publisher:
    for number in range(600):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + 0.000004 * (number % 300))
            while True:
                publisher.publish(b"interrupted at some moment")
        except KeyboardInterrupt:
            pass
        publisher.publish(b"after").result(20)
print("all", flush=True)
"""


def test_an_interrupt_in_the_middle_of_publish_holds_up_nothing(run: Run) -> None:
    script = run("-c", INTERRUPTED)
    assert script.wait(90) == 0
    assert script.out == ["all"]
