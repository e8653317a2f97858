"""What each choice costs: the tutorial's scripts, the steps on the way to them, and other ways.

    make bench                 within three minutes; writes results.json, the pictures and the page
    make bench QUICK=1         within half a minute, coarser, no cluster; writes to bench/quick/
    make bench RESULTS=file    writes the pictures and the page from what another run measured

The variants of a measure run in turn, round after round, on the same broker. What counts is the
ratio within a round, since machines are noisy: its median, and its spread.
"""

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pika
import psutil

from bench.peers.rpc_client import PlainRpcClient
from bench.results import FILE, MEASURES, Results, Sample
from part_6.rpc_client import FibonacciRpcClient
from recipes.rpc_client import FibonacciRpcClient as ThreadsRpcClient
from recipes.worker import RETRY_DELAYS
from testbed.broker import Broker, NoBrokerError, OwnBroker, ready_in
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
    publish_tasks,
)
from testbed.running import parser_with_broker, running, running_by_hand
from testbed.terminal import REPOSITORY, replaced, script_environment
from testbed.waiting import wait_until
from tools.readme import measured_anew

# The steps of the lessons that do what the script does, and no more.
PLAIN_WORKER, PLAIN_SERVER = "part_2/steps/worker_4.py", "part_6/steps/rpc_server_1.py"
RECIPE = "recipes/worker.py"
PRODUCER, PIPELINED = "bench/peers/producer.py", "bench/peers/pipelined_producer.py"
WIRE = "bench/peers/wire.py"

#: From how many threads the client of the recipes is called.
THREADS = 50
PAGE = FILE.with_name("README.md")
#: All that show what was measured.
PAGES = (PAGE, REPOSITORY / "README.md")

# Other work for the workers.
SLEEP = 'time.sleep(task.count(b"."))'
SLEEP_TO_MILLISECOND = (SLEEP, "time.sleep(0.001)")
SLEEP_TO_50_MS = (SLEEP, "time.sleep(0.05)")
SLEEP_TO_TIMING = (SLEEP, 'print("Begun after", time.perf_counter() - float(task))')


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


FULL = Size(scale=1, rounds=3, seconds=115)
QUICK = Size(scale=0.25, rounds=1, seconds=15)


@dataclass
class Bench:
    """What to measure on, and how much.

    Attributes:
        broker: It is left clean after each measure.
        size: How much is measured.
        folder: For altered copies of scripts.
        nodes: In how many nodes a queue can be replicated.
    """

    broker: Broker
    size: Size
    folder: Path
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

    Its output goes to a file, because reading a pipe along would take time from what is measured.
    """
    with tempfile.TemporaryDirectory(prefix="rabbitmq-tutorial-") as folder:
        log = Path(folder, "log")

        def count(text: str) -> int:
            return log.read_bytes().count(text.encode())

        with log.open("wb") as output, Programs(broker) as programs:
            programs.start(*command, stdout=output.fileno(), merge=True)
            wait_until(lambda: count("[*] "), f"{command[0]} to be ready", pause=0.002)
            yield count


def over_the_wire(broker: Broker, *all_arguments: tuple[str, ...]) -> list[float]:
    """Run as many wire.py as there are arguments for, all at once; return what each printed."""
    with contextlib.ExitStack() as stack:
        processes = []
        for arguments in all_arguments:
            process = subprocess.Popen(
                [sys.executable, WIRE, *arguments],
                cwd=REPOSITORY,
                env=script_environment(broker.url),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        return [float(process.communicate(timeout=60)[0]) for process in processes]


def in_flight(client: FibonacciRpcClient, calls: int) -> float:
    """Return how many calls are answered in a second, all sent before the first is waited for."""
    began = time.perf_counter()
    for correlation_id in [client.request(5, timeout=60) for _ in range(calls)]:
        client.result(correlation_id)
    return calls / (time.perf_counter() - began)


def runs_a_second(broker: Broker, times: int, *command: str) -> float:
    """Return how many runs of a program there are in a second, one after the other."""
    began = time.perf_counter()
    for _ in range(times):
        with Programs(broker) as programs:
            if code := programs.start(*command).wait():
                raise RuntimeError(f"{command} ended with exit code {code}")
    return times / (time.perf_counter() - began)


def sent_a_second(
    broker: Broker, seconds: float, *command: str, replicas: int | None = None
) -> float:
    """Return how many messages a second come to a new, durable queue while a producer runs.

    The queue is a quorum queue with so many replicas, or a classic one for 0; or as RabbitMQ makes
    it by default.
    """
    arguments: dict[str, str | int] = {}
    if replicas:
        arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": replicas}
    elif replicas == 0:
        arguments = {"x-queue-type": "classic"}
    with broker.channel() as channel, Programs(broker) as programs:
        channel.queue_declare(queue=TASK_QUEUE, durable=True, arguments=arguments)
        programs.start(*command)
        begin = wait_until(lambda: ready_in(channel, TASK_QUEUE), "the first message")
        began = time.perf_counter()
        time.sleep(seconds)  # which is what is measured
        # A busy machine may have let nothing come meanwhile.
        sent = wait_until(lambda: ready_in(channel, TASK_QUEUE) - begin, "more messages")
        took = time.perf_counter() - began
    broker.clean()
    return sent / took


def done_a_second(broker: Broker, tasks: int, *command: str) -> float:
    """Return how many of many tasks a worker does in a second."""
    with broker.channel() as channel:
        channel.queue_declare(queue=TASK_QUEUE, durable=True)
        publish_tasks(channel, ["0"] * tasks)  # no dot, and for the recipe, no second
        wait_until(lambda: ready_in(channel, TASK_QUEUE) == tasks, "all tasks to be there")
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


def waits(variant: str, seconds: list[float]) -> Iterator[Sample]:
    """Return the median of what was waited, and what 99 of 100 waits take at the most."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    yield Sample("latency", variant, 1000 * statistics.median(seconds))
    yield Sample("latency_99", variant, 1000 * cuts[-1])


