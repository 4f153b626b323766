# The yardstick: the guest kernel's own NVMe/TCP target over the guest's loopback, worked through configfs. It shows that
# the suite itself is right. Same functions as target-nvmfd.sh; each target NAME is a subsystem behind a port of its own.

address=127.0.0.1
nvmet=/sys/kernel/config/nvmet
rams=/dev/shm
files=/run/nvmet

modprobe nvmet-tcp
modprobe loop
mount -t configfs configfs /sys/kernel/config
mkdir -p $files /run/target
truncate -s 700M $rams/ext4.img
mkfs.ext4 -q -F $rams/ext4.img # for the file namespaces: tmpfs lacks part of what they need
mount -o loop $rams/ext4.img $files
truncate -s 320M $files/loop.img
LOOP=$(losetup --find --show $files/loop.img)

namespace_dir() { echo "$nvmet/subsystems/$(nqn_of "$1")/namespaces/$2"; } # NAME NSID

# A RAM namespace is a loop device over a file in a tmpfs.
ram_file() { echo "$rams/$1-$2.img"; } # NAME NSID

namespace_add() { # NAME NSID DEVICE
  local kind file mib path
  IFS=: read -r kind file mib <<<"$3"
  case $kind in
  ram)
    truncate -s "${file}M" "$(ram_file "$1" "$2")"
    path=$(losetup --find --show "$(ram_file "$1" "$2")") ;;
  file)
    path=$files/$file
    truncate -s "${mib}M" "$path" ;;
  loop) path=$LOOP ;;
  esac
  mkdir "$(namespace_dir "$1" "$2")"
  echo -n "$path" >"$(namespace_dir "$1" "$2")/device_path"
  echo 1 >"$(namespace_dir "$1" "$2")/enable"
}
namespace_remove() { # NAME NSID
  echo 0 >"$(namespace_dir "$1" "$2")/enable"
  rmdir "$(namespace_dir "$1" "$2")"
  [ ! -e "$(ram_file "$1" "$2")" ] || losetup --detach "$(losetup --noheadings --output NAME --associated "$(ram_file "$1" "$2")")"
  rm -f "$(ram_file "$1" "$2")"
}
namespace_resize() { # NAME NSID FILE MIB
  truncate -s "$4M" "$files/$3"
  echo 1 >"$(namespace_dir "$1" "$2")/revalidate_size"
}

target_start() { # NAME [--OPTION...] DEVICE...
  local name=$1 number subsystem nsid=0
  shift
  [[ ${1:-} != --* ]] || skip "the kernel's nvmet has no $1"
  subsystem=$nvmet/subsystems/$(nqn_of "$name")
  mkdir "$subsystem"
  echo 1 >"$subsystem/attr_allow_any_host"
  for device; do nsid=$((nsid + 1)); namespace_add "$name" $nsid "$device"; done
  seq $# >"/run/target/$name.namespaces"
  number=$(($(ls $nvmet/ports | wc -l) + 1))
  echo $number >"/run/target/$name.port"
  mkdir $nvmet/ports/$number
  echo tcp >$nvmet/ports/$number/addr_trtype
  echo ipv4 >$nvmet/ports/$number/addr_adrfam
  echo 127.0.0.1 >$nvmet/ports/$number/addr_traddr
  io_port "$name" >$nvmet/ports/$number/addr_trsvcid
  target_restart "$name"
}
io_port() { echo $((4420 + $(cat "/run/target/$1.port"))); }
discovery_port() { io_port "$1"; }
namespaces_of() { cat "/run/target/$1.namespaces"; }

# Taking the subsystem off its port closes the port and breaks every connection, as the end of a process does.
port_link() { echo "$nvmet/ports/$(cat "/run/target/$1.port")/subsystems/$(nqn_of "$1")"; }
target_restart() { ln -s "$nvmet/subsystems/$(nqn_of "$1")" "$(port_link "$1")"; }
target_kill() { rm "$(port_link "$1")"; }
target_stop() { target_kill "$1"; }

tell() { skip "the kernel's nvmet has no such command"; }

target_unburdened() { :; }
target_log() { :; }
