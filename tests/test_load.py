"""`make load` finds what is lost, out of order or kept; a small run of it."""

import pytest

from testbed.broker import Broker
from tools import load
from tools.load import LEAK, SLACK, Size

SMALL = Size(workers=3, tasks=30, receivers=3, messages=4, warm=100, more=100)


def test_a_small_run(broker: Broker) -> None:
    told: list[str] = []
    assert list(load.load(broker, SMALL, told.append)) == []
    print("\n".join(told))
    assert [line.partition(",")[0] for line in told if "done" in line] == ["30 tasks done"]
    assert sum(line.startswith("12 copies of 4 messages") for line in told) == 1
    assert sum(" MB after 100 more" in line for line in told) == 2


TASKS = [f"task {n}" for n in range(1, 5)]
RECEIVED = [f" [x] Received {task!r}" for task in TASKS]
MESSAGES = [f"message {n}" for n in range(1, 5)]
COPIES = [f" [x] {message!r}" for message in MESSAGES]


def worker(*received: str) -> list[str]:
    """Return what is kept of what a worker prints that did these tasks."""
    return [line for begun in received for line in (begun, " [x] Done")]


def test_what_may_happen_is_not_wrong() -> None:
    shared = [worker(*RECEIVED[:2]), worker(*RECEIVED[1:]), []]
    assert list(load.wrong_with_work(TASKS, shared)) == []
    copies = [[" [*] Waiting", *COPIES]] * 3
    assert list(load.wrong_with_copies(MESSAGES, copies)) == []
    assert list(load.wrong_with_memory("worker", 10**7, 10**7 + SLACK + 10 * LEAK, 10)) == []


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        (worker(*RECEIVED[1:]), "lost: 'task 1'"),
        ([*worker(*RECEIVED[1:]), RECEIVED[0]], "lost: 'task 1'"),  # begun, and not done
        (worker(*RECEIVED, " [x] Received 'task 5'"), "never sent: 'task 5'"),
    ],
)
def test_a_task_that_is_lost_or_was_never_sent_is_wrong(printed: list[str], complaint: str) -> None:
    assert list(load.wrong_with_work(TASKS, [printed])) == [complaint]


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        (COPIES[:1] + COPIES[2:], "lost 1 messages, the first \" [x] 'message 2'\""),
        (COPIES + COPIES[:1], "got 5 of 4, or not in their order"),
        (COPIES[1::-1] + COPIES[2:], "got 4 of 4, or not in their order"),
    ],
)
def test_a_copy_that_is_lost_or_out_of_order_is_wrong(printed: list[str], complaint: str) -> None:
    wrong = list(load.wrong_with_copies(MESSAGES, [COPIES, printed]))
    assert wrong == [f"receiver 2 {complaint}"]


def test_memory_that_grows_with_each_task_is_wrong() -> None:
    complaint = list(load.wrong_with_memory("worker", 10**7, 2 * 10**7, 8_000))
    assert complaint == ["worker keeps 1250 bytes of each of 8,000"]