def connections(bench: Bench) -> Iterator[Sample]:
    """Part I: each message with a program, with a connection, or with nothing of its own."""
    times = bench.size.of(3)
    a_program = runs_a_second(bench.broker, times, "part_1/sender.py")
    yield Sample("connections", "sender.py, a program a message", a_program)
    times = bench.size.of(40)
    began = time.perf_counter()
    for _ in range(times):
        with bench.broker.channel() as channel:
            channel.queue_declare(queue=HELLO)
            channel.basic_publish(exchange="", routing_key=HELLO, body=b"A message")
    a_connection = times / (time.perf_counter() - began)
    yield Sample("connections", "a connection a message", a_connection)
    messages = bench.size.of(4000)
    with bench.broker.channel() as channel:
        expected = ready_in(channel, HELLO) + messages
        began = time.perf_counter()
        for _ in range(messages):
            channel.basic_publish(exchange="", routing_key=HELLO, body=b"A message")
        # A queue answers this before the last messages, if it is asked soon enough.
        wait_until(lambda: ready_in(channel, HELLO) == expected, "the last message", pause=0)
        for_all = messages / (time.perf_counter() - began)
    yield Sample("connections", "one channel for all", for_all)


def new_task(bench: Bench) -> Iterator[Sample]:
    """Part II: the whole program, without and with a confirm."""
    programs = (
        ("new_task_2.py, no confirm", "part_2/steps/new_task_2.py"),
        ("new_task_3.py, a confirm", "part_2/steps/new_task_3.py"),
        ("new_task.py", NEW_TASK),
    )
    for _ in range(bench.size.of(2)):
        # In turn, and none always before the others.
        for name, program in (*programs, *reversed(programs)):
            yield Sample("new_task", name, runs_a_second(bench.broker, 1, program, "A task"))


def sending(bench: Bench) -> Iterator[Sample]:
    """Part II: confirms, waited for one by one or taken as they come."""
    ways = (
        ("not confirmed", PRODUCER),
        ("confirmed one by one", PRODUCER, "confirmed"),
        ("confirmed, 100 in flight", PIPELINED, "100"),
        ("recipes/publisher.py, confirmed", "-m", "bench.peers.recipe_producer"),
    )
    for name, *command in (*ways, *reversed(ways)):
        speed = sent_a_second(bench.broker, 0.4 * bench.size.scale, *command)
        yield Sample("sending", name, speed)


