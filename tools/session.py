"""The terminals of the README: real shells, in which what the page says is typed, in its order.

The page calls `run`, `start`, `watch`, `press` and `end` in its cog comments. Each returns what a
terminal has shown since the last time, and `out` puts that into the page: what happens in which
terminal, step by step. All of it happens on one broker, which is the one that `rabbitmqctl` speaks
to in these shells.
"""

import atexit
import contextlib
import functools
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import pexpect

from testbed.broker import OwnBroker
from testbed.choice import prepare
from testbed.running import running
from testbed.terminal import REPOSITORY, script_environment

# The address that the page shows. The run's own broker has another one.
ADDRESS = "amqp://guest:guest@localhost:5672/%2F"
# Before each prompt stands the last exit code, between two characters that no program prints.
PROMPT = re.compile(r"\x02(\d+)\x03\$ ")
KEYS = {"Ctrl+C": "\x03", "Ctrl+Backslash": "\x1c", "Ctrl+Z": "\x1a"}


class Shell:
    """A terminal with a shell in it."""

    def __init__(self, url: str, programs: Path) -> None:
        """Start it in the repository. `programs` is the first folder on its path."""
        self._url = url
        self.spawn = pexpect.spawn(
            "bash",
            ["--norc", "--noprofile", "--noediting", "-i"],
            cwd=REPOSITORY,
            env={
                **script_environment(url),
                "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PS1": "\x02$?\x03$ ",
                "TERM": "dumb",
            },
            encoding="utf-8",
            dimensions=(50, 400),
            timeout=60,
        )
        self.spawn.sendline("ulimit -c 0")  # a program that Ctrl+\ ends leaves no core file
        for _ in range(2):
            self._new = ""
            self.wait_for_end(0)
        self._new = ""

    def type(self, command: str) -> None:
        """Type a command line."""
        self._new += "$ "
        self.spawn.sendline(command.replace(ADDRESS, self._url))

    def wait_for(self, text: str) -> None:
        """Wait until the text is printed, and the line that it stands in."""
        for each in (text, "\n"):
            self.spawn.expect_exact(each)
            self._new += f"{self.spawn.before}{self.spawn.after}"

    def wait_for_end(self, code: int) -> None:
        """Wait for the prompt; the program's exit code has to be that one."""
        self.spawn.expect(PROMPT)
        self._new += f"{self.spawn.before}"
        ended = int(self.spawn.match[1])  # type: ignore[index]
        assert ended == code, f"exit code {ended}, and not {code}: {self._new}"

    def shown(self) -> str:
        """Return what was shown since the last time, in a form that is the same at each run."""
        text, self._new = self._new.replace(self._url, ADDRESS), ""
        text = text.replace("\r\n", "\n").expandtabs(8)
        text = re.sub(r"amq\.gen-[\w-]+", "amq.gen-…", text)
        # What led to an exception matters less here than what it was.
        traceback = r"(?m)^(\S*Traceback \(most recent call last\):)\n(?:[ \n].*\n|\n)*"
        text = re.sub(traceback, r"\1\n  …\n", text)
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


class Session(contextlib.ExitStack):
    """The terminals of one page, by their numbers, on one broker; closing it ends them all."""

    def __init__(self) -> None:
        """Start a broker."""
        super().__init__()
        broker = prepare("auto")
        if not isinstance(broker, OwnBroker):
            sys.exit("the page stops its broker: unset RABBITMQ_URL")
        self._url = self.enter_context(running(broker)).url
        self._programs = Path(self.enter_context(tempfile.TemporaryDirectory()))
        ctl = self._programs / "rabbitmqctl"
        ctl.write_text(f'#!/bin/sh\nexec {shlex.join(broker.ctl_command())} "$@"\n')
        ctl.chmod(0o755)
        self._shells: dict[int, Shell] = {}

    def shell(self, number: int) -> Shell:
        """Return the terminal of that number."""
        if number not in self._shells:
            self._shells[number] = Shell(self._url, self._programs)
            self.enter_context(self._shells[number].spawn)
        return self._shells[number]


@functools.cache
def session() -> Session:
    """Return the session of the page, which ends with the process."""
    session = Session()
    atexit.register(session.close)
    return session


def out(*parts: str) -> None:
    """Put into the page what terminals have shown, one after the other."""
    import cog  # type: ignore[import-not-found]  # it is there while cog reads a page

    text, last = "", ""
    for part in filter(None, parts):
        heading, lines = part.split("\n", 1)
        text += lines if heading == last else part
        last = heading
    cog.out(f"```console\n{text}```\n")


def quiet(*_: str) -> str:
    """Return nothing: what was typed needs no place on the page."""
    return ""


def show(terminal: int) -> str:
    """Return what the terminal has shown since the last time, with its number above."""
    return f"# terminal {terminal}\n{session().shell(terminal).shown()}\n"


def run(terminal: int, *commands: str, code: int = 0) -> str:
    """Type command lines in the terminal, one after the other. Each has to end with that code."""
    for command in commands:
        session().shell(terminal).type(command)
        session().shell(terminal).wait_for_end(code)
    return show(terminal)


def start(terminal: int, command: str, *texts: str) -> str:
    """Type a command line in the terminal, and wait until it has printed the texts, in order."""
    session().shell(terminal).type(command)
    return watch(terminal, *texts)


def watch(terminal: int, *texts: str) -> str:
    """Wait until the terminal has shown the texts, in that order."""
    for text in texts:
        session().shell(terminal).wait_for(text)
    return show(terminal)


def end(terminal: int, code: int) -> str:
    """Wait for the end of what runs in the terminal, with that exit code."""
    session().shell(terminal).wait_for_end(code)
    return show(terminal)


def press(terminal: int, key: str, code: int) -> str:
    """Press one of KEYS in the terminal, and wait for the end of what ran there, with that code."""
    session().shell(terminal).spawn.send(KEYS[key])
    return end(terminal, code)
