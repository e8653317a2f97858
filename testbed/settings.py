"""What a broker that is started for a run is given: ports, certificates and settings."""

import os

import port_for
import trustme

#: More than all that is sent, but for what is to be refused; by default it is 128 MB, or 16.
MAX_MESSAGE_SIZE = 2_000_000

# RabbitMQ 4.3 refuses the queue of Part I by default; earlier versions do not know the setting, or
# permit it anyway. An advanced.config may name what a version does not know, a rabbitmq.conf not.
_ADVANCED_CONFIG = (
    b"[{rabbit, [{permit_deprecated_features, #{transient_nonexcl_queues => true}}]}].\n"
)


def free_ports(number: int) -> list[int]:
    """Return so many free ports, none of which the system will give to an outgoing connection."""
    ports: list[int] = []
    # Processes that run tests side by side must not choose the same before either listens on it.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    good = {port for port in port_for.available_good_ports() if port % processes == mine}
    for _ in range(number):
        ports.append(port_for.select_random(good, exclude_ports=ports))
    return ports


def configuration(
    folder: str, settings_file: str, hosts: list[str], listeners: str
) -> dict[str, bytes]:
    """Return the files that configure a broker, by their paths in a folder that will be there.

    Among them are authority.pem, certificate.pem and key.pem, for TLS.

    Args:
        folder: The path under which the broker finds that folder.
        settings_file: What the file of settings is called there, such as "rabbitmq.conf".
        hosts: By which names and addresses the broker is reached, for its certificate.
        listeners: The settings that say where it listens.
    """
    authority = trustme.CA()
    server = authority.issue_cert(*hosts)
    # A queue reports its counts to the management plugin every 250 ms, and not every 5 s.
    settings = (
        f"{listeners}collect_statistics_interval = 250\n"
        f"max_message_size = {MAX_MESSAGE_SIZE}\n"
        f"ssl_options.cacertfile = {folder}/authority.pem\n"
        f"ssl_options.certfile = {folder}/certificate.pem\n"
        f"ssl_options.keyfile = {folder}/key.pem\n"
    )
    return {
        "authority.pem": authority.cert_pem.bytes(),
        "certificate.pem": b"".join(blob.bytes() for blob in server.cert_chain_pems),
        "key.pem": server.private_key_pem.bytes(),
        settings_file: settings.encode(),
        "advanced.config": _ADVANCED_CONFIG,
    }
