#!/usr/bin/env bash
# The main job in one command: installs what is missing (QEMU; a guest kernel and busybox are only unpacked under target/),
# builds, boots a guest on `vnic serve`, NIC and disk, sends a file by each textbook method, and prints what the NIC was handed;
# of a file that was on the disk only, what the disk's DMA filled, too.
# Leaves target/run/run.json. Takes no privilege beyond apt's, and powers everything off.
#
#   scripts/demo.sh [OPTIONS OF run-qemu.sh]     --size 64M, --kernel FILE --modules DIR, …
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case ${1:-} in -h | --help) help && exit ;; esac
say "Sending a file through our NIC by every textbook method. What happens is printed as it happens."
exec "$ROOT/scripts/run-qemu.sh" --filesystem ext4 \
    --transfer read-write,mmap-write,sendfile,sendfile-cold,sendfile-no-sg,splice --size 16M "$@"
