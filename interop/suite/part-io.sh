# I/O commands as nvme-cli sends them, with compare of the data, and what must be refused

io() { # KIND FUNCTION
  need_kind "$1"
  attach main
  disk=$(disk_of "$1")
  lba=$(blockdev --getss "$disk")
  blocks=$(($(blockdev --getsize64 "$disk") / lba))
  random 32768 >/tmp/data
  nlb=$((32768 / lba - 1)) # 0's based, of all of /tmp/data
  "$2"
}

write_and_read() {
  local where
  rm -f /tmp/back # `nvme read` would leave the end of a longer file
  for where in 0 8 $((blocks - nlb - 1)); do
    says Success nvme write "$disk" -s $where -c $nlb -z 32768 -d /tmp/data
    says Success nvme read "$disk" -s $where -c $nlb -z 32768 -d /tmp/back
    cmp /tmp/data /tmp/back
  done
  says Success nvme write "$disk" -s 8 -c 0 -z "$lba" -d /tmp/data --force-unit-access
  says success nvme flush "$disk"
}

# Blocks 0-3 are zeroed out of 8 that were written.
write_zeroes() {
  write_disk "$disk" 0 </tmp/data
  says Success nvme write-zeroes "$disk" -s 0 -c 3
  read_disk "$disk" 0 32768 >/tmp/back
  head -c $((4 * lba)) /tmp/back | cmp - <(zeroes $((4 * lba)))
  tail -c +$((4 * lba + 1)) /tmp/back | cmp - <(tail -c +$((4 * lba + 1)) /tmp/data)
}

# Two ranges are deallocated; what lies between and behind stays. A deallocated block reads as before or as DLFEAT says.
deallocate() {
  write_disk "$disk" 0 </tmp/data
  says success nvme dsm "$disk" --ad --slbs=0,4 --blocks=1,2
  read_disk "$disk" 0 32768 >/tmp/back
  cmp <(part 1 3 /tmp/back) <(part 1 3 /tmp/data)
  cmp <(part 6 2 /tmp/back) <(part 6 2 /tmp/data)
  if [ $(($(nvme id-ns "$disk" | field dlfeat) & 7)) = 1 ]; then
    cmp <(part 0 1 /tmp/back) <(zeroes "$lba") || cmp <(part 0 1 /tmp/back) <(part 0 1 /tmp/data)
    cmp <(part 4 2 /tmp/back) <(zeroes $((2 * lba))) || cmp <(part 4 2 /tmp/back) <(part 4 2 /tmp/data)
  fi
}
part() { dd if="$3" bs="$lba" skip="$1" count="$2" status=none; } # FIRST COUNT FILE, in logical blocks

for kind in ram file loop; do
  step "io: nvme write, read, flush ($kind)" io $kind write_and_read
  step "io: nvme write-zeroes ($kind)" io $kind write_zeroes
  step "io: nvme dsm ($kind)" io $kind deallocate
done

out_of_range() {
  nvmet_deviates "answers Internal Error or Capacity Exceeded"
  refused 'LBA Out of Range' nvme read "$disk" -s $blocks -c 0 -z "$lba" -d /tmp/back
  refused 'LBA Out of Range' nvme read "$disk" -s $((blocks - 1)) -c 1 -z $((2 * lba)) -d /tmp/back
  refused 'LBA Out of Range' nvme write "$disk" -s 0xfffffffffffffff0 -c $nlb -z 32768 -d /tmp/data
  refused 'LBA Out of Range' nvme write-zeroes "$disk" -s $((blocks - 1)) -c 1
  refused 'LBA Out of Range' nvme dsm "$disk" --ad --slbs=$((blocks - 1)) --blocks=2
  write_and_read
}
for kind in ram file loop; do step "io: beyond the last block ($kind)" io $kind out_of_range; done

refusals() {
  refused 'Invalid Command Opcode' nvme io-passthru "$disk" --opcode=0xc4 --namespace-id=1
  # One block is announced in the command, two are transferred.
  refused 'Data SGL Length Invalid|Invalid Field' nvme write "$disk" -s 0 -c 0 -z $((2 * lba)) -d /tmp/data
  write_and_read
}
step "io: invalid opcode and length" io ram refusals
