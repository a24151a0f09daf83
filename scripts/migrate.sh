#!/usr/bin/env bash
# Moves a guest that is sending from one QEMU to another and back, twenty times, each with a `vnic serve` of its own on a bridge in a
# network namespace: by this machine's QEMU, by that of Debian's backports, behind an IOMMU, with packed rings, announced by its device. Needs
# root. Each test says at its end what was moved, and how long the guest stood still.
#
#   scripts/migrate.sh            all of them
#   scripts/migrate.sh WORDS      those whose name has these words: twenty_times_while, newer, iommu, packed, announced
set -euo pipefail
. "$(dirname "$0")/lib.sh"
words_only "$@"
need_cargo
need ip iproute2 iproute2
long_guest_tests "${1:-migrate::}"
