# What every part of the suite uses: running steps, checking outputs, finding devices. Sourced by main.sh.

failed=0
step_seconds=120
wait_seconds=30
step_log=/tmp/step.log

# step NAME COMMAND [ARG...]: runs COMMAND as one step of the suite in a subshell with errexit, prints its line. The trace
# of a step that fails is printed after it. A step that takes longer than step_seconds is killed and fails.
step() {
  local name=$1 start=$EPOCHREALTIME pid watchdog status elapsed
  shift
  dmesg -c >/dev/null
  set -m # a process group for each of the two, so that all of it can be killed
  : >"$step_log"
  (BASH_XTRACEFD=9; set -euxo pipefail; "$@") </dev/null >>"$step_log" 2>&1 9>&1 &
  pid=$!
  (sleep "$step_seconds"; echo "killed after $step_seconds s" >>"$step_log"; kill -9 -- "-$pid") &
  watchdog=$!
  set +m
  wait "$pid" 2>/dev/null
  status=$?
  kill -9 -- "-$watchdog" 2>/dev/null
  wait "$watchdog" 2>/dev/null
  elapsed=$(((${EPOCHREALTIME/./} - ${start/./}) / 100000))
  elapsed=$((elapsed / 10)).$((elapsed % 10))
  case $status in
  0) echo "PASS $name ($elapsed s)" ;;
  77) echo "SKIP $name: $(sed -n 's/^skip: //p' "$step_log")" ;;
  *)
    failed=$((failed + 1))
    echo "FAIL $name ($elapsed s)"
    tail -n 60 "$step_log" | cut -c -300 | sed 's/^/  | /'
    dmesg | tail -n 20 | sed 's/^/  kernel | /' ;;
  esac
}

skip() { echo "skip: $*"; exit 77; }
fail() { echo "failed: $*"; exit 1; }

# The guest kernel's own target is the yardstick of --self-check; where it is known to deviate from the specification
# (or lacks the feature) a step says so and is skipped.
nvmet_deviates() { [ "$TARGET" != nvmet ] || skip "the kernel's nvmet $*"; }

# Without trace, which would show the texts a second time.
is() { local -; set +x; [ "$1" = "$2" ] || fail "${3:-value} is '$1', expected '$2'"; }
like() { local -; set +x; [[ $1 =~ $2 ]] || fail "no match for '$2' in: $1"; }

# says PATTERN COMMAND...: COMMAND must succeed and say PATTERN.
says() {
  local pattern=$1 output
  shift
  output=$("$@" 2>&1) || fail "status $? from $*: $output"
  like "$output" "$pattern"
}

# refused PATTERN COMMAND...: COMMAND must fail and say PATTERN.
refused() {
  local pattern=$1 output
  shift
  if output=$("$@" 2>&1); then fail "succeeded: $*"; fi
  like "$output" "$pattern"
}

# wait_until COMMAND...: polls until COMMAND succeeds. The bound is far beyond what an idle machine needs.
wait_until() {
  local -
  set +x
  local deadline=$((${EPOCHREALTIME/./} + wait_seconds * 1000000))
  until "$@"; do
    [ "${EPOCHREALTIME/./}" -lt "$deadline" ] || fail "still not so: $*"
    sleep 0.05
  done
}

# field KEY: the value of a line `KEY : VALUE` of nvme-cli's output, or of `"KEY":VALUE` of its JSON, without quotes.
field() { sed -n "s/^[[:space:]]*\"\{0,1\}$1\"\{0,1\}[[:space:]]*:[[:space:]]*//p" | sed 's/,$//; s/^"\(.*\)"$/\1/; s/[[:space:]]*$//' | sed -n 1p; }

# ---- controllers and disks ------------------------------------------------------------------------------------------

nqn_of() { echo "nqn.2026-01.org.example:interop-$1"; }

# controllers NAME: the controllers (nvme0 ...) that are connected to the subsystem of target NAME.
controllers() {
  local -
  set +x
  local path nqn
  nqn=$(nqn_of "$1")
  for path in /sys/class/nvme/nvme*; do
    [ ! -e "$path" ] || [ "$(cat "$path/subsysnqn")" != "$nqn" ] || basename "$path"
  done
}

state_of() { cat "/sys/class/nvme/$1/state"; }
is_live() { [ "$(state_of "$1")" = live ]; }

