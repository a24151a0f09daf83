# shellcheck shell=bash
# shellcheck disable=SC2034,SC2054,SC2153 # variables are shared with run-qemu.sh; QEMU's options have commas
# How a guest is built and started; run-qemu.sh sets the variables and calls the functions.

TARGET=x86_64-unknown-linux-gnu
PROGRAMS=$GUEST/build/$TARGET/guest

build_vnic() {
  need_cargo
  (cd "$ROOT" && run cargo build --release --package vnic-host >&2) || fail 2 "vnic does not build"
  VNIC=$ROOT/target/release/vnic
}

# Kernel, initramfs and QEMU's command line.
prepare_guest() {
  need_cargo
  need "$QEMU" qemu-system-x86 "qemu-system-x86 (Debian, Ubuntu, Arch), qemu-system-x86-core (Fedora), qemu-x86 (openSUSE)"
  if [ -n "$NEWER_QEMU" ]; then
    "$ROOT/scripts/get-kernel.sh" --newer-qemu || exit
    QEMU=$GUEST/qemu/usr/bin/qemu-system-x86_64
  fi
  QEMU_VERSION=$("$QEMU" --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
  [ -n "$QEMU_VERSION" ] || fail 2 "$QEMU --version does not say QEMU's version"
  mkdir -p "$GUEST" "$RUN" "${ACCEL_FILE%/*}"
  RUN=$(cd "$RUN" && pwd)
  # One at a time: tests and people may start guests side by side.
  local lock
  exec {lock}>"$GUEST/lock"
  flock "$lock"
  choose_kernel
  build_initramfs
  exec {lock}>&-
}

choose_kernel() {
  if [ -z "$KERNEL" ]; then
    if [ "$WHICH" = newer ]; then "$ROOT/scripts/get-kernel.sh" --newer || exit; else "$ROOT/scripts/get-kernel.sh" || exit; fi
    KERNEL=$GUEST/kernel/$WHICH/vmlinuz
    MODULES=$GUEST/kernel/$WHICH/modules
  fi
  [ -r "$KERNEL" ] || fail 2 "cannot read the kernel $KERNEL"
  [ -d "$MODULES" ] || fail 2 "there is no folder $MODULES with the kernel's modules"
  MODULES=$(cd -P "$MODULES" && pwd)
  BUSYBOX=$GUEST/busybox/bin/busybox
  [ -x "$BUSYBOX" ] || BUSYBOX=$(command -v busybox) || fail 2 "busybox is missing: install busybox-static"
}

build_initramfs() {
  (cd "$ROOT" && RUSTFLAGS="-C target-feature=+crt-static" run cargo build --profile guest --package guest-agent --package guest-image \
    --package vnic-driver --bins --examples --target $TARGET --target-dir "$GUEST/build" >&2) || fail 2 "the guest's programs do not build"
  INITRAMFS=$GUEST/initramfs-$(basename "$MODULES").cpio
  [ ${#WITH[@]} = 0 ] || INITRAMFS=$RUN/initramfs.cpio
  "$PROGRAMS/mkinitramfs" --modules "$MODULES" --programs "$PROGRAMS" --busybox "$BUSYBOX" "${WITH[@]/#/--with=}" \
    --output "$INITRAMFS" >&2 ||
    fail 2 "the initramfs cannot be written"
}

# A disk with an empty ext4 file system, for the rows that read a file from one: sparse, so it takes little room.
make_disk() {
  local tool
  tool=$(PATH=$PATH:/usr/sbin:/sbin command -v mke2fs) || return 1
  rm -f "$RUN/disk.ext4"
  "$tool" -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -m 0 "$RUN/disk.ext4" 512M >&2
}

# QEMU crashes under TCG with a vhost-user NIC that has MSI-X vectors, at least up to 7.2; 10.0 does not.
msix_works() { [ "$ACCEL" = kvm ] || [ "${QEMU_VERSION%%.*}" -ge 10 ]; }

# QEMU 7.2's TCG leaves garbage in EFLAGS behind cmpxchg16b; an interrupt right there, and Linux 6.12, whose allocator uses the
# instruction, dies of a double fault. Seen with 7.2.22; QEMU 10 keeps the instruction.
cx16_works() { [ "${QEMU_VERSION%%.*}" -ge 10 ]; }

# Fills QEMU_COMMAND. All of the guest's RAM is one shared file: that is how a vhost-user device sees it.
compose_command() { # compose_command ACCEL TASK
  local accel=$1 task=$2 nic=virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,romfile= words="console=ttyS0 quiet panic=-1"
  QEMU_COMMAND=("$QEMU" -machine "q35,accel=$accel" -m "$MEMORY" -smp "$CPUS" -nodefaults -no-user-config -no-reboot
    -display none
    -object "memory-backend-memfd,id=ram,size=$MEMORY,share=on" -numa node,memdev=ram
    -kernel "$KERNEL" -initrd "$INITRAMFS")
  if [ "$accel" = kvm ]; then QEMU_COMMAND+=(-cpu host); else QEMU_COMMAND+=(-cpu "max$(cx16_works || echo ,cx16=off)"); fi
  if [ -n "$IOMMU" ]; then
    # Interrupts go through it too, or no program may have a device; with KVM that takes half of its interrupt controller.
    [ "$accel" != kvm ] || QEMU_COMMAND+=(-machine kernel-irqchip=split)
    QEMU_COMMAND+=(-device "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on")
    # A vhost device learns what is unmapped only by ATS.
    nic+=",iommu_platform=on,ats=on,disable-legacy=on"
    words+=" intel_iommu=on"
  fi
  # The kernel counts timer interrupts against its own clock at start, and panics where a busy host's emulator delivers too few.
  [ "$accel" = kvm ] || words+=" no_timer_check"
  if [ "$task" = probe ]; then
    QEMU_COMMAND+=(-serial stdio -append "$words vnic.run=true vnic.modules= vnic.net=off")
    return
  fi
  if [ "$NETDEV" = user ]; then
    QEMU_COMMAND+=(-netdev user,id=net)
  elif [ "$NETDEV" != vhost ]; then
    QEMU_COMMAND+=(-netdev "tap,id=net,ifname=${NETDEV#tap:},script=no,downscript=no")
  else
    # As client of a serve that may be away for a while, QEMU tries again every second.
    local chardev="socket,id=vhost,path=$RUN/vnic.sock"
    if [ "$ROLE" = client ]; then
      chardev+=,server=on
    elif [ "${QEMU_VERSION%%.*}" -ge 10 ]; then
      chardev+=,reconnect-ms=1000
    else
      chardev+=,reconnect=1
    fi
    QEMU_COMMAND+=(-chardev "$chardev" -netdev "vhost-user,id=net,chardev=vhost,queues=$QUEUE_PAIRS")
    local msix=${MSIX:-$(msix_works && echo on || echo off)}
    [ "$QUEUE_PAIRS" = 1 ] || nic+=,mq=on
    # One for each queue, one for the control queue, one for changes of the configuration.
    if [ "$msix" = off ]; then nic+=,vectors=0; elif [ "$QUEUE_PAIRS" != 1 ]; then nic+=,vectors=$((2 * QUEUE_PAIRS + 2)); fi
  fi
  QEMU_COMMAND+=(-device "$nic${NIC_OPTIONS:+,$NIC_OPTIONS}")
  if make_disk; then
    QEMU_COMMAND+=(-drive "if=none,id=disk,file=$RUN/disk.ext4,format=raw,cache=unsafe" -device virtio-blk-pci,drive=disk)
  fi
  case $task in
    transfer | agent)
      words+=" vnic.run=agent"
      QEMU_COMMAND+=(-serial "file:$RUN/console.log" -device virtio-serial-pci
        -chardev "socket,id=record,path=$RUN/record.sock,server=on,wait=off"
        -device virtserialport,chardev=record,name=vnic.record)
      ;;
    command)
      # What the kernel's command line has a meaning of its own for is written as URLs have it.
      local command=${COMMAND//%/%25}
      command=${command//\"/%22}
      words+=" \"vnic.run=${command//$'\n'/%0a}\""
      QEMU_COMMAND+=(-serial stdio)
      ;;
    shell)
      words+=" vnic.run=shell"
      QEMU_COMMAND+=(-serial mon:stdio)
      ;;
    *) usage_error "unknown task $task" ;;
  esac
  QEMU_COMMAND+=(-append "$words${APPEND:+ $APPEND}")
}

# KVM only if a guest really comes up with it: that /dev/kvm opens says little. What was learnt is remembered.
choose_accelerator() {
  if [ -z "$ACCEL" ] && [ -r "$ACCEL_FILE" ]; then ACCEL=$(cat "$ACCEL_FILE"); fi
  if [ -z "$ACCEL" ]; then
    ACCEL=tcg
    if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
      say "Trying whether a guest boots with KVM (once, at most 15 s) …"
      compose_command kvm probe
      if timeout 15 "${QEMU_COMMAND[@]}" </dev/null 2>&1 | grep -q "vnic guest: up"; then ACCEL=kvm; fi
    fi
    if [ $ACCEL = kvm ]; then
      say "It does: guests run with KVM. (Remembered in ${ACCEL_FILE#"$ROOT/"}.)"
    else
      say "No KVM that boots a guest: guests run under TCG, with the same figures in more seconds." \
        "(Remembered in ${ACCEL_FILE#"$ROOT/"}.)"
    fi
    echo $ACCEL >"$ACCEL_FILE"
  fi
  compose_command "$ACCEL" "$TASK"
}
