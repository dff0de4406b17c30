#!/usr/bin/env bash
# What the browser tests need beside Python's packages: Chromium, and a font with Korean letters for the screenshots.
set -euo pipefail
missing=()
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
fc-list :lang=ko 2>/dev/null | grep -q . || missing+=(fonts-nanum)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: the browser tests need ${missing[*]}: install them with this system's package manager" >&2
    exit 2
fi
echo "installing ${missing[*]} from Debian" >&2
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" fontconfig; } >/dev/null
