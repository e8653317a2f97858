"""What each choice costs: the tutorial's scripts and other ways, beside the plainest that will do.

    make bench            within three minutes; writes bench/results.json and the pictures
    make bench QUICK=1    within half a minute, coarser, no cluster; writes to bench/quick/

The variants of a measure run in turn, round after round, on the same broker. What counts is the
ratio within a round, since machines are noisy: its median, and its spread.
"""

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pika
import psutil
from pika.adapters.blocking_connection import BlockingChannel

from bench.plain.rpc_client import PlainRpcClient
from bench.results import FILE, MEASURES, Results, Sample, Task
from part_6.rpc_client import FibonacciRpcClient
from testbed.broker import Broker, NoBrokerError, OwnBroker
from testbed.choice import prepare_cluster
from testbed.programs import (
    HELLO,
    LOGS,
    NEW_TASK,
    RPC_QUEUE,
    SERVER,
    TASK_QUEUE,
    WORKER,
    Programs,
    in_flight,
    publish_tasks,
)
from testbed.running import parser_with_broker, running, running_by_hand
from testbed.terminal import REPOSITORY, into_file, replaced
from testbed.waiting import wait_until

PLAIN_WORKER, PLAIN_SERVER = "bench/plain/worker.py", "bench/plain/rpc_server.py"
PRODUCER, PIPELINED = "bench/plain/producer.py", "bench/plain/pipelined_producer.py"

