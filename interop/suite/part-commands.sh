# Every subcommand of nvme-cli once: what it shows, or the status with which it is refused

# Notes what is run, for the last step.
nvme() { echo "$1" >>/tmp/subcommands; command nvme "$@"; }
: >/tmp/subcommands

commands() { # FUNCTION, which finds the controller in c, a namespace's disk in d
  attach main
  c=/dev/$controller
  d=$(disk main 1)
  random 4096 >/tmp/data
  "$1"
}

# all_refused STATUS: each line of the input is a command, which must fail with STATUS.
all_refused() {
  local words
  while read -r -a words; do refused "$1" nvme "${words[@]}"; done
}

lists() {
  says "$d .* 0x1 .*512   B" nvme list
  says "$(nqn_of main) .*$controller" nvme list -v
  says "$controller tcp traddr=$address,trsvcid=$(io_port main).* live" nvme list-subsys "$d"
  says "ns 1.*$controller tcp .* live" nvme show-topology "$d"
  says "$controller.*ns 3 " nvme show-topology "$c" -r ctrl
  says "$(basename "$d"): namespace-id:1" nvme get-ns-id "$d"
}
step "commands: list, list-subsys, show-topology, get-ns-id" commands lists

identify() {
  says "subnqn *: $(nqn_of main)" nvme id-ctrl "$c" -H
  says 'in use' nvme id-ns "$d" -H
  says '\[   0\]:0x1' nvme list-ns "$c"
  says 'uuid *: [0-9a-f]{8}-' nvme ns-descs "$d"
  says 'dmrl *: ' nvme nvm-id-ctrl "$c"
}
step "commands: id-ctrl, id-ns, list-ns, ns-descs, nvm-id-ctrl" commands identify

identify_nvmet_lacks() {
  nvmet_deviates "lacks them"
  says 'elbaf  0 : qpif:0 pif:0 sts:0 *\(in use\)' nvme nvm-id-ns "$d"
  says 'nstat *: 0x1' nvme cmdset-ind-id-ns "$d"
  says 'Combination\[0\]:1' nvme id-iocs "$c"
  says '\[   2\]:0x3' nvme list-ns "$c" -a
  local cntlid
  cntlid=$(printf 0x%x "$(cat "/sys/class/nvme/$controller/cntlid")")
  says "\[   0\]:$cntlid" nvme list-ctrl "$c"
  says "\[   0\]:$cntlid" nvme list-ctrl "$c" -n 1
}
step "commands: nvm-id-ns, cmdset-ind-id-ns, id-iocs, list-ns -a, list-ctrl" commands identify_nvmet_lacks

identify_refused() {
  nvmet_deviates "answers some of them"
  all_refused 'Invalid Field in Command' <<-LIST
	id-ns-granularity $c
	id-ns-lba-format $c -i 0
	nvm-id-ns-lba-format $c -i 0
	primary-ctrl-caps $c
	list-secondary $c
	id-nvmset $c
	id-uuid $c
	id-domain $c
	list-endgrp $c
	LIST
}
step "commands: Identify data that is not there" commands identify_refused

logs() {
  says 'Device:.* log-id:2 ' nvme get-log "$c" -i 2 -l 512
  says 'temperature' nvme smart-log "$c"
  says 'error_count' nvme error-log "$c"
  says 'afi *: ' nvme fw-log "$c"
  says 'no ns changed' nvme changed-ns-list-log "$c"
  says 'Identify *\]' nvme effects-log "$c"
  says 'state.*optimized' nvme ana-log "$c"
}
step "commands: get-log, smart-log, error-log, fw-log, changed-ns-list-log, effects-log, ana-log" commands logs

logs_nvmet_lacks() {
  nvmet_deviates "lacks them"
  says 'LID 0x12 ' nvme supported-log-pages "$c"
  says 'FID 0f -> Support Effects Log: 00[0-9a-f]{5}1' nvme fid-support-effects-log "$c"
  says 'MI Commands Support Effects Log' nvme mi-cmd-support-effects-log "$c"
}
step "commands: supported-log-pages, fid-support-effects-log, mi-cmd-support-effects-log" commands logs_nvmet_lacks

