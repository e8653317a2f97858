"""`make faults` finds what is lost, unasked for, wrong or left behind; a short run of it."""

import signal
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from testbed.broker import Broker, OwnBroker
from testbed.programs import CLIENT, NEW_TASK, SERVER, WORKER
from tests.conftest import Run
from tools import faults
from tools.faults import FULL, Ended, Report, Size

SHORT = Size(
    tasks=12,
    clients=2,
    faults={
        "kill a busy worker": 1,
        "kill a busy server": 1,
        "stop a busy worker": 1,
        "stop a server": 1,
        "kill the broker": 1,
    },
)


def test_a_short_run(own_broker: OwnBroker) -> None:
    jobs, planned = faults.plan(SHORT, seed=1)
    told: list[str] = []
    report = faults.Trial(own_broker, told.append).run(jobs, planned)
    print("\n".join([*told, report.figures()]))
    assert list(report.wrong()) == []
    *carried_out, recipes = told
    assert all(fault.what in line for fault, line in zip(planned, carried_out, strict=True))
    assert "3 workers" in recipes  # one of them in the place of one killed
    assert report.asked >= SHORT.tasks + SHORT.clients
    assert len(report.consumers) == faults.WORKERS + faults.SERVERS + 4


def test_a_broker_that_is_somebodys_is_left_alone(run: Run, broker: Broker) -> None:
    refused = run("-m", "tools.faults", "--broker=url")
    assert refused.wait() == 1
    assert len(refused.error) == 1
    assert "this run stops and kills its broker: unset RABBITMQ_URL" in refused.error[0]
    assert broker.version


def test_a_seed_gives_the_same_plan_again() -> None:
    jobs, planned = faults.plan(FULL, seed=17)
    assert faults.plan(FULL, seed=17) == (jobs, planned) != faults.plan(FULL, seed=18)
    assert Counter(fault.what for fault in planned) == FULL.faults
    moments = [fault.after for fault in planned]
    assert sorted(moments) == moments
    assert moments[-1] < len(jobs) == FULL.tasks + FULL.clients


def sender(task: str, *error: str) -> Ended:
    """Return a sender that reported its task as sent, or failed with an error."""
    out = () if error else (f" [x] Sent {task!r}",)
    return Ended((NEW_TASK, task), 1 if error else 0, out, list(error))


FINISHING = " [*] Finishing this task first."


def worker(*tasks: str) -> Ended:
    """Return a worker that did these tasks, and was told to stop in the last one."""
    lines = [line for task in tasks for line in (f" [x] Received {task!r}", " [x] Done")]
    return Ended((WORKER,), 0, [" [*] Waiting for tasks", *lines], [FINISHING], told=True)


CLEAR = " [!] No connection: AMQPConnectionError"
ANSWERS = (" [x] Requesting fib(30), fib(5)", " [.] fib(30) = 832040", " [.] fib(5) = 5")
ANSWERED = Ended((CLIENT, "--timeout", "10", "30", "5"), 0, ANSWERS)
DROPPED = replace(worker("1"), out=worker("1").out[:-1])


# Task 1 was sent and done; 2 was done twice. The senders of 3 and 4 lost their connection: 3 has
# arrived all the same, and was sent once more as "3 again"; 4 has not.
RIGHT = Report(
    asked=4,
    jobs=[
        *(sender("1"), sender("2"), sender("3", CLEAR), sender("4", CLEAR), sender("3 again")),
        *(ANSWERED, replace(ANSWERED, code=1, out=ANSWERS[:2], error=[CLEAR])),
    ],
    consumers=[
        worker("1", "2"),
        replace(
            worker("2", "3", "3 again"),
            out=[" [*] Waiting for tasks", " [x] Received '2'", *worker("2", "3", "3 again").out],
            error=[" [!] Connection lost: again in 1 s", FINISHING],
        ),
        Ended((WORKER,), -signal.SIGKILL, [" [x] Received '1'"]),
        Ended((SERVER,), 0, told=True),
        Ended((SERVER,), -signal.SIGKILL),
    ],
    stopped_in={"'2'": 0},
)


def test_what_may_happen_is_not_wrong() -> None:
    assert list(RIGHT.wrong()) == []
    assert RIGHT.figures() == (
        "3 tasks reported as sent; 4 done, 1 of them twice or more; 1 finished when told to stop;"
        " 3 calls answered"
    )


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (sender("6"), "lost: '6' was sent, begun by 0 workers, and done by none"),
        (worker("5"), "never asked for: '5' was done, and nobody had sent it"),
        (replace(ANSWERED, out=(*ANSWERS[:2], " [.] fib(5) = 8")), "code 0 and: [' [.] fib(30)"),
        (replace(ANSWERED, out=ANSWERS[:2]), "code 0 and: [' [.] fib(30) = 832040']"),
        (replace(ANSWERED, code=None, out=ANSWERS[:1]), f"{CLIENT} '5' hung: [' [x] Requesting"),
        (sender("6", "What", "Why"), "exit code 1, without one clear line: ['What', 'Why']"),
        (replace(sender("6", CLEAR), calm=True), "although the broker ran all the while: "),
        (Ended((NEW_TASK, "6"), 0), f"{NEW_TASK} '6' ended with exit code 0 and: []"),
        (replace(sender("1"), error=["Odd"]), "'1' ended well, and said on stderr: ['Odd']"),
        (Ended((SERVER,), 1, error=["Error"]), "ended by itself, exit code 1: ['Error']"),
        (Ended((SERVER,), 0), f"{SERVER} ended by itself, exit code 0: ()"),
        (Ended((SERVER,), -signal.SIGTERM, told=True), "ended by itself, exit code -15: ()"),
        (Ended((SERVER,), 0, told=True, error=["Odd"]), f"{SERVER} said on stderr: ['Odd']"),
        (Ended((SERVER,), None, told=True), f"{SERVER} was told to stop, and did not: ()"),
        (DROPPED, f"{WORKER} was told to stop, and dropped its task: "),
        (replace(DROPPED, error=()), f"{WORKER} was told to stop, and dropped its task: "),
    ],
)
def test_a_program_that_did_what_it_may_not_is_wrong(program: Ended, complaint: str) -> None:
    report = deepcopy(RIGHT)
    (report.jobs if program.command[0] in (NEW_TASK, CLIENT) else report.consumers).append(program)
    report.asked = sum(job.code == 0 for job in report.jobs)
    (wrong,) = report.wrong()
    assert complaint in wrong


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stopped_in": {"'2'": 1}}, "done twice: '2', which a worker had finished"),
        ({"others": ["still running"]}, "still running"),
        ({"asked": 6}, "2 of 6 jobs failed 5 times"),
    ],
)
def test_what_else_may_not_happen_is_wrong(change: dict[str, Any], complaint: str) -> None:
    (wrong,) = replace(RIGHT, **change).wrong()
    assert complaint in wrong


def test_which_tasks_workers_were_told_to_stop_in() -> None:
    printed = [
        (1, "first", " [x] Received 'one'"),
        (2, "second", " [x] Received 'two'"),
        (3, "second", " [x] Done"),
        (4, "first", FINISHING),
        (6, "first", " [x] Done"),
    ]
    assert faults.stopped_in(printed, kills=[]) == {"'one'": 0}
    again = [*printed, (8, "third", " [x] Received 'one'")]
    assert faults.stopped_in(again, kills=[0, 9]) == {"'one'": 1}
    # A RabbitMQ that was killed meanwhile may have forgotten that the task was acknowledged.
    assert faults.stopped_in(again, kills=[0, 7, 9]) == {"'one'": 0}
