# Namespaces added, removed and resized under a connected host, which must see it without a rescan

has_size() { [ "$(blockdev --getsize64 "$(disk main "$1")")" = "$2" ]; }
listed() { nvme list-ns "/dev/$controller" | grep -i "]:$(printf 0x%x "$1")\$" >/dev/null; }

comes_and_goes() {
  attach main
  no_disk main 10
  namespace_add main 10 ram:16
  wait_until has_disk main 10
  has_size 10 $((16 << 20))
  listed 10
  data_survives "$(disk main 10)"
  namespace_remove main 10
  wait_until no_disk main 10
  if listed 10; then fail "still listed"; fi
  data_survives "$(disk main 1)"
}
step "namespace: added and removed, the host sees it" comes_and_goes

resized() {
  attach main
  namespace_add main 11 file:grows.img:16
  wait_until has_disk main 11
  has_size 11 $((16 << 20))
  namespace_resize main 11 grows.img 40
  wait_until has_size 11 $((40 << 20))
  local disk
  disk=$(disk main 11)
  random 1M >/tmp/data
  write_disk "$disk" $((39 << 20)) </tmp/data
  read_disk "$disk" $((39 << 20)) $((1 << 20)) | cmp - /tmp/data
  namespace_remove main 11
  wait_until no_disk main 11
}
step "namespace: resized, the host sees it" resized

# The load on the namespace that goes ends with errors, neither hangs nor disturbs the others.
removed_under_load() {
  attach main
  namespace_add main 12 ram:64
  wait_until has_disk main 12
  fio --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=16 --time_based --runtime=20 --name=doomed \
    --filename="$(disk main 12)" --output=/tmp/doomed &
  local doomed=$!
  fio_verify --name=other --filename="$(disk main 1)" --bs=4k --size=4m --iodepth=8 --rate_iops=400 &
  local other=$!
  sleep 1
  namespace_remove main 12
  if wait "$doomed"; then fail "I/O went on without its namespace"; fi
  wait_until no_disk main 12
  wait "$other"
  is_live "$controller"
}
step "namespace: removed under load" removed_under_load

returns() {
  attach main
  local i
  for i in 1 2 3 4; do
    namespace_add main 13 ram:16
    wait_until has_disk main 13
    namespace_remove main 13
    wait_until no_disk main 13
  done
  namespace_add main 13 file:returns.img:16
  wait_until has_disk main 13
  data_survives "$(disk main 13)"
  namespace_remove main 13
  wait_until no_disk main 13
}
step "namespace: added and removed in turns" returns

seen_after_connect() {
  attach main
  namespace_add main 14 ram:16
  wait_until has_disk main 14
  detach main
  connect main
  wait_until has_disk main 14
  detach main
  namespace_remove main 14
  connect main
  listed 1
  no_disk main 14
}
step "namespace: added and removed between connections" seen_after_connect

is_read_only() { [ "$(blockdev --getro "$(disk main "$1")")" = "$2" ]; }

read_only_at_run_time() {
  nvmet_deviates "cannot change that"
  attach main
  namespace_add main 15 ram:16
  wait_until has_disk main 15
  is_read_only 15 0
  tell main "read-only 15 on"
  wait_until is_read_only 15 1
  refused 'Namespace is Write Protected' nvme write-zeroes "$(disk main 15)" -s 0 -c 0
  read_disk "$(disk main 15)" 0 4096 >/dev/null
  tell main "read-only 15 off"
  # Linux never takes a disk out of read-only by itself when the namespace says so no longer.
  blockdev --setrw "$(disk main 15)"
  data_survives "$(disk main 15)"
  namespace_remove main 15
  wait_until no_disk main 15
}
step "namespace: read-only and writable again, the host sees it" read_only_at_run_time

# By one controller (Namespace Write Protection Config, 84h); the others are told, the one that did it knows.
write_protected() {
  nvmet_deviates "leaves the disk as it is"
  detach main
  namespace_add main 16 ram:16
  connect main
  local first=$controller disk
  connect main --duplicate-connect
  wait_until has_paths main 16 2
  disk=$(disk main 16)
  is $(($(nvme id-ctrl "/dev/$first" | field nwpc) & 1)) 1 "NWPC"
  nvme set-feature "/dev/$first" -f 0x84 -n 16 -V 1
  wait_until is_read_only 16 1
  is $(($(nvme id-ns "/dev/$first" -n 16 | field nsattr) & 1)) 1 "NSATTR"
  refused 'Namespace is Write Protected' nvme write-zeroes "$disk" -s 0 -c 0
  nvme set-feature "/dev/$first" -f 0x84 -n 16 -V 0
  blockdev --setrw "$disk"
  data_survives "$disk"
  namespace_remove main 16
  wait_until no_disk main 16
  detach main
}
step "namespace: write protected by one controller, the other sees it" write_protected
