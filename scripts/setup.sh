#!/bin/sh
# Makes .venv with uv in it, then lets scripts/setup.py install the rest. Called by `make`; does nothing when all is there.
set -eu
cd "$(dirname "$0")/.."
UV_VERSION=0.13.9

say() { printf '%s\n' "$*" >&2; }

# Runs a command as root when that is possible without asking anybody.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    as_root true || return 1
    say "Installing $* from the distribution …"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 && return 0
    as_root apt-get update -q >/dev/null 2>&1 || return 1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

make_venv() {
    rm -rf .venv
    python=$(find_python) || { apt_install python3 python3-venv && python=$(find_python); } || {
        say "Python 3.11 or newer is needed. Debian 12, Ubuntu 24.04 and newer have it: apt-get install python3 python3-venv"
        say "Another one can be named: make run PYTHON=/path/to/python3.12"
        exit 1
    }
    say "Making .venv with $("$python" --version) …"
    if "$python" -m venv .venv >/dev/null 2>&1; then return 0; fi
    # Debian splits ensurepip off into a package of its own.
    rm -rf .venv
    version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if apt_install "$version" && "$python" -m venv .venv >/dev/null 2>&1; then return 0; fi
    rm -rf .venv
    if "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip .venv; then
        "$python" -m pip --python .venv/bin/python install -q "uv==$UV_VERSION" && return 0
    fi
    rm -rf .venv
    say "This Python cannot make virtual environments. Ask an administrator for: apt-get install $version"
    exit 1
}

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then make_venv; fi
if ! [ "$(cat .venv/.uv-version 2>/dev/null)" = "$UV_VERSION" ]; then
    if ! .venv/bin/python -m uv --version 2>/dev/null | grep -q "^uv $UV_VERSION"; then
        say "Installing uv …"
        .venv/bin/python -m pip install -q --disable-pip-version-check "uv==$UV_VERSION" || {
            say "uv could not be installed. The first start needs the Internet, or a package index that pip is configured for."
            exit 1
        }
    fi
    printf '%s' "$UV_VERSION" > .venv/.uv-version
fi
exec .venv/bin/python scripts/setup.py "$@"
