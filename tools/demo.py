"""The tour: every part's scripts at work, each command line as typed and what it printed.

    make demo

It runs on the same broker as the tests would, in the same terminals, and exits with 1 as soon as
a script does not do what the tutorial says.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable

from testbed.broker import Broker, OwnBroker
from testbed.running import parser_with_broker, running_by_hand
from testbed.terminal import Terminal

# One colour a terminal, from those that read on a dark and on a light page.
_COLOURS = (36, 35, 33, 32)


class Stage:
    """What a scene of the tour has: a narrator's voice, and terminals to type in."""

    def __init__(self, broker: Broker, terminals: contextlib.ExitStack) -> None:
        """Have scripts reach `broker`, and end with `terminals` what still runs."""
        self._broker = broker
        self._terminals = terminals
        self._colourful = sys.stdout.isatty()
        #: What each terminal has shown so far, by its number.
        self.shown: dict[int, list[str]] = {}

    def title(self, text: str) -> None:
        """Begin a part."""
        print(f"\n{self._in_colour(1, text)}\n{'=' * len(text)}", flush=True)

    def tell(self, text: str) -> None:
        """Say what comes next, and what to look at."""
        print(f"\n{text}", flush=True)

    def type(self, terminal: int, *command: str) -> Terminal:
        """Type a command line in the terminal of that number."""
        name, url = str(terminal), self._broker.url
        started = Terminal(name, url, self._show, *command, merge=True)
        self._terminals.callback(started.wait)
        self._terminals.callback(started.process.kill)
        return started

    def type_and_wait(self, terminal: int, *command: str, code: int = 0) -> None:
        """Type a command line, and wait until it is through.

        Raises:
            AssertionError: Its exit code is another one.
        """
        self._end(self.type(terminal, *command), code)

    def ctl(self, terminal: int, *arguments: str) -> None:
        """Type a rabbitmqctl command, whose own output is not shown."""
        self._print(terminal, f"$ sudo rabbitmqctl {shlex.join(arguments)}")
        self._own_broker.ctl(*arguments)

    def stop_broker(self) -> None:
        """Shut the broker down; `start_broker` starts it again."""
        self._own_broker.stop()

    def start_broker(self) -> None:
        """Start the broker again."""
        self._own_broker.start()

    @property
    def _own_broker(self) -> OwnBroker:
        assert isinstance(self._broker, OwnBroker), "the scene stops its broker: unset RABBITMQ_URL"
        return self._broker

    def wait_for_acknowledgements(self, queue: str) -> None:
        """Wait until what the consumers of the queue have done is acknowledged, too."""
        self._broker.wait_for_acknowledgements(queue)

    def ctrl_c(self, *terminals: Terminal) -> None:
        """Press Ctrl+C in each terminal.

        Raises:
            AssertionError: An exit code is not 0.
        """
        for terminal in terminals:
            terminal.ctrl_c()
            self._end(terminal)

    def _end(self, terminal: Terminal, code: int = 0) -> None:
        if (ended := terminal.wait()) != code:
            raise AssertionError(f"{terminal.command} ended with exit code {ended}, not {code}")

    def _show(self, terminal: Terminal, line: str) -> None:
        self._print(int(terminal.name), line)

    def _print(self, terminal: int, line: str) -> None:
        self.shown.setdefault(terminal, []).append(line)
        label = f"terminal {terminal} |"
        colour = _COLOURS[terminal % len(_COLOURS)]
        # One write a line: lines of several terminals come at the same time.
        sys.stdout.write(f"  {self._in_colour(colour, label)} {line}\n")
        sys.stdout.flush()

    def _in_colour(self, colour: int, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colourful else text


def hello_world(stage: Stage) -> None:
    """Part I."""
    stage.title("Part I: Hello World")
    stage.tell("A message is sent. Nobody listens yet, so it waits in the queue:")
    stage.type_and_wait(1, "part_1/sender.py")
    stage.tell("A receiver gets it as soon as it starts, and the next one as soon as it is sent:")
    receiver = stage.type(2, "part_1/receive.py").expect("Received")
    stage.type_and_wait(1, "part_1/sender.py")
    receiver.expect("Received", times=2)
    stage.ctrl_c(receiver)


def work_queues(stage: Stage) -> None:
    """Part II."""
    stage.title("Part II: Work Queues")
    stage.tell("A task takes a second for each dot in it. Worker 1 is killed in the middle of one:")
    killed = stage.type(1, "part_2/worker.py").expect_ready()
    stage.type_and_wait(3, "part_2/new_task.py", "Important task..")
    killed.expect("Received")
    killed.kill()
    stage.tell("It had not acknowledged the task, so another worker gets it:")
    workers = [stage.type(2, "part_2/worker.py").expect("Done")]
    stage.tell("Of two workers, the one that is not busy gets the next task:")
    workers.append(stage.type(1, "part_2/worker.py").expect_ready())
    for task in ("Heavy task...", "Light task", "Another light task"):
        stage.type_and_wait(3, "part_2/new_task.py", task)
    workers[0].expect("Done", times=2)
    workers[1].expect("Done", times=2)
    stage.wait_for_acknowledgements("task_queue")
    stage.ctrl_c(*workers)


def publish_subscribe(stage: Stage) -> None:
    """Part III."""
    stage.title("Part III: Publish/Subscribe")
    stage.tell("Whoever listens gets a copy of each message, from the moment on that it listens:")
    first = stage.type(1, "part_3/receive_logs.py").expect_ready()
    stage.type_and_wait(3, "part_3/emit_log.py", "Early bird")
    second = stage.type(2, "part_3/receive_logs.py").expect_ready()
    stage.type_and_wait(3, "part_3/emit_log.py", "Disk almost full")
    first.expect("Early").expect("Disk")
    second.expect("Disk")
    stage.ctrl_c(first, second)


def routing(stage: Stage) -> None:
    """Part IV."""
    stage.title("Part IV: Routing")
    stage.tell("One receiver wants errors only, the other everything:")
    errors = stage.type(1, "part_4/receive_logs_direct.py", "error").expect_ready()
    everything = stage.type(2, "part_4/receive_logs_direct.py", "info", "warning", "error")
    everything.expect_ready()
    stage.type_and_wait(3, "part_4/emit_log_direct.py", "info", "All is well")
    stage.type_and_wait(3, "part_4/emit_log_direct.py", "error", "Disk full")
    errors.expect("Disk full")
    everything.expect("All is well").expect("Disk full")
    stage.ctrl_c(errors, everything)


def topics(stage: Stage) -> None:
    """Part V."""
    stage.title("Part V: Topics")
    stage.tell("One receiver wants all of the kernel's messages, the other all that is critical:")
    kernel = stage.type(1, "part_5/receive_logs_topic.py", "kern.*").expect_ready()
    critical = stage.type(2, "part_5/receive_logs_topic.py", "*.critical").expect_ready()
    for key in ("kern.info", "cron.critical", "kern.critical"):
        stage.type_and_wait(3, "part_5/emit_log_topic.py", key, "A message")
    kernel.expect("kern.info").expect("kern.critical")
    critical.expect("cron.critical").expect("kern.critical")
    stage.ctrl_c(kernel, critical)


def rpc(stage: Stage) -> None:
    """Part VI."""
    stage.title("Part VI: RPC")
    stage.tell("A client asks, and waits for the answers to its three requests:")
    servers = [stage.type(1, "part_6/rpc_server.py").expect_ready()]
    stage.type_and_wait(3, "part_6/rpc_client.py", "30", "5", "12")
    stage.tell("A request that the server cannot do is answered too, and the client says so:")
    stage.type_and_wait(3, "part_6/rpc_client.py", "-1", code=1)
    stage.tell("Slow? A second server takes its share:")
    servers.append(stage.type(2, "part_6/rpc_server.py").expect_ready())
    stage.type_and_wait(3, "part_6/rpc_client.py", "7", "8")
    stage.ctrl_c(*servers)


# What `make demo` plays. The scenes after these are for the text alone, where it breaks things.
SCENES: tuple[Callable[[Stage], None], ...] = (
    hello_world,
    work_queues,
    publish_subscribe,
    routing,
    topics,
    rpc,
)


def hello_world_broken(stage: Stage) -> None:
    """Part I, with a broker that goes."""
    receiver = stage.type(1, "part_1/receive.py").expect_ready()
    stage.stop_broker()
    receiver.wait()
    stage.type_and_wait(2, "part_1/sender.py", code=1)
    stage.start_broker()


def work_queues_broken(stage: Stage) -> None:
    """Part II, with a connection that goes."""
    worker = stage.type(1, "part_2/worker.py").expect_ready()
    stage.ctl(2, "close_all_connections", "Try it")
    worker.expect("[*] Waiting", times=2)
    stage.type_and_wait(2, "part_2/new_task.py", "After all")
    worker.expect("Done")
    stage.wait_for_acknowledgements("task_queue")
    stage.ctrl_c(worker)


def publish_subscribe_broken(stage: Stage) -> None:
    """Part III, with nobody to listen."""
    stage.type_and_wait(2, "part_3/emit_log.py", "Unheard")
    receiver = stage.type(1, "part_3/receive_logs.py").expect_ready()
    stage.type_and_wait(2, "part_3/emit_log.py", "Heard")
    receiver.expect("Heard")
    stage.ctrl_c(receiver)


def routing_broken(stage: Stage) -> None:
    """Part IV, with a severity that is misspelt and one that is missing."""
    receiver = stage.type(1, "part_4/receive_logs_direct.py", "error").expect_ready()
    stage.type_and_wait(2, "part_4/emit_log_direct.py", "eror", "Disk full")
    stage.type_and_wait(2, "part_4/emit_log_direct.py", "error", "Disk full at last")
    receiver.expect("at last")
    stage.ctrl_c(receiver)
    stage.type_and_wait(1, "part_4/receive_logs_direct.py", code=2)


def topics_broken(stage: Stage) -> None:
    """Part V, with a key of four words."""
    three_words = stage.type(1, "part_5/receive_logs_topic.py", "*.*.rabbit").expect_ready()
    any_number = stage.type(2, "part_5/receive_logs_topic.py", "lazy.#").expect_ready()
    for key in ("lazy.orange.new.rabbit", "lazy.orange.rabbit"):
        stage.type_and_wait(3, "part_5/emit_log_topic.py", key, "Hop")
    three_words.expect("lazy.orange.rabbit")
    any_number.expect("lazy.orange.rabbit")
    stage.ctrl_c(three_words, any_number)


def rpc_broken(stage: Stage) -> None:
    """Part VI, with nobody to answer, and a request for too much."""
    stage.type_and_wait(2, "part_6/rpc_client.py", "30", code=1)
    stage.ctrl_c(stage.type(1, "part_6/rpc_server.py").expect_ready())
    stage.type_and_wait(2, "part_6/rpc_client.py", "--timeout", "1", "30", code=1)
    server = stage.type(1, "part_6/rpc_server.py").expect_ready()
    stage.type_and_wait(2, "part_6/rpc_client.py", "20001", code=1)
    stage.ctrl_c(server)


def play(scene: Callable[[Stage], None], broker: Broker) -> dict[int, list[str]]:
    """Play a scene on the broker, and leave it clean; return what each terminal showed.

    Raises:
        AssertionError: It did not go as it should.
    """
    with contextlib.ExitStack() as terminals:
        stage = Stage(broker, terminals)
        scene(stage)
    broker.clean()
    return stage.shown


def main() -> None:
    """Play all scenes; exit with 1 if one does not go as it should."""
    arguments = parser_with_broker(__doc__).parse_args()
    with running_by_hand(arguments.broker) as broker:
        for scene in SCENES:
            play(scene, broker)
    print("\nAll of it ran as it should. README.md tells the story; make test proves it.")


if __name__ == "__main__":
    main()
