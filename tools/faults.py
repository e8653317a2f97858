"""The fault run: tasks and calls, while workers, servers and the broker are stopped and killed.

    make faults             within about three minutes; the first line tells its seed
    make faults SEED=17     the same jobs and the same faults again

Five hundred tasks go by part_2/new_task.py to four workers, and two thousand calls by
part_6/rpc_client.py to two servers. Some of them are killed, and some are told to stop by SIGTERM.
Whoever is gone is replaced, and what fails is tried again, as a person would. In the end each task
that was reported as sent was done, no task was done that nobody had sent, no task that a worker
finished when it was told to stop came again (unless RabbitMQ was killed), no call got a wrong
answer, nothing failed but where the broker went, and that was said in one clear line, the queues
are empty, and no process is left. Otherwise the run says what is wrong, and exits with 1.
Meanwhile the recipes are at work, too: see `Recipes`.

The seed decides what is done and when, counted in jobs that are through, and not what the machine
makes of it: who was busy with what differs from run to run.
"""

import contextlib
import logging
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

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
    # About every third task takes a second, so that there are busy workers all the time.
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


def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number, by doubling: another way than the server's."""
    current, following = 0, 1
    for bit in f"{n:b}":
        current, following = current * (2 * following - current), current**2 + following**2
        if bit == "1":
            current, following = following, current + following
    return current


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
    def results(self) -> list[str]:
        """What it says of its job, once that is done: `Sent`, or an answer in each line."""
        if self.command[0] == NEW_TASK:
            return [f" [x] Sent {self.task}"]
        return [f" [.] fib({n}) = {fibonacci(int(n))}" for n in self.command[3:]]

    @property
    def done(self) -> list[str]:
        """The tasks that it has done, as a worker. It may say meanwhile that it will stop."""
        return list(tasks_done(line for line in self.out if line.startswith(" [x] ")))


def wrong_with_job(ended: Ended) -> Iterator[str]:
    """Say what is wrong with how a sender or a client ended, whatever befell it."""
    called = f"{ended.command[0]} {ended.command[-1]!r}"
    if ended.code is None:
        yield f"{called} hung: {[*ended.out, *ended.error]}"
    elif ended.code == 0 and ended.error:
        yield f"{called} ended well, and said on stderr: {ended.error}"
    elif ended.code and (len(ended.error) != 1 or not ended.error[0].startswith(" [!] ")):
        yield f"{called} ended with exit code {ended.code}, without one clear line: {ended.error}"
    elif ended.code and ended.calm:
        yield f"{called} failed, although the broker ran all the while: {ended.error[0]}"
    results = [line for line in ended.out if line.startswith((" [x] Sent ", " [.] "))]
    # A client prints its answers in the order in which it asked, until one does not come.
    if results != ended.results[: None if ended.code == 0 else len(results)]:
        yield f"{called} ended with exit code {ended.code} and: {results}"


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
        # If it says nothing and stops in a task, it has dropped that, too.
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
    for moment, worker, text in printed:
        if FINISHING not in text:
            continue
        own = [(when, line) for when, who, line in printed if who is worker]
        if any(DONE in line for when, line in own if when > moment):
            # A worker that was told to stop begins no other task.
            begun, received = [(when, line) for when, line in own if line.startswith(RECEIVED)][-1]
            until = min((kill for kill in kills if kill > begun), default=math.inf)
            came_again[received.removeprefix(RECEIVED)] = sum(
                line == received for when, _, line in printed if begun < when < until
            )
    return came_again


