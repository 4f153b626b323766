# Two hosts at once

other_host=(--hostnqn=nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002
  --hostid=00000000-0000-4000-8000-000000000002)

connect_both() {
  detach main
  connect main
  first=$controller
  connect main "${other_host[@]}"
  second=$controller
  is "$(controllers main | wc -w)" 2 "number of controllers"
}
attribute() { cat "/sys/class/nvme/$1/$2"; } # CONTROLLER NAME

side_by_side() {
  connect_both
  [ "$(attribute "$first" cntlid)" != "$(attribute "$second" cntlid)" ] || fail "two hosts with one CNTLID"
  [ "$(attribute "$first" hostnqn)" != "$(attribute "$second" hostnqn)" ] || fail "the same host twice"
  local host
  for host in "$first" "$second"; do
    is $(($(nvme id-ctrl "/dev/$host" | field cntlid))) "$(attribute "$host" cntlid)" "CNTLID of $host"
    is "$(nvme get-feature "/dev/$host" -f 0x81 --cdw11=1 --data-len=16 -b | od -An -v -tx1 | tr -d ' \n')" \
      "$(attribute "$host" hostid | tr -d -)" "host identifier of $host"
  done
  is "$(nvme list-subsys "$(disk main 1)" | grep -c ' tcp .* live')" 2 "live paths"
}
step "hosts: two with their own controllers" side_by_side

# One multipath disk over both controllers, so that reads verify over the one what was written over the other.
both_under_load() {
  connect_both
  echo round-robin >"$(dirname /sys/class/nvme-subsystem/*/"$first")/iopolicy"
  fio_verify --name=both --filename="$(disk main 1)" --bs=4k --size=8m --iodepth=16
}
step "hosts: I/O of both, verified" both_under_load

one_leaves() {
  connect_both
  fio_verify --name=stays --filename="$(disk main 1)" --bs=4k --size=4m --iodepth=8 --rate_iops=400 &
  local fio=$!
  sleep 1
  nvme disconnect -d "$first"
  wait "$fio"
  is "$(controllers main)" "$second" "controllers left"
  data_survives "$(disk main 1)"
}
step "hosts: one disconnects under load, the other goes on" one_leaves

add_seen_by_both() {
  connect_both
  namespace_add main 20 ram:16
  wait_until both_list 20
  namespace_remove main 20
  wait_until no_disk main 20
  if nvme list-ns "/dev/$first" | grep ']:0x14$'; then fail "still listed"; fi
  detach main
}
# The paths of the disk nvme0n5 are nvme0c0n5 and nvme0c1n5.
both_list() {
  local disk
  disk=$(disk main "$1") || return
  [ "$(compgen -G "/sys/block/$(basename "$disk" | sed 's/n\([0-9]*\)$/c*n\1/')" | wc -l)" = 2 ]
}
step "hosts: both see a namespace come and go" add_seen_by_both
