# Admin commands as nvme-cli sends them: identify, log pages, features, properties, and what must be refused

admin() { attach main; "$@"; }

listed() {
  local disk line
  disk=$(disk main 1)
  line=$(nvme list | grep "^$disk ")
  like "$line" '0x1 '
  like "$line" "335\.54  MB / 335\.54  MB    512   B \+  0 B"
  says "NQN=$(nqn_of main)" nvme list-subsys "$disk"
  says "$controller tcp traddr=$address,trsvcid=$(io_port main).* live" nvme list-subsys "$disk"
}
step "admin: nvme list, list-subsys" admin listed

id_ctrl() {
  local id
  id=$(nvme id-ctrl "/dev/$controller")
  is "$(field subnqn <<<"$id")" "$(nqn_of main)" SUBNQN
  is $(($(field cntlid <<<"$id"))) "$(cat "/sys/class/nvme/$controller/cntlid")" CNTLID
  is "$(field cntrltype <<<"$id")" 1 CNTRLTYPE
  is "$(field sqes <<<"$id")" 0x66 SQES
  is "$(field cqes <<<"$id")" 0x44 CQES
  is "$(field icdoff <<<"$id")" 0 ICDOFF
  [ "$(field ioccsz <<<"$id")" -ge 4 ] || fail "IOCCSZ below one SQE"
  [ "$(field kas <<<"$id")" -gt 0 ] || fail "no keep alive"
  [ "$(field maxcmd <<<"$id")" -gt 0 ] || fail "MAXCMD is 0"
  [ $(($(field sgls <<<"$id") & 1)) = 1 ] || fail "no SGLs"
  [ $(($(field oncs <<<"$id") & 0xc)) = 12 ] || fail "no Write Zeroes or no Dataset Management"
  [ $(($(field oaes <<<"$id") & 0x100)) = 256 ] || fail "no namespace attribute notices"
}
step "admin: id-ctrl" admin id_ctrl

# The sizes that Identify reports and those that the kernel made of them; an identifier that lasts.
id_ns() {
  need_kind "$1"
  local disk id descriptors
  disk=$(disk_of "$1")
  id=$(nvme id-ns "$disk")
  is $(($(field nsze <<<"$id") * $(blockdev --getss "$disk"))) "$(blockdev --getsize64 "$disk")" "bytes by NSZE"
  is "$(field ncap <<<"$id")" "$(field nsze <<<"$id")" NCAP
  descriptors=$(nvme ns-descs "$disk")
  like "$descriptors" '(uuid|nguid|eui64) *: [0-9a-f-]*[1-9a-f]'
  is "$(field csi <<<"$descriptors")" 0 CSI
}
for kind in ram file loop; do step "admin: id-ns, ns-descs ($kind)" admin id_ns $kind; done

list_ns() {
  local expected
  expected=$(printf '0x%x ' $(namespaces_of main))
  is "$(nvme list-ns "/dev/$controller" | sed -n 's/.*\]://p' | tr '\n' ' ')" "$expected" "active namespaces"
  is "$(nvme list-ns "/dev/$controller" -n 2 | sed -n 's/.*\]://p' | tr '\n' ' ')" "${expected#0x1 }" "those from NSID 2 on"
}
step "admin: list-ns" admin list_ns

# NVMe Base 2.1, SMART / Health Information: data units are thousands of 512-byte units, rounded up.
smart_counters() {
  local disk key value
  declare -A before after
  disk=$(disk main 1)
  while IFS=: read -r key value; do before[$key]=$value; done < <(smart)
  dd if=/dev/zero of="$disk" oflag=direct bs=51200 count=50 status=none
  dd if="$disk" of=/dev/null iflag=direct bs=51200 count=70 status=none
  while IFS=: read -r key value; do after[$key]=$value; done < <(smart)
  is $((after[data_units_written] - before[data_units_written])) 5 "data units written by 5000 sectors"
  is $((after[data_units_read] - before[data_units_read])) 7 "data units read by 7000 sectors"
  is $((after[host_write_commands] - before[host_write_commands])) 50 "writes counted"
  is $((after[host_read_commands] - before[host_read_commands])) 70 "reads counted"
  is "${after[critical_warning]}" 0 "critical warning"
}
smart() { nvme smart-log "/dev/$controller" -o json | sed -n 's/^ *"\([a-z_0-9]*\)":\([0-9]*\),*$/\1:\2/p'; }
step "admin: smart-log counts what was read and written" admin smart_counters

