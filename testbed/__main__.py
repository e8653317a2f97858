"""Say which broker a run would get, or cluster, and have Docker get its images.

Where there is none, that ends with 3, and not with 1 as after an error of another kind.
"""

import argparse
import sys

from testbed.broker import NoBrokerError
from testbed.choice import prepare, prepare_cluster


def main() -> None:
    """Prepare a broker, or cluster, and discard it."""
    parser = argparse.ArgumentParser(prog="python -m testbed", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="three nodes, and not one")
    choose = prepare_cluster if parser.parse_args().cluster else prepare
    try:
        broker = choose("auto")
    except NoBrokerError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    print(broker.description)
    broker.discard()


if __name__ == "__main__":
    main()
