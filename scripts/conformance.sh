#!/usr/bin/env bash
# Plays every MUST that VIRTIO 1.3 has for a network device and its virtqueues, split and packed, over a vhost-user session.
#
#   scripts/conformance.sh [OPTION…]               against `vnic serve`
#   scripts/conformance.sh --dpdk [OPTION…]        against DPDK's vhost, by testpmd
#   scripts/conformance.sh --qemu [OPTION…]        against QEMU's own virtio-net-pci, by its registers; QEMU=PROGRAM names another QEMU
#   scripts/conformance.sh --socket PATH [OPTION…] against whatever serves that socket and gives back the frames it is sent
#
# Options: --only NUMBER (requirements whose number begins so), --json, --markdown.
# Exit codes: 0; 1 a requirement is not met; 2 bad usage, or a back-end that does not come up.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

BACK_END=vnic
SOCKET=
TARGET=()
case ${1:-} in
  -h | --help) help && exit ;;
  --dpdk) BACK_END=dpdk && shift ;;
  --qemu) BACK_END=qemu && shift ;;
  --socket)
    [ -n "${2:-}" ] || usage_error "--socket takes a path"
    BACK_END='' SOCKET=$2
    shift 2
    ;;
esac
need_cargo
(cd "$ROOT" && run cargo build --locked --workspace --bins >&2) || fail 2 "the programs do not build"
FOLDER=$(mktemp -d)
SERVED=
trap '[ -z "$SERVED" ] || kill "$SERVED" 2>/dev/null; wait; rm -rf "$FOLDER"' EXIT
case $BACK_END in
  vnic)
    SOCKET=$FOLDER/vnic.sock
    "$ROOT/target/debug/vnic" serve --socket-path "$SOCKET" --link loopback >"$FOLDER/log" 2>&1 &
    SERVED=$!
    ;;
  dpdk)
    need dpdk-testpmd dpdk "DPDK, whose testpmd is the back-end"
    SOCKET=$FOLDER/dpdk.sock
    # It reads orders from its standard input, and ends with it.
    mkfifo "$FOLDER/orders"
    exec 9<>"$FOLDER/orders"
    dpdk-testpmd --lcores 0@0,1@0 --no-pci --no-huge -m 512 --file-prefix="conformance$$" --vdev "net_vhost0,iface=$SOCKET" \
      -- -i --auto-start --total-num-mbufs=8192 --forward-mode=io --port-topology=loop >"$FOLDER/log" 2>&1 <&9 &
    SERVED=$!
    ;;
  qemu)
    QEMU=${QEMU:-qemu-system-x86_64}
    need "$QEMU" qemu-system-x86 "QEMU for x86-64"
    TARGET=(--qemu "$(command -v "$QEMU")")
    ;;
esac
if [ -n "$SERVED" ]; then
  for ((tries = 0; tries < 600; tries++)); do
    [ ! -S "$SOCKET" ] || break
    kill -0 "$SERVED" 2>/dev/null || { cat "$FOLDER/log" >&2 && fail 2 "the back-end has ended"; }
    sleep 0.1
  done
fi
code=0
"$ROOT/target/debug/conformance" "${TARGET[@]:-$SOCKET}" "$@" || code=$?
exit $code
