"""What a reader meets beyond the six parts: a broker on another host, tasks that fail, limits."""

import inspect
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic, BasicProperties

from part_2.worker import connection_lock, goodbye, work
from testbed.broker import Broker, OwnBroker
from testbed.terminal import REPOSITORY
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.test_part_2 import NEW_TASK, QUEUE, WORK, WORKER, received, send, until_there
from tools.readme import definition

# worker.py, with tasks that can fail: each is to be a number.
NUMBERS_ONLY = (WORK, "    int(task)")


def readme_commands(word: str) -> list[list[str]]:
    """Return the arguments of the README's rabbitmqctl commands in which the word stands."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:sudo )?rabbitmqctl (.*)$", readme, re.MULTILINE)
    return [shlex.split(command) for command in commands if word in command]


def version_of(broker: Broker) -> tuple[int, ...]:
    """Return the major and the minor number of the broker's version."""
    return tuple(int(number) for number in broker.version.split(".")[:2])


@pytest.mark.claim("beyond-own-user")
def test_a_user_and_a_virtual_host_of_its_own(run: Run, own_broker: OwnBroker) -> None:
    commands = readme_commands("tutorial")
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
        assert stranger.wait() == 1
        assert "NOT_ALLOWED - access to vhost" in stranger.error[0]
    finally:
        own_broker.ctl("delete_vhost", "tutorial")
        own_broker.ctl("delete_user", "tutorial")


