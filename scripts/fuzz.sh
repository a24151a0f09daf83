#!/usr/bin/env bash
# Fuzzes what a hostile guest or front-end can reach: rings, headers, messages with files.
#
#   scripts/fuzz.sh                        every target for a minute
#   scripts/fuzz.sh --seconds N            every target for N seconds
#   scripts/fuzz.sh --long                 every target until it has had ten million executions, which takes hours; they are counted
#                                          over all such runs (target/fuzz/long.tsv): it goes on where it was cut
#   scripts/fuzz.sh --target NAME[,NAME…]  these only: split_ring, packed_ring, net_header, iotlb, disk, vhost_user,
#                                          control, in_flight, introspect, attach
#
# --long leaves out what only helps to find new inputs (the comparisons' operands). Prints the executions and findings of each target; exits with 1 when there is a finding, whose input then lies under
# target/fuzz/artifacts. Starts from the inputs in vnic/fuzz/corpus; what is found on the way stays in target/fuzz/corpus.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

SECONDS_EACH=60
LONG=10000000
LIMIT=()
IS_LONG=
# So many executions at a time: no more than that is lost when it is cut.
SLICE=200000
TARGETS=(split_ring packed_ring net_header iotlb disk vhost_user control in_flight introspect attach)
while [ $# -gt 0 ]; do
  case $1 in
    --seconds)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "--seconds takes a number of seconds"
      SECONDS_EACH=$2
      shift 2
      ;;
    --long)
      IS_LONG=1
      shift
      ;;
    --target)
      [ -n "${2:-}" ] || usage_error "--target takes names of fuzz targets"
      IFS=, read -ra TARGETS <<<"$2"
      for target in "${TARGETS[@]}"; do
        [ -e "$ROOT/vnic/fuzz/fuzz_targets/$target.rs" ] || usage_error "no fuzz target is called '$target'"
      done
      shift 2
      ;;
    -h | --help) help && exit ;;
    *) usage_error "unknown option $1" ;;
  esac
done
LIMIT=(-max_total_time="$SECONDS_EACH")
need_cargo
cd "$ROOT/vnic" || exit 2

# Sanitizers are a nightly compiler's; a stable one can be told to be one, but has no sanitizers' libraries.
BUILT=$ROOT/target/fuzz${IS_LONG:+-long}
FLAGS=(--fuzz-dir fuzz --target-dir "$BUILT" ${IS_LONG:+--no-trace-compares})
if cargo +nightly --version >/dev/null 2>&1; then
  TOOLCHAIN=(+nightly)
else
  TOOLCHAIN=()
  export RUSTC_BOOTSTRAP=1
  FLAGS+=(--sanitizer none)
  say "no nightly toolchain (rustup toolchain install nightly): fuzzing without AddressSanitizer"
fi
need c++ g++ "a C++ compiler, for libFuzzer"
if ! cargo fuzz --version >/dev/null 2>&1; then
  run cargo install cargo-fuzz --locked ||
    fail 2 "cargo-fuzz could not be installed; install it by hand: cargo install cargo-fuzz --locked"
fi
# cargo-fuzz has no --locked of its own.
run cargo fetch --quiet --locked --manifest-path fuzz/Cargo.toml || fail 2 "vnic/fuzz/Cargo.lock is not up to date"
run cargo "${TOOLCHAIN[@]}" fuzz build "${FLAGS[@]}" || fail 2 "the fuzz targets could not be built; see the messages above"

# What is only slow is no finding: libFuzzer keeps that too.
findings() { find "$1" -type f ! -name 'slow-unit-*' | wc -l; }

HOST=$(rustc -vV | sed -n 's/^host: //p')
# What costs much and finds little here: leaks are what the ends of processes are for, a finding's backtrace is the panic's.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:detect_stack_use_after_return=0:malloc_context_size=2:quarantine_size_mb=16}
# Longer inputs are only more messages one after the other.
longest() { case $1 in control | vhost_user) echo 384 ;; *) echo 1024 ;; esac; }
# So many executions the long runs had so far.
had() { awk -v target="$1" '$1 == target { sum += $2 } END { print sum + 0 }' "$LONG_LOG"; }

LONG_LOG=$ROOT/target/fuzz/long.tsv
touch "$LONG_LOG"
FOUND=0
SUMMARY=()
# fuzz TARGET LIMIT…: one run; leaves executions, rate and found.
fuzz() {
  local target=$1 before code
  shift
  kept=$ROOT/target/fuzz/corpus/$target
  artifacts=$ROOT/target/fuzz/artifacts/$target
  log=$ROOT/target/fuzz/$target.log
  mkdir -p "$kept" "$artifacts" "fuzz/corpus/$target"
  before=$(findings "$artifacts")
  run "$BUILT/$HOST/release/$target" "$kept" "fuzz/corpus/$target" \
    "$@" -timeout=20 -rss_limit_mb=4096 -max_len="$(longest "$target")" -len_control=0 -detect_leaks=0 -print_final_stats=1 \
    -artifact_prefix="$artifacts/" >"$log" 2>&1
  code=$?
  executions=$(awk '/^stat::number_of_executed_units:/ { print $2 }' "$log")
  rate=$(awk '/^stat::average_exec_per_sec:/ { print $2 }' "$log")
  found=$(($(findings "$artifacts") - before))
  if [ $code != 0 ] && [ $found = 0 ]; then
    tail -n 30 "$log" >&2
    fail 2 "$target could not be run; its output is in $log"
  fi
  [ $found = 0 ] || {
    FOUND=1
    grep -E -A 25 'panicked|ERROR: |SUMMARY' "$log" | head -n 60 >&2
    say "$target: the input is in $artifacts, the output in $log"
  }
}

for target in "${TARGETS[@]}"; do
  if [ -z "$IS_LONG" ]; then
    fuzz "$target" "${LIMIT[@]}"
    SUMMARY+=("$(printf '%-12s %12s executions, %s a second, %d findings' "$target" "${executions:-?}" "${rate:-?}" "$found")")
    continue
  fi
  found=0
  while total=$(had "$target") && [ "$total" -lt "$LONG" ] && [ $found = 0 ]; do
    left=$((LONG - total))
    fuzz "$target" -runs="$((left < SLICE ? left : SLICE))"
    printf '%s\t%s\t%s\t%s\t%s\n' "$target" "${executions:-0}" "${rate:-0}" "$found" "$(date --iso-8601)" >>"$LONG_LOG"
  done
  SUMMARY+=("$(awk -v target="$target" '$1 == target { sum += $2; found += $4; seconds += $3 ? $2 / $3 : 0; last = $5 }
    END { printf "%-12s %12d executions, %d a second, %d findings, until %s", target, sum, seconds ? sum / seconds : 0, found, last }' "$LONG_LOG")")
done
printf '%s\n' "${SUMMARY[@]}"
exit $FOUND
