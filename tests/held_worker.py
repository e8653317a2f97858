"""part_2/worker.py, whose tasks last until a file is there. Each that is done is a line in it.

Run it: python -m tests.held_worker FILE
"""

import sys
from pathlib import Path

from part_2 import worker
from testbed.waiting import wait_until

FILE = Path(sys.argv.pop())


def work(task: bytes) -> None:
    """Wait for the file, and write the task into it."""
    wait_until(FILE.exists, str(FILE), seconds=60)
    with FILE.open("ab") as file:
        file.write(task + b"\n")


worker.work = work
worker.main()
