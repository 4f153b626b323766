# The target under test: nvmfd on the machine, worked through its control server (control.py). Sourced by main.sh.
#
# target-nvmet.sh has the same functions for the guest kernel's own target. DEVICE is ram:MIB, file:NAME:MIB or loop;
# namespace IDs count from 1 in the order of the devices.

address=10.0.2.2

# control WORD...: one command for the machine; prints the answer without its `ok`, fails unless it is one.
control() {
  local answer link
  exec {link}<>"/dev/tcp/10.0.2.2/$CONTROL_PORT"
  printf '%q ' "$@" >&"$link"
  echo >&"$link"
  answer=$(cat <&"$link")
  exec {link}>&-
  case $answer in
  ok*) answer=${answer#ok}; echo "${answer#[ $'\n']}" ;;
  *) echo "control $*: $answer" >&2; return 1 ;;
  esac
}

device_argument() {
  local kind name mib
  IFS=: read -r kind name mib <<<"$1"
  case $kind in
  ram) echo "ramdisk:${name}m" ;;
  file) control size "$name" $((mib * 1048576)) >&2; echo "$name" ;;
  loop) echo "$LOOP" ;;
  esac
}

# target_start NAME [--OPTION...] DEVICE...
target_start() {
  local name=$1 options=() devices=() device
  shift
  while [[ ${1:-} == --* ]]; do options+=("$1"); shift; done
  for device; do devices+=("$(device_argument "$device")"); done
  mkdir -p /run/target
  control start "$name" -n "$(nqn_of "$name")" "${options[@]}" "${devices[@]}" >"/run/target/$name.ports"
  seq $# >"/run/target/$name.namespaces"
}
io_port() { cut -d' ' -f1 "/run/target/$1.ports"; }
discovery_port() { cut -d' ' -f2 "/run/target/$1.ports"; }
spare_port() { cut -d' ' -f3 "/run/target/$1.ports"; } # {spare} in options
namespaces_of() { cat "/run/target/$1.namespaces"; }

target_restart() { control start "$1" >/dev/null; }
target_kill() { control kill "$1"; }
target_stop() { is "$(control stop "$1")" 0 "exit status of nvmfd"; }

namespace_add() { control tell "$1" "add $2 $(device_argument "$3")"; } # NAME NSID DEVICE
namespace_remove() { control tell "$1" "remove $2"; }                   # NAME NSID
namespace_resize() {                                                    # NAME NSID FILE MIB
  control size "$3" $(($4 * 1048576))
  control tell "$1" "resize $2"
}

# tell NAME WORD...: one of nvmfd's own commands.
tell() { local name=$1; shift; control tell "$name" "$*"; }

# target_unburdened NAME: it holds no more file descriptors than when it started.
target_unburdened() {
  local now at_start
  read -r now at_start <<<"$(control fds "$1")"
  [ "$now" -le "$at_start" ]
}
target_log() { control log "$1"; }
