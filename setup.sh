#!/bin/sh
# Set up what `make demo` and `make test` need: the virtual environment with its packages, and a
# RabbitMQ where none can be had otherwise. What is there already is left alone.
#
#     ./setup.sh [bench|cluster|pictures|screenshot]
#
# adds what the make target of that name needs.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "setup: $*" >&2
    exit 1
}

# Install a package of the system, named for apt-get ($1) and for Homebrew ($2).
install_package() {
    if command -v apt-get >/dev/null; then
        as_root=
        if [ "$(id -u)" -ne 0 ]; then
            as_root=$(command -v sudo) || fail "$1 is missing: as root, apt-get install $1"
        fi
        echo "setup: installing $1 by apt-get"
        # shellcheck disable=SC2086 # as_root is one word or none
        { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$1"; } >.setup.log 2>&1 ||
            fail "apt-get could not install $1; .setup.log says why"
    elif command -v brew >/dev/null; then
        echo "setup: installing $2 by Homebrew"
        brew install "$2" >.setup.log 2>&1 || fail "brew could not install $2; .setup.log says why"
    else
        fail "$1 is missing, and neither apt-get nor Homebrew is here to install it"
    fi
}

# Install the packages of a dependency group of pyproject.toml.
install_group() {
    .venv/bin/python -m pip install -qq --disable-pip-version-check --group "$1"
    touch ".venv/ready-$1"
}

if [ ! -e .venv/ready-dev ] || [ -n "$(find pyproject.toml -newer .venv/ready-dev)" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or later; name one: make PYTHON=/path/to/python3.12 ..."
    echo "setup: making .venv and installing the packages that pyproject.toml names"
    # Debian packs venv apart, and says so only when a virtual environment is made.
    "$python" -c 'import ensurepip' 2>/dev/null || install_package python3-venv python
    "$python" -m venv --clear .venv
    # Dependency groups need pip 25.1.
    .venv/bin/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
    install_group dev
    # So that uv runs a bare script without the network, too.
    UV_CACHE_DIR=.venv/uv .venv/bin/uv run --quiet --python .venv/bin/python \
        part_1/sender.py --help >/dev/null
fi

if ! .venv/bin/python -m tests.broker >.setup.log 2>&1; then
    # A broker that was named and cannot be used is for the person to mend.
    [ -z "${RABBITMQ_URL:-}${RABBITMQ_SERVER:-}" ] || fail "$(tail -n 1 .setup.log)"
    install_package rabbitmq-server rabbitmq
    .venv/bin/python -m tests.broker >.setup.log 2>&1 || fail "$(tail -n 1 .setup.log)"
fi

case ${1:-} in
bench)
    [ -e .venv/ready-bench ] || install_group bench
    ;;
cluster)
    if ! .venv/bin/python -m tests.cluster >.setup.log 2>&1; then
        install_package haproxy haproxy
        .venv/bin/python -m tests.cluster >.setup.log 2>&1 || fail "$(tail -n 1 .setup.log)"
    fi
    ;;
pictures)
    command -v dot >/dev/null || install_package graphviz graphviz
    [ -n "$(fc-list Inter)" ] || install_package fonts-inter font-inter
    [ -n "$(fc-list 'JetBrains Mono')" ] || install_package fonts-jetbrains-mono font-jetbrains-mono
    ;;
screenshot)
    # Debian's driver brings the browser with it.
    command -v chromedriver >/dev/null || install_package chromium-driver chromedriver
    [ -e .venv/ready-screenshot ] || install_group screenshot
    ;;
esac
