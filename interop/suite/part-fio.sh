# fio with crc32c verification at several block sizes and depths, unaligned buffers, digests

mixed_sizes() { # KIND
  need_kind "$1"
  attach main
  local disk smallest
  disk=$(disk_of "$1")
  smallest=$(blockdev --getss "$disk")
  fio_verify --filename="$disk" \
    --name=smallest --bs="$smallest" --offset=0 --size=$((smallest * 512)) --iodepth=16 \
    --name=4k --bs=4k --offset=16m --size=2m --iodepth=32 \
    --name=64k --bs=64k --offset=32m --size=8m --iodepth=8 \
    --name=128k --bs=128k --offset=64m --size=16m --iodepth=4 \
    --name=1m --bs=1m --offset=128m --size=32m --iodepth=4
}
for kind in ram file loop; do step "fio: 512 B to 1 MiB, verified ($kind)" mixed_sizes $kind; done

mixed_reads_and_writes() { # KIND
  need_kind "$1"
  attach main
  fio_verify --filename="$(disk_of "$1")" --rw=randrw --verify_backlog=64 \
    --name=sizes --bsrange=4k-128k --bs_unaligned=0 --offset=200m --size=16m --iodepth=32
}
for kind in ram file loop; do step "fio: reads among writes, verified ($kind)" mixed_reads_and_writes $kind; done

unaligned_buffers() { # KIND
  need_kind "$1"
  attach main
  says 'all equal' iovtest "$(disk_of "$1")" 2
}
for kind in ram file loop; do step "fio: unaligned buffers in many segments ($kind)" unaligned_buffers $kind; done

with_digests() {
  detach main
  connect main --hdr-digest --data-digest
  mixed_sizes "$1"
  unaligned_buffers "$1"
  detach main
}
for kind in ram file; do step "fio: with header and data digests ($kind)" with_digests $kind; done
