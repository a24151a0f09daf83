#!/usr/bin/env bash
# Everything at once, for an hour: transfers, hold and release, watch, attach, trace, migration, kills of either side, memory that is
# plugged in, taken out or cut short, queue resets, full disks, no file descriptors, SIGSTOP of either side, clock steps. Private memory,
# threads and files of the devices must be at the end what they were after the first round. Needs root.
#
#   scripts/soak.sh                          an hour
#   scripts/soak.sh --minutes N              so long; each actor does everything once in any case
#   scripts/soak.sh --seed S                 the same choice of what is done next as in another run
#   scripts/soak.sh --only ACTOR[,ACTOR]     hostile (a driver without a guest), resident (a guest), mover (a guest that moves)
#
# The last line says what was done how often. Exit codes: 0; 1 something did not work, or has grown; 2 bad usage.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in
  -h | --help) help && exit ;;
esac
need_cargo
need ip iproute2 iproute2
need prlimit util-linux util-linux
(cd "$ROOT" && run cargo build --locked --workspace --bins >&2) || fail 2 "the programs do not build"
export VNIC=$ROOT/target/debug/vnic
exec "$ROOT/target/debug/soak" "$@"
