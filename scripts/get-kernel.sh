#!/usr/bin/env bash
# Fetches what the guest is made of, besides our own programs: Debian's cloud kernel with its modules, and a static
# busybox. They are downloaded and unpacked under target/guest/, never installed; what is there is not fetched again.
#
#   scripts/get-kernel.sh            this Debian's kernel and busybox
#   scripts/get-kernel.sh --newer    also the kernel of its backports (exit 3 when there is none to be had)
#   scripts/get-kernel.sh --newer-qemu   also the QEMU of its backports, beside the installed one whose libraries it uses
#   scripts/get-kernel.sh --refresh  asks again for the newest of what was fetched before
set -euo pipefail
. "$(dirname "$0")/lib.sh"

KERNELS=$GUEST/kernel
REFRESH=''

# fetch_kernel SUITE LINK: unpacks the kernel that linux-image-cloud-amd64 depends on, and links LINK to it.
fetch_kernel() {
  local suite=$1 link=$KERNELS/$2 package version
  if [ -e "$link" ] && [ -z "$REFRESH" ]; then return; fi
  mkdir -p "$KERNELS"
  say "Looking for a guest kernel …"
  apt_private "$suite" || return 1
  package=$(apt-cache "${APT[@]}" depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
  [ -n "$package" ] || return 1
  version=${package#linux-image-}
  if [ ! -e "$KERNELS/$version" ]; then
    unpack_debian "$KERNELS/$version" "$package" || return 1
  fi
  ln -sfn "$version" "$link"
  say "The guest's kernel: $version"
}

fetch_busybox() {
  local folder=$GUEST/busybox
  if [ -e "$folder" ] && [ -z "$REFRESH" ]; then return; fi
  apt_private - && unpack_debian "$folder" busybox-static
}

# QEMU's program and firmware; the libraries are those of the installed QEMU.
fetch_qemu() {
  local folder=$GUEST/qemu
  if [ -e "$folder" ] && [ -z "$REFRESH" ]; then return; fi
  say "Looking for a newer QEMU …"
  apt_private "$1" || return 1
  apt-cache "${APT[@]}" show qemu-system-x86 >/dev/null 2>&1 || return 1
  unpack_debian "$folder" qemu-system-x86 qemu-system-common qemu-system-data || return 1
  if ! "$folder/usr/bin/qemu-system-x86_64" --version >&2; then
    say "It does not run with this machine's libraries."
    rm -rf "$folder"
    return 1
  fi
}

NEWER='' NEWER_QEMU=''
while [ $# -gt 0 ]; do
  case $1 in
    --newer) NEWER=1 ;;
    --newer-qemu) NEWER_QEMU=1 ;;
    --refresh) REFRESH=1 ;;
    -h | --help) help && exit ;;
    *) usage_error "unknown option $1" ;;
  esac
  shift
done

if ! is_debian; then
  [ -e "$KERNELS/stable" ] && [ -e "$GUEST/busybox" ] && exit
  fail 2 "this is not Debian: bring a kernel with scripts/run-qemu.sh --kernel FILE --modules DIR, and install a static" \
    "busybox (busybox-static; on Fedora and Arch: busybox), which is then found in PATH"
fi
fetch_kernel - stable ||
  fail 2 "could not fetch the guest's kernel: is there a network, and is this Debian's amd64? Or bring your own: scripts/run-qemu.sh --kernel FILE --modules DIR"
fetch_busybox || fail 2 "could not fetch busybox-static: is there a network?"
if [ -n "$NEWER" ] && ! fetch_kernel "$(codename)-backports" newer; then
  fail 3 "there is no newer kernel to be had from $(codename)-backports"
fi
if [ -n "$NEWER_QEMU" ] && ! fetch_qemu "$(codename)-backports"; then
  fail 3 "there is no newer QEMU to be had from $(codename)-backports"
fi
