# Sourced by the demo and the tests: the private environment at .venv that both run in.
# shellcheck shell=bash

# shellcheck source-path=SCRIPTDIR source=debian_packages.sh
source "$(dirname "${BASH_SOURCE[0]}")/debian_packages.sh"

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repo
readonly can_make_environments='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
python='' # what makes the environment

# Made again only when the project, its path or the Python has changed.
make_environment() {
    local key venv=$repo/.venv
    find_python
    key=$({ echo "$repo" && "$python" -c 'import sys; print(sys.version, sys.executable)' &&
        cat "$repo/pyproject.toml"; } | sha256sum)
    if [[ -x $venv/bin/pvehook && $(cat "$venv/made-for" 2>/dev/null) == "$key" ]]; then return 0; fi
    say "make a private environment at $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${repo}[test]"
    printf '%s\n' "$key" >"$venv/made-for"
}

find_python() { # sets $python to a Python 3.11 or newer that can make environments
    for python in python3 python3.13 python3.12 python3.11; do
        ! "$python" -c "$can_make_environments" 2>/dev/null || return 0
    done
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        die "no Python 3.11 or newer with venv and ensurepip here; on Debian, as root: apt-get install python3-venv"
    fi
    say "install Debian package python3-venv"
    apt_install python3-venv
    python=/usr/bin/python3
    "$python" -c "$can_make_environments" || die "$("$python" -V) of this Debian is too old: 3.11 or newer was expected"
}
