#!/usr/bin/env bash
# Compares what is said of a guest's pages from outside with what the guest's own kernel says, on several kernels. Makes what
# it needs; --help says more.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

need_cargo
(cd "$ROOT" && run cargo build --release --locked --package guest-kernels --package vnic-host --bins >&2) || fail 2 "the program does not build"
case " $* " in *" --help "* | *" -h "*) ;; *) wish xfsprogs ;; esac
export VNIC=$ROOT/target/release/vnic
exec "$ROOT/target/release/introspection" "$@"
