"""What takes any input gets any: addresses, arguments, requests, numbers, timeouts, patterns."""

import contextlib
import importlib
import io
import os
import re
import signal
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from unittest import mock

import pika
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import UnroutableError

from part_6.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import Broker
from testbed.programs import CLIENT, SERVER
from tests.conftest import Run
from tests.scripts import SCRIPTS, WITH_KEY, command
from tests.test_scripts import NO_ADDRESS, NO_ADDRESSES
from tools.faults import fibonacci

# The same examples in each run, and as much time for each as a busy machine takes.
settings.register_profile("stable", derandomize=True, deadline=None, database=None)
settings.load_profile("stable")

MODULES = {s: importlib.import_module(s.removesuffix(".py").replace("/", ".")) for s in SCRIPTS}


class Connecting(BaseException):
    """Raised in place of connecting: with these parameters."""

    def __init__(self, parameters: pika.URLParameters) -> None:
        super().__init__()
        self.parameters = parameters

    @classmethod
    def connect(cls, parameters: pika.URLParameters) -> None:
        """Stand in for pika.BlockingConnection."""
        raise cls(parameters)


class Ended(BaseException):
    """Raised in place of the end of the process."""


def run_in_process(script: ModuleType, url: str, arguments: list[str]) -> tuple[object, str]:
    """Run a script's `main` up to where it connects.

    Return the parameters by which it would, or its exit code or last words; and what it printed.
    """
    printed = io.TextIOWrapper(io.BytesIO(), errors="backslashreplace", write_through=True)
    result: object
    with (
        mock.patch.object(script, "RABBITMQ_URL", url),
        mock.patch.object(sys, "argv", ["script.py", *arguments]),
        mock.patch.object(pika, "BlockingConnection", Connecting.connect),
        mock.patch.object(signal, "signal"),
        mock.patch.object(os, "_exit", side_effect=Ended),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        # The scripts raise nothing but these: an error of another kind fails the test.
        try:
            script.main()
        except Connecting as connecting:
            result = connecting.parameters
        except SystemExit as end:
            result = end.code
        else:
            result = "returned"
    printed.seek(0)
    return result, printed.read()


OPTIONS = ["heartbeat", "blocked_connection_timeout", "ssl_options", "tcp_options", "nonsense"]
VALUES = ["1", "-1", "1e999", "nan", "[]", "{}", "{'cafile':1}", "{'TCP_KEEPIDLE':'x'}", "{[]:1}"]
# What an address may have in each of its places, the usual first and more often.
PLACES = (
    ["amqp://"] * 6 + ["amqps://", "amqp:/", "AMQP://", "http://", "//", "", '"amqp://'],
    ["", "guest:guest@", "a:p%40ss@"] * 3 + ["a@", "a:b@c:d@", "a:/@"],
    ["localhost", "rabbit.example", "[::1]"] * 3 + ["LocalHost", "[::1", "a..b", ".", ""],
    ["", ":5672"] * 4 + [":", ":99999", ":-1", ":port"],
    ["", "/", "/%2F"] * 2 + ["/%FF", "/a/b", "//"],
    ["", "?heartbeat=1", "?blocked_connection_timeout=5"] * 15
    + [f"?{option}={value}" for option, value in product(OPTIONS, VALUES)],
)
ADDRESSES = (
    st.tuples(*map(st.sampled_from, PLACES)).map("".join).filter(bool)
    | st.tuples(st.just("amqp://"), st.text(min_size=1), st.just("@h")).map("".join)
    | st.binary(min_size=1).map(os.fsdecode)  # as the environment may have it
)


@settings(max_examples=200)
@given(script=st.sampled_from(SCRIPTS), url=ADDRESSES)
@example(script=CLIENT, url="amqp://rabbit.example")
def test_an_address_is_taken_as_it_is_or_refused_in_one_line(script: str, url: str) -> None:
    result, printed = run_in_process(MODULES[script], url, command(script)[1:])
    if isinstance(result, pika.URLParameters):
        # Its host stands there, and is not the one that pika takes by default.
        assert result.host
        assert result.host in url.lower()
        assert result.host != "localhost" or "localhost" in url.lower()
        assert re.match("amqps?://", url)
        assert url.isascii()
        assert not (result.blocked_connection_timeout or 0) <= 0
        assert "blocked_connection_timeout" in url or result.blocked_connection_timeout == 30
        assert printed == ""
    else:
        assert (result, printed) == (NO_ADDRESS, "")  # which exits with 1, and quotes nothing


def test_an_address_that_is_one_is_taken() -> None:
    for script in SCRIPTS:
        for url in ("amqp://rabbit.example", "amqps://a:b@[::1]:1/%2F", "amqp://u:p%40@_h/"):
            taken, printed = run_in_process(MODULES[script], url, command(script)[1:])
            assert isinstance(taken, pika.URLParameters)
            assert taken.host in url
            assert taken.blocked_connection_timeout == 30
            assert printed == ""


def test_no_script_takes_what_is_no_address() -> None:
    for script, url in product(SCRIPTS, NO_ADDRESSES):
        assert run_in_process(MODULES[script], url, command(script)[1:]) == (NO_ADDRESS, "")


TIMEOUTS = st.floats().map(str) | st.text(max_size=5)
ARGUMENTS = st.lists(
    st.text(max_size=10)
    | st.binary(max_size=5).map(os.fsdecode)
    | st.integers().map(str)
    | TIMEOUTS.map("--timeout={}".format),
    max_size=4,
).filter(lambda arguments: not any("\0" in argument for argument in arguments))


@settings(max_examples=200)
@given(script=st.sampled_from(SCRIPTS), arguments=ARGUMENTS)
@example(script=CLIENT, arguments=["--timeout=nan"])
@example(script=CLIENT, arguments=["--timeout=inf"])
@example(script=CLIENT, arguments=["--timeout=0"])
@example(script=CLIENT, arguments=["9" * 5000])
@example(script=CLIENT, arguments=["--nonsense"])
def test_arguments_are_taken_or_refused_with_the_usage(script: str, arguments: list[str]) -> None:
    result, printed = run_in_process(MODULES[script], "amqp://rabbit.example", arguments)
    if isinstance(result, pika.URLParameters):
        assert printed == ""
    elif result == 0:
        assert "Run it: python" in printed
    else:
        assert result == 2
        assert printed.startswith("usage: ")


def test_help_says_how_to_call_it() -> None:
    for script in SCRIPTS:
        code, said = run_in_process(MODULES[script], "amqp://rabbit.example", ["--help"])
        assert code == 0
        assert f"python {script}" in said
        partners = [Path(other) for other in SCRIPTS if Path(other).parent == Path(script).parent]
        assert [partner.name for partner in partners if partner.name not in said] == []


def test_a_script_that_needs_a_key_says_so() -> None:
    for script in WITH_KEY:
        code, said = run_in_process(MODULES[script], "amqp://rabbit.example", [])
        assert (code, said.partition(" ")[0]) == (2, "usage:")


BODIES = st.binary(max_size=30) | st.text("0123456789", max_size=7).map(str.encode)


def answer_to(body: bytes) -> tuple[str, str | None]:
    """Return what the server is to answer: "result" and its text, or "error"."""
    if re.fullmatch(rb"[0-9]{1,5}", body) and int(body) <= 20_000:
        return "result", str(fibonacci(int(body)))
    return "error", None


def test_any_request_is_answered_once(run: Run, broker: Broker, channel: Channel) -> None:
    queue = str(channel.queue_declare(queue="", exclusive=True).method.queue)

    @settings(max_examples=30)
    @given(bodies=st.lists(BODIES, min_size=1, max_size=10))
    @example(bodies=[b"", b"20000", b"20001", b"00007", b"9" * 5000, b"-1", b"1_0", b" 1"])
    @example(bodies=["²".encode(), b"\x1b[31m"])
    def ask(bodies: list[bytes]) -> None:
        for number, body in enumerate(bodies):
            properties = BasicProperties(reply_to=queue, correlation_id=str(number))
            channel.basic_publish(
                exchange="", routing_key="rpc_queue", body=body, properties=properties
            )
        answers = channel.consume(queue=queue, auto_ack=True, inactivity_timeout=60)
        for number, body in enumerate(bodies):
            _, answered, text = next(answers)
            assert answered and text is not None  # noqa: PT018
            assert answered.correlation_id == str(number)
            kind, expected = answer_to(body)
            assert answered.type == kind
            assert expected in (None, text.decode())
            assert text.decode().isprintable()  # so that an error colours no terminal
            assert len(text) < 5000

    run(SERVER).expect_ready()
    ask()
    assert channel.queue_declare(queue=queue, passive=True).method.message_count == 0


NUMBERS = st.integers(-5, 30) | st.integers(19_990, 20_010) | st.sampled_from([10**4299, 10**5000])
SECONDS = st.floats(max_value=0.002) | st.floats(min_value=30) | st.just(float("nan"))


def test_any_call_ends_in_the_right_number_or_an_error(run: Run, broker: Broker) -> None:
    run(SERVER).expect_ready()
    with FibonacciRpcClient(pika.URLParameters(broker.url)) as client:

        @settings(max_examples=100)
        @given(n=NUMBERS, timeout=SECONDS)
        @example(n=5, timeout=float("inf"))
        @example(n=5, timeout=-0.5)
        @example(n=5, timeout=0.0)
        def call(n: int, timeout: float) -> None:
            try:
                number = client.call(n, timeout=timeout)
            except TimeoutError:
                assert not timeout > 1
            except RpcError:
                assert not 0 <= n <= 20_000
            except ValueError:
                assert n >= 10**4300  # Python itself does not print it
            else:
                assert number == fibonacci(n)
                assert timeout > 0
            assert client.requests == {}

        call()
        assert client.call(12) == 144


WORDS = st.sampled_from(["", "a", "b", "lazy"])
KEYS = st.lists(WORDS, max_size=5).map(".".join)
PATTERNS = st.lists(WORDS | st.sampled_from(["*", "#"]), max_size=5).map(".".join)


def matches(pattern: list[str], words: list[str]) -> bool:
    """Return whether a pattern matches: `*` is one word, and `#` any number of words."""
    if not pattern:
        return not words
    first, *rest = pattern
    if first == "#":
        return any(matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and matches(rest, words[1:])


def words_of(key: str) -> list[str]:
    """Return the words of a key or a pattern: none, or one more than there are dots."""
    return key.split(".") if key else []


def test_topic_patterns_match_as_the_text_says(channel: Channel) -> None:
    channel.exchange_declare(exchange="topic_logs", exchange_type="topic")
    channel.confirm_delivery()

    @settings(max_examples=100)
    @given(patterns=st.lists(PATTERNS, min_size=1, max_size=2), key=KEYS)
    @example(patterns=["#"], key="")
    @example(patterns=["*"], key="")
    @example(patterns=["*.*"], key=".")
    @example(patterns=["#.*"], key="a")
    @example(patterns=["a.#.#.b"], key="a.b")
    def route(patterns: list[str], key: str) -> None:
        queue = channel.queue_declare(queue="", exclusive=True).method.queue
        for pattern in patterns:
            channel.queue_bind(queue=queue, exchange="topic_logs", routing_key=pattern)
        try:
            channel.basic_publish(exchange="topic_logs", routing_key=key, body=b"", mandatory=True)
            routed = 1
        except UnroutableError:
            routed = 0
        assert routed == any(matches(words_of(p), words_of(key)) for p in patterns)
        # Once, though two bindings match.
        assert channel.queue_delete(queue=queue).method.message_count == routed

    route()
