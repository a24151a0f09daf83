#!/usr/bin/env bash
# Fuzzes what a hostile guest or front-end can reach: rings, headers, messages with files.
#
#   scripts/fuzz.sh                        every target for a minute
#   scripts/fuzz.sh --seconds N            every target for N seconds
#   scripts/fuzz.sh --long                 every target for ten million executions, however long that takes: hours
#   scripts/fuzz.sh --target NAME[,NAME…]  these only: split_ring, packed_ring, net_header, iotlb, disk, vhost_user,
#                                          control, in_flight, introspect, attach
#
# Prints the executions and findings of each target; exits with 1 when there is a finding, whose input then lies under
# target/fuzz/artifacts. Starts from the inputs in vnic/fuzz/corpus; what is found on the way stays in target/fuzz/corpus.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

SECONDS_EACH=60
LONG=10000000
LIMIT=()
TARGETS=(split_ring packed_ring net_header iotlb disk vhost_user control in_flight introspect attach)
while [ $# -gt 0 ]; do
  case $1 in
    --seconds)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "--seconds takes a number of seconds"
      SECONDS_EACH=$2
      shift 2
      ;;
    --long)
      LIMIT=(-runs="$LONG")
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
[ ${#LIMIT[@]} != 0 ] || LIMIT=(-max_total_time="$SECONDS_EACH")
need_cargo
cd "$ROOT/vnic" || exit 2

# Sanitizers are a nightly compiler's; a stable one can be told to be one, but has no sanitizers' libraries.
FLAGS=(--fuzz-dir fuzz --target-dir "$ROOT/target/fuzz")
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

FOUND=0
SUMMARY=()
for target in "${TARGETS[@]}"; do
  kept=$ROOT/target/fuzz/corpus/$target
  artifacts=$ROOT/target/fuzz/artifacts/$target
  log=$ROOT/target/fuzz/$target.log
  mkdir -p "$kept" "$artifacts"
  before=$(findings "$artifacts")
  run cargo "${TOOLCHAIN[@]}" fuzz run "${FLAGS[@]}" "$target" "$kept" "fuzz/corpus/$target" -- \
    "${LIMIT[@]}" -timeout=20 -rss_limit_mb=4096 -max_len=1024 -len_control=0 -print_final_stats=1 \
    -artifact_prefix="$artifacts/" >"$log" 2>&1
  code=$?
  executions=$(awk '/^stat::number_of_executed_units:/ { print $2 }' "$log")
  rate=$(awk '/^stat::average_exec_per_sec:/ { print $2 }' "$log")
  found=$(($(findings "$artifacts") - before))
  if [ $code != 0 ] && [ $found = 0 ]; then
    tail -n 30 "$log" >&2
    fail 2 "$target could not be run; its output is in $log"
  fi
  SUMMARY+=("$(printf '%-12s %12s executions, %s a second, %d findings' "$target" "${executions:-?}" "${rate:-?}" "$found")")
  if [ $found != 0 ]; then
    FOUND=1
    grep -E -A 25 'panicked|ERROR: |SUMMARY' "$log" | head -n 60 >&2
    say "$target: the input is in $artifacts, the output in $log"
  fi
done
printf '%s\n' "${SUMMARY[@]}"
exit $FOUND
