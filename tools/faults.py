"""The fault run: tasks and calls, while workers, servers and the broker are stopped and killed.

    make faults             within about three minutes; the first line tells its seed
    make faults SEED=17     the same jobs and the same faults again

Five hundred tasks go by part_2/new_task.py to four workers, and two thousand calls by
part_6/rpc_client.py to two servers. Some of them are killed, and some are told to stop by SIGTERM.
Whoever is gone is replaced, and what fails is tried again, as a person would. In the end each task
that was reported as sent was done, no task was done that nobody had sent, no task that a worker was
told to stop in was done twice, no call got a wrong answer, nothing failed but where the broker
went, and that was said in one clear line, the queues are empty, and no process is left. Otherwise
the run says what is wrong, and exits with 1. Meanwhile the recipes are at work, too: see `Recipes`.

The seed decides what is done and when, counted in jobs that are through, and not what the machine
makes of it: who was busy with what differs from run to run.
"""

import contextlib
import logging
import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pika

from recipes.publisher import Publisher
from recipes.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import OwnBroker
from testbed.programs import (
    CLIENT,
    NEW_TASK,
    RECEIVED,
    RPC_QUEUE,
    SERVER,
    TASK_QUEUE,
    WORKER,
    Programs,
    processes_left,
    tasks_done,
)
from testbed.running import parser_with_broker, running_by_hand, telling
from testbed.terminal import Terminal
from testbed.waiting import wait_until

WORKERS, SERVERS = 4, 2
# How many run new_task.py and rpc_client.py at the same time.
SHELLS = 4
# So many calls of a client are in flight at once, for numbers that take a server some milliseconds.
CALLS, NUMBERS = 50, range(15_000, 20_001)
# Within that, servers are back after a restart of the broker.
TIMEOUT_S = 20

# After so long a program hangs. new_task.py gives up after a minute; rpc_client.py does after its
# timeout, before which it may wait for its connection for as long as pika does, 15 s.
LIMITS_S = {NEW_TASK: 75, CLIENT: TIMEOUT_S + 30}
# A worker or a server that is told to stop has a task of a second at the most to finish.
STOP_LIMIT_S = 15
# A job that fails so often fails for another reason than a fault.
ATTEMPTS = 5

# The lines by which a worker's or a server's state is known.
WAITING, FINISHING, DONE = " [*] Waiting for ", " [*] Finishing this ", " [x] Done"

QUEUES = (TASK_QUEUE, RPC_QUEUE)

Command = tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How many tasks are sent, how often rpc_client.py runs, and how many faults of which kind."""

    tasks: int
    clients: int
    faults: Mapping[str, int]


FULL = Size(
    tasks=500,
    clients=40,
    faults={
        "kill a busy worker": 6,
        "kill a worker": 4,
        "kill a busy server": 3,
        "kill a server": 3,
        "stop a busy worker": 6,
        "stop a worker": 4,
        "stop a busy server": 3,
        "stop a server": 3,
        "stop the broker": 3,
        "kill the broker": 3,
    },
)


@dataclass(frozen=True)
class Fault:
    """What is done once so many jobs are through, and to which of the workers or servers."""

    after: int
    what: str
    which: int


def plan(size: Size, seed: int) -> tuple[list[Command], list[Fault]]:
    """Return what a seed makes of a size: the jobs in their order, and the faults in theirs."""
    chance = random.Random(seed)  # noqa: S311 - it is to be predictable
    # Every third task takes a second, so that there are busy workers all the time.
    jobs: list[Command] = [
        (NEW_TASK, f"task {n}{chance.choice(('', '', '.'))}") for n in range(size.tasks)
    ]
    for _ in range(size.clients):
        numbers = chance.choices(NUMBERS, k=CALLS)
        jobs.append((CLIENT, "--timeout", str(TIMEOUT_S), *map(str, numbers)))
    chance.shuffle(jobs)
    whats = [what for what, number in size.faults.items() for _ in range(number)]
    chance.shuffle(whats)
    moments = sorted(chance.sample(range(len(jobs) // 10, len(jobs) * 9 // 10), k=len(whats)))
    faults = [
        Fault(after, what, chance.randrange(4)) for after, what in zip(moments, whats, strict=True)
    ]
    return jobs, faults


@dataclass(frozen=True)
class Ended:
    """A program that has ended: its command line, its exit code and what it printed."""

    command: Command
    code: int | None  # None where it hung, and was killed for it
    out: Sequence[str] = ()
    error: Sequence[str] = ()
    calm: bool = False  # whether the broker ran all the while
    told: bool = False  # of a worker or a server: to stop, and not killed

    @property
    def task(self) -> str:
        """The task that it was to send, in the form in which all programs print it."""
        return repr(self.command[-1])

    @property
    def sent(self) -> bool:
        """Whether it reported its task as sent."""
        return f" [x] Sent {self.task}" in self.out

    @property
    def through(self) -> bool:
        """Whether its job is done, and need not be tried again."""
        return self.sent if self.command[0] == NEW_TASK else self.code == 0

    @property
    def done(self) -> list[str]:
        """The tasks that it has done, as a worker. It may say meanwhile that it will stop."""
        return list(tasks_done(line for line in self.out if line.startswith(" [x] ")))


def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number, by doubling: another way than the server's."""
    current, following = 0, 1
    for bit in f"{n:b}":
        current, following = current * (2 * following - current), current**2 + following**2
        if bit == "1":
            current, following = following, current + following
    return current


