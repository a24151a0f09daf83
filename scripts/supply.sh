#!/usr/bin/env bash
# What vnic is built from: holds every dependency against deny.toml (licences, sources, duplicates, known holes), and writes the
# bill of materials of the command.
#
#   scripts/supply.sh     leaves target/supply/vnic.cdx.json (CycloneDX 1.5)
#
# Installs cargo-deny and cargo-cyclonedx below target/, which takes some minutes once.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case ${1:-} in
  '') ;;
  -h | --help) help && exit ;;
  *) usage_error "unknown option $1" ;;
esac
need_cargo
cd "$ROOT" || exit 2
TOOLS=$ROOT/target/tools
SUPPLY=$ROOT/target/supply

# tool NAME VERSION
tool() {
  grep -qs "^\"$1 $2 " "$TOOLS/.crates.toml" ||
    run cargo install --quiet --locked --force --root "$TOOLS" "$1" --version "$2" >&2 || fail 2 "$1 could not be installed"
}
tool cargo-deny 0.20.2
tool cargo-cyclonedx 0.5.9

# The database of known holes is a Git repository, and the only thing here that is not in a registry.
DATABASE=https://github.com/RustSec/advisory-db
advisories=()
if git ls-remote --quiet --exit-code "$DATABASE" HEAD >/dev/null 2>&1; then
  advisories=(advisories)
else
  say "SKIP: known holes are not looked for: their database cannot be had ($DATABASE)"
fi
for manifest in Cargo.toml vnic/fuzz/Cargo.toml; do
  run "$TOOLS/bin/cargo-deny" --locked --manifest-path "$manifest" --config deny.toml check --hide-inclusion-graph \
    licenses bans sources "${advisories[@]}" >&2 || fail 1 "a dependency of $manifest is not as deny.toml wants it"
done

rm -rf "$SUPPLY"
mkdir -p "$SUPPLY"
# It writes one beside each manifest of the workspace.
boms() { find "$ROOT" -path "$ROOT/target" -prune -o -name '*.cdx.json' -print; }
[ -z "$(boms)" ] || fail 2 "there are *.cdx.json already, which would be overwritten: $(boms | tr '\n' ' ')"
run "$TOOLS/bin/cargo-cyclonedx" cyclonedx --quiet --manifest-path host/Cargo.toml --format json --spec-version 1.5 \
  --describe binaries >&2
# Where it was built is nobody's business.
sed "s|file://$ROOT|file:///vnic|g" host/vnic_bin.cdx.json >"$SUPPLY/vnic.cdx.json"
boms | xargs -r rm
# Whatever is linked into the command must be in it.
lacking=$(cargo tree --locked --package vnic-host --edges normal --prefix none --format '{p}' | sed 's/ (.*//; s/ v/@/' | sort -u |
  grep -v '^vnic-host@' | while read -r crate; do grep -q "/${crate//+/.*}[\"?]" "$SUPPLY/vnic.cdx.json" || printf '%s ' "$crate"; done)
[ -z "$lacking" ] || fail 1 "the bill of materials lacks $lacking"
say "$(grep -c '"purl"' "$SUPPLY/vnic.cdx.json") components, with licences and sums"
printf '%s\n' "$SUPPLY/vnic.cdx.json"
