#!/usr/bin/env bash
# Writes requirements-dev.lock; UPGRADE=1 resolves its versions again. Writes, with the same versions, requirements.lock
# (the part that `make run` and `make serve` need) and the lock of every image.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    "${UV:-uv}" pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
        --no-emit-find-links --no-emit-package openvino-telemetry -q "$@"  # OpenVINO runs without it, and must not report usage
}
run=(pyproject.toml --extra data --extra train --extra serve --extra ops --extra web --extra pipelines --extra listen)
compile "${run[@]}" --extra validate --extra watch --extra dev ${UPGRADE:+--upgrade} -o requirements-dev.lock
compile "${run[@]}" -c requirements-dev.lock -o requirements.lock
# kfp is locked alone: in an image its executor runs without any of its dependencies (components/__main__.py).
kfp=$(grep -o '^kfp==[^ ]*' requirements.lock | compile --no-annotate --no-deps -)
for extra in data train train-gpu ops serve serve-gpu web label validate watch listen; do
    compile --no-annotate --extra $extra -c requirements-dev.lock pyproject.toml -o images/$extra.lock
    case $extra in serve* | web | label | listen) ;; *) echo "$kfp" >>images/$extra.lock ;; esac
done
# The tools that install the other locks; see images/install.py.
printf 'setuptools\nuv\n' | compile --no-annotate --no-deps -c requirements-dev.lock - -o images/build.lock
# checkov pins versions that conflict with the other packages, so it gets an environment of its own.
echo 'checkov>=3.2' | compile --no-annotate ${UPGRADE:+--upgrade} - -o manifests/checkov.lock