# disk NAME NSID: the block device of that namespace; fails as long as there is none.
disk() {
  local -
  set +x
  local path nqn
  nqn=$(nqn_of "$1")
  for path in /sys/block/nvme*; do
    [ -e "$path/nsid" ] && [ "$(cat "$path/nsid")" = "$2" ] && [ "$(cat "$path/device/subsysnqn")" = "$nqn" ] || continue
    [ -b "/dev/${path##*/}" ] || continue
    echo "/dev/${path##*/}"
    return
  done
  return 1
}
# paths NAME NSID: the paths of that namespace's disk: nvme0c0n5 and nvme0c1n5 of nvme0n5.
paths() {
  local disk
  disk=$(disk "$1" "$2") || return
  basename -a $(compgen -G "/sys/block/$(basename "$disk" | sed 's/n\([0-9]*\)$/c*n\1/')")
}
has_paths() { [ "$(paths "$1" "$2" | wc -l)" = "$3" ]; }

has_disk() { disk "$@" >/dev/null; }
no_disk() { ! disk "$@" >/dev/null; }

# The host of /etc/nvme, for when nvme-cli would take another one's from a connection that there is; and another one.
this_host=(--hostnqn="$(cat /etc/nvme/hostnqn)" --hostid="$(cat /etc/nvme/hostid)")
other_host=(--hostnqn=nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002
  --hostid=00000000-0000-4000-8000-000000000002)

# nvme_connect NAME [OPTION...]: `nvme connect` and nothing more; sets controller.
nvme_connect() {
  local name=$1 output
  shift
  output=$(nvme connect -t tcp -a "$address" -s "$(io_port "$name")" -n "$(nqn_of "$name")" -o json "$@")
  controller=$(field device <<<"$output")
  like "$controller" '^nvme[0-9]+$'
}

# connect NAME [OPTION...]: connects and waits for the namespaces; sets controller.
connect() {
  nvme_connect "$@"
  wait_until is_live "$controller"
  local nsid
  for nsid in $(namespaces_of "$1"); do wait_until has_disk "$1" "$nsid"; done
}

# attach NAME: sets controller, connects with default options if nothing is connected.
attach() {
  controller=$(controllers "$1" | sed -n 1p)
  if [ -z "$controller" ]; then connect "$1"; else wait_until is_live "$controller"; fi
}

# detach NAME: disconnects every controller of the target and waits until the kernel has forgotten them.
detach() {
  [ -n "$(controllers "$1")" ] || return 0
  nvme disconnect -n "$(nqn_of "$1")"
  wait_until gone "$1"
}
gone() { [ -z "$(controllers "$1")" ]; }

# disk_of KIND: the disk of the main target's ram, file or loop namespace.
disk_of() {
  case $1 in
  ram) disk main 1 ;;
  file) disk main 2 ;;
  loop) disk main 3 ;;
  esac
}
need_kind() { [ "$1" != loop ] || [ -n "$LOOP" ] || skip "no loop device on this machine"; }

# ---- data -----------------------------------------------------------------------------------------------------------

random() { head -c "$1" /dev/urandom; }
zeroes() { head -c "$1" /dev/zero; }

# read_disk DISK OFFSET BYTES / write_disk DISK OFFSET: direct I/O, in MiB-sized commands, from and to stdin and stdout.
read_disk() { dd if="$1" bs=1M iflag=direct,skip_bytes,count_bytes skip="$2" count="$3" status=none; }
write_disk() { dd of="$1" bs=1M iflag=fullblock oflag=direct,seek_bytes seek="$2" conv=notrunc status=none; }

# data_survives DISK: what is written is what is read.
data_survives() {
  random 3M >/tmp/data
  write_disk "$1" 1048576 </tmp/data
  read_disk "$1" 1048576 3145728 | cmp - /tmp/data
}

# fio_verify OPTION...: fio writes with crc32c in every block, reads all of it back, and must have read what it wrote.
#
# The kernel's NVMe/TCP host sends from the submitting process without MSG_NOSIGNAL, so a connection that breaks can cost
# the process its life (SIGPIPE) although the I/O is repeated: fio ignores the signal.
fio_verify() {
  (trap '' PIPE
  exec fio --ioengine=libaio --direct=1 --rw=randwrite --verify=crc32c --verify_fatal=1 --group_reporting=1 \
    --output-format=json --output=/tmp/fio.json "$@") || fail "fio: $(grep -E '^fio|^verify|"error"' /tmp/fio.json)"
  is "$(field error </tmp/fio.json)" 0 "fio error"
  local reads writes _
  read -r reads writes _ <<<"$(sed -n 's/.*"total_ios" : \([0-9]*\),/\1/p' /tmp/fio.json | tr '\n' ' ')"
  [ "$writes" -gt 0 ] && [ "$reads" -ge "$writes" ] || fail "fio wrote $writes times and read $reads times"
}
