"""recipes/worker.py, with work of a test's own, as a program that a person starts and stops."""

import json
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.broker import Broker, OwnBroker
from testbed.terminal import REPOSITORY, Terminal
from testbed.waiting import wait_until
from tests.conftest import Run
from tests.scripts import WATCH_THREADS, page_commands, take

QUEUE, FAILED = "jobs", "jobs.failed"
DELAYS = (1, 2)  # seconds, in place of the minutes that the recipe waits
SOURCE = (REPOSITORY / "recipes/worker.py").read_text(encoding="utf-8")

# What a task says in these tests: {"name": …}, and what is to become of it.
PROGRAM = """
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, {folder!r})
import worker

def work(task):
    print("begin", task["name"], round(time.time(), 3), flush=True)
    if "until" in task:  # a file is there
        while not pathlib.Path(task["until"]).exists():
            time.sleep(0.02)
    if task.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in task and not os.path.exists(task.get("unless", "")):
        raise ValueError(task["fail"])
    if "never" in task:
        raise worker.Unrecoverable(task["never"])
    print("end", task["name"], flush=True)
    return task["name"].upper()

worker.work = work
worker.RETRY_DELAYS = {delays}
{more}
worker.main()
"""

# What the page shows as a worker that imports the recipe.
MY_WORKER = """\
import worker


def resize(task):
    if "photo" not in task:
        raise worker.Unrecoverable("no photo in it")
    print("resizing", task["photo"], flush=True)


worker.work = resize
worker.main()
"""

Start = Callable[..., Terminal]


@pytest.fixture(autouse=True)
def queue(broker: Broker) -> None:
    """The queue of tasks is there, and empty."""
    with broker.channel() as channel:
        channel.queue_declare(queue=QUEUE, durable=True)


@pytest.fixture
def start(run: Run, tmp_path: Path) -> Start:
    """Start the worker with the work above: `start("--parallel", "4")`.

    `more` is run before its main().
    """
    folders = iter(range(100))

    def start(*arguments: str, more: str = "", url: str = "") -> Terminal:
        folder = tmp_path / f"copy_{next(folders)}"
        folder.mkdir()
        (folder / "worker.py").write_text(SOURCE, encoding="utf-8")
        program = folder / "program.py"
        program.write_text(PROGRAM.format(folder=str(folder), delays=DELAYS, more=more))
        return run(str(program), *arguments, url=url)

    return start


def send(channel: Channel, *tasks: Mapping[str, object] | bytes, **properties: object) -> None:
    """Send tasks, or bodies that are none."""
    for task in tasks:
        channel.basic_publish(
            exchange="",
            routing_key=QUEUE,
            body=task if isinstance(task, bytes) else json.dumps(task).encode(),
            properties=pika.BasicProperties(
                delivery_mode=pika.DeliveryMode.Persistent,
                **properties,
            ),
        )


def times(terminal: Terminal, name: str, tries: int = 0) -> list[float]:
    """Return when the tries of a task began, once so many are printed.

    RabbitMQ may have what became of a task before the worker's lines are read here.
    """
    terminal.expect(f"begin {name} ", tries)
    return [float(line.split()[2]) for line in terminal.out if line.startswith(f"begin {name} ")]


def set_aside(channel: Channel) -> tuple[str, pika.BasicProperties, bytes]:
    """Return the error of the next task that is set aside, its properties and its body."""
    properties, body = take(channel, FAILED)
    assert properties.headers
    return properties.headers["x-error"], properties, body