logs_refused() {
  nvmet_deviates "answers Invalid Field"
  all_refused 'Invalid Log Page' <<-LIST
	endurance-log $c -g 1
	predictable-lat-log $c -i 1
	pred-lat-event-agg-log $c -e 1
	endurance-event-agg-log $c -e 1
	lba-status-log $c
	boot-part-log $c -f /tmp/partition
	phy-rx-eom-log $c -s 0 -c 0
	self-test-log $c
	sanitize-log $c
	media-unit-stat-log $c
	supported-cap-config-log $c
	mgmt-addr-list-log $c
	rotational-media-info-log $c
	changed-alloc-ns-list-log $c
	dispersed-ns-participating-nss-log $c -n 1
	reachability-groups-log $c
	reachability-associations-log $c
	host-discovery-log $c
	ave-discovery-log $c
	pull-model-ddc-req-log $c
	LIST
  # It looks into LPA first.
  refused 'No such device or address' nvme telemetry-log "$c" -O /tmp/telemetry
}
step "commands: log pages that are not there" commands logs_refused

# Action 0 reads a context that action 1 established and action 2 releases.
persistent_events() {
  nvmet_deviates "lacks it"
  refused 'Command Sequence Error' nvme persistent-event-log "$c" -a 0
  says 'Establishing Persistent Event Log Context' nvme persistent-event-log "$c" -a 1
  says 'Total Number of Events.*Event Number: 0' nvme persistent-event-log "$c" -a 0
  says 'Releasing Persistent Event Log Context' nvme persistent-event-log "$c" -a 2
}
step "commands: persistent-event-log" commands persistent_events

# A log page is there if page 00h lists it, and answered with Invalid Log Page if not.
every_log_page() {
  nvmet_deviates "lacks page 00h"
  local listed lid answer
  listed=$(nvme supported-log-pages "$c" | sed -n 's/^LID 0x\([0-9a-f]*\) .*/\1/p; s/^LID \([0-9]\) .*/\1/p')
  for lid in $(seq 0 34) 112 113 114 115 128 129 192 255; do
    answer=$(nvme get-log "$c" -i "$lid" -l 4 2>&1 || :)
    if grep -q -x "$(printf %x "$lid")" <<<"$listed"; then
      case $answer in *'Invalid Log Page'*) fail "log page $lid is listed and not there" ;; esac
    else
      like "$answer" 'Invalid Log Page'
    fi
  done
}
step "commands: get-log of every LID agrees with supported-log-pages" commands every_log_page

# Likewise features, and page 12h.
every_feature() {
  nvmet_deviates "lacks page 12h"
  local listed fid answer
  listed=$(nvme fid-support-effects-log "$c" | sed -n 's/^FID \([0-9a-f]*\) ->.*/\1/p')
  for fid in $(seq 1 37) $(seq 120 136) 192; do
    answer=$(nvme get-feature "$c" -f "$fid" -n 1 --cdw11=1 --data-len=$(feature_bytes "$fid") 2>&1 || :)
    if grep -q -x "$(printf %02x "$fid")" <<<"$listed"; then
      like "$answer" "get-feature:$(printf 0x%02x "$fid") .*Current value"
    else
      like "$answer" 'Invalid Field in Command'
    fi
  done
}
feature_bytes() { # FID
  case $1 in
  14) echo 8 ;; # Timestamp
  22) echo 512 ;; # Host Behavior Support
  129) echo 16 ;; # Host Identifier
  *) echo 0 ;;
  esac
}
step "commands: get-feature of every FID agrees with fid-support-effects-log" commands every_feature

set_features() {
  nvmet_deviates "has fewer features"
  says 'Keep Alive Timer' nvme set-feature "$c" -f 0xf -V 5000
  refused 'Invalid Field in Command' nvme set-feature "$c" -f 0x78 -V 0
  refused 'Feature Not Changeable' nvme set-feature "$c" -f 1 -V 0
  refused 'Not Saveable' nvme set-feature "$c" -f 0xf -V 5000 -s
  # Without -f, all that there are; the status is that of the last one tried.
  like "$(nvme get-feature "$c" -s 1 -n 1 2>&1 || :)" 'Arbitration.*Keep Alive Timer'
}
step "commands: set-feature" commands set_features

