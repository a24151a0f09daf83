#!/usr/bin/env bash
# Fuzzes what a hostile guest or front-end can reach: rings, headers, messages with files.
#
#   scripts/fuzz.sh                        every target for a minute
#   scripts/fuzz.sh --seconds N            every target for N seconds
#   scripts/fuzz.sh --long                 every target until it has had ten million executions, which takes hours; they are counted
#                                          in vnic/fuzz/executions.tsv, so it goes on where it was cut, on another machine too,
#                                          and two runs at once share the work
#   scripts/fuzz.sh --minimise             puts into vnic/fuzz/corpus the fewest inputs, of those there and those that were found on the
#                                          way, which reach as much as all of them, or the hundred that reach most; --long with it
#                                          takes a fraction of the time
#   scripts/fuzz.sh --target NAME[,NAME…]  these only: split_ring, packed_ring, net_header, iotlb, disk, vhost_user,
#                                          control, in_flight, introspect, attach
#
# Prints the executions and findings of each target; exits with 1 when there is a finding, whose input then lies under
# target/fuzz/artifacts. Starts from the inputs in vnic/fuzz/corpus; what is found on the way stays in target/fuzz/corpus.
# --long leaves out what only helps to find new inputs (the comparisons' operands, which inputs are rare) and AddressSanitizer, with
# which a target takes 1.4 to 5.8 times as long; it counts only the executions of commits in which the target found nothing.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

SECONDS_EACH=60
LONG=10000000
IS_LONG=
MINIMISES=
# Counted this often: no more than that is lost when it is cut.
SLICE_SECONDS=300
# Files and bytes of a target's corpus in the repository, at most.
MOST_FILES=100
MOST_BYTES=100000
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
    --minimise)
      MINIMISES=1
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
need_cargo
cd "$ROOT/vnic" || exit 2

# Sanitizers are a nightly compiler's; a stable one can be told to be one, but has no sanitizers' libraries.
BUILT=$ROOT/target/fuzz${IS_LONG:+-long}
FLAGS=(--fuzz-dir fuzz --target-dir "$BUILT")
[ -z "$IS_LONG" ] || FLAGS+=(--no-trace-compares --sanitizer none)
if cargo +nightly --version >/dev/null 2>&1; then
  TOOLCHAIN=(+nightly)
else
  TOOLCHAIN=()
  export RUSTC_BOOTSTRAP=1
  [ -n "$IS_LONG" ] || FLAGS+=(--sanitizer none)
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
CHEAP=detect_leaks=0:detect_stack_use_after_return=0:malloc_context_size=0:quarantine_size_mb=1:thread_local_quarantine_size_kb=64
export ASAN_OPTIONS=${ASAN_OPTIONS:-$CHEAP}
# A packed ring's table of ids has 256 KiB: pages of the kernel's, none of which is touched, and not memory to be filled with zeroes.
# What is smaller is filled faster than mapped.
export MALLOC_MMAP_THRESHOLD_=262144
# What is freed is had again by the next run.
export MALLOC_TRIM_THRESHOLD_=67108864
# Longer inputs are only more messages or steps one after the other.
longest() { case $1 in control | vhost_user) echo 256 ;; *) echo 512 ;; esac; }

EXECUTIONS=$ROOT/vnic/fuzz/executions.tsv
# Of what is fuzzed: what is only counted or kept on the way is none of it.
COMMIT=$(git log -1 --format=%h --abbrev=12 -- . ':!fuzz/executions.tsv' ':!fuzz/corpus' 2>/dev/null)
# had TARGET: the executions of the long runs so far.
had() { awk -F '\t' -v target="$1" '$1 == target && $4 == 0 { sum += $2 } END { print sum + 0 }' "$EXECUTIONS"; }
# count TARGET EXECUTIONS SECONDS FINDINGS: a row for each target and commit. Earlier rows were counted with AddressSanitizer.
count() {
  (
    # Another target's run may be counted at the same moment.
    flock 9
    awk -F '\t' -v OFS='\t' -v target="$1" -v executions="$2" -v seconds="$3" -v findings="$4" -v commit="${COMMIT:-unknown}" \
      -v date="$(date --iso-8601)" -v sanitizer=none '
        function row() { print target, executions, seconds, findings, commit, date, sanitizer }
        $1 == target && $5 == commit && $7 == sanitizer { executions += $2; seconds += $3; findings += $4; row(); done = 1; next }
        { print }
        END { if (!done) row() }' "$EXECUTIONS" >"$EXECUTIONS.new" && mv "$EXECUTIONS.new" "$EXECUTIONS"
  ) 9<fuzz/Cargo.toml
}

