"""The tour: every part's scripts at work, each command line as typed and what it printed.

    make demo

It runs on the same broker as the tests would, in the same terminals, and exits with 1 as soon as
a script does not do what the tutorial says.
"""

from testbed.programs import Programs
from testbed.running import parser_with_broker, running_by_hand
from testbed.terminal import Terminal

# A program that only shows messages has nothing to finish, and ends as Ctrl+C ends any program.
VIEWER_ENDED = 130


def tell(text: str) -> None:
    """Say what comes next, and what to look at."""
    print(f"\n{text}", flush=True)


class Stage(Programs):
    """Terminals to type in, by their numbers, which show at once what is printed there."""

    def type(self, terminal: int, *command: str) -> Terminal:
        """Type a command line in the terminal of that number."""
        return self.start(*command, name=str(terminal), merge=True)

    def type_and_wait(self, terminal: int, *command: str, code: int = 0) -> None:
        """Type a command line, and wait until it has ended with that exit code."""
        self.end(self.type(terminal, *command), code)

    def end(self, terminal: Terminal, code: int = 0) -> None:
        """Wait until what runs in the terminal has ended, with that exit code."""
        ended = terminal.wait()
        assert ended == code, f"{terminal.command} ended with exit code {ended}, not {code}"

    def ctrl_c(self, *terminals: Terminal, code: int = 0) -> None:
        """Press Ctrl+C in each terminal, and wait for its program's end."""
        for terminal in terminals:
            terminal.ctrl_c()
            self.end(terminal, code)

    def echo(self, terminal: Terminal, line: str) -> None:
        """Show a line. One write each, since lines of several terminals come at the same time."""
        print(f"  terminal {terminal.name} | {line}\n", end="", flush=True)


def hello_world(stage: Stage) -> None:
    """Part I: Hello World."""
    tell("A message is sent. Nobody listens yet, so it waits in the queue:")
    stage.type_and_wait(1, "part_1/sender.py")
    tell("A receiver gets it as soon as it starts, and the next one as soon as it is sent:")
    receiver = stage.type(2, "part_1/receive.py").expect("Received")
    stage.type_and_wait(1, "part_1/sender.py")
    receiver.expect("Received", times=2)
    tell("Ctrl+C ends the receiver at once:")
    stage.ctrl_c(receiver, code=VIEWER_ENDED)


def work_queues(stage: Stage) -> None:
    """Part II: Work Queues."""
    tell("A task takes a second for each dot in it. Worker 1 is killed in the middle of one:")
    killed = stage.type(1, "part_2/worker.py").expect_ready()
    stage.type_and_wait(3, "part_2/new_task.py", "Important task..")
    killed.expect("Received")
    killed.kill()
    tell("It had not acknowledged the task, so another worker gets it:")
    workers = [stage.type(2, "part_2/worker.py").expect("Done")]
    tell("Of two workers, the one that is not busy gets the next task:")
    workers.append(stage.type(1, "part_2/worker.py").expect_ready())
    for task in ("Heavy task...", "Light task", "Another light task"):
        stage.type_and_wait(3, "part_2/new_task.py", task)
    workers[0].expect("Done", times=2)
    workers[1].expect("Done", times=2)
    stage.broker.wait_for_acknowledgements("task_queue")
    tell("Ctrl+C lets a worker finish its task, if it has one, and then it ends. This has none:")
    stage.ctrl_c(workers[0])
    tell("The other is told in the middle of a task. It finishes that, and takes no more:")
    stage.type_and_wait(3, "part_2/new_task.py", "Current task...")
    workers[1].expect("Current task").ctrl_c()
    stage.type_and_wait(3, "part_2/new_task.py", "Next task.")
    stage.end(workers[1])
    tell("So the next task has waited for another worker:")
    last = stage.type(2, "part_2/worker.py").expect("Done")
    stage.broker.wait_for_acknowledgements("task_queue")
    stage.ctrl_c(last)


def publish_subscribe(stage: Stage) -> None:
    """Part III: Publish/Subscribe."""
    tell("Whoever listens gets a copy of each message, from the moment on that it listens:")
    first = stage.type(1, "part_3/receive_logs.py").expect_ready()
    stage.type_and_wait(3, "part_3/emit_log.py", "Early bird")
    second = stage.type(2, "part_3/receive_logs.py").expect_ready()
    stage.type_and_wait(3, "part_3/emit_log.py", "Disk almost full")
    first.expect("Early").expect("Disk")
    second.expect("Disk")
    stage.ctrl_c(first, second, code=VIEWER_ENDED)


def routing(stage: Stage) -> None:
    """Part IV: Routing."""
    tell("One receiver wants errors only, the other everything:")
    errors = stage.type(1, "part_4/receive_logs_direct.py", "error").expect_ready()
    everything = stage.type(2, "part_4/receive_logs_direct.py", "info", "warning", "error")
    everything.expect_ready()
    stage.type_and_wait(3, "part_4/emit_log_direct.py", "info", "All is well")
    stage.type_and_wait(3, "part_4/emit_log_direct.py", "error", "Disk full")
    errors.expect("Disk full")
    everything.expect("All is well").expect("Disk full")
    stage.ctrl_c(errors, everything, code=VIEWER_ENDED)


def topics(stage: Stage) -> None:
    """Part V: Topics."""
    tell("One receiver wants all of the kernel's messages, the other all that is critical:")
    kernel = stage.type(1, "part_5/receive_logs_topic.py", "kern.*").expect_ready()
    critical = stage.type(2, "part_5/receive_logs_topic.py", "*.critical").expect_ready()
    for key in ("kern.info", "cron.critical", "kern.critical"):
        stage.type_and_wait(3, "part_5/emit_log_topic.py", key, "A message")
    kernel.expect("kern.info").expect("kern.critical")
    critical.expect("cron.critical").expect("kern.critical")
    stage.ctrl_c(kernel, critical, code=VIEWER_ENDED)


def rpc(stage: Stage) -> None:
    """Part VI: RPC."""
    tell("A client asks, and waits for the answers to its three requests:")
    servers = [stage.type(1, "part_6/rpc_server.py").expect_ready()]
    stage.type_and_wait(3, "part_6/rpc_client.py", "30", "5", "12")
    tell("A request that the server cannot do is answered too, and the client says so:")
    stage.type_and_wait(3, "part_6/rpc_client.py", "-1", code=1)
    tell("Slow? A second server takes its share:")
    servers.append(stage.type(2, "part_6/rpc_server.py").expect_ready())
    stage.type_and_wait(3, "part_6/rpc_client.py", "7", "8")
    tell("Ctrl+C ends a server as it ends a worker. These have nothing to finish:")
    stage.ctrl_c(*servers)


#: Each has its title for a docstring.
SCENES = (hello_world, work_queues, publish_subscribe, routing, topics, rpc)


def main() -> None:
    """Play all scenes; exit with 1 if one does not go as it should."""
    arguments = parser_with_broker(__doc__).parse_args()
    with running_by_hand(arguments.broker) as broker:
        for scene in SCENES:
            title = str(scene.__doc__).rstrip(".")
            tell(f"{title}\n{'=' * len(title)}")
            with Stage(broker) as stage:
                scene(stage)
            broker.clean()
    tell("All of it ran as it should. README.md tells the story; make test proves it.")


if __name__ == "__main__":
    main()
