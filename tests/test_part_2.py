"""Work Queues: the statements of Part II, in the order in which the text makes them."""

import time
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from testbed.broker import Broker, OwnBroker
from testbed.terminal import Terminal
from testbed.waiting import wait_until
from tests.conftest import Run, Variant

NEW_TASK, WORKER, QUEUE = "part_2/new_task.py", "part_2/worker.py", "task_queue"

# new_task.py many times in one process: each word a task, on a connection of its own.
SEND_EACH = ('send(" ".join(arguments.words))', "[send(word) for word in arguments.words]")
# The lines of worker.py that a statement is about.
PREFETCH = "    channel.basic_qos(prefetch_count=1)"
CONSUME = "channel.basic_consume(queue=QUEUE, on_message_callback=on_message"
HEARTBEATS = "    with contextlib.suppress(AMQPError):"
WORK = '    time.sleep(task.count(b"."))'
ACKNOWLEDGE = "    channel.basic_ack(delivery_tag=method.delivery_tag)\n"


def send(channel: BlockingChannel, *tasks: str) -> None:
    """Send the tasks as new_task.py does, but without a process for each."""
    channel.queue_declare(queue=QUEUE, durable=True)
    for task in tasks:
        channel.basic_publish(
            exchange="",
            routing_key=QUEUE,
            body=task.encode(),
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
        )


def received(terminal: Terminal) -> list[str]:
    """Return the tasks that a worker says it received."""
    return [line.split("'")[1] for line in terminal.out if "Received" in line]


def until_there(file: Path) -> tuple[str, str]:
    """Return for a `variant` of worker.py what has each task last until the file is there."""
    return WORK, f"    while not os.path.exists({str(file)!r}):\n        time.sleep(0.05)"


