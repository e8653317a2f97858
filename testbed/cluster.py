"""Three nodes in a cluster, behind one address, with the configuration of docker-compose.yml.

They are containers of RABBITMQ_IMAGE behind one of HAPROXY_IMAGE (default: haproxy:3.0), or private
nodes of an installed RabbitMQ behind an installed HAProxy. RABBITMQ_URL is not looked at.
"""

import contextlib
import csv
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from testbed.broker import Broker, NoBrokerError, OwnBroker
from testbed.container import IMAGE, Container, get_image
from testbed.node import Node, executor, server_program
from testbed.settings import free_ports
from testbed.terminal import REPOSITORY, replaced
from testbed.waiting import wait_until

FOLDER = REPOSITORY / "cluster"
HOSTS = ("rabbitmq-1", "rabbitmq-2", "rabbitmq-3")


@dataclass(eq=False)
class Cluster(Broker):
    """A cluster of nodes, any of which may be down, at the address of their load balancer.

    Attributes:
        nodes: The nodes, which are configured to form a cluster. None of them is started yet.
        port: At which the balancer, on the nodes' host, takes AMQP connections.
        page: The port of its page of statistics.
        description: What it is, for the header of a run.
        around: What runs before the first node and until after the last, the balancer too.
        running: The nodes that were started, and not killed since.
    """

    nodes: Sequence[OwnBroker]
    port: int
    page: int
    description: str
    around: list[contextlib.AbstractContextManager[object]]
    running: list[OwnBroker] = field(default_factory=list)
    _ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> None:
        """Start the nodes that do not run; return when all are in use.

        They start all at once where none runs. Otherwise they come back one after the other: two at
        the same moment may end each other's start (seen on 4.0.5, "node_not_running").
        """
        while self.around:
            self._ends.enter_context(self.around.pop(0))
        with ThreadPoolExecutor(max_workers=1 if self.running else len(self.nodes)) as pool:
            list(pool.map(lambda node: node.start(), self.nodes))
        self.running = list(self.nodes)
        self._host = urlsplit(self.nodes[0].url).hostname
        self.url = f"amqp://guest:guest@{self._host}:{self.port}/%2F"
        wait_until(lambda: all(map(self._complete, self.nodes)), "one cluster of all nodes")
        self._use_running()

    def kill_nodes(self, *nodes: OwnBroker) -> None:
        """Kill those of the nodes outright; return when the balancer passes them over."""
        for node in nodes:
            node.kill()
            self.running.remove(node)
        self._use_running()

    def settle(self) -> None:
        """Have all running nodes write to disk which queues were declared."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.settle(), self.running))

    def discard(self) -> None:
        """End all nodes and delete their data."""
        for node in self.nodes:
            node.discard()
        self._ends.close()

    def node_of(self, queue: str) -> OwnBroker:
        """Return the node on which the queue is, or its leader."""
        properties = self.queues()[queue]
        name = properties.get("leader") or properties["node"]
        return next(node for node in self.nodes if node.name == name)

    def _complete(self, node: OwnBroker) -> bool:
        try:
            told = node.management("nodes")
        except requests.RequestException:
            return False
        running = {one["name"] for one in told if one["running"]}
        return running == {one.name for one in self.nodes}

    def _use_running(self) -> None:
        """Wait until the balancer sees that the running nodes are up, and no others."""

        def up() -> list[bool]:
            table = requests.get(page, timeout=10).text.removeprefix("# ")
            rows = csv.DictReader(table.splitlines())
            # Such as "UP", "DOWN", or "UP 1/2", which is in use but failed to answer once.
            return [row["status"].startswith("UP") for row in rows if row["svname"] in HOSTS]

        page = f"http://{self._host}:{self.page}/;csv"
        expected = [node in self.running for node in self.nodes]
        wait_until(lambda: up() == expected, f"HAProxy to see {len(self.running)} nodes")
        # Only AMQP has a balancer before it. Each node's management API tells of all of them.
        self.management_url = self.running[0].management_url


def cluster_of_containers() -> Cluster:
    """Return a cluster of containers in a network of their own.

    Raises:
        NoBrokerError: No Docker engine answers, or an image cannot be had.
    """
    haproxy_image = os.environ.get("HAPROXY_IMAGE") or "haproxy:3.0"
    nodes = [Container() for _ in HOSTS]
    get_image(haproxy_image)
    cookie, network = secrets.token_hex(), Network()
    for host, node in zip(HOSTS, nodes, strict=True):
        node.name = f"rabbit@{host}"
        node.container.with_kwargs(hostname=host).with_network(network).with_network_aliases(host)
        node.container.with_env("RABBITMQ_CONFIG_FILE", "/cluster/rabbitmq.conf")
        node.container.with_command(["sh", "/cluster/start-node"])
        node.container.with_copy_into_container(cookie.encode(), "/cookie/cookie")
    port, page = free_ports(2)
    balancer = DockerContainer(haproxy_image).with_network(network)
    balancer.with_bind_ports(5672, port).with_bind_ports(8404, page)
    balancer.with_command(["haproxy", "-f", "/cluster/haproxy.cfg"])
    for container in (balancer, *(node.container for node in nodes)):
        container.with_copy_into_container(FOLDER, "/")  # as docker-compose.yml mounts it
    description = f"three containers of {IMAGE} behind one of {haproxy_image}"
    return Cluster(nodes, port, page, description, [network, balancer])


def cluster_of_nodes() -> Cluster:
    """Return a cluster of private nodes, on ports of their own.

    Raises:
        NoBrokerError: RabbitMQ, the port mapper of its Erlang, or HAProxy is not installed.
    """
    server = server_program()
    # Packages put programs into folders that not everybody has on the path.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"
    epmd, haproxy = (shutil.which(name, path=path) for name in ("epmd", "haproxy"))
    if not epmd:
        raise NoBrokerError("epmd, the port mapper of RabbitMQ's Erlang, is not on the path")
    if not haproxy:
        raise NoBrokerError("HAProxy is not installed")
    epmd_port, port, page = free_ports(3)
    # A port mapper that one of the nodes started would go down with it.
    command = [epmd, "-address", "127.0.0.1", "-port", str(epmd_port)]
    port_mapper = executor(command, epmd_port, {})
    cookie, nodes = secrets.token_hex(), [Node() for _ in HOSTS]
    settings = replaced(
        (FOLDER / "rabbitmq.conf").read_text(encoding="utf-8"),
        ("/cluster/definitions.json", str(FOLDER / "definitions.json")),
        *((f"rabbit@{host}", node.name) for host, node in zip(HOSTS, nodes, strict=True)),
    )
    for node in nodes:
        node.join(settings, cookie, epmd_port)
    ports = {"LISTEN": port, "STATISTICS": page}
    ports |= {f"NODE_{number}": node.port for number, node in enumerate(nodes, 1)}
    addresses = {name: f"127.0.0.1:{number}" for name, number in ports.items()}
    balancer = executor([haproxy, "-db", "-f", str(FOLDER / "haproxy.cfg")], port, addresses)
    description = f"three private nodes of {server} behind {haproxy}"
    return Cluster(nodes, port, page, description, [port_mapper, balancer])
