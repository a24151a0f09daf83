#!/usr/bin/env bash
# A guest sends while `vnic serve` is killed a hundred times, over a tap and through passt; while QEMU's socket is cut a hundred times; and
# through an outage of more than a minute. Every byte is compared. Needs root. Each test says at its end what was done, how much came, and
# what was in doubt.
#
#   scripts/comeback.sh            all of them
#   scripts/comeback.sh WORDS      those whose name has these words: tap, passt, cuts, outage
set -euo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in
  -h | --help) help && exit ;;
  -*) usage_error "unknown option $1" ;;
esac
need_cargo
need ip iproute2 iproute2
wish passt
cd "$ROOT"
run cargo test --workspace --locked --test guests -- --test-threads=1 --ignored --nocapture "${1:-comeback::}"
