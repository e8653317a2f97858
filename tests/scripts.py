"""The twelve scripts: what each of them is, how to call it, and how to reach it."""

import re
from pathlib import Path

from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.programs import CLIENT, NEW_TASK, SERVER, WORKER
from testbed.terminal import REPOSITORY, Terminal
from testbed.waiting import wait_until
from tests.conftest import Run, Variant

SENDERS = (
    "part_1/sender.py",
    "part_2/new_task.py",
    "part_3/emit_log.py",
    "part_4/emit_log_direct.py",
    "part_5/emit_log_topic.py",
)
#: They end when they are told to, or when they lose their connection.
VIEWERS = (
    "part_1/receive.py",
    "part_3/receive_logs.py",
    "part_4/receive_logs_direct.py",
    "part_5/receive_logs_topic.py",
)
#: They finish what they have when they are told to end, and outlive a lost connection.
SERVICES = (WORKER, SERVER)
PRODUCERS = (*SENDERS, CLIENT)
CONSUMERS = (*VIEWERS, *SERVICES)
SCRIPTS = (*PRODUCERS, *CONSUMERS)
ONE_OF_EACH = ("part_1/sender.py", NEW_TASK, CLIENT, "part_4/receive_logs_direct.py", *SERVICES)

SOURCES = {script: (REPOSITORY / script).read_text(encoding="utf-8") for script in SCRIPTS}

#: What a consumer takes its messages from.
QUEUE_OF = {"part_1/receive.py": "hello", WORKER: "task_queue", SERVER: "rpc_queue"}
EXCHANGE_OF = {
    "part_3/receive_logs.py": "logs",
    "part_4/receive_logs_direct.py": "direct_logs",
    "part_5/receive_logs_topic.py": "topic_logs",
}
#: Those that cannot be called without an argument: a key.
WITH_KEY = tuple(script for script in SCRIPTS if Path(script).parent.name in ("part_4", "part_5"))
#: Those that take a message's words.
WITH_WORDS = SENDERS[1:]

#: The function of each service that does the work, and that is in a thread of its own.
WORK_OF = {WORKER: "work", SERVER: "answer_to"}
#: What each says, on stderr, when it is told to stop while it has something to finish.
FINISHING = {
    script: f" [*] Finishing this {what} first. To end at once press CTRL+C again"
    for script, what in ((WORKER, "task"), (SERVER, "request"))
}
#: What each prints for a message that asks for fib(1).
DONE = {WORKER: " [x] Done", SERVER: " [.] fib(1)"}


def command(script: str) -> list[str]:
    """Return the shortest command line of a script: its path, and a key if it needs one."""
    return [script, "some.key"] if script in WITH_KEY else [script]


def publish(
    channel: Channel, script: str, body: bytes, properties: BasicProperties | None = None
) -> None:
    """Send a message that the consumer will get."""
    queue = QUEUE_OF.get(script)
    channel.basic_publish(
        exchange="" if queue else EXCHANGE_OF[script],
        routing_key=queue or "some.key",
        body=body,
        properties=properties or BasicProperties(reply_to="nobody"),
    )


def publish_keys(channel: Channel, exchange: str, *keys: str) -> None:
    """Send a message for each key, that key its body too."""
    for key in keys:
        channel.basic_publish(exchange=exchange, routing_key=key, body=key.encode())


def queue_bound_to(channel: Channel, exchange: str, routing_key: str = "", **arguments: str) -> str:
    """Return the name of a new queue, bound to the exchange."""
    queue = str(channel.queue_declare(queue="", exclusive=True).method.queue)
    channel.queue_bind(queue=queue, exchange=exchange, routing_key=routing_key, arguments=arguments)
    return queue


def page_commands(*words: str) -> list[str]:
    """Return the lines of the shell blocks of the recipes' page in which the words stand."""
    page = (REPOSITORY / "recipes/README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    found = [line for line in lines if all(word in line for word in words)]
    assert found, f"the page has no command with {words}"
    return found


def take(channel: Channel, queue: str, *, auto_ack: bool = True) -> tuple[BasicProperties, bytes]:
    """Take a message out of the queue as soon as there is one; return its properties and body."""

    def get() -> tuple[BasicProperties, bytes] | None:
        _, properties, body = channel.basic_get(queue=queue, auto_ack=auto_ack)
        return None if properties is None or body is None else (properties, body)

    return wait_until(get, f"a message in {queue}")


def take_request(channel: Channel, *, auto_ack: bool = True) -> BasicProperties:
    """Take a request out of its queue, as a server does, and return its properties."""
    return take(channel, QUEUE_OF[SERVER], auto_ack=auto_ack)[0]


def answer(
    channel: Channel, request: BasicProperties, body: bytes, kind: str | None = None
) -> None:
    """Answer a request, as rpc_server.py does."""
    channel.basic_publish(
        exchange="",
        routing_key=str(request.reply_to),
        body=body,
        properties=BasicProperties(correlation_id=request.correlation_id, type=kind),
    )


def fails_with_one_line(terminal: Terminal, *clues: str) -> None:
    """Assert that a script says in one line on stderr what is wrong, and exits with 1."""
    assert terminal.wait() == 1, terminal.command
    assert len(terminal.error) == 1, (terminal.command, terminal.error)
    assert terminal.error[0].startswith(" [!] ")
    assert [clue for clue in clues if clue not in terminal.error[0]] == [], terminal.error
    assert not any("Sent" in line for line in terminal.out)


def after(statements: str) -> tuple[str, str]:
    """Return for `run`, before a script, what makes Python begin with those statements."""
    script = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return "-c", f"{statements}\nimport runpy, sys; {script}"


NO_PAUSES = "import time; time.sleep = lambda seconds: None"

#: What has a program say on stderr when it uses a connection in another thread than made it.
WATCH_THREADS = """
import inspect, sys, threading
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

owners = {}

def watched(method):
    def call(self, *args, **kwargs):
        owner = owners.setdefault(getattr(self, "connection", self), threading.get_ident())
        if owner != threading.get_ident():
            print(method.__name__, "used by another thread", file=sys.stderr, flush=True)
        return method(self, *args, **kwargs)
    return call

for kind in (BlockingConnection, BlockingChannel):
    for name, method in list(vars(kind).items()):
        if inspect.isfunction(method) and name not in ("__init__", "add_callback_threadsafe"):
            setattr(kind, name, watched(method))
"""


def beginning(script: str, function: str, statement: str) -> tuple[str, str]:
    """Return for a `variant` what makes a function of the script begin with that statement."""
    definition = rf'^def {function}\(.*?:\n    """.*?"""\n'
    (head,) = re.findall(definition, SOURCES[script], re.MULTILINE | re.DOTALL)
    return head, f"{head}    {statement}\n"


def at_work(script: str, seconds: float) -> tuple[str, str]:
    """Return for a `variant` what makes a service say that it works, and take so long for it."""
    say = f"print(' at work', flush=True); time.sleep({seconds})"
    return beginning(script, WORK_OF[script], say)


def busy_services(
    run: Run, variant: Variant, channel: Channel, seconds: float, url: str = ""
) -> dict[str, Terminal]:
    """Return a worker and a server, each at work for so long, with what was sent to it."""
    services = {s: run(variant(s, at_work(s, seconds)), url=url).expect_ready() for s in SERVICES}
    for script, service in services.items():
        publish(channel, script, b"1")
        service.expect("at work")
    return services
