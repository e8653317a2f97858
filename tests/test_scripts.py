"""What holds for every script: each part_*/*.py is held to it."""

import ast
import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import pika
import psutil
import pytest
from pika import BasicProperties, spec
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import AMQPError

from part_6.rpc_client import FibonacciRpcClient
from testbed.broker import EXCHANGES, QUEUES, Broker, OwnBroker
from testbed.programs import CLIENT, NEW_TASK, SERVER, WORKER
from testbed.settings import free_ports
from testbed.terminal import REPOSITORY, Terminal, script_environment
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.network import Network
from tests.scripts import (
    CONSUMERS,
    DONE,
    NO_PAUSES,
    ONE_OF_EACH,
    PRODUCERS,
    QUEUE_OF,
    SCRIPTS,
    SENDERS,
    SERVICES,
    SOURCES,
    VIEWERS,
    WATCH_THREADS,
    WITH_KEY,
    WITH_WORDS,
    WORK_OF,
    after,
    at_work,
    beginning,
    command,
    fails_with_one_line,
    publish,
)

# No part of it needs to be quoted in a shell, and each would break an address.
SECRET = "pä/ss:w@rd%?#"  # noqa: S105 - of nobody


def each_fails_with_one_line(run: Run, url: str, scripts: tuple[str, ...], *clues: str) -> None:
    """Assert that each script does, before it says that it waits, and without the password."""
    for terminal in [run(*command(script), url=url) for script in scripts]:
        fails_with_one_line(terminal, *clues)
        printed = "\n".join([*terminal.out, *terminal.error])
        unwanted = ("Waiting", SECRET, quote(SECRET, safe=""))
        assert [text for text in unwanted if text in printed] == []


def address(host: str, login: str = "guest", password: str = SECRET, virtual_host: str = "") -> str:
    """Return the address of a broker at the host, "localhost:5672" or such."""
    quoted = [quote(part, safe="") for part in (login, password, virtual_host or "/")]
    return "amqp://{}:{}@{host}/{}".format(*quoted, host=host)


def host_of(broker: Broker) -> str:
    """Return the broker's host and port, as in an address."""
    return urlsplit(broker.url).netloc.rpartition("@")[2]


@pytest.fixture
def unused_port() -> int:
    """A port that nothing listens on."""
    return free_ports(1)[0]


# What a reader sees.


def test_the_scripts_are_those_that_are_there() -> None:
    found = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("part_*/*.py")]
    assert sorted(SCRIPTS) == sorted(found)
    parts = [f"part_{number}" for number in range(1, 7)]
    for scripts in (PRODUCERS, CONSUMERS):
        assert sorted(Path(script).parent.name for script in scripts) == parts


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
        imported = re.findall(r"^ *(?:import|from) (\w+)", source, re.MULTILINE)
        assert {name for name in imported if name not in sys.stdlib_module_names} == {"pika"}


#: The line under which all scripts say the same.
COMMAND_LINE = (
    "# The rest is the command line: the same in all twelve scripts, but for arguments and one"
    " call."
)
# In this order, so that a reader sees at once what is new in the next part.
ORDER = (ast.Import | ast.ImportFrom, ast.Assign, ast.FunctionDef | ast.ClassDef)
#: Of each script, blank ones too: a reader reads each of them.
MOST_LINES = {
    "part_1/sender.py": 56,
    "part_1/receive.py": 66,
    "part_2/new_task.py": 78,
    "part_2/worker.py": 119,
    "part_3/emit_log.py": 58,
    "part_3/receive_logs.py": 70,
    "part_4/emit_log_direct.py": 59,
    "part_4/receive_logs_direct.py": 73,
    "part_5/emit_log_topic.py": 59,
    "part_5/receive_logs_topic.py": 74,
    "part_6/rpc_client.py": 163,
    "part_6/rpc_server.py": 136,
}


