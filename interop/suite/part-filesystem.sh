# ext4 and XFS with files and checksums; blkdiscard and blkdiscard -z with read-back

make_ext4() { mkfs.ext4 -q -F "$1"; }
check_ext4() { fsck.ext4 -f -n "$1"; }
make_xfs() { mkfs.xfs -q -f "$1"; }
check_xfs() { xfs_repair -n "$1"; }

file_system() { # TYPE KIND
  need_kind "$2"
  attach main
  local disk i
  disk=$(disk_of "$2")
  "make_$1" "$disk"
  mount -t "$1" "$disk" /mnt
  trap 'umount /mnt 2>/dev/null || :' EXIT
  mkdir /mnt/small
  for i in $(seq 40); do random $((i * 1000)) >"/mnt/small/$i"; done
  random 12M >/mnt/large
  (cd /mnt && sha256sum large small/*) >/tmp/sums
  rm /mnt/small/[12]*
  umount /mnt
  "check_$1" "$disk"
  mount -t "$1" "$disk" /mnt
  is "$(ls /mnt/small | wc -l)" 18 "files left"
  (cd /mnt && grep -v ' small/[12]' /tmp/sums | sha256sum -c --quiet)
  umount /mnt
  "check_$1" "$disk"
}
for type in ext4 xfs; do
  for kind in ram file loop; do step "filesystem: $type ($kind)" file_system $type $kind; done
done

discard() { # KIND
  need_kind "$1"
  attach main
  local disk
  disk=$(disk_of "$1")
  random 8M >/tmp/data
  write_disk "$disk" 0 </tmp/data
  blkdiscard -f -o $((2 << 20)) -l $((4 << 20)) "$disk"
  read_disk "$disk" 0 $((8 << 20)) >/tmp/back
  cmp -n $((2 << 20)) /tmp/data /tmp/back
  cmp -i $((6 << 20)) /tmp/data /tmp/back
  blkdiscard -f "$disk"
  if [ $(($(nvme id-ns "$disk" | field dlfeat) & 7)) = 1 ]; then
    cmp -n $((4 << 20)) -i $((2 << 20)):0 /tmp/back /dev/zero
    read_disk "$disk" 0 $((8 << 20)) | cmp -n $((8 << 20)) - /dev/zero
  fi
}
for kind in ram file loop; do step "filesystem: blkdiscard ($kind)" discard $kind; done

zero_out() { # KIND
  need_kind "$1"
  attach main
  local disk
  disk=$(disk_of "$1")
  random 8M >/tmp/data
  write_disk "$disk" 0 </tmp/data
  blkdiscard -f -z -o $((2 << 20)) -l $((4 << 20)) "$disk"
  read_disk "$disk" 0 $((8 << 20)) >/tmp/back
  cmp -n $((2 << 20)) /tmp/data /tmp/back
  cmp -n $((4 << 20)) -i $((2 << 20)):0 /tmp/back /dev/zero
  cmp -i $((6 << 20)) /tmp/data /tmp/back
  blkdiscard -f -z "$disk"
  read_disk "$disk" 0 $((8 << 20)) | cmp -n $((8 << 20)) - /dev/zero
}
for kind in ram file loop; do step "filesystem: blkdiscard -z ($kind)" zero_out $kind; done
