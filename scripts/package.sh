#!/usr/bin/env bash
# Packs vnic: the command, its manual pages, completions for three shells and the systemd unit, as a Debian package.
#
#   scripts/package.sh          makes target/package/vnic_VERSION_ARCH.deb
#   scripts/package.sh --try    then installs it in a fresh Debian 12 below target/, uses it there, and removes it again
#   scripts/package.sh --boot   then boots such a Debian in a container, and has its systemd start, watch and stop vnic@web
#
# The package's path is the only line on standard output.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

TRY=''
case ${1:-} in
  '') ;;
  --try | --boot) TRY=${1#--} ;;
  -h | --help) help && exit ;;
  *) usage_error "unknown option $1" ;;
esac
need_cargo
cd "$ROOT" || exit 2
PACKAGE=$ROOT/target/package

run cargo build --release --locked --package vnic-host >&2 || fail 2 "vnic does not build"
rm -rf "$PACKAGE"
mkdir -p "$PACKAGE/man" "$PACKAGE/completions"
vnic=$ROOT/target/release/vnic
"$vnic" man "$PACKAGE/man" >/dev/null
"$vnic" completions bash >"$PACKAGE/completions/vnic"
"$vnic" completions zsh >"$PACKAGE/completions/_vnic"
"$vnic" completions fish >"$PACKAGE/completions/vnic.fish"

tools=$ROOT/target/tools
[ -x "$tools/bin/cargo-deb" ] || run cargo install --quiet --locked --root "$tools" cargo-deb >&2 ||
  fail 2 "cargo-deb could not be installed"
# The binary is the one just built; its lines of debugging information stay out of the package.
run "$tools/bin/cargo-deb" --quiet --no-build --strip --package vnic-host --output "$PACKAGE" >&2
deb=$(echo "$PACKAGE"/vnic_*.deb)

# try_package DEB: in a root folder of its own, as its root; nothing of this machine is changed.
try_package() {
  need mmdebstrap mmdebstrap mmdebstrap
  can_be_root || fail 2 "a root folder has root's files: run this as root, or as a user who may use sudo without a password"
  local root=$PACKAGE/root before=$PACKAGE/before after=$PACKAGE/after
  as_root mmdebstrap --quiet --variant=apt --include=man-db,bash-completion bookworm "$root" >&2
  # A minimal system leaves manual pages out of what it installs.
  as_root rm -f "$root/etc/dpkg/dpkg.cfg.d/docker" "$root/etc/dpkg/dpkg.cfg.d/excludes"
  inside() { as_root chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"; }
  # What apt and man keep for themselves may change, and so may what a program made while it ran.
  everything() { as_root find "$root" -xdev \( -path "$root/tmp" -o -path "$root/run" -o -path "$root/var/cache" -o -path "$root/var/lib/dpkg" -o -path "$root/var/log" \) -prune -o -printf '%P\n' | sort; }
  everything >"$before"
  as_root cp "$1" "$root/vnic.deb"
  inside dpkg --install /vnic.deb >&2
  inside vnic --version >&2
  inside man -P cat vnic | grep -q "virtual\|virtio" || fail 1 "man vnic shows no page"
  inside man -P cat vnic-serve | grep -q -- --socket-path || fail 1 "man vnic-serve shows no page"
  inside bash -c '. /usr/share/bash-completion/completions/vnic && complete -p vnic' >&2 || fail 1 "bash completes nothing"
  local code=0
  inside vnic doctor >&2 || code=$?
  # 1: the demo cannot run there (no QEMU), and it says so.
  [ $code -le 1 ] || fail 1 "vnic doctor ended with $code"
  # A front-end's first question, answered: that is a device at work.
  # shellcheck disable=SC2016 # the shell inside expands these
  inside sh -c 'vnic serve --socket-path /tmp/v.sock & pid=$!
    for i in $(seq 100); do [ -S /tmp/v.sock.control ] && break; sleep 0.1; done
    vnic status --control /tmp/v.sock.control; code=$?; kill $pid; wait $pid; exit $code' >&2 || fail 1 "vnic serve does not answer"
  inside dpkg --purge vnic >&2
  as_root rm -f "$root/vnic.deb"
  everything >"$after"
  diff "$before" "$after" >&2 || fail 1 "the package leaves something behind"
  as_root rm -rf "$root"
  say "installed, used, removed: nothing left"
}

# boot_package DEB: in a container of systemd's own; what is looked at there is in scripts/unit.sh.
boot_package() {
  need mmdebstrap mmdebstrap mmdebstrap
  need systemd-nspawn systemd-container systemd-container
  can_be_root || fail 2 "a container has root's files: run this as root, or as a user who may use sudo without a password"
  local root=$PACKAGE/booted
  as_root mmdebstrap --quiet --variant=apt --include=systemd,systemd-sysv,udev bookworm "$root" >&2
  as_root cp "$1" "$root/vnic.deb"
  as_root cp scripts/unit.sh "$root/unit.sh"
  as_root chroot "$root" dpkg --install /vnic.deb >&2
  printf '%s\n' '[Unit]' 'After=basic.target' 'SuccessAction=poweroff-force' 'FailureAction=poweroff-force' '[Service]' \
    'Type=oneshot' 'TimeoutStartSec=120' 'ExecStart=/bin/bash /unit.sh' 'StandardOutput=append:/unit.log' \
    'StandardError=append:/unit.log' | as_root tee "$root/etc/systemd/system/try.service" >/dev/null
  as_root ln -s /etc/systemd/system/try.service "$root/etc/systemd/system/multi-user.target.wants/"
  as_root timeout 300 systemd-nspawn --quiet --register=no --keep-unit --directory "$root" --boot --console=pipe \
    </dev/null >"$PACKAGE/booted.log" 2>&1 || true
  as_root cat "$root/unit.log" >&2 || fail 1 "the container did not come up: see $PACKAGE/booted.log"
  as_root grep -qx "the unit does what it should" "$root/unit.log" || fail 1 "the unit does not do what it should: see above"
  as_root rm -rf "$root"
}

case $TRY in
  try) try_package "$deb" ;;
  boot) boot_package "$deb" ;;
esac
printf '%s\n' "$deb"
