"""Run a service several times, each with a SIGTERM at another line of pika's or of its own.

    python tests/stopped_at.py part_2/worker.py QUEUE LINE...

LINE counts the lines that are executed, from the first of the script's `main` on. Each run is a
process of its own, and takes its tasks from the queue that is named QUEUE and that number. A run
that has done a task, and has not come to its line, gets its signal then. What is printed of each
run is one line of JSON: [LINE, exit code, [what it printed, ...]].
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import pika
from pika.adapters.blocking_connection import BlockingChannel

Main = Callable[[], None]


class Place:
    """A line of a run, by its number. What is traced is pika and the script."""

    def __init__(self, script: str, line: int) -> None:
        self.line, self.executed = line, 0
        self._traced = (str(Path(pika.__file__).parent), script)

    def trace(self, frame: FrameType, event: str, _: object) -> object:
        """Count the lines, and send the signal at that one."""
        if not frame.f_code.co_filename.startswith(self._traced):
            return None
        if event == "line":
            self.executed += 1
            if self.executed == self.line:
                self.send_signal()
        return self.trace

    def send_signal(self) -> None:
        """Say so, and send it."""
        os.write(1, b"signal\n")
        signal.raise_signal(signal.SIGTERM)

    def acknowledge(
        self, channel: BlockingChannel, delivery_tag: int, *, acknowledge: Callable[..., None]
    ) -> None:
        """Acknowledge a task, as pika does; say so, and at which line."""
        acknowledge(channel, delivery_tag=delivery_tag)
        os.write(1, b"acknowledged at %d\n" % self.executed)
        if self.executed < self.line:
            self.line = 0
            self.send_signal()


def run(main: Main, queue: str, place: Place, output: int) -> None:
    """Run the script's `main` in this process, which ends with it."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as we live
    main.__globals__["QUEUE"] = f"{queue}{place.line}"
    acknowledge = partial(Place.acknowledge, place, acknowledge=BlockingChannel.basic_ack)
    BlockingChannel.basic_ack = lambda self, delivery_tag: acknowledge(self, delivery_tag)  # type: ignore[method-assign, misc, assignment]
    sys.settrace(place.trace)  # type: ignore[arg-type]
    main()
    os._exit(0)


def all_runs() -> None:
    """Fork a process for each line, and wait for all of them."""
    script, queue, *lines = sys.argv[1:]
    sys.argv = [script]
    main = runpy.run_path(script)["main"]
    runs = []
    for line in map(int, lines):
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            run(main, queue, Place(script, line), writing)
        os.close(writing)
        runs.append((line, process, reading))
    for line, process, reading in runs:
        with open(reading) as output:  # noqa: PTH123 - a file descriptor
            printed = output.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps([line, code, printed]), flush=True)


if __name__ == "__main__":
    all_runs()
