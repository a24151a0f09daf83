#!/usr/bin/env bash
# Looks at vnic@web under a real systemd. `scripts/package.sh --boot` runs it as root in a container where the package is installed.
set -euo pipefail

fail() {
  echo "FAILED: $*"
  systemctl status --no-pager --full vnic@web || true
  journalctl --no-pager --unit vnic@web | tail -n 30 || true
  exit 1
}
property() { systemctl show --property "$1" --value vnic@web; }
CONTROL=/run/vnic/web/vnic.sock.control

# answers WORDS: until the device says so, or half a minute is over.
answers() {
  for _ in $(seq 300); do
    vnic status --json --control $CONTROL 2>/dev/null | grep -q "$1" && return
    sleep 0.1
  done
  fail "vnic status does not say $1"
}

systemctl --version | head -n 1
mkdir -p /etc/vnic
echo 'VNIC_OPTIONS=--link sink --queue-pairs 2' >/etc/vnic/web.conf
systemctl start vnic@web || fail "it does not start"
answers '"queue": "transmitq1"'
[ "$(property ActiveState)" = active ] || fail "it is not active"

pid=$(property MainPID)
echo "-- as whom it runs: $(ps -o user=,group=,args= -p "$pid" 2>/dev/null || tr '\0' ' ' </proc/"$pid"/cmdline)"
grep -E '^(Uid|Gid|CapEff|CapBnd|NoNewPrivs|Seccomp):' "/proc/$pid/status"
grep -q '^NoNewPrivs:.*1$' "/proc/$pid/status" || fail "it may gain privileges"
grep -q '^Seccomp:.*2$' "/proc/$pid/status" || fail "its system calls are not filtered"
grep -q '^CapBnd:.*0000000000000000$' "/proc/$pid/status" || fail "it has capabilities"
[ "$(awk '/^Uid:/ { print $2 }' "/proc/$pid/status")" != 0 ] || fail "it runs as root"
echo "-- its folder: $(stat -c '%A %U:%G' /run/vnic/web) socket: $(stat -c '%A %U:%G' /run/vnic/web/vnic.sock)"
[ "$(stat -c %G:%a /run/vnic/web/vnic.sock)" = kvm:770 ] || fail "the group kvm cannot connect"
systemd-analyze --no-pager security vnic@web | tail -n 1

echo "-- and what it has given up by itself: $(vnic status --json --control $CONTROL | sed -n '/"sandbox": {/,/}/p' | tr -d ' \n')"
answers '"mode": "on"'
answers '"seccomp": true'

echo "-- it is killed, and comes back"
kill -KILL "$pid"
for _ in $(seq 300); do
  [ "$(property MainPID)" != 0 ] && [ "$(property MainPID)" != "$pid" ] && break
  sleep 0.1
done
answers "\"pid\": $(property MainPID)"
[ "$(property NRestarts)" = 1 ] || fail "it was started again $(property NRestarts) times"

echo "-- it is stopped"
systemctl stop vnic@web || fail "it does not stop"
echo "result $(property Result), exit status $(property ExecMainStatus), $(property ActiveState)"
[ "$(property Result) $(property ExecMainStatus) $(property ActiveState)" = "success 0 inactive" ] || fail "it did not stop cleanly"
[ ! -e /run/vnic/web ] || fail "its folder is still there"
echo "the unit does what it should"
