# Two hosts at once; host lists and namespaces that are not for every host, changed at run time

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
  wait_until has_paths main 20 2
  namespace_remove main 20
  wait_until no_disk main 20
  if nvme list-ns "/dev/$first" | grep ']:0x14$'; then fail "still listed"; fi
  detach main
}
step "hosts: both see a namespace come and go" add_seen_by_both

# ---- which hosts may connect, and what they see ---------------------------------------------------------------------

this_nqn=$(cat /etc/nvme/hostnqn)

not_listed() {
  target_start listed --host="$this_nqn" ram:16 ram:16
  connect listed
  refused 'could not add new controller' nvme_connect listed "${other_host[@]}"
  like "$(dmesg)" "subsystem $(nqn_of listed) is not allowed, hostnqn: ${other_host[0]#*=}"
  local log
  says "$(nqn_of listed)" nvme discover -t tcp -a "$address" -s "$(discovery_port listed)"
  log=$(nvme discover -t tcp -a "$address" -s "$(discovery_port listed)" "${other_host[@]}")
  if grep "$(nqn_of listed)" <<<"$log"; then fail "shown to a host that may not connect"; fi
}
step "hosts: one that is not listed is refused, and is not told" not_listed

listed_at_run_time() {
  nvmet_deviates "is not set up with a list here"
  attach listed
  local first=$controller
  tell listed "allow ${other_host[0]#*=}"
  nvme_connect listed "${other_host[@]}" --reconnect-delay=1
  local second=$controller
  wait_until is_live "$second"
  fio_verify --name=stays --filename="$(disk listed 1)" --bs=4k --size=2m --iodepth=8 --rate_iops=300 &
  local fio=$!
  sleep 1
  tell listed "forbid ${other_host[0]#*=}"
  wait_until only "$first"
  wait "$fio"
  if dmesg | grep -E "$first: .*(recovery|reconnect|failed)"; then fail "the other host's connection broke"; fi
  refused 'could not add new controller' nvme_connect listed "${other_host[@]}"
  tell listed "allow any"
  nvme_connect listed "${other_host[@]}"
  is "$(controllers listed | wc -w)" 2 "number of controllers"
  detach listed
  tell listed "forbid any"
}
only() { [ "$(controllers listed)" = "$1" ]; }
step "hosts: allowed and forbidden at run time, the other host's I/O goes on" listed_at_run_time

# The kernel takes both hosts' controllers for paths to one disk: a namespace of both has two paths.
masked() {
  nvmet_deviates "shows all namespaces to every host"
  detach main
  namespace_add main 30 ram:16
  connect main
  local first=$controller
  connect main "${other_host[@]}"
  local second=$controller
  wait_until has_paths main 30 2
  tell main "visible 30 $this_nqn"
  wait_until has_paths main 30 1
  data_survives "$(disk main 30)"
  says '0x1e' nvme list-ns "/dev/$first"
  if nvme list-ns "/dev/$second" | grep -q 0x1e; then fail "listed for the other host"; fi
  is "$(nvme id-ns "/dev/$second" -n 30 | field nsze)" 0 "NSZE for the other host"
  tell main "visible 30 none"
  wait_until no_disk main 30
  tell main "visible 30 all"
  wait_until has_paths main 30 2
  namespace_remove main 30
  wait_until no_disk main 30
  detach main
}
step "hosts: a namespace for one of them only, changed under both" masked
