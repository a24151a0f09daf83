#!/usr/bin/env bash
# The benchmarks: our back-end beside DPDK's, driven by DPDK's own driver and by a pump of ours, no guest in between.
# Prints ratios, leaves target/bench/bench.json and target/bench/side_by_side.svg. Installs DPDK and takes 600 huge pages
# for it meanwhile; wants two CPUs and a quiet machine.
#
#   scripts/bench.sh                what has a target: about ten minutes
#   scripts/bench.sh --all          every ring format and frame size: about half an hour
#   scripts/bench.sh --only WORDS   the cases whose name has these words: --only 'pump, 64 B split'
#                                   or 'latency', 'idle' or 'memory' for what is no frame rate, 'tracer on', '2 pairs'
#   scripts/bench.sh --rounds N     rounds of each comparison (5)
#   scripts/bench.sh --against PROGRAM  another build of vnic as the yardstick, in place of DPDK
#   scripts/bench.sh --engine       only the ring engine, against virtio-queue
#   scripts/bench.sh --iommu        only what a guest's IOMMU costs: our back-end behind one against itself without
set -euo pipefail
. "$(dirname "$0")/lib.sh"

WORDS=() ENGINE='' IOMMU=''
while [ $# -gt 0 ]; do
  case $1 in
    --all) WORDS+=(--all) && shift ;;
    --engine) ENGINE=1 && shift ;;
    --iommu) IOMMU=1 && shift ;;
    --against | --only | --rounds | --seconds)
      [ $# -ge 2 ] || usage_error "$1 wants a value"
      WORDS+=("$1" "$2") && shift 2
      ;;
    -h | --help) help && exit ;;
    *) usage_error "unknown option $1" ;;
  esac
done
need_cargo
cd "$ROOT"
OUT=$ROOT/target/bench
mkdir -p "$OUT"
# What a run before this one left is not of this one.
rm -f "$OUT/side_by_side.json" "$OUT/singles.json"

if [ -n "$ENGINE" ]; then
  run cargo bench --workspace --locked --bench engine
  exit
fi

[ "$(nproc)" -ge 2 ] || fail 2 "this needs two CPUs, one for each side"
behind_an_iommu() {
  run cargo build --release --workspace --locked --bin vnic
  run cargo bench --workspace --locked --bench iommu -- --vnic "$ROOT/target/release/vnic" --out "$OUT" "$@"
}
if [ -n "$IOMMU" ]; then
  behind_an_iommu "${WORDS[@]}"
  exit
fi
can_be_root || fail 2 "DPDK wants huge pages, and they want root: run it as root"
need_dpdk

HUGE_BEFORE=$(cat /proc/sys/vm/nr_hugepages) MOUNTED=''
put_back() {
  [ -z "$MOUNTED" ] || as_root umount /dev/hugepages || true
  echo "$HUGE_BEFORE" | as_root tee /proc/sys/vm/nr_hugepages >/dev/null
}
trap put_back EXIT
if [ "$HUGE_BEFORE" -lt 600 ]; then
  echo 600 | as_root tee /proc/sys/vm/nr_hugepages >/dev/null
  [ "$(cat /proc/sys/vm/nr_hugepages)" -ge 600 ] || fail 2 "no 600 huge pages of 2 MiB are to be had"
fi
if ! grep -q ' /dev/hugepages hugetlbfs ' /proc/mounts; then
  as_root mkdir -p /dev/hugepages
  as_root mount -t hugetlbfs none /dev/hugepages
  MOUNTED=1
fi

run cargo build --release --workspace --locked --bin vnic
run cargo bench --workspace --locked --bench side_by_side -- --vnic "$ROOT/target/release/vnic" --out "$OUT" "${WORDS[@]}"
behind_an_iommu
{
  printf '{"machine": "%s", "cpus": %d, "kernel": "%s", "dpdk": "%s", "date": "%s",\n "side_by_side": ' \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)" "$(nproc)" "$(uname -r)" \
    "$(dpkg-query -W -f '${Version}' dpdk-dev 2>/dev/null || echo unknown)" "$(date -u +%FT%TZ)"
  cat "$OUT/side_by_side.json"
  printf ',\n "iommu": '
  cat "$OUT/iommu.json"
  [ ! -e "$OUT/singles.json" ] || { printf ',\n "latency_idle_memory": ' && cat "$OUT/singles.json"; }
  # Not measured here yet: null, with the reason.
  printf ',\n "guest_sendfile": null, "guest_sendfile_not_run": "this script boots no guest"'
  printf '}\n'
} >"$OUT/bench.json"
say "$OUT/bench.json, $OUT/side_by_side.svg"
