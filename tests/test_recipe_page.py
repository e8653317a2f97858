"""recipes/README.md: its commands, as a reader types them."""

import os
import shlex
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
from tests.scripts import page_commands

QUEUES = ["jobs", "jobs.failed", *(f"jobs.retry.{delay}s" for delay in RETRY_DELAYS)]


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
    printed = own_broker.ctl("--silent", *shlex.split(command)[1:]).splitlines()
    return dict(line.split("\t") for line in printed)


def test_many_lines_are_in_the_queue(own_broker: OwnBroker) -> None:
    (send,) = page_commands("seq 100000")
    (look,) = page_commands("messages_ready")
    assert shell(own_broker, send.replace("100000", "2000")) == " [x] Sent 2000 messages\n"
    assert listed(own_broker, look) == {"jobs": "2000"}


def test_the_worker_does_three_tasks_and_fails_two(run: Run, own_broker: OwnBroker) -> None:
    (start,) = page_commands("python recipes/worker.py")
    (three,) = page_commands("seq 3")
    (two,) = page_commands("printf")
    look = page_commands("list_queues name messages")[-1]
    worker = run(*shlex.split(start)[1:]).expect_ready()
    shell(own_broker, three)
    worker.expect("Done", times=3)
    shell(own_broker, two)
    worker.expect("Now in jobs.failed").expect("Now in jobs.retry.5s")
    assert sorted(listed(own_broker, look)) == sorted(QUEUES)
    worker.expect("Received", times=6)  # the second of the two comes again


def test_calls_and_the_web_server(run: Run, broker: Broker) -> None:
    (ask,) = page_commands("rpc_client.py 30")
    (serve,) = page_commands("web.py")
    number, job = page_commands("curl")
    (port,) = map(str, free_ports(1))
    run(*shlex.split(page_commands("rpc_server.py")[0])[1:]).expect_ready()
    assert shell(broker, ask).splitlines()[0] == " [.] fib(30) = 832040"
    run(*shlex.split(serve.replace("8000", port))[1:]).expect("http://")
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    assert shell(broker, number.replace("8000", port)) == "832040"
    assert shell(broker, job.replace("8000", port)) == "queued"
    assert broker.ready("jobs") == 1
