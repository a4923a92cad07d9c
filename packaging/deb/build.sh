#!/usr/bin/env bash
# Builds build/deb/kerntune_*.deb with Debian's own tools, from a clean copy of the files that go into it. When the last
# package came from the same files it is left as it is. The network is used for Debian packages that are missing, only.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Debian's Python, whatever is first in the caller's PATH, and no settings of an outer make.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
unset MAKEFLAGS MFLAGS MAKELEVEL PYTHONPATH VIRTUAL_ENV

out=$PWD/build/deb
control=packaging/deb/debian/control
sources=(src dbus systemd docs/man docs/evidence.md docs/holds.md docs/overcommit.md docs/run.md packaging pyproject.toml README.md NEWS.md LICENSE)

# The same files make the same bytes: all times in it are that of the changelog.
snapshot() {
    local time
    time=$(dpkg-parsechangelog -l packaging/deb/debian/changelog -S Timestamp)
    tar --create --sort=name --mtime="@$time" --owner=0 --group=0 \
        --mode=u+rw,go=rX --exclude=__pycache__ --exclude='*.egg-info' "${sources[@]}"
}

# Nothing is compiled here, so the compiler that Debian presumes (-I, apt-get satisfy) is not asked for.
missing_tools() {
    ! type dpkg-checkbuilddeps lintian >/dev/null 2>&1 || ! dpkg-checkbuilddeps -I "$control" 2>/dev/null
}

install_tools() {
    local sudo=
    if [ "$(id -u)" -ne 0 ]; then
        sudo=sudo
        command -v sudo >/dev/null || { echo "only root can install the tools that are missing to build it"; exit 3; }
    fi
    echo "installing Debian's tools to build packages"
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get satisfy -qq -y --no-install-recommends \
        "dpkg-dev, lintian, $(sed -n '/^Build-Depends:/,/^[^ ]/ s/^ //p' "$control" | tr -d '\n')" >/dev/null
}

mkdir -p "$out"
exec 9>"$out/lock"
flock --timeout 300 9 || { echo "another build in $out does not end"; exit 1; }

if missing_tools; then
    install_tools
fi
snapshot >"$out/source.tar"
made_from=$(sha256sum <"$out/source.tar")
if [ "$made_from" = "$(cat "$out/made-from" 2>/dev/null)" ] && compgen -G "$out/kerntune_*.deb" >/dev/null; then
    rm "$out/source.tar"
    exit 0
fi

rm -rf "$out/source" "$out/made-from" "$out"/kerntune_*
mkdir "$out/source"
tar --extract --file="$out/source.tar" --directory="$out/source"
cp -r "$out/source/packaging/deb/debian" "$out/source/debian"
# The copy is clean already (-nc), the tools are here (-d), and nobody has to sign it.
if ! (cd "$out/source" && timeout 300 dpkg-buildpackage -b -us -uc -nc -d) >"$out/log" 2>&1 9>&-; then
    tail -n 30 "$out/log"
    echo "the package could not be built: $out/log"
    exit 1
fi
rm -rf "$out/source" "$out/source.tar"
echo "$made_from" >"$out/made-from"
ls "$out"/kerntune_*.deb
