"""What holds for every script: each part_*/*.py that is there is found and tried."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from tests.broker import EXCHANGES, QUEUES, Broker
from tests.conftest import Run, Variant
from tests.terminal import REPOSITORY, Terminal, script_environment

SCRIPTS = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("part_*/*.py"))
SOURCES = {script: (REPOSITORY / script).read_text(encoding="utf-8") for script in SCRIPTS}

# A consumer is known by what makes it one, and a service by coming back.
CONSUMERS = [script for script in SCRIPTS if "start_consuming()" in SOURCES[script]]
PRODUCERS = [script for script in SCRIPTS if script not in CONSUMERS]
SERVICES = [script for script in CONSUMERS if "Trying again" in SOURCES[script]]


def command(script: str) -> list[str]:
    """Return the shortest command line of a script: its path, and an argument if it needs one."""
    return [script, "some.key"] if 'nargs="+"' in SOURCES.get(script, "") else [script]


def each_fails_with_one_line(run: Run, url: str, scripts: list[str], *clues: str) -> list[Terminal]:
    """Assert that each script says in one line on stderr what is wrong, and exits with 1."""
    terminals = [run(*command(script), url=url) for script in scripts]
    for terminal in terminals:
        assert terminal.wait(30) == 1, terminal.command
        assert len(terminal.error) == 1, terminal.command
        assert terminal.error[0].startswith(" [!] ")
        assert [clue for clue in clues if clue not in terminal.error[0]] == []
        assert not any("Sent" in line or "Waiting" in line for line in terminal.out)
    return terminals


def address(broker: Broker, login: str = "guest:guest", virtual_host: str = "%2F") -> str:
    """Return the broker's address, with another login or virtual host."""
    parts = urlsplit(broker.url)
    return f"amqp://{login}@{parts.hostname}:{parts.port}/{virtual_host}"


@pytest.fixture
def unused_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_there_is_a_producer_and_a_consumer_in_each_part() -> None:
    parts = [f"part_{number}" for number in range(1, 7)]
    assert [Path(script).parent.name for script in PRODUCERS] == parts
    assert [Path(script).parent.name for script in CONSUMERS] == parts
    assert SERVICES == ["part_2/worker.py", "part_6/rpc_server.py"]


def test_all_scripts_need_pika_alone_within_the_same_bound() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    bound = project["project"]["dependencies"]
    assert bound[0] in project["dependency-groups"]["dev"]
    for source in SOURCES.values():
        metadata = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", source)
        assert metadata
        assert tomllib.loads(metadata[1].replace("# ", "")) == {
            "requires-python": project["project"]["requires-python"],
            "dependencies": bound,
        }
        imported = re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
        assert {name for name in imported if name not in sys.stdlib_module_names} == {"pika"}


def test_what_is_not_about_messaging_is_the_same_in_all() -> None:
    tails = [source.partition("    signal.signal(signal.SIGTERM")[2] for source in SOURCES.values()]
    # Each calls a function of its own, and the RPC client has errors of its own.
    own_call = re.compile(r"(?<=    try:\n)        (?!pika)[a-z]+\(.*\)\n")
    own_errors = re.compile(r"    except \(RpcError.*\n.*\n")
    assert all(tails)
    assert len({own_errors.sub("", own_call.sub("", tail)) for tail in tails}) == 1


def test_help_says_how_to_call_it(run: Run) -> None:
    for script, terminal in [(script, run(script, "--help", url="")) for script in SCRIPTS]:
        assert terminal.wait() == 0
        said = "\n".join(terminal.out)
        assert f"python {script}" in said
        partners = [other for other in SCRIPTS if Path(other).parent == Path(script).parent]
        assert [partner for partner in partners if Path(partner).name not in said] == []
        assert terminal.error == []


def test_wrong_arguments(run: Run) -> None:
    wrong = [run(*command(script), "--nonsense") for script in SCRIPTS]
    missing = [run(script) for script in SCRIPTS if len(command(script)) > 1]
    assert len(missing) == 2
    for terminal in wrong + missing:
        assert terminal.wait() == 2
        assert terminal.out == []
        assert terminal.error[0].startswith("usage: ")


