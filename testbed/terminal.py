"""A script run as a person runs it: its command line, the lines it prints, Ctrl+C."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Self

from testbed.waiting import PATIENCE

REPOSITORY = Path(__file__).resolve().parent.parent

Echo = Callable[["Terminal", str], None]


def replaced(text: str, *replacements: tuple[str, str]) -> str:
    """Return the text with each old part, which has to stand there once, replaced by the new."""
    for old, new in replacements:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in: {text}"
        text = text.replace(old, new)
    return text


def script_environment(url: str) -> dict[str, str]:
    """Return the environment for a script that is to reach the broker at `url`."""
    environment = {**os.environ, "RABBITMQ_URL": url}
    # Some machines export it, and it would hide a flush that is missing.
    environment.pop("PYTHONUNBUFFERED", None)
    return environment


class Terminal:
    """One terminal, with one script running in it.

    Its output goes to pipes, so that what a script forgets to flush is not seen here either.
    """

    def __init__(
        self,
        name: str,
        url: str,
        echo: Echo,
        *command: str,
        merge: bool = False,
        stdout: int = subprocess.PIPE,
    ) -> None:
        """Start `command`, such as "part_2/new_task.py", "First task.".

        Args:
            name: What it is called where several terminals are shown together.
            url: The broker's address, which the script gets as RABBITMQ_URL.
            echo: Is called with this terminal and each line, as it is printed.
            command: A script's path from the repository on, and its arguments.
            merge: Whether its errors come with its output, in the order in which both are printed.
            stdout: Where its output goes, if that is not to be seen here: a file descriptor.
        """
        self.name = name
        # Arguments need not be UTF-8, while this is for showing.
        self.command = shlex.join(["python", *command]).encode(errors="replace").decode()
        self._echo = echo
        self._out: list[str] = []
        self._error: list[str] = []
        self._printed = threading.Condition()
        echo(self, f"$ {self.command}")
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=script_environment(url),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._readers = [
            threading.Thread(target=self._read, args=reader, daemon=True)
            for reader in ((self.process.stdout, self._out), (self.process.stderr, self._error))
            if reader[0]
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._printed:
                    lines.append(line.rstrip("\n"))
                    self._echo(self, lines[-1])
                    self._printed.notify_all()

    @property
    def out(self) -> list[str]:
        """The lines printed on standard output so far."""
        return list(self._out)

    @property
    def messages(self) -> list[str]:
        """What followed ` [x] ` in the lines printed so far, such as "Received 'Hello World!'"."""
        return [line.removeprefix(" [x] ") for line in self.out if line.startswith(" [x] ")]

    @property
    def error(self) -> list[str]:
        """The lines printed on standard error so far."""
        return list(self._error)

    def expect(self, text: str, times: int = 1, seconds: float = PATIENCE) -> Self:
        """Wait until `text` stands in so many lines of the output, errors included.

        Raises:
            AssertionError: It does not within `seconds`, or the script ended without it.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            if ended:
                self._join()
            with self._printed:
                seen = sum(text in line for line in (*self._out, *self._error))
                if seen >= times:
                    return self
                left = deadline - time.monotonic()
                if ended or left < 0:
                    why = f"exit code {self.process.returncode}" if ended else f"{seconds} s"
                    raise AssertionError(
                        f"{self.name}, {self.command}: {text!r} was printed {seen} times of {times}"
                        f" ({why}): {self._out + self._error}"
                    )
                # An end without a last line notifies nobody, hence no wait for all that is left.
                self._printed.wait(min(left, 0.1))

    def expect_ready(self) -> Self:
        """Wait until the consumer says that it waits for messages."""
        return self.expect("[*] ")

    def ctrl_c(self) -> None:
        """Press Ctrl+C."""
        self._echo(self, "^C")
        self.process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """Send SIGTERM, as containers and services are stopped."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the script outright (SIGKILL), and wait for its end."""
        self._echo(self, "killed")
        self.process.kill()
        self.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit code, once the script has ended and all its lines are here."""
        code = self.process.wait(seconds)
        self._join()
        return code

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(5)


@contextlib.contextmanager
def into_file(file: Path, url: str, *command: str, merge: bool = False) -> Iterator[Terminal]:
    """Run a script with its standard output in a file, as by `> file`, and kill it in the end.

    With `merge` its errors go there too.
    """
    with file.open("wb") as output:
        out = output.fileno()
        terminal = Terminal(str(file), url, lambda *_: None, *command, merge=merge, stdout=out)
        try:
            yield terminal
        finally:
            terminal.kill()
