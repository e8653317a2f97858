"""recipes/README.md: its commands, as a reader types them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.worker import RETRY_DELAYS
from testbed.broker import Broker, OwnBroker
from testbed.settings import free_ports
from testbed.terminal import REPOSITORY, script_environment
from tests.conftest import Run

PAGE = (REPOSITORY / "recipes/README.md").read_text(encoding="utf-8")
QUEUES = ["jobs", "jobs.failed", *(f"jobs.retry.{delay}s" for delay in RETRY_DELAYS)]


def commands(word: str) -> list[str]:
    """Return the lines of the page's shell blocks in which the word stands."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
    found = [line.strip() for block in blocks for line in block.splitlines() if word in line]
    assert found, f"the page has no command with {word}"
    return found


def shell(broker: Broker, command: str) -> str:
    """Return what a command prints that is typed into a shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],  # noqa: S607 - the reader's own
        cwd=REPOSITORY,
        env={**script_environment(broker.url), "PATH": path},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(own_broker: OwnBroker, command: str) -> dict[str, str]:
    """Return what `rabbitmqctl list_queues` prints: a number for each queue."""
    arguments = command.removeprefix("sudo ").removeprefix("rabbitmqctl ").split()
    printed = own_broker.ctl("--silent", *arguments).splitlines()
    return dict(line.split("\t") for line in printed)


def test_many_lines_are_in_the_queue(own_broker: OwnBroker) -> None:
    (send,) = commands("seq 100000")
    (look,) = commands("messages_ready")
    assert shell(own_broker, send.replace("100000", "2000")) == " [x] Sent 2000 messages\n"
    assert listed(own_broker, look) == {"jobs": "2000"}


def test_the_worker_does_three_tasks_and_fails_two(run: Run, own_broker: OwnBroker) -> None:
    (start,) = commands("python recipes/worker.py")
    (three,) = commands("seq 3")
    (two,) = commands("printf")
    look = commands("list_queues name messages")[-1]
    worker = run(*start.removeprefix("python ").split()).expect_ready()
    shell(own_broker, three)
    worker.expect("Done", times=3)
    shell(own_broker, two)
    worker.expect("Now in jobs.failed").expect("Now in jobs.retry.5s")
    assert sorted(listed(own_broker, look)) == sorted(QUEUES)
    worker.expect("Received", times=6)  # the second of the two comes again


def test_calls_and_the_web_server(run: Run, broker: Broker) -> None:
    (ask,) = commands("rpc_client.py 30")
    (serve,) = commands("web.py")
    number, job = commands("curl")
    (port,) = map(str, free_ports(1))
    run(*commands("rpc_server.py")[0].removeprefix("python ").split()).expect_ready()
    assert shell(broker, ask).splitlines()[0] == " [.] fib(30) = 832040"
    run(*serve.replace("8000", port).removeprefix("python ").split()).expect("http://")
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    assert shell(broker, number.replace("8000", port)) == "832040"
    assert shell(broker, job.replace("8000", port)) == "queued"
    assert broker.ready("jobs") == 1
