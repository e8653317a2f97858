"""The load run: many consumers, many messages, and the memory of who has dealt with so many.

    make load            within a few minutes

Two hundred workers share ten thousand tasks, and two hundred receivers get a copy each of fifty
messages. One worker, and one RPC server, do ten thousand alone. In the end each task was done, each
receiver got each message in order, the memory of the two is where it was after the first two
thousand, and no process is left. Otherwise the run says what is wrong, and exits with 1.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pika
import psutil

from part_6.rpc_client import FibonacciRpcClient
from testbed.broker import Broker
from testbed.programs import (
    LOGS,
    SERVER,
    TASK_QUEUE,
    WORKER,
    Programs,
    in_flight,
    processes_left,
    publish_tasks,
    tasks_done,
)
from testbed.running import parser_with_broker, running_by_hand, telling
from testbed.terminal import Terminal
from testbed.waiting import wait_until

RECEIVER = "part_3/receive_logs.py"

# So many programs are started at once: each start takes a core for a while.
BATCH = 20
# Whoever prints nothing for so long will print no more.
QUIET_S = 20
# A program's memory may grow by this, and by so much for each task or request, in bytes. The body
# of a task has more.
SLACK, LEAK, BODY = 500_000, 100, 1_000
# Requests in flight at once.
WINDOW = 100


@dataclass(frozen=True)
class Size:
    """How much is done."""

    workers: int
    tasks: int  # that they share
    receivers: int
    messages: int  # for each of them
    warm: int  # tasks, or requests, before one program's memory is first looked at
    more: int  # and then


FULL = Size(workers=200, tasks=10_000, receivers=200, messages=50, warm=2_000, more=8_000)


def wrong_with_work(tasks: Sequence[str], printed: Sequence[Sequence[str]]) -> Iterator[str]:
    """Say which tasks are not done, and what was done that is no task, by what workers printed."""
    done = {task for lines in printed for task in tasks_done(lines)}
    expected = set(map(repr, tasks))
    for task in sorted(expected - done):
        yield f"lost: {task}"
    for task in sorted(done - expected):
        yield f"never sent: {task}"


def wrong_with_copies(messages: Sequence[str], printed: Sequence[Sequence[str]]) -> Iterator[str]:
    """Say which receivers did not print all messages, in order and nothing else."""
    expected = [f" [x] {message!r}" for message in messages]
    for number, lines in enumerate(printed, start=1):
        got = [line for line in lines if line.startswith(" [x] ")]
        if missing := Counter(expected) - Counter(got):
            yield f"receiver {number} lost {missing.total()} messages, the first {min(missing)!r}"
        elif got != expected:
            yield f"receiver {number} got {len(got)} of {len(expected)}, or not in their order"


def wrong_with_memory(name: str, before: int, after: int, number: int) -> Iterator[str]:
    """Say whether a program whose bytes grew keeps some of each of so many tasks or requests."""
    if after - before > SLACK + number * LEAK:
        yield f"{name} keeps {(after - before) / number:.0f} bytes of each of {number:,}"


def wrong_with_ends(terminals: Sequence[Terminal], code: int = 0) -> Iterator[str]:
    """Press Ctrl+C in all terminals; say which do not end with that code, or are still there."""
    for terminal in terminals:
        terminal.ctrl_c()
    for terminal in terminals:
        if (ended := terminal.wait(60)) != code or terminal.error:
            yield f"{terminal.command} ended with exit code {ended}: {terminal.error[-1:]}"
    for process in processes_left():
        yield f"still running: {process}"


class Load:
    """A load on a broker: what it puts there, and what is wrong with what comes of it."""

    def __init__(self, broker: Broker, size: Size, tell: Callable[[str], None]) -> None:
        """Prepare a load; `tell` is called with each figure, as a line."""
        self._broker = broker
        self._size = size
        self._tell = tell

    def workers(self) -> Iterator[str]:
        """Have many workers share many tasks; say what is wrong."""
        tasks = [f"task {n}" for n in range(self._size.tasks)]
        with Programs(self._broker) as programs, self._broker.channel() as channel:
            self._start(programs, self._size.workers, WORKER)
            channel.confirm_delivery()
            began = time.perf_counter()
            publish_tasks(channel, tasks)
            ended = wait_for_lines(programs, " [x] Done", len(tasks))
            self._broker.wait_for_acknowledgements(TASK_QUEUE)
            yield from wrong_with_ends(programs.started)
            if left := self._broker.ready(TASK_QUEUE):
                yield f"{left} tasks are left in {TASK_QUEUE}"
            printed = [worker.out for worker in programs.started]
        yield from wrong_with_work(tasks, printed)
        done = Counter(task for lines in printed for task in tasks_done(lines))
        self._tell(
            f"{len(done):,} tasks done, {done.total() / (ended - began):,.0f} a second,"
            f" {sum(times > 1 for times in done.values())} of them twice"
        )

    def receivers(self) -> Iterator[str]:
        """Have many receivers get a copy each of some messages; say what is wrong."""
        messages = [f"message {n}" for n in range(self._size.messages)]
        with Programs(self._broker) as programs, self._broker.channel() as channel:
            self._start(programs, self._size.receivers, RECEIVER)
            began = time.perf_counter()
            for message in messages:
                channel.basic_publish(exchange=LOGS, routing_key="", body=message.encode())
            copies = len(messages) * self._size.receivers
            ended = wait_for_lines(programs, " [x] ", copies)
            yield from wrong_with_ends(programs.started, code=130)  # as Ctrl+C ends a viewer
            printed = [receiver.out for receiver in programs.started]
        yield from wrong_with_copies(messages, printed)
        got = sum(line.startswith(" [x] ") for lines in printed for line in lines)
        self._tell(
            f"{got:,} copies of {len(messages)} messages, {got / (ended - began):,.0f} a second"
        )

    def memory_of_a_worker(self) -> Iterator[str]:
        """Have one worker do many tasks; say whether it keeps memory of them."""
        with Programs(self._broker) as programs, self._broker.channel() as channel:
            worker = programs.start(WORKER).expect_ready()
            done = 0

            def work(number: int) -> None:
                nonlocal done
                publish_tasks(channel, [f"task {n} ".ljust(BODY, "x") for n in range(number)])
                done += number
                wait_for_lines(programs, " [x] Done", done)

            yield from self._memory(worker, work, "tasks")
            self._broker.wait_for_acknowledgements(TASK_QUEUE)
            yield from wrong_with_ends(programs.started)

    def memory_of_a_server(self) -> Iterator[str]:
        """Have one server answer many requests; say whether it keeps memory of them."""
        with Programs(self._broker) as programs:
            server = programs.start(SERVER).expect_ready()
            with FibonacciRpcClient(pika.URLParameters(self._broker.url)) as client:

                def ask(number: int) -> None:
                    for _ in range(number // WINDOW):
                        in_flight(client, WINDOW)

                yield from self._memory(server, ask, "requests")
            yield from wrong_with_ends(programs.started)

    def _memory(self, program: Terminal, do: Callable[[int], None], what: str) -> Iterator[str]:
        process = psutil.Process(program.process.pid)
        do(self._size.warm)
        before = process.memory_info().rss
        began = time.perf_counter()
        do(self._size.more)
        took = time.perf_counter() - began
        after = process.memory_info().rss
        self._tell(
            f"{program.command}: {before / 1e6:.2f} MB after {self._size.warm:,} {what},"
            f" {after / 1e6:.2f} MB after {self._size.more:,} more"
            f" ({self._size.more / took:,.0f} a second)"
        )
        yield from wrong_with_memory(program.command, before, after, self._size.more)

    def _start(self, programs: Programs, number: int, script: str) -> None:
        began = time.perf_counter()
        while (started := len(programs.started)) < number:
            programs.start_ready(min(started + BATCH, number), script)
        memory = sum(psutil.Process(t.process.pid).memory_info().rss for t in programs.started)
        self._tell(
            f"{number} times {script} ready within {time.perf_counter() - began:.0f} s,"
            f" {memory / number / 1e6:.1f} MB each"
        )


def wait_for_lines(programs: Programs, text: str, number: int) -> float:
    """Wait until the text was printed so often, or nothing for a while; return when that was."""
    began = time.perf_counter()

    def through() -> bool:
        printed = list(programs.printed)
        quiet = time.perf_counter() - max(began, printed[-1][0])
        return sum(text in line for _, _, line in printed) >= number or quiet > QUIET_S

    wait_until(through, f"{number} lines with {text!r}", seconds=600, pause=0.1)
    return programs.printed[-1][0]


def load(broker: Broker, size: Size, tell: Callable[[str], None]) -> Iterator[str]:
    """Put all of the load on the broker, one kind after the other; say what is wrong.

    Args:
        broker: It is left clean.
        size: How much is done.
        tell: Is called with each figure, as a line.
    """
    one = Load(broker, size, tell)
    for put in (one.workers, one.receivers, one.memory_of_a_worker, one.memory_of_a_server):
        yield from put()
        broker.clean()


def main() -> None:
    """Put the whole load on; exit with 1 if anything is wrong."""
    arguments = parser_with_broker(__doc__).parse_args()
    tell = telling()
    with running_by_hand(arguments.broker) as broker:
        wrong = list(load(broker, FULL, tell))
    if wrong:
        sys.exit("\n".join(["", *wrong[:20], f"{len(wrong)} wrong"]))
    tell("all as it should be")


if __name__ == "__main__":
    main()
