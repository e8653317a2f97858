"""Which broker a run gets, and how it is started, stopped, killed and looked into.

`prepare` takes the first that can be had of: the broker that RABBITMQ_URL names, a container of the
image RABBITMQ_IMAGE (default: rabbitmq:3.13-management), and a private node of an installed
RabbitMQ, whose server RABBITMQ_SERVER may name.

    python -m testbed.broker

says which one that is, and ends with 3 where there is none.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import docker.errors
import pika
import port_for
import psutil
import requests
import trustme
from docker.client import DockerClient, from_env
from docker.utils.utils import parse_repository_tag
from mirakuru import TCPExecutor
from mirakuru.exceptions import ExecutorError
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker
from testcontainers.community.rabbitmq import RabbitMqContainer

KINDS = ("auto", "url", "docker", "local")
DEFAULT_IMAGE = "rabbitmq:3.13-management"
WAYS = (
    "start Docker, or install RabbitMQ (Debian: apt-get install rabbitmq-server, macOS: brew"
    " install rabbitmq), or name a running broker in RABBITMQ_URL"
)

# All that the scripts declare by name. A test finds none of it, and none of it is left behind.
QUEUES = ("hello", "task_queue", "rpc_queue")
EXCHANGES = ("logs", "direct_logs", "topic_logs")

# How often a queue reports its counts to the management plugin. By default every 5 s.
STATISTICS_INTERVAL_MS = 100

# Where the packages of Debian and Homebrew put the server, for who has not got it on the path.
SERVER_PROGRAMS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/homebrew/sbin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
)

# Where the certificate files of a run's own broker are inside a container.
CONTAINER_TLS = "/etc/rabbitmq/tls"

# RabbitMQ 4.3 refuses the queue of Part I by default; earlier versions do not know the setting, or
# permit it anyway. An advanced.config may name what a version does not know, a rabbitmq.conf not.
PERMITTED = "#{transient_nonexcl_queues => true}"
ADVANCED_CONFIG = f"[{{rabbit, [{{permit_deprecated_features, {PERMITTED}}}]}}].\n"

T = TypeVar("T")


class NoBrokerError(Exception):
    """No broker of the kind asked for can be had. The text is one line that says why."""


def wait_until(
    condition: Callable[[], T], what: str, seconds: float = 15, pause: float = 0.02
) -> T:
    """Return the first true result of `condition`, which is asked again after each pause.

    Raises:
        TimeoutError: There was none for `seconds`; the text says `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}; last seen: {result!r}")
        time.sleep(pause)
    return result


def free_ports(number: int) -> list[int]:
    """Return so many free ports, none of which the system will give to an outgoing connection."""
    ports: list[int] = []
    # Processes that run tests side by side must not choose the same before either listens on it.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while len(ports) < number:
        port = port_for.select_random(exclude_ports=ports)
        if port % processes == mine:
            ports.append(port)
    return ports


def tls_files(*hosts: str) -> dict[str, bytes]:
    """Return, by file name, a new certificate for the hosts, its key and its authority, as PEM."""
    authority = trustme.CA()
    server = authority.issue_cert(*hosts)
    return {
        "authority.pem": authority.cert_pem.bytes(),
        "certificate.pem": b"".join(blob.bytes() for blob in server.cert_chain_pems),
        "key.pem": server.private_key_pem.bytes(),
    }


def settings_for_tests(tls_folder: str) -> str:
    """Return what a run's own broker has in its rabbitmq.conf, beside its addresses."""
    return (
        f"collect_statistics_interval = {STATISTICS_INTERVAL_MS}\n"
        f"ssl_options.cacertfile = {tls_folder}/authority.pem\n"
        f"ssl_options.certfile = {tls_folder}/certificate.pem\n"
        f"ssl_options.keyfile = {tls_folder}/key.pem\n"
    )


def get_image(image: str) -> DockerClient:
    """Have Docker get the image, where it has not got it; return a client of its engine.

    Raises:
        NoBrokerError: No Docker engine answers, or the image cannot be had.
    """
    try:
        engine: DockerClient = from_env()
        engine.ping()
    except docker.errors.DockerException as error:
        raise NoBrokerError("no Docker engine answers") from error
    try:
        engine.images.get(image)
    except docker.errors.ImageNotFound:
        print(f"Docker gets the image {image}", file=sys.stderr)
        try:
            engine.images.pull(*parse_repository_tag(image))
        except docker.errors.APIError as error:
            raise NoBrokerError(
                f"Docker answers, but the image {image} cannot be had ({error.explanation})"
            ) from error
    return engine


class Broker(ABC):
    """A RabbitMQ broker, and what a test may ask of it and do to it."""

    #: Whether it was started for this run, and so may be stopped and killed.
    owned = True
    #: How it was chosen, for the header of a run.
    description: str
    #: The Erlang node's name, such as "rabbit@rabbitmq-1", of a node that is in a cluster.
    name: str
    #: The certificate of the authority that vouches for the broker at its `tls_url`, as PEM.
    authority: bytes

    @property
    @abstractmethod
    def url(self) -> str:
        """The AMQP address, which stays the same over restarts."""

    @property
    @abstractmethod
    def tls_url(self) -> str:
        """The address at which it speaks TLS, with a certificate for its host."""

    @property
    @abstractmethod
    def management_url(self) -> str:
        """The address of the management API, with the login."""

    @abstractmethod
    def start(self) -> None:
        """Start it, with the data that it had; return when it takes logins."""

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
    def discard(self) -> None:
        """End it and delete its data. A broker that is not owned keeps all but what was made."""

    @abstractmethod
    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints on this node."""

    def settle(self) -> None:
        """Have all queues that were declared written to disk, as happens soon by itself.

        RabbitMQ 3.10.8 killed outright right after a declaration has sometimes forgotten the queue,
        with what was confirmed in it: 3 of 24 times, and never (of 40) after this. A node of a
        cluster has its replicas in files of their own, and may then not find the one that was made
        last. Khepri, where RabbitMQ keeps its queues in later versions, needs none of the first.
        """
        self.ctl("eval", "catch mnesia:dump_log(), [dets:sync(Table) || Table <- dets:all()].")

    @contextlib.contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Yield a channel of a connection of its own."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            yield connection.channel()

    @property
    def version(self) -> str:
        """The version that the broker states when a client connects, such as "3.13.7"."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            # BlockingConnection does not pass these on from the connection that it wraps.
            return str(connection._impl.server_properties["version"])  # type: ignore[index]

    def ready(self, queue: str) -> int:
        """Return how many messages of the queue wait for a consumer, as of now."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue=queue, passive=True).method.message_count)

    def wait_for_ready(self, queue: str, number: int) -> None:
        """Wait until so many messages of the queue wait for a consumer.

        What a consumer had got is ready again once the broker sees that its connection is closed.
        """
        wait_until(lambda: self.ready(queue) == number, f"{number} messages ready in {queue}")

    def consumers(self, queue: str) -> int:
        """Return how many consumers the queue has, as of now."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue=queue, passive=True).method.consumer_count)

    def unacknowledged(self, queue: str) -> int:
        """Return how many messages are with consumers, as of the queue's last report."""
        return int(self.queues()[queue].get("messages_unacknowledged", 0))

    def messages(self) -> dict[str, int]:
        """Return how many messages each queue has, ready or with consumers, as of now."""
        told = self.ctl("--silent", "list_queues", "name", "messages", "--formatter", "json")
        return {queue["name"]: int(queue["messages"]) for queue in json.loads(told)}

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

    def management(self, path: str, method: str = "GET", body: dict[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return what the management API answers to a request, decoded.

        Args:
            path: What follows /api/ in the address.
            method: Of HTTP.
            body: What to send with it, to be encoded as JSON.

        Raises:
            requests.RequestException: There is no such API, or it refuses.
        """
        address = f"{self.management_url}/api/{path}"
        answer = requests.request(method, address, json=body, timeout=10)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @property
    def has_management(self) -> bool:
        """Whether the management API answers."""
        try:
            self.management("overview")
        except requests.RequestException:
            return False
        return True

    def clean(self) -> None:
        """Delete all that the scripts declare by name."""
        with self.channel() as channel:
            for queue in QUEUES:
                channel.queue_delete(queue=queue)
            for exchange in EXCHANGES:
                channel.exchange_delete(exchange=exchange)

    @property
    def _virtual_host(self) -> str:
        path = unquote(urlsplit(self.url).path)
        return quote(path.removeprefix("/") or "/", safe="")

    def _wait_for_login(self) -> None:
        """Wait until the broker takes a login, which is a little after its port is open."""

        def logs_in() -> bool:
            try:
                pika.BlockingConnection(pika.URLParameters(self.url)).close()
            except (AMQPConnectionError, AMQPConnectorException, OSError):
                return False
            return True

        wait_until(logs_in, f"a login at {self.description}", seconds=60)


class NamedBroker(Broker):
    """Somebody's running broker: it is neither stopped nor killed, and only borrowed."""

    owned = False

    def __init__(self, url: str) -> None:
        """Take the broker at `url`.

        Raises:
            NoBrokerError: It cannot be reached, or has queues or exchanges of the tutorial's names.
        """
        self._url = url
        self.description = "the broker that RABBITMQ_URL names"
        try:
            present = [*self._present("queue", QUEUES), *self._present("exchange", EXCHANGES)]
        except (AMQPConnectionError, AMQPConnectorException, OSError, ValueError) as error:
            raise NoBrokerError(
                f"{self.description} cannot be used: {type(error).__name__}. Unset RABBITMQ_URL"
                " for another one"
            ) from error
        if present:
            raise NoBrokerError(
                f"{self.description} has {', '.join(present)} already. It may be somebody's, so"
                " nothing was touched: delete it, or name another virtual host"
            )

    def _present(self, what: str, names: tuple[str, ...]) -> Iterator[str]:
        for name in names:
            try:
                with self.channel() as channel:
                    if what == "queue":
                        channel.queue_declare(queue=name, passive=True)
                    else:
                        channel.exchange_declare(exchange=name, passive=True)
            except ChannelClosedByBroker as error:
                if error.reply_code == 404:  # NOT_FOUND, the answer that is hoped for
                    continue
                raise NoBrokerError(f"{self.description} refuses: {error.reply_text}") from error
            yield f"the {what} {name!r}"

    @property
    def url(self) -> str:
        """The address that RABBITMQ_URL names."""
        return self._url

    @property
    def management_url(self) -> str:
        """RABBITMQ_MANAGEMENT_URL, by default port 15672 of the same host with the same login."""
        parts = urlsplit(self._url)
        login = f"{parts.username}:{parts.password}@" if parts.username else "guest:guest@"
        default = f"http://{login}{parts.hostname}:15672"
        return os.environ.get("RABBITMQ_MANAGEMENT_URL") or default

    @property
    def has_management(self) -> bool:
        """Whether the management API answers, and is this broker's and not another one's."""
        with self.channel() as channel:
            queue = channel.queue_declare(queue="", exclusive=True).method.queue
            return super().has_management and queue in self.queues()

    def start(self) -> None:
        """Refuse: it is somebody's."""
        raise NotImplementedError("a broker that was only named is not started, stopped or killed")

    stop = kill = pause = resume = start

    @property
    def tls_url(self) -> str:
        """Refuse: only a run's own broker has a certificate that the run knows."""
        raise NotImplementedError("the certificate of a broker that was only named is not known")

    def ctl(self, *arguments: str) -> str:
        """Refuse: it may be on another host."""
        raise NotImplementedError(f"no rabbitmqctl {arguments} on a broker that was only named")

    def discard(self) -> None:
        """Delete what the run made."""
        self.clean()


class Container(Broker):
    """A container of RabbitMQ's image, by testcontainers."""

    def __init__(self, image: str) -> None:
        """Have Docker get the image, where it has not got it.

        Raises:
            NoBrokerError: No Docker engine answers, or the image cannot be had.
        """
        engine = get_image(image)
        self.description = f"a container of {image}"
        # By default it takes these from environment variables, which may be somebody's.
        self._container = RabbitMqContainer(image, 5672, "guest", "guest", "/")
        # Ports that Docker chooses change when a container restarts; a worker could not come back.
        self._published = dict(zip((5671, 5672, 15672), free_ports(3), strict=True))
        for port, published in self._published.items():
            self._container.with_bind_ports(port, published)
        # From inside a container another one is reached at the gateway of their network, which
        # Docker gives the first address.
        networks = engine.networks.list(names=["bridge"])
        subnets = [each["Subnet"] for one in networks for each in one.attrs["IPAM"]["Config"]]
        tls = tls_files("localhost", *(str(ip_network(subnet)[1]) for subnet in subnets))
        self.authority = tls["authority.pem"]
        for name, content in tls.items():
            self._container.with_copy_into_container(content, f"{CONTAINER_TLS}/{name}")
        settings = "listeners.ssl.default = 5671\n" + settings_for_tests(CONTAINER_TLS)
        self._container.with_copy_into_container(
            settings.encode(), "/etc/rabbitmq/conf.d/90-tests.conf"
        )
        self._container.with_copy_into_container(
            ADVANCED_CONFIG.encode(), "/etc/rabbitmq/advanced.config"
        )
        self._created = False

    @property
    def url(self) -> str:
        """The address of the port that Docker publishes."""
        return f"amqp://guest:guest@{self._address(5672)}/%2F"

    @property
    def tls_url(self) -> str:
        """The address of the TLS port that Docker publishes."""
        return f"amqps://guest:guest@{self._address(5671)}/%2F"

    @property
    def management_url(self) -> str:
        """The address of the management plugin's port that Docker publishes."""
        return f"http://guest:guest@{self._address(15672)}"

    def _address(self, port: int) -> str:
        return f"{self._container.get_container_host_ip()}:{self._published[port]}"

    def start(self) -> None:
        """Start the container, the same one each time: its data is inside."""
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True
        self._wait_for_login()

    def stop(self) -> None:
        """Stop the container: Docker sends SIGTERM, and waits."""
        self._container.get_wrapped_container().stop(timeout=60)

    def kill(self) -> None:
        """Kill the container's processes with SIGKILL."""
        self._container.get_wrapped_container().kill()
        self._container.get_wrapped_container().wait()

    def pause(self) -> None:
        """Freeze the container's processes."""
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        """Have them go on."""
        self._container.get_wrapped_container().unpause()

    def discard(self) -> None:
        """Remove the container and its volume."""
        self._container.stop()

    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints in the container."""
        code, output = self._container.exec(["rabbitmqctl", *arguments])
        said = str(output, errors="replace")
        if code:
            raise RuntimeError(said)
        return said


class Node(Broker):
    """A private node of an installed RabbitMQ, with ports, data and a cookie of its own."""

    def __init__(
        self, server: Path, *, cookie: str | None = None, epmd_port: int | None = None
    ) -> None:
        """Prepare a node that the program `server` will run.

        Args:
            server: RabbitMQ's server program.
            cookie: The Erlang cookie of the cluster that it will be in. By default one of its own.
            epmd_port: The port of that cluster's port mapper. By default the node starts its own.
        """
        self.description = f"a private node of {server}"
        self._ctl = server.resolve().with_name("rabbitmqctl")
        self._data = tempfile.TemporaryDirectory(prefix="rabbitmq-tutorial-")
        home = Path(self._data.name)
        ports = free_ports(5)
        self._port, self._tls_port, self._management_port, distribution_port, own_epmd_port = ports
        self.name = f"tutorial-{self._port}@localhost"
        tls = tls_files("localhost")
        self.authority = tls["authority.pem"]
        for name, content in tls.items():
            (home / name).write_bytes(content)
        if cookie:
            (home / ".erlang.cookie").write_text(cookie)
            (home / ".erlang.cookie").chmod(0o400)
        (home / "conf.d").mkdir()
        (home / "advanced.config").write_text(ADVANCED_CONFIG)
        (home / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self._port}\n"
            f"listeners.ssl.local = 127.0.0.1:{self._tls_port}\n"
            f"management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self._management_port}\n"
            f"{settings_for_tests(str(home))}"
        )
        self._stderr = (home / "stderr.log").open("w+")
        # What the machine's own settings in /etc/rabbitmq say is not for this node: https://www.rabbitmq.com/docs/configure#supported-environment-variables
        self._environment = {
            "HOME": str(home),  # where Erlang looks for the cookie, or makes one
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port or own_epmd_port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self._port),
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
        self._executor = TCPExecutor(
            [str(server)],
            host="127.0.0.1",
            port=self._port,
            timeout=60,
            envvars=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )

    def configure(self, settings: str) -> None:
        """Add settings to those of its rabbitmq.conf, before it starts."""
        (Path(self._data.name) / "conf.d" / "cluster.conf").write_text(settings)

    @property
    def address(self) -> str:
        """The host and the port."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The address of the node's port, which stays the same."""
        return f"amqp://guest:guest@localhost:{self._port}/%2F"

    @property
    def tls_url(self) -> str:
        """The address of the node's TLS port, which stays the same."""
        return f"amqps://guest:guest@localhost:{self._tls_port}/%2F"

    @property
    def management_url(self) -> str:
        """The address of the management plugin, on a port of its own."""
        return f"http://guest:guest@localhost:{self._management_port}"

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
            self.discard()
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
        """Stop the node's processes by SIGSTOP."""
        for process in self._processes():
            process.suspend()

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
        return subprocess.run(
            [self._ctl, *arguments],
            env={**os.environ, **self._environment},
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def server_program() -> Path:
    """Return the program that runs a node.

    Raises:
        NoBrokerError: RabbitMQ is not installed, or RABBITMQ_SERVER names no program.
    """
    named = os.environ.get("RABBITMQ_SERVER")
    for candidate in [named] if named else ["rabbitmq-server", *SERVER_PROGRAMS]:
        if found := shutil.which(candidate):
            # Debian's wrapper on the path runs the system's own node, as its user, and no other.
            behind = Path(found).resolve()
            if behind.name == "rabbitmq-script-wrapper":
                return behind.with_name("rabbitmq-server")
            return Path(found)
    if named:
        raise NoBrokerError(f"RABBITMQ_SERVER names {named}, which is no program")
    raise NoBrokerError("RabbitMQ is not installed")


def prepare(kind: str, say: Callable[[str], None]) -> Broker:
    """Return the broker of that kind, one of KINDS, not started yet.

    Args:
        kind: "auto" takes the first that can be had, in the order of KINDS.
        say: Is told in one line, with "auto", why a kind was passed over that one may expect.

    Raises:
        NoBrokerError: There is none.
    """
    url = os.environ.get("RABBITMQ_URL")
    image = os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE
    if kind == "url" and not url:
        raise NoBrokerError("RABBITMQ_URL is not set")
    if kind == "url" or (kind == "auto" and url):
        return NamedBroker(str(url))
    if kind == "docker":
        return Container(image)
    if kind == "local":
        return Node(server_program())
    try:
        return Container(image)
    except NoBrokerError as error:
        no_container = error
    if isinstance(no_container.__cause__, docker.errors.APIError):
        say(f"{no_container}; a private node instead")
    try:
        return Node(server_program())
    except NoBrokerError as no_node:
        raise NoBrokerError(f"{no_container}, and {no_node}; {WAYS}") from no_node


@contextlib.contextmanager
def running(kind: str, say: Callable[[str], None]) -> Iterator[Broker]:
    """Yield the broker of that kind (see `prepare`), started; discard it in the end."""
    # What ends by SIGTERM, as in a pipeline that is cancelled, must not leave a broker behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker = prepare(kind, say)
    try:
        if broker.owned:
            broker.start()
        yield broker
    finally:
        broker.discard()


def parser_with_broker(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a program that is started by hand and takes --broker."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", choices=KINDS, default="auto", help="as pytest's option")
    return parser


@contextlib.contextmanager
def running_by_hand(kind: str) -> Iterator[Broker]:
    """Yield the broker of that kind, as `running` does, to a program that is started by hand.

    Where there is none, or a wait is in vain, that ends with one line; on Ctrl+C with code 130.
    """
    try:
        with running(kind, print) as broker:
            print(f"RabbitMQ {broker.version}, {broker.description}", flush=True)
            yield broker
    except NoBrokerError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except (AssertionError, TimeoutError) as error:
        sys.exit(f"The run ends here: {error}")


def main() -> None:
    """Say which broker a run would get, and get its image; exit with 3 where there is none."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        print(prepare("auto", print).description)
    except NoBrokerError as error:
        print(error, file=sys.stderr)
        sys.exit(3)  # and not with 1, as after an error of another kind


if __name__ == "__main__":
    main()
