#!/usr/bin/env bash
# Prepares what `make images` needs: a container engine, and the base image if no container registry can be reached.
# Does nothing on a machine that has both. As root on Debian it installs Podman and builds the base image from Debian's
# packages. Prints the engine's name on standard output and its progress on standard error.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${BASE_IMAGE:=python:3.11-slim}"
state=.containers
say() { echo "images: $*" >&2; }
fail() { echo "error: $*" >&2; exit 2; }
debian() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
install() {
    debian || fail "$1 is missing: install $1 (or docker), then run make images again"
    say "installing $* from Debian"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >&2
}

engine=${CONTAINER_ENGINE:-}
[ -n "$engine" ] || { docker info >/dev/null 2>&1 && engine=docker; } || true
for one in podman buildah; do [ -n "$engine" ] || { command -v $one >/dev/null && engine=$one; } || true; done
[ -n "$engine" ] || { install podman runc iptables netavark aardvark-dns ca-certificates && engine=podman; }
command -v "$engine" >/dev/null || fail "CONTAINER_ENGINE=$engine: no such command"
echo "$engine"
[ "$engine" = podman ] || exit 0

[ -f $state/containers.conf ] && export CONTAINERS_CONF=$PWD/$state/containers.conf
have() { podman image exists "$1" || podman image exists "localhost/$1"; }
if ! have "$BASE_IMAGE" && ! timeout 300 podman pull -q "$BASE_IMAGE" >/dev/null 2>&1; then
    [ "$BASE_IMAGE" = python:3.11-slim ] || fail "BASE_IMAGE=$BASE_IMAGE: not here and not to be pulled"
    say "$BASE_IMAGE cannot be pulled: making it of Debian 12's packages"
    command -v debootstrap >/dev/null || install debootstrap
    debian || fail "making $BASE_IMAGE needs root on Debian; or name another with BASE_IMAGE=..."
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" >"$root.log" 2>&1 ||
        fail "debootstrap: $(tail -n 1 "$root.log")"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    rm -f "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED "$root.log"
    ln -sf python3 "$root"/usr/bin/python
    tar -C "$root" -c . | podman import -q -c 'CMD ["python3"]' - localhost/python:3.11-slim >&2
fi
if ! podman run --rm --pull=never "$BASE_IMAGE" true >/dev/null 2>&1; then
    # With hybrid cgroups and without CAP_SYS_RESOURCE, crun fails and limits cannot be raised.
    say "podman's defaults do not run here: using runc and this shell's limits ($state/containers.conf)"
    command -v runc >/dev/null || install runc
    mkdir -p $state
    printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=32768:32768"]\n[engine]\nruntime = "runc"\n[network]\nnetwork_backend = "netavark"\n' \
        "$(ulimit -Hn)" "$(ulimit -Hn)" >$state/containers.conf
    export CONTAINERS_CONF=$PWD/$state/containers.conf
    podman run --rm --pull=never "$BASE_IMAGE" true >&2 || fail "podman does not run containers here"
fi
