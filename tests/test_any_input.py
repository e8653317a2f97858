"""What takes any input gets any: addresses, arguments, requests, numbers, timeouts, patterns."""

import contextlib
import importlib
import io
import os
import re
import runpy
import signal
import sys
from itertools import product
from pathlib import Path
from unittest import mock

import pika
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import UnroutableError

from part_6.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import Broker
from testbed.programs import CLIENT, SERVER
from testbed.terminal import REPOSITORY
from tests.conftest import Run
from tests.scripts import SCRIPTS, WITH_KEY, command, fails_with_one_line
from tools.faults import fibonacci

# The same examples in each run, and as much time for each as a busy machine takes.
settings.register_profile("stable", derandomize=True, deadline=None, database=None)
settings.load_profile("stable")

# What a script exits with that cannot take its address: it is printed on stderr, and the exit code
# is 1. It quotes nothing of the address.
NO_ADDRESS = " [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F"

MODULES = {s: importlib.import_module(s.removesuffix(".py").replace("/", ".")) for s in SCRIPTS}


class Connecting(BaseException):
    """Raised in place of connecting."""


def run_in_process(script: str, *arguments: str, url: str) -> tuple[object, str, str]:
    """Run a script's `main` up to where it connects.

    Return the parameters by which it would, or its exit code or last words; and what it printed on
    standard output, and on standard error.
    """
    out, error = (
        io.TextIOWrapper(io.BytesIO(), errors="backslashreplace", write_through=True)
        for _ in range(2)
    )
    with (
        mock.patch.object(MODULES[script], "RABBITMQ_URL", url),
        mock.patch.object(sys, "argv", ["script.py", *arguments]),
        mock.patch.object(pika, "BlockingConnection", side_effect=Connecting) as connection,
        mock.patch.object(signal, "signal"),
        mock.patch.object(os, "_exit", side_effect=AssertionError),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        # The scripts raise nothing but these: an error of another kind fails the test.
        result: object = "returned"
        try:
            MODULES[script].main()
        except Connecting:
            (result,) = connection.call_args.args
        except SystemExit as end:
            result = end.code
    for printed in (out, error):
        printed.seek(0)
    return result, out.read(), error.read()


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
    result, *printed = run_in_process(*command(script), url=url)
    if isinstance(result, pika.URLParameters):
        # Its host stands there, and is not the one that pika takes by default.
        assert result.host
        assert result.host in url.lower()
        assert result.host != "localhost" or "localhost" in url.lower()
        assert re.match("amqps?://", url)
        assert url.isascii()
        assert not (result.blocked_connection_timeout or 0) <= 0
        assert "blocked_connection_timeout" in url or result.blocked_connection_timeout == 30
    else:
        assert result == NO_ADDRESS
    assert printed == ["", ""]


def test_an_address_that_is_one_is_taken() -> None:
    good = ("amqp://rabbit.example", "amqps://a:b@[::1]:1/%2F", "amqp://u:p%40@_h/")
    for script, url in product(SCRIPTS, good):
        taken, *printed = run_in_process(*command(script), url=url)
        assert isinstance(taken, pika.URLParameters)
        assert taken.host in url
        assert taken.blocked_connection_timeout == 30
        assert printed == ["", ""]


@pytest.mark.parametrize("unset", [{}, {"RABBITMQ_URL": ""}])
def test_without_an_address_it_is_the_default_one(unset: dict[str, str]) -> None:
    with mock.patch.dict(os.environ, unset, clear=True):
        addresses = {runpy.run_path(str(REPOSITORY / s))["RABBITMQ_URL"] for s in SCRIPTS}
    assert addresses == {"amqp://guest:guest@localhost:5672/%2F"}


# Each has been taken for another, or has shown the password or a traceback, in some version.
NO_ADDRESSES = (
    "localhost",
    "rabbit.example/%2F",
    "http://guest:s3cret@localhost:5672/%2F",
    '"amqp://guest:s3cret@localhost:5672/%2F"',
    "amqp:/user:s3cret@rabbit.example:5672/%2F",
    "amqp://",
    "amqp://guest:s3cret@:5672/%2F",
    "amqp:///%2F",
    "amqp://?heartbeat=1",
    os.fsdecode(b"amqp://guest:s3cret\xff@localhost:5672/%2F"),
    "amqp://guest:s3cret/word@localhost:5672/%2F",
    "amqp://guest:s3cret@localhost:port/%2F",
    "amqp://guest:s3cret@localhost:99999/%2F",
    "amqp://s3cret@localhost:5672/%2F",
    "amqp://guest:s3cret@local..host:5672/%2F",
    "amqp://guest:s3cret@[::1:5672/%2F",
    "amqp://guest:s3cret@localhost:5672/%2F?heartbeat=often",
    "amqp://guest:s3cret@localhost:5672/%2F?nonsense=1",
    "amqps://guest:s3cret@localhost:5671/%2F?ssl_options={",
    "amqps://guest:s3cret@localhost:5671/%2F?ssl_options=[]",
    "amqps://guest:s3cret@localhost:5671/%2F?ssl_options={'cafile':'gone'}",
    "amqp://guest:s3cret@localhost:5672/%2F?tcp_options={'TCP_KEEPIDLE':'x'}",
)


def test_no_script_takes_what_is_no_address() -> None:
    for script, url in product(SCRIPTS, NO_ADDRESSES):
        assert run_in_process(*command(script), url=url) == (NO_ADDRESS, "", ""), (script, url)


def test_a_wrong_address_ends_a_script_in_one_line(run: Run) -> None:
    sender = run("part_1/sender.py", url="localhost")
    fails_with_one_line(sender)
    assert (sender.out, sender.error) == ([], [NO_ADDRESS])


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
@example(script=CLIENT, arguments=["--timeout=inf"])
def test_arguments_are_taken_or_refused_with_the_usage(script: str, arguments: list[str]) -> None:
    result, out, error = run_in_process(script, *arguments, url="amqp://rabbit.example")
    if isinstance(result, pika.URLParameters):
        assert (out, error) == ("", "")
    elif result == 0:
        assert "Run it: python" in out
        assert error == ""
    else:
        assert (result, out) == (2, "")
        assert error.startswith("usage: ")


def test_wrong_arguments_are_refused_with_the_usage() -> None:
    wrong = [[*command(script), "--nonsense"] for script in SCRIPTS]
    wrong += [[script] for script in WITH_KEY]  # it is missing
    wrong += [[CLIENT, words] for words in ("--timeout=nan", "--timeout=0", "9" * 5000)]
    for script, *arguments in wrong:
        code, out, error = run_in_process(script, *arguments, url="amqp://rabbit.example")
        assert (code, out, error.partition(" ")[0]) == (2, "", "usage:"), (script, arguments)


def test_help_says_how_to_call_it() -> None:
    for script in SCRIPTS:
        code, said, error = run_in_process(script, "--help", url="amqp://rabbit.example")
        assert (code, error) == (0, "")
        assert f"python {script}" in said
        partners = [Path(other) for other in SCRIPTS if Path(other).parent == Path(script).parent]
        assert [partner.name for partner in partners if partner.name not in said] == []


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