def test_messaging_comes_first_and_then_the_command_line() -> None:
    for script, source in SOURCES.items():
        messaging, line, _ = source.partition(COMMAND_LINE)
        assert line, script
        body = ast.parse(source).body
        assert ast.get_docstring(ast.parse(source)), script
        ranks = [
            next(n for n, kind in enumerate(ORDER) if isinstance(node, kind)) for node in body[1:-1]
        ]
        assert ranks == sorted(ranks), script
        under = [node for node in body if node.lineno > len(messaging.splitlines())]
        assert [ast.unparse(node).partition("\n")[0] for node in under] == [
            "def main() -> None:",
            "if __name__ == '__main__':",
        ]
        assert len(source.splitlines()) <= MOST_LINES[script], script


#: By which a script's `main` calls what is about messaging, and the name of that.
OWN_CALL = re.compile(r"(?<=    try:\n)        ([a-z]+)\(parameters.*\)\n")


def test_the_command_line_has_the_same_words_in_all() -> None:
    arguments = re.compile(
        r"    (?:parser = )?ArgumentParser\(.*\)\n(?:    parser\.add_argument\(.*\)\n)*"
        r"(?:    arguments = parser\.parse_args\(\)\n)?"
        r"(?:    if not .*timeout.*\n.*parser\.error.*\n)?"
    )
    tails = {}
    for script, source in SOURCES.items():
        without_arguments, found = arguments.subn("", source.partition(COMMAND_LINE)[2])
        tails[script], calls = OWN_CALL.subn("", without_arguments)
        assert (found, calls) == (1, 1), script
    assert len(set(tails.values())) == 1


def test_pika_is_called_with_keywords() -> None:
    methods = {name for name in vars(Channel) if not name.startswith("_")}
    methods |= {"process_data_events", "BasicProperties"}
    positional = [
        f"{script}:{call.lineno}"
        for script, source in SOURCES.items()
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and call.args
        if (isinstance(call.func, ast.Attribute) and call.func.attr in methods)
        or (isinstance(call.func, ast.Name) and call.func.id == "BasicProperties")
    ]
    assert positional == []


# Called in any way.


def test_uv_runs_the_bare_file(tmp_path: Path) -> None:
    # setup.sh had uv get pika into this folder.
    environment = script_environment("") | {"UV_CACHE_DIR": f"{sys.prefix}/uv"}
    script = shutil.copy(REPOSITORY / SERVER, tmp_path)
    uv = [f"{sys.prefix}/bin/uv", "run", "--offline", "--python", sys.executable]
    said = subprocess.check_output([*uv, script, "--help"], env=environment, cwd=tmp_path)
    assert f"python {SERVER}" in said.decode()


def test_an_argument_that_is_not_text_is_refused(run: Run) -> None:
    no_text = os.fsdecode(b"\xff\xfe")
    words = [run(*command(script), no_text) for script in WITH_WORDS]
    keys = [run(script, no_text, "some text") for script in WITH_KEY]
    for terminal in [*words, *keys]:
        fails_with_one_line(terminal, "UnicodeEncodeError")
        assert terminal.out == []


# No broker, or one that refuses.


def test_no_broker_takes_the_connection(run: Run, broker: Broker, unused_port: int) -> None:
    with Network(broker.url, mode="reset") as network:
        for url, scripts, clue in (
            (address(f"localhost:{unused_port}"), ONE_OF_EACH, "Connection refused"),
            (address("nowhere.invalid"), ONE_OF_EACH, "gaierror"),
            (address(host_of(broker)), ONE_OF_EACH, "ACCESS_REFUSED"),  # the password is wrong
            # The TLS handshake is reset; and a port that does not speak TLS refuses it.
            (network.url.replace("amqp:", "amqps:"), ONE_OF_EACH, "Connection reset by peer"),
            (broker.url.replace("amqp:", "amqps:"), ("part_1/sender.py", WORKER), "SSL"),
        ):
            each_fails_with_one_line(run, url, scripts, clue)


@pytest.fixture
def limited(own_broker: OwnBroker) -> Iterator[str]:
    """The address of the broker for a user who may do nothing yet (see `permit`)."""
    user = {"password": SECRET, "tags": ""}
    own_broker.management("users/limited", "PUT", user)
    yield address(host_of(own_broker), login="limited")
    own_broker.management("users/limited", "DELETE")


