#!/usr/bin/env bash
# What leaves vnic for others' tools, with a real guest's traffic in it: every panel of the dashboard asked of a real Prometheus,
# the questions of docs/parquet.md asked of DuckDB and of Spark over two machines' folders, and a timeline taken from outside the
# VM (vnic attach) asked of Perfetto's trace processor.
#
#   scripts/exports.sh                all of it
#   scripts/exports.sh --no-spark     without Spark, which is some 400 MB
#
# Installs Debian's prometheus, socat, nodejs and a headless Java, and PyPI's duckdb and pyspark and the trace processor below target/.
# Leaves target/exports/.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

SPARK=1
case ${1:-} in
  '') ;;
  --no-spark) SPARK='' ;;
  -h | --help) help && exit ;;
  *) usage_error "unknown option $1" ;;
esac
cd "$ROOT" || exit 2
OUT=$ROOT/target/exports
need prometheus prometheus prometheus
need socat socat socat
need curl curl curl
need_python duckdb==2.0.1 || fail 2 "PyPI's duckdb could not be installed"
if [ -n "$SPARK" ]; then
  need java default-jre-headless "a Java of version 17 or newer"
  need_python pyspark==4.0.1 || fail 2 "PyPI's pyspark could not be installed"
fi
need node nodejs nodejs
need npm npm npm
need_perfetto || fail 2 "Perfetto's trace processor could not be had"
need pgrep procps procps
if [ -z "${LAUNCHER:-}" ]; then
  need_cargo
  run cargo build --release --locked --package guest-launcher --package vnic-host >&2 || fail 2 "vnic does not build"
  export LAUNCHER=$ROOT/target/release/run-qemu
fi
VNIC=${VNIC:-$ROOT/target/release/vnic}
export VNIC

rm -rf "$OUT"
mkdir -p "$OUT/run" "$OUT/chains/here"
# Links to control sockets go here, so that the only device found is this one.
export XDG_RUNTIME_DIR=$OUT/run
chmod 700 "$XDG_RUNTIME_DIR"
STARTED=()
end() { [ ${#STARTED[@]} = 0 ] || kill "${STARTED[@]}" 2>/dev/null || true; }
trap end EXIT

# until_true SECONDS WHAT COMMAND…: asks until it says yes.
until_true() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail 1 "waited in vain for $what"
    sleep 0.2
  done
}

say "a guest, and transfers in it"
"$LAUNCHER" --transfer "read-write,sendfile,splice,mmap-write,read-write,sendfile,splice,mmap-write" --size 67108864 >"$OUT/guest.log" 2>&1 &
guest=$!
STARTED+=("$guest")
until_true 600 "the device (see $OUT/guest.log)" "$VNIC" status
control=$(readlink "$XDG_RUNTIME_DIR"/vnic/* | head -n 1)
# Labels are to be had once the guest shares its memory and its kernel is up: until then a trace is refused.
follow() {
  while kill -0 "$guest" 2>/dev/null; do
    "$VNIC" trace --labels --parquet "$OUT/chains/here" --rotate 5s --control "$control" >"$OUT/trace.log" 2>&1 && return
    sleep 0.2
  done
  return 1
}
follow &
trace=$!
STARTED+=("$trace")
# The same guest from outside, once its kernel is up.
from_outside() {
  local attach=''
  trap '[ -z "$attach" ] || kill "$attach" 2>/dev/null' EXIT
  while kill -0 "$guest" 2>/dev/null; do
    "$VNIC" attach --pid "$(pgrep -P "$guest" -f qemu-system | head -n 1)" --control "$OUT/attach.control" >"$OUT/attach.log" 2>&1 &
    attach=$!
    until [ -S "$OUT/attach.control" ] || ! kill -0 "$attach" 2>/dev/null; do sleep 0.1; done
    "$VNIC" trace --labels --perfetto "$OUT/attached.pftrace" --control "$OUT/attach.control" >"$OUT/perfetto.log" 2>&1 && return
    kill "$attach" 2>/dev/null || true
    sleep 0.2
  done
  return 1
}
from_outside &
outside=$!
STARTED+=("$outside")
# Once the device is gone it has nobody to ask.
socat TCP-LISTEN:9464,bind=127.0.0.1,fork,reuseaddr "UNIX-CONNECT:$control" 2>/dev/null &
STARTED+=($!)
cat >"$OUT/prometheus.yml" <<'EOF'
global: { scrape_interval: 1s }
scrape_configs:
  - job_name: vnic
    static_configs: [{ targets: ["127.0.0.1:9464"] }]
EOF
prometheus --config.file="$OUT/prometheus.yml" --storage.tsdb.path="$OUT/prometheus" --web.listen-address=127.0.0.1:9465 \
  --log.level=error >"$OUT/prometheus.log" 2>&1 &
STARTED+=($!)
until_true 60 "Prometheus" curl -fsS http://127.0.0.1:9465/-/ready

# What the guest was asked for may fail its verdict on a crowded machine: here its traffic counts.
wait "$guest" || say "the guest's transfers ended with exit code $?: see $OUT/guest.log"
# The trace ends with the device, Prometheus keeps what it has.
wait "$trace" || say "the trace broke off with the device: $(cat "$OUT/trace.log")"
wait "$outside" || say "the timeline broke off with the VM: $(cat "$OUT/perfetto.log")"
compgen -G "$OUT/chains/here/*.parquet" >/dev/null || fail 1 "vnic trace --parquet wrote nothing: see $OUT/trace.log"
cat "$OUT/trace.log" >&2
run scripts/check-dashboard.py contrib/grafana/vnic.json http://127.0.0.1:9465

say "the timeline that vnic attach took"
cat "$OUT/perfetto.log" >&2
run node scripts/perfetto.mjs target/perfetto/package/assets/trace-processor "$OUT/attached.pftrace" \
  "SELECT ring.name AS ring, COUNT(*) AS chains, CAST(percentile(s.dur, 50) AS INT) AS median_ns FROM slice s JOIN track t ON s.track_id = t.id
   JOIN track ring ON t.parent_id = ring.id GROUP BY ring.name" "SELECT COUNT(*) AS arrows FROM flow" | tee "$OUT/perfetto.txt"
grep -q '"ring":"[a-z0-9.]*transmitq0"' "$OUT/perfetto.txt" || fail 1 "Perfetto finds no chain of transmitq0"

say "the record of the run, and the chains of another machine beside those of this one"
"$VNIC" report target/run/run.json target/run/run.json --parquet "$OUT/transfers.parquet"
cp -r "$OUT/chains/here" "$OUT/chains/there"
run "$PYTHON" scripts/parquet-questions.py duckdb "$OUT/chains" "$OUT/transfers.parquet" | tee "$OUT/duckdb.txt"
grep -q '"source": "/' "$OUT/duckdb.txt" || fail 1 "DuckDB finds no file whose own pages were sent"
if [ -n "$SPARK" ]; then
  run "$PYTHON" scripts/parquet-questions.py spark "$OUT/chains" "$OUT/transfers.parquet" 2>"$OUT/spark.log" >"$OUT/spark.txt" ||
    fail 1 "Spark could not answer: see $OUT/spark.log"
  # Same questions, same answers: but for how each writes a number.
  run scripts/same-answers.py "$OUT/duckdb.txt" "$OUT/spark.txt"
fi
say "all of it can be read: see $OUT"
