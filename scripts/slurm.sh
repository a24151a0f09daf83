#!/usr/bin/env bash
# The matrix through Slurm, on a cluster of this machine alone: installs Debian's Slurm and MUNGE, starts both with a configuration, a key
# and ports of their own, on the loopback and without systemd, and has contrib/snakemake/Snakefile submit its guests to them. Ends with what
# Slurm says of the jobs, and with the rows by the SQL of docs/matrix.md. What it started ends with it. Needs root.
#
#   scripts/slurm.sh                                                  sendfile from tmpfs on Linux 6.1, with and without scatter-gather: a job
#   scripts/slurm.sh kernels=6.1,7.3 filesystems=tmpfs,ext4 rows=…    other cells: the options of the Snakefile
#
# Leaves target/slurm, all cells in it (folder=DIR: elsewhere). What is there is not measured again. Exit codes: 0; 1 the jobs did not end
# well; 2 bad usage or something is missing.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

CLUSTER=$ROOT/target/slurm
# In this order, later words win.
CONFIG=(kernels=6.1 filesystems=tmpfs 'rows=sendfile,sendfile-no-sg' folder=target/slurm/cells)
for word; do
  case $word in
    -h | --help) help && exit ;;
    kernels=?* | filesystems=?* | rows=?* | size=?* | rounds=?* | folder=?*) CONFIG+=("$word") ;;
    *) usage_error "there are kernels=, filesystems=, rows=, size=, rounds= and folder=, not $word" ;;
  esac
done
# One kernel alone would be a number.
for index in "${!CONFIG[@]}"; do
  [[ ! ${CONFIG[index]} =~ ^kernels=[0-9.]+$ ]] || CONFIG[index]+=,
  [[ ${CONFIG[index]} != folder=* ]] || FOLDER=${CONFIG[index]#folder=}
done
[ "$(id -u)" = 0 ] || fail 2 "run it as root: Slurm's daemons run jobs as whoever submitted them"
need slurmctld slurmctld slurm
need slurmd slurmd slurm
need squeue slurm-client slurm
need munged munge munge
need_python "${SNAKEMAKE[@]}" snakemake-executor-plugin-slurm==2.8.0 duckdb==2.0.1 ||
  fail 2 "PyPI's snakemake, its plugin for Slurm and duckdb could not be installed"
cd "$ROOT"

# Ends the jobs, and then what was started, the last first.
STARTED=()
finish() {
  local pid
  if [ ${#STARTED[@]} = 3 ]; then
    scancel --quiet --user root || true
    for _ in {1..100}; do [ -n "$(squeue --noheader 2>/dev/null)" ] || break && sleep 0.1; done
  fi
  for ((index = ${#STARTED[@]} - 1; index >= 0; index--)); do
    pid=${STARTED[index]}
    kill "$pid" 2>/dev/null || true
    wait "$pid" || true
  done
}
trap finish EXIT
trap 'exit 130' INT TERM

# start NAME COMMAND…: in the background, where no ^C reaches it before its jobs are over; what it says is kept.
start() {
  say "+ ${*:2}"
  setsid "${@:2}" >"$CLUSTER/$1.log" 2>&1 &
  STARTED+=($!)
}
# until_true WHAT COMMAND…: for ten seconds at most.
until_true() {
  for _ in {1..100}; do
    "${@:2}" >/dev/null 2>&1 && return
    sleep 0.1
  done
  tail -n 5 "$CLUSTER"/*.log >&2
  fail 1 "$1 did not come up; its last words are above, all of them in $CLUSTER"
}

# The jobs of an earlier cluster are none of this one's.
rm -rf "$CLUSTER"/{state,spool,jobs.txt,munge.sock}
mkdir -p "$CLUSTER"/{state,spool}
(umask 077 && head -c 1024 /dev/urandom >"$CLUSTER/munge.key")
: >"$CLUSTER/plugstack.conf"
read -r CTLD_PORT SLURMD_PORT < <("$PYTHON" -c '
import socket
two = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(server.getsockname()[1] for server in two))')
# What this machine is: NodeName=… CPUs=… RealMemory=…
NODE=$(slurmd -C | head -n 1)
cat >"$CLUSTER/slurm.conf" <<CONF
ClusterName=vnic
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$CTLD_PORT
SlurmdPort=$SLURMD_PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$CLUSTER/munge.sock
SlurmUser=root
SlurmctldPidFile=$CLUSTER/slurmctld.pid
SlurmdPidFile=$CLUSTER/slurmd.pid
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=$CLUSTER/spool
PlugStackConfig=$CLUSTER/plugstack.conf
MailProg=/bin/true
# Without control groups: a container may have none.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Without a database: jobs that ended are a line of text each, and squeue shows them for an hour.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$CLUSTER/jobs.txt
MinJobAge=3600
KillWait=5
$NODE NodeAddr=127.0.0.1
PartitionName=guests Nodes=ALL Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF=$CLUSTER/slurm.conf
# A job of Snakemake's takes this from its own srun, as it takes all of Slurm's variables.
mkdir -p "$CLUSTER/bin"
printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$CLUSTER/bin/srun"
chmod +x "$CLUSTER/bin/srun"
export PATH=$CLUSTER/bin:$PATH

start munged munged --foreground --key-file="$CLUSTER/munge.key" --socket="$CLUSTER/munge.sock" --pid-file="$CLUSTER/munged.pid" \
  --log-file="$CLUSTER/munged.log" --seed-file="$CLUSTER/munge.seed"
until_true munged munge --no-input --socket="$CLUSTER/munge.sock"
start slurmctld slurmctld -D
start slurmd slurmd -D
# One node, and idle.
is_idle() { [ "$(sinfo --noheader --format=%t)" = idle ]; }
until_true slurmd is_idle
run sinfo --long

# What sacct would say of jobs that run is in the database that there is not.
CODE=0
run "$PYTHON" -m snakemake --snakefile contrib/snakemake/Snakefile --executor slurm --jobs 16 --config "${CONFIG[@]}" \
  --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 --slurm-logdir "$CLUSTER/logs" || CODE=1

say "What Slurm says of its jobs:"
if [ -e "$CLUSTER/jobs.txt" ]; then
  run sacct --completion --format=jobid%6,jobname%36,partition%9,nnodes%6,nodelist%12,state%10,end
  for job in $(squeue --noheader --states=all --format=%i); do
    scontrol --oneliner show job "$job" | tr ' ' '\n' | grep -E '^(JobId|Comment|JobState|RunTime|BatchHost|TRES)=' | paste -s -d ' '
  done
fi
[ $CODE = 0 ] || fail 1 "the jobs did not end well: see above, and $CLUSTER/logs"
say "What the matrix has now (the SQL of docs/matrix.md):"
run "$PYTHON" scripts/matrix-rows.py "$FOLDER/matrix.parquet"
