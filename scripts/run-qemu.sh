#!/usr/bin/env bash
# Launches a guest on our NIC: a shell in it by default. Builds what is missing, and prints the commands it runs.
#
#   scripts/run-qemu.sh                                  a shell on the guest's serial console (leave with exit, or ^A x)
#   scripts/run-qemu.sh --transfer sendfile,read-write   runs these rows, leaves target/run/run.json, prints the table;
#   scripts/run-qemu.sh --transfer all                   exits 0 when every verdict is the expected one. Behind a row's name:
#                                                        -no-sg, -no-csum (the NIC lacks it), -cold (the file is on the disk only)
#   scripts/run-qemu.sh --program './send --fast'        a program of your own as a row: the file is its standard input, the
#                                                        connection its standard output; with its shared libraries. Without a / in
#                                                        its name it is one the guest has: cat, dd bs=64k
#   scripts/run-qemu.sh --transfer vfio-userspace        the row without the kernel, in a guest with an IOMMU
#   scripts/run-qemu.sh --hazard truncate|lease|mutate|observer   shows one; exits 0 when it went as described
#   scripts/run-qemu.sh --command 'ping -c 3 10.0.2.2'   runs one command in the guest
#
#   --size BYTES             of the file that is sent (16M)
#   --filesystem tmpfs,ext4  where the file is made: every row on each (tmpfs)
#   --with PATH[=PLACE]      a file or folder that the guest is to have, too, at the same path or another; may stand several times
#   --witness device,guest,memory   who is asked about a transfer (all three)
#   --kernel FILE --modules DIR   a kernel of your own; DIR is its /lib/modules/VERSION
#   --newer-kernel           the kernel of Debian's backports
#   --newer-qemu             the QEMU of Debian's backports
#   --link peer|tap:NAME|…   where the NIC's frames go (peer); tap needs rights for the device
#   --client                 QEMU listens and vnic serve connects, again and again if it must
#   --netdev user|tap:NAME   QEMU's own NIC back-ends in place of ours, to compare with; receiver for user: 127.0.0.1:9000
#   --accel kvm|tcg          in place of: kvm if a guest really boots with it, else tcg
#   --queue-pairs N          several queue pairs, one for each of the guest's --cpus say (1)
#   --iommu                  an IOMMU between the NIC and the guest's memory; by itself where a row needs it (vfio-userspace)
#   --nic-options LIST       more options for the NIC: packed=on
#   --msix on|off            MSI-X interrupts in the NIC (off where this QEMU crashes with them)
#   --memory SIZE --cpus N   of the guest (512M, 1)
#   --run-dir DIR            for sockets, logs and the record (target/run)
#   --append WORDS           more words for the kernel's command line
#   --serve-options WORDS    more options for vnic serve
#   --print-command          only prints QEMU's command line, one argument per line
#   QEMU=PROGRAM             a QEMU of your own
#   VNIC=PROGRAM             a vnic that is built already
set -euo pipefail
. "$(dirname "$0")/lib.sh"

TASK=shell TRANSFER='' PROGRAM='' WITH=() HAZARD='' WITNESS=device,guest,memory FILESYSTEM=tmpfs COMMAND='' SIZE=16M KERNEL='' MODULES='' WHICH=stable LINK=peer ROLE=server NETDEV=vhost
ACCEL=${ACCEL:-} QUEUE_PAIRS=1 IOMMU='' NIC_OPTIONS='' MSIX='' MEMORY=512M CPUS=1 RUN=$ROOT/target/run APPEND='' SERVE_OPTIONS=() PRINT='' NEWER_QEMU=''
QEMU=${QEMU:-qemu-system-x86_64} VNIC=${VNIC:-}

# What the guest is to have, as mkinitramfs is told: PATH[=PLACE], the path absolute.
with() {
  local path
  path=$(realpath -es -- "${1%%=*}" 2>/dev/null) && case $1 in *=*) echo "$path=${1#*=}" ;; *) echo "$path" ;; esac
}

while [ $# -gt 0 ]; do
  case $1 in
    --client | --iommu | --newer-kernel | --newer-qemu | --print-command | -h | --help) ;;
    --*) [ $# -ge 2 ] || usage_error "$1 needs a value" ;;
  esac
  case $1 in
    --transfer) TASK=transfer TRANSFER=$2 && shift ;;
    --program) TASK=transfer PROGRAM=$2 && shift ;;
    --with) WITH+=("$(with "$2")") || usage_error "--with $2: there is no such file" && shift ;;
    --hazard) TASK=transfer HAZARD=$2 && shift ;;
    --witness) WITNESS=$2 && shift ;;
    --filesystem) FILESYSTEM=$2 && shift ;;
    --command) TASK=command COMMAND=$2 && shift ;;
    --task) TASK=$2 && shift ;; # agent: for the tests, which speak to it themselves
    --size) SIZE=$2 && shift ;;
    --kernel) KERNEL=$2 && shift ;;
    --modules) MODULES=$2 && shift ;;
    --newer-kernel) WHICH=newer ;;
    --newer-qemu) NEWER_QEMU=1 ;;
    --link) LINK=$2 && shift ;;
    --client) ROLE=client ;;
    --netdev) NETDEV=$2 && shift ;;
    --accel) ACCEL=$2 && shift ;;
    --queue-pairs) QUEUE_PAIRS=$2 && shift ;;
    --iommu) IOMMU=1 ;;
    --nic-options) NIC_OPTIONS=$2 && shift ;;
    --msix) MSIX=$2 && shift ;;
    --memory) MEMORY=$2 && shift ;;
    --cpus) CPUS=$2 && shift ;;
    --run-dir) RUN=$2 && shift ;;
    --append) APPEND=$2 && shift ;;
    --serve-options) read -ra SERVE_OPTIONS <<<"$2" && shift ;;
    --print-command) PRINT=1 ;;
    -h | --help) help && exit ;;
    *) usage_error "unknown option $1" ;;
  esac
  shift
