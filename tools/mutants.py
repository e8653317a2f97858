"""Wrong edits of the scripts, such as a colleague might make: a test has to catch each of them.

    make mutants
    make mutants ARGS="--broker=local -k prefetch"

Each edit is made in a copy of the repository, and the suite runs there until a test fails, twice in
a row: first the tests of that part and those of all scripts, then the rest. Tests that run no
script do not count, since whoever edits a script would edit a check of its text along with it; nor
does a test that cannot begin, because it alters the very line that was edited. In the end the tests
that failed have to pass on the scripts as they are.

As a plugin (`-p tools.mutants`), this module has pytest run only what counts.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed.choice import KINDS
from testbed.terminal import REPOSITORY, replaced

SENDER, RECEIVER = "part_1/sender.py", "part_1/receive.py"
NEW_TASK, WORKER = "part_2/new_task.py", "part_2/worker.py"
LOGS = "part_3/receive_logs.py"
EMIT_DIRECT, DIRECT = "part_4/emit_log_direct.py", "part_4/receive_logs_direct.py"
EMIT_TOPIC, TOPIC = "part_5/emit_log_topic.py", "part_5/receive_logs_topic.py"
CLIENT, SERVER = "part_6/rpc_client.py", "part_6/rpc_server.py"

# Lines that an edit moves, or that several edits are about.
READY_RECEIVER = '        print(" [*] Waiting for messages. To exit press CTRL+C", flush=True)\n'
READY_LOGS = '        print(" [*] Waiting for logs. To exit press CTRL+C", flush=True)\n'
READY_WORKER = '    print(" [*] Waiting for tasks. To exit press CTRL+C", flush=True)\n'
READY_SERVER = '    print(" [*] Waiting for requests. To exit press CTRL+C", flush=True)\n'
CONSUME = "    channel.basic_consume("
BIND = "        channel.queue_bind("
ACKNOWLEDGE = "    channel.basic_ack(delivery_tag=method.delivery_tag)\n"
RELEASE = "connection_lock.release()"
GROW = "            pause = min(2 * pause, 5)\n"
NEVER_CONNECTED = "            if not pause:\n                raise"

ALL_PASSED = "all tests passed"

# Suites mostly wait, and have a broker each, so that two at a time do not disturb each other.
AT_A_TIME = 2
SUITES: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Mutant:
    """A wrong edit.

    Attributes:
        name: What was edited, in a few words.
        wrong: Why it is wrong.
        edits: Each a script, a text that stands in it once, and what replaces that text.
    """

    name: str
    wrong: str
    edits: tuple[tuple[str, str, str], ...]

    def edited(self, folder: Path) -> dict[str, str]:
        """Return the text of each script that it edits, as it is in a repository's folder."""
        texts = {script: (folder / script).read_text("utf-8") for script, _, _ in self.edits}
        for script, old, new in self.edits:
            texts[script] = replaced(texts[script], (old, new))
        return texts


