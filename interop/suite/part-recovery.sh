# Controller resets, and a target that is killed or stopped and comes back, all under verified I/O

# Loads the disks with a write phase of some seconds and a verify phase after it; `loaded` waits for its good end.
load() { # OPTION...
  fio_verify --bs=4k --size=8m --iodepth=8 --rate_iops=400 "$@" &
  fio=$!
  sleep 1
}
loaded() { wait "$fio"; }

# A loop device and a file outlive the target; what its RAM held ends with it.
lasting_disks() {
  local kinds=(file)
  [ -z "$LOOP" ] || kinds+=(loop)
  for kind in "${kinds[@]}"; do echo "--name=$kind --filename=$(disk_of "$kind")"; done
}

reset_under_load() {
  attach main
  local i
  load --name=ram --filename="$(disk_of ram)" $(lasting_disks)
  for i in 1 2 3; do
    nvme reset "/dev/$controller"
    wait_until is_live "$controller"
    sleep 0.5
  done
  loaded
  is "$(controllers main)" "$controller" controllers
}
step "recovery: controller reset under load" reset_under_load

# Two controllers that are reset again and again, one as soon as it is back.
reset_storm() {
  detach main
  connect main
  local first=$controller i
  connect main --duplicate-connect
  load --name=ram --filename="$(disk_of ram)" $(lasting_disks)
  for i in 1 2 3 4 5 6; do nvme reset "/dev/$first"; done &
  for i in 1 2 3 4 5 6; do nvme reset "/dev/$controller"; done
  wait $!
  wait_until is_live "$first"
  wait_until is_live "$controller"
  loaded
  detach main
}
step "recovery: a storm of resets on two controllers under load" reset_storm

connect_for_recovery() {
  detach main
  connect main --reconnect-delay=1 --ctrl-loss-tmo=30 "$@"
}
is_lost() { ! is_live "$controller"; }

killed() { # CONNECT-OPTION...
  connect_for_recovery "$@"
  load $(lasting_disks)
  target_kill main
  wait_until is_lost
  sleep 1
  target_restart main
  wait_until is_live "$controller"
  loaded
  local nsid
  for nsid in $(namespaces_of main); do has_disk main "$nsid"; done
}
step "recovery: target killed and restarted under load" killed
step "recovery: the same with digests" killed --hdr-digest --data-digest

stopped() {
  connect_for_recovery
  load $(lasting_disks)
  target_stop main
  wait_until is_lost
  sleep 1
  target_restart main
  wait_until is_live "$controller"
  loaded
}
step "recovery: target stopped by SIGTERM and restarted under load" stopped

same_identity() {
  attach main
  local before after
  before=$(identity)
  detach main
  target_stop main
  target_restart main
  connect main
  after=$(identity)
  is "$after" "$before" "identifiers of the namespaces"
}
identity() { local nsid; for nsid in $(namespaces_of main); do nvme ns-descs "$(disk main "$nsid")"; done; }
step "recovery: the namespaces keep their identity over a restart" same_identity

given_up() {
  detach main
  connect main --reconnect-delay=1 --ctrl-loss-tmo=2
  local disk
  disk=$(disk main 1)
  target_kill main
  wait_until gone main
  refused . dd if="$disk" of=/dev/null iflag=direct bs=4k count=1
  target_restart main
  connect main
  data_survives "$(disk main 1)"
}
step "recovery: a host that gave up can connect again" given_up
