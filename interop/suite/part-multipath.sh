# Two ports of one subsystem: ANA states and groups, failover and failback under load, ports that come and go

# Sets first and second: the controllers behind the two ports of target paths.
both_paths() {
  nvmet_deviates "is not set up with two ports here"
  detach paths
  ana all 1 optimized
  path "$(io_port paths)"
  first=$controller
  path "$(spare_port paths)"
  second=$controller
  wait_until has_paths paths 1 2
}
path() { # PORT
  controller=$(nvme connect -t tcp -a "$address" -s "$1" -n "$(nqn_of paths)" --reconnect-delay=1 --ctrl-loss-tmo=60 -o json |
    field device)
  wait_until is_live "$controller"
}

# ana PORT GROUP STATE, with PORT first, second or all
ana() {
  local port
  case $1 in
  first) port=127.0.0.1:$(io_port paths) ;;
  second) port=127.0.0.1:$(spare_port paths) ;;
  *) port=$1 ;;
  esac
  tell paths "ana $port $2 $3"
}

# path_of CONTROLLER NSID: its entry in /sys/block.
path_of() {
  local entry
  for entry in /sys/class/nvme/"$1"/nvme*c*n*; do
    [ "$(cat "$entry/nsid")" != "$2" ] || echo "/sys/block/$(basename "$entry")"
  done
}
in_state() { [ "$(cat "$(path_of "$1" "$2")/ana_state")" = "$3" ]; } # CONTROLLER NSID STATE
ios() { awk '{print $1 + $5}' "$(path_of "$1" "$2")/stat"; }         # CONTROLLER NSID

# The kernel fails I/O only when no path is left to wait for. Of a path alone (nvme0c0n1) it may fail what was read ahead.
no_io_error() {
  if dmesg | grep -E 'I/O error.* nvme[0-9]+n[0-9]+[ ,]|EXT4-fs (error|warning)|lost async page write'; then
    fail "the kernel saw an error"
  fi
}

start_paths() { target_start paths --bind=127.0.0.1:{spare} ram:96; }
step "multipath: a target with two ports starts" start_paths

two_paths() {
  both_paths
  is "$(nvme list-subsys "$(disk paths 1)" | grep -c ' tcp .* live optimized')" 2 "optimized paths"
  local id log
  id=$(nvme id-ctrl "/dev/$first")
  is $(($(field cmic <<<"$id") & 8)) 8 "ANA in CMIC"
  is "$(field anatt <<<"$id")" 10 ANATT
  is "$(field anagrpmax <<<"$id")" "$(field nanagrpid <<<"$id")" "ANAGRPMAX and NANAGRPID"
  is $(($(nvme id-ns "$(disk paths 1)" | field anagrpid))) 1 ANAGRPID
  log=$(nvme ana-log "/dev/$second")
  like "$log" $'grpid\t:\t1\nnnsids\t:\t1\n.*state\t:\toptimized\n\tnsid\t:\t1'
  data_survives "$(disk paths 1)"
}
step "multipath: one disk, two paths; id-ctrl, ana-log" two_paths

# Each state at one port shows there and not at the other, by the event alone, and I/O takes the way that is open.
states() {
  both_paths
  local state
  for state in non-optimized inaccessible persistent-loss change optimized; do
    ana first 1 $state
    wait_until in_state "$first" 1 $state
    in_state "$second" 1 optimized
    data_survives "$(disk paths 1)"
  done
  no_io_error
}
step "multipath: all five states, seen without a rescan" states

# What commands are answered that come all the same. The kernel takes them by a controller with one namespace only.
refused_by_state() {
  both_paths
  ana all 1 inaccessible
  refused 'Asymmetric Access Inaccessible' nvme read "/dev/$first" -n 1 -s 0 -c 0 -z 512
  ana all 1 persistent-loss
  refused 'Asymmetric Access Persistent Loss' nvme read "/dev/$first" -n 1 -s 0 -c 0 -z 512
  ana all 1 change
  refused 'Asymmetric Access Transition' nvme read "/dev/$first" -n 1 -s 0 -c 0 -z 512
}
step "multipath: statuses of the states without a way" refused_by_state

groups() {
  both_paths
  namespace_add paths 2 ram:16
  wait_until has_paths paths 2 2
  tell paths "group 2 2"
  ana first 2 non-optimized
  ana second 1 non-optimized
  wait_until in_state "$first" 2 non-optimized
  wait_until in_state "$second" 1 non-optimized
  in_state "$first" 1 optimized
  in_state "$second" 2 optimized
  local before after nsid
  before="$(ios "$second" 1) $(ios "$first" 2)"
  for nsid in 1 2; do data_survives "$(disk paths $nsid)"; done
  after="$(ios "$second" 1) $(ios "$first" 2)"
  is "$after" "$before" "I/O by the paths that are not optimized"
  namespace_remove paths 2
  wait_until no_disk paths 2
}
step "multipath: two groups, each with its own best path" groups

failover() {
  both_paths
  fio_verify --name=failover --filename="$(disk paths 1)" --bs=4k --size=12m --iodepth=8 --rate_iops=600 &
  local fio=$! i
  for i in 1 2 3; do
    sleep 0.7
    ana second 1 optimized
    ana first 1 inaccessible
    sleep 0.7
    ana first 1 optimized
    ana second 1 inaccessible
  done
  ana all 1 optimized
  wait "$fio"
  no_io_error
}
step "multipath: failover and failback under load, verified" failover

# A file system over paths that fail one after the other and both at once, by state and by their port's end.
file_system_survives() {
  both_paths
  local disk
  disk=$(disk paths 1)
  mkfs.ext4 -q -F "$disk"
  mount "$disk" /mnt
  trap 'umount /mnt 2>/dev/null || :' EXIT
  write_files &
  local writer=$!
  sleep 0.5
  ana first 1 inaccessible
  sleep 0.5
  ana second 1 change
  sleep 1
  ana all 1 inaccessible
  sleep 1
  ana second 1 optimized
  sleep 0.5
  ana first 1 optimized
  tell paths "unlisten 127.0.0.1:$(spare_port paths)"
  sleep 1
  tell paths "listen 127.0.0.1:$(spare_port paths)"
  wait "$writer"
  wait_until is_live "$second"
  umount /mnt
  no_io_error
  fsck.ext4 -f -n "$disk"
  mount "$disk" /mnt
  (cd /mnt && sha256sum -c --quiet /tmp/sums)
  umount /mnt
}
write_files() {
  local i
  for i in $(seq 40); do
    random 200000 >"/mnt/$i"
    sync "/mnt/$i"
    sleep 0.1
  done
  (cd /mnt && sha256sum ./[0-9]*) >/tmp/sums
}
step "multipath: ext4 over failing paths sees no error" file_system_survives

port_comes_and_goes() {
  both_paths
  local port
  port=$(spare_port paths)
  fio_verify --name=port --filename="$(disk paths 1)" --bs=4k --size=4m --iodepth=8 --rate_iops=400 &
  local fio=$!
  sleep 0.5
  tell paths "unlisten 127.0.0.1:$port"
  wait_until is_down "$second"
  is_live "$first"
  sleep 1
  tell paths "listen 127.0.0.1:$port"
  wait_until is_live "$second"
  wait "$fio"
  no_io_error
  detach paths
}
is_down() { ! is_live "$1"; }
step "multipath: a port is closed and opened under load" port_comes_and_goes
