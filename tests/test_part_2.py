"""Work Queues: the statements of Part II, in the order in which the text makes them."""

import contextlib
import signal
import socket
import time
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import ChannelClosedByBroker, UnroutableError
from pika.frame import Heartbeat, Method
from pika.spec import Connection

from part_2 import new_task
from testbed.broker import Broker, OwnBroker
from testbed.programs import HELLO, NEW_TASK, WORKER, publish_tasks
from testbed.programs import TASK_QUEUE as QUEUE
from testbed.terminal import Terminal
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.network import Network
from tests.scripts import FINISHING, beginning, fails_with_one_line

# The programs on the way to these two. Each lacks something, which its docstring tells.
NEW_TASKS = {number: f"part_2/steps/new_task_{number}.py" for number in range(1, 4)}
WORKERS = {number: f"part_2/steps/worker_{number}.py" for number in range(1, 7)}

# The line of worker.py that is the work.
WORK = '    time.sleep(task.count(b"."))'

LONG = 50 * "."  # a task that lasts longer than a test waits for anything


def send(channel: Channel, *tasks: str, queue: str = QUEUE) -> None:
    """Send the tasks as new_task.py does, but without a process for each."""
    channel.queue_declare(queue=queue, durable=queue == QUEUE)
    publish_tasks(channel, tasks, queue)


def received(terminal: Terminal) -> list[str]:
    """Return the tasks that a worker says it received."""
    return [line.split("'")[1] for line in terminal.out if "Received" in line]


@pytest.fixture
def held(run: Run, variant: Variant, tmp_path: Path) -> tuple[Terminal, Path]:
    """A worker whose tasks last until the file is there, which lists those that are done."""
    finish = tmp_path / "finish"
    wait = f"while not os.path.exists({str(finish)!r}):\n        time.sleep(0.05)\n"
    done = f"    with open({str(finish)!r}, 'ab') as done:\n        done.write(task + b'\\n')"
    return run(variant(WORKER, beginning(WORKER, "work", wait + done))).expect_ready(), finish


def seconds_for_three_tasks(run: Run, broker: Broker, channel: Channel, workers: int) -> float:
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
def test_more_workers_are_faster(run: Run, managed_broker: Broker, channel: Channel) -> None:
    alone = seconds_for_three_tasks(run, managed_broker, channel, workers=1)
    together = seconds_for_three_tasks(run, managed_broker, channel, workers=3)
    assert together < 0.6 * alone  # a third, and something for a busy machine


@pytest.mark.claim("II-round-robin")
def test_by_default_each_next_message_goes_to_the_next_consumer(run: Run, channel: Channel) -> None:
    workers = [run(WORKERS[3]).expect_ready() for _ in range(3)]
    send(channel, *"123456789")
    for worker in workers:
        worker.expect("Done", times=3)
    assert [received(worker) for worker in workers] == [list("147"), list("258"), list("369")]


@pytest.mark.claim("II-blind-dispatch")
def test_without_a_prefetch_limit_one_worker_gets_all_the_heavy_tasks(
    run: Run, managed_broker: Broker, channel: Channel
) -> None:
    busy, idle = (run(WORKERS[3]).expect_ready() for _ in range(2))
    heavy = [f"heavy {number}{LONG}" for number in (1, 2, 3)]
    send(channel, heavy[0], "light 1", heavy[1], "light 2", heavy[2], "light 3")

    idle.expect("Done", times=3)
    assert received(idle) == ["light 1", "light 2", "light 3"]
    busy.expect(f"Received '{heavy[0]}'")
    # Its other two are with it already, though it has not begun them and the other has no work.
    assert managed_broker.ready(QUEUE) == 0
    wait_until(lambda: managed_broker.unacknowledged(QUEUE) == 3, "three unacknowledged tasks")
    assert received(busy) == heavy[:1]


