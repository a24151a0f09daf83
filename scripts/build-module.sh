#!/usr/bin/env bash
# Builds guest-tests/kernel/copy-splice.c for a kernel that scripts/get-kernel.sh fetched, against Debian's headers of that kernel. They
# are only unpacked, under target/guest; a kernel of another Debian than this machine's is built for in a root of that one's packages.
#
#   scripts/build-module.sh 6.12        leaves target/guest/kernel/6.12/copy-splice.ko; what is there is not built again
#                                       (exit 3 where there are no headers, or the kernel has no copy_splice_read)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case ${1:-} in
  -h | --help) help && exit ;;
  '' | -*) usage_error "which kernel? The name that scripts/get-kernel.sh --kernel takes" ;;
esac
[ $# = 1 ] || usage_error "one kernel at a time"

SOURCE=$ROOT/guest-tests/kernel
[ -e "$GUEST/kernel/$1/vmlinuz" ] || "$ROOT/scripts/get-kernel.sh" --kernel "$1"
KERNEL=$(realpath "$GUEST/kernel/$1")
RELEASE=${KERNEL##*/}
MODULE=$KERNEL/copy-splice.ko
# One at a time: several guests may ask for it.
exec 9>"$KERNEL/lock"
flock 9
[ ! "$MODULE" -nt "$SOURCE/copy-splice.c" ] || exit 0

# Which Debian it is of: 6.12.117+deb12-cloud-amd64 says so, older ones do not.
case $RELEASE in
  5.10.*) debian=bullseye ;;
  6.1.* | *+deb12*) debian=bookworm ;;
  *+deb13*) debian=trixie ;;
  *) debian=sid ;;
esac

# The function that everything is led to came with Linux 6.5.
case $RELEASE in 5.* | 6.[0-4].*) fail 3 "Linux $RELEASE has no copy_splice_read: it came with 6.5" ;; esac

headers=$GUEST/headers/$RELEASE
if [ ! -e "$headers" ]; then
  for suite in - "$debian" "$debian-backports" ''; do
    [ -n "$suite" ] || fail 3 "there are no headers of Linux $RELEASE to be had from Debian"
    apt_private "$suite" || continue
    mapfile -t packages < <(depends "linux-headers-$RELEASE" 'linux-\(headers\|kbuild\)-.*')
    [ ${#packages[@]} -gt 0 ] || continue
    unpack_debian "$headers" "linux-headers-$RELEASE" "${packages[@]}" && break
  done
fi
build=$headers/usr/src/linux-headers-$RELEASE
# They are written for the place that they are installed to.
sed -i "s#\([ =]\)/usr/src/#\1$headers/usr/src/#" "$build/Makefile"

work=$headers/module
rm -rf "$work" && mkdir -p "$work" && cp "$SOURCE"/* "$work"
# Types of the module for BPF would need pahole.
words=(make -s -C "$build" "M=$work" CONFIG_DEBUG_INFO_BTF_MODULES= modules)
if [ "$debian" = "$(codename)" ]; then
  need make make make
  need gcc gcc gcc
  run "${words[@]}" >&2 || fail 2 "the module does not build for Linux $RELEASE"
else
  # Another Debian's compiler, with all that it is made of.
  can_be_root || fail 3 "building for a kernel of $debian takes a root of its packages: run this as root"
  root=$GUEST/headers/$debian
  if [ ! -e "$root/usr/bin/make" ]; then
    need mmdebstrap mmdebstrap mmdebstrap
    as_root rm -rf "$root.unfinished"
    as_root mmdebstrap --variant=extract --include=gcc,make,dash,coreutils,sed,grep,gawk,findutils,bash,libelf1t64,diffutils "$debian" "$root.unfinished" >&2 ||
      fail 3 "there are no packages of $debian to be had"
    # Nothing was configured, which would have chosen one.
    as_root ln -s gawk "$root.unfinished/usr/bin/awk"
    as_root mv "$root.unfinished" "$root"
  fi
  # At the same path inside.
  as_root mkdir -p "$root$headers"
  as_root unshare --mount sh -c "mount --bind '$headers' '$root$headers' && mount -t proc proc '$root/proc' && exec chroot '$root' /usr/bin/env PATH=/usr/bin:/bin:/usr/sbin ${words[*]}" >&2 ||
    fail 2 "the module does not build for Linux $RELEASE"
fi
run cp "$work/copy-splice.ko" "$MODULE"