def test_the_broker_is_down(run: Run, unused_port: int) -> None:
    url = f"amqp://guest:secret@localhost:{unused_port}/%2F"
    clues = ("No connection", "Connection refused", "Does RabbitMQ run?")
    each_fails_with_one_line(run, url, SCRIPTS, *clues)


def test_the_host_is_unknown(run: Run) -> None:
    url = "amqp://guest:secret@nowhere.invalid/%2F"
    each_fails_with_one_line(run, url, SCRIPTS, "No connection", "gaierror", "RABBITMQ_URL")


def test_the_password_is_wrong_and_never_printed(run: Run, broker: Broker) -> None:
    password = "pä/ss:w@rd%?#"  # noqa: S105 - of nobody
    url = address(broker, login=f"guest:{quote(password, safe='')}")
    terminals = each_fails_with_one_line(run, url, SCRIPTS, "ACCESS_REFUSED", "RABBITMQ_URL")
    printed = "\n".join(line for terminal in terminals for line in terminal.out + terminal.error)
    assert [secret for secret in (password, quote(password, safe="")) if secret in printed] == []


def test_the_virtual_host_is_missing(run: Run, broker: Broker) -> None:
    url = address(broker, virtual_host="nowhere")
    each_fails_with_one_line(run, url, SCRIPTS, "vhost nowhere not found", "RABBITMQ_URL")


# The address, and what the line names as wrong with it.
MALFORMED = {
    "localhost": "IndexError",
    "amqp://guest:secret/word@localhost:5672/%2F": "ValueError",
    "amqp://guest:secret@localhost:port/%2F": "ValueError",
    "amqp://guest:secret@localhost:99999/%2F": "ValueError",
    "amqp://guest@localhost:5672/%2F": "TypeError",
    "amqp://guest:secret@local..host:5672/%2F": "UnicodeError",
    "amqp://guest:secret@[::1:5672/%2F": "ValueError",
    "amqp://guest:secret@localhost:5672/%2F?heartbeat=often": "ValueError",
    "amqp://guest:secret@localhost:5672/%2F?nonsense=1": "ValueError",
    "amqps://guest:secret@localhost:5671/%2F?ssl_options={": "SyntaxError",
    "amqps://guest:secret@localhost:5671/%2F?ssl_options={'cafile':'gone'}": "FileNotFoundError",
}


def test_the_address_is_malformed(run: Run) -> None:
    # All scripts have the same words for it, so that one of them may stand for all but once.
    for script, url in [
        *((script, "localhost") for script in SCRIPTS),
        *((SCRIPTS[0], url) for url in MALFORMED),
    ]:
        terminal = run(*command(script), url=url)
        assert terminal.wait() == 1
        why = MALFORMED[url]
        assert terminal.error == [
            f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F"
        ]


def test_a_queue_or_an_exchange_exists_with_other_properties(
    run: Run, broker: Broker, channel: BlockingChannel
) -> None:
    for queue in QUEUES:
        channel.queue_declare(queue=queue, durable=queue == "hello")
    for exchange in EXCHANGES:
        channel.exchange_declare(exchange=exchange, exchange_type="headers")
    # The client of Part VI leaves its queue to the server to declare.
    declares = [s for s in SCRIPTS if re.search("declare\\((queue=QUEUE|exchange=)", SOURCES[s])]
    assert [script for script in SCRIPTS if script not in declares] == ["part_6/rpc_client.py"]
    each_fails_with_one_line(run, broker.url, declares, "PRECONDITION_FAILED - inequivalent arg")


@pytest.mark.parametrize("end", [Terminal.ctrl_c, Terminal.terminate])
def test_a_waiting_consumer_ends_with_a_goodbye(run: Run, end: Callable[[Terminal], None]) -> None:
    consumers = [run(*command(script)) for script in CONSUMERS]
    for consumer in consumers:
        end(consumer.expect_ready())
    for consumer in consumers:
        assert consumer.wait() == 0, consumer.command
        assert consumer.out[1:] == [" [*] Goodbye"]
        assert consumer.error == []


def test_a_consumer_says_that_it_waits_only_once_it_consumes(run: Run, own_broker: Broker) -> None:
    own_broker.ctl("add_user", "reader", "secret")
    try:
        # Whatever it declares and binds, it may not consume, which is the last step.
        own_broker.ctl("set_permissions", "reader", ".*", ".*", "^(.*_)?logs$")
        url = address(own_broker, login="reader:secret")
        each_fails_with_one_line(run, url, CONSUMERS, "Refused", "access to queue")
    finally:
        own_broker.ctl("delete_user", "reader")


