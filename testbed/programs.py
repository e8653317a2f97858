"""The tutorial's programs, many at once: their names, how they are started, what they print."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pika
import psutil
from pika.adapters.blocking_connection import BlockingChannel

from testbed.broker import Broker
from testbed.terminal import REPOSITORY, Terminal, script_environment
from testbed.waiting import wait_until

NEW_TASK, WORKER = "part_2/new_task.py", "part_2/worker.py"
CLIENT, SERVER = "part_6/rpc_client.py", "part_6/rpc_server.py"
HELLO, TASK_QUEUE, RPC_QUEUE, LOGS = "hello", "task_queue", "rpc_queue", "logs"

#: What stands before a task in the line with which a worker begins it.
RECEIVED = " [x] Received "


class Programs(contextlib.ExitStack):
    """Programs that run on the broker until the end, and the time of each line that they print."""

    def __init__(self, broker: Broker) -> None:
        """Have programs reach the broker."""
        super().__init__()
        self.broker = broker
        self._began = time.perf_counter()
        self.started: list[Terminal] = []
        self.printed: list[tuple[float, Terminal, str]] = []
        self.push(self._show_what_failed)

    def start(
        self,
        *command: str,
        url: str = "",
        name: str = "",
        merge: bool = False,
        stdout: int = subprocess.PIPE,
    ) -> Terminal:
        """Start a program in a terminal: `start("part_2/new_task.py", "First task.")`.

        Its output goes to pipes, so that what a script forgets to flush is not seen here either.

        Args:
            command: A script's path from the repository on, and its arguments.
            url: The address that it gets as RABBITMQ_URL, if that is not the broker's.
            name: The terminal's name, if that is not its number.
            merge: Whether its errors come with its output, in the order in which both are printed.
            stdout: Where its output goes, if that is not to be seen here: a file descriptor.
        """
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=script_environment(url or self.broker.url),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        )
        terminal = Terminal(name or str(len(self.started) + 1), command, process, self.echo)
        self.started.append(terminal)
        self.callback(terminal.wait)
        self.callback(process.kill)
        return terminal

    def wait_for(self, text: str, times: int) -> float:
        """Return when `text` was printed for the last of so many times, once it was."""

        def found() -> list[float]:
            seen = [when for when, _, line in list(self.printed) if text in line]
            return seen[:times] if len(seen) >= times else []

        return wait_until(found, f"{times} lines with {text!r}", seconds=60)[-1]

    def show(self, most: int = 0) -> None:
        """Print what the programs printed, or the last of it, each line with its time."""
        for when, terminal, line in self.printed[-most:]:
            print(f"{when - self._began:6.2f} s  terminal {terminal.name}  {line}")

    def _show_what_failed(self, _: object, error: object, __: object) -> None:
        """Show the last of what was printed, where a wait for it was in vain."""
        if isinstance(error, AssertionError | TimeoutError):
            self.show(most=200)

    def echo(self, terminal: Terminal, line: str) -> None:
        """Note a line that was printed."""
        self.printed.append((time.perf_counter(), terminal, line))


def processes_left() -> list[str]:
    """Return the command lines of the Python programs that this one started and that still run."""
    left = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            command = child.cmdline()
            if command[:1] == [sys.executable]:
                left.append(" ".join(command))
    return left


def publish_tasks(channel: BlockingChannel, tasks: Iterable[str], queue: str = TASK_QUEUE) -> None:
    """Send persistent tasks to a queue that is there."""
    for task in tasks:
        channel.basic_publish(
            exchange="",
            routing_key=queue,
            body=task.encode(),
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
        )


def tasks_done(lines: Iterable[str]) -> Iterator[str]:
    """Return the tasks that a worker did by the lines that it printed, as often as it did each."""
    for begun, following in pairwise(lines):
        if begun.startswith(RECEIVED) and following == " [x] Done":
            yield begun.removeprefix(RECEIVED)