# The scripts with 50 ms of work for each dot, or each request, so that more fits into the time.
DOT = ('time.sleep(task.count(b"."))', 'time.sleep(0.05 * task.count(b"."))')
REQUEST = (
    "    current, following = 0, 1\n",
    "    time.sleep(0.05)\n    current, following = 0, 1\n",
)
BLIND = ("    channel.basic_qos(prefetch_count=1)", "    # dispatched without a limit;")
HEAVY, LIGHT = "......", "."


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        scale: How much is done in a round, beside a full run.
        rounds: How many rounds there are at the least.
        seconds: For how long there is one more round, as long as one fits in.
    """

    scale: float
    rounds: int
    seconds: float

    def of(self, full: int) -> int:
        """Return how often to do what a full run does so often."""
        return max(round(full * self.scale), 1)


FULL = Size(scale=1, rounds=3, seconds=125)
QUICK = Size(scale=0.25, rounds=1, seconds=15)


@dataclass
class Bench:
    """What to measure on, and how much.

    Attributes:
        broker: It is left clean after each measure.
        size: How much is measured.
        folder: For altered copies of scripts.
        timelines: What the workers of the last `dispatch` did, by variant.
        nodes: In how many nodes a queue can be replicated.
    """

    broker: Broker
    size: Size
    folder: Path
    timelines: dict[str, list[Task]]
    nodes: int

    def altered(self, script: str, *replacements: tuple[str, str]) -> str:
        """Return the path of a copy of the script, with parts of its text replaced."""
        text = (REPOSITORY / script).read_text(encoding="utf-8")
        copy = self.folder / f"altered_{Path(script).name}"
        copy.write_text(replaced(text, *replacements), encoding="utf-8")
        return str(copy)


@contextlib.contextmanager
def logged(broker: Broker, *command: str) -> Iterator[Callable[[str], int]]:
    """Run a consumer; yield what tells how often a text stands in its output so far.

    Its output goes to a file: who reads a pipe along takes time from what is measured.
    """
    with tempfile.TemporaryDirectory(prefix="rabbitmq-tutorial-") as folder:
        log = Path(folder, "log")

        def count(text: str) -> int:
            return log.read_bytes().count(text.encode())

        with into_file(log, broker.url, *command):
            wait_until(lambda: count("[*] "), f"{command[0]} to be ready", pause=0.002)
            yield count


def waiting(channel: BlockingChannel, queue: str) -> int:
    """Return how many messages wait in the queue."""
    return int(channel.queue_declare(queue=queue, passive=True).method.message_count)


def routed_a_second(
    channel: BlockingChannel, queue: str, number: int, exchange: str, routing_key: str
) -> float:
    """Return how many messages a second go from the channel through the exchange to the queue."""
    expected = waiting(channel, queue) + number
    began = time.perf_counter()
    for _ in range(number):
        channel.basic_publish(exchange=exchange, routing_key=routing_key, body=b"A message")
    # A queue answers this before the last messages, if it is asked soon enough.
    wait_until(lambda: waiting(channel, queue) == expected, "the last message", pause=0)
    return number / (time.perf_counter() - began)


def runs_a_second(broker: Broker, times: int, *command: str) -> float:
    """Return how many runs of a program there are in a second, one after the other."""
    began = time.perf_counter()
    for _ in range(times):
        with Programs(broker) as programs:
            if code := programs.start(*command).wait():
                raise RuntimeError(f"{command} ended with exit code {code}")
    return times / (time.perf_counter() - began)


def sent_a_second(
    broker: Broker, seconds: float, *command: str, producers: int = 1, replicas: int = 0
) -> float:
    """Return how many messages a second come to a new, durable queue while producers run.

    The queue is a quorum queue with so many replicas, or a classic one without.
    """
    arguments: dict[str, str | int] = {"x-queue-type": "classic"}
    if replicas:
        arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": replicas}
    with broker.channel() as channel, Programs(broker) as programs:
        channel.queue_declare(queue=TASK_QUEUE, durable=True, arguments=arguments)
        programs.start_ready(producers, *command)
        begin = wait_until(lambda: waiting(channel, TASK_QUEUE), "the first message")
        began = time.perf_counter()
        time.sleep(seconds)  # which is what is measured
        sent = waiting(channel, TASK_QUEUE) - begin
        took = time.perf_counter() - began
    broker.clean()
    return sent / took


def done_a_second(broker: Broker, tasks: int, *command: str) -> float:
    """Return how many of many tasks a worker does in a second."""
    with broker.channel() as channel:
        channel.queue_declare(queue=TASK_QUEUE, durable=True)
        publish_tasks(channel, ["task"] * tasks)
        wait_until(lambda: waiting(channel, TASK_QUEUE) == tasks, "all tasks to be there")
    with logged(broker, *command) as printed:
        begin, began = printed("Done"), time.perf_counter()
        wait_until(lambda: printed("Done") > 0.8 * tasks, "the tasks", seconds=60, pause=0.002)
        done, took = printed("Done") - begin, time.perf_counter() - began
    broker.clean()
    # On a busy machine most may be done before one comes to look.
    return done / took if begin < tasks / 2 else done_a_second(broker, 2 * tasks, *command)


def counted(number: int, what: str) -> str:
    """Return such as "1 worker" or "2 workers"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def connections(bench: Bench) -> Iterator[Sample]:
    """Part I: each message with a program, with a connection, or with nothing of its own."""
    times = bench.size.of(3)
    a_program = runs_a_second(bench.broker, times, "part_1/sender.py")
    yield Sample("connections", "sender.py, a program for each message", a_program)
    times = bench.size.of(40)
    began = time.perf_counter()
    for _ in range(times):
        with bench.broker.channel() as channel:
            channel.queue_declare(queue=HELLO)
            channel.basic_publish(exchange="", routing_key=HELLO, body=b"A message")
    a_connection = times / (time.perf_counter() - began)
    yield Sample("connections", "a connection for each message", a_connection)
    with bench.broker.channel() as channel:
        for_all = routed_a_second(channel, HELLO, bench.size.of(4000), "", HELLO)
    yield Sample("connections", "one channel for all", for_all)


def new_task(bench: Bench) -> Iterator[Sample]:
    """Part II: the whole program, without and with a confirm."""
    programs = (
        ("plain, not confirmed", "bench/plain/sender.py"),
        ("new_task.py, confirmed", NEW_TASK),
    )
    for _ in range(bench.size.of(3)):
        # In turn, and neither always before the other.
        for name, program in (*programs, *reversed(programs)):
            yield Sample("new_task", name, runs_a_second(bench.broker, 1, program, "A task"))


