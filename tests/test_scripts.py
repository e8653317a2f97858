"""What holds for every script: each part_*/*.py that is there is found and tried."""

import ast
import contextlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from testbed.broker import EXCHANGES, QUEUES, Broker, OwnBroker
from testbed.settings import free_ports
from testbed.terminal import REPOSITORY, Terminal, into_file, script_environment
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.test_part_3 import file_has
from tools.readme import definition

SCRIPTS = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("part_*/*.py"))
SOURCES = {script: (REPOSITORY / script).read_text(encoding="utf-8") for script in SCRIPTS}

# What a script is, it says itself: a consumer consumes until it is ended, a service comes back.
CONSUMERS = [script for script in SCRIPTS if "start_consuming()" in SOURCES[script]]
PRODUCERS = [script for script in SCRIPTS if script not in CONSUMERS]
SERVICES = [script for script in CONSUMERS if "Trying again" in SOURCES[script]]
VIEWERS = [script for script in CONSUMERS if script not in SERVICES]

# What a script waits for or sends to: a queue, or an exchange.
QUEUE_OF, EXCHANGE_OF = (
    {
        script: found[1]
        for script, source in SOURCES.items()
        if (found := re.search(rf'^{constant} = "(\w+)"$', source, re.MULTILINE))
    }
    for constant in ("QUEUE", "EXCHANGE")
)
# What it declares under that name. Who only sends to a queue of somebody else's declares none.
DECLARE = re.compile(r"_declare\((queue=QUEUE|exchange=EXCHANGE)")

# No part of it needs to be quoted in a shell, and each would break an address.
SECRET = "pä/ss:w@rd%?#"  # noqa: S105 - of nobody


def command(script: str) -> list[str]:
    """Return the shortest command line of a script: its path, and an argument if it needs one."""
    return [script, "some.key"] if 'nargs="+"' in SOURCES.get(script, "") else [script]


def publish(channel: BlockingChannel, script: str, body: bytes) -> None:
    """Send a message that the script will get."""
    queue = QUEUE_OF.get(script)
    channel.basic_publish(
        exchange="" if queue else EXCHANGE_OF[script],
        routing_key=queue or "some.key",
        body=body,
        properties=BasicProperties(reply_to="nobody"),
    )


def each_fails_with_one_line(run: Run, url: str, scripts: list[str], *clues: str) -> None:
    """Assert that each script says in one line on stderr what is wrong, and exits with 1."""
    terminals = [run(*command(script), url=url) for script in scripts]
    for terminal in terminals:
        assert terminal.wait(30) == 1, terminal.command
        assert len(terminal.error) == 1, terminal.command
        assert terminal.error[0].startswith(" [!] ")
        assert [clue for clue in clues if clue not in terminal.error[0]] == []
        assert not any("Sent" in line or "Waiting" in line for line in terminal.out)
        printed = "\n".join([*terminal.out, *terminal.error])
        assert [secret for secret in (SECRET, quote(SECRET, safe="")) if secret in printed] == []


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


# In this order, so that a reader sees at once what is new in the next part.
SHAPE = (ast.Import | ast.ImportFrom, ast.Assign, ast.FunctionDef | ast.ClassDef, ast.If)


def test_all_scripts_have_the_same_shape() -> None:
    for script, source in SOURCES.items():
        tree = ast.parse(source)
        assert ast.get_docstring(tree), script
        ranks = [
            next(n for n, kind in enumerate(SHAPE) if isinstance(node, kind))
            for node in tree.body[1:]
        ]
        assert ranks == sorted(ranks), script
        *_, main, guard = tree.body
        assert ast.unparse(guard) == "if __name__ == '__main__':\n    main()", script
        assert isinstance(main, ast.FunctionDef)
        assert main.name == "main"
        assert (main.end_lineno or 0) - main.lineno < 35, script
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert [f.name for f in functions if not f.returns and f.name != "__init__"] == [], script
        # A service has to come back, and a class is for other programs to use: these earn more.
        long = script in SERVICES or any(isinstance(node, ast.ClassDef) for node in tree.body)
        own, end, same_in_all = source.partition("def goodbye(")
        assert end, script
        assert len(own.splitlines()) <= (155 if long else 55), script
        assert len(same_in_all.splitlines()) <= 37, script