@pytest.mark.claim("recipe-retries", "recipe-set-aside")
def test_a_task_that_fails_is_tried_again_ever_later_and_then_set_aside(
    start: Start, channel: Channel
) -> None:
    copies = channel.queue_declare(queue="", exclusive=True).method.queue
    worker = start().expect_ready()
    send(
        channel,
        {"name": "bad", "fail": "no such photo \udc80"},
        message_id="42",
        headers={"mine": 1, "CC": [copies]},
        expiration="600000",
    )
    worker.expect("ValueError: no such photo", times=3)  # with its traceback
    error, kept, body = set_aside(channel)
    first, second, third = times(worker, "bad", 3)
    assert second - first >= DELAYS[0]
    assert third - second >= DELAYS[1]
    assert error == "try 3: ValueError('no such photo \\udc80')"
    assert kept.headers
    assert kept.headers["mine"] == 1
    assert (kept.message_id, kept.expiration, kept.delivery_mode) == ("42", None, 2)
    assert json.loads(body)["name"] == "bad"
    # The copy that its sender asked for was made once, and not at each try.
    assert channel.queue_declare(queue=copies, passive=True).method.message_count == 1


@pytest.fixture
def shovel(own_broker: OwnBroker) -> Iterator[OwnBroker]:
    """The broker, with the plugin that `rabbitmq-plugins enable rabbitmq_shovel` enables."""
    # What that command and its opposite do, wherever the broker runs.
    enable_only = (
        "{{ok, File}} = application:get_env(rabbit, enabled_plugins_file),"
        "{{ok, [Enabled]}} = file:consult(File),"
        "ok = rabbit_file:write_term_file(File, [{}]),"
        "rabbit_plugins:ensure(File)."
    )
    own_broker.ctl("eval", enable_only.format("[rabbitmq_shovel | Enabled]"))
    yield own_broker
    own_broker.ctl("eval", enable_only.format("Enabled -- [rabbitmq_shovel]"))


@pytest.mark.timeout(180)  # rabbitmqctl takes its time on a busy machine
@pytest.mark.claim("recipe-send-back")
def test_a_person_sends_back_what_was_set_aside(
    start: Start, channel: Channel, shovel: OwnBroker, tmp_path: Path
) -> None:
    (command,) = page_commands("rabbitmqctl", "shovel")
    mended = tmp_path / "mended"
    worker = start().expect_ready()
    send(channel, {"name": "bad", "fail": "not yet"})
    send(channel, {"name": "mended", "fail": "not yet", "unless": str(mended)})
    wait_until(lambda: shovel.ready(FAILED) == 2, "both to be set aside")
    mended.touch()
    shovel.ctl(*shlex.split(command)[1:])
    worker.expect("end mended")
    # It has all its tries again.
    worker.expect("begin bad", times=2 * (1 + len(DELAYS)))
    assert set_aside(channel)[0] == "try 3: ValueError('not yet')"


@pytest.mark.claim("recipe-unrecoverable", "recipe-poison")
def test_what_can_never_be_done_is_set_aside_at_once_and_poison_holds_up_nothing(
    start: Start, channel: Channel
) -> None:
    worker = start("--parallel", "1").expect_ready()
    never = (b"{not JSON", b"\xff\xfe\xfd", {"name": "gone", "never": "no such user"})
    send(channel, *never, expiration="60000")
    send(channel, {"name": "poison", "fail": "always"}, *({"name": f"good{n}"} for n in range(5)))
    worker.expect("end good4")
    assert len(times(worker, "poison", 1)) == 1
    for reason in ("the body is not JSON", "the body is not JSON", "no such user"):
        error, kept, _ = set_aside(channel)
        assert error.startswith("try 1: Unrecoverable(")
        assert reason in error
        assert kept.expiration is None  # it is to be there until somebody looks
    worker.expect("begin poison", times=3)
    assert len(times(worker, "gone", 1)) == 1


@pytest.mark.claim("recipe-import")
def test_a_worker_that_imports_the_recipe(run: Run, channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "my_worker.py").write_text(MY_WORKER, encoding="utf-8")
    worker = run(str(tmp_path / "my_worker.py")).expect_ready()
    send(channel, {"photo": 42}, {"photos": []})
    worker.expect("resizing 42").expect("Done")
    assert set_aside(channel)[0] == "try 1: Unrecoverable('no photo in it')"


