#!/usr/bin/env bash
# Makes the disk that scripts/servers.sh boots: a Debian 12 with the servers from its packages, in its own configuration,
# and its own kernel. Installs nothing but the tools; what is there is not made again.
#
#   scripts/get-root.sh              makes it if it is not there (600 MB are downloaded; a few minutes)
#   scripts/get-root.sh --refresh    makes it anew
#
# Leaves target/guest/servers/ with `root.ext4`, `vmlinuz`, `initrd`, `versions` (package and version, a line each) and
# `big.bin`, the file that the servers serve.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

FOLDER=$GUEST/servers
SOURCE=$ROOT/guest-tests/servers/root
SUITE=bookworm
BYTES=64M
DISK=4G

# The kernel and what init needs, then the servers; and what tries the disk (scripts/disk.sh).
PACKAGES=(linux-image-amd64 initramfs-tools kmod iproute2 openssl ca-certificates procps
  nginx apache2 lighttpd vsftpd samba nfs-kernel-server rsync iperf3
  tomcat10 default-jre-headless golang-go nodejs python3
  fio)

REFRESH=''
while [ $# -gt 0 ]; do
  case $1 in
    --refresh) REFRESH=1 ;;
    -h | --help) help && exit ;;
    *) usage_error "unknown option $1" ;;
  esac
  shift
done

# What it is made from; made from something else, it is made anew.
inputs() { cat "$0" "$SOURCE"/* | sha256sum; }
if [ -z "$REFRESH" ] && [ "$(cat "$FOLDER/inputs" 2>/dev/null)" = "$(inputs)" ]; then exit; fi

need mmdebstrap mmdebstrap mmdebstrap
need mkfs.ext4 e2fsprogs e2fsprogs
need openssl openssl openssl
can_be_root || fail 2 "a root file system has root's files: run this as root, or as a user who may use sudo without a password"

mkdir -p "$FOLDER"
# Bytes that are the same everywhere, and nowhere the same as others.
run openssl enc -aes-128-ctr -nosalt -K 00 -iv 00 -in /dev/zero 2>/dev/null | head -c $BYTES >"$FOLDER/big.bin" || true

tree=$FOLDER/root.unfinished
as_root rm -rf "$tree"
say "Making a root file system of ${#PACKAGES[@]} packages and what they need …"
# The initial file system has the drivers that this machine's disk takes, not those of all there are: it loads in seconds.
# shellcheck disable=SC2016 # the shells of the hooks expand these
as_root mmdebstrap --variant=minbase --include="$(IFS=, && echo "${PACKAGES[*]}")" \
  --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"' \
  --essential-hook='echo MODULES=list >"$1/etc/initramfs-tools/conf.d/vnic"' \
  --essential-hook='printf "%s\n" virtio_pci virtio_blk ext4 >"$1/usr/share/initramfs-tools/modules.d/vnic"' \
  --customize-hook="mkdir -p \"\$1/srv/vnic\" && cp '$SOURCE'/* \"\$1/srv/vnic\" && cp '$FOLDER/big.bin' \"\$1/var/www/html\"" \
  --customize-hook='chmod 755 "$1/srv/vnic/init" "$1/srv/vnic/start"' \
  --customize-hook='cp "$1/var/www/html/big.bin" "$1/var/lib/tomcat10/webapps/ROOT"' \
  --customize-hook='chroot "$1" sh -c "cd /srv/vnic && HOME=/tmp GO111MODULE=off go build -o serve-go serve.go"' \
  --customize-hook='chroot "$1" openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=localhost -keyout /srv/vnic/key.pem -out /srv/vnic/cert.pem' \
  "$SUITE" "$tree" >&2

# shellcheck disable=SC2016 # dpkg expands these
dpkg-query --admindir="$tree/var/lib/dpkg" -W -f '${Package} ${Version}\n' >"$FOLDER/versions"
run cp "$(echo "$tree"/boot/vmlinuz-*)" "$FOLDER/vmlinuz"
run cp "$(echo "$tree"/boot/initrd.img-*)" "$FOLDER/initrd"
rm -f "$FOLDER/root.ext4"
as_root mkfs.ext4 -q -F -m 0 -d "$tree" "$FOLDER/root.ext4" $DISK
as_root chown "$(id -u):$(id -g)" "$FOLDER/root.ext4"
as_root rm -rf "$tree"
inputs >"$FOLDER/inputs"
say "The servers' disk: $FOLDER/root.ext4, $(du -h "$FOLDER/root.ext4" | cut -f 1)"
