#!/usr/bin/env bash
# One row as a test for `git bisect run`: boots a kernel that is built already, sends a file, and says whether what comes out is as
# expected. Builds no kernel itself.
#
#   scripts/bisect.sh --row sendfile --filesystem ext4 --expect zero-copy
#   scripts/bisect.sh --row sendfile --filesystem ext4 --expect 'descriptors_per_mib < 64' --tree ~/linux
#   scripts/bisect.sh --row sendfile --expect copied --kernel BZIMAGE --modules DIR
#   scripts/bisect.sh --row sendfile --expect copied --debian 6.1
#
#   --tree DIR      a kernel's tree, built: its arch/x86/boot/bzImage, its modules where they were built [default: .]
#   --kernel, --modules     a kernel and its /lib/modules/VERSION
#   --debian NAME   a kernel of Debian's: a version, or a suite
#   --expect WHAT   zero-copy, copied, mixed, or a figure: cpu_copies, physical_instances, descriptors_per_mib, bytes_per_descriptor,
#                   syscalls, mode_switches, cpu_seconds_per_gib with <, <=, >=, > and a number
#   --size BYTES    of the file [default: 4M]
#
# Exits with 0 as expected (good), 1 other than expected (bad), 125 not measured: no kernel, no boot, no verdict (skip); 129 bad usage,
# which ends the bisection.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

usage() { fail 129 "$* (try ${0##*/} --help)"; }
ROW='' FILESYSTEM=ext4 EXPECT='' TREE=. KERNEL='' MODULES='' DEBIAN='' SIZE=4M
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) help && exit ;;
    --row | --filesystem | --expect | --tree | --kernel | --modules | --debian | --size)
      [ $# -gt 1 ] || usage "$1 takes a value"
      name=${1#--} && printf -v "${name^^}" '%s' "$2" && shift
      ;;
    *) usage "unknown option $1" ;;
  esac
  shift
done
if [ -z "$ROW" ] || [ -z "$EXPECT" ]; then usage "say which --row, and what to --expect of it"; fi
case $ROW in *[\*,]*) usage "one row at a time" ;; esac

if [ -n "$DEBIAN" ]; then
  kernel=$DEBIAN
else
  [ -n "$KERNEL" ] || KERNEL=$TREE/arch/x86/boot/bzImage MODULES=$TREE
  # A tree that does not build is passed over.
  if [ ! -e "$KERNEL" ] || [ ! -e "$MODULES/modules.builtin" ]; then
    fail 125 "there is no kernel $KERNEL with modules in $MODULES: is it built?"
  fi
  kernel=bisected=$(realpath "$KERNEL"),$(realpath "$MODULES")
fi
mkdir -p "$ROOT/target/bisect"
folder=$(mktemp -d "$ROOT/target/bisect/XXXXXX")
code=0
"$ROOT/scripts/matrix.sh" --folder "$folder" --kernels "$kernel" --filesystems "$FILESYSTEM" --rows "$ROW" --size "$SIZE" --expect "$EXPECT" || code=$?
case $code in
  0 | 1 | 125) say "The record: $folder" ;;
  2) code=129 ;;
esac
exit $code
