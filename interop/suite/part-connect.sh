# Connect options: number of queues, digests, queue sizes, flow control, keep alive; limits of the target; 4 KiB blocks

attribute() { cat "/sys/class/nvme/$controller/$1"; }

# connects_with QUEUES OPTION...: QUEUES counts the admin queue. Data goes both ways in and beyond the capsules, and
# disconnecting leaves nothing.
connects_with() {
  local queues=$1
  shift
  detach main
  connect main "$@"
  is "$(attribute queue_count)" "$queues" "number of queues"
  data_survives "$(disk main 1)"
  detach main
  no_disk main 1
}
cpus=$(nproc)
for n in $(seq "$cpus"); do step "connect: I/O queues $n" connects_with $((n + 1)) --nr-io-queues="$n"; done
step "connect: write and poll queues" connects_with $((3 * cpus + 1)) --nr-write-queues="$cpus" --nr-poll-queues="$cpus"
step "connect: header digest" connects_with $((cpus + 1)) --hdr-digest
step "connect: data digest" connects_with $((cpus + 1)) --data-digest
step "connect: header and data digest" connects_with $((cpus + 1)) --hdr-digest --data-digest
step "connect: SQ flow control disabled" connects_with $((cpus + 1)) --disable-sqflow
step "connect: SQ flow control disabled, digests" connects_with $((cpus + 1)) --disable-sqflow --hdr-digest --data-digest

queue_size() {
  detach main
  connect main --queue-size="$1"
  is "$(attribute sqsize)" $(($1 - 1)) "SQSIZE"
  fio_verify --name=depth --filename="$(disk main 1)" --bs=4k --size=1m --iodepth=64
  detach main
}
step "connect: queue size 16, 64 deep" queue_size 16
step "connect: queue size 64, 64 deep" queue_size 64

keep_alive() {
  detach main
  connect main --keep-alive-tmo=2
  is "$(attribute kato)" 2 "KATO"
  sleep 5
  is "$(attribute state)" live "state after two idle timeouts"
  data_survives "$(disk main 1)"
  if dmesg | grep -i -E 'reconnect|recovery|keep-alive'; then fail "the connection broke"; fi
  detach main
}
step "connect: keep alive over an idle connection" keep_alive

duplicate_connect() {
  detach main
  connect main
  local first=$controller
  refused "already connected" nvme_connect main
  connect main --duplicate-connect
  [ "$first" != "$controller" ] || fail "no second controller"
  is "$(controllers main | wc -w)" 2 "number of controllers"
  [ "$(cat "/sys/class/nvme/$first/cntlid")" != "$(attribute cntlid)" ] || fail "two controllers with one CNTLID"
  data_survives "$(disk main 1)"
  detach main
}
step "connect: a second controller for the same host" duplicate_connect

churn() {
  local i
  detach main
  for i in 1 2 3 4 5 6 7 8; do
    nvme_connect main --nr-io-queues=1
    nvme disconnect -d "$controller" >/dev/null
  done
  wait_until gone main
  connect main
  data_survives "$(disk main 1)"
  detach main
}
step "connect: connect and disconnect in a row" churn

# Whatever the target's limits, data goes both ways in the sizes that they leave.
limits() { # TARGET-OPTION...
  control stop limits >/dev/null 2>&1 || :
  target_start limits "$@" ram:64
  connect limits
  fio_verify --name=sizes --filename="$(disk limits 1)" --bsrange=4k-256k --bs_unaligned=0 --size=4m --iodepth=16
}
in_capsule() { # BYTES
  limits --in-capsule="$1"
  is "$(nvme id-ctrl "/dev/$controller" | field ioccsz)" $((4 + $1 / 16)) IOCCSZ
  detach limits
}
step "connect: a target that takes no data in capsules" in_capsule 0
step "connect: a target that takes 8 KiB in capsules" in_capsule 8192

small_limits() {
  limits --mdts=8k --maxh2cdata=4096 --io-queues=1 --queue-entries=16
  is "$(attribute queue_count)" 2 "number of queues"
  is "$(attribute sqsize)" 15 SQSIZE
  is "$(nvme id-ctrl "/dev/$controller" | field mdts)" 1 MDTS
  is "$(cat "/sys/block/$(basename "$(disk limits 1)")/queue/max_hw_sectors_kb")" 8 "largest transfer"
  detach limits
}
step "connect: a target with the smallest MDTS and MAXH2CDATA, one short queue" small_limits

read_only() {
  target_start readonly --read-only ram:16
  connect readonly
  local disk
  disk=$(disk readonly 1)
  is "$(blockdev --getro "$disk")" 1 "read-only flag"
  is "$(read_disk "$disk" 0 65536 | wc -c)" 65536 "bytes read"
  random 4096 >/tmp/data
  refused "Namespace is Write Protected" nvme write "/dev/$controller" -n 1 -s 0 -c 0 -z 512 -d /tmp/data
  detach readonly
}
step "connect: a read-only namespace" read_only

big_blocks() {
  target_start blocks4k --block-size=4096 ram:64
  connect blocks4k
  local disk
  disk=$(disk blocks4k 1)
  is "$(blockdev --getss "$disk")" 4096 "logical block size"
  is "$(blockdev --getsize64 "$disk")" $((64 << 20)) "bytes"
  data_survives "$disk"
  fio_verify --name=4k --filename="$disk" --bs=4k --size=2m --iodepth=16 --name=64k --bs=64k --size=4m --offset=8m
  iovtest "$disk" 1
  detach blocks4k
}
step "connect: a namespace of 4 KiB blocks" big_blocks
