# The discovery service, on its own port and on the I/O port, once and persistently; connect-all; unknown subsystems

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

connect_all() {
  # The log names 127.0.0.1, where nvmfd listens; a forwarder makes that true in the guest.
  if [ "$TARGET" = nvmfd ]; then
    socat "TCP-LISTEN:$(io_port main),bind=127.0.0.1,reuseaddr,fork" "TCP:$address:$(io_port main)" &
    trap "kill $!" EXIT
  fi
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

unknown_subsystem() {
  refused "could not add new controller" \
    nvme connect -t tcp -a "$address" -s "$(io_port main)" -n nqn.2026-01.org.example:nothing-here
  like "$(dmesg)" 'Connect Invalid Data Parameter, subsysnqn "nqn.2026-01.org.example:nothing-here"'
}
step "discover: an unknown subsystem is refused by its name" unknown_subsystem
