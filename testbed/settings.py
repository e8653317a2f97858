"""What a broker that is started for a run is given: ports, certificates and settings."""

import os

import port_for
import trustme

# How often a queue reports its counts to the management plugin. By default every 5 s.
_STATISTICS_INTERVAL_MS = 250

#: More than all that is sent, but for what is to be refused; by default it is 128 MB, or 16.
MAX_MESSAGE_SIZE = 2_000_000

# RabbitMQ 4.3 refuses the queue of Part I by default; earlier versions do not know the setting, or
# permit it anyway. An advanced.config may name what a version does not know, a rabbitmq.conf not.
_PERMITTED = "#{transient_nonexcl_queues => true}"
ADVANCED_CONFIG = f"[{{rabbit, [{{permit_deprecated_features, {_PERMITTED}}}]}}].\n"


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


def rabbitmq_conf(tls_folder: str) -> str:
    """Return what belongs into a rabbitmq.conf, beside the addresses to listen on.

    Args:
        tls_folder: Where the broker finds the `tls_files`.
    """
    return (
        f"collect_statistics_interval = {_STATISTICS_INTERVAL_MS}\n"
        f"max_message_size = {MAX_MESSAGE_SIZE}\n"
        f"ssl_options.cacertfile = {tls_folder}/authority.pem\n"
        f"ssl_options.certfile = {tls_folder}/certificate.pem\n"
        f"ssl_options.keyfile = {tls_folder}/key.pem\n"
    )