def test_pika_is_called_with_keywords() -> None:
    methods = {name for name in vars(BlockingChannel) if not name.startswith("_")}
    positional = [
        f"{script}:{call.lineno}"
        for script, source in SOURCES.items()
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and call.args
        if isinstance(call.func, ast.Attribute) and call.func.attr in methods
    ]
    assert positional == []


def test_what_is_not_about_messaging_is_the_same_in_all() -> None:
    assert len({definition(source, "goodbye") for source in SOURCES.values()}) == 1
    tails = [source.partition("    signal.signal(signal.SIGINT")[2] for source in SOURCES.values()]
    # Each calls a function of its own, and the RPC client has errors of its own.
    own_call = re.compile(r"(?<=    try:\n)        (?!pika)[a-z]+\(.*\)\n")
    own_errors = re.compile(r"    except \(RpcError.*\n.*\n")
    assert all(tails)
    assert len({own_errors.sub("", own_call.sub("", tail)) for tail in tails}) == 1


def test_help_says_how_to_call_it(run: Run, unused_port: int) -> None:
    nobody = address(f"localhost:{unused_port}")
    for script, terminal in [(script, run(script, "--help", url=nobody)) for script in SCRIPTS]:
        assert terminal.wait() == 0
        said = "\n".join(terminal.out)
        assert f"python {script}" in said
        partners = [other for other in SCRIPTS if Path(other).parent == Path(script).parent]
        assert [partner for partner in partners if Path(partner).name not in said] == []
        assert terminal.error == []


