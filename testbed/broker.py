"""A RabbitMQ broker: what a test may ask of any, and what it may do to one of its own."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pika
import requests
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError

from testbed.waiting import wait_until

# All that the scripts declare by name. A test finds none of it, and none of it is left behind.
QUEUES = ("hello", "task_queue", "rpc_queue")
EXCHANGES = ("logs", "direct_logs", "topic_logs")
# What the recipes declare; in tests and the fault run a task is tried again after a second or two.
OF_RECIPES = ("jobs", "jobs.failed", *(f"jobs.retry.{delay}s" for delay in (1, 2, 5, 30, 180)))

# What pika raises where no broker takes a connection.
NO_CONNECTION = (AMQPConnectionError, AMQPConnectorException, OSError)


def ready_in(channel: BlockingChannel, queue: str) -> int:
    """Return how many messages of the queue wait for a consumer, as of now."""
    return int(channel.queue_declare(queue=queue, passive=True).method.message_count)


class NoBrokerError(Exception):
    """No broker of the kind asked for can be had. The text is one line that says why."""


class Broker:
    """A RabbitMQ broker, and what a test may ask of it."""

    #: How it was chosen, for the header of a run.
    description: str
    #: The AMQP address, which stays the same over restarts.
    url: str
    #: The address of the management API, with the login.
    management_url: str

    def start(self) -> None:
        """Start it, with the data that it had, unless it runs; return when it takes logins."""

    def discard(self) -> None:
        """Leave nothing behind that the run made; end it, if it is the run's own.

        To do this once more does no harm.
        """
        self.clean()

    def clean(self) -> None:
        """Delete all that the scripts declare by name."""
        with self.channel() as channel:
            for queue in (*QUEUES, *OF_RECIPES):
                channel.queue_delete(queue=queue)
            for exchange in EXCHANGES:
                channel.exchange_delete(exchange=exchange)

    @contextlib.contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Yield a channel of a connection of its own."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            yield connection.channel()

    @property
    def version(self) -> str:
        """The version that the broker states when a client connects, such as "3.13.7"."""
        return self.stated("version")

    @property
    def release(self) -> tuple[int, ...]:
        """The major and the minor number of its version."""
        return tuple(int(number) for number in self.version.split(".")[:2])

    def stated(self, name: str) -> str:
        """Return what else it states, such as "Erlang/OTP 26.2.5" for its "platform"."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            # BlockingConnection does not pass these on from the connection that it wraps.
            return str(connection._impl.server_properties[name])  # type: ignore[index]

    def ready(self, queue: str) -> int:
        """Return how many messages of the queue wait for a consumer, as of now."""
        with self.channel() as channel:
            return ready_in(channel, queue)

    def wait_for_ready(self, queue: str, number: int) -> None:
        """Wait until so many messages of the queue wait for a consumer."""
        what = f"{number} messages ready in {queue}"
        with self.channel() as channel:
            wait_until(lambda: ready_in(channel, queue) == number, what)

    def consumers(self, queue: str) -> int:
        """Return how many consumers the queue has, as of now."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue=queue, passive=True).method.consumer_count)

    def unacknowledged(self, queue: str) -> int:
        """Return how many messages are with consumers, as of the queue's last report."""
        return int(self.queues()[queue].get("messages_unacknowledged", 0))

    def wait_for_acknowledgements(self, queue: str) -> None:
        """Wait until no message of the queue is unacknowledged.

        A consumer ended earlier, right after it says "Done", may leave its task to be done again.
        Without a management API it is only asked for, and not waited for.
        """
        if self.has_management:
            wait_until(lambda: self.unacknowledged(queue) == 0, "the acknowledgements")

    def queues(self) -> dict[str, dict[str, Any]]:
        """Return each queue's name, properties and counts, from the management API."""
        # The plugin's own statistics are up to 5 s old; the totals are as the queue reported them.
        query = "disable_stats=true&enable_queue_totals=true"
        return {q["name"]: q for q in self.management(f"queues/{self._virtual_host}?{query}")}

    def bindings(self, exchange: str) -> list[dict[str, Any]]:
        """Return what the management API says of each binding from the exchange."""
        path = f"exchanges/{self._virtual_host}/{quote(exchange, safe='')}/bindings/source"
        return list(self.management(path))

    def management(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return what the management API answers to a request for what follows /api/, decoded.

        Raises:
            requests.RequestException: There is no such API, or it refuses.
        """
        address = f"{self.management_url}/api/{path}"
        answer = requests.request(method, address, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @property
    def has_management(self) -> bool:
        """Whether the management API answers."""
        try:
            self.management("whoami")
        except requests.RequestException:
            return False
        return True

    @property
    def _virtual_host(self) -> str:
        return quote(pika.URLParameters(self.url).virtual_host, safe="")


class OwnBroker(Broker, ABC):
    """A broker of the run's own, which may be stopped and killed."""

    #: The address at which it speaks TLS, with a certificate for its host.
    tls_url: str
    #: The certificate of the authority that vouches for it there, as PEM.
    authority: bytes
    #: The Erlang node's name, such as "rabbit@rabbitmq-1", of a node that is in a cluster.
    name: str

    @abstractmethod
    def stop(self) -> None:
        """Shut it down in order; return when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it outright (SIGKILL); return when it has ended."""

    @abstractmethod
    def pause(self) -> None:
        """Stop its processes where they are: it says nothing more, and no connection is closed."""

    @abstractmethod
    def resume(self) -> None:
        """Have its processes go on."""

    @abstractmethod
    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints on this node."""

    @abstractmethod
    def ctl_command(self) -> list[str]:
        """Return the command line that calls rabbitmqctl on this node."""

    @contextlib.contextmanager
    def blocking_publishers(self) -> Iterator[None]:
        """Have it take no more messages meanwhile, as when its memory runs out."""
        self.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", "0.4")

    @contextlib.contextmanager
    def rejecting(self, queue: str, room: int = 1) -> Iterator[None]:
        """Have that queue reject what is more than it has room for meanwhile."""
        definition = {"max-length": room, "overflow": "reject-publish"}
        policy = {"pattern": f"^{queue}$", "apply-to": "queues", "definition": definition}
        self.management("policies/%2F/full", "PUT", policy)
        try:
            yield
        finally:
            self.management("policies/%2F/full", "DELETE")

    def settle(self) -> None:
        """Have all queues that were declared written to disk, as happens soon by itself.

        RabbitMQ 3.10.8 killed outright right after a declaration has sometimes forgotten the queue,
        with what was confirmed in it: 3 of 24 times, and never (of 40) after this.
        """
        self.ctl("eval", "catch mnesia:dump_log(), [dets:sync(Table) || Table <- dets:all()].")

    def _wait_for_login(self) -> None:
        """Wait until the broker takes a login, which is a little after its port is open."""

        def logs_in() -> bool:
            try:
                return bool(self.version)
            except NO_CONNECTION:
                return False

        wait_until(logs_in, f"a login at {self.description}", seconds=120)
