"""Run a service several times, each with a SIGTERM at another line of pika's or of its own.

    python tests/stopped_at.py part_2/worker.py LINE...

LINE counts the lines that are executed, from the first of the script's `main` on. Each run is a
process of its own, and takes its tasks from the queue stopped_at_LINE. A run that has done a task,
and has not come to its line, gets its signal then. What is printed of each run is one line of JSON:
[exit code, [what it printed, ...]].
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType

import pika
from pika.adapters.blocking_connection import BlockingChannel


def run(script: str, line: int) -> None:
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
    main.__globals__["QUEUE"] = f"stopped_at_{line}"
    sys.settrace(trace)  # type: ignore[arg-type]
    main()
    os._exit(0)


if __name__ == "__main__":
    script, *lines = sys.argv[1:]
    runs = []
    for line in map(int, lines):
        output = TemporaryFile("w+")  # noqa: SIM115 - for as long as we live
        process = os.fork()
        if not process:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            run(script, line)
        runs.append((process, output))
    for process, output in runs:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        output.seek(0)
        print(json.dumps([code, output.read().splitlines()]))
