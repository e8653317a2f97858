"""Which broker, or cluster, a run gets: the first that can be had, or the one that it asks for."""

import os
from collections.abc import Callable
from typing import TypeVar

import docker.errors

from testbed.broker import Broker, NoBrokerError
from testbed.cluster import Cluster, cluster_of_containers, cluster_of_nodes
from testbed.container import Container
from testbed.named import NamedBroker
from testbed.node import Node

KINDS = ("auto", "url", "docker", "local")

B = TypeVar("B", bound=Broker)


def prepare(kind: str) -> Broker:
    """Return the broker of that kind, one of KINDS. One of the run's own is not started yet.

    Args:
        kind: "url" is the broker that RABBITMQ_URL names, "docker" a container of the image
            RABBITMQ_IMAGE (default: rabbitmq:3.13-management), and "local" a private node of an
            installed RabbitMQ, whose server RABBITMQ_SERVER may name. "auto" takes the first of
            these if RABBITMQ_URL is set, and otherwise the first of the others that can be had.

    Raises:
        NoBrokerError: There is none.
    """
    url = os.environ.get("RABBITMQ_URL")
    if kind == "url" and not url:
        raise NoBrokerError("RABBITMQ_URL is not set")
    if url and kind in ("auto", "url"):
        return NamedBroker(url)
    try:
        return _own(kind, Container, Node)
    except NoBrokerError as error:
        if kind != "auto":
            raise
        raise NoBrokerError(
            f"{error}; start Docker, or install RabbitMQ (Debian: apt-get install rabbitmq-server,"
            " macOS: brew install rabbitmq), or name a running broker in RABBITMQ_URL"
        ) from error


def prepare_cluster(kind: str) -> Cluster:
    """Return a cluster of that kind, not started yet; `prepare` has the kinds, and raises alike."""
    if kind == "url":
        raise NoBrokerError("no cluster is made of a broker that was only named")
    return _own(kind, cluster_of_containers, cluster_of_nodes)


def _own(kind: str, containers: Callable[[], B], local: Callable[[], B]) -> B:
    ways = {"docker": containers, "local": local}
    missing: list[NoBrokerError] = []
    for way in ways if kind == "auto" else [kind]:
        try:
            own = ways[way]()
        except NoBrokerError as error:
            missing.append(error)
            continue
        for reason in missing:
            if isinstance(reason.__cause__, docker.errors.APIError):  # which one may not expect
                own.description += f" ({reason})"
        return own
    raise NoBrokerError(", and ".join(map(str, missing)))
