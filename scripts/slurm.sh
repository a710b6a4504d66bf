#!/usr/bin/env bash
# A real Slurm on this one machine, for tests: `scripts/slurm.sh start|stop|status [FOLDER]`.
# Debian's slurm-wlm and munge, no systemd, any user; everything it writes is in FOLDER (default: below TMPDIR).
# `start` prints the variable that leads Slurm's commands to it: eval "$(scripts/slurm.sh start)"
# Exit codes: 0 done, 1 it does not run or did not start, 2 wrong use, 3 the packages are missing.
set -euo pipefail

nodes=${SBM_SLURM_NODES:-2}
cpus=${SBM_SLURM_CPUS:-2} # per node, whatever the machine has
action=${1:-}
folder=${2:-${TMPDIR:-/tmp}/sbm-slurm-$(id -u)}
export SLURM_CONF=$folder/slurm.conf

say() { echo "slurm.sh: $*" >&2; }

missing() {
  for program in munged slurmctld slurmd sbatch sinfo; do
    # daemons lie in /usr/sbin, which is not on every user's path
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || echo "$program"
  done
}

running() { [ -f "$SLURM_CONF" ] && sinfo --noheader >/dev/null 2>&1; }

free_ports() {
  python3 -c '
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in held))' "$1"
}

start() {
  local absent
  absent=$(missing)
  if [ -n "$absent" ]; then
    say "not installed: $(echo $absent). As root: apt-get install --no-install-recommends slurm-wlm munge"
    exit 3
  fi
  if running; then
    say "runs already in $folder"
    echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")"
    return
  fi
  case $folder in
    *[!A-Za-z0-9_./-]*) say "the folder's name may hold letters, digits and _ . / - alone: $folder"; exit 2 ;;
  esac
  export PATH=$PATH:/usr/sbin:/sbin
  umask 022
  rm -rf "$folder"
  mkdir -p "$folder/state" "$folder/spool"
  chmod 755 "$folder"
  (umask 077; head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2>>"$folder/munged.log"

  local ports host user
  read -ra ports <<<"$(free_ports $((nodes + 1)))"
  host=$(hostname -s)
  user=$(id -un)
  {
    echo "ClusterName=sbm"
    echo "SlurmctldHost=$host(127.0.0.1)"
    echo "SlurmctldPort=${ports[0]}"
    echo "SlurmUser=$user"
    echo "SlurmdUser=$user"
    echo "AuthType=auth/munge"
    echo "CredType=cred/munge"
    echo "AuthInfo=socket=$folder/munge.socket"
    echo "StateSaveLocation=$folder/state"
    echo "SlurmdSpoolDir=$folder/spool/%n"
    echo "SlurmctldPidFile=$folder/slurmctld.pid"
    echo "SlurmdPidFile=$folder/slurmd.%n.pid"
    echo "SlurmctldLogFile=$folder/slurmctld.log"
    echo "SlurmdLogFile=$folder/slurmd.%n.log"
    # no cgroups: a container has none to give away
    echo "ProctrackType=proctrack/linuxproc"
    echo "TaskPlugin=task/none"
    echo "MpiDefault=none"
    echo "SelectType=select/cons_tres"
    echo "SelectTypeParameters=CR_CPU"
    echo "SlurmdParameters=config_overrides"
    echo "ReturnToService=2"
    echo "KillWait=2"
    # look often: tests are waiting
    echo "SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0"
    for i in $(seq "$nodes"); do
      echo "NodeName=127.0.0.$i NodeHostname=$host NodeAddr=127.0.0.$i Port=${ports[i]} CPUs=$cpus State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
  } >"$SLURM_CONF"

  slurmctld
  for i in $(seq "$nodes"); do slurmd -N "127.0.0.$i"; done
  for _ in $(seq 150); do
    if [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]; then
      say "$nodes nodes of $cpus CPUs in $folder, stopped by: scripts/slurm.sh stop $folder"
      echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")"
      return
    fi
    sleep 0.2
  done
  say "the nodes did not come up within 30 s; the logs:"
  tail -n 5 "$folder"/*.log >&2
  stop
  exit 1
}

stop() {
  [ -d "$folder" ] || { say "nothing in $folder"; return; }
  if running; then
    scancel --quiet --user="$(id -un)" || true
    for _ in $(seq 50); do
      [ -z "$(squeue --noheader 2>/dev/null)" ] && break
      sleep 0.2
    done
  fi
  local file pid
  for file in "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
  rm -rf "$folder"
  say "stopped"
}

status() {
  running || { say "does not run in $folder"; exit 1; }
  sinfo --Node --long
  squeue
}

case $action in
  start | stop | status) "$action" ;;
  *) say "usage: scripts/slurm.sh start|stop|status [FOLDER]"; exit 2 ;;
esac