MUTANTS = (
    # Part I
    Mutant(
        "receiver: no flush",
        "in a pipe or a file its lines come when there are many of them, or never",
        ((RECEIVER, "(errors='replace')!r}\", flush=True)", "(errors='replace')!r}\")"),),
    ),
    Mutant(
        "receiver: ready line before consume",
        "it says that it waits, and may yet be refused",
        (
            (RECEIVER, READY_RECEIVER, ""),
            (RECEIVER, f"    {CONSUME}", READY_RECEIVER + f"    {CONSUME}"),
        ),
    ),
    Mutant(
        "receiver: body taken for UTF-8",
        "any other message kills it",
        ((RECEIVER, "body.decode(errors='replace')", "body.decode()"),),
    ),
    Mutant(
        "receiver: end of the queue ignored",
        "somebody deletes the queue, and it ends as if all were well",
        ((RECEIVER, 'raise ChannelWrongStateError("somebody has deleted the queue")', "return"),),
    ),
    Mutant(
        "sender: blocked_connection_timeout not used",
        "it waits for as long as the broker blocks publishers",
        ((SENDER, "Connection(parameters)", "Connection(pika.URLParameters(RABBITMQ_URL))"),),
    ),
    Mutant(
        "sender: password in the message",
        "it ends up in somebody's log",
        ((SENDER, "See RABBITMQ_URL and its log", "See RABBITMQ_URL={RABBITMQ_URL} and its log"),),
    ),
    Mutant(
        "sender: BrokenPipeError not caught",
        "`python part_1/sender.py | head -0` ends with a traceback",
        ((SENDER, "except BrokenPipeError:", "except ConnectionResetError:"),),
    ),
    # Part II
    Mutant(
        "worker: acknowledges before the work",
        "a worker that dies loses its task",
        ((WORKER, ACKNOWLEDGE, ""), (WORKER, f"    {RELEASE}", f"{ACKNOWLEDGE}    {RELEASE}")),
    ),
    Mutant(
        "worker: auto_ack",
        "a worker that dies loses all that was dispatched to it",
        (
            (WORKER, ACKNOWLEDGE, ""),
            (
                WORKER,
                "on_message_callback=on_message",
                "on_message_callback=on_message, auto_ack=True",
            ),
        ),
    ),
    Mutant(
        "worker: the task's error taken for the connection's",
        "it connects again, and does the task again, for ever",
        (
            (
                WORKER,
                "    except Exception as error:",
                "    except ZeroDivisionError as error:",
            ),
        ),
    ),
    Mutant(
        "worker: no prefetch limit",
        "one worker gets tasks while it is busy and another is idle",
        ((WORKER, "prefetch_count=1", "prefetch_count=0"),),
    ),
    Mutant(
        "worker: ready line before consume",
        "it says that it waits, and may yet be refused",
        ((WORKER, READY_WORKER, ""), (WORKER, CONSUME, READY_WORKER + CONSUME)),
    ),
    Mutant(
        "worker: thread for heartbeats not started",
        "a task longer than the heartbeat is done again and again",
        ((WORKER, "daemon=True).start()", "daemon=True)"),),
    ),
    Mutant(
        "worker: lock not released during the work",
        "a task longer than the heartbeat is done again and again",
        (
            (WORKER, RELEASE, "pass"),
            (WORKER, "finally:\n        connection_lock.acquire()", "finally:\n        pass"),
        ),
    ),
    Mutant(
        "worker: no reconnect",
        "it ends with the first restart of the broker",
        ((WORKER, NEVER_CONNECTED, "            raise"),),
    ),
    Mutant(
        "worker: pause never grows",
        "all workers knock at a broker that is down each second",
        ((WORKER, GROW, ""),),
    ),
    Mutant(
        "worker: first connection tried again",
        "a wrong address looks like a broker that will soon be back",
        ((WORKER, "    pause = 0\n", "    pause = 1\n"),),
    ),
    Mutant(
        "worker: SIGTERM not handled",
        "as process 1 of a container it does not end; elsewhere it ends as if killed",
        ((WORKER, "signal.signal(signal.SIGTERM, goodbye)", "pass"),),
    ),
    Mutant(
        "worker: Ctrl+C raised wherever it comes",
        "in the middle of pika's work it gets lost, or has the close wait for ever",
        (
            (WORKER, "(signal.SIGINT, goodbye)", "(signal.SIGINT, signal.default_int_handler)"),
            (WORKER, "(signal.SIGTERM, goodbye)", "(signal.SIGTERM, signal.default_int_handler)"),
            (
                WORKER,
                "    except BrokenPipeError:",
                (
                    "    except KeyboardInterrupt:\n"
                    '        print(" [*] Goodbye", flush=True)\n'
                    "    except BrokenPipeError:"
                ),
            ),
        ),
    ),
    Mutant(
        "task_queue not durable",
        "it does not outlive a restart of the broker, and its tasks do not",
        tuple(
            (script, "queue=QUEUE, durable=True", "queue=QUEUE") for script in (NEW_TASK, WORKER)
        ),
    ),
    Mutant(
        "new_task: not persistent",
        "the task does not outlive a restart of the broker",
        ((NEW_TASK, "DeliveryMode.Persistent", "DeliveryMode.Transient"),),
    ),
    Mutant(
        "new_task: no confirms",
        "it says Sent before RabbitMQ has the task",
        ((NEW_TASK, "channel.confirm_delivery()", "pass"),),
    ),
    Mutant(
        "new_task: waits for a confirm without a limit",
        "it hangs while a queue has lost most of its replicas",
        ((NEW_TASK, "    alarm.start()\n", ""),),
    ),
    Mutant(
        "new_task: not mandatory",
        "it says Sent though the queue is gone",
        ((NEW_TASK, "            mandatory=True,", "            #"),),
    ),
    Mutant(
        "new_task: all words but the first dropped",
        "a usage that was promised is ignored",
        ((NEW_TASK, '" ".join(arguments.words)', "arguments.words[0]"),),
    ),
    # Part III
    Mutant(
        "logs: ready line before bind",
        "who reads it and sends is not heard",
        ((LOGS, READY_LOGS, ""), (LOGS, BIND, READY_LOGS + BIND)),
    ),
    Mutant(
        "logs: one queue for all receivers",
        "each gets its share only",
        ((LOGS, 'queue="", exclusive=True', 'queue="logs"'),),
    ),
    Mutant(
        "logs: queue not exclusive",
        "a receiver leaves it behind, and it fills up",
        ((LOGS, 'queue="", exclusive=True', 'queue=""'),),
    ),
    # Part IV
    Mutant(
        "direct: wrong binding key",
        "only the first severity is heard",
        ((DIRECT, "routing_key=severity", "routing_key=severities[0]"),),
    ),
    Mutant(
        "direct: ready line before consume",
        "it says that it waits, and may yet be refused",
        ((DIRECT, READY_LOGS, ""), (DIRECT, f"    {CONSUME}", READY_LOGS + f"    {CONSUME}")),
    ),
    Mutant(
        "direct: no severity needed",
        "it waits for nothing, rather than say how to call it",
        ((DIRECT, '"severities", nargs="+"', '"severities", nargs="*"'),),
    ),
    Mutant(
        "emit_log_direct: all words but the first dropped",
        "a usage that was promised is ignored",
        ((EMIT_DIRECT, '" ".join(arguments.words)', "arguments.words[0]"),),
    ),
    # Part V
    Mutant(
        "topic: wrong binding key",
        "it hears everything",
        ((TOPIC, "routing_key=binding_key", 'routing_key="#"'),),
    ),
    Mutant(
        "emit_log_topic: message taken for text",
        "any other ends it with a traceback",
        ((EMIT_TOPIC, "(AMQPError, UnicodeEncodeError)", "AMQPError"),),
    ),
    # Part VI
    Mutant(
        "server: auto_ack",
        "a server that dies loses all requests that were dispatched to it",
        (
            (SERVER, ACKNOWLEDGE, ""),
            (
                SERVER,
                "on_message_callback=on_request",
                "on_message_callback=on_request, auto_ack=True",
            ),
        ),
    ),
    Mutant(
        "server: acknowledges before the answer",
        "a server that dies loses its request",
        (
            (SERVER, ACKNOWLEDGE, ""),
            (
                SERVER,
                "    if properties.reply_to:\n",
                f"{ACKNOWLEDGE}    if properties.reply_to:\n",
            ),
        ),
    ),
    Mutant(
        "server: no prefetch limit",
        "one server gets requests while it is busy and another is idle",
        ((SERVER, "prefetch_count=1", "prefetch_count=0"),),
    ),
    Mutant(
        "server: ready line before consume",
        "it says that it waits, and may yet be refused",
        ((SERVER, READY_SERVER, ""), (SERVER, CONSUME, READY_SERVER + CONSUME)),
    ),
    Mutant(
        "server: answer without correlation id",
        "the client cannot tell what it answers",
        ((SERVER, "correlation_id=properties.correlation_id, ", ""),),
    ),
    Mutant(
        "server: heartbeat starved",
        "a request longer than the heartbeat is done again and again",
        (
            (SERVER, RELEASE, "pass"),
            (
                SERVER,
                "finally:\n            connection_lock.acquire()",
                "finally:\n            pass",
            ),
        ),
    ),
    Mutant(
        "server: no reconnect",
        "it ends with the first restart of the broker",
        ((SERVER, NEVER_CONNECTED, "            raise"),),
    ),
    Mutant(
        "server: pause never grows",
        "all servers knock at a broker that is down each second",
        ((SERVER, GROW, ""),),
    ),
    Mutant(
        "client: correlation id not checked",
        "one request gets the answer of another",
        (
            (
                CLIENT,
                "request = self.requests.get(properties.correlation_id)\n",
                "request = next(iter(self.requests.values()), None)\n",
            ),
        ),
    ),
    Mutant(
        "client: second answer taken",
        "what was right may be overwritten",
        ((CLIENT, "if request and request.answer is None:", "if request:"),),
    ),
    Mutant(
        "client: late answer kept",
        "requests pile up in a client that lives long",
        ((CLIENT, "            del self.requests[correlation_id]", "            pass"),),
    ),
    Mutant(
        "client: error taken for a result",
        "the caller reads the wrong error, or none",
        ((CLIENT, 'properties.type == "error"', "False"),),
    ),
    Mutant(
        "client: no expiration",
        "servers work on requests that nobody waits for",
        ((CLIENT, "expiration=str(int(timeout * 1000)),", ""),),
    ),
    Mutant(
        "client: not mandatory",
        "without a queue it waits for the whole timeout, and says the wrong reason",
        ((CLIENT, "            mandatory=True,", "            #"),),
    ),
    Mutant(
        "client: blocked_connection_timeout not used",
        "it waits for as long as the broker blocks publishers",
        (
            (
                CLIENT,
                "Connection(parameters)",
                "Connection(pika.URLParameters(url))",
            ),
        ),
    ),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that run no script; in each file have those that stop a broker last."""
    fixtures = {item: getattr(item, "fixturenames", ()) for item in items}
    files = list(dict.fromkeys(item.path for item in items))
    # A test that runs a script has the broker for it.
    config.hook.pytest_deselected(items=[item for item in items if "broker" not in fixtures[item]])
    items[:] = [item for item in items if "broker" in fixtures[item]]
    items.sort(key=lambda item: (files.index(item.path), "own_broker" in fixtures[item]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a test that misses the text it alters neither pass nor fail, so that others go on."""
    report = yield
    if call.excinfo and call.excinfo.traceback[-1].name == replaced.__name__:
        report.outcome = "skipped"
        report.wasxfail = "what it alters was edited"
    return report


@dataclass(frozen=True)
class Verdict:
    """What a run of the suite showed.

    Attributes:
        test: The test that failed, or nothing where none did.
        reason: Why it failed, or what happened else, in a line.
    """

    test: str | None
    reason: str


def first_failure(report: Path) -> Verdict | None:
    """Return the first failure of a test in a JUnit report; that a fixture fails is none."""
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
        if (failure := case.find("failure")) is not None:
            test = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
            return Verdict(test, failure.attrib["message"].partition("\n")[0])
    return None


def judge(tree: Path, broker: str, tests: Iterable[str]) -> Verdict:
    """Run the tests below `tree` until one fails, on a broker of that kind."""
    report = tree / "report.xml"
    environment = {**os.environ}
    # Tests that stop a broker, which catch what no other does, skip one that was only named.
    environment.pop("RABBITMQ_URL", None)
    # On a busy machine a test may fail for lack of time, or catch by luck: it has to fail twice.
    options = ["-x", "--reruns=1", "-p", "tools.mutants", "-p", "no:cacheprovider"]
    with (tree / "output.txt").open("w+") as output:
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", *options),
                *(f"--broker={broker}", f"--junitxml={report}", *tests),
            ],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl+C is for this program, which ends its suites
        ) as suite:
            SUITES.append(suite)
            code = suite.wait()
        if code == pytest.ExitCode.OK:
            return Verdict(None, ALL_PASSED)
        if code == pytest.ExitCode.TESTS_FAILED and (failed := first_failure(report)):
            return failed
        output.seek(0)
        return Verdict(None, f"no test failed: {output.read().strip().splitlines()[-1]}")