def wrong_with_program(ended: Ended) -> Iterator[str]:
    """Say what is wrong with how a sender or a client ended, whatever befell it."""
    called = f"{ended.command[0]} {ended.command[-1]!r}"
    if ended.code is None:
        yield f"{called} hung: {[*ended.out, *ended.error]}"
    elif ended.code == 0:
        if ended.error or (ended.command[0] == NEW_TASK and not ended.sent):
            yield f"{called} ended with exit code 0 and: {[*ended.out, *ended.error]}"
    elif ended.code != 1 or len(ended.error) != 1 or not ended.error[0].startswith(" [!] "):
        yield f"{called} ended with exit code {ended.code}, without one clear line: {ended.error}"
    elif ended.calm:
        yield f"{called} failed, although the broker ran all the while: {ended.error[0]}"


def wrong_with_answers(client: Ended) -> Iterator[str]:
    """Say if an answer of a client is wrong, or is missing although it ended well."""
    printed = [line for line in client.out if line.startswith(" [.] ")]
    # The client prints its answers in the order in which it asked, until one does not come.
    right = [f" [.] fib({n}) = {fibonacci(int(n))}" for n in client.command[3:]]
    if printed != (right if client.code == 0 else right[: len(printed)]):
        yield f"{CLIENT} {client.command[3:]} ended with exit code {client.code} and: {printed}"


def wrong_with_consumer(ended: Ended) -> Iterator[str]:
    """Say what is wrong with how a worker or a server ended that was stopped or killed here."""
    if ended.code is None:
        yield f"{ended.command[0]} was told to stop, and did not: {ended.out[-2:]}"
    elif ended.code != (0 if ended.told else -signal.SIGKILL):
        yield f"{ended.command[0]} ended by itself, exit code {ended.code}: {ended.error[-1:]}"
    else:
        clear = (" [!] Connection lost", FINISHING)
        unclear = [line for line in ended.error if not line.startswith(clear)]
        if unclear:
            yield f"{ended.command[0]} said on stderr: {unclear}"
        # What it had begun before it lost a connection came again, to itself or to another.
        on_last_connection = "\n".join(ended.out).rpartition(WAITING)[2]
        dropped = on_last_connection.count(RECEIVED) > on_last_connection.count(DONE)
        last = ended.error[-1] if ended.error else FINISHING
        if ended.told and dropped and last.startswith(FINISHING):  # and not: Connection lost
            yield f"{ended.command[0]} was told to stop, and dropped its task: {ended.out[-2:]}"


def stopped_in(
    printed: Sequence[tuple[float, object, str]], kills: Iterable[float]
) -> dict[str, int]:
    """Return the tasks that workers finished when told to stop, and how often each came again.

    Args:
        printed: When which worker printed what.
        kills: When RabbitMQ was killed, which may make it forget an acknowledgement.
    """
    came_again = {}
    for told, worker, line in printed:
        if FINISHING not in line:
            continue
        own = [(when, line) for when, who, line in printed if who is worker]
        if any(DONE in line for when, line in own if when > told):
            begun, task = [(when, line) for when, line in own if line.startswith(RECEIVED)][-1]
            until = min((kill for kill in kills if kill > begun), default=math.inf)
            came_again[task.removeprefix(RECEIVED)] = sum(
                line == task for when, _, line in printed if begun < when < until
            )
    return came_again


def wrong_with_tasks(senders: Iterable[Ended], workers: Sequence[Ended]) -> Iterator[str]:
    """Say which tasks are lost, and which were done that nobody asked for."""
    done = {task for worker in workers for task in worker.done}
    asked = set()
    for sender in senders:
        asked.add(sender.task)
        if sender.sent and sender.task not in done:
            begun = sum(f"{RECEIVED}{sender.task}" in worker.out for worker in workers)
            yield f"lost: {sender.task} was sent, begun by {begun} workers, and done by none"
    for task in sorted(done - asked):
        yield f"never asked for: {task} was done, and nobody had sent it"


