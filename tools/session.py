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
SECONDS = 60


class Shell:
    """A terminal with a shell in it."""

    def __init__(self, broker: OwnBroker, programs: Path) -> None:
        """Start it in the repository. `programs` is the first folder on its path."""
        self._url = broker.url
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._shell = pexpect.spawn(
            "bash",
            ["--norc", "--noprofile", "--noediting", "-i"],
            cwd=REPOSITORY,
            env={
                **script_environment(broker.url),
                "PATH": os.pathsep.join(path),
                "PS1": "\x02$?\x03$ ",
                "TERM": "dumb",
            },
            encoding="utf-8",
            dimensions=(50, 400),
            timeout=SECONDS,
        )
        self._shell.sendline("ulimit -c 0")  # a program that Ctrl+\ ends leaves no core file
        for _ in range(2):
            self._new = ""
            self._wait_for_prompt()
        self._new = ""

    def type(self, command: str) -> None:
        """Type a command line."""
        self._new += "$ "
        self._shell.sendline(command.replace(ADDRESS, self._url))

    def wait_for(self, text: str) -> None:
        """Wait until the text is printed, and the line that it stands in."""
        for each in (text, "\n"):
            self._shell.expect_exact(each)
            self._new += f"{self._shell.before}{self._shell.after}"

    def press(self, key: str) -> None:
        """Press a key, one of KEYS."""
        self._shell.send(KEYS[key])

    def wait_for_end(self, code: int) -> None:
        """Wait for the prompt; the program's exit code has to be that one."""
        ended = self._wait_for_prompt()
        assert ended == code, f"exit code {ended}, and not {code}: {self._new}"

    def shown(self) -> str:
        """Return what was shown since the last time."""
        new, self._new = self._new, ""
        return tidy(new.replace(self._url, ADDRESS))

    def close(self) -> None:
        """End it, and what runs in it."""
        self._shell.close(force=True)

    def _wait_for_prompt(self) -> int:
        self._shell.expect(PROMPT)
        self._new += f"{self._shell.before}"
        return int(self._shell.match[1])  # type: ignore[index]


def tidy(text: str) -> str:
    """Return what a terminal showed in a form that is the same at each run."""
    text = text.replace("\r\n", "\n").expandtabs(8)
    text = re.sub(r"amq\.gen-[\w-]+", "amq.gen-…", text)
    # What led to an exception matters less here than what it was.
    text = re.sub(
        r"(?m)^(\S*Traceback \(most recent call last\):)\n(?:[ \n].*\n|\n)*", r"\1\n  …\n", text
    )
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


class Session:
    """The terminals of one page, by their numbers, and the broker that all of them use."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        """Start a broker. It and the shells end with `stack`."""
        broker = prepare("auto")
        if not isinstance(broker, OwnBroker):
            sys.exit("the page stops its broker: unset RABBITMQ_URL")
        self.broker = stack.enter_context(running(broker))
        self._stack = stack
        self._programs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ctl = self._programs / "rabbitmqctl"
        ctl.write_text(f'#!/bin/sh\nexec {shlex.join(self.broker.ctl_command())} "$@"\n')
        ctl.chmod(0o755)
        self._shells: dict[int, Shell] = {}

    def shell(self, number: int) -> Shell:
        """Return the terminal of that number."""
        if number not in self._shells:
            self._shells[number] = Shell(self.broker, self._programs)
            self._stack.callback(self._shells[number].close)
        return self._shells[number]


@functools.cache
def session() -> Session:
    """Return the session of the page, which ends with the process."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return Session(stack)


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
    """Press a key in the terminal, and wait for the end of what ran there, with that exit code."""
    session().shell(terminal).press(key)
    return end(terminal, code)