@pytest.mark.claim("recipe-crash")
def test_a_task_that_kills_its_worker_is_set_aside_too(start: Start, channel: Channel) -> None:
    send(channel, {"name": "bomb", "kill": True}, *({"name": f"good{n}"} for n in range(5)))
    workers = []
    for _ in range(1 + len(DELAYS)):
        workers.append(start("--parallel", "1"))
        assert workers[-1].wait(20) == -signal.SIGKILL
        assert workers[-1].out[-1].startswith("begin bomb")
    workers.append(start("--parallel", "1").expect_ready())
    error, _, body = set_aside(channel)
    assert json.loads(body)["name"] == "bomb"
    assert "worker that had it was lost" in error
    ended = {line for worker in workers for line in worker.out if line.startswith("end")}
    assert ended == {f"end good{n}" for n in range(5)}


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.claim("recipe-none-lost")
@pytest.mark.parametrize(
    "wrapped",
    [f"lambda *_, **__: {KILL}", f"lambda *a, **b: (publish(*a, **b), {KILL})"],
    ids=["before the retry is published", "before the acknowledgement"],
)
def test_a_worker_killed_between_two_tries_loses_nothing(
    start: Start, channel: Channel, wrapped: str
) -> None:
    more = (
        "channel = worker.BlockingChannel\npublish = channel.basic_publish\n"
        f"channel.basic_publish = {wrapped}"
    )
    killed = start(more=more).expect_ready()
    send(channel, {"name": "task", "fail": "the first time"}, message_id="7")
    assert killed.wait() == -signal.SIGKILL
    successor = start(more="worker.work = lambda task: print('end', task['name'], flush=True)")
    successor.expect("end task")


@pytest.mark.claim("recipe-stop")
def test_told_to_stop_it_finishes_what_it_has_and_takes_no_more(
    start: Start, channel: Channel, broker: Broker, tmp_path: Path
) -> None:
    go_first, go = tmp_path / "go_first", tmp_path / "go"
    worker = start("--parallel", "4").expect_ready()
    send(channel, *({"name": f"n{n}", "until": str(go if n else go_first)} for n in range(4)))
    send(channel, {"name": "later"})
    worker.expect("begin", times=4)
    worker.terminate()
    worker.expect("Finishing 4 tasks")
    go_first.touch()
    worker.expect("Done")  # so RabbitMQ would send it another one, if it wanted that
    broker.wait_for_ready(QUEUE, 1)
    go.touch()
    assert worker.wait() == 0
    assert sorted(line for line in worker.out if "end" in line) == [f"end n{n}" for n in range(4)]
    assert times(worker, "later") == []
    broker.wait_for_ready(QUEUE, 1)
    assert channel.basic_get(queue=QUEUE, auto_ack=True)[2] == b'{"name": "later"}'


@pytest.mark.claim("recipe-stop-now")
def test_the_second_signal_ends_it_at_once(
    start: Start, channel: Channel, broker: Broker, tmp_path: Path
) -> None:
    worker = start().expect_ready()
    send(channel, {"name": "long", "until": str(tmp_path / "never")})
    worker.expect("begin long").ctrl_c()
    worker.expect("Finishing 1 tasks").ctrl_c()
    assert worker.wait() == 128 + signal.SIGINT
    broker.wait_for_ready(QUEUE, 1)


@pytest.mark.claim("recipe-one-thread")
def test_one_thread_owns_the_connection(start: Start, channel: Channel) -> None:
    answers = channel.queue_declare(queue="", exclusive=True).method.queue
    worker = start(more=WATCH_THREADS).expect_ready()
    send(channel, *({"name": f"n{number}"} for number in range(20)), reply_to=answers)
    send(channel, {"name": "bad", "fail": "once"}, {"name": "gone", "never": "no"})
    worker.expect("Done", times=20)
    set_aside(channel)
    worker.terminate()
    assert worker.wait() == 0
    assert [line for line in worker.error if "used by another thread" in line] == []


