#!/usr/bin/env bash
# A guest sends while `vnic serve` is killed a hundred times, over a tap and through passt; while QEMU's socket is cut a hundred times; and
# through an outage of more than a minute. Every byte is compared. Needs root. Each test says at its end what was done, how much came, and
# what was in doubt.
#
#   scripts/comeback.sh            all of them
#   scripts/comeback.sh WORDS      those whose name has these words: tap, passt, cuts, outage
set -euo pipefail
. "$(dirname "$0")/lib.sh"
words_only "$@"
need_cargo
need ip iproute2 iproute2
wish passt
long_guest_tests "${1:-comeback::}"
