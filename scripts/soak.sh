#!/usr/bin/env bash
# The tests that take long by what they are about: a hold of a minute on a queue that a guest uses, ten minutes of `vnic watch`.
#
#   scripts/soak.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in
  '') ;;
  -h | --help) help && exit ;;
  *) usage_error "unknown option $1" ;;
esac
need_cargo
cd "$ROOT"
run cargo test --workspace --locked --test guests --test cli -- --test-threads=1 --ignored