def sending(bench: Bench) -> Iterator[Sample]:
    """Part II: persistence and confirms, and confirms that are not waited for one by one."""
    for name, *command in (
        ("transient", PRODUCER),
        ("persistent", PRODUCER, "persistent"),
        ("persistent, confirmed one by one", PRODUCER, "persistent", "confirmed"),
        ("persistent, confirmed, 100 in flight", PIPELINED, "100"),
    ):
        speed = sent_a_second(bench.broker, 0.6 * bench.size.scale, *command)
        yield Sample("sending", name, speed)


def producers(bench: Bench) -> Iterator[Sample]:
    """Part II: confirms for several producers at once."""
    for number in (1, 2, 4, 8):
        command = (PRODUCER, "persistent", "confirmed")
        seconds = 0.6 * bench.size.scale
        speed = sent_a_second(bench.broker, seconds, *command, producers=number)
        yield Sample("producers", counted(number, "producer"), speed)


def queue_types(bench: Bench) -> Iterator[Sample]:
    """A queue that is replicated, or could be."""
    variants = {"classic queue": 0, "quorum queue on one node": 1, "quorum queue on three nodes": 3}
    for measure, *command in (
        ("queue_types", PRODUCER, "persistent", "confirmed"),
        ("queue_types_in_flight", PIPELINED, "100"),
    ):
        for name, replicas in variants.items():
            if replicas <= bench.nodes:
                seconds = 0.6 * bench.size.scale
                speed = sent_a_second(bench.broker, seconds, *command, replicas=replicas)
                yield Sample(measure, name, speed)


def working(bench: Bench) -> Iterator[Sample]:
    """Part II: the worker, and the prefetch count, on tasks that are nothing but overhead."""
    tasks = bench.size.of(2000)
    for name, *command in (
        ("plain, prefetch 1", PLAIN_WORKER, "1"),
        ("worker.py, prefetch 1", WORKER),
        ("plain, prefetch 10", PLAIN_WORKER, "10"),
        ("plain, prefetch 100", PLAIN_WORKER, "100"),
        ("plain, auto_ack", PLAIN_WORKER, "auto_ack"),
    ):
        speed = done_a_second(bench.broker, tasks, *command)
        yield Sample("working", name, speed)


def workers(bench: Bench) -> Iterator[Sample]:
    """Part II: more workers."""
    script = bench.altered(WORKER, DOT)
    done = 0
    with Programs(bench.broker) as programs, bench.broker.channel() as channel:
        for number in (1, 2, 4, 8):
            programs.start_ready(number, script)
            tasks = number * bench.size.of(10)
            began = time.perf_counter()
            publish_tasks(channel, ["."] * tasks)
            done += tasks
            speed = tasks / (programs.wait_for("Done", done) - began)
            yield Sample("workers", counted(number, "worker"), speed)


def dispatch(bench: Bench) -> Iterator[Sample]:
    """Part II: heavy and light tasks in turn, dispatched blindly and fairly."""
    for name, *replacements in (("blind, no limit", BLIND), ("fair, prefetch 1",)):
        script = bench.altered(WORKER, DOT, *replacements)
        with Programs(bench.broker) as programs, bench.broker.channel() as channel:
            programs.start_ready(2, script)
            began = time.perf_counter()
            publish_tasks(channel, [HEAVY, LIGHT] * 4)
            ended = programs.wait_for("Done", 8)
        bench.timelines[name] = list(timeline(programs, began))
        bench.broker.clean()
        yield Sample("dispatch", name, ended - began)


def timeline(programs: Programs, began: float) -> Iterator[Task]:
    """Return which worker did what when."""
    for number, worker in enumerate(programs.started, start=1):
        lines = [
            (when - began, line)
            for when, terminal, line in programs.printed
            if terminal is worker and "[x]" in line
        ]
        for (begin, received), (end, _) in zip(lines[::2], lines[1::2], strict=True):
            yield Task(number, "heavy" if HEAVY in received else "light", begin, end)