@dataclass
class Report:
    """What came of a run: each run of new_task.py and rpc_client.py, the workers and servers."""

    senders: list[Ended] = field(default_factory=list)
    clients: list[Ended] = field(default_factory=list)
    consumers: list[Ended] = field(default_factory=list)
    #: The tasks that workers finished when told to stop, and how often each came again.
    stopped_in: dict[str, int] = field(default_factory=dict)
    #: What is left in the queues and of the processes, and what is wrong with the recipes.
    others: list[str] = field(default_factory=list)

    def wrong(self, jobs: int) -> Iterator[str]:
        """Say all that is wrong, where so many jobs were to be done."""
        programs = [*self.senders, *self.clients]
        for program in programs:
            yield from wrong_with_program(program)
        for client in self.clients:
            yield from wrong_with_answers(client)
        for consumer in self.consumers:
            yield from wrong_with_consumer(consumer)
        yield from wrong_with_tasks(self.senders, self.consumers)
        for task, times in self.stopped_in.items():
            if times:
                yield f"done twice: {task}, which a worker had finished when told to stop"
        if failed := jobs - sum(program.through for program in programs):
            yield f"{failed} of {jobs} jobs failed {ATTEMPTS} times"
        yield from self.others

    def figures(self) -> str:
        """Say how much was done."""
        done = Counter(task for consumer in self.consumers for task in consumer.done)
        sent = sum(sender.sent for sender in self.senders)
        answers = sum(line.startswith(" [.] ") for client in self.clients for line in client.out)
        again = sum(times > 1 for times in done.values())
        return (
            f"{sent} tasks reported as sent; {len(done)} done, {again} of them twice or more;"
            f" {len(self.stopped_in)} finished when told to stop; {answers} calls answered"
        )


# What stands in for recipes/worker.py: that, with work that fails one time in five. A try that its
# worker does not outlive counts as failed, too, so there are many.
RECIPE_WORKER = """
import random, sys
sys.path.insert(0, "recipes")
import worker

def work(job):
    if random.random() < 0.2:
        raise ValueError("not this time")
    print("did", job, flush=True)

worker.work, worker.RETRY_DELAYS = work, (1,) * 30
worker.main()
"""


class Recipes:
    """The recipes at work: jobs all the while to two workers, and calls one after the other.

    Whenever a worker of the tutorial is killed, one of these is killed and replaced as well. In the
    end each job that was confirmed was done, and each call got the right answer or failed over a
    lost connection.
    """

    def __init__(self, broker: OwnBroker, programs: Programs, calm: Callable[[], int]) -> None:
        """Start all. `calm` returns how often the broker went so far, or -1 while it is gone."""
        self._broker, self._programs, self._calm = broker, programs, calm
        parameters = pika.URLParameters(broker.url)
        self._publisher = Publisher(parameters, "jobs")
        self._client = FibonacciRpcClient(parameters)
        self._jobs: list[Future[None]] = []
        self._right, self._lost, self._wrong = 0, 0, list[str]()
        self._workers = [self._start(), self._start()]
        self._all = list(self._workers)
        self.end = threading.Event()  # set it, and no more is begun
        self._pool = ThreadPoolExecutor(2)
        self._loops = [self._pool.submit(loop) for loop in (self._publish, self._call)]

    def _start(self) -> Terminal:
        return self._programs.start("-c", RECIPE_WORKER).expect_ready()

    def kill_worker(self) -> None:
        """Kill a worker, and start another."""
        self._workers.pop(0).kill()
        self._workers.append(self._start())
        self._all.append(self._workers[-1])

    def finish(self) -> list[str]:
        """Wait until what was confirmed is done, and end the workers; return what is wrong."""
        self.end.set()
        for loop in self._loops:
            loop.result()  # an error of this program's own ends the run
        self._call_once()  # once more, and with the broker there
        self._publisher.close()
        self._client.close()
        with contextlib.suppress(TimeoutError):  # what is missing is told
            wait_until(lambda: not self._missing(), "all jobs to be done", seconds=60)
        for worker in self._workers:
            worker.ctrl_c()
            if code := worker.wait(STOP_LIMIT_S):
                self._wrong.append(f"recipes/worker.py ended with {code}: {worker.error[-1:]}")
        for job in sorted(self._missing()):
            self._wrong.append(f"recipes: confirmed, and never done: {job}")
        if failed := sum(not future.done() or bool(future.exception()) for future in self._jobs):
            self._wrong.append(f"recipes: {failed} of {len(self._jobs)} jobs were not confirmed")
        return self._wrong

    def _publish(self) -> None:
        while not self.end.wait(0.05):
            job = str(len(self._jobs)).encode()
            self._jobs.append(self._publisher.publish(job, timeout=120))

    def _call(self) -> None:
        while not self.end.wait(0.05):
            self._call_once()

    def _call_once(self) -> None:
        before, n = self._calm(), len(self._jobs) % 1000
        try:
            answer = self._client.call(n, TIMEOUT_S)
        except (pika.exceptions.AMQPError, OSError, RpcError) as error:
            self._lost += 1
            if before == self._calm() != -1:
                self._wrong.append(f"recipes/rpc_client.py failed by itself: {error!r}")
        else:
            self._right += answer == fibonacci(n)
            if answer != fibonacci(n):
                self._wrong.append(f"recipes/rpc_client.py says that fib({n}) is {answer}")

    def _missing(self) -> set[str]:
        confirmed = {
            f"did {job}"
            for job, future in enumerate(self._jobs)
            if future.done() and not future.exception()
        }
        return confirmed.difference(*(worker.out for worker in self._all))

    def figures(self) -> str:
        """Say how much was done."""
        return (
            f"recipes: {len(self._jobs)} jobs by {len(self._all)} workers,"
            f" {self._right} calls right, {self._lost} failed with their connection"
        )


