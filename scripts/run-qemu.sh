#!/usr/bin/env bash
# Launches a guest on our NIC: builds the program that does it, and runs it with the same options (--help says which).
# LAUNCHER=PROGRAM is one that is built already.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if [ -z "${LAUNCHER:-}" ]; then
  need_cargo
  (cd "$ROOT" && run cargo build --release --locked --package guest-launcher >&2) || fail 2 "the launcher does not build"
  LAUNCHER=$ROOT/target/release/run-qemu
fi
exec "$LAUNCHER" "$@"
