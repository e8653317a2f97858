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
from pathlib import Path
from types import FrameType

import pika
from pika.adapters.blocking_connection import BlockingChannel


def run(script: str, queue: str, line: int) -> None:
    """Run the script in this process, which ends with it."""
    traced = str(Path(pika.__file__).parent), script
    executed, told = 0, False
    basic_ack = BlockingChannel.basic_ack

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            os.write(1, b"signal\n")
            signal.raise_signal(signal.SIGTERM)

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal executed
        if not frame.f_code.co_filename.startswith(traced):
            return None
        executed += event == "line"
        if executed == line:
            tell()
        return trace

    def acknowledge(channel: BlockingChannel, delivery_tag: int) -> None:
        basic_ack(channel, delivery_tag=delivery_tag)
        os.write(1, b"acknowledged at %d\n" % executed)
        tell()

    BlockingChannel.basic_ack = acknowledge  # type: ignore[method-assign, assignment]
    sys.argv = [script]
    main = runpy.run_path(script)["main"]
    main.__globals__["QUEUE"] = f"{queue}{line}"
    sys.settrace(trace)  # type: ignore[arg-type]
    main()
    os._exit(0)


if __name__ == "__main__":
    script, queue, *lines = sys.argv[1:]
    runs = []
    for line in map(int, lines):
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as we live
            run(script, queue, line)
        os.close(writing)
        runs.append((line, process, reading))
    for line, process, reading in runs:
        with open(reading) as output:  # noqa: PTH123 - a file descriptor
            printed = output.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps([line, code, printed]), flush=True)