def copy(folder: Path, tree: Path) -> None:
    """Copy what the suite needs from a repository's folder to the new folder `tree`."""
    shutil.copytree(folder, tree, ignore=shutil.ignore_patterns(".*", "__pycache__"))


def files_for(mutant: Mutant, tree: Path) -> list[str]:
    """Return the suite's files: that of the mutant's part, that of all scripts, the rest."""
    parts = {f"test_{Path(script).parent.name}" for script, _, _ in mutant.edits}
    files = [path.relative_to(tree) for path in tree.glob("tests/test_*.py")]
    files.sort(key=lambda file: (file.stem not in parts, file.stem != "test_scripts", file))
    return [str(file) for file in files]


def survivors_of(mutants: list[Mutant], broker: str) -> list[Mutant]:
    """Try the mutants, and print for each which test caught it; return those that none caught.

    Raises:
        RuntimeError: A test that caught one fails on the unedited scripts too.
    """
    survivors: list[Mutant] = []
    catching: set[str] = set()
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        unedited = Path(folder) / "unedited"
        copy(REPOSITORY, unedited)  # once: somebody may go on working there

        def run(mutant: Mutant) -> tuple[Verdict, float]:
            tree = Path(folder) / mutant.name
            copy(unedited, tree)
            for script, text in mutant.edited(unedited).items():
                (tree / script).write_text(text, encoding="utf-8")
            began = time.monotonic()
            return judge(tree, broker, files_for(mutant, tree)), time.monotonic() - began

        try:
            for mutant, (verdict, took) in zip(mutants, pool.map(run, mutants), strict=True):
                if verdict.test:
                    catching.add(verdict.test)
                else:
                    survivors.append(mutant)
                survived = "SURVIVED" if verdict.reason == ALL_PASSED else "NOT CAUGHT"
                what = f"caught by {verdict.test}" if verdict.test else survived
                print(f"{mutant.name}: {what} ({took:.0f} s): {verdict.reason[:120]}", flush=True)
            if catching:
                verdict = judge(unedited, broker, sorted(catching))
                if verdict.reason != ALL_PASSED:
                    raise RuntimeError(f"{verdict.test}: {verdict.reason}")
                print(
                    f"\nAll that caught one pass on the unedited scripts ({len(catching)} tests)."
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for suite in SUITES:
                suite.send_signal(signal.SIGINT)  # it has a broker to discard
            raise
    return survivors


def main() -> None:
    """Try the mutants, or some of them; exit with 1 if one survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = [kind for kind in KINDS if kind != "url"]
    parser.add_argument("--broker", choices=kinds, default="auto", help="as pytest's option")
    parser.add_argument("-k", metavar="TEXT", default="", help="only those with it in their names")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.k in mutant.name]
    if not chosen:
        parser.error(f"no mutant has {arguments.k!r} in its name")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        survivors = survivors_of(chosen, arguments.broker)
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        sys.exit(f"Nothing is shown, since a test fails without an edit: {error}")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught.")
    for mutant in survivors:
        print(f"Not caught: {mutant.name}, though {mutant.wrong}.")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