def footprint(bench: Bench) -> Iterator[Sample]:
    """Parts II and VI: a consumer's memory, and the time that it takes to start."""
    for name, *command in (
        ("plain worker", PLAIN_WORKER, "1"),
        ("worker.py", WORKER),
        ("plain server", PLAIN_SERVER),
        ("rpc_server.py", SERVER),
    ):
        with Programs(bench.broker) as programs:
            began = time.perf_counter()
            program = programs.start(*command)
            ready = programs.wait_for("[*] ", 1)
            yield Sample("ready", name, ready - began)
            yield Sample(
                "memory", name, psutil.Process(program.process.pid).memory_info().rss / 1e6
            )


def receivers(bench: Bench) -> Iterator[Sample]:
    """Part III: a copy for each receiver."""
    for number in (1, 8, 64):
        messages = bench.size.of(6400) // number
        with Programs(bench.broker) as programs, bench.broker.channel() as channel:
            copies = str(messages * number)
            programs.start_ready(1, "bench/plain/receivers.py", str(number), copies)
            began = time.perf_counter()
            for _ in range(messages):
                channel.basic_publish(exchange=LOGS, routing_key="", body=b"A message")
            speed = messages / (programs.wait_for("Received all", 1) - began)
        yield Sample("receivers", counted(number, "receiver"), speed)


def routing(bench: Bench) -> Iterator[Sample]:
    """Parts IV and V: the number of bindings that a message's key is compared with."""
    with bench.broker.channel() as channel:
        queue = channel.queue_declare(queue="", exclusive=True).method.queue
        exchanges = {}
        for exchange_type, ending in (("direct", "info"), ("topic", "*")):
            for bindings in (10, 1000):
                name = f"{exchange_type} exchange, {bindings:,} bindings"
                exchanges[name] = f"bench-{exchange_type}-{bindings}"
                channel.exchange_declare(  # gone with the queue
                    exchange=exchanges[name], exchange_type=exchange_type, auto_delete=True
                )
                for number in range(bindings):
                    key = f"service-{number}.{ending}"
                    channel.queue_bind(queue=queue, exchange=exchanges[name], routing_key=key)
        plain = next(iter(exchanges))
        for _ in range(3):
            for name, exchange in exchanges.items():
                messages = bench.size.of(2000)
                speed = routed_a_second(channel, queue, messages, exchange, "service-7.info")
                if name.startswith("direct"):
                    yield Sample("routing", name, speed)
                if name.startswith("topic") or name == plain:
                    yield Sample("topics", name, speed)


def rpc(bench: Bench) -> Iterator[Sample]:
    """Part VI: the client and the server, each beside the plainest one, and calls in flight."""
    calls = bench.size.of(500)
    few = bench.size.of(100)
    with bench.broker.channel() as channel:
        channel.queue_declare(queue=RPC_QUEUE, durable=True)
    plain = PlainRpcClient(bench.broker.url)
    both = (("plain server", PLAIN_SERVER), ("rpc_server.py", SERVER))
    with FibonacciRpcClient(pika.URLParameters(bench.broker.url)) as client, plain.connection:
        # In turn, and neither always before the other.
        for name, script in (*both, *reversed(both), *both):
            with logged(bench.broker, script):
                in_flight(client, few)  # warm
                speed = in_flight(client, calls)
                yield Sample("rpc_server", name, speed)
                if script == SERVER:
                    (one_call,) = calls_a_second(2 * few, client.call)
                    yield Sample("in_flight", "one call at a time", one_call)
                    yield Sample("in_flight", f"{calls} in flight", speed)
                else:
                    speeds = calls_a_second(2 * few, plain.call, client.call)
                    for variant, one in zip(
                        ("plain client", "FibonacciRpcClient"), speeds, strict=True
                    ):
                        yield Sample("rpc_client", variant, one)


