#!/usr/bin/env bash
# Sends a file by every method, on several kernels and file systems, on a NIC with scatter-gather and without: a record each,
# under target/matrix. Makes what it needs; --help says more.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case " $* " in *" --help "* | *" -h "*) ;; *)
  # Of the file systems that the guest has on its disk.
  command -v mkfs.xfs mkfs.btrfs mksquashfs mkfs.erofs >/dev/null || wish xfsprogs btrfs-progs squashfs-tools erofs-utils
  ;;
esac
if [ -z "${MATRIX:-}" ]; then
  need_cargo
  (cd "$ROOT" && run cargo build --release --locked --package guest-matrix --package guest-launcher --package vnic-host --bins >&2) || fail 2 "the program does not build"
  export VNIC=${VNIC:-$ROOT/target/release/vnic} LAUNCHER=${LAUNCHER:-$ROOT/target/release/run-qemu}
  MATRIX=$ROOT/target/release/matrix
fi
exec "$MATRIX" "$@"