def permit(broker: Broker, **permissions: str) -> None:
    """Give that user its permissions: configure, write and read, each for names that match."""
    broker.management("permissions/%2F/limited", "PUT", permissions)


def test_a_login_is_refused_its_permissions(
    run: Run, own_broker: OwnBroker, limited: str, channel: Channel
) -> None:
    nowhere = address(host_of(own_broker), login="limited", virtual_host="nowhere")
    each_fails_with_one_line(run, nowhere, ONE_OF_EACH, "NOT_ALLOWED - vhost nowhere")
    each_fails_with_one_line(run, limited, (NEW_TASK, SERVER), "NOT_ALLOWED - access to vhost")

    # To declare a queue or an exchange takes the permission to configure it.
    permit(own_broker, configure="^$", write=".*", read=".*")
    each_fails_with_one_line(run, limited, SCRIPTS, "ACCESS_REFUSED")

    # Consuming is the last that a consumer does before it says that it waits. It takes the
    # permission to read from the queue; to bind, from the exchange.
    permit(own_broker, configure=".*", write=".*", read="^(.*_)?logs$")
    readers = (*CONSUMERS, CLIENT)
    each_fails_with_one_line(run, limited, readers, "ACCESS_REFUSED", "access to queue")

    # To publish takes the permission to write to the exchange.
    permit(own_broker, configure=".*", write="^$", read=".*")
    each_fails_with_one_line(run, limited, SENDERS, "ACCESS_REFUSED")
    # RabbitMQ closes the channel of a request that it refuses while the client waits for an answer.
    each_fails_with_one_line(run, limited, (CLIENT,), "a request refused")
    # A server that may not answer says so.
    service = run(SERVER, url=limited).expect_ready()
    publish(channel, SERVER, b"1")
    service.expect("[!] ")
    # RabbitMQ closes the channel; pika tells its reason only to who waits for RabbitMQ just then.
    assert "ACCESS_REFUSED" in service.error[0] or "the channel closed" in service.error[0]
    service.kill()
    own_broker.wait_for_ready(QUEUE_OF[SERVER], 1)  # for one that may


def test_a_refused_declaration_is_told_in_rabbitmqs_words_alone(
    run: Run, broker: Broker, channel: Channel
) -> None:
    for queue in QUEUES:
        channel.queue_declare(queue=queue, durable=queue == "hello")
    for exchange in EXCHANGES:
        channel.exchange_declare(exchange=exchange, exchange_type="headers")
    # The client of Part VI leaves its queue to the server to declare.
    declaring = [script for script in SCRIPTS if script != CLIENT]
    said = re.compile(
        r" \[!\] ChannelClosedByBroker: \(406\) ['\"]PRECONDITION_FAILED - inequivalent arg"
        r" '(durable|type)' for (queue|exchange) '\w+' in vhost '/':"
        r" received .* but current is .*['\"]"
    )
    for terminal in [run(*command(script)) for script in declaring]:
        fails_with_one_line(terminal)
        assert said.fullmatch(terminal.error[0]), terminal.error


# Whatever a message is, and wherever it is shown.


