#!/usr/bin/env bash
# Makes a release from a tag: a clean copy of it is built, tested and packed.
#
#   scripts/release.sh v0.1.0            every test
#   scripts/release.sh v0.1.0 --quick    without the guests
#
# Leaves target/release-VERSION/ with the Debian package, the sources, the command's bill of materials (CycloneDX) and their SHA-256 sums. The tag must be Cargo.toml's
# version and have a heading in CHANGELOG.md.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

TAG='' QUICK=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) QUICK=(--quick) ;;
    -h | --help) help && exit ;;
    v[0-9]*) TAG=$1 ;;
    *) usage_error "unknown option $1" ;;
  esac
  shift
done
[ -n "$TAG" ] || usage_error "which tag?"
cd "$ROOT" || exit 2
git rev-parse --quiet --verify "$TAG^{commit}" >/dev/null || fail 2 "no tag is called $TAG: git tag --annotate $TAG makes one"

VERSION=${TAG#v}
RELEASE=$ROOT/target/release-$VERSION
rm -rf "$RELEASE"
mkdir -p "$RELEASE"
run git clone --quiet --branch "$TAG" "$ROOT" "$RELEASE/source" >&2
cd "$RELEASE/source"
grep -q "^version = \"$VERSION\"$" Cargo.toml || fail 2 "Cargo.toml of $TAG has another version"
grep -q "^## $VERSION\b" CHANGELOG.md || fail 2 "CHANGELOG.md of $TAG has no heading \"## $VERSION\""
run scripts/test.sh "${QUICK[@]}" >&2 || fail 1 "$TAG does not pass its tests"
deb=$(scripts/package.sh)
mv "$deb" "$RELEASE/"
bom=$(scripts/supply.sh)
mv "$bom" "$RELEASE/vnic-$VERSION.cdx.json"
run git archive --prefix="vnic-$VERSION/" --output "$RELEASE/vnic-$VERSION.tar.gz" "$TAG"
cd "$RELEASE"
rm -rf source
sha256sum -- *.deb *.tar.gz *.cdx.json | tee SHA256SUMS
