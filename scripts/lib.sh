# shellcheck shell=bash
# shellcheck disable=SC2034 # some variables are for the scripts that read this file
# What the scripts share: saying what is done, finding or installing tools, waiting for a condition.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GUEST=$ROOT/target/guest
# What was learnt of this machine; `vnic doctor` reads it too.
ACCEL_FILE=$ROOT/target/run/accel

# People's words go to standard error: standard output belongs to results.
say() { printf '%s\n' "$*" >&2; }
fail() { # fail CODE WORDS…
  local code=$1
  shift
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit "$code"
}
usage_error() { fail 2 "$* (try ${0##*/} --help)"; }

# run COMMAND…: prints the command, then runs it.
run() {
  printf '+ %s\n' "$(printf '%q ' "$@")" >&2
  "$@"
}

# The comment at the top of a script is its help.
help() { sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;}}' "$0"; }

is_debian() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }
codename() { (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}"); }

# Runs a command as root where that is possible without a password.
as_root() {
  if [ "$(id -u)" = 0 ]; then run "$@"; else run sudo -n "$@"; fi
}
can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

# need TOOL DEBIAN-PACKAGE OTHER-NAMES: sees to it that the tool is there, or says what to install.
need() {
  local tool=$1 package=$2 others=$3
  command -v "$tool" >/dev/null && return
  if ! is_debian; then
    fail 2 "$tool is missing. Install it with your distribution's packages: $others"
  fi
  if ! can_be_root; then
    fail 2 "$tool is missing, and this user may not install it. Run: sudo apt-get install --no-install-recommends $package"
  fi
  say "$tool is missing: installing $package"
  local options=(-qq -y --no-install-recommends -o Dpkg::Use-Pty=0)
  # Old package lists name files that are gone from the mirror: renew them once.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$package" >/dev/null 2>&1 ||
    { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$package" >/dev/null; } ||
    fail 2 "could not install $package; see the messages above"
  hash -r
  command -v "$tool" >/dev/null || fail 2 "$package is installed, but there is no $tool in PATH"
}

# need_dpdk: DPDK's testpmd, and the drivers it loads.
need_dpdk() {
  local package
  need dpdk-testpmd dpdk-dev dpdk
  for package in librte-net-vhost23 librte-net-virtio23 librte-meta-allpmds; do
    if is_debian && ! dpkg -s "$package" >/dev/null 2>&1; then
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null ||
        fail 2 "could not install $package"
    fi
  done
}

need_cargo() {
  command -v cargo >/dev/null ||
    fail 2 "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml") or newer, with rustup or your distribution's packages"
  need cc gcc "gcc"
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds. Fails at the deadline, or when the process WAITED_ON ends.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2 never
  shift 2
  # A pipe nobody writes to: reading from it with a timeout is a short wait without a process.
  exec {never}<> <(:)
  until "$@"; do
    if [ -n "${WAITED_ON:-}" ] && ! kill -0 "$WAITED_ON" 2>/dev/null; then
      exec {never}>&-
      say "$what: the process that was to do it has ended"
      return 1
    fi
    if [ "$SECONDS" -ge "$deadline" ]; then
      exec {never}>&-
      say "$what: not within the deadline"
      return 1
    fi
    read -rt 0.05 -u "$never" || true
  done
  exec {never}>&-
}

# apt_private SUITE: has apt's ordinary clients use package lists of our own under target/, so that no privilege is needed
# and the machine's lists stay as they are. SUITE `-` means the machine's own sources; another is looked for at the mirror
# that these name. Leaves the options for them in APT.
apt_private() {
  local suite=$1 state=$GUEST/apt/$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  {
    printf 'Dir::State::lists "%s";\nDir::Cache "%s";\n' "$state/lists" "$state/cache"
    printf 'APT::Sandbox::User "%s";\nAcquire::Languages "none";\n' "$(id -un)"
    # What the machine has done after its own updates is not for ours.
    printf '#clear %s;\n' APT::Update::{Pre-Invoke,Post-Invoke,Post-Invoke-Success} DPkg::Post-Invoke
    if [ "$suite" != - ]; then
      printf 'Dir::Etc::sourcelist "%s";\nDir::Etc::sourceparts "/dev/null";\n' "$state/sources.list"
    fi
  } >"$state/apt.conf"
  if [ "$suite" != - ]; then
    # Which mirror a source is at shows in its package lists; ours are there once anything was fetched.
    # shellcheck disable=SC2016 # apt expands these, not the shell
    mirror=$(apt-get -c "$GUEST/apt/-/apt.conf" indextargets --format '$(RELEASE) $(REPO_URI)' \
      'Created-By: Packages' 2>/dev/null | awk -v release="$(codename)" '$1 == release { print $2; exit }')
    [ -n "$mirror" ] || return 1
    printf 'deb %s%s %s main\n' "$([ ! -e $keyring ] || printf '[signed-by=%s] ' $keyring)" "$mirror" "$suite" \
      >"$state/sources.list"
  fi
  APT=(-c "$state/apt.conf")
  run apt-get "${APT[@]}" -qq update >&2
}

# unpack_debian FOLDER PACKAGE…: downloads packages and unpacks them into the folder, installing nothing.
unpack_debian() {
  local folder=$1 file
  shift
  rm -rf "$folder.download" "$folder.unfinished"
  mkdir -p "$folder.download" "$folder.unfinished"
  (cd "$folder.download" && run apt-get "${APT[@]}" download "$@" >&2) || return 1
  for file in "$folder.download"/*.deb; do
    run dpkg -x "$file" "$folder.unfinished" || return 1
  done
  rm -rf "$folder.download" "$folder"
  mv "$folder.unfinished" "$folder"
}
