#!/usr/bin/env bash
# Gets etcd and kube-apiserver 1.20.2 ready for `make test-cluster`, and prints the folder that holds them. Debian 12 has
# etcd as a binary, and of kube-apiserver the source. Nothing is installed on the system, and root is not needed.
set -euo pipefail
say() { echo "cluster: $*" >&2; }
fail() { echo "error: $*; or give the tests a cluster: KUBECONFIG=file make test-cluster" >&2; exit 2; }

# A change to this script builds anew.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/thyroid/kubernetes
made=$cache/$(sha256sum "$0" | cut -c1-16)
echo "$made"
[ ! -d "$made" ] || exit 0

release=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
[ "$release" = bookworm ] || fail "kube-apiserver is built from packages of Debian 12, and this is another system"
mkdir -p "$cache"
exec 9>"$made.lock"
flock --nonblock 9 || { say "waiting for another process that builds kube-apiserver" && flock 9; }
[ ! -d "$made" ] || exit 0
rm -rf "$made".?????? # of a process that was killed
[ "$(df --output=avail -BM "$cache" | tail -n 1 | tr -dc 0-9)" -ge 2500 ] ||
    fail "$cache: building kube-apiserver needs 2.5 GB of free disk"
say "building kube-apiserver 1.20.2: 140 MB to download, 2 to 4 minutes on two cores, .08 GB to keep in $cache"
work=$(mktemp -d "$made.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# 1. Packages, by apt's lists of its own: the system's sources of packages, and their source code.
mkdir -p apt/{lists/partial,cache/archives/partial,sources,preferences} root
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ ! -f "$file" ] ||
        sed 's/^Types: deb$/Types: deb deb-src/; /^deb /{p; s/^deb /deb-src /}' "$file" >"apt/sources/${file##*/}"
done
cat >apt/conf <<CONF
Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/apt/sources";
Dir::Etc::preferencesparts "$work/apt/preferences";
CONF
[ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";' >>apt/conf # apt's own user may not enter this folder
export APT_CONFIG=$work/apt/conf
{ apt-get -q update && apt-get -q source --download-only kubernetes &&
    apt-get -q download golang-1.19-go golang-1.19-src etcd-server golang-github-modern-go-reflect2-dev; } >apt/log 2>&1 ||
    { tail -n 20 apt/log >&2 && fail "Debian's packages and their sources cannot be fetched"; }
for package in *.deb; do dpkg -x "$package" root; done
tar xf kubernetes_*.orig.tar.gz
code=$(echo "$work"/kubernetes-1.20*)

# 2. What Go 1.19 needs of code of 2021: reflect2 1.0.1 breaks from Go 1.18 on, and an empty text is not null.
rm -r "$code/vendor/github.com/modern-go/reflect2"
cp -r root/usr/share/gocode/src/github.com/modern-go/reflect2 "$code/vendor/github.com/modern-go/"
sed -i 's/ || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))//' \
    "$code"/vendor/{github.com/go-openapi/validate,k8s.io/kube-openapi/pkg/validation/validate}/type.go

# 3. The build, without Go's modules as Debian does it. openapi-gen writes a file that the source code leaves out.
# Without the cloud providers (`providerless`) it takes half the time.
export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/go GOCACHE=$work/go/cache GO111MODULE=off CGO_ENABLED=0
export GOGC=400 # less processor time, more memory
export PATH=$GOROOT/bin:$PATH
top=k8s.io/kubernetes
version=$top/vendor/k8s.io/component-base/version
mkdir -p go/src/k8s.io bin
ln -s "$code" go/src/$top
cd go/src/$top
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
folders=$(grep -rl --include='*.go' '+k8s:openapi-gen=' staging/src/k8s.io/*/ pkg |
    grep -v -e code-generator -e sample-apiserver -e _test.go | xargs -n 1 dirname | sort -u |
    sed "s#^staging/src/#$top/vendor/#; s#^pkg/#$top/pkg/#" | paste -sd ,)
"$work/openapi-gen" -i "$folders" -p $top/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations" -o "$GOPATH/src" 2>/dev/null
go build -trimpath -tags providerless -o "$work/bin/" \
    -ldflags "-s -w -X $version.gitVersion=v1.20.2 -X $version.gitMajor=1 -X $version.gitMinor=20" ./cmd/kube-apiserver

cp "$work/root/usr/bin/etcd" "$work/bin/"
mv "$work/bin" "$made"
