#!/usr/bin/env bash
# The tests of our disk that take minutes: SeaBIOS and EDK2 load from it, GRUB, too, a Debian has its root file system there, and it
# is killed twenty times while fio verifies, with split rings and packed; a file that is on it only is sent by every method, by Linux
# 6.1 and 7.3. Makes what they need (scripts/get-root.sh).
#
#   scripts/disk.sh            all of them
#   scripts/disk.sh WORDS      those whose name has these words: seabios, edk2, grub, debian, packed, cold, large_folios
set -euo pipefail
. "$(dirname "$0")/lib.sh"
words_only "$@"
need_cargo
need e2fsck e2fsprogs e2fsprogs
wish ovmf seabios systemd-boot-efi binutils mtools grub-common grub-pc-bin grub-efi-amd64-bin
# What has Debian's root, or nothing chosen.
case ${1:-debian} in debian | grub* | disk::* | seabios | edk2) "$ROOT/scripts/get-root.sh" ;; esac
long_guest_tests "${1:-disk::}"
