#!/usr/bin/env bash
# The unit tests of rings and memory under Miri: an interpreter that sees undefined behaviour and data races.
#
#   scripts/miri.sh               all of them that Miri can run
#   scripts/miri.sh TEST…         those whose names contain one of these words
#
# Guest memory is then this process's own, as Miri maps no files. Left out are what needs files, processes or signals; the tests
# that race on purpose, as a guest outside of the program may and a thread inside must not; and what takes hours there.
# Prints SKIP where there is no Miri.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

words_only "$@"
need_cargo
cd "$ROOT" || exit 2
if ! cargo +nightly miri --version >/dev/null 2>&1; then
  printf 'SKIP: no Miri here: rustup toolchain install nightly --component miri,rust-src\n'
  exit
fi
LEFT_OUT=(
  # Files, processes, signals.
  truncated shrinks file_shorter sigbus inherit_a_loss no_memory_file impossible_tables range_that_wraps
  start_anywhere regions_come_and_go survey ring::handover
  # Races on purpose.
  changes_all_the_time
  # Gigabytes, thousands of cases, 32768 entries.
  large_guest total_over_32_bits largest_ring differential random_rings any_content what_changes_between an_index_that_changes
  formula costs_no_more producer_that_never_stops goes_on_past_65535
)
SKIPPED=()
for name in "${LEFT_OUT[@]}"; do SKIPPED+=(--skip "$name"); done
[ $# -gt 0 ] || set -- ring:: memory::
export PROPTEST_CASES=4
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-permissive-provenance"
run cargo +nightly miri test --locked -p vnic --lib --no-default-features --target-dir target/miri -- "${SKIPPED[@]}" "$@"
