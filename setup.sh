#!/bin/sh
# Set up what `make demo` and `make test` need: the virtual environment with its packages, and a
# RabbitMQ where none can be had otherwise. What is there already is left alone.
#
#     ./setup.sh [bench|charts|check|cluster|pictures]
#
# adds what the make target of that name needs.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "setup: $*" >&2
    exit 1
}

# Debian starts what it installs, unless the machine forbids it, as images of containers do.
say_what_debian_started() {
    if [ -d /run/systemd/system ]; then
        echo "setup: Debian has also started a broker of the system, and will at each boot. It listens at the scripts'"
        echo "setup: default address, port 5672; what make runs has a broker of its own. To stop it:"
        echo "setup:     sudo systemctl disable --now rabbitmq-server"
    else
        echo "setup: Debian may also have started a broker of the system, at the scripts' default address, port 5672."
        echo "setup: What make runs has a broker of its own. To see it, and to stop it:"
        echo "setup:     sudo service rabbitmq-server status; sudo service rabbitmq-server stop"
    fi
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
        [ "$1" != rabbitmq-server ] || say_what_debian_started
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
}

# Install the fonts of the pictures, where they are missing.
install_fonts() {
    [ -n "$(fc-list Inter)" ] || install_package fonts-inter font-inter
    [ -n "$(fc-list 'JetBrains Mono')" ] || install_package fonts-jetbrains-mono font-jetbrains-mono
}

# Ask the testbed, with the options from $4 on, whether a broker can be had. Where there is none, install the
# package ($2, $3) and ask again; or leave it to the person, who named something else ($1) that cannot be used.
need() {
    named=$1 debian=$2 homebrew=$3
    shift 3
    code=0
    .venv/bin/python -m testbed "$@" >.setup.log 2>&1 || code=$?
    if [ "$code" -eq 3 ] && [ -z "$named" ]; then
        install_package "$debian" "$homebrew"
        code=0
        .venv/bin/python -m testbed "$@" >.setup.log 2>&1 || code=$?
    fi
    [ "$code" -eq 0 ] || fail "$(tail -n 1 .setup.log)"
}

if [ ! -e .venv/ready-dev ] || [ -n "$(find pyproject.toml -newer .venv/ready-dev)" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or later; name one: make PYTHON=/path/to/python3.12 ..."
    echo "setup: installing the packages that pyproject.toml names, into .venv"
    # Debian packs venv apart, and says so only when a virtual environment is made.
    "$python" -c 'import ensurepip' 2>/dev/null || install_package python3-venv python
    # One that the README's reader has made is kept, with all that is in it.
    version="import sys; print(sys.version_info[:2])"
    [ "$(.venv/bin/python -c "$version" 2>/dev/null)" = "$("$python" -c "$version")" ] || "$python" -m venv --clear .venv
    # Dependency groups need pip 25.1.
    .venv/bin/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
    install_group dev
    # So that uv runs a bare script without the network, too.
    UV_CACHE_DIR=.venv/uv .venv/bin/uv run --quiet --python .venv/bin/python \
        part_1/sender.py --help >/dev/null
    touch .venv/ready-dev
fi

case ${1:-} in
charts | check | pictures) ;; # which need no broker
*) need "${RABBITMQ_URL:-}${RABBITMQ_SERVER:-}" rabbitmq-server rabbitmq ;;
esac

case ${1:-} in
bench | charts | check)
    [ -e .venv/ready-bench ] || { install_group bench && touch .venv/ready-bench; }
    [ "$1" = check ] || (install_fonts) || echo "setup: the pictures take another font"
    ;;
cluster)
    need "" haproxy haproxy --cluster
    ;;
pictures)
    command -v dot >/dev/null || install_package graphviz graphviz
    install_fonts
    ;;
esac