properties() {
  local cc
  cc=$(nvme get-property "$c" --offset=0x14 | sed 's/.*value: //')
  says 'Command Set Selected|Enable *\(EN\): Yes' nvme show-regs "$c" -H
  # It shows garbage in the upper half.
  says "Controller Configuration.*0x[0-9a-f]*${cc#0x}" nvme set-property "$c" --offset=0x14 --value="$cc"
  says "value: $cc" nvme set-reg "$c" --cc="$cc"
  says "value: 0x[0-9a-f]+" nvme get-reg "$c" --cap
  is_live "$controller"
}
step "commands: show-regs, get-property, set-property, get-reg, set-reg" commands properties

io() {
  says Success nvme write "$d" -s 0 -c 7 -z 4096 -d /tmp/data
  says Success nvme read "$d" -s 0 -c 7 -z 4096 -d /tmp/back
  cmp /tmp/data /tmp/back
  says success nvme flush "$d"
  says Success nvme write-zeroes "$d" -s 0 -c 7
  says success nvme dsm "$d" -d -s 0 -b 8
  read_disk "$d" 0 4096 | cmp -n 4096 - /dev/zero
  says 'Flush is Success' nvme io-passthru "$d" --opcode=0 --namespace-id=1
  says 'Identify is Success' nvme admin-passthru "$c" --opcode=6 --cdw10=1 --data-len=4096 -r
}
step "commands: read, write, flush, write-zeroes, dsm, io-passthru, admin-passthru" commands io

io_nvmet_lacks() {
  nvmet_deviates "lacks them"
  says Success nvme write "$d" -s 0 -c 7 -z 4096 -d /tmp/data
  says Success nvme compare "$d" -s 0 -c 7 -z 4096 -d /tmp/data
  says Success nvme write-zeroes "$d" -s 7 -c 0
  refused 'Compare Failure' nvme compare "$d" -s 0 -c 7 -z 4096 -d /tmp/data
  says Success nvme compare "$d" -s 0 -c 6 -z 3584 -d /tmp/data
  says Success nvme verify "$d" -s 0 -c 7
  refused 'LBA Out of Range' nvme verify "$d" -s $(($(blockdev --getsz "$d") - 1)) -c 1
}
step "commands: compare, verify" commands io_nvmet_lacks

# Two ranges, of two blocks and one, to block 100 and on.
copies() {
  nvmet_deviates "lacks it"
  write_disk "$d" 0 </tmp/data
  says success nvme copy "$d" -d 100 -s 0,6 -b 1,0
  read_disk "$d" 51200 1536 | cmp - <(head -c 1024 /tmp/data; tail -c +3073 /tmp/data | head -c 512)
}
step "commands: copy" commands copies

# Blocks that are marked cannot be read until they are written.
write_uncorrectable() {
  nvmet_deviates "lacks it"
  write_disk "$d" 0 </tmp/data
  says Success nvme write-uncor "$d" -s 2 -c 1
  refused 'Unrecovered Read Error' nvme read "$d" -s 0 -c 3 -z 2048 -d /tmp/back
  says Success nvme read "$d" -s 0 -c 1 -z 1024 -d /tmp/back
  refused 'Unrecovered Read Error' nvme verify "$d" -s 3 -c 0
  says Success nvme write-zeroes "$d" -s 2 -c 1
  says Success nvme read "$d" -s 0 -c 3 -z 2048 -d /tmp/back
}
step "commands: write-uncor" commands write_uncorrectable

reservations() {
  nvmet_deviates "lacks them"
  says success nvme resv-register "$d" -n 1 -k 0xabc -r 0
  says success nvme resv-acquire "$d" -n 1 -c 0xabc -t 1 -a 0
  says 'rtype *: 1.*regctl *: 1.*rkey *: abc' nvme resv-report "$d" -n 1 -e
  refused 'Host Identifier Inconsistent Format' nvme io-passthru "$d" --opcode=0x0e -n 1 --cdw10=15 -l 64 -r
  says success nvme resv-release "$d" -n 1 -c 0xabc -t 1 -a 0
  says success nvme resv-register "$d" -n 1 -c 0xabc -r 1
  says 'rtype *: 0.*regctl *: 0' nvme resv-report "$d" -n 1 -e
  says 'Reservation Notif' nvme resv-notif-log "$c"
}
step "commands: resv-register, resv-acquire, resv-report, resv-release, resv-notif-log" commands reservations