def calls_a_second(calls: int, *ways: Callable[[int], int]) -> list[float]:
    """Return how many calls are answered in a second, one after the other, for each way to call.

    After each few calls it is another's turn, so that a machine that is busy for a while is so
    for all of them.
    """
    a_turn = 10
    seconds = dict.fromkeys(ways, 0.0)
    turns = -(-calls // a_turn)
    for turn in range(turns):
        for call in ways if turn % 2 else reversed(ways):
            began = time.perf_counter()
            for _ in range(a_turn):
                call(5)
            seconds[call] += time.perf_counter() - began
    return [turns * a_turn / seconds[call] for call in ways]


def servers(bench: Bench) -> Iterator[Sample]:
    """Part VI: more servers."""
    script = bench.altered(SERVER, REQUEST)
    with (
        Programs(bench.broker) as programs,
        FibonacciRpcClient(pika.URLParameters(bench.broker.url)) as client,
    ):
        for number in (1, 2, 4):
            programs.start_ready(number, script)
            speed = in_flight(client, number * bench.size.of(10))
            yield Sample("servers", counted(number, "server"), speed)


# What needs one broker alone.
ALONE: tuple[Callable[[Bench], Iterator[Sample]], ...] = (
    connections,
    new_task,
    sending,
    producers,
    working,
    workers,
    dispatch,
    footprint,
    receivers,
    routing,
    rpc,
    servers,
)


def measure(
    broker: Broker,
    size: Size,
    tell: Callable[[Sample], None],
    measures: Sequence[Callable[[Bench], Iterator[Sample]]] = ALONE,
    nodes: int = 1,
) -> Results:
    """Measure on the broker, round after round.

    Args:
        broker: Where to measure.
        size: How much.
        tell: Is called with each sample.
        measures: What to measure.
        nodes: How many nodes there are, of which the broker is one.
    """
    results = Results(
        versions={
            "RabbitMQ": broker.version,
            "Python": platform.python_version(),
            "pika": pika.__version__,
        },
        cores=os.cpu_count() or 1,
    )
    began, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="rabbitmq-tutorial-") as folder:
        bench = Bench(broker, size, Path(folder), results.timelines, nodes)
        # One more, as long as it fits in, if it takes no longer than those before it.
        while rounds < size.rounds or (
            (time.monotonic() - began) * (rounds + 1) / rounds < size.seconds
        ):
            for one in measures:
                for sample in one(bench):
                    results.add(sample)
                    tell(sample)
                broker.clean()
            rounds += 1
    return results


def measure_queues(
    broker: Broker, kind: str | None, size: Size, tell: Callable[[Sample], None]
) -> Results:
    """Measure the queue types on a cluster of that kind, or on the broker where there is none."""
    if kind:
        try:
            with running(prepare_cluster(kind)) as cluster:
                node, nodes = cluster.nodes[0], len(cluster.nodes)
                return measure(node, size, tell, [queue_types], nodes)
        except NoBrokerError as error:
            print(f"No queue on three nodes: {error}")
    return measure(broker, size, tell, [queue_types])


def main() -> None:
    """Measure all, print the tables, and write them and the pictures."""
    # Only here: who runs a single measure, as a test does, need not have them.
    from tqdm import tqdm

    from bench.charts import draw

    parser = parser_with_broker(__doc__)
    parser.add_argument("--quick", action="store_true", help="coarser, and not for the README")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    on_cluster = replace(size, seconds=size.seconds / 6)
    file = FILE.parent / "quick" / FILE.name if arguments.quick else FILE
    with (
        running_by_hand(arguments.broker) as broker,
        tqdm(
            total=size.seconds + on_cluster.seconds,
            bar_format="{percentage:3.0f} %|{bar}| {elapsed} {desc}",
        ) as bar,
    ):

        def tell(sample: Sample) -> None:
            bar.n = min(bar.format_dict["elapsed"], bar.total)
            bar.set_description_str(f"{sample.measure}: {sample.variant}")

        results = measure(broker, size, tell)
        kind = arguments.broker if isinstance(broker, OwnBroker) else "url"
        cluster = None if arguments.quick else kind
        # Only now, since its nodes would take time from what is measured on one broker.
        results.samples |= measure_queues(broker, cluster, on_cluster, tell).samples
    for name in MEASURES:
        print("\n".join(["", results.table(name), *results.goals(name)]))
    print(f"\n{results.conditions}")
    file.parent.mkdir(parents=True, exist_ok=True)
    results.write(file)
    draw(results, file.parent)
    print(f"Written to {file.parent.relative_to(REPOSITORY)}/, with pictures.")


if __name__ == "__main__":
    main()
