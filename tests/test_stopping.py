"""Being told to stop, by Ctrl+C or SIGTERM, wherever a script is at that moment."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from functools import partial
from itertools import cycle

import psutil
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.broker import Broker, OwnBroker
from testbed.programs import CLIENT, NEW_TASK, SERVER, WORKER, publish_tasks
from testbed.terminal import Terminal
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.network import Mode, Network
from tests.scripts import (
    CONSUMERS,
    DONE,
    FINISHING,
    PRODUCERS,
    QUEUE_OF,
    SCRIPTS,
    SERVICES,
    at_work,
    busy_services,
    command,
    publish,
)

BOTH = (signal.SIGINT, signal.SIGTERM)
SIGNALS = pytest.mark.parametrize("number", BOTH)


def ends_at_once(terminal: Terminal, number: signal.Signals) -> None:
    """Assert that a signal has ended a script that had nothing to finish, and without a word.

    A service has done what it is for; of another its exit code says that it was a signal.
    """
    service = any(script in terminal.command for script in SERVICES)
    assert terminal.wait() == (0 if service else 128 + number), terminal.command
    assert terminal.error == []
    assert not any("Sent" in line for line in terminal.out)


def test_while_connecting(run: Run, broker: Broker) -> None:
    with Network(broker.url, mode="silent") as network:
        started = [run(*command(script), url=network.url) for script in SCRIPTS]
        wait_until(lambda: network.accepted == len(started), "all to be connecting")
        for terminal, number in zip(started, cycle(BOTH), strict=False):
            terminal.process.send_signal(number)
            ends_at_once(terminal, number)


def test_while_waiting_for_messages(run: Run, broker: Broker) -> None:
    consumers = [(run(*command(script)), number) for script in CONSUMERS for number in BOTH]
    for consumer, number in consumers:
        consumer.expect_ready().process.send_signal(number)
    for consumer, number in consumers:
        ends_at_once(consumer, number)
        assert len(consumer.out) == 1
    assert [broker.consumers(QUEUE_OF[script]) for script in SERVICES] == [0, 0]


# A producer must not say that it has sent what it has not.


def test_a_sender_that_is_blocked(run: Run, own_broker: OwnBroker) -> None:
    with own_broker.blocking_publishers(), Network(own_broker.url) as network:
        network.watch(spec.Connection.Blocked)
        started = [run(*command(script), url=network.url) for script in PRODUCERS]
        started.append(run(NEW_TASK, url=network.url))  # which is there for both signals
        wait_until(lambda: network.seen == len(started), "all to be blocked")
        for terminal, number in zip(started, cycle(BOTH), strict=False):
            terminal.process.send_signal(number)
            ends_at_once(terminal, number)


@SIGNALS
def test_while_waiting_for_a_confirm_or_an_answer(
    run: Run, broker: Broker, channel: Channel, number: signal.Signals
) -> None:
    channel.queue_declare(queue="rpc_queue", durable=True)
    with Network(broker.url) as network:
        network.watch(spec.Queue.DeclareOk, then="silent")
        sender = run(NEW_TASK, url=network.url)
        wait_until(lambda: network.seen and broker.ready("task_queue"), "the task to be there")
        client = run(CLIENT)
        wait_until(lambda: broker.ready("rpc_queue"), "the request to be there")
        for terminal in (sender, client):
            terminal.process.send_signal(number)
            ends_at_once(terminal, number)


# A service finishes what it has.


@SIGNALS
@pytest.mark.parametrize("prefetch_count", [1, 10])
def test_a_service_at_work_finishes_its_task_and_takes_no_more(
    run: Run,
    broker: Broker,
    channel: Channel,
    variant: Variant,
    number: signal.Signals,
    prefetch_count: int,
) -> None:
    prefetching = ("prefetch_count=1", f"prefetch_count={prefetch_count}")
    services = {
        script: run(variant(script, at_work(script, 1.5), prefetching)).expect_ready()
        for script in SERVICES
    }
    for script, service in services.items():
        for _ in range(5):
            publish(channel, script, b"1")
        service.expect("at work")
        service.process.send_signal(number)
        service.expect("[*] Finishing this ")
    for script, service in services.items():
        assert service.wait() == 0
        assert service.error == [FINISHING[script]]
        assert service.out.count(" at work") == 1
        assert DONE[script] in service.out
        broker.wait_for_ready(QUEUE_OF[script], 4)


@SIGNALS
def test_a_service_that_is_told_twice_ends_at_once(
    run: Run, broker: Broker, channel: Channel, variant: Variant, number: signal.Signals
) -> None:
    for script, service in busy_services(run, variant, channel, 60).items():
        service.process.send_signal(number)
        service.expect("To end at once press CTRL+C again")
        service.process.send_signal(number)
        assert service.wait() == 128 + number
        assert service.error == [FINISHING[script]]
        broker.wait_for_ready(QUEUE_OF[script], 1)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("mode", ["reset", "silent"])
def test_a_service_that_has_lost_its_connection(
    run: Run,
    broker: Broker,
    channel: Channel,
    variant: Variant,
    mode: Mode,
    busy: bool,  # noqa: FBT001
) -> None:
    with Network(broker.url) as network:
        if busy:
            services = busy_services(run, variant, channel, 1, network.url)
        else:
            services = {s: run(s, url=network.url).expect_ready() for s in SERVICES}
        before = network.accepted
        network.mode = mode
        network.cut()
        for service in services.values():
            service.expect("Trying again in 2 s" if mode == "reset" else "Trying again in 1 s")
        if mode == "silent":
            wait_until(lambda: network.accepted >= before + 2, "both to be connecting again")
        for service in services.values():
            service.process.send_signal(signal.SIGTERM)
        for script, service in services.items():
            assert service.wait() == 0
            assert all("Connection lost" in line for line in service.error)
            broker.wait_for_ready(QUEUE_OF[script], int(busy))


# In a container, in a pipeline, and anywhere in pika.


PROCESS_1 = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
AS_PROCESS_1 = f"import os, sys; os.execvp('unshare', {PROCESS_1} + sys.argv[1:])"


def test_as_process_1(run: Run, broker: Broker, channel: Channel, variant: Variant) -> None:
    """As a container runs a script."""
    if run("-c", AS_PROCESS_1, "--version").wait() != 0:
        pytest.skip("this machine starts no process in a namespace of its own")

    def terminate(terminal: Terminal) -> None:
        (script,) = psutil.Process(terminal.process.pid).children()
        script.terminate()

    consumers = {}
    for script in CONSUMERS:
        path = variant(script, at_work(script, 1)) if script in SERVICES else script
        consumers[script] = run("-c", AS_PROCESS_1, path, *command(script)[1:])
    for script, consumer in consumers.items():
        consumer.expect_ready()
        if script in SERVICES:
            publish(channel, script, b"1")
            consumer.expect("at work")
        terminate(consumer)
    for script, consumer in consumers.items():
        assert consumer.wait() == (0 if script in SERVICES else 128 + signal.SIGTERM)
        assert consumer.error == ([FINISHING[script]] if script in SERVICES else [])
        assert (" [x] Done" in consumer.out) == (script == WORKER)
    with Network(broker.url, mode="silent") as network:
        producers = [
            run("-c", AS_PROCESS_1, *command(script), url=network.url) for script in PRODUCERS
        ]
        wait_until(lambda: network.accepted == len(producers), "all to be connecting")
        for producer in producers:
            terminate(producer)
            assert producer.wait() == 128 + signal.SIGTERM
    assert [broker.ready(QUEUE_OF[script]) for script in SERVICES] == [0, 0]


def test_output_that_nobody_reads(run: Run, broker: Broker, channel: Channel) -> None:
    def is_stuck(pipe: int, queue: str) -> bool:
        """Return whether the pipe is full, and twenty looks see nothing taken from the queue."""
        return (
            not select.select([], [pipe], [], 0)[1]
            and len({broker.ready(queue) for _ in range(20)}) == 1
        )

    def has_ended_when_told(process: subprocess.Popen[str]) -> bool:
        if process.poll() is None:
            process.terminate()  # a service waits for its output at the first: it cannot finish
        return process.poll() is not None

    for script in ("part_1/receive.py", *SERVICES):
        with contextlib.ExitStack() as ends:
            reading, writing = os.pipe()
            for end in (reading, writing):
                ends.callback(os.close, end)
            process = run(script, stdout=writing).process
            assert b"[*] Waiting" in os.read(reading, 1000)
            for _ in range(3000):
                publish(channel, script, bytes(200) if script != SERVER else b"\xff" * 20)
            wait_until(partial(is_stuck, writing, QUEUE_OF[script]), "the pipe to be full")
            wait_until(partial(has_ended_when_told, process), "its end", pause=0.3)
            assert process.returncode == 128 + signal.SIGTERM, script
    for script in SERVICES:
        wait_until(partial(broker.ready, QUEUE_OF[script]), "what was not done")


def test_who_reads_the_output_goes_first(
    run: Run, broker: Broker, channel: Channel, variant: Variant
) -> None:
    # Ctrl+C in `worker.py | tee log` ends tee, too. The task is finished all the same.
    reading, writing = os.pipe()
    worker = run(variant(WORKER, at_work(WORKER, 1)), stdout=writing)
    os.close(writing)
    with open(reading) as lines:  # noqa: PTH123 - a file descriptor
        assert "[*] Waiting" in lines.readline()
        publish(channel, WORKER, b"1")
        while "at work" not in lines.readline():
            pass
    worker.ctrl_c()
    assert worker.wait() == 1
    finishing, gone = worker.error
    assert finishing == FINISHING[WORKER]
    assert "BrokenPipeError" in gone
    publish(channel, WORKER, b"2")
    assert "Received '1'" not in "\n".join(run(WORKER).expect("Received '2'").out)


def test_at_many_lines_of_a_run(run: Run, channel: Channel) -> None:
    for script in SERVICES:
        (printed,) = stopped_at(run, channel, script, [10**9])
        total = int(next(line.split()[-1] for line in printed if "acknowledged" in line))
        assert total > 3000
        # From when signals are handled on; and many from when the task is there.
        lines = [*range(200, total - 400, total // 10), *range(total - 400, total + 10, 40)]
        runs = stopped_at(run, channel, script, lines)
        assert sum("signal" in printed[:2] for printed in runs) > 10
        assert any("acknowledged" in "".join(printed[-2:]) for printed in runs)


def stopped_at(run: Run, channel: Channel, script: str, lines: list[int]) -> list[list[str]]:
    """Run the service with a signal at each of these lines, and assert that nothing is lost.

    Return what each run printed.
    """
    begun = " [.] fib(1)" if script == SERVER else " [x] Received '1'"
    queues = [f"stopped_at_{line}" for line in lines]
    try:
        for queue in queues:
            channel.queue_declare(queue=queue, durable=True)
            publish_tasks(channel, ["1", "1"], queue)
        stopped = run("tests/stopped_at.py", script, *map(str, lines))
        assert stopped.wait(120) == 0
        runs = [json.loads(line) for line in stopped.out]
        for queue, (code, printed) in zip(queues, runs, strict=True):
            acknowledged = sum("acknowledged" in said for said in printed)
            left = channel.queue_declare(queue=queue, passive=True).method.message_count
            found = (code, printed.count(begun), left)
            assert found == (0, acknowledged, 2 - acknowledged), (queue, printed)
            assert acknowledged <= 1 or "signal" not in printed
            assert not any("[!]" in said or "Traceback" in said for said in printed), printed
    finally:
        for queue in queues:
            channel.queue_delete(queue=queue)
    return [printed for _, printed in runs]
