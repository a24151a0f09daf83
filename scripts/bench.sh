#!/usr/bin/env bash
# The benchmarks: our back-end beside DPDK's, driven by DPDK's own driver and by a pump of ours, no guest in between; what a
# guest's IOMMU costs; and a guest's sendfile over our NIC beside QEMU's own. Prints ratios, leaves target/bench/bench.json
# and target/bench/ratios.svg. Installs DPDK and takes 600 huge pages for it meanwhile; wants two CPUs and a quiet machine.
#
#   scripts/bench.sh                what has a target: about a quarter of an hour
#   scripts/bench.sh --all          every ring format and frame size: more than half an hour
#   scripts/bench.sh --only WORDS   the comparisons whose name has these words: --only 'pump, 64 B split', 'tracer on', 'top', 'watch on', 'proxy', '2 pairs'
#                                   or 'latency', 'idle' or 'memory' for what is no rate
#   scripts/bench.sh --iommu        only what a guest's IOMMU costs: our back-end behind one against itself without
#   scripts/bench.sh --sendfile     only a guest's sendfile: peer against -netdev user, tap against QEMU's tap
#   scripts/bench.sh --paced        only what is at a modelled card's pace: the pump and a guest at Gen1 x1 beside what the model says, a guest
#                                   on an ideal card beside one without
#   scripts/bench.sh --disk         only our disk beside qemu-storage-daemon's and QEMU's own: from a driver without a VM and by fio in a
#                                   guest; --only 'no VM, tmpfs', 'guest', 'random read'
#   scripts/bench.sh --rounds N     rounds of each comparison (5)
#   scripts/bench.sh --frames N     frames of each run that DPDK's driver drives, at least: --only proxy --frames 100000000
#   scripts/bench.sh --against PROGRAM  another build of vnic as the yardstick, in place of DPDK
#   scripts/bench.sh --engine       only the ring engine, against virtio-queue
set -euo pipefail
. "$(dirname "$0")/lib.sh"

WORDS=() ENGINE='' WITH_DPDK=1 WITH_DISK=''
while [ $# -gt 0 ]; do
  case $1 in
    --all) WORDS+=(--all) && shift ;;
    --engine) ENGINE=1 && shift ;;
    --iommu) WORDS+=(--only IOMMU) WITH_DPDK='' && shift ;;
    --disk) WORDS+=(--disk) WITH_DPDK='' WITH_DISK=1 && shift ;;
    --paced) WORDS+=(--only "paced,") WITH_DPDK='' && shift ;;
    --sendfile) WORDS+=(--only sendfile) WITH_DPDK='' && shift ;;
    --against | --only | --rounds | --seconds | --frames)
      [ $# -ge 2 ] || usage_error "$1 wants a value"
      WORDS+=("$1" "$2") && shift 2
      ;;
    -h | --help) help && exit ;;
    *) usage_error "unknown option $1" ;;
  esac
done
need_cargo
cd "$ROOT"
if [ -n "$ENGINE" ]; then
  run cargo bench --workspace --locked --bench engine
  exit
fi
[ "$(nproc)" -ge 2 ] || fail 2 "this needs two CPUs, one for each side"

use_dpdk() {
  can_be_root || fail 2 "DPDK wants huge pages, and they want root: run it as root"
  wish "${DPDK[@]}"
  need dpdk-testpmd dpdk-dev dpdk
  HUGE_BEFORE=$(cat /proc/sys/vm/nr_hugepages) MOUNTED=''
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
}
put_back() {
  [ -z "$MOUNTED" ] || as_root umount /dev/hugepages || true
  echo "$HUGE_BEFORE" | as_root tee /proc/sys/vm/nr_hugepages >/dev/null
}
[ -z "$WITH_DPDK" ] || use_dpdk
need ip iproute2 iproute2
if [ -n "$WITH_DISK" ]; then
  need qemu-storage-daemon qemu-system-common qemu-storage-daemon
  need fio fio fio
  need taskset util-linux util-linux
fi

OUT=$ROOT/target/bench
run cargo build --release --workspace --locked --bin vnic --bin vnic-bench
run target/release/vnic-bench --vnic "$ROOT/target/release/vnic" --out "$OUT" "${WORDS[@]}"
say "$OUT/bench.json, $OUT/ratios.svg"
