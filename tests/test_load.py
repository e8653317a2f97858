"""Many workers, receivers and messages: nothing is lost, out of order, or kept in memory.

Each run of the tests has a few of them, and `make load` a hundred times as many: two hundred
workers share ten thousand tasks, two hundred receivers get a copy each of fifty messages, and one
worker and one RPC server do ten thousand alone, and ten thousand more.
"""

import os

import psutil
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.broker import Broker
from testbed.programs import LOGS, TASK_QUEUE, WORKER, publish_tasks, tasks_done
from testbed.terminal import Terminal
from testbed.waiting import PATIENCE, wait_until
from tests.conftest import Run
from tests.scripts import DONE, SERVICES, publish

TIMES = int(os.environ.get("LOAD", "1"))
PROGRAMS, MESSAGES, COPIES = 2 * TIMES, 100 * TIMES, 50
# So many programs are started at once: each start takes a core for a while.
BATCH = 20
SECONDS = max(PATIENCE, 6 * TIMES)  # for each wait
# A program's memory may grow by this, and by so much for each message, in bytes. What a worker is
# given in that time is more.
SLACK, LEAK, BODY = 500_000, 100, b"x" * (2_000_000 // MESSAGES)

pytestmark = pytest.mark.timeout(2 * SECONDS)


def start(run: Run, script: str) -> list[Terminal]:
    """Start the program so often; return all, once they are ready."""
    started: list[Terminal] = []
    while len(started) < PROGRAMS:
        started += [run(script) for _ in range(min(BATCH, PROGRAMS - len(started)))]
        for terminal in started[-BATCH:]:
            terminal.expect_ready()
    return started


def end(terminals: list[Terminal], code: int) -> None:
    """Press Ctrl+C in all terminals; each ends with that code, and has nothing to say."""
    for terminal in terminals:
        terminal.ctrl_c()
    for terminal in terminals:
        assert (terminal.wait(SECONDS), terminal.error) == (code, [])


def test_many_workers_share_many_tasks(run: Run, broker: Broker, channel: Channel) -> None:
    workers = start(run, WORKER)
    tasks = [f"task {number}" for number in range(MESSAGES)]
    publish_tasks(channel, tasks)

    def done() -> list[str]:
        return [task for worker in workers for task in tasks_done(worker.out)]

    wait_until(lambda: len(done()) >= len(tasks), "all tasks to be done", SECONDS, pause=0.1)
    assert set(done()) == set(map(repr, tasks))
    broker.wait_for_acknowledgements(TASK_QUEUE)
    end(workers, code=0)
    assert broker.ready(TASK_QUEUE) == 0


def test_many_receivers_get_all_messages_in_order(run: Run, channel: Channel) -> None:
    receivers = start(run, "part_3/receive_logs.py")
    messages = [f"message {number}" for number in range(COPIES)]
    for message in messages:
        channel.basic_publish(exchange=LOGS, routing_key="", body=message.encode())
    for receiver in receivers:
        receiver.expect(repr(messages[-1]), seconds=SECONDS)
    end(receivers, code=130)  # as Ctrl+C ends a viewer
    assert [receiver.messages for receiver in receivers] == [list(map(repr, messages))] * PROGRAMS


@pytest.mark.parametrize("script", SERVICES)
def test_a_service_keeps_nothing_of_what_it_has_done(
    run: Run, broker: Broker, channel: Channel, script: str
) -> None:
    service = run(script).expect_ready()

    def memory_after(number: int) -> int:
        for _ in range(MESSAGES):
            publish(channel, script, BODY if script == WORKER else b"1")
        what = f"{number} to be done"
        wait_until(lambda: service.out.count(DONE[script]) == number, what, SECONDS, pause=0.1)
        return int(psutil.Process(service.process.pid).memory_info().rss)

    before = memory_after(MESSAGES)
    after = memory_after(2 * MESSAGES)
    print(f"{script}: {before:,} bytes after {MESSAGES:,}, and {after:,} after as many again")
    assert after - before <= SLACK + LEAK * MESSAGES
    end([service], code=0)
