"""A script run as a person runs it: its command line, the lines it prints, Ctrl+C."""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
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
    """One terminal, with one script running in it."""

    def __init__(
        self, name: str, command: Sequence[str], process: subprocess.Popen[str], echo: Echo
    ) -> None:
        """Read what the process prints, as far as that goes to pipes.

        It runs `command`, a script's path and its arguments. `echo` is called with this terminal
        and each line, as it is printed.
        """
        self.name = name
        # Arguments need not be UTF-8, while this is for showing.
        self.command = shlex.join(["python", *command]).encode(errors="replace").decode()
        self.process = process
        #: The lines printed on standard output and on standard error so far.
        self.out: list[str] = []
        self.error: list[str] = []
        self._printed = threading.Condition()
        self._echo = echo
        echo(self, f"$ {self.command}")
        self._readers = [
            threading.Thread(target=self._read, args=reader, daemon=True)
            for reader in ((process.stdout, self.out), (process.stderr, self.error))
            if reader[0]
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                self._echo(self, line.rstrip("\n"))
                with self._printed:
                    lines.append(line.rstrip("\n"))
                    self._printed.notify_all()

    @property
    def messages(self) -> list[str]:
        """What followed ` [x] ` in the lines printed so far, such as "Received 'Hello World!'"."""
        return [line.removeprefix(" [x] ") for line in self.out if line.startswith(" [x] ")]

    def expect(self, text: str, times: int = 1, seconds: float = PATIENCE) -> Self:
        """Wait until `text` stands in so many lines of the output, errors included.

        Raises:
            AssertionError: It does not within `seconds`, or the script ended without it.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            if ended:
                self.wait()  # for its last lines
            with self._printed:
                seen = sum(text in line for line in (*self.out, *self.error))
                if seen >= times:
                    return self
                if ended or time.monotonic() > deadline:
                    why = f"exit code {self.process.returncode}" if ended else f"{seconds} s"
                    raise AssertionError(
                        f"{self.name}, {self.command}: {text!r} was printed {seen} times of {times}"
                        f" ({why}): {self.out + self.error}"
                    )
                self._printed.wait(0.1)  # and no longer: an end without a last line tells nobody

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
        for reader in self._readers:
            reader.join(5)
        return code