@pytest.mark.claim("recipe-result")
def test_the_result_goes_to_where_the_task_asks_for_it(
    start: Start, channel: Channel, broker: Broker
) -> None:
    answers = channel.queue_declare(queue="", exclusive=True).method.queue
    worker = start().expect_ready()
    send(channel, {"name": "abc"}, reply_to=answers, correlation_id="17")
    properties, result = take(channel, answers)
    assert (properties.correlation_id, result) == ("17", b'"ABC"')

    # Whoever asked is gone, or its queue is full: the task is done all the same, or tried again.
    send(channel, {"name": "nobody"}, reply_to="nobody")
    worker.expect("Nobody waits for the result").expect("Done", times=2)
    full = {"x-max-length": 0, "x-overflow": "reject-publish"}
    answers = channel.queue_declare(queue="", exclusive=True, arguments=full).method.queue
    send(channel, {"name": "full"}, reply_to=answers)
    assert "NackError" in set_aside(channel)[0]
    assert len(times(worker, "full", 1 + len(DELAYS))) == 1 + len(DELAYS)


@pytest.mark.claim("recipe-lost-connection")
def test_a_connection_lost_during_tasks(
    start: Start, own_broker: OwnBroker, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    worker = start("--parallel", "2").expect_ready()
    with own_broker.channel() as channel:
        send(channel, *({"name": f"n{number}", "until": str(go)} for number in range(2)))
    worker.expect("begin", times=2)
    own_broker.ctl("close_all_connections", "maintenance")
    worker.expect("maintenance").expect("Trying again in 1 s").expect("[*] Waiting", times=2)
    with own_broker.channel() as channel:
        send(channel, {"name": "third"})
    # Both are still at work, and come again, so a third has no thread to run in.
    worker.expect("Received", times=4)
    own_broker.wait_for_ready(QUEUE, 1)
    assert times(worker, "third") == []
    go.touch()
    worker.expect("end third").expect("end n0", times=2).expect("end n1", times=2)
    worker.expect("Done", times=3)
    worker.terminate()
    assert worker.wait() == 0
    own_broker.wait_for_ready(QUEUE, 0)


@pytest.mark.claim("recipe-long-task")
def test_tasks_may_take_longer_than_the_heartbeat(
    start: Start, channel: Channel, broker: Broker
) -> None:
    work = "worker.work = lambda task: (time.sleep(9), print('end', task['name'], flush=True))"
    worker = start(more=work, url=f"{broker.url}?heartbeat=2").expect_ready()
    send(channel, {"name": "a"}, {"name": "b"})
    worker.expect("Done", times=2)
    assert [line for line in worker.error if "[!]" in line] == []


@pytest.mark.claim("recipe-result")
def test_what_rabbitmq_refuses_costs_no_other_task_a_try(
    start: Start, own_broker: OwnBroker, channel: Channel, tmp_path: Path
) -> None:
    # As testbed/settings.py has it, a message has two megabytes at the most.
    long = 'worker.work = lambda task: work(task) * (10**6 if task["name"] == "long" else 1)'
    worker = start("--parallel", "2", more=long).expect_ready()
    answers = channel.queue_declare(queue="", exclusive=True).method.queue
    send(channel, {"name": "other", "until": str(tmp_path / "go")})
    worker.expect("begin other")
    send(channel, {"name": "long"}, reply_to=answers)
    error, _, _ = set_aside(channel)
    (tmp_path / "go").touch()
    worker.expect("end other").expect("Done")
    assert "406" in error
    assert len(times(worker, "other", 1)) == 1
    assert not any("Connection lost" in line for line in worker.error)


def test_a_task_that_no_queue_takes_comes_again(
    start: Start, own_broker: OwnBroker, channel: Channel
) -> None:
    with own_broker.rejecting(FAILED, room=0):
        worker = start("--parallel", "2").expect_ready()
        send(channel, {"name": "bad", "never": "possible"})
        worker.expect("Back in 5 s")
        send(channel, {"name": "good"})
        worker.expect("end good").expect("Done")
    take(channel, FAILED)
    assert not any("Connection lost" in line for line in worker.error)