def test_a_lost_connection_ends_a_viewer_and_not_a_service(run: Run, own_broker: Broker) -> None:
    consumers = {script: run(*command(script)) for script in CONSUMERS}
    for consumer in consumers.values():
        consumer.expect_ready()
    own_broker.ctl("close_all_connections", "a test")
    for script, consumer in consumers.items():
        if script in SERVICES:
            consumer.expect("[!] Connection lost").expect("[*] Waiting", times=2)
        else:
            assert consumer.wait() == 1, script
            assert len(consumer.error) == 1
            assert "No connection" in consumer.error[0]
            assert "CONNECTION_FORCED" in consumer.error[0]


def test_a_deleted_queue_ends_a_viewer_and_not_a_service(
    run: Run, channel: BlockingChannel
) -> None:
    consumers = {script: run(script) for script in CONSUMERS if "\nQUEUE = " in SOURCES[script]}
    for consumer in consumers.values():
        consumer.expect_ready()
    assert len(consumers) == len(QUEUES)
    for queue in QUEUES:
        channel.queue_delete(queue=queue)
    for script, consumer in consumers.items():
        if script in SERVICES:
            consumer.expect("[*] Waiting", times=2)
        else:
            assert consumer.wait() == 1, script
            assert len(consumer.error) == 1
            assert "ConsumerCancelled" in consumer.error[0]


def test_a_message_may_be_any_bytes(run: Run, channel: BlockingChannel) -> None:
    showing = [script for script in CONSUMERS if "[x]" in SOURCES[script]]
    consumers = [run(*command(script)).expect_ready() for script in showing]
    emitters = [script for script in PRODUCERS if '"words"' in SOURCES[script]]
    for emitter in [run(script, "some.key", os.fsdecode(b"\xff\xfe")) for script in emitters]:
        assert emitter.wait() == 0, emitter.command
    channel.basic_publish(exchange="", routing_key="hello", body=b"\xff\xfe")
    assert len(consumers) == len(emitters) + 1
    for consumer in consumers:
        consumer.expect("\ufffd\ufffd'")


def test_a_reader_that_ends_is_no_error(broker: Broker, channel: BlockingChannel) -> None:
    """As in `python part_1/receive.py | head -1`."""
    with contextlib.ExitStack() as processes:

        def start(script: str) -> subprocess.Popen[bytes]:
            process = processes.enter_context(
                subprocess.Popen(
                    [sys.executable, *command(script)],
                    cwd=REPOSITORY,
                    env=script_environment(broker.url),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            processes.callback(process.kill)
            return process

        consumers = {script: start(script) for script in CONSUMERS}
        for consumer in consumers.values():
            assert consumer.stdout
            assert b"[*] Waiting" in consumer.stdout.readline()
            consumer.stdout.close()
        request = BasicProperties(reply_to="nobody")
        for exchange, key in (
            *(("", queue) for queue in QUEUES),
            *((exchange, "some.key") for exchange in EXCHANGES),
        ):
            channel.basic_publish(exchange=exchange, routing_key=key, body=b"1", properties=request)
        for script, consumer in consumers.items():
            assert consumer.wait(15) == 0, script
            assert consumer.stderr
            assert consumer.stderr.read() == b"", script
        assert broker.ready("task_queue") == 1  # what could not be shown was not acknowledged

        producers = {script: start(script) for script in PRODUCERS}
        for producer in producers.values():
            assert producer.stdout
            producer.stdout.close()
        for script, producer in producers.items():
            assert producer.wait(15) == 0, script
            assert producer.stderr
            assert producer.stderr.read() == b"", script


def test_no_producer_waits_for_ever_on_a_broker_that_blocks_publishers(
    run: Run, own_broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    channel.queue_declare(queue="rpc_queue", durable=True)
    impatient = [variant(script, ("_timeout or 30", "_timeout or 1")) for script in PRODUCERS]
    own_broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        each_fails_with_one_line(run, own_broker.url, impatient, "ConnectionBlockedTimeout")
    finally:
        own_broker.ctl("set_vm_memory_high_watermark", "0.4")
