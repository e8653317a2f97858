"""Three nodes in a cluster, behind one address, with the configuration of docker-compose.yml.

They are containers of RABBITMQ_IMAGE behind one of HAPROXY_IMAGE (default: haproxy:3.0), or private
nodes of an installed RabbitMQ behind an installed HAProxy. RABBITMQ_URL is not looked at.

    python -m testbed.cluster

says whether these can be had, and ends with 1 where they cannot.
"""

import argparse
import contextlib
import csv
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker.errors
import requests
from mirakuru import TCPExecutor
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from testbed.broker import (
    DEFAULT_IMAGE,
    Broker,
    Container,
    NoBrokerError,
    Node,
    free_ports,
    get_image,
    server_program,
    wait_until,
)
from testbed.terminal import REPOSITORY, replaced

FOLDER = REPOSITORY / "cluster"
DEFAULT_HAPROXY_IMAGE = "haproxy:3.0"

# Where packages put programs that not everybody has on the path.
SYSTEM_PROGRAMS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"

HOSTS = ("rabbitmq-1", "rabbitmq-2", "rabbitmq-3")


class Cluster(Broker):
    """A cluster of nodes, any of which may be down, at the address of their load balancer."""

    def __init__(self, nodes: list[Broker], url: str, statistics: str, description: str) -> None:
        """Take nodes that are configured to form a cluster, and their balancer, which runs.

        Args:
            nodes: None of them is started yet.
            url: The balancer's AMQP address.
            statistics: The address of its page.
            description: What it is, for the header of a run.
        """
        self.nodes = nodes
        self._url = url
        self._statistics = statistics
        self.description = description
        self._down = set(nodes)

    @property
    def running(self) -> list[Broker]:
        """The nodes that were started, and neither stopped nor killed since."""
        return [node for node in self.nodes if node not in self._down]

    @property
    def url(self) -> str:
        """The address of the balancer."""
        return self._url

    @property
    def tls_url(self) -> str:
        """The TLS address of a running node; there is no balancer before it."""
        return self.running[0].tls_url

    @property
    def management_url(self) -> str:
        """The management API of a running node, which tells of all of them."""
        return self.running[0].management_url

    def start(self) -> None:
        """Start the nodes that do not run; return when all are in use.

        They start all at once where none runs. Otherwise they come back one after the other: two at
        the same moment may end each other's start (seen on 4.0.5, "node_not_running").
        """
        down = [node for node in self.nodes if node in self._down]
        with ThreadPoolExecutor(max_workers=1 if self.running else len(self.nodes)) as pool:
            list(pool.map(lambda node: node.start(), down))
        self._down.clear()
        wait_until(lambda: all(map(self._complete, self.nodes)), "one cluster of all nodes", 60)
        self._wait_for_balancer()

    def stop(self) -> None:
        """Shut all nodes down in order."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.stop(), self.running))
        self._down.update(self.nodes)

    def kill(self) -> None:
        """Kill all nodes outright."""
        self.kill_nodes(*self.running)

    def kill_nodes(self, *nodes: Broker) -> None:
        """Kill those of the nodes outright; return when the balancer passes them over."""
        for node in nodes:
            node.kill()
            self._down.add(node)
        self._wait_for_balancer()

    def settle(self) -> None:
        """Have all running nodes write to disk which queues were declared."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.settle(), self.running))

    def pause(self) -> None:
        """Stop the processes of all nodes where they are."""
        for node in self.running:
            node.pause()

    def resume(self) -> None:
        """Have them go on."""
        for node in self.running:
            node.resume()

    def discard(self) -> None:
        """End all nodes and delete their data."""
        for node in self.nodes:
            node.discard()

    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints on a running node."""
        return self.running[0].ctl(*arguments)

    def node_of(self, queue: str) -> Broker:
        """Return the node on which the queue is, or its leader."""
        properties = self.queues()[queue]
        name = properties.get("leader") or properties["node"]
        return next(node for node in self.nodes if node.name == name)

    def _complete(self, node: Broker) -> bool:
        try:
            told = node.management("nodes")
        except requests.RequestException:
            return False
        running = {one["name"] for one in told if one["running"]}
        return running == {one.name for one in self.nodes}

    def _wait_for_balancer(self) -> None:
        """Wait until the balancer sees that the running nodes are up, and no others."""

        def up() -> list[bool]:
            table = requests.get(f"{self._statistics}/;csv", timeout=10).text.removeprefix("# ")
            rows = csv.DictReader(table.splitlines())
            # Such as "UP", "DOWN", or "UP 1/2", which is in use but failed to answer once.
            return [row["status"].startswith("UP") for row in rows if row["svname"] in HOSTS]

        expected = [node in self.running for node in self.nodes]
        wait_until(lambda: up() == expected, f"HAProxy to see {len(self.running)} nodes", 30)


class Member(Container):
    """A container of RabbitMQ's image that becomes a node of a cluster."""

    def __init__(self, image: str, host: str, network: Network, cookie: str) -> None:
        """Prepare the container, by the name `host` in the network; the image is there."""
        super().__init__(image)
        self.name = f"rabbit@{host}"
        self._container.with_kwargs(hostname=host)
        self._container.with_network(network).with_network_aliases(host)
        self._container.with_env("RABBITMQ_CONFIG_FILE", "/cluster/rabbitmq.conf")
        self._container.with_command(["sh", "/cluster/start-node"])
        copy_folder(self._container)
        self._container.with_copy_into_container(cookie.encode(), "/cookie/cookie")