@dataclass
class Report:
    """What came of a run."""

    #: How many jobs were to be done.
    asked: int = 0
    #: Each run of new_task.py and of rpc_client.py.
    jobs: list[Ended] = field(default_factory=list)
    consumers: list[Ended] = field(default_factory=list)
    #: The tasks that workers finished when told to stop, and how often each came again.
    stopped_in: dict[str, int] = field(default_factory=dict)
    #: What is left in the queues and of the processes, and what is wrong with the recipes.
    others: list[str] = field(default_factory=list)

    def wrong(self) -> Iterator[str]:
        """Say all that is wrong."""
        for job in self.jobs:
            yield from wrong_with_job(job)
        for consumer in self.consumers:
            yield from wrong_with_consumer(consumer)
        known = {job.task for job in self.jobs if job.command[0] == NEW_TASK}
        done = {task for consumer in self.consumers for task in consumer.done}
        for task in sorted(self._sent() - done):
            begun = sum(f"{RECEIVED}{task}" in worker.out for worker in self.consumers)
            yield f"lost: {task} was sent, begun by {begun} workers, and done by none"
        for task in sorted(done - known):
            yield f"never asked for: {task} was done, and nobody had sent it"
        for task, times in self.stopped_in.items():
            if times:
                yield f"done twice: {task}, which a worker had finished when told to stop"
        if failed := self.asked - sum(job.code == 0 for job in self.jobs):
            yield f"{failed} of {self.asked} jobs failed {ATTEMPTS} times"
        yield from self.others

    def figures(self) -> str:
        """Say how much was done."""
        done = Counter(task for consumer in self.consumers for task in consumer.done)
        answers = sum(line.startswith(" [.] ") for job in self.jobs for line in job.out)
        again = sum(times > 1 for times in done.values())
        return (
            f"{len(self._sent())} tasks reported as sent; {len(done)} done, {again} of them twice"
            f" or more; {len(self.stopped_in)} finished when told to stop; {answers} calls answered"
        )

    def _sent(self) -> set[str]:
        return {job.task for job in self.jobs if f" [x] Sent {job.task}" in job.out}


def end_of(terminal: Terminal, command: Command, limit: float) -> Ended:
    """Return how a program has ended; kill it if it has not, and it was given `limit` seconds."""
    try:
        code = terminal.wait(limit)
    except subprocess.TimeoutExpired:
        terminal.kill()
        code = None
    return Ended(command, code, terminal.out, terminal.error)


# What stands in for recipes/worker.py: that, with work that fails one time in five. A try that its
# worker does not outlive counts as failed, too, so there are many.
RECIPE_WORKER = r"""
import random, sys
sys.path.insert(0, "recipes")
import worker

def work(job):
    if random.random() < 0.2:
        raise ValueError("not this time")
    print(f"did {job}\n", end="", flush=True)  # in one piece, since several threads print

worker.work, worker.RETRY_DELAYS = work, (1,) * 30
worker.main()
"""


class Recipes:
    """The recipes at work: jobs all the while to two workers, and calls one after the other.

    Whenever a worker of the tutorial is killed, one of these is killed and replaced as well. In the
    end each job that was confirmed was done, and each call got the right answer or failed over a
    lost connection.
    """

    def __init__(self, programs: Programs, outages: Callable[[], float]) -> None:
        """Start all. `outages` returns how often the broker went, or NaN while it is gone."""
        self._programs, self._outages = programs, outages
        parameters = pika.URLParameters(programs.broker.url)
        self._publisher = Publisher(parameters, "jobs")
        self._client = FibonacciRpcClient(parameters)
        self._jobs: list[Future[None]] = []
        self._right, self._lost, self._wrong = 0, 0, list[str]()
        #: All that were started. The last two run.
        self._workers: list[Terminal] = []
        self._start_workers(2)
        self._stopped = threading.Event()  # once it is set, no more is begun
        pool = ThreadPoolExecutor(2)
        self._loops = [pool.submit(self._repeat, each) for each in (self._publish, self._call)]
        pool.shutdown(wait=False)

    def _start_workers(self, number: int) -> None:
        started = [self._programs.start("-c", RECIPE_WORKER) for _ in range(number)]
        self._workers += [worker.expect_ready() for worker in started]

    def kill_worker(self) -> None:
        """Kill the worker that has run for the longest, and start another."""
        self._workers[-2].kill()
        self._start_workers(1)

    def stop(self) -> None:
        """Have no more begun."""
        self._stopped.set()

    def finish(self) -> list[str]:
        """Wait until what was confirmed is done, and end the workers; return what is wrong."""
        self.stop()
        for loop in self._loops:
            loop.result()  # an error of this program's own ends the run
        self._call()  # once more, and with the broker there
        self._publisher.close()
        self._client.close()
        with contextlib.suppress(TimeoutError):  # what is missing is told
            wait_until(lambda: not self._missing(), "all jobs to be done", seconds=60)
        for worker in self._workers[-2:]:
            worker.ctrl_c()
            if code := worker.wait(STOP_LIMIT_S):
                self._wrong.append(f"recipes/worker.py ended with {code}: {worker.error[-1:]}")
        for job in sorted(self._missing()):
            self._wrong.append(f"recipes: confirmed, and never done: {job}")
        if failed := len(self._jobs) - len(self._confirmed()):
            self._wrong.append(f"recipes: {failed} of {len(self._jobs)} jobs were not confirmed")
        return self._wrong

    def _repeat(self, step: Callable[[], None]) -> None:
        while not self._stopped.wait(0.05):
            step()

    def _publish(self) -> None:
        job = str(len(self._jobs)).encode()
        self._jobs.append(self._publisher.publish(job, timeout=120))

    def _call(self) -> None:
        before, n = self._outages(), len(self._jobs) % 1000
        try:
            answer = self._client.call(n, TIMEOUT_S)
        except (pika.exceptions.AMQPError, OSError, RpcError) as error:
            self._lost += 1
            if before == self._outages():
                self._wrong.append(f"recipes/rpc_client.py failed by itself: {error!r}")
        else:
            self._right += answer == fibonacci(n)
            if answer != fibonacci(n):
                self._wrong.append(f"recipes/rpc_client.py says that fib({n}) is {answer}")

    def _confirmed(self) -> set[str]:
        return {
            f"did {number}"
            for number, job in enumerate(self._jobs)
            if job.done() and not job.exception()
        }

    def _missing(self) -> set[str]:
        return self._confirmed().difference(*(worker.out for worker in self._workers))

    def figures(self) -> str:
        """Say how much was done."""
        return (
            f"recipes: {len(self._jobs)} jobs by {len(self._workers)} workers,"
            f" {self._right} calls right, {self._lost} failed with their connection"
        )