class Trial:
    """A run of the programs on a broker, with faults."""

    def __init__(
        self,
        broker: OwnBroker,
        tell: Callable[[str], None],
        worker: str = WORKER,
        server: str = SERVER,
    ) -> None:
        """Prepare a run; `tell` is called with a line for each fault.

        Other scripts may run in the place of the tutorial's worker and server.
        """
        self._broker, self._tell = broker, tell
        self._scripts = {"worker": worker, "server": server}
        self._programs = Programs(broker)
        #: The workers and the servers that run, in their places.
        self._places: dict[str, list[Terminal]] = {}
        self._jobs = deque[Command]()
        self._through: list[Command] = []
        self._asking = set[Terminal]()
        self._broker_runs = threading.Event()
        self._outages = 0
        self._report = Report()
        self._kills: list[float] = []

    def run(self, jobs: Sequence[Command], faults: Sequence[Fault]) -> Report:
        """Do the jobs, with the faults; return what came of them."""
        with self._programs:
            self._run(jobs, faults)
        return self._report

    def _run(self, jobs: Sequence[Command], faults: Sequence[Fault]) -> None:
        for kind, number in (("worker", WORKERS), ("server", SERVERS)):
            self._places[kind] = [self._programs.start(self._scripts[kind]) for _ in range(number)]
            for consumer in self._places[kind]:
                consumer.expect_ready()
        self._broker.settle()
        self._jobs.extend(jobs)
        self._broker_runs.set()
        recipes = Recipes(
            self._broker,
            self._programs,
            lambda: self._outages if self._broker_runs.is_set() else -1,
        )
        with ThreadPoolExecutor(SHELLS) as pool:
            shells = [pool.submit(self._shell) for _ in range(SHELLS)]
            try:
                for fault in faults:
                    self._wait_for_jobs(fault.after, shells)
                    self._carry_out(fault)
                    if fault.what in ("kill a worker", "kill a busy worker"):
                        recipes.kill_worker()
                self._wait_for_jobs(len(jobs), shells)
            finally:
                self._jobs.clear()
                self._broker_runs.set()
                recipes.end.set()
        self._report.others += recipes.finish()
        self._tell(recipes.figures())
        self._finish()

    def _wait_for_jobs(self, number: int, shells: Sequence[Future[None]]) -> None:
        def through() -> bool:
            for shell in shells:
                if shell.done():
                    shell.result()  # an error of this program's own ends the run
            return len(self._through) >= number

        wait_until(through, f"{number} jobs to be through", seconds=300)

    def _shell(self) -> None:
        """Do one job after the other, each until it succeeds."""
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                return
            for attempt in range(1, ATTEMPTS + 1):
                if job[0] == CLIENT:
                    ended = self._program(job)
                    self._report.clients.append(ended)
                else:  # with a text for each attempt, since each may arrive
                    ended = self._program((NEW_TASK, f"attempt {attempt}, {job[1]}"))
                    self._report.senders.append(ended)
                if ended.through:
                    break
                self._broker_runs.wait()
            self._through.append(job)

    def _program(self, command: Command) -> Ended:
        outages, calm = self._outages, self._broker_runs.is_set()  # in this order, as they change
        terminal = self._programs.start(*command)
        if command[0] == CLIENT:
            self._asking.add(terminal)
        code = self._exit_code(terminal, LIMITS_S[command[0]])
        self._asking.discard(terminal)
        calm = calm and outages == self._outages
        return Ended(command, code, terminal.out, terminal.error, calm)

    def _exit_code(self, terminal: Terminal, limit: float) -> int | None:
        """Return a program's exit code once it has ended; kill it if it hangs."""
        try:
            return terminal.wait(limit)
        except subprocess.TimeoutExpired:
            terminal.kill()
            return None

    def _carry_out(self, fault: Fault) -> None:
        began = time.monotonic()
        if fault.what.endswith("the broker"):
            self._broker_runs.clear()
            self._outages += 1
            if fault.what == "stop the broker":
                self._broker.stop()
            else:
                self._kills.append(time.perf_counter())  # the clock of what is printed
                self._broker.kill()
            self._broker.start()
            self._broker_runs.set()
        else:
            verb, *_, kind = fault.what.split()
            place = fault.which % len(self._places[kind])
            consumer = self._places[kind][place]
            if "busy" in fault.what:
                # When there is nothing more to be sent, nobody may ever be busy again.
                wait_until(
                    lambda: self._busy(kind, consumer) or not self._jobs, "work", seconds=120
                )
            self._end(kind, consumer, consumer.terminate if verb == "stop" else None)
            # A consumer that never had a connection gives up where there is none: it has to be
            # ready before the next fault.
            self._places[kind][place] = self._programs.start(self._scripts[kind]).expect_ready()
        self._tell(
            f"after {fault.after} jobs: {fault.what}, and start it again"
            f" ({time.monotonic() - began:.1f} s)"
        )

    def _busy(self, kind: str, consumer: Terminal) -> bool:
        if kind == "worker":
            return bool(consumer.messages) and consumer.messages[-1].startswith("Received")
        # A server does not say when it has answered. While a client has asked and has not got all
        # of its answers, all servers have some to give.
        return any(1 <= len(client.out) <= CALLS for client in list(self._asking))

    def _end(self, kind: str, consumer: Terminal, tell: Callable[[], None] | None) -> None:
        """Tell a worker or a server to stop, or else kill it, and note how it ended."""
        if tell:
            tell()
        else:
            consumer.kill()
        code = self._exit_code(consumer, STOP_LIMIT_S)
        script, told = (self._scripts[kind],), tell is not None
        self._report.consumers.append(Ended(script, code, consumer.out, consumer.error, told=told))

    def _finish(self) -> None:
        """Let the consumers come to an end, stop them, and look at what is left."""
        with contextlib.suppress(TimeoutError):  # the report tells what is left
            wait_until(lambda: not any(map(self._busy_queue, QUEUES)), "empty queues")
        for kind, places in self._places.items():
            for consumer in places:
                self._end(kind, consumer, consumer.ctrl_c)
        self._report.stopped_in = stopped_in(self._programs.printed, self._kills)
        for queue in QUEUES:
            if number := self._broker.ready(queue):
                self._report.others.append(f"{number} messages are left in {queue}")
        self._report.others += [f"still running: {process}" for process in processes_left()]

    def _busy_queue(self, queue: str) -> bool:
        return bool(self._broker.ready(queue) or self._broker.unacknowledged(queue))


def main() -> None:
    """Do a full run; exit with 1 if anything is wrong."""
    parser = parser_with_broker(__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))  # noqa: S311
    parser.add_argument("--worker", default=WORKER, help="another script in the place of worker.py")
    parser.add_argument("--server", default=SERVER, help="the same for rpc_server.py")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    logging.disable()  # of each lost connection the recipes and pika would tell, and it is meant
    jobs, faults = plan(FULL, arguments.seed)
    tell = telling()
    with running_by_hand(arguments.broker) as broker:
        if not isinstance(broker, OwnBroker):
            sys.exit(
                f"{broker.description} is somebody's, and this run stops and kills its broker:"
                " unset RABBITMQ_URL, or choose --broker=docker or --broker=local"
            )
        report = Trial(broker, tell, arguments.worker, arguments.server).run(jobs, faults)
    tell(report.figures())
    wrong = list(report.wrong(len(jobs)))
    if wrong:
        sys.exit("\n".join(["", *wrong[:20], f"{len(wrong)} wrong, with seed {arguments.seed}"]))
    tell(f"all as it should be, with seed {arguments.seed}")


if __name__ == "__main__":
    main()