def seconds_for_three_tasks(
    run: Run, broker: Broker, channel: BlockingChannel, workers: int
) -> float:
    """Return how long so many workers take for three tasks of a second each."""
    terminals = [run(WORKER).expect_ready() for _ in range(workers)]
    began = time.monotonic()
    send(channel, ".", ".", ".")
    for terminal in terminals:
        terminal.expect("Done", times=3 // workers)
    took = time.monotonic() - began
    broker.wait_for_acknowledgements(QUEUE)
    for terminal in terminals:
        terminal.kill()
    return took


@pytest.mark.claim("II-parallel")
def test_more_workers_clear_a_backlog_faster(
    run: Run, managed_broker: Broker, channel: BlockingChannel
) -> None:
    alone = seconds_for_three_tasks(run, managed_broker, channel, workers=1)
    together = seconds_for_three_tasks(run, managed_broker, channel, workers=3)
    assert together < 0.45 * alone  # a third, and something for a busy machine


@pytest.mark.claim("II-round-robin")
def test_by_default_each_next_message_goes_to_the_next_consumer(
    run: Run, channel: BlockingChannel, variant: Variant
) -> None:
    without_prefetch = variant(WORKER, (PREFETCH, "    # no limit"))
    workers = [run(without_prefetch).expect_ready() for _ in range(3)]
    send(channel, *"123456789")
    for worker in workers:
        worker.expect("Done", times=3)
    assert [received(worker) for worker in workers] == [list("147"), list("258"), list("369")]


@pytest.mark.claim("II-blind-dispatch")
def test_without_a_prefetch_limit_one_worker_gets_all_the_heavy_tasks(
    run: Run, managed_broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    without_prefetch = variant(WORKER, (PREFETCH, "    # no limit"))
    busy, idle = (run(without_prefetch).expect_ready() for _ in range(2))
    heavy = [f"heavy {number}{50 * '.'}" for number in (1, 2, 3)]  # longer than the test takes
    send(channel, heavy[0], "light 1", heavy[1], "light 2", heavy[2], "light 3")

    idle.expect("Done", times=3)
    assert received(idle) == ["light 1", "light 2", "light 3"]
    busy.expect(f"Received '{heavy[0]}'")
    # Its other two are with it already, though it has not begun them and the other has no work.
    assert managed_broker.ready(QUEUE) == 0
    wait_until(lambda: managed_broker.unacknowledged(QUEUE) == 3, "three unacknowledged tasks")
    assert received(busy) == heavy[:1]


@pytest.mark.claim("II-fair-dispatch")
def test_with_prefetch_1_a_task_goes_to_a_worker_that_is_not_busy(
    run: Run, channel: BlockingChannel
) -> None:
    busy, other = (run(WORKER).expect_ready() for _ in range(2))
    heavy = f"heavy 1{50 * '.'}"  # which takes as long as the test does
    send(channel, heavy, "light 1", "light 2", "light 3", "light 4")
    other.expect("Done", times=4)
    assert received(other) == ["light 1", "light 2", "light 3", "light 4"]
    busy.expect("Received")
    assert busy.out[1:] == [f" [x] Received '{heavy}'"]


@pytest.mark.claim("II-auto-ack-loses")
def test_with_auto_ack_a_killed_worker_loses_what_was_dispatched_to_it(
    run: Run, broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    careless = run(
        variant(WORKER, (CONSUME, CONSUME + ", auto_ack=True"), (ACKNOWLEDGE, ""))
    ).expect_ready()
    send(channel, "current........", "not begun 1", "not begun 2")
    careless.expect("Received 'current........'")
    assert broker.ready(QUEUE) == 0
    careless.kill()

    send(channel, "later")
    successor = run(WORKER).expect("Done")
    assert received(successor) == ["later"]


@pytest.mark.claim("II-killed-worker")
def test_a_killed_worker_loses_nothing(
    run: Run, channel: BlockingChannel, variant: Variant, tmp_path: Path
) -> None:
    killed = run(variant(WORKER, until_there(tmp_path / "never"))).expect_ready()
    successor = run(
        variant(WORKER, ("[x] Received", "[x] Received redelivered={method.redelivered}"))
    ).expect_ready()
    send(channel, "current", "other")
    killed.expect("Received 'current'")
    successor.expect("Received redelivered=False 'other'").expect("Done")
    killed.kill()
    successor.expect("Received redelivered=True 'current'", seconds=2).expect("Done", times=2)
    assert " [x] Done" not in killed.out


@pytest.mark.claim("II-ack-when-done")
def test_a_task_leaves_the_queue_once_it_is_done(
    run: Run, managed_broker: Broker, channel: BlockingChannel, variant: Variant, tmp_path: Path
) -> None:
    finish = tmp_path / "finish"
    worker = run(variant(WORKER, until_there(finish))).expect_ready()
    send(channel, "task")
    worker.expect("Received")
    wait_until(lambda: managed_broker.unacknowledged(QUEUE) == 1, "the task to be unacknowledged")
    assert " [x] Done" not in worker.out
    finish.touch()
    worker.expect("Done")
    managed_broker.wait_for_acknowledgements(QUEUE)
    worker.kill()
    # Without an acknowledgement it would be ready again, now that its consumer is gone.
    assert managed_broker.ready(QUEUE) == 0


@pytest.mark.claim("II-ack-same-channel")
def test_an_acknowledgement_on_another_channel_is_an_error(channel: BlockingChannel) -> None:
    send(channel, "task")
    method, _, _ = channel.basic_get(queue=QUEUE)
    assert method
    other = channel.connection.channel()
    other.basic_ack(delivery_tag=method.delivery_tag)
    with pytest.raises(ChannelClosedByBroker, match="unknown delivery tag") as caught:
        other.queue_declare(queue=QUEUE, passive=True)
    assert caught.value.reply_code == 406


@pytest.mark.claim("II-forgotten-ack")
def test_a_task_never_acknowledged_comes_again_when_its_consumer_goes(
    run: Run, broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    forgetful = run(variant(WORKER, (ACKNOWLEDGE, ""))).expect_ready()
    send(channel, "task")
    forgetful.expect("Done")
    worker = run(WORKER).expect_ready()
    send(channel, "later")
    worker.expect("Done")
    assert received(worker) == ["later"]
    assert broker.ready(QUEUE) == 0

    forgetful.ctrl_c()
    worker.expect("Done", times=2)
    assert received(worker) == ["later", "task"]


@pytest.mark.claim("II-redeclare")
def test_a_queue_cannot_be_declared_again_with_other_properties(
    run: Run, channel: BlockingChannel
) -> None:
    assert run("part_1/sender.py").wait() == 0
    with pytest.raises(ChannelClosedByBroker, match=r"PRECONDITION_FAILED.*'durable'") as caught:
        channel.connection.channel().queue_declare(queue="hello", durable=True)
    assert caught.value.reply_code == 406

    # Each of the two scripts declares task_queue durable: on one that is not, each is refused.
    channel.queue_declare(queue=QUEUE)
    for script in (NEW_TASK, WORKER):
        refused = run(script)
        assert refused.wait() == 1
        assert len(refused.error) == 1
        assert "PRECONDITION_FAILED - inequivalent arg 'durable'" in refused.error[0]


@pytest.mark.claim("II-transient-lost", "II-durable-restart")
def test_what_a_restart_of_the_broker_leaves(
    run: Run, own_broker: OwnBroker, variant: Variant
) -> None:
    transient = variant(NEW_TASK, ("DeliveryMode.Persistent", "DeliveryMode.Transient"))
    for command in (
        ["part_1/sender.py"],
        [NEW_TASK, "persistent 1"],
        [transient, "transient"],
        [NEW_TASK, "persistent 2"],
    ):
        assert run(*command).wait() == 0
    assert (own_broker.ready("hello"), own_broker.ready(QUEUE)) == (1, 3)

    own_broker.stop()
    own_broker.start()
    with pytest.raises(ChannelClosedByBroker, match="no queue 'hello'"):
        own_broker.ready("hello")
    assert own_broker.ready(QUEUE) == 2
    worker = run(WORKER).expect("Done", times=2)
    assert received(worker) == ["persistent 1", "persistent 2"]


@pytest.mark.claim("II-confirms", "II-reconnect")
def test_no_task_reported_as_sent_is_lost_when_the_broker_is_killed_outright(
    run: Run, own_broker: OwnBroker, variant: Variant, tmp_path: Path
) -> None:
    # Each task lasts until the broker was killed, however long that takes.
    killed = tmp_path / "killed"
    worker = run(variant(WORKER, until_there(killed))).expect_ready()
    assert run(NEW_TASK, "current").wait() == 0
    worker.expect("Received 'current'")
    own_broker.settle()  # what a confirm promises is about messages, not about their queue
    # Twenty times new_task.py in one process, so that the broker dies right after the last Sent.
    send_each = variant(NEW_TASK, SEND_EACH)
    tasks = [f"task {number}" for number in range(1, 21)]
    run(send_each, *tasks).expect(" [x] Sent 'task 20'")
    own_broker.kill()
    killed.touch()
    worker.expect("Connection lost").expect("Trying again in 1 s").expect("Trying again in 2 s")

    own_broker.start()

    worker.expect("[*] Waiting", times=2, seconds=30).expect(" [x] Done", times=22)
    # The task that it was at when the connection broke was not acknowledged, so it came again.
    assert received(worker) == ["current", "current", *tasks]
    own_broker.wait_for_acknowledgements(QUEUE)
    worker.kill()
    assert own_broker.ready(QUEUE) == 0


@pytest.mark.claim("II-unroutable")
def test_a_task_for_a_queue_that_is_not_there_is_an_error(
    run: Run, channel: BlockingChannel, variant: Variant
) -> None:
    channel.confirm_delivery()
    with pytest.raises(UnroutableError):
        channel.basic_publish(exchange="", routing_key=QUEUE, body=b"", mandatory=True)

    # new_task.py, had somebody deleted the queue since it was declared.
    deleted = "channel.queue_declare(queue=QUEUE, durable=True)"
    sender = run(variant(NEW_TASK, (deleted, f"{deleted}; channel.queue_delete(queue=QUEUE)")))
    assert sender.wait() == 1
    assert sender.out == []
    assert len(sender.error) == 1
    assert "UnroutableError" in sender.error[0]


@pytest.mark.claim("II-long-task")
def test_a_task_may_take_longer_than_the_heartbeat(
    run: Run, broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    url = f"{broker.url}?heartbeat=2"
    deaf = run(variant(WORKER, (HEARTBEATS, f"    return\n{HEARTBEATS}")), url=url).expect_ready()
    worker = run(WORKER, url=url).expect_ready()
    send(channel, "deaf.........", "long.........")
    deaf.expect("Received 'deaf.........'")
    # A worker that answers no heartbeat is given up in the middle of its task.
    wait_until(lambda: broker.ready(QUEUE) == 1, "the deaf worker's task to be ready again")
    assert " [x] Done" not in deaf.out
    deaf.kill()

    # It gets the next task, so its acknowledgement of the long one has arrived, and in order.
    worker.expect("Received 'deaf.........'").ctrl_c()
    assert worker.wait() == 0
    assert worker.messages == ["Received 'long.........'", "Done", "Received 'deaf.........'"]
    assert worker.error == []
    broker.wait_for_ready(QUEUE, 1)
    assert channel.basic_get(queue=QUEUE)[2] == b"deaf........."
