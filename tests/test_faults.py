"""`make faults` finds what is lost, unasked for, wrong or left behind; a short run of it."""

import signal
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from testbed.broker import Broker, OwnBroker
from testbed.programs import CLIENT, NEW_TASK, SERVER, WORKER
from tests.conftest import Run
from tools import faults
from tools.faults import FULL, Ended, Report, Size

SHORT = Size(
    tasks=30,
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
    planned = faults.plan(SHORT, seed=1)
    report = faults.Trial(own_broker, print).run(planned)
    print("\n".join(report.figures()))
    assert list(report.wrong(len(planned.jobs))) == []
    assert report.faults == SHORT.faults
    assert sum(sender.sent for sender in report.senders) == SHORT.tasks
    assert sum(client.through for client in report.clients) == SHORT.clients
    assert len(report.workers) == faults.WORKERS + 2
    assert len(report.servers) == faults.SERVERS + 2
    assert report.recipes
    assert "3 workers" in report.recipes.figures()  # one of them in the place of one killed


def test_a_broker_that_is_somebodys_is_left_alone(run: Run, broker: Broker) -> None:
    refused = run("-m", "tools.faults", "--broker=url")
    assert refused.wait() == 1
    assert len(refused.error) == 1
    assert "this run stops and kills its broker: unset RABBITMQ_URL" in refused.error[0]
    assert broker.version


def test_a_seed_gives_the_same_plan_again() -> None:
    plans = [faults.plan(FULL, seed) for seed in range(20)]
    assert plans == [faults.plan(FULL, seed) for seed in range(20)]
    assert plans[0] != plans[1]
    for planned in plans:
        assert Counter(fault.what for fault in planned.faults) == FULL.faults
        moments = [fault.after for fault in planned.faults]
        assert sorted(moments) == moments
        assert moments[-1] < len(planned.jobs) == FULL.tasks + FULL.clients


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


# One task was sent and done, a second was done twice, a third is in doubt and has arrived, and so
# is a fourth that has not.
RIGHT = Report(
    senders=[sender("1"), sender("2"), sender("3", CLEAR), sender("4", CLEAR), sender("3 again")],
    clients=[ANSWERED, replace(ANSWERED, code=1, out=ANSWERS[:2], error=[CLEAR])],
    workers=[
        worker("1", "2"),
        replace(
            worker("2", "3", "3 again"),
            out=[" [*] Waiting for tasks", " [x] Received '2'", *worker("2", "3", "3 again").out],
            error=[" [!] Connection lost: again in 1 s", FINISHING],
        ),
        Ended((WORKER,), -signal.SIGKILL, [" [x] Received '1'"]),
    ],
    servers=[Ended((SERVER,), 0, told=True), Ended((SERVER,), -signal.SIGKILL)],
    stopped_in={"'2'": 0},
    left={"task_queue": 0, "rpc_queue": 0},
)


def test_what_may_happen_is_not_wrong() -> None:
    assert list(RIGHT.wrong(jobs=4)) == []
    assert list(RIGHT.figures()) == [
        "3 tasks reported as sent, 3 of them done",
        "2 tasks in doubt, since their senders failed; 1 of them done",
        "1 tasks done twice or more",
        "1 tasks finished by workers that were told to stop, 0 of them done twice",
        "3 calls answered; 1 clients failed, and asked again",
    ]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (
            {"workers": [worker("2", "3", "3 again"), RIGHT.workers[2]]},
            "lost: '1' was sent, begun by 1 workers, and done by none",
        ),
        (
            {"workers": [*RIGHT.workers, worker("5")]},
            "never asked for: '5' was done, and nobody had sent it",
        ),
        (
            {"clients": [ANSWERED, replace(ANSWERED, out=(*ANSWERS[:2], " [.] fib(5) = 8"))]},
            f"{CLIENT} printed 'fib(5) = 8' for 'fib(5) = 5'",
        ),
        (
            {"clients": [ANSWERED, replace(ANSWERED, out=ANSWERS[:2])]},
            f"{CLIENT} ended with exit code 0 and 1 of 2 answers",
        ),
        (
            {"clients": [ANSWERED, replace(ANSWERED, code=None, out=ANSWERS[:1])]},
            f"{CLIENT} '5' hung: [' [x] Requesting fib(30), fib(5)']",
        ),
        (
            {"senders": [*RIGHT.senders, sender("6", "What", "Why")]},
            f"{NEW_TASK} '6' ended with exit code 1, without one clear line: ['What', 'Why']",
        ),
        (
            {"senders": [*RIGHT.senders, replace(sender("6", CLEAR), calm=True)]},
            f"{NEW_TASK} '6' failed, although the broker ran all the while: {CLEAR}",
        ),
        (
            {"senders": [*RIGHT.senders, Ended((NEW_TASK, "6"), 0)]},
            f"{NEW_TASK} '6' ended with exit code 0 and: []",
        ),
        (
            {"servers": [Ended((SERVER,), 1, error=["Traceback", "Error"])]},
            f"{SERVER} ended by itself, exit code 1: ['Error']",
        ),
        (
            {"servers": [Ended((SERVER,), 0, told=True, error=["Odd"])]},
            f"{SERVER} said on stderr: ['Odd']",
        ),
        ({"servers": [Ended((SERVER,), 0)]}, f"{SERVER} ended by itself, exit code 0: ()"),
        (
            {"servers": [Ended((SERVER,), -signal.SIGTERM, told=True)]},
            f"{SERVER} ended by itself, exit code -15: ()",
        ),
        (
            {"servers": [Ended((SERVER,), None, ["a", "b", "c"], told=True)]},
            f"{SERVER} was told to stop, and did not: ['b', 'c']",
        ),
        (
            {"workers": [*RIGHT.workers, replace(worker("1"), out=worker("1").out[:-1])]},
            (
                f"{WORKER} was told to stop, and dropped its task:"
                " [' [*] Waiting for tasks', \" [x] Received '1'\"]"
            ),
        ),
        (  # and did not even say that it would finish it
            {"workers": [*RIGHT.workers, replace(worker("1"), out=worker("1").out[:-1], error=())]},
            (
                f"{WORKER} was told to stop, and dropped its task:"
                " [' [*] Waiting for tasks', \" [x] Received '1'\"]"
            ),
        ),
        (
            {"stopped_in": {"'2'": 1}},
            "done twice: '2', which a worker had finished when told to stop",
        ),
        ({"left": {"task_queue": 3}}, "3 messages are left in task_queue"),
        ({"processes": ["python gone"]}, "still running: python gone"),
    ],
)
def test_what_may_not_happen_is_wrong(broken: dict[str, Any], complaint: str) -> None:
    report = replace(RIGHT, **broken)
    jobs = sum(program.through for program in (*report.senders, *report.clients))
    assert list(report.wrong(jobs)) == [complaint]


def test_a_job_that_never_succeeded_is_wrong() -> None:
    assert list(RIGHT.wrong(jobs=6)) == ["2 of 6 jobs failed 5 times"]


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