@pytest.mark.claim("II-fair-dispatch")
@pytest.mark.parametrize("script", [WORKERS[4], WORKER])
def test_with_prefetch_1_a_task_goes_to_a_worker_that_is_not_busy(
    run: Run, channel: Channel, script: str
) -> None:
    busy, other = (run(script).expect_ready() for _ in range(2))
    heavy = f"heavy 1{LONG}"
    send(channel, heavy, "light 1", "light 2", "light 3", "light 4")
    other.expect("Done", times=4)
    assert received(other) == ["light 1", "light 2", "light 3", "light 4"]
    busy.expect("Received")
    assert busy.out[1:] == [f" [x] Received '{heavy}'"]


@pytest.mark.claim("II-auto-ack-loses", "II-auto-ack-line")
def test_with_auto_ack_a_killed_worker_loses_what_was_dispatched_to_it_until_the_line_was_full(
    run: Run, broker: Broker, channel: Channel
) -> None:
    def kill(worker: Terminal) -> None:
        worker.kill()
        wait_until(lambda: broker.consumers(HELLO) == 0, "RabbitMQ to see that the worker is gone")

    def left() -> int:
        """Return how many tasks wait in the queue, once twenty looks have seen the same."""
        seen = {broker.ready(HELLO) for _ in range(20)}
        return seen.pop() if len(seen) == 1 else 0

    careless = run(WORKERS[1]).expect_ready()
    send(channel, f"current{LONG}", "not begun 1", "not begun 2", queue=HELLO)
    careless.expect("Received 'current")
    assert broker.ready(HELLO) == 0
    kill(careless)
    send(channel, "later", queue=HELLO)
    successor = run(WORKERS[1]).expect("Done")
    assert received(successor) == ["later"]

    # RabbitMQ sends ahead until the line is full.
    send(channel, LONG, *[50_000 * "x"] * 1000, queue=HELLO)
    successor.expect(f"Received '{LONG}'")
    safe = wait_until(left, "RabbitMQ to stop sending")
    assert safe < 1000
    # What it had sent is lost with the worker, and maybe a few more. The rest is still there.
    kill(successor)
    assert 0 < broker.ready(HELLO) <= safe


@pytest.mark.claim("II-killed-worker")
@pytest.mark.parametrize(("script", "queue"), [(WORKERS[2], HELLO), (WORKER, QUEUE)])
def test_a_killed_worker_loses_nothing(
    run: Run, broker: Broker, channel: Channel, script: str, queue: str
) -> None:
    killed, successor = (run(script).expect_ready() for _ in range(2))
    current = f"current{LONG}"
    send(channel, current, "other", queue=queue)
    killed.expect("Received 'current")
    successor.expect("Received 'other'").expect("Done")
    killed.kill()
    successor.expect("Received 'current")
    assert received(killed) == [current]
    assert " [x] Done" not in killed.out

    successor.kill()
    broker.wait_for_ready(queue, 1)
    method, _, body = channel.basic_get(queue=queue)
    assert body == current.encode()
    assert method
    assert method.redelivered


@pytest.mark.claim("II-ack-when-done")
def test_a_task_leaves_the_queue_once_it_is_done(
    managed_broker: Broker, channel: Channel, held: tuple[Terminal, Path]
) -> None:
    worker, finish = held
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
def test_an_acknowledgement_on_another_channel_is_an_error(channel: Channel) -> None:
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
    run: Run, managed_broker: Broker, channel: Channel
) -> None:
    send(channel, "task")
    with managed_broker.channel() as forgetful:
        forgetful.basic_qos(prefetch_count=1)  # so that the next task is not for this consumer
        _, _, body = next(forgetful.consume(queue=QUEUE, inactivity_timeout=15))
        assert body == b"task"
        worker = run(WORKER).expect_ready()
        send(channel, "later")
        worker.expect("Done")
        assert received(worker) == ["later"]
        wait_until(lambda: managed_broker.unacknowledged(QUEUE) == 1, "one task unacknowledged")
    worker.expect("Done", times=2)
    assert received(worker) == ["later", "task"]


@pytest.mark.claim("II-redeclare")
def test_a_queue_cannot_be_declared_again_with_other_properties(run: Run, channel: Channel) -> None:
    assert run("part_1/sender.py").wait() == 0
    with pytest.raises(ChannelClosedByBroker, match=r"PRECONDITION_FAILED.*'durable'") as caught:
        channel.connection.channel().queue_declare(queue=HELLO, durable=True)
    assert caught.value.reply_code == 406  # tests/test_scripts.py shows what the scripts make of it


