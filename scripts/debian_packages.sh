# Sourced by install.sh and the scripts beside it: messages, and Debian packages where they are missing.
# shellcheck shell=bash

say() { printf 'pvehook: %s\n' "$*"; }

die() {
    trap - ERR
    say "error: $*" >&2
    exit 2
}

missing_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s ' "$package"
    done
}

# A node without a subscription cannot refresh every list and does not need to. Nothing is ever removed.
apt_install() {
    apt-get update -qq >/dev/null || say "note: not every package list could be refreshed"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends --no-remove "$@" >/dev/null
}