def test_a_body_may_be_any_bytes_and_what_cannot_be_shown_is_shown_as_an_escape(
    run: Run, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    consumers = {script: run(*command(script)).expect_ready() for script in CONSUMERS}
    for terminal in [run(*command(script), "任务", "words") for script in WITH_WORDS]:
        assert terminal.wait() == 0
        assert terminal.out[-1].startswith(" [x] Sent ")
        assert r"\u4efb\u52a1 words'" in terminal.out[-1]
        assert terminal.error == []
    for script in (WORKER, *VIEWERS[1:]):
        consumers[script].expect(r"\u4efb\u52a1 words'")  # all words are one message
    for script, consumer in consumers.items():
        for body in (b"", bytes(range(256)), bytes(1_000_000), "任务 4321".encode()):
            publish(channel, script, body)
        shown = r"\xe4\xbb\xbb\xe5\x8a\xa1" if script == SERVER else r"\u4efb\u52a1"
        consumer.expect(f"{shown} 4321")
        assert consumer.error == []


def test_a_message_that_pika_cannot_decode(
    run: Run, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A time in a header: milliseconds, where AMQP has seconds.
    monkeypatch.setattr("calendar.timegm", lambda _: 1_700_000_000_000)
    headers = {"sent": datetime.now(UTC)}
    consumers = {
        script: run(*after(NO_PAUSES), *command(script)).expect_ready() for script in CONSUMERS
    }
    for script in CONSUMERS:
        publish(channel, script, b"1", BasicProperties(headers=headers))
    for script, consumer in consumers.items():
        if script in VIEWERS:
            fails_with_one_line(consumer, "year 55840 is out of range")
        else:
            consumer.expect("Trying again in 10 s", times=2)
            assert all("year 55840 is out of range" in line for line in consumer.error)
            pauses = [int(line.split()[-2]) for line in consumer.error]
            assert pauses[:6] == [1, 2, 4, 8, 10, 10]
            channel.queue_purge(queue=QUEUE_OF[script])


def test_output_that_cannot_be_written(run: Run, broker: Broker, channel: Channel) -> None:
    def start(script: str, output: int, clue: str) -> None:
        started.append((run(*command(script), stdout=output), clue))
        os.close(output)

    started: list[tuple[Terminal, str]] = []
    # A file on a disk that is full; the other end of a pipe that has ended, as in `| head -1`; and
    # a terminal window that was closed.
    for script in CONSUMERS:
        start(script, os.open("/dev/full", os.O_WRONLY), "No space left on device")
        for ends, clue in ((os.pipe, "Broken pipe"), (pty.openpty, "Input/output error")):
            reading, writing = ends()
            start(script, writing, clue)
            with open(reading, "rb", buffering=0) as lines:  # noqa: PTH123 - a file descriptor
                assert b"[*] Waiting" in lines.read(1000)
    for script in SENDERS:  # now, since no consumer could show what is sent
        start(script, os.open("/dev/full", os.O_WRONLY), "No space left on device")
        reading, writing = os.pipe()
        os.close(reading)
        start(script, writing, "Broken pipe")
    for script in (*CONSUMERS, *CONSUMERS):
        publish(channel, script, b"1")
    for terminal, clue in started:
        fails_with_one_line(terminal, clue)
    broker.wait_for_ready("task_queue", 4)  # what could not be shown was not acknowledged
    broker.wait_for_ready("rpc_queue", 2)


# An error of the reader's own code.


def test_an_error_in_the_code_keeps_its_traceback(
    run: Run, broker: Broker, variant: Variant
) -> None:
    mistakes = {
        "baisc_publish()": "NameError: name 'baisc_publish' is not defined",
        "open('missing.txt')": "FileNotFoundError: [Errno 2] No such file or directory:"
        " 'missing.txt'",
    }
    broken = [
        (run(variant(script, beginning(script, entry, code)), *command(script)[1:]), error)
        for script in SCRIPTS
        for entry in OWN_CALL.findall(SOURCES[script])
        for code, error in list(mistakes.items())[: 2 if script in (NEW_TASK, WORKER) else 1]
    ]
    for terminal, error in broken:
        assert terminal.wait() == 1, terminal.command
        assert terminal.error[-1] == error
        assert terminal.error[0].startswith("Traceback")
        assert not any("Sent" in line for line in terminal.out)


@pytest.mark.parametrize(
    "error", ["socket.gaierror", "BrokenPipeError", "pika.exceptions.AMQPError", "TimeoutError"]
)
def test_an_error_of_the_task_is_not_taken_for_one_of_the_connection(
    run: Run, broker: Broker, channel: Channel, variant: Variant, error: str
) -> None:
    services = {
        script: run(variant(script, beginning(script, WORK_OF[script], f"raise {error}('mine')")))
        for script in SERVICES
    }
    for script, service in services.items():
        service.expect_ready()
        publish(channel, script, b"1")
        assert service.wait() == 1
        assert service.error[-1].startswith("RuntimeError: the ")
        assert any("mine" in line for line in service.error)
        broker.wait_for_ready(QUEUE_OF[script], 1)


# A connection that is lost.


def test_rabbitmqs_reason_for_closing_a_connection_is_told(
    run: Run, own_broker: OwnBroker, variant: Variant
) -> None:
    consumers = {script: run(*command(script)).expect_ready() for script in CONSUMERS}
    busy = [run(variant(script, at_work(script, 4))).expect_ready() for script in SERVICES]
    with own_broker.channel() as channel:
        for script in (*SERVICES, *SERVICES):  # one for the idle one, and one for the busy one
            publish(channel, script, b"1")
    for service in busy:
        service.expect("at work")
    with FibonacciRpcClient(pika.URLParameters(own_broker.url)) as client:
        own_broker.ctl("close_all_connections", "maintenance")
        with pytest.raises(AMQPError, match=r"CONNECTION_FORCED.*maintenance"):
            client.call(6)
    for script in VIEWERS:
        fails_with_one_line(consumers[script], "CONNECTION_FORCED", "maintenance")
    for service in (*(consumers[script] for script in SERVICES), *busy):
        service.expect("Trying again in 1 s").expect("[*] Waiting", times=2)
        assert re.search("CONNECTION_FORCED.*maintenance", service.error[0])


def test_a_deleted_queue_ends_a_viewer_and_not_a_service(run: Run, channel: Channel) -> None:
    consumers = {script: run(script).expect_ready() for script in QUEUE_OF}
    for queue in QUEUE_OF.values():
        channel.queue_delete(queue=queue)
    for script, consumer in consumers.items():
        if script in SERVICES:
            consumer.expect("the queue was deleted").expect("[*] Waiting", times=2)
        else:
            fails_with_one_line(consumer, "ConsumerCancelled")


def test_services_come_back_when_tls_handshakes_were_reset(
    run: Run, own_broker: OwnBroker, channel: Channel, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_bytes(own_broker.authority)
    with Network(own_broker.tls_url) as network:
        url = f"{network.url}?ssl_options={{'cafile':'{authority}'}}"
        services = {script: run(script, url=url).expect_ready() for script in SERVICES}
        network.mode = "reset"
        network.cut()
        for service in services.values():
            service.expect("Connection reset by peer")
        network.mode = "open"
        for script, service in services.items():
            publish(channel, script, b"1")
            service.expect("[*] Waiting", times=2).expect(DONE[script])


def test_a_network_that_goes_silent(run: Run, broker: Broker) -> None:
    with Network(broker.url) as network:
        # pika looks for heartbeats 5 s after one is due; a minute is what RabbitMQ proposes.
        url = f"{network.url}?heartbeat=1"
        consumers = {s: run(*command(s), url=url).expect_ready() for s in CONSUMERS}
        network.mode = "silent"
        each_fails_with_one_line(
            run, f"{network.url}?stack_timeout=1", ONE_OF_EACH, "AMQPConnectorStackTimeout"
        )
        for script, consumer in consumers.items():
            if script in SERVICES:
                consumer.expect("Connection lost: AMQPHeartbeatTimeout")
            else:
                fails_with_one_line(consumer, "AMQPHeartbeatTimeout")
        network.mode = "open"
        network.cut()
        for script in SERVICES:
            consumers[script].expect("[*] Waiting", times=2)


def in_use(process: psutil.Process) -> tuple[int, int, int]:
    """Return how many threads, file descriptors and bytes of memory a process has."""
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_a_hundred_lost_connections_leave_nothing_behind(
    run: Run, broker: Broker, channel: Channel
) -> None:
    with contextlib.ExitStack() as networks:
        started = []
        for script in SERVICES:
            network = networks.enter_context(Network(broker.url))
            service = run(*after(NO_PAUSES), script, url=network.url).expect_ready()
            publish(channel, script, b"1")  # the thread for the work is there
            service.expect(DONE[script])
            started.append((script, network, service, psutil.Process(service.process.pid)))

        def lose(network: Network, times: int) -> None:
            network.watch(spec.Basic.ConsumeOk, then="cut")
            network.cut()
            wait_until(lambda: network.seen >= times, "the lost connections", seconds=120)
            network.watch(spec.Basic.ConsumeOk)
            wait_until(lambda: network.seen, "a connection that stays")

        for script, network, service, process in started:
            lose(network, 20)  # until Python has all the memory that it wants
            before = in_use(process)
            lose(network, 100)
            threads, files, memory = in_use(process)
            assert (threads, files) == before[:2]
            assert memory < before[2] + 2_000_000
            publish(channel, script, b"1")
            service.expect(DONE[script], times=2)


def test_serve_may_be_called_again(
    run: Run, broker: Broker, channel: Channel, unused_port: int
) -> None:
    """As by a program of the reader's own that starts before the broker."""
    for script in SERVICES:
        program = f"""
import sys, pika
sys.stdout.reconfigure(line_buffering=True)
from {script.removesuffix(".py").replace("/", ".")} import serve
try:
    serve(pika.URLParameters("amqp://localhost:{unused_port}/%2F"))
except pika.exceptions.AMQPConnectionError:
    print("refused")
serve(pika.URLParameters({broker.url!r}))
"""
        service = run("-c", program).expect("refused").expect_ready()
        publish(channel, script, b"1")
        service.expect(DONE[script])
        service.terminate()
        assert service.wait() == 0


def test_a_connection_is_used_by_one_thread(run: Run, broker: Broker) -> None:
    consumers = {s: run(*after(WATCH_THREADS), *command(s)).expect_ready() for s in CONSUMERS}
    for script in PRODUCERS:
        producer = run(*after(WATCH_THREADS), *command(script))
        assert producer.wait() == 0
        assert producer.error == []
    for script, consumer in consumers.items():
        consumer.expect("fib(30)" if script == SERVER else "Hello World!")
        consumer.terminate()
        consumer.wait()
        assert consumer.error == []


# How long a sender waits.


def test_no_sender_waits_for_ever(run: Run, own_broker: OwnBroker, variant: Variant) -> None:
    # The limit on a confirm is one second here, rather than thirty.
    hasty = variant(NEW_TASK, ("max(30, ", "max(1, "))
    blocked = dict.fromkeys(PRODUCERS, f"{own_broker.url}?blocked_connection_timeout=1")
    with own_broker.blocking_publishers():
        forever = run("part_2/steps/new_task_3.py")
        started = [run(*command(script), url=url) for script, url in blocked.items()]
        patient = run(hasty, url=f"{own_broker.url}?blocked_connection_timeout=3")
        for terminal in started:
            fails_with_one_line(terminal, "ConnectionBlockedTimeout")
        fails_with_one_line(patient, "ConnectionBlockedTimeout")
        assert forever.process.poll() is None
    assert forever.wait() == 0  # the step before waits for as long as it takes
    assert forever.messages == ["Sent 'Hello World!'"]


def test_the_limit_on_a_confirm_is_for_the_confirm_alone(
    run: Run, broker: Broker, variant: Variant, unused_port: int
) -> None:
    hasty = variant(NEW_TASK, ("max(30, 1 + (parameters.blocked_connection_timeout or 0))", "1"))
    several = "?connection_attempts=3&retry_delay=1"
    refused = run(hasty, url=f"amqp://localhost:{unused_port}/%2F{several}")
    # The broker does not answer the declaration; or it has the task, and its confirm gets lost.
    for last in (spec.Channel.OpenOk, spec.Queue.DeclareOk):
        with Network(broker.url) as network:
            network.watch(last, then="silent")
            fails_with_one_line(
                run(hasty, url=network.url), "TimeoutError", "may have been sent or not"
            )
    fails_with_one_line(refused, "Connection refused")
