#!/usr/bin/env bash
# Fetches what the guest is made of, besides our own programs: Debian's cloud kernel with its modules, and a static
# busybox. They are downloaded and unpacked under target/guest/, never installed; what is there is not fetched again.
#
#   scripts/get-kernel.sh              this Debian's kernel and busybox
#   scripts/get-kernel.sh --newer      also the kernel of its backports (exit 3 when there is none to be had)
#   scripts/get-kernel.sh --kernel 7.3   also the newest kernel of this version that some suite of Debian's has, or
#   scripts/get-kernel.sh --kernel sid   that of a suite (exit 3 when there is none to be had)
#   scripts/get-kernel.sh --newest       also the newest kernel that any suite of Debian's has today, asked anew
#   scripts/get-kernel.sh --newer-qemu   also the QEMU of its backports, beside the installed one whose libraries it uses
#   scripts/get-kernel.sh --qemu sid     also the QEMU of this suite, with libraries of its own: QEMU=target/guest/qemu-sid/qemu-system-x86_64
#   scripts/get-kernel.sh --refresh    asks again for the newest of what was fetched before
#
# Leaves target/guest/kernel/NAME for the NAME stable, newer or what was asked for, in it `vmlinuz` and `modules`, the
# kernel and its /lib/modules/VERSION.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

KERNELS=$GUEST/kernel
# Where a version is looked for besides this machine's own sources: older ones first.
SUITES=(bullseye bookworm bookworm-backports trixie trixie-backports sid)
REFRESH=''

# fetch_kernel NAME SUITE [VERSION]: unpacks the suite's newest kernel, or its newest of a version, and links NAME to it.
fetch_kernel() {
  local link=$KERNELS/$1 suite=$2 version=${3:-} package packages
  if [ -e "$link/vmlinuz" ] && [ -z "$REFRESH" ]; then return; fi
  mkdir -p "$KERNELS"
  say "Looking for a guest kernel …"
  apt_private "$suite" || return 1
  if [ -n "$version" ]; then
    package=$(apt-cache "${APT[@]}" pkgnames "linux-image-$version" | grep -E "^linux-image-${version//./\\.}[.+-].*cloud-amd64$" | sort -V | tail -n 1)
  else
    package=$(depends linux-image-cloud-amd64 'linux-image-[0-9].*')
  fi
  [ -n "$package" ] || return 1
  version=${package#linux-image-}
  if [ ! -e "$KERNELS/$version/vmlinuz" ]; then
    # From 7.0 on the package is an empty one: those that it needs have the kernel and its modules.
    mapfile -t packages < <(depends "$package" "linux-\(base\|binary\|modules\)-${version%-cloud-*}.*")
    unpack_debian "$KERNELS/$version" "$package" "${packages[@]}" || return 1
    (
      cd "$KERNELS/$version"
      shopt -s nullglob
      kernel=(boot/vmlinuz-* usr/lib/modules/*/vmlinuz) modules=(lib/modules/* usr/lib/modules/*)
      ln -sfn "${modules[0]}" modules && ln -sfn "${kernel[0]}" vmlinuz
    ) || return 1
  fi
  # What modules are compressed with, as most are.
  need xz xz-utils xz
  ln -sfn "$version" "$link"
  say "The guest's kernel: $version"
}

# find_kernel WHICH: that of a suite, or the newest of a version in the first suite that has one.
find_kernel() {
  local suite
  case $1 in
    [0-9]*) for suite in - "${SUITES[@]}"; do fetch_kernel "$1" "$suite" "$1" && return; done && return 1 ;;
    *) fetch_kernel "$1" "$1" ;;
  esac
}

# find_newest: the suite with the newest kernel, as Debian's versions are compared.
find_newest() {
  local suite version newest='' found=''
  for suite in "${SUITES[@]}"; do
    apt_private "$suite" || continue
    version=$(depends linux-image-cloud-amd64 'linux-image-[0-9].*')
    [ -n "$version" ] || continue
    if [ -z "$newest" ] || dpkg --compare-versions "${version#linux-image-}" gt "$newest"; then
      newest=${version#linux-image-} found=$suite
    fi
  done
  [ -n "$found" ] && say "The newest kernel is $newest, of $found" && REFRESH=1 fetch_kernel newest "$found"
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

# Another suite's QEMU, with all that it needs down to the C library, and a script that starts it by its own loader.
fetch_qemu_of() {
  local suite=$1 folder=$GUEST/qemu-$1 packages
  if [ -e "$folder/qemu-system-x86_64" ] && [ -z "$REFRESH" ]; then return; fi
  say "Looking for the QEMU of $suite …"
  apt_private "$suite" || return 1
  # What would be installed where nothing is.
  : >"$GUEST/apt/$suite/nothing"
  mapfile -t packages < <(apt-get "${APT[@]}" -o "Dir::State::status=$GUEST/apt/$suite/nothing" -o Debug::NoLocking=1 \
    -o APT::Install-Recommends=false --simulate install qemu-system-x86 2>/dev/null | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
  [ ${#packages[@]} -gt 0 ] && unpack_debian "$folder" "${packages[@]}" || return 1
  cat >"$folder/qemu" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
usr=$here/usr libraries=$here/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libraries/qemu exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/systemd" \
  "$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios" "$@"
SCRIPT
  chmod +x "$folder/qemu"
  "$folder/qemu" --version >&2 || return 1
  mv "$folder/qemu" "$folder/qemu-system-x86_64"
}

NEWER='' NEWEST='' NEWER_QEMU='' WHICH=() QEMUS=()
while [ $# -gt 0 ]; do
  case $1 in
    --newer) NEWER=1 ;;
    --newest) NEWEST=1 ;;
    --kernel)
      [[ ${2:-} =~ ^[a-z0-9][a-z0-9.+-]*$ ]] || usage_error "--kernel takes a version, or a suite of Debian's"
      WHICH+=("$2") && shift
      ;;
    --qemu)
      [[ ${2:-} =~ ^[a-z][a-z-]*$ ]] || usage_error "--qemu takes a suite of Debian's"
      QEMUS+=("$2") && shift
      ;;
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
fetch_kernel stable - ||
  fail 2 "could not fetch the guest's kernel: is there a network, and is this Debian's amd64? Or bring your own: scripts/run-qemu.sh --kernel FILE --modules DIR"
fetch_busybox || fail 2 "could not fetch busybox-static: is there a network?"
if [ -n "$NEWER" ] && ! fetch_kernel newer "$(codename)-backports"; then
  fail 3 "there is no newer kernel to be had from $(codename)-backports"
fi
[ -z "$NEWEST" ] || find_newest || fail 3 "no suite of Debian's has a kernel: is there a network?"
for which in "${WHICH[@]}"; do
  find_kernel "$which" || fail 3 "there is no kernel $which to be had from Debian"
done
if [ -n "$NEWER_QEMU" ] && ! fetch_qemu "$(codename)-backports"; then
  fail 3 "there is no newer QEMU to be had from $(codename)-backports"
fi
for suite in "${QEMUS[@]}"; do
  fetch_qemu_of "$suite" || fail 3 "there is no QEMU to be had from $suite, or it does not run here"
done