@pytest.mark.claim("beyond-tls")
def test_tls_with_a_certificate_that_is_trusted_and_one_that_is_not(
    run: Run, own_broker: OwnBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script in (NEW_TASK, WORKER):
        refused = run(script, url=own_broker.tls_url)
        assert refused.wait() == 1
        assert refused.out == []
        assert len(refused.error) == 1
        assert "certificate verify failed" in refused.error[0]

    authority = tmp_path / "authority.pem"
    authority.write_bytes(own_broker.authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert run(NEW_TASK, "secret", url=own_broker.tls_url).wait() == 0
    worker = run(WORKER, url=own_broker.tls_url).expect("Done")
    assert received(worker) == ["secret"]


@pytest.mark.claim("beyond-poison")
def test_a_task_that_always_fails_ends_one_worker_after_the_other(
    run: Run, broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    send(channel, "poison")
    script = variant(WORKER, NUMBERS_ONLY)
    for _ in range(3):
        worker = run(script)
        assert worker.wait() == 1
        assert received(worker) == ["poison"]
        assert "ValueError" in worker.error[-1]
        broker.wait_for_ready(QUEUE, 1)
    method, _, _ = channel.basic_get(queue=QUEUE)
    assert method
    assert method.redelivered


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Do one task, and acknowledge it; or set it aside if it is one that can never be done."""
    print(f" [x] Received {body.decode(errors='replace')!r}", flush=True)
    wrong = None
    connection_lock.release()  # while we work, the connection is keep_heartbeats' to use
    try:
        work(body)
    except ValueError as error:  # which it would raise again
        wrong = error
    except Exception as error:  # which is not to be taken for one of the connection
        raise RuntimeError(f"the task failed: {error!r}") from error
    finally:
        connection_lock.acquire()
    if wrong:
        print(f" [!] Set aside: {wrong}", file=sys.stderr)
        channel.basic_nack(delivery_tag=method.delivery_tag, requeue=False)
    else:
        print(" [x] Done", flush=True)
        channel.basic_ack(delivery_tag=method.delivery_tag)


@pytest.mark.claim("beyond-set-aside")
def test_a_rejected_task_is_discarded_or_kept_in_a_queue_for_it(
    run: Run, own_broker: OwnBroker, channel: BlockingChannel, variant: Variant
) -> None:
    (set_policy,) = readme_commands("failed_tasks")
    plain = definition((REPOSITORY / WORKER).read_text(encoding="utf-8"), "on_message")
    worker = run(variant(WORKER, NUMBERS_ONLY, (plain, inspect.getsource(on_message).rstrip())))
    worker.expect_ready()
    send(channel, "poison 1", "1")
    worker.expect("Set aside").expect("Done")
    try:
        channel.queue_declare(queue="failed_tasks", durable=True)
        own_broker.ctl(*set_policy)
        send(channel, "poison 2", "2")
        worker.expect("Set aside", times=2).expect("Done", times=2)
        wait_until(lambda: own_broker.ready("failed_tasks") == 1, "the failed task to be set aside")
        _, kept, body = channel.basic_get(queue="failed_tasks", auto_ack=True)
        assert kept
        assert body == b"poison 2"
        assert [death["reason"] for death in kept.headers["x-death"]] == ["rejected"]
    finally:
        channel.queue_delete(queue="failed_tasks")
        own_broker.ctl("clear_policy", "failed_tasks")
    # Neither came again.
    assert received(worker) == ["poison 1", "1", "poison 2", "2"]
    own_broker.wait_for_acknowledgements(QUEUE)
    worker.kill()
    assert own_broker.ready(QUEUE) == 0


def finish_first(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Do one task; a SIGTERM that comes meanwhile has to wait until it is acknowledged."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        on_message(channel, method, properties, body)
    finally:
        signal.signal(signal.SIGTERM, goodbye)
        if told:
            goodbye()


@pytest.mark.claim("beyond-finish")
def test_a_worker_finishes_its_task_first(
    run: Run, own_broker: OwnBroker, variant: Variant, tmp_path: Path
) -> None:
    consume, callback = "def consume(", "on_message_callback=on_message"
    edits = [
        (consume, f"{inspect.getsource(finish_first)}\n\n{consume}"),
        (callback, "on_message_callback=finish_first"),
    ]
    # Each task lasts until it is told that it is done.
    told = tmp_path / "told"
    script = variant(WORKER, *edits, until_there(told))
    working, waiting = run(script).expect_ready(), run(script)
    with own_broker.channel() as channel:
        send(channel, "current", "next")
    working.expect("Received 'current'").terminate()
    waiting.expect("Received 'next'").ctrl_c()
    assert waiting.wait() == 0  # Ctrl+C does not wait
    told.touch()
    assert working.wait() == 0
    assert working.messages == ["Received 'current'", "Done"]
    assert working.error == []
    own_broker.wait_for_ready(QUEUE, 1)

    waiting = run(script).expect("Done")
    assert received(waiting) == ["next"]
    own_broker.wait_for_acknowledgements(QUEUE)
    waiting.terminate()
    assert waiting.wait() == 0
    assert own_broker.ready(QUEUE) == 0

    # Nor is the order forgotten when the connection is lost meanwhile.
    told.unlink()
    with own_broker.channel() as channel:
        send(channel, "current")
    cut_off = run(script).expect("Received 'current'")
    cut_off.terminate()
    own_broker.ctl("close_all_connections", "a test")
    told.touch()
    assert cut_off.wait() == 0
    assert cut_off.messages[-1] == "Done"
    own_broker.wait_for_ready(QUEUE, 1)


@pytest.mark.claim("beyond-consumer-timeout")
def test_a_task_unacknowledged_for_too_long_comes_again(
    run: Run, own_broker: OwnBroker, channel: BlockingChannel
) -> None:
    if version_of(own_broker) >= (4, 3):
        pytest.skip("holds for quorum queues only, from 4.3 on")
    set_limits = (
        "application:set_env(rabbit, consumer_timeout, {}),"
        "application:set_env(rabbit, channel_tick_interval, {})."
    )
    # In milliseconds: what a delivery may take, and how often RabbitMQ looks.
    own_broker.ctl("eval", set_limits.format(500, 100))
    try:
        worker = run(WORKER).expect_ready()
        send(channel, "long..")
        worker.expect("Connection lost").expect("Received 'long..'", times=2)
        assert len(worker.error) == 1
        worker.kill()

        mine = channel.connection.channel()
        mine.basic_consume(queue=QUEUE, on_message_callback=lambda *_: None)
        with pytest.raises(ChannelClosedByBroker, match="timed out") as caught:
            mine.start_consuming()
        assert caught.value.reply_code == 406
    finally:
        own_broker.ctl("eval", set_limits.format(1_800_000, 60_000))


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
    if isinstance(broker, OwnBroker) or version_of(broker) < (4, 3):
        assert sender.wait() == 0
    else:
        assert sender.wait() == 1
        assert "transient_nonexcl_queues" in sender.error[0]


@pytest.mark.claim("beyond-delivery-limit")
def test_a_quorum_queue_gives_a_message_up_from_4_0_on(
    broker: Broker, channel: BlockingChannel
) -> None:
    failed_tasks = channel.queue_declare(queue="", exclusive=True).method.queue
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": failed_tasks,
    }
    channel.queue_declare(queue=QUEUE, durable=True, arguments=arguments)
    channel.basic_publish(exchange="", routing_key=QUEUE, body=b"poison")

    def given_up() -> bool:
        told = channel.queue_declare(queue=failed_tasks, passive=True)
        return bool(told.method.message_count)

    def taken_or_given_up() -> bool:
        mine = channel.connection.channel()
        method, _, _ = mine.basic_get(queue=QUEUE)
        mine.close()
        return bool(method) or given_up()

    for _ in range(25):
        wait_until(taken_or_given_up, "the message to come again")
    assert given_up() == (version_of(broker) >= (4, 0))
