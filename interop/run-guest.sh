#!/bin/bash
# run-guest.sh [options] SCRIPT [SECONDS]: boots the guest, runs SCRIPT in it, streams its console, exits with its status.
#   -f FILE         put FILE (or folder) into the guest's /suite; may be repeated
#   -e NAME=VALUE   set a variable for SCRIPT; may be repeated
#   -c N            virtual CPUs (default 2)
#   -m MIB          memory (default 1536)
#   -v              kernel messages on the console
# SECONDS bounds the whole run (default 300); at its end the status is 124. 125: the guest ended without a status.
# The guest is 10.0.2.15 and has no route but to 10.0.2.2, which is this machine's 127.0.0.1.
set -u
here=$(cd "$(dirname "$0")" && pwd)
kit=$here/guest cpus=2 memory=1536 verbose=''
files=() variables=()
while getopts f:e:c:m:v option; do
  case $option in
  f) files+=("$OPTARG") ;; e) variables+=("$OPTARG") ;; c) cpus=$OPTARG ;; m) memory=$OPTARG ;; v) verbose=1 ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 125 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] && [ -r "$1" ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 125; }
script=$1 limit=${2:-300}
[ -s "$kit/base.cpio" ] || { echo "run-guest: no guest kit: run mkguest.sh" >&2; exit 125; }

tmp=$(mktemp -d "${TMPDIR:-/tmp}/run-guest.XXXXXX")
guest=''
trap '[ -z "$guest" ] || kill "$guest"; rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

# The kernel unpacks concatenated archives one over the other: the kit's, then one with the script and its files.
mkdir -p "$tmp/add/suite"
for file in "${files[@]}"; do cp -aL -- "$file" "$tmp/add/suite/" || exit 125; done
install -m 755 -- "$script" "$tmp/add/suite/script"
for variable in "${variables[@]}"; do printf 'export %s=%q\n' "${variable%%=*}" "${variable#*=}"; done >"$tmp/add/suite/environment"
(cd "$tmp/add" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) >"$tmp/add.cpio"
cat "$kit/base.cpio" "$tmp/add.cpio" >"$tmp/initrd"

# The nonce keeps what a test prints from passing for the guest's own start and exit lines.
nonce=$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
append="console=ttyS0 panic=-1 nokaslr mitigations=off nopti cryptomgr.notests tsc=reliable no_timer_check 8250.nr_uarts=1"
append+=" lsm= audit=0 nowatchdog rcupdate.rcu_expedited=1 random.trust_cpu=on rdinit=/init guest.nonce=$nonce"
[ -n "$verbose" ] || append+=" quiet loglevel=1"
kernel=$kit/vmlinux
[ -s "$kernel" ] || kernel=$kit/vmlinuz

mkfifo "$tmp/console"
timeout -k 3 "$limit" \
  qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp "$cpus" -m "$memory" -nodefaults -no-user-config \
  -display none -no-reboot -chardev stdio,id=console,signal=off -serial chardev:console \
  -netdev user,id=net,ipv6=off -device virtio-net-pci,netdev=net,romfile= \
  -kernel "$kernel" -initrd "$tmp/initrd" -append "$append" </dev/null >"$tmp/console" 2>&1 &
guest=$!

status=''
while IFS= read -r line || [ -n "$line" ]; do
  line=${line%$'\r'}
  case $line in
  *"@@GUEST $nonce start"*) ;;
  *"@@GUEST $nonce exit "*)
    before=${line%%@@GUEST*}
    [ -z "$before" ] || printf '%s\n' "$before"
    status=${line##*exit } ;;
  "["*"] reboot: Power down") ;;
  *) printf '%s\n' "$line" ;;
  esac
done <"$tmp/console"
wait "$guest"
ended=$?
guest=''
[ -z "$status" ] || exit "$status"
if [ "$ended" = 124 ] || [ "$ended" = 137 ]; then
  echo "run-guest: stopped after $limit s" >&2
  exit 124
fi
echo "run-guest: the guest ended without a status (QEMU: $ended)" >&2
exit 125