@pytest.mark.claim("II-transient-lost", "II-durable-restart", "III-exchange-durable")
def test_what_a_restart_of_the_broker_leaves(run: Run, own_broker: OwnBroker) -> None:
    busy = run(WORKERS[2]).expect_ready()
    for command in (
        [NEW_TASKS[1], f"lost with its queue{LONG}"],
        [NEW_TASKS[1], "lost with its queue, too"],
        [NEW_TASKS[2], "persistent 1"],
        [NEW_TASK, "persistent 2"],
    ):
        assert run(*command).wait() == 0
    with own_broker.channel() as channel:
        channel.basic_publish(exchange="", routing_key=QUEUE, body=b"transient")
        for exchange, durable in (("kept", True), ("gone", False)):
            channel.exchange_declare(exchange=exchange, exchange_type="fanout", durable=durable)
            channel.queue_bind(queue=QUEUE, exchange=exchange)
    busy.expect("Received")
    assert own_broker.ready(QUEUE) == 3

    own_broker.stop()
    own_broker.start()
    with pytest.raises(ChannelClosedByBroker, match="no queue 'hello'"):
        own_broker.ready(HELLO)
    assert own_broker.ready(QUEUE) == 2
    worker = run(WORKERS[3]).expect("Done", times=2)
    assert received(worker) == ["persistent 1", "persistent 2"]
    with own_broker.channel() as channel:
        channel.basic_publish(exchange="kept", routing_key="", body=b"by the durable exchange")
        worker.expect("by the durable exchange")
        channel.exchange_delete(exchange="kept")
        with pytest.raises(ChannelClosedByBroker, match="no exchange 'gone'"):
            channel.exchange_declare(exchange="gone", passive=True)


@pytest.mark.claim("II-confirms", "II-reconnect", "II-twice")
def test_no_task_reported_as_sent_is_lost_when_the_broker_is_killed_outright(
    run: Run, own_broker: OwnBroker, held: tuple[Terminal, Path]
) -> None:
    worker, finish = held
    assert run(NEW_TASK, "current").wait() == 0
    worker.expect("Received 'current'")
    own_broker.settle()  # what a confirm promises is about messages, not about their queue
    # As new_task.py does, but in one process, so that the broker dies right after the last.
    tasks = [f"task {number}" for number in range(1, 21)]
    for task in tasks:
        new_task.send(pika.URLParameters(own_broker.url), task)
    own_broker.kill()
    worker.expect("Connection lost")
    finish.touch()
    worker.expect("Trying again in 1 s").expect("Trying again in 2 s")

    own_broker.start()

    worker.expect("[*] Waiting", times=2).expect(" [x] Done", times=21)
    # The task that it was at when the connection broke was not acknowledged, so it came again, and
    # was done again.
    assert received(worker) == ["current", "current", *tasks]
    assert finish.read_text().splitlines() == ["current", "current", *tasks]
    own_broker.wait_for_acknowledgements(QUEUE)
    worker.kill()
    assert own_broker.ready(QUEUE) == 0


def test_a_lost_connection_ends_step_5_and_a_signal_step_6(
    run: Run, broker: Broker, channel: Channel
) -> None:
    with Network(broker.url) as network:
        ends, comes_back = (run(WORKERS[n], url=network.url).expect_ready() for n in (5, 6))
        network.mode = "reset"
        network.cut()
        assert ends.wait() == 1
        assert "StreamLostError" in ends.error[-1]
        comes_back.expect("Trying again", times=2)
        network.mode = "open"
        comes_back.expect("[*] Waiting", times=2)
        send(channel, LONG)
        comes_back.expect("Received")
        comes_back.terminate()
        assert comes_back.wait() == -signal.SIGTERM
        assert comes_back.messages == [f"Received '{LONG}'"]
    broker.wait_for_ready(QUEUE, 1)