def persistence(bench: Bench) -> Iterator[Sample]:
    """Part II: what RabbitMQ has to write."""
    messages = in_writes(bench.size.of(10_000))
    for mode in (pika.DeliveryMode.Transient, pika.DeliveryMode.Persistent):
        with bench.broker.channel() as channel:
            channel.queue_declare(queue=TASK_QUEUE, durable=True)
        producer = ("publish", messages, "", TASK_QUEUE, str(mode.value))
        speeds = over_the_wire(bench.broker, producer, producer)
        yield Sample("persistence", f"{mode.name.lower()} messages", sum(speeds))
        bench.broker.clean()


def in_writes(messages: int) -> str:
    """Return a number of messages for wire.py, which sends a hundred at once."""
    return str(-(-messages // 100) * 100)


def confirms(bench: Bench) -> Iterator[Sample]:
    """Part II: how long one waits for a confirm, for messages of three sizes."""
    with bench.broker.channel() as channel:
        channel.confirm_delivery()
        channel.queue_declare(queue=TASK_QUEUE, durable=True)
        properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
        for name, size, messages in (
            ("100 bytes", 100, 300),
            ("10 kB", 10_000, 200),
            ("1 MB", 1_000_000, 40),
        ):
            seconds, body = [], bytes(size)
            for _ in range(bench.size.of(messages)):
                began = time.perf_counter()
                channel.basic_publish(
                    exchange="", routing_key=TASK_QUEUE, body=body, properties=properties
                )
                seconds.append(time.perf_counter() - began)
            yield from waits(f"a confirm, message of {name}", seconds)


def tasks_at_rest(bench: Bench) -> Iterator[Sample]:
    """Part II: how long a task waits for a worker that has nothing else to do."""
    for script in (PLAIN_WORKER, WORKER):
        timing = bench.altered(script, SLEEP_TO_TIMING)
        with Programs(bench.broker) as programs, bench.broker.channel() as channel:
            worker = programs.start(timing).expect_ready()
            for number in range(1, bench.size.of(150) + 1):
                # Its clock is the same in all processes.
                publish_tasks(channel, [str(time.perf_counter())])
                worker.expect("Done", times=number)
            begun = [float(line.split()[-1]) for line in worker.out if "Begun after" in line]
        yield from waits(f"a task until {Path(script).name} begins it", begun)


def working(bench: Bench) -> Iterator[Sample]:
    """Part II: workers on tasks that are nothing but overhead."""
    tasks = bench.size.of(1000)
    ways = (
        ("worker_4.py, plain", PLAIN_WORKER),
        ("worker.py", WORKER),
        ("pika's recipe, a thread a task", "bench/peers/threads_worker.py"),
        ("recipes/worker.py, one at a time", RECIPE, "--queue", TASK_QUEUE, "--parallel", "1"),
    )
    for name, *command in (*ways, *reversed(ways)):
        yield Sample("working", name, done_a_second(bench.broker, tasks, *command))
    with bench.broker.channel() as channel:  # what the recipe has declared beside the task queue
        for name in ("failed", *(f"retry.{delay}s" for delay in RETRY_DELAYS)):
            channel.queue_delete(queue=f"{TASK_QUEUE}.{name}")


def prefetch(bench: Bench) -> Iterator[Sample]:
    """Part II: the prefetch count, where a task is short."""
    for count in (1, 10, 100):
        allowed = ("prefetch_count=1)", f"prefetch_count={count})")
        script = bench.altered(PLAIN_WORKER, SLEEP_TO_MILLISECOND, allowed)
        speed = done_a_second(bench.broker, bench.size.of(600), script)
        yield Sample("prefetch", f"worker_4.py, prefetch count {count}", speed)


def workers(bench: Bench) -> Iterator[Sample]:
    """Part II: more workers."""
    script = bench.altered(WORKER, SLEEP_TO_50_MS)
    done = 0
    with Programs(bench.broker) as programs, bench.broker.channel() as channel:
        for number in (1, 2, 4, 8):
            for worker in [programs.start(script) for _ in range(number - len(programs.started))]:
                worker.expect_ready()
            tasks = number * bench.size.of(10)
            began = time.perf_counter()
            publish_tasks(channel, ["task"] * tasks)
            done += tasks
            speed = tasks / (programs.wait_for("Done", done) - began)
            yield Sample("workers", counted(number, "worker"), speed)


def footprint(bench: Bench) -> Iterator[Sample]:
    """Parts II and VI: a consumer's memory, and the time that it takes to start."""
    for script in (PLAIN_WORKER, WORKER, PLAIN_SERVER, SERVER):
        name = Path(script).name
        with Programs(bench.broker) as programs:
            began = time.perf_counter()
            program = programs.start(script)
            ready = programs.wait_for("[*] ", 1)
            yield Sample("ready", name, ready - began)
            memory = psutil.Process(program.process.pid).memory_info().rss
            yield Sample("memory", name, memory / 1e6)


def fanout(bench: Bench) -> Iterator[Sample]:
    """Part III: a copy for each receiver."""
    for receivers in (1, 2, 8):
        with bench.broker.channel() as channel:
            channel.exchange_declare(exchange=LOGS, exchange_type="fanout")
        sent = in_writes(bench.size.of(20_000 // receivers))
        received = str(2 * int(sent))
        producer = ("publish", sent, LOGS, "", str(pika.DeliveryMode.Transient.value))
        receiver = ("receive", received, LOGS)
        _, _, *speeds = over_the_wire(bench.broker, producer, producer, *[receiver] * receivers)
        yield Sample("fanout", counted(receivers, "receiver"), sum(speeds))


def routing(bench: Bench) -> Iterator[Sample]:
    """Parts IV and V: the number of bindings that a message may have to be compared with."""
    with bench.broker.channel() as channel:
        queue = channel.queue_declare(queue="", exclusive=True).method.queue
        for exchange_type in ("direct", "topic", "headers"):
            exchange, bound = f"bench-{exchange_type}", 0
            last = "*" if exchange_type == "topic" else "info"
            channel.exchange_declare(  # gone with the queue
                exchange=exchange, exchange_type=exchange_type, auto_delete=True
            )
            for bindings in (10, 1000):
                for number in range(bound, bindings):
                    channel.queue_bind(
                        queue=queue,
                        exchange=exchange,
                        routing_key=f"service-{number}.{last}",
                        arguments={"service": f"service-{number}"},  # for headers alone
                    )
                bound = bindings
                slow = exchange_type == "headers" and bindings == 1000
                messages = in_writes(bench.size.of(400 if slow else 10_000))
                mode = str(pika.DeliveryMode.Transient.value)
                producer = ("publish", messages, exchange, "service-none.info", mode)
                speeds = over_the_wire(bench.broker, producer, producer)
                yield Sample("routing", f"{exchange_type}, {bindings:,} bindings", sum(speeds))


def rpc(bench: Bench) -> Iterator[Sample]:
    """Part VI: the client and the server, each beside the plainest one, and calls in flight."""
    few, many = bench.size.of(100), 500
    parameters = pika.URLParameters(bench.broker.url)
    with bench.broker.channel() as channel:
        channel.queue_declare(queue=RPC_QUEUE, durable=True)
    plain = PlainRpcClient(bench.broker.url)
    both = (("rpc_server_1.py, plain", PLAIN_SERVER), ("rpc_server.py", SERVER))
    calls: list[float] = []
    with (
        FibonacciRpcClient(parameters) as client,
        ThreadsRpcClient(parameters) as recipe,
        ThreadPoolExecutor(THREADS) as threads,
        plain.connection,
    ):
        # In turn, and neither always before the other.
        for name, script in (*both, *reversed(both), *both):
            with logged(bench.broker, script):
                in_flight(client, few)  # warm
                speed = in_flight(client, many)
                yield Sample("rpc_server", name, speed)
                if script == SERVER:
                    (one_by_one,) = calls_in_turn(2 * few, client.call)
                    calls += one_by_one
                    a_second = 1 / statistics.fmean(one_by_one)
                    yield Sample("in_flight", "one call at a time", a_second)
                    yield Sample("in_flight", f"{many} in flight", speed)
                    began = time.perf_counter()
                    list(threads.map(recipe.call, [5] * many))
                    speed = many / (time.perf_counter() - began)
                    yield Sample("in_flight", f"recipes/rpc_client.py, {THREADS} threads", speed)
                else:
                    clients = {
                        "the plainest client": plain.call,
                        "FibonacciRpcClient": client.call,
                        "recipes/rpc_client.py": recipe.call,
                    }
                    times = calls_in_turn(2 * few, *clients.values())
                    for variant, seconds in zip(clients, times, strict=True):
                        yield Sample("rpc_client", variant, 1 / statistics.fmean(seconds))
    yield from waits("a call, until its answer is there", calls)


def calls_in_turn(calls: int, *ways: Callable[[int], int]) -> list[list[float]]:
    """Return the seconds that each of so many calls takes, one after the other, for each way.

    After each few calls it is another's turn, so that a machine that is busy for a while is so
    for all of them.
    """
    a_turn = 10
    seconds: dict[Callable[[int], int], list[float]] = {call: [] for call in ways}
    for turn in range(-(-calls // a_turn)):
        for call in ways if turn % 2 else reversed(ways):
            for _ in range(a_turn):
                began = time.perf_counter()
                call(5)
                seconds[call].append(time.perf_counter() - began)
    return list(seconds.values())


def queue_types(bench: Bench) -> Iterator[Sample]:
    """A queue that is replicated, or could be."""
    variants = {"classic queue": 0, "quorum queue, one node": 1, "quorum queue, three nodes": 3}
    for measure, *command in (
        ("queue_types", PRODUCER, "confirmed"),
        ("queue_types_in_flight", PIPELINED, "100"),
    ):
        for name, replicas in variants.items():
            if replicas <= bench.nodes:
                seconds = 0.6 * bench.size.scale
                speed = sent_a_second(bench.broker, seconds, *command, replicas=replicas)
                yield Sample(measure, name, speed)


# What needs one broker alone.
ALONE: tuple[Callable[[Bench], Iterator[Sample]], ...] = (
    connections,
    new_task,
    sending,
    persistence,
    confirms,
    tasks_at_rest,
    working,
    prefetch,
    workers,
    footprint,
    fanout,
    routing,
    rpc,
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
            "Erlang": broker.stated("platform").removeprefix("Erlang/OTP "),
            "Python": platform.python_version(),
            "pika": pika.__version__,
        },
        cores=os.cpu_count() or 1,
    )
    began, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="rabbitmq-tutorial-") as folder:
        bench = Bench(broker, size, Path(folder), nodes)
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


def measure_all(kind: str, size: Size, *, on_cluster: bool) -> Results:
    """Measure on a broker of that kind, and the queue types on a cluster if that is asked for."""
    from tqdm import tqdm  # only here: whoever runs a single measure, as a test does, needs it not

    size_there = replace(size, seconds=size.seconds / 6)
    with (
        running_by_hand(kind) as broker,
        tqdm(
            total=size.seconds + size_there.seconds,
            bar_format="{percentage:3.0f} %|{bar}| {elapsed} {desc}",
        ) as bar,
    ):

        def tell(sample: Sample) -> None:
            bar.n = min(bar.format_dict["elapsed"], bar.total)
            bar.set_description_str(f"{sample.measure}: {sample.variant}")

        results = measure(broker, size, tell)
        cluster = kind if isinstance(broker, OwnBroker) else "url"
        # Only now, since its nodes would take time from what is measured on one broker.
        results.samples |= measure_queues(
            broker, cluster if on_cluster else None, size_there, tell
        ).samples
    return results


def main() -> None:
    """Measure, or read what was measured; print the tables, draw the pictures, write the page."""
    from bench.charts import draw  # only here, as tqdm

    parser = parser_with_broker(__doc__)
    parser.add_argument("--quick", action="store_true", help="coarser, and not for the page")
    parser.add_argument("--results", type=Path, metavar="FILE", help="read them, measure nothing")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.results:
        results = Results.read(arguments.results)
    else:
        results = measure_all(arguments.broker, QUICK if quick else FULL, on_cluster=not quick)
    for name in results.samples:
        if name not in {what.beside for what in MEASURES.values()}:
            print("\n".join(["", results.table(name), *results.goals(name)]))
    print(f"\n{results.conditions}")
    file = FILE.parent / "quick" / FILE.name if quick else FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    results.write(file)
    draw(results, file.parent)
    if not quick:
        for page in PAGES:
            text = measured_anew(page.read_text(encoding="utf-8"))
            page.write_text(text, encoding="utf-8")
    print(f"Written to {file.parent.relative_to(REPOSITORY)}/, with pictures.")


if __name__ == "__main__":
    main()
