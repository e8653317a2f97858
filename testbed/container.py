"""A container of RabbitMQ's image."""

import os
import sys
from ipaddress import ip_network

import docker.errors
from docker.client import DockerClient, from_env
from testcontainers.core.container import DockerContainer

from testbed.broker import NoBrokerError, OwnBroker
from testbed.settings import configuration, free_ports

IMAGE = os.environ.get("RABBITMQ_IMAGE") or "rabbitmq:3.13-management"


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
            engine.images.pull(image)
        except docker.errors.APIError as error:
            raise NoBrokerError(
                f"Docker answers, but the image {image} cannot be had ({error.explanation})"
            ) from error
    return engine


class Container(OwnBroker):
    """A container of RabbitMQ's image, by testcontainers, whose own object is `container`."""

    def __init__(self) -> None:
        """Prepare a container; see `get_image` for what may be wrong with the image."""
        engine = get_image(IMAGE)
        self.description = f"a container of {IMAGE}"
        self.container = DockerContainer(IMAGE)
        # Ports that Docker chooses change when a container restarts; a worker could not come back.
        self._ports = free_ports(3)
        for port, published in zip((5672, 5671, 15672), self._ports, strict=True):
            self.container.with_bind_ports(port, published)
        # From inside a container another one is reached at the gateway of their network, which
        # Docker gives the first address.
        networks = engine.networks.list(names=["bridge"])
        subnets = [each["Subnet"] for one in networks for each in one.attrs["IPAM"]["Config"]]
        hosts = ["localhost", *(str(ip_network(subnet)[1]) for subnet in subnets)]
        listener = "listeners.ssl.default = 5671\n"
        files = configuration("/etc/rabbitmq", "conf.d/90-tests.conf", hosts, listener)
        self.authority = files["authority.pem"]
        for name, content in files.items():
            self.container.with_copy_into_container(content, f"/etc/rabbitmq/{name}")
        self._created = False

    def start(self) -> None:
        """Start the container, the same one each time: its data is inside."""
        if self._created:
            self.container.get_wrapped_container().start()
        else:
            self._created = True
            self.container.start()
            host = self.container.get_container_host_ip()
            amqp, tls, management = (f"{host}:{port}" for port in self._ports)
            self.url = f"amqp://guest:guest@{amqp}/%2F"
            self.tls_url = f"amqps://guest:guest@{tls}/%2F"
            self.management_url = f"http://guest:guest@{management}"
        self._wait_for_login()

    def stop(self) -> None:
        """Stop the container: Docker sends SIGTERM, and waits."""
        self.container.get_wrapped_container().stop(timeout=60)

    def kill(self) -> None:
        """Kill the container's processes with SIGKILL."""
        self.container.get_wrapped_container().kill()
        self.container.get_wrapped_container().wait()

    def pause(self) -> None:
        """Freeze the container's processes."""
        self.container.get_wrapped_container().pause()

    def resume(self) -> None:
        """Have them go on."""
        self.container.get_wrapped_container().unpause()

    def discard(self) -> None:
        """Remove the container and its volume, unless that was done."""
        if self._created:
            self.container.stop()
            self._created = False

    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints in the container."""
        done = self.container.exec(["rabbitmqctl", *arguments])
        assert done.exit_code == 0, done.output
        return done.output.decode(errors="replace")

    def ctl_command(self) -> list[str]:
        """Return the command line of rabbitmqctl in the container; it needs Docker's own client."""
        return ["docker", "exec", str(self.container.get_wrapped_container().id), "rabbitmqctl"]