def copy_folder(container: DockerContainer) -> None:
    """Give the container the files that docker-compose.yml mounts."""
    for file in FOLDER.iterdir():
        container.with_copy_into_container(file.read_bytes(), f"/cluster/{file.name}")


def images() -> tuple[str, str]:
    """Return the images of RabbitMQ and of HAProxy, which Docker has got.

    Raises:
        NoBrokerError: No Docker engine answers, or one of them cannot be had.
    """
    image = os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE
    haproxy_image = os.environ.get("HAPROXY_IMAGE") or DEFAULT_HAPROXY_IMAGE
    for one in (image, haproxy_image):
        get_image(one)
    return image, haproxy_image


def programs() -> tuple[str, str, str]:
    """Return the programs of RabbitMQ's server, of Erlang's port mapper, and of HAProxy.

    Raises:
        NoBrokerError: One of them is not installed.
    """
    server = str(server_program())
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PROGRAMS}"
    epmd, haproxy = (shutil.which(name, path=path) for name in ("epmd", "haproxy"))
    if not epmd:
        raise NoBrokerError("epmd, the port mapper of RabbitMQ's Erlang, is not on the path")
    if not haproxy:
        raise NoBrokerError("HAProxy is not installed")
    return server, epmd, haproxy


@contextlib.contextmanager
def containers(image: str, haproxy_image: str) -> Iterator[Cluster]:
    """Yield a cluster of containers in a network of their own, not started yet."""
    cookie = secrets.token_hex()
    port, page = free_ports(2)
    balancer = DockerContainer(haproxy_image)
    balancer.with_bind_ports(5672, port).with_bind_ports(8404, page)
    balancer.with_command(["haproxy", "-f", "/cluster/haproxy.cfg"])
    copy_folder(balancer)
    with Network() as network, balancer.with_network(network):
        host = balancer.get_container_host_ip()
        yield Cluster(
            [Member(image, one, network, cookie) for one in HOSTS],
            f"amqp://guest:guest@{host}:{port}/%2F",
            f"http://{host}:{page}",
            f"three containers of {image} behind one of {haproxy_image}",
        )


@contextlib.contextmanager
def private_nodes(server: str, epmd: str, haproxy: str) -> Iterator[Cluster]:
    """Yield a cluster of private nodes, on ports of their own, not started yet."""
    epmd_port, port, page = free_ports(3)
    # A port mapper that one of the nodes started would go down with it.
    port_mapper = executor([epmd, "-address", "127.0.0.1", "-port", str(epmd_port)], epmd_port)
    cookie = secrets.token_hex()
    nodes = [Node(Path(server), cookie=cookie, epmd_port=epmd_port) for _ in HOSTS]
    settings = replaced(
        (FOLDER / "rabbitmq.conf").read_text(encoding="utf-8"),
        ("/cluster/definitions.json", str(FOLDER / "definitions.json")),
        *((f"rabbit@{host}", node.name) for host, node in zip(HOSTS, nodes, strict=True)),
    )
    for node in nodes:
        node.configure(settings)
    balancer = executor(
        [haproxy, "-db", "-f", str(FOLDER / "haproxy.cfg")],
        port,
        LISTEN=f"127.0.0.1:{port}",
        STATISTICS=f"127.0.0.1:{page}",
        **{f"NODE_{number}": node.address for number, node in enumerate(nodes, start=1)},
    )
    with port_mapper, balancer:
        yield Cluster(
            list(nodes),
            f"amqp://guest:guest@localhost:{port}/%2F",
            f"http://127.0.0.1:{page}",
            f"three private nodes of {server} behind {haproxy}",
        )


def executor(command: list[str], port: int, **environment: str) -> TCPExecutor:
    """Return what runs the command, which is to listen on the port, until the end of its `with`."""
    return TCPExecutor(
        command,
        host="127.0.0.1",
        port=port,
        timeout=15,
        envvars=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def prepare(kind: str, say: Callable[[str], None]) -> contextlib.AbstractContextManager[Cluster]:
    """Return a cluster of that kind, one of KINDS, for a `with` statement; see `testbed.broker`.

    Args:
        kind: "auto" takes containers, or private nodes where they cannot be had.
        say: Is told in one line, with "auto", why containers were passed over.

    Raises:
        NoBrokerError: There is none.
    """
    if kind == "url":
        raise NoBrokerError("no cluster is made of a broker that was only named")
    if kind == "docker":
        return containers(*images())
    if kind == "local":
        return private_nodes(*programs())
    try:
        return containers(*images())
    except NoBrokerError as error:
        no_containers = error
    if isinstance(no_containers.__cause__, docker.errors.APIError):
        say(f"{no_containers}; private nodes instead")
    try:
        return private_nodes(*programs())
    except NoBrokerError as no_nodes:
        raise NoBrokerError(f"{no_containers}, and {no_nodes}") from no_nodes


@contextlib.contextmanager
def running_cluster(kind: str, say: Callable[[str], None]) -> Iterator[Cluster]:
    """Yield the cluster of that kind (see `prepare`), started; discard it in the end."""
    # What ends by SIGTERM, as in a pipeline that is cancelled, must not leave nodes behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with prepare(kind, say) as cluster:
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.discard()


def main() -> None:
    """Say that a cluster can be had, and get its images; exit with 3 where there is none."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        prepare("auto", print)
    except NoBrokerError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    print("three nodes can be had")


if __name__ == "__main__":
    main()