class Trial:
    """A run of the programs on a broker, with faults."""

    def __init__(self, broker: OwnBroker, tell: Callable[[str], None]) -> None:
        """Prepare a run; `tell` is called with a line for each fault."""
        self._broker, self._tell = broker, tell
        self._programs = Programs(broker)
        #: The workers and the servers that run.
        self._running: dict[str, list[Terminal]] = {}
        self._pool = ThreadPoolExecutor(SHELLS)
        self._jobs: list[Future[None]] = []
        #: When RabbitMQ was killed.
        self._kills: list[float] = []
        #: How often it went; NaN, which equals nothing, while it is gone.
        self._outages = 0.0
        self._report = Report()

    def run(self, jobs: Sequence[Command], faults: Sequence[Fault]) -> Report:
        """Do the jobs, with the faults; return what came of them."""
        with self._programs:
            for script, number in ((WORKER, WORKERS), (SERVER, SERVERS)):
                self._running[script] = [self._programs.start(script) for _ in range(number)]
                for consumer in self._running[script]:
                    consumer.expect_ready()
            self._broker.settle()
            recipes = Recipes(self._programs, lambda: self._outages)
            with self._pool:
                for job in jobs:
                    self._submit(job)
                try:
                    for fault in faults:
                        self._wait_for_jobs(fault.after)
                        self._carry_out(fault)
                        if fault.what in ("kill a worker", "kill a busy worker"):
                            recipes.kill_worker()
                    self._wait_for_jobs(len(jobs))
                finally:
                    recipes.stop()
                    self._pool.shutdown(wait=False, cancel_futures=True)
            self._report.others += recipes.finish()
            self._tell(recipes.figures())
            self._finish()
        return self._report

    def _submit(self, job: Command) -> None:
        self._jobs.append(self._pool.submit(self._do, job))
        self._report.asked += 1

    def _wait_for_jobs(self, number: int) -> None:
        def through() -> bool:
            done = [job for job in self._jobs if job.done()]
            for job in done:
                job.result()  # an error of this program's own ends the run
            return len(done) >= number

        wait_until(through, f"{number} jobs to be through", seconds=300)

    def _do(self, job: Command) -> None:
        """Do a job until it succeeds."""
        script, *arguments = job
        for attempt in range(1, ATTEMPTS + 1):
            if script == NEW_TASK:  # with a text for each attempt, since each may arrive
                arguments = [f"attempt {attempt}, {job[-1]}"]
            before = self._outages
            terminal = self._programs.start(script, *arguments)
            ended = end_of(terminal, (script, *arguments), LIMITS_S[script])
            self._report.jobs.append(replace(ended, calm=before == self._outages))
            if ended.code == 0:
                return
            wait_until(lambda: not math.isnan(self._outages), "the broker to be back")

    def _carry_out(self, fault: Fault) -> None:
        began = time.monotonic()
        if fault.what.endswith("the broker"):
            outages, self._outages = self._outages + 1, math.nan
            if fault.what == "stop the broker":
                self._broker.stop()
            else:
                self._kills.append(time.perf_counter())  # the clock of what is printed
                self._broker.kill()
            self._broker.start()
            self._outages = outages
        else:
            script = WORKER if fault.what.endswith("worker") else SERVER
            running = self._running[script]
            first = fault.which % len(running)
            consumers = running[first:] + running[:first]
            busy = "busy" in fault.what
            consumer = self._wait_for_busy(script, consumers) if busy else consumers[0]
            self._end(script, consumer, signal.SIGTERM if "stop" in fault.what else signal.SIGKILL)
            running.remove(consumer)
            # A consumer that never had a connection gives up where there is none: it has to be
            # ready before the next fault.
            running.append(self._programs.start(script).expect_ready())
        self._tell(
            f"after {fault.after} jobs: {fault.what}, and start it again"
            f" ({time.monotonic() - began:.1f} s)"
        )

    def _wait_for_busy(self, script: str, consumers: Sequence[Terminal]) -> Terminal:
        def busy() -> Terminal | None:
            if all(job.done() for job in self._jobs):  # and nobody would ever be busy again
                numbers = map(str, NUMBERS[:CALLS])
                self._submit(
                    (NEW_TASK, f"task {len(self._jobs)}.")
                    if script == WORKER
                    else (CLIENT, "--timeout", str(TIMEOUT_S), *numbers)
                )
            return next((each for each in consumers if self._busy(script, each)), None)

        return wait_until(busy, f"a busy {script}", seconds=120)

    def _busy(self, script: str, consumer: Terminal) -> bool:
        if script == WORKER:  # with a task that takes a second
            return any(re.fullmatch(r"Received '.*\.'", line) for line in consumer.messages[-1:])
        # A server does not say when it has answered. While a client has asked and has not got all
        # of its answers, all servers have some to give.
        return any(
            CLIENT in client.command
            and client.process.poll() is None
            and 1 <= len(client.out) <= CALLS
            for client in self._programs.started
        )

    def _end(self, script: str, consumer: Terminal, number: signal.Signals) -> None:
        """Send a worker or a server the signal, and note how it ended."""
        consumer.process.send_signal(number)
        ended = end_of(consumer, (script,), STOP_LIMIT_S)
        self._report.consumers.append(replace(ended, told=number != signal.SIGKILL))

    def _finish(self) -> None:
        """Let the consumers come to an end, stop them, and look at what is left."""

        def left() -> dict[str, int]:
            return {
                q: self._broker.ready(q) + self._broker.unacknowledged(q)
                for q in (TASK_QUEUE, RPC_QUEUE)
            }

        with contextlib.suppress(TimeoutError):  # the report tells what is left
            wait_until(lambda: not any(left().values()), "empty queues")
        for script, consumers in self._running.items():
            for consumer in consumers:
                self._end(script, consumer, signal.SIGINT)
        others = self._report.others
        others += [
            f"{number} messages are left in {queue}" for queue, number in left().items() if number
        ]
        others += [f"still running: {process}" for process in processes_left()]
        self._report.stopped_in = stopped_in(self._programs.printed, self._kills)


def main() -> None:
    """Do a full run; exit with 1 if anything is wrong."""
    parser = parser_with_broker(__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))  # noqa: S311
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
        report = Trial(broker, tell).run(jobs, faults)
    tell(report.figures())
    wrong = list(report.wrong())
    if wrong:
        sys.exit("\n".join(["", *wrong[:20], f"{len(wrong)} wrong, with seed {arguments.seed}"]))
    tell(f"all as it should be, with seed {arguments.seed}")


if __name__ == "__main__":
    main()
