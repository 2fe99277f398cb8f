# What the recipes of this folder share; a recipe sources it and ends with `recipe "$@"`.
#
# A recipe defines
#   install               installs what is missing; says nothing when nothing is
#   about                 one paragraph for people: version, configuration, what is synced before a 250
#   prepare FOLDER PORT   writes the configuration below FOLDER and sets the array `command`
# and gets the command line `install | about | start FOLDER PORT` from here.
#
# The promises of `start`:
# - the server and all it starts are descendants of the recipe, which stays in the foreground: the tree's root is its process id;
# - everything is written below FOLDER; what the server says before it is ready goes to FOLDER/log;
# - `ready` is printed once, when a connection was answered with 220;
# - SIGTERM and SIGINT end the whole tree, and so does the end of the server itself (exit code 1, the reason on standard error).
# shellcheck shell=bash
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

files=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
name=$(basename "$0")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/incoming-loadtest-peers

# Seconds until a server must answer: Postfix is quickest, Haraka needs one to two on an idle machine.
ready_timeout=30
# Seconds a server gets to end by itself before it is killed.
stop_timeout=5

fail() { # fail WORDS
  echo "$name: $*" >&2
  exit 1
}

need_root() {
  [ "$(id -u)" = 0 ] || fail "needs root: the server changes users, and its files are mounted where only it sees them"
}

# Installs Debian's packages. No daemon of theirs is started or configured.
install_packages() { # install_packages PACKAGE...
  [ "$(id -u)" = 0 ] || fail "installing $* needs root"
  command -v apt-get >/dev/null || fail "$* must be installed (there is no apt-get here to do it)"
  local log fence=
  log=$(mktemp)
  echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections 2>/dev/null || true
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    fence=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >$fence
    chmod 755 $fence
  fi
  local failed=
  { apt-get -q update && apt-get -qy install --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null || failed=yes
  [ -z "$fence" ] || rm -f "$fence"
  [ -z "$failed" ] || tail -10 "$log" >&2
  rm -f "$log"
  [ -z "$failed" ] || fail "Debian's packages could not be installed: $*"
}

need_command() { # need_command COMMAND PACKAGE
  command -v "$1" >/dev/null || DEBIAN_FRONTEND=noninteractive install_packages "$2"
  command -v "$1" >/dev/null || fail "$1 is missing though Debian's package $2 is installed"
}

# Is a connection answered with 220?
answers() { # answers PORT
  (
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    IFS= read -r -t 5 line <&3 || exit 1
    printf 'QUIT\r\n' >&3
    IFS= read -r -t 5 _ <&3 || true
    [[ $line == 220* ]]
  ) 2>/dev/null
}

descendants() { # descendants PID: all below it, parents first
  local child
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
    echo "$child"
    descendants "$child"
  done
}

is_alive() { # is_alive PID: a zombie is not
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  [[ ${stat##*) } != Z* ]]
}

# Ends a server: SIGTERM to it alone, since a server knows best how to end what it started, and SIGKILL to all that is left.
end_tree() { # end_tree PID
  local tree pid left deadline=$((SECONDS + stop_timeout))
  mapfile -t tree < <(echo "$1"; descendants "$1")
  kill -TERM "$1" 2>/dev/null || true
  while :; do
    left=()
    for pid in "${tree[@]}"; do
      if is_alive "$pid"; then left+=("$pid"); fi
    done
    [ ${#left[@]} -gt 0 ] || return 0
    [ $SECONDS -lt $deadline ] || break
    sleep 0.05
  done
  kill -KILL "${left[@]}" 2>/dev/null || true
}

start() { # start FOLDER PORT
  local folder port=$2 server= log_reader=
  mkdir -p "$1"
  folder=$(readlink -f "$1")
  ! answers "$port" || fail "something answers on port $port already"
  ulimit -n "$(ulimit -Hn)"
  trap 'trap "" TERM INT; [ -z "$server" ] || end_tree "$server"; exit 0' TERM INT
  trap '[ -z "$log_reader" ] || kill "$log_reader" 2>/dev/null || true' EXIT
  prepare "$folder" "$port"
  "${command[@]}" >>"$folder/log" 2>&1 </dev/null &
  server=$!
  local deadline=$((SECONDS + ready_timeout))
  until answers "$port"; do
    is_alive "$server" || fail_with_log "$folder" "the server ended before it was ready"
    if [ $SECONDS -ge $deadline ]; then
      end_tree "$server"
      fail_with_log "$folder" "no 220 on port $port within $ready_timeout s"
    fi
    sleep 0.05
  done
  on_ready "$folder"
  echo ready
  wait "$server" || true
  end_tree "$server"
  fail_with_log "$folder" "the server ended by itself"
}

# A recipe may do something when its server is ready.
on_ready() { # on_ready FOLDER
  :
}

fail_with_log() { # fail_with_log FOLDER WORDS
  echo "$name: $2; the end of its log:" >&2
  tail -20 "$1/log" | sed 's/^/  /' >&2
  exit 1
}

# For servers with paths of their own that are compiled in: sets `command` so that SCRIPT runs where mounts are private, and where
# /dev/log is a socket whose octets go to FOLDER/log until the server is ready. Afterwards nobody listens there, so logging costs a
# refused datagram and nothing reaches the system's log.
in_private_mounts() { # in_private_mounts FOLDER SCRIPT ARGUMENT...
  local folder=$1 script=$2
  shift 2
  rm -f "$folder/log-socket"
  /usr/bin/python3 -c '
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1] + "/log-socket")
os.chmod(sys.argv[1] + "/log-socket", 0o666)
with open(sys.argv[1] + "/log", "ab", buffering=0) as log:
    while True:
        log.write(listener.recv(65536).rstrip(b"\n\0") + b"\n")
' "$folder" </dev/null >/dev/null 2>&1 &
  log_reader=$!
  until [ -S "$folder/log-socket" ]; do
    is_alive $log_reader || fail "$folder/log-socket could not be made"
    sleep 0.05
  done
  # shellcheck disable=SC2016
  command=(unshare --mount bash -euc '
    mkdir -p "$1/dev"
    mount -t tmpfs -o mode=755,size=64k tmpfs "$1/dev"
    for node in null zero full random urandom log; do
      : >"$1/dev/$node"
      from=/dev/$node
      [ $node != log ] || from=$1/log-socket
      mount --bind "$from" "$1/dev/$node"
    done
    mount --rbind "$1/dev" /dev
    '"$script" "$name" "$folder" "$@")
  on_ready() {
    { kill $log_reader && wait $log_reader; } 2>/dev/null || true
  }
}

recipe() {
  case ${1-} in
    install) [ $# = 1 ] || usage; install ;;
    about) [ $# = 1 ] || usage; about | fold -s -w 120 ;;
    start)
      [ $# = 3 ] && [[ $3 =~ ^[0-9]+$ ]] || usage
      install
      start "$2" "$3"
      ;;
    *) usage ;;
  esac
}

usage() {
  echo "usage: $name install | about | start FOLDER PORT" >&2
  exit 2
}