done
BYTES=$(numfmt --from=iec "${SIZE%B}" 2>/dev/null) || usage_error "--size $SIZE is no size: write 4096, 64K or 16M"
case $NETDEV in vhost | user | tap:?*) ;; *) usage_error "--netdev $NETDEV: there is vhost (ours), user and tap:NAME (QEMU's)" ;; esac
[[ $QUEUE_PAIRS =~ ^[1-9][0-9]*$ ]] || usage_error "--queue-pairs $QUEUE_PAIRS is no number of queue pairs"
[ "$NETDEV" = vhost ] || [ "$QUEUE_PAIRS" = 1 ] || usage_error "--queue-pairs goes with our NIC: not with --netdev ${NETDEV%%:*}"
case $MSIX in '' | on | off) ;; *) usage_error "--msix is on or off" ;; esac
case $ACCEL in '' | kvm | tcg) ;; *) usage_error "--accel is kvm or tcg" ;; esac
[ -z "$KERNEL$MODULES" ] || { [ -n "$KERNEL" ] && [ -n "$MODULES" ]; } || usage_error "--kernel and --modules go together"
if [ -n "$PROGRAM" ]; then
  TRANSFER=${TRANSFER:-program}
  words=${PROGRAM#"${PROGRAM%%[! ]*}"}
  case ${words%% *} in
    */*)
      file=$(with "${words%% *}") || usage_error "--program ${words%% *}: there is no such file"
      place=$file
      # Where the guest has a file system of its own.
      case $file in /tmp/* | /run/* | /dev/*) place=/program/${file##*/} ;; esac
      WITH+=("$file=$place")
      PROGRAM=$place${words#"${words%% *}"}
      ;;
  esac
fi
case ,$TRANSFER, in *,vfio-userspace,*) IOMMU=1 ;; esac
[ "$TASK" != transfer ] || [ "$NETDEV" = vhost ] || usage_error "--transfer is judged by our NIC: not with --netdev ${NETDEV%%:*}"

. "$(dirname "$0")/guest.sh"

prepare_guest
choose_accelerator
if [ -n "$PRINT" ]; then
  printf '%s\n' "${QEMU_COMMAND[@]}"
  exit
fi

SERVE_PID='' QEMU_PID=''
sockets_are_there() { [ -S "$RUN/vnic.sock.control" ] && { [ $ROLE = client ] || [ -S "$RUN/vnic.sock" ]; }; }
cleanup() {
  local pid
  for pid in $QEMU_PID $SERVE_PID; do
    kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
  done
  rm -f "$RUN/vnic.sock" "$RUN/vnic.sock.control" "$RUN/record.sock"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ "$NETDEV" = vhost ]; then
  [ -n "$VNIC" ] || build_vnic
  serve=("$VNIC" serve --socket-path "$RUN/vnic.sock" --link "$LINK" "${SERVE_OPTIONS[@]}")
  [ $ROLE = server ] || serve+=(--client)
  [ "$QUEUE_PAIRS" = 1 ] || serve+=(--queue-pairs "$QUEUE_PAIRS")
  # The device's own capture runs along, to show that it disturbs nothing.
  [ "$HAZARD" != observer ] || serve+=(--capture "$RUN/hazard.pcapng")
  printf '+ %s\n' "${serve[*]}" >&2
  "${serve[@]}" >"$RUN/serve.log" 2>&1 &
  SERVE_PID=$!
  WAITED_ON=$SERVE_PID wait_for 10 "vnic serve opens its sockets" sockets_are_there || fail 2 "vnic serve does not come up: $(tail -n 5 "$RUN/serve.log")"
fi

printf '+ %s\n' "${QEMU_COMMAND[*]}" >&2
case $TASK in
  transfer)
    "${QEMU_COMMAND[@]}" </dev/null >"$RUN/qemu.log" 2>&1 &
    QEMU_PID=$!
    if ! WAITED_ON=$QEMU_PID wait_for 10 "QEMU opens the record port" test -S "$RUN/record.sock"; then
      fail 2 "QEMU does not come up: $(tail -n 5 "$RUN/qemu.log")"
    fi
    judge=("$VNIC" judge --record "$RUN/record.sock" --control "$RUN/vnic.sock.control")
    if [ -n "$HAZARD" ]; then
      judge+=(--hazard "$HAZARD")
    else
      judge+=(--output "$RUN/run.json" --transfer "$TRANSFER" --bytes "$BYTES" --filesystem "$FILESYSTEM" --witness "$WITNESS"
        --kernel-accel "$ACCEL" --qemu-version "$QEMU_VERSION")
      [ -z "$PROGRAM" ] || judge+=(--program "$PROGRAM")
    fi
    code=0
    run "${judge[@]}" || code=$?
    if [ $code = 2 ]; then
      say "The guest's console ended with:"
      tail -n 15 "$RUN/console.log" >&2 || true
    fi
    [ -n "$HAZARD" ] || [ ! -e "$RUN/run.json" ] || run "$VNIC" report "$RUN/run.json" || code=$?
    exit $code
    ;;
  *)
    "${QEMU_COMMAND[@]}"
    ;;
esac
