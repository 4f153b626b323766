# The discovery service, on its own port and on the I/O port, once and persistently; changes, referrals, own NQN; connect-all

discovery_log() { # OPTION... that say where to ask
  local log entry
  log=$(nvme discover "$@" -o json)
  # The one record of the subsystem: from its `{` to its `}`.
  entry=$(tr -d '\n' <<<"$log" | grep -o '{[^{}]*}' | grep "\"$(nqn_of main)\"")
  entry=$(tr ',' '\n' <<<"$entry" | tr -d '{}')
  is "$(grep -c . <<<"$(grep subnqn <<<"$entry")")" 1 "entries of the subsystem"
  is "$(field trtype <<<"$entry")" tcp "transport type"
  is "$(field adrfam <<<"$entry")" ipv4 "address family"
  is "$(field subtype <<<"$entry")" "nvme subsystem" "subsystem type"
  is "$(field trsvcid <<<"$entry")" "$(io_port main)" "transport service ID"
  is "$(field traddr <<<"$entry")" 127.0.0.1 "transport address"
}
step "discover: log on the discovery port" discovery_log -t tcp -a "$address" -s "$(discovery_port main)"
step "discover: log on the I/O port" discovery_log -t tcp -a "$address" -s "$(io_port main)"

persistent() {
  local device
  device=$(nvme connect -t tcp -a "$address" -s "$(discovery_port main)" -n nqn.2014-08.org.nvmexpress.discovery \
    --keep-alive-tmo=2 -o json | field device)
  is "$(nvme id-ctrl "/dev/$device" | field cntrltype)" 2 "controller type"
  discovery_log -d "$device"
  sleep 5
  is "$(state_of "$device")" live "state after two idle timeouts"
  discovery_log -d "$device"
  nvme disconnect -d "$device"
}
step "discover: a persistent discovery controller" persistent

banner_shows_commands() {
  nvmet_deviates "prints nothing"
  local banner
  banner=$(control banner main)
  like "$banner" "nvme discover .*-t tcp .*-s $(discovery_port main)"
  like "$banner" "nvme connect .*-t tcp .*-s $(io_port main).*-n $(nqn_of main)"
}
step "discover: nvmfd prints the commands that reach it" banner_shows_commands

# The log names 127.0.0.1, where nvmfd listens; a forwarder makes that true in the guest. What is in background ends with
# the step.
forward() { # PORT
  [ "$TARGET" = nvmfd ] || return 0
  socat "TCP-LISTEN:$1,bind=127.0.0.1,reuseaddr,fork" "TCP:$address:$1" 2>/dev/null &
  background+=($!)
  trap 'kill "${background[@]}"' EXIT
}
background=()

connect_all() {
  detach main
  forward "$(io_port main)"
  nvme connect-all -t tcp -a "$address" -s "$(discovery_port main)"
  local connected
  connected=$(controllers main)
  is "$(wc -w <<<"$connected")" 1 "number of controllers"
  wait_until is_live "$connected"
  says "NQN=$(nqn_of main)" nvme list-subsys
  wait_until has_disk main 1
  data_survives "$(disk main 1)"
  detach main
}
step "discover: connect-all" connect_all

# The discovery controllers (nvme0 ...) that are connected.
discovery_controllers() {
  local path
  for path in /sys/class/nvme/nvme*; do
    [ ! -e "$path" ] || [ "$(cat "$path/cntrltype")" != discovery ] || basename "$path"
  done
}
# The kernel passes the event on to udev, whose rule would run connect-all again. 70f002h: notice, Discovery Log Page Change,
# log page 70h.
listen_to_events() { # DISCOVERY-CONTROLLER
  : >/tmp/uevents
  uevent env >>/tmp/uevents &
  background+=($!)
  wait_until hears "$1"
}
hears() { # provokes an event of the device itself
  echo change >"/sys/class/nvme/$1/uevent"
  grep -q '^ACTION=change$' /tmp/uevents
}
told_of_change() { grep -q '^NVME_AEN=0x70f002$' /tmp/uevents; }

persistent_changes() {
  nvmet_deviates "has no such commands"
  detach main
  forward "$(io_port main)"
  forward "$(spare_port main)"
  nvme connect-all -t tcp -a "$address" -s "$(discovery_port main)" --persistent
  local device
  device=$(discovery_controllers)
  is "$(wc -w <<<"$device")" 1 "number of discovery controllers"
  [ $(($(cat "/sys/class/nvme/$device/kato"))) -gt 0 ] || fail "no keep alive"
  wait_until has_disk main 1
  is "$(controllers main | wc -w)" 1 "number of controllers"

  listen_to_events "$device"
  tell main "listen 127.0.0.1:$(spare_port main)"
  wait_until told_of_change
  nvme connect-all -d "$device"
  is "$(controllers main | wc -w)" 2 "number of controllers"

  : >/tmp/uevents
  tell main "refer 192.0.2.9:8009"
  wait_until told_of_change
  local log
  log=$(nvme discover -d "$device")
  like "$log" 'subtype: discovery subsystem referral.*traddr: *192\.0\.2\.9'

  : >/tmp/uevents
  tell main "unrefer 192.0.2.9:8009"
  wait_until told_of_change
  if nvme discover -d "$device" | grep referral; then fail "still referred"; fi

  # What does not concern the log says nothing.
  : >/tmp/uevents
  namespace_add main 40 ram:16
  wait_until has_disk main 40
  namespace_remove main 40
  wait_until no_disk main 40
  if told_of_change; then fail "an event without a change"; fi
  tell main "unlisten 127.0.0.1:$(spare_port main)"
  nvme disconnect -d "$device"
  detach main
}
step "discover: connect-all --persistent; a new port and a referral are told by events" persistent_changes

own_nqn() {
  target_start discovery --discovery-nqn=nqn.2026-01.org.example:discovery --command='refer 192.0.2.9:8009' ram:16
  local log device
  log=$(nvme discover -t tcp -a "$address" -s "$(discovery_port discovery)")
  like "$log" 'subtype: current discovery subsystem.*subnqn: *nqn.2026-01.org.example:discovery'
  like "$log" "subnqn: *$(nqn_of discovery)"
  like "$log" 'subtype: discovery subsystem referral.*traddr: *192\.0\.2\.9'
  says "subnqn: *$(nqn_of discovery)" nvme discover -t tcp -a "$address" -s "$(discovery_port discovery)" \
    -n nqn.2026-01.org.example:discovery --persistent
  device=$(discovery_controllers)
  is "$(cat "/sys/class/nvme/$device/subsysnqn")" nqn.2026-01.org.example:discovery "the subsystem's name"
  is "$(nvme id-ctrl "/dev/$device" | field subnqn)" nqn.2026-01.org.example:discovery SUBNQN
  nvme disconnect -d "$device"
}
step "discover: a discovery subsystem with its own NQN, and a referral" own_nqn

unknown_subsystem() {
  refused "could not add new controller" \
    nvme connect -t tcp -a "$address" -s "$(io_port main)" -n nqn.2026-01.org.example:nothing-here
  like "$(dmesg)" 'Connect Invalid Data Parameter, subsysnqn "nqn.2026-01.org.example:nothing-here"'
}
step "discover: an unknown subsystem is refused by its name" unknown_subsystem