unsupported() {
  nvmet_deviates "answers Invalid Field to some of them"
  all_refused 'Invalid Command Opcode' <<-LIST
	create-ns $c --nsze=2048 --ncap=2048 --flbas=0
	delete-ns $c -n 1
	attach-ns $c -n 1 -c 1
	detach-ns $c -n 1 -c 1
	format $d --force
	sanitize $c -a 2
	fw-download $c -f /tmp/data
	fw-commit $c -s 1 -a 1
	device-self-test $c -s 1
	security-send $c -f /tmp/data -p 1 -s 1 -t 512
	security-recv $c -p 0 -x 512
	get-lba-status $d -s 0 -m 64 -a 0x10 -l 8
	capacity-mgmt $c -O 0 -i 1
	dir-receive $c -D 0 -O 1 -H
	dir-send $c -D 0 -O 1 -n 1 -e 1 -T 1
	virt-mgmt $c -c 1 -a 7
	lockdown $c -O 6 -f 0
	nvme-mi-recv $c -O 0 -l 4096
	nvme-mi-send $c -O 0
	io-mgmt-recv $d --mo=1 --data-len=4096
	io-mgmt-send $d --mo=1
	LIST
  says 'No RPMB targets' nvme rpmb "$c" -c info
  data_survives "$d"
}
step "commands: commands that are not there" commands unsupported

resets() {
  nvme reset "$c"
  wait_until is_live "$controller"
  refused 'NVM Subsystem Reset not supported' nvme subsystem-reset "$c"
  nvme ns-rescan "$c"
  data_survives "$d"
}
step "commands: reset, subsystem-reset, ns-rescan" commands resets

# It ends the controllers of all hosts, which come back by themselves. By the property, for the kernel's own way waits a
# minute for an answer from the controller that it has just reset.
subsystem_reset() {
  target_start resettable --subsystem-reset ram:16
  connect resettable --reconnect-delay=1
  local first=$controller
  connect resettable --reconnect-delay=1 "${other_host[@]}"
  nvme set-property "/dev/$first" --offset=0x20 --value=0x4e564d65
  wait_until both_reset "$first" "$controller"
  wait_until is_live "$first"
  wait_until is_live "$controller"
  data_survives "$(disk resettable 1)"
  detach resettable
}
both_reset() { [ "$(dmesg | grep -c "$1: creating")" = 2 ] && [ "$(dmesg | grep -c "$2: creating")" = 2 ]; }
step "commands: subsystem-reset where it is allowed" subsystem_reset

fabrics() {
  like "$(nvme gen-hostnqn)" '^nqn.2014-08.org.nvmexpress:uuid:[0-9a-f-]{36}$'
  is "$(nvme show-hostnqn)" "$(cat /etc/nvme/hostnqn)" "host NQN"
  says "\"nqn\":\"$(nqn_of main)\"" nvme config --scan --dump
  nvme disconnect -d "$controller"
  wait_until gone main
  says 'subnqn: ' nvme discover -t tcp -a "$address" -s "$(discovery_port main)"
  says 'connecting to device: nvme' \
    nvme connect -t tcp -a "$address" -s "$(io_port main)" -n "$(nqn_of main)" --keep-alive-tmo=5
  nvme disconnect-all
  wait_until gone main
}
step "commands: gen-hostnqn, show-hostnqn, config, discover, connect, disconnect, disconnect-all" commands fabrics

# Registration with a discovery service is a matter of centralised ones.
dim() {
  nvmet_deviates "answers in its own way"
  local device
  device=$(nvme connect -t tcp -a "$address" -s "$(discovery_port main)" -n nqn.2014-08.org.nvmexpress.discovery -o json |
    field device)
  refused 'Invalid Command Opcode|not supported' nvme dim -t register -d "$device"
  nvme disconnect -d "$device"
}
step "commands: dim" commands dim

# What works on keys and says nothing to a target, and what other parts show (connect-all needs a forwarder).
elsewhere='gen-dhchap-key check-dhchap-key gen-tls-key check-tls-key tls-key connect-all version help'

complete() {
  nvmet_deviates "leaves some out"
  local left
  left=$(command nvme help 2>&1 | sed -n '/implemented sub-commands/,/^See/s/^  \([a-z-]\+\)  .*/\1/p' |
    grep -v -x -F -f <(sort -u /tmp/subcommands; tr ' ' '\n' <<<"$elsewhere") || :)
  is "$left" "" "subcommands left out"
}
step "commands: none is left out" complete
unset -f nvme
