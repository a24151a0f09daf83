#!/usr/bin/env bash
# Every test that scripts/test.sh leaves out because it takes minutes or more: those of comeback.sh, migrate.sh and disk.sh, a hold of a
# minute on a queue that a guest uses, ten minutes of `vnic watch`. Hours in all; needs root.
#
#   scripts/long.sh            all of them
#   scripts/long.sh WORDS      those whose name has these words: hold_of_a_minute, in_ten_minutes
set -euo pipefail
. "$(dirname "$0")/lib.sh"
words_only "$@"
need_cargo
cd "$ROOT"
run cargo test --workspace --locked --test guests --test cli -- --test-threads=1 --ignored --nocapture ${1:+"$1"}