@pytest.mark.claim("II-rejected")
def test_a_full_queue_rejects_a_task_and_tells_who_asked(run: Run, own_broker: OwnBroker) -> None:
    with own_broker.rejecting(QUEUE):
        assert run(NEW_TASK, "fits").wait() == 0
        unaware = run(NEW_TASKS[2], "too much")
        assert unaware.wait() == 0
        assert unaware.messages == ["Sent 'too much'"]
        aware = run(NEW_TASKS[3], "too much")
        assert aware.wait() == 1
        assert aware.messages == []
        assert "NackError" in aware.error[-1]
        fails_with_one_line(run(NEW_TASK, "too much"), "RabbitMQ rejected it: is the queue full?")
    worker = run(WORKER).expect_ready()
    assert run(NEW_TASK, "later").wait() == 0
    worker.expect("Done", times=2)
    assert received(worker) == ["fits", "later"]


@pytest.mark.claim("II-unroutable")
def test_a_task_for_a_queue_that_is_not_there_is_an_error(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As if somebody deleted the queue right after it was declared.
    monkeypatch.setattr(Channel, "queue_declare", lambda *_, **__: None)
    with pytest.raises(UnroutableError):
        new_task.send(pika.URLParameters(broker.url), "task")
    assert capsys.readouterr().out == ""


@pytest.mark.claim("II-heartbeat")
def test_each_side_sends_its_own_heartbeats(broker: Broker) -> None:
    interval = 2  # seconds
    parameters = pika.URLParameters(broker.url)
    login = parameters.credentials
    assert isinstance(login, pika.PlainCredentials)
    methods = (
        Connection.StartOk(client_properties={}, response=f"\0{login.username}\0{login.password}"),
        Connection.TuneOk(channel_max=1, frame_max=131_072, heartbeat=interval),
        Connection.Open(virtual_host=parameters.virtual_host),
    )
    said = b""
    with socket.create_connection((parameters.host, parameters.port), timeout=30) as connection:
        began = time.monotonic()
        connection.sendall(b"AMQP\0\0\x09\x01")
        connection.sendall(b"".join(Method(0, method).marshal() for method in methods))
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(4096):
                said += more
        silent = time.monotonic() - began
    # We sent none, and RabbitMQ went on sending its own, until it gave us up.
    assert said.count(Heartbeat().marshal()) >= 2
    assert 2 * interval <= silent < 10 * interval  # three, and something for a busy machine


@pytest.mark.claim("II-long-task")
def test_a_task_may_take_longer_than_the_heartbeat(
    run: Run, managed_broker: Broker, channel: Channel
) -> None:
    workers = [
        run(script, url=f"{managed_broker.url}?heartbeat=2").expect_ready()
        for script in (WORKERS[5], WORKER)
    ]
    tasks = [f"{number}........." for number in range(2)]
    send(channel, *tasks)
    for worker in workers:
        worker.expect("Done")
    # Both acknowledgements have arrived, and neither task was done by the other worker.
    managed_broker.wait_for_acknowledgements(QUEUE)
    for worker, task in zip(workers, tasks, strict=True):
        assert worker.messages == [f"Received '{task}'", "Done"]
        assert worker.error == []
        worker.kill()
    assert managed_broker.ready(QUEUE) == 0


@pytest.mark.claim("II-stop")
def test_told_to_stop_a_worker_finishes_its_task_and_takes_no_more(
    run: Run, broker: Broker, channel: Channel, held: tuple[Terminal, Path]
) -> None:
    worker, finish = held
    send(channel, "current", "next 1", "next 2")
    worker.expect("Received 'current'")
    worker.terminate()  # tests/test_stopping.py has Ctrl+C, too
    worker.expect("[*] Finishing this task first")
    finish.touch()
    assert worker.wait() == 0
    assert worker.messages == ["Received 'current'", "Done"]
    assert worker.error == [FINISHING[WORKER]]
    assert finish.read_text().splitlines() == ["current"]
    broker.wait_for_ready(QUEUE, 2)
    successor = run(WORKER).expect("Done", times=2)
    assert received(successor) == ["next 1", "next 2"]