FOUND=0
SUMMARY=()
# fuzz TARGET LIMIT…: one run; leaves executions, rate, seconds and found.
fuzz() {
  local target=$1 before code start=$SECONDS
  shift
  kept=$ROOT/target/fuzz/corpus/$target
  artifacts=$ROOT/target/fuzz/artifacts/$target
  # Two runs of a target at once have a log each.
  log=$ROOT/target/fuzz/$target-$$.log
  mkdir -p "$kept" "$artifacts" "fuzz/corpus/$target"
  before=$(findings "$artifacts")
  run "$BUILT/$HOST/release/$target" "$kept" "fuzz/corpus/$target" \
    "$@" -timeout=20 -rss_limit_mb=4096 -max_len="$(longest "$target")" -len_control=0 -detect_leaks=0 -print_final_stats=1 -print_funcs=0 \
    -artifact_prefix="$artifacts/" >"$log" 2>&1
  code=$?
  seconds=$((SECONDS - start))
  executions=$(awk '/^stat::number_of_executed_units:/ { print $2 }' "$log")
  rate=$(awk '/^stat::average_exec_per_sec:/ { print $2 }' "$log")
  found=$(($(findings "$artifacts") - before))
  if [ $code != 0 ] && [ $found = 0 ]; then
    tail -n 30 "$log" >&2
    fail 2 "$target could not be run; its output is in $log"
  fi
  if [ $found = 0 ]; then
    rm -f "$log"
  else
    FOUND=1
    grep -E -A 25 'panicked|ERROR: |SUMMARY' "$log" | head -n 60 >&2
    say "$target: the input is in $artifacts, the output in $log"
  fi
}

# choose: of the inputs that a merge of libFuzzer's has run (its control file: how many, how many of them first, their names, then a
# STARTED line with the size of each and an FT line with what it reaches), those that reach most together. Prints their names.
choose() {
  awk -v most=$MOST_FILES -v most_bytes=$MOST_BYTES '
    NR == 1 { inputs = $1 }
    NR > 2 && NR <= inputs + 2 { name[NR - 3] = $0; next }
    $1 == "STARTED" { size[$2] = $3 }
    $1 == "FT" { reaches[$2] = substr($0, length($1 $2) + 3); adds[$2] = NF - 2 }
    END {
      while (taken < most) {
        # What an input adds only gets less: what was counted before is the most that it can be.
        do {
          next_one = ""
          for (id in adds)
            if (next_one == "" || adds[id] > adds[next_one] || (adds[id] == adds[next_one] && size[id] < size[next_one])) next_one = id
          if (next_one == "" || adds[next_one] == 0) exit
          before = adds[next_one]
          adds[next_one] = 0
          for (at = split(reaches[next_one], features, " "); at > 0; at--) adds[next_one] += !(features[at] in reached)
        } while (adds[next_one] < before)
        delete adds[next_one]
        if (bytes + size[next_one] > most_bytes) continue
        bytes += size[next_one]
        taken++
        for (at in features) reached[features[at]]
        print name[next_one]
      }
    }'
}

# minimise TARGET: the fewest inputs that reach as much as all; where they are too many, those that reach most.
minimise() {
  local target=$1 kept merged again control output inputs input name
  kept=$ROOT/target/fuzz/corpus/$target
  merged=$(mktemp -d) again=$(mktemp -d) control=$(mktemp)
  output=$ROOT/target/fuzz/$target-$$.log
  mkdir -p "$kept"
  merge() {
    run "$BUILT/$HOST/release/$target" -merge=1 -set_cover_merge=1 -max_len="$(longest "$target")" "$@" >"$output" 2>&1 ||
      fail 2 "$target could not be run; its output is in $output"
  }
  merge "$merged" "fuzz/corpus/$target" "$kept"
  # Once more, for what each of these reaches.
  merge -merge_control_file="$control" "$again" "$merged"
  mapfile -t inputs < <(choose <"$control")
  [ ${#inputs[@]} -gt 0 ] || fail 2 "no input of $target reaches anything; its output is in $output"
  SUMMARY+=("$(printf '%-12s %4d of %d inputs, %d bytes' "$target" ${#inputs[@]} "$(head -n 1 "$control")" "$(cat "${inputs[@]}" | wc -c)")")
  find "fuzz/corpus/$target" -type f -regextype posix-extended -regex '.*/[0-9a-f]{12,40}' -delete
  for input in "${inputs[@]}"; do
    name=${input##*/}
    mv "$input" "fuzz/corpus/$target/${name:0:12}"
  done
  rm -rf "$merged" "$again" "$control" "$output"
}

for target in "${TARGETS[@]}"; do
  if [ -n "$MINIMISES" ]; then
    minimise "$target"
    continue
  fi
  if [ -z "$IS_LONG" ]; then
    fuzz "$target" -max_total_time="$SECONDS_EACH"
    SUMMARY+=("$(printf '%-12s %12s executions, %s a second, %d findings' "$target" "${executions:-?}" "${rate:-?}" "$found")")
    continue
  fi
  found=0
  while total=$(had "$target") && [ "$total" -lt "$LONG" ] && [ $found = 0 ]; do
    fuzz "$target" -runs=$((LONG - total)) -max_total_time=$SLICE_SECONDS -entropic=0
    count "$target" "${executions:-0}" "$seconds" "$found"
  done
  SUMMARY+=("$(awk -F '\t' -v target="$target" '$1 == target { sum += $2; seconds += $3; found += $4; last = $6 }
    END { printf "%-12s %12d executions, %d a second, %d findings, until %s", target, sum, seconds ? sum / seconds : 0, found, last }' \
    "$EXECUTIONS")")
done
printf '%s\n' "${SUMMARY[@]}"
exit $FOUND