log_pages() {
  says "Error Log Entries for device:$controller entries:1" nvme error-log "/dev/$controller" -e 1
  says "Firmware Log for device:$controller" nvme fw-log "/dev/$controller"
  says "no ns changed" nvme changed-ns-list-log "/dev/$controller"
  local effects
  effects=$(nvme effects-log "/dev/$controller" --csi=0)
  like "$effects" 'Identify *\] [0-9a-f]*1'
  like "$effects" 'Flush *\] [0-9a-f]*1'
  like "$effects" 'Read *\] [0-9a-f]*1'
  like "$effects" 'Write *\] [0-9a-f]*3'
  like "$effects" 'Write Zeroes *\] [0-9a-f]*3'
  like "$effects" 'Dataset Management *\] [0-9a-f]*[13]'
}
step "admin: error-log, fw-log, changed-ns-list-log, effects-log" admin log_pages

supported_log_pages() {
  nvmet_deviates "has no such log page"
  local pages
  # Optional before NVMe 2.0; whoever has it lists itself and the mandatory ones.
  if pages=$(nvme supported-log-pages "/dev/$controller" 2>&1); then
    like "$pages" 'LID 0 '
    like "$pages" 'LID 0x1 '
    like "$pages" 'LID 0x2 '
    like "$pages" 'LID 0x3 '
  else
    like "$pages" 'Invalid (Log Page|Field in Command)'
  fi
}
step "admin: supported-log-pages" admin supported_log_pages

get_feature() { nvme get-feature "/dev/$controller" "$@"; }
feature_value() { get_feature -f "$1" | sed -n 's/.*value: *//p'; }

features() {
  says 'Volatile Write Cache Enable \(WCE\): (Enabled|Disabled)' get_feature -f 6 -H
  local queues
  queues=$(($(feature_value 7)))
  [ $((queues & 0xffff)) -ge 1 ] && [ $((queues >> 16)) -ge 1 ] || fail "fewer than two I/O queue pairs"
  says 'Namespace Attribute Notices *: Send async event' get_feature -f 0xb -H
  is $(($(feature_value 0xf))) 5000 "KATO in ms"
}
step "admin: get-feature 06h 07h 0Bh 0Fh" admin features

host_identifier() {
  is "$(get_feature -f 0x81 --cdw11=1 --data-len=16 -b | od -An -v -tx1 | tr -d ' \n')" \
    "$(tr -d '-' </etc/nvme/hostid)" "host identifier"
}
step "admin: get-feature 81h is the host identifier of Connect" admin host_identifier

set_keep_alive() {
  says 'Keep Alive Timer' nvme set-feature "/dev/$controller" -f 0xf -V 20000
  is $(($(feature_value 0xf))) 20000 "KATO in ms"
  nvme set-feature "/dev/$controller" -f 0xf -V 5000
  is $(($(feature_value 0xf))) 5000 "KATO in ms"
}
step "admin: set-feature of the keep alive timer" admin set_keep_alive

properties() {
  local registers
  registers=$(nvme show-regs "/dev/$controller")
  [ $(($(field cap <<<"$registers") & 0xffff)) -ge 15 ] || fail "MQES below 16"
  is $(($(field csts <<<"$registers") & 1)) 1 CSTS.RDY
  is $(($(field cc <<<"$registers") & 1)) 1 CC.EN
  like "$(field version <<<"$registers")" '^0x[12]0[0-9]00$'
  says 'Ready *\(RDY\): Yes' nvme get-property "/dev/$controller" --offset=0x1c -H
}
step "admin: show-regs, get-property" admin properties

refusals() {
  refused 'Invalid Field' nvme get-property "/dev/$controller" --offset=0x4c
  refused 'Invalid Field' get_feature -f 0x99
  refused 'Invalid Field' nvme admin-passthru "/dev/$controller" --opcode=0x06 --cdw10=0xee --data-len=4096 -r
  refused 'Invalid (Namespace or Format|Field)' nvme ns-descs "/dev/$controller" -n 77
}
step "admin: invalid fields and namespaces" admin refusals

refusals_nvmet_lacks() {
  nvmet_deviates "answers Invalid Field, or an empty Identify Namespace"
  refused 'Invalid Namespace or Format' nvme id-ns "/dev/$controller" -n 0xfffffffe
  refused 'Invalid Command Opcode' nvme admin-passthru "/dev/$controller" --opcode=0xc5
  refused 'Invalid Log Page' nvme get-log "/dev/$controller" --log-id=0x4c --log-len=512
}
step "admin: invalid opcode, log page, NSID" admin refusals_nvmet_lacks
