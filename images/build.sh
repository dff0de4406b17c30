#!/usr/bin/env bash
# Builds the images of every dependency set: images/build.sh PREFIX TAG [SET ...].
# With GPU=1, train is the GPU variant, and serve-gpu is built in addition to serve, which needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$1 tag=$2
shift 2
[ $# -gt 0 ] || set -- data train ops serve web label validate watch listen ${GPU:+serve-gpu}
engine=$(images/engine.sh)
[ -f .containers/containers.conf ] && export CONTAINERS_CONF=$PWD/.containers/containers.conf
options=()
if [ "$engine" != docker ]; then
    options+=(--format docker) # the OCI format has no HEALTHCHECK
    # This machine's certificates and package index are mounted for the build only: an --env would stay in the image.
    for path in /etc/ssl/certs /etc/pip.conf; do [ -e $path ] && options+=(-v "$path:$path:ro"); done
fi
for set in "$@"; do
    extra=$set target=step
    case $set in serve*) target=serve ;; web | label | listen) target=$set ;; esac
    [ -n "${GPU:-}" ] && [ "$set" = train ] && extra=train-gpu
    echo "images: $prefix-$set:$tag (extra $extra, $engine)"
    "$engine" build "${options[@]}" -f images/Dockerfile --target "$target" --build-arg EXTRA="$extra" \
        ${BASE_IMAGE:+--build-arg BASE_IMAGE="$BASE_IMAGE"} -t "$prefix-$set:$tag" . >.containers-build.log 2>&1 ||
        { tail -n 30 .containers-build.log >&2; exit 1; }
    # A listener starts runs in the images that were built with it.
    started=
    [ "$set" = listen ] && started="ENV THYROID_IMAGES=$prefix THYROID_TAG=$tag"
    # Labels go on top, without the cache: an image whose layers are all cached would keep the labels of an earlier commit.
    printf 'FROM %s\nLABEL %s="%s" %s="%s" %s="%s"\n' "$prefix-$set:$tag" org.opencontainers.image.title "thyroid-$extra" \
        org.opencontainers.image.version "$tag" org.opencontainers.image.revision "${tag%-gpu}" |
        cat - <(echo "$started") |
        "$engine" build "${options[@]}" --no-cache -t "$prefix-$set:$tag" - >.containers-build.log 2>&1 ||
        { tail -n 30 .containers-build.log >&2; exit 1; }
done
rm -f .containers-build.log
[ "$engine" = buildah ] || "$engine" images --format '{{.Repository}}:{{.Tag}}  {{.Size}}' | grep "$prefix-.*:$tag "