def test_uv_runs_the_bare_file() -> None:
    # The same each time, since uv keeps an environment for each path.
    folder = Path(sys.prefix, "bare")
    folder.mkdir(exist_ok=True)
    # setup.sh had uv get pika into this folder.
    environment = script_environment("") | {"UV_CACHE_DIR": f"{sys.prefix}/uv"}
    uv = [f"{sys.prefix}/bin/uv", "run", "--offline", "--python", sys.executable]
    with contextlib.ExitStack() as processes:
        started = {
            script: processes.enter_context(
                subprocess.Popen(
                    [*uv, shutil.copy(REPOSITORY / script, folder), "--help"],
                    cwd=folder,
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for script in SCRIPTS
        }
        for script, process in started.items():
            assert f"python {script}" in process.communicate()[0]
            assert process.returncode == 0


def test_wrong_arguments(run: Run) -> None:
    wrong = [run(*command(script), "--nonsense") for script in SCRIPTS]
    missing = [run(script) for script in SCRIPTS if len(command(script)) > 1]
    assert len(missing) == 2
    for terminal in wrong + missing:
        assert terminal.wait() == 2
        assert terminal.out == []
        assert terminal.error[0].startswith("usage: ")


@pytest.mark.parametrize("unset", [None, ""])
def test_without_an_address_it_is_the_default_one(
    monkeypatch: pytest.MonkeyPatch, unset: str | None
) -> None:
    monkeypatch.delenv("RABBITMQ_URL", raising=False)
    if unset is not None:
        monkeypatch.setenv("RABBITMQ_URL", unset)
    addresses = {runpy.run_path(str(REPOSITORY / script))["RABBITMQ_URL"] for script in SCRIPTS}
    assert addresses == {"amqp://guest:guest@localhost:5672/%2F"}


def test_the_broker_is_down(run: Run, unused_port: int) -> None:
    clues = ("No connection", "Connection refused", "Is RabbitMQ up?")
    each_fails_with_one_line(run, address(f"localhost:{unused_port}"), SCRIPTS, *clues)


def test_the_host_is_unknown(run: Run) -> None:
    clues = ("No connection", "gaierror", "RABBITMQ_URL")
    each_fails_with_one_line(run, address("nowhere.invalid"), SCRIPTS, *clues)


def test_the_password_is_wrong(run: Run, broker: Broker) -> None:
    clues = ("ACCESS_REFUSED", "RABBITMQ_URL")
    each_fails_with_one_line(run, address(host_of(broker)), SCRIPTS, *clues)


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


def test_the_virtual_host_is_missing_or_not_the_logins(
    run: Run, own_broker: OwnBroker, limited: str
) -> None:
    clues = ("No connection", "RABBITMQ_URL")
    url = address(host_of(own_broker), login="limited", virtual_host="nowhere")
    each_fails_with_one_line(run, url, SCRIPTS, "NOT_ALLOWED - vhost nowhere", *clues)
    each_fails_with_one_line(run, limited, SCRIPTS, "NOT_ALLOWED - access to vhost", *clues)


def test_a_login_is_refused_its_permissions(run: Run, own_broker: OwnBroker, limited: str) -> None:
    # To declare a queue or an exchange takes the permission to configure it.
    permit(own_broker, configure="^$", write=".*", read=".*")
    each_fails_with_one_line(run, limited, SCRIPTS, "Refused", "ACCESS_REFUSED")

    # To consume takes the permission to read from the queue; to bind, from the exchange.
    permit(own_broker, configure=".*", write=".*", read="^$")
    readers = [script for script in SCRIPTS if "basic_consume(" in SOURCES[script]]
    assert set(CONSUMERS) < set(readers)
    each_fails_with_one_line(run, limited, readers, "Refused", "ACCESS_REFUSED")

    # Consuming is the last that a consumer does before it says that it waits.
    permit(own_broker, configure=".*", write=".*", read="^(.*_)?logs$")
    each_fails_with_one_line(
        run, limited, CONSUMERS, "Refused", "ACCESS_REFUSED", "access to queue"
    )

    # To publish takes the permission to write to the exchange; to bind, to the queue.
    permit(own_broker, configure=".*", write="^$", read=".*")
    writers = [s for s in SCRIPTS if s in EXCHANGE_OF or s in PRODUCERS]
    # RabbitMQ refuses a message whenever it comes to it, which closes the channel. Who waits for an
    # answer meanwhile sees that, and not the reason.
    waiting = [script for script in writers if "TimeoutError" in SOURCES[script]]
    refused = [script for script in writers if script not in waiting]
    each_fails_with_one_line(run, limited, refused, "Refused", "ACCESS_REFUSED")
    each_fails_with_one_line(run, limited, waiting, "Refused", "a request was refused")


def test_a_service_that_may_not_answer_says_so(
    run: Run, own_broker: OwnBroker, limited: str, channel: BlockingChannel
) -> None:
    permit(own_broker, configure=".*", write="^$", read=".*")
    answering = [script for script in SERVICES if "basic_publish(" in SOURCES[script]]
    assert answering
    for script in answering:
        service = run(script, url=limited).expect_ready()
        publish(channel, script, b"1")
        assert service.wait() == 1
        assert len(service.error) == 1
        assert "Refused" in service.error[0]
        assert "ACCESS_REFUSED" in service.error[0]
        own_broker.wait_for_ready(QUEUE_OF[script], 1)  # for one that may


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
    started = [
        *((run(*command(script), url="localhost"), "IndexError") for script in SCRIPTS),
        *((run(*command(SCRIPTS[0]), url=url), why) for url, why in MALFORMED.items()),
    ]
    for terminal, why in started:
        assert terminal.wait(30) == 1
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
    declaring = [script for script in SCRIPTS if DECLARE.search(SOURCES[script])]
    assert [QUEUE_OF[script] for script in SCRIPTS if script not in declaring] == ["rpc_queue"]
    each_fails_with_one_line(run, broker.url, declaring, "PRECONDITION_FAILED - inequivalent arg")


ENDS = pytest.mark.parametrize("end", [Terminal.ctrl_c, Terminal.terminate])


@ENDS
def test_a_waiting_consumer_ends_with_a_goodbye(run: Run, end: Callable[[Terminal], None]) -> None:
    consumers = [run(*command(script)) for script in CONSUMERS]
    for consumer in consumers:
        end(consumer.expect_ready())
    for consumer in consumers:
        assert consumer.wait() == 0, consumer.command
        assert consumer.out[1:] == [" [*] Goodbye"]
        assert consumer.error == []


def at_work(variant: Variant, script: str, statement: str) -> str:
    """Return the path of a copy of a service that does that at the beginning of each task."""
    begin = re.compile(r"connection_lock\.release\(\).*\n( +)try:\n")
    (found,) = begin.finditer(SOURCES[script])
    return variant(script, (found[0], f"{found[0]}{found[1]}    {statement}\n"))


@pytest.mark.parametrize(
    "error", ["socket.gaierror", "BrokenPipeError", "pika.exceptions.AMQPError"]
)
def test_an_error_of_the_task_is_not_taken_for_one_of_the_connection(
    run: Run, broker: Broker, channel: BlockingChannel, variant: Variant, error: str
) -> None:
    services = {script: run(at_work(variant, script, f"raise {error}")) for script in SERVICES}
    for script, service in services.items():
        service.expect_ready()
        publish(channel, script, b"1")
        assert service.wait() == 1
        assert service.error[-1].startswith("RuntimeError: the ")
        broker.wait_for_ready(QUEUE_OF[script], 1)


@ENDS
def test_a_service_ended_at_work_loses_nothing(
    run: Run,
    broker: Broker,
    channel: BlockingChannel,
    variant: Variant,
    end: Callable[[Terminal], None],
) -> None:
    wait = "print(' at work', flush=True); time.sleep(60)"
    services = {script: run(at_work(variant, script, wait)).expect_ready() for script in SERVICES}
    for script, service in services.items():
        publish(channel, script, b"1")
        end(service.expect("at work"))
        assert service.wait() == 0
        assert service.out[-1] == " [*] Goodbye"
        assert service.error == []
        broker.wait_for_ready(QUEUE_OF[script], 1)


def before(script: str, method: str, statement: str) -> tuple[str, str]:
    """Return for a `variant` what puts a statement before the script's one call of the method."""
    call = re.compile(rf"^( +)(?:self\.)?channel\.{method}\(.*\n", re.MULTILINE)
    (found,) = call.finditer(SOURCES[script])
    return found[0], f"{found[1]}{statement}\n{found[0]}"


def interrupted(variant: Variant, script: str, method: str) -> list[str]:
    """Return the command line of a copy that gets a Ctrl+C while pika writes for that method."""
    guard = 'if __name__ == "__main__":'
    patch = f"""
def interrupt_next_write():
    from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter as adapter

    set_writer = adapter.set_writer

    def interrupted_set_writer(*arguments):
        adapter.set_writer = set_writer
        signal.raise_signal(signal.SIGINT)
        set_writer(*arguments)

    adapter.set_writer = interrupted_set_writer

{guard}"""
    edits = (before(script, method, "interrupt_next_write()"), (guard, patch))
    return [variant(script, *edits), *command(script)[1:]]


def test_ctrl_c_in_the_middle_of_pikas_work(
    run: Run, channel: BlockingChannel, variant: Variant
) -> None:
    # An exception would leave pika with what it never sends, and waiting for the answer.
    methods = dict.fromkeys(PRODUCERS, "basic_publish")
    methods |= dict.fromkeys(CONSUMERS, "basic_consume")
    at_once = [run(*interrupted(variant, script, methods[script])) for script in SCRIPTS]
    services = {script: run(*interrupted(variant, script, "basic_ack")) for script in SERVICES}
    for script, service in services.items():
        service.expect_ready()
        publish(channel, script, b"4321")
    for terminal in (*at_once, *services.values()):
        assert terminal.wait() == 0, terminal.command
        assert terminal.out[-1] == " [*] Goodbye"
        assert terminal.error == []
        assert not any("Sent" in line for line in terminal.out)


def test_a_body_may_be_any_bytes(run: Run, channel: BlockingChannel) -> None:
    for script in CONSUMERS:
        consumer = run(*command(script)).expect_ready()
        for body in (b"", bytes(range(256)), b"4321"):
            publish(channel, script, body)
        consumer.expect("4321").ctrl_c()
        assert consumer.wait() == 0
        assert consumer.error == []


def test_an_argument_that_is_not_text_is_refused(run: Run) -> None:
    no_text = os.fsdecode(b"\xff\xfe")
    taking_words = [script for script in PRODUCERS if '"words"' in SOURCES[script]]
    taking_keys = [
        script for script in SCRIPTS if len(command(script)) > 1 or "KEY" in SOURCES[script]
    ]
    assert taking_words
    assert taking_keys
    for refused in (
        *(run(script, "some.key", no_text) for script in taking_words),
        *(run(script, no_text, "some text") for script in taking_keys),
    ):
        assert refused.wait() == 1
        assert len(refused.error) == 1
        assert refused.error[0].startswith(" [!] Refused: UnicodeEncodeError")
        assert not any("Sent" in line or "Waiting" in line for line in refused.out)


def test_the_ready_line_reaches_a_file_at_once(broker: Broker, tmp_path: Path) -> None:
    for script in CONSUMERS:
        log = tmp_path / Path(script).name
        with into_file(log, broker.url, *command(script)):
            wait_until(partial(file_has, log, "[*] Waiting"), "the ready line in the file")


def test_a_lost_connection_ends_a_viewer_and_not_a_service(run: Run, own_broker: OwnBroker) -> None:
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
    consumers = {script: run(script) for script in CONSUMERS if script in QUEUE_OF}
    for consumer in consumers.values():
        consumer.expect_ready()
    assert len(consumers) == len(QUEUES)
    for queue in QUEUES:
        channel.queue_delete(queue=queue)
    for script, consumer in consumers.items():
        if script in SERVICES:
            consumer.expect("somebody has deleted the queue").expect("[*] Waiting", times=2)
        else:
            assert consumer.wait() == 1, script
            assert len(consumer.error) == 1
            assert "somebody has deleted the queue" in consumer.error[0]


def test_a_reader_that_ends_is_no_error(
    broker: Broker, channel: BlockingChannel, variant: Variant
) -> None:
    """As in `python part_1/receive.py | head -1`."""
    with contextlib.ExitStack() as processes:

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = processes.enter_context(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=REPOSITORY,
                    env=script_environment(broker.url),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            processes.callback(process.kill)
            return process

        def stop_reading(process: subprocess.Popen[bytes], first: bytes = b"") -> None:
            assert process.stdout
            assert first in (process.stdout.readline() if first else b"")
            process.stdout.close()

        def each_ends_quietly(started: dict[str, subprocess.Popen[bytes]]) -> None:
            for script, process in started.items():
                assert process.wait(15) == 0, script
                assert process.stderr
                assert process.stderr.read() == b"", script

        consumers = {script: start(*command(script)) for script in CONSUMERS}
        for consumer in consumers.values():
            stop_reading(consumer, b"[*] Waiting")
        for script in CONSUMERS:
            publish(channel, script, b"1")
        each_ends_quietly(consumers)
        broker.wait_for_ready("task_queue", 1)  # what could not be shown was not acknowledged

        producers = {script: start(*command(script)) for script in PRODUCERS}
        for producer in producers.values():
            stop_reading(producer)
        each_ends_quietly(producers)

        # Nor is it one when Ctrl+C cannot say goodbye, in the middle of pika's work.
        ended = {s: start(*interrupted(variant, s, "basic_consume")) for s in CONSUMERS}
        for consumer in ended.values():
            stop_reading(consumer)
        each_ends_quietly(ended)


def test_a_broker_that_blocks_publishers(
    run: Run, own_broker: OwnBroker, channel: BlockingChannel, variant: Variant
) -> None:
    consumers = {script: run(*command(script)) for script in CONSUMERS}
    for consumer in consumers.values():
        consumer.expect_ready()
    late = "part_2/worker.py"
    consumers.pop(late).kill()
    publish(channel, late, b"sent before")

    impatient = [variant(script, ("_timeout or 30", "_timeout or 1")) for script in PRODUCERS]
    say = "print('publishing', flush=True)"
    patient = [variant(script, before(script, "basic_publish", say)) for script in PRODUCERS]
    own_broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        blocked = [run(script).expect("publishing") for script in patient]
        each_fails_with_one_line(run, own_broker.url, impatient, "ConnectionBlockedTimeout")
        # Who would wait for longer need not, and hears Ctrl+C at once.
        for terminal in blocked:
            terminal.ctrl_c()
            assert terminal.wait(5) == 0, terminal.command
            assert terminal.out[-1] == " [*] Goodbye"
            assert terminal.error == []
        # Who only receives is not blocked.
        consumers[late] = run(late).expect("sent before").expect("Done")
    finally:
        own_broker.ctl("set_vm_memory_high_watermark", "0.4")
    for script, consumer in consumers.items():
        publish(channel, script, b"4321")
        consumer.expect("4321")
        assert consumer.error == []


def has_stopped(process: psutil.Process) -> bool:
    """Return whether a SIGSTOP has stopped the process."""
    return bool(process.status() == psutil.STATUS_STOPPED)


def test_a_network_that_goes_silent(run: Run, own_broker: OwnBroker, variant: Variant) -> None:
    # Both notice it by heartbeats, pika 5 s after two of them are due; a minute by default. But
    # RabbitMQ must not do so while producers wait for the others to start.
    url = f"{own_broker.url}?heartbeat=3"
    consumers = {script: run(*command(script), url=url) for script in CONSUMERS}
    # Each producer stops when it is about to publish, and goes on when nobody is there any more.
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    producers = {
        script: run(variant(script, before(script, "basic_publish", stop)), url=url)
        for script in PRODUCERS
    }
    # pika waits for a confirm without a limit, so that who wants one has a limit of its own.
    alarm = ("threading.Timer(60,", "threading.Timer(8,")
    hasty = [
        run(variant(script, before(script, "basic_publish", stop), alarm), url=own_broker.url)
        for script in PRODUCERS
        if "confirm_delivery()" in SOURCES[script]
    ]
    assert hasty
    for producer in (*producers.values(), *hasty):
        process = psutil.Process(producer.process.pid)
        wait_until(partial(has_stopped, process), "a producer to be about to publish")
    for consumer in consumers.values():
        consumer.expect_ready()

    own_broker.pause()
    try:
        for producer in (*producers.values(), *hasty):
            producer.process.send_signal(signal.SIGCONT)
        for producer in hasty:
            assert producer.wait(20) == 1
            assert producer.out == []
            assert len(producer.error) == 1
            assert producer.error[0].startswith(" [!] No confirm in 60 s")
        each_fails_with_one_line(
            run, f"{own_broker.url}?stack_timeout=1", SCRIPTS, "AMQPConnectorStackTimeout"
        )
        for script in PRODUCERS + VIEWERS:
            terminal = {**producers, **consumers}[script]
            assert terminal.wait(30) == 1, script
            assert len(terminal.error) == 1, script
            assert "No connection: AMQPHeartbeatTimeout" in terminal.error[0]
            assert not any("Sent" in line for line in terminal.out)
        for script in SERVICES:
            consumers[script].expect("Connection lost: AMQPHeartbeatTimeout")
    finally:
        own_broker.resume()
    for script in SERVICES:
        consumers[script].expect("[*] Waiting", times=2, seconds=30)
