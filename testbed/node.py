"""A private node of an installed RabbitMQ, with ports, data and a cookie of its own."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from subprocess import DEVNULL
from typing import IO

import psutil
from mirakuru import TCPExecutor
from mirakuru.exceptions import ExecutorError

from testbed.broker import NoBrokerError, OwnBroker
from testbed.settings import configuration, free_ports
from testbed.waiting import wait_until

# Where the packages of Debian and Homebrew put the server, for who has not got it on the path.
_SERVER_PROGRAMS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/homebrew/sbin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
)


class Node(OwnBroker):
    """A node that this machine's RabbitMQ runs, apart from all that the machine has set up."""

    def __init__(self) -> None:
        """Prepare a node; see `server_program` for what may be missing."""
        server = server_program()
        self.description = f"a private node of {server}"
        self._ctl = server.with_name("rabbitmqctl")
        self._data = tempfile.TemporaryDirectory(prefix="rabbitmq-tutorial-")
        home = Path(self._data.name)
        self.port, tls_port, management_port, distribution_port, epmd_port = free_ports(5)
        self.name = f"tutorial-{self.port}@localhost"
        self.url = f"amqp://guest:guest@localhost:{self.port}/%2F"
        self.tls_url = f"amqps://guest:guest@localhost:{tls_port}/%2F"
        self.management_url = f"http://guest:guest@localhost:{management_port}"
        listeners = (
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.local = 127.0.0.1:{tls_port}\n"
            f"management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {management_port}\n"
        )
        files = configuration(str(home), "rabbitmq.conf", ["localhost"], listeners)
        self.authority = files["authority.pem"]
        for name, content in files.items():
            (home / name).write_bytes(content)
        (home / "conf.d").mkdir()
        (home / "enabled_plugins").write_text("[rabbitmq_management].\n")
        self._stderr = (home / "stderr.log").open("w+")
        # What the machine's own settings in /etc/rabbitmq say is not for this node: https://www.rabbitmq.com/docs/configure#supported-environment-variables
        self._environment = {
            "HOME": str(home),  # where Erlang looks for the cookie, or makes one
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),  # which it starts itself
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(home / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_SCHEMA_DIR": str(home / "schema"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
        }
        # mirakuru ends what the server leaves behind too, such as Erlang's port mapper, epmd.
        self._executor = executor([str(server)], self.port, self._environment, self._stderr)

    def join(self, settings: str, cookie: str, epmd_port: int) -> None:
        """Have it start in a cluster, by these settings, this cookie and that port mapper."""
        home = Path(self._data.name)
        (home / "conf.d" / "cluster.conf").write_text(settings)
        (home / ".erlang.cookie").write_text(cookie)
        (home / ".erlang.cookie").chmod(0o400)
        self._environment["ERL_EPMD_PORT"] = str(epmd_port)  # the executor has this same dict

    def start(self) -> None:
        """Start the node, unless it is running.

        Raises:
            NoBrokerError: It does not start; the text ends with what it said.
        """
        if self._executor.running():
            return
        try:
            self._executor.start()
        except ExecutorError as error:
            self._stderr.seek(0)
            said = self._stderr.read().strip().splitlines()[-3:]
            raise NoBrokerError(f"{self.description} does not start: {' / '.join(said)}") from error
        self._wait_for_login()

    def stop(self) -> None:
        """Shut the node down in order, by SIGTERM."""
        # Which exit code the server's shell script makes of the signal differs between packages.
        with contextlib.suppress(ExecutorError):
            self._executor.stop()

    def kill(self) -> None:
        """Kill the node's processes with SIGKILL."""
        self._executor.kill()
        # mirakuru waits for its own child only, the shell script, and not for the Erlang machine.
        wait_until(lambda: not self._executor.pre_start_check(), "the killed node's port to close")

    def pause(self) -> None:
        """Stop the node's processes by SIGSTOP, and return once they stand still."""
        processes = self._processes()
        for process in processes:
            process.suspend()
        # A signal that was sent has not yet been obeyed.
        stopped = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        wait_until(lambda: all(p.status() in stopped for p in processes), "the node to stand still")

    def resume(self) -> None:
        """Have them go on, by SIGCONT."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        process = self._executor.process
        assert process is not None, "it was never started"
        shell = psutil.Process(process.pid)
        return [shell, *shell.children(recursive=True)]

    def discard(self) -> None:
        """Kill the node and delete its folder."""
        self._executor.kill()
        self._stderr.close()
        self._data.cleanup()

    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints on the node."""
        command = [*self.ctl_command(), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def ctl_command(self) -> list[str]:
        """Return the command line of rabbitmqctl for the node."""
        settings = (f"{name}={value}" for name, value in self._environment.items())
        return ["env", *settings, str(self._ctl)]


def executor(
    command: list[str], port: int, environment: dict[str, str], stderr: int | IO[str] = DEVNULL
) -> TCPExecutor:
    """Return what runs the command, which is to listen on the port, until the end of its `with`."""
    streams = {"stdout": DEVNULL, "stderr": stderr}
    return TCPExecutor(command, "127.0.0.1", port, timeout=60, envvars=environment, **streams)


def server_program() -> Path:
    """Return the program that runs a node. Its path, without links, has RabbitMQ's version.

    Raises:
        NoBrokerError: RabbitMQ is not installed, or RABBITMQ_SERVER names no program.
    """
    named = os.environ.get("RABBITMQ_SERVER")
    for candidate in [named] if named else ["rabbitmq-server", *_SERVER_PROGRAMS]:
        if found := shutil.which(candidate):
            program = Path(found).resolve()
            # Debian's wrapper on the path runs the system's own node, as its user, and no other.
            if program.name == "rabbitmq-script-wrapper":
                program = program.with_name("rabbitmq-server").resolve()
            return program
    if named:
        raise NoBrokerError(f"RABBITMQ_SERVER names {named}, which is no program")
    raise NoBrokerError("RabbitMQ is not installed")
