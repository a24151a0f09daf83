#!/usr/bin/env bash
# Starts real servers, unmodified, in a Debian guest on our NIC, and says where the bytes they send come from. Makes what it
# needs; --help says more.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

need_cargo
(cd "$ROOT" && run cargo build --release --locked --package guest-servers >&2) || fail 2 "the program does not build"
case " $* " in *" --help "* | *" -h "*) ;; *)
  "$ROOT/scripts/get-root.sh"
  wish passt curl smbclient libnfs-utils rsync iperf3
  ;;
esac
exec "$ROOT/target/release/servers" "$@"
