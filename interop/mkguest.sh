#!/bin/bash
# mkguest.sh [-f]: builds the guest kit (kernel and base initramfs, in guest/) that run-guest.sh boots.
#
# Works from nothing on a Debian 12 amd64 machine as root and installs the tools it needs there. What goes into the guest
# comes from Debian packages that are downloaded (cache/) and unpacked, never installed:
#   kernel    the newest 6.12 cloud kernel of the machine's own suites
#   userland  trixie, through a private apt configuration, because bookworm's nvme-cli is too old
# Does nothing when the kit was built by this very script and sources; -f rebuilds it all the same, with newer packages.
# Environment: MIRROR = Debian mirror to use (default: the one that the machine's apt uses).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kit=$here/guest
cache=$here/cache
apt=$cache/apt
userland=trixie
kernel_re='^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64-unsigned$'
packages=(busybox-static nvme-cli fio e2fsprogs xfsprogs util-linux coreutils bash socat diffutils)
programs=(/usr/bin/{bash,base64,cat,cmp,date,dd,findmnt,flock,head,lsblk,mount,mountpoint,nproc,od,seq,sha256sum,sleep}
  /usr/bin/{socat,sort,stat,sync,timeout,tr,truncate,umount,wc}
  /usr/sbin/{blkdiscard,blockdev,fsck.ext4,losetup,mkfs.ext4,mkfs.xfs,nvme,xfs_repair})
modules=(virtio_pci virtio_net nvme-tcp nvmet-tcp loop ext4 xfs configfs crc32c-intel crc32c_generic af_packet)

say() { echo "mkguest: $*"; }

# Runs a command, shows the end of its output only when it fails.
quietly() { "$@" >"$cache/log" 2>&1 || { tail -n 20 "$cache/log"; say "failed: $*"; exit 1; }; }

install_tools() {
  local need=() pair
  for pair in qemu-system-x86_64:qemu-system-x86 cpio:cpio zstd:zstd lz4:lz4 xz:xz-utils gzip:gzip gcc:gcc depmod:kmod \
    readelf:binutils python3:python3 losetup:mount flock:util-linux; do
    command -v "${pair%:*}" >/dev/null || need+=("${pair#*:}")
  done
  [ -e /usr/include/stdio.h ] || need+=(libc6-dev)
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || need+=(debian-archive-keyring)
  [ ${#need[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || { say "must be root to install ${need[*]}"; exit 1; }
  say "installing ${need[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "${need[@]}" >/dev/null 2>&1 || {
    quietly apt-get update -q
    quietly apt-get install -y -q --no-install-recommends "${need[@]}"
  }
}

# Downloads the userland packages with all they depend on, without looking at what the machine has installed.
fetch_userland() {
  local mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(SITE)' |
    awk '$1 == "Debian" && $2 !~ /security/ && !seen++ { print $2 }')}
  mkdir -p "$apt"/{lists/partial,archives/partial}
  : >"$apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $userland main" >"$apt/sources.list"
  local options=(-o Dir::State::status="$apt/status" -o Dir::State::lists="$apt/lists"
    -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Cache::archives="$apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o DPkg::Post-Invoke::=true -o APT::Sandbox::User=root)
  quietly apt-get "${options[@]}" update -qq
  rm -f "$apt"/archives/*.deb.old
  say "downloading userland packages ($userland)"
  quietly apt-get "${options[@]}" install --no-install-recommends --download-only -y -qq "${packages[@]}"
}

unpack() { # unpack DEB DIR
  dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --no-same-owner \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
}

unpack_userland() {
  local d deb
  mkdir -p "$stage"/usr/{bin,sbin,lib,lib64}
  for d in bin sbin lib lib64; do ln -s usr/$d "$stage/$d"; done
  for deb in "$apt"/archives/*.deb; do unpack "$deb" "$stage"; done
}

# Sets kernel_deb, kernel_dir (unpacked) and kernel_version; puts vmlinuz into the new kit.
fetch_kernel() {
  local names package
  names=$(apt-cache search --names-only "$kernel_re" | awk '{ print $1 }')
  if [ -z "$names" ]; then
    quietly apt-get update -qq
    names=$(apt-cache search --names-only "$kernel_re" | awk '{ print $1 }')
  fi
  package=$(sort -V <<<"$names" | tail -n 1)
  [ -n "$package" ] || { say "no kernel package matches $kernel_re"; exit 1; }
  mkdir -p "$cache/kernel"
  if ! compgen -G "$cache/kernel/${package}_*.deb" >/dev/null; then
    say "downloading $package"
    (cd "$cache/kernel" && quietly apt-get download -qq -o APT::Sandbox::User=root "$package")
  fi
  kernel_deb=$(printf '%s\n' "$cache/kernel/${package}"_*.deb | sort -V | tail -n 1)
  kernel_dir=$work/kernel
  mkdir -p "$kernel_dir"
  unpack "$kernel_deb" "$kernel_dir"
  kernel_version=$(basename "$kernel_dir"/boot/vmlinuz-* | sed 's/^vmlinuz-//')
  if [ ! -d "$kernel_dir/lib/modules" ]; then
    mkdir -p "$kernel_dir/lib"
    ln -s ../usr/lib/modules "$kernel_dir/lib/modules"
  fi
  depmod -b "$kernel_dir" "$kernel_version"
  cp "$kernel_dir/boot/vmlinuz-$kernel_version" "$new/vmlinuz"
}

# The uncompressed ELF kernel boots through PVH, which saves the guest the emulated decompression. Optional: without it
# run-guest.sh takes vmlinuz.
extract_vmlinux() {
  # payload_offset and payload_length of the x86 boot protocol header count from the end of the setup sectors.
  python3 - "$new/vmlinuz" "$work/payload" <<'PY'
import struct, sys
image = open(sys.argv[1], 'rb').read()
setup = ((image[0x1f1] or 4) + 1) * 512
offset, length = struct.unpack_from('<II', image, 0x248)
open(sys.argv[2], 'wb').write(image[setup + offset:setup + offset + length])
PY
  # The payload ends with a size word, about which some of the tools complain after writing everything.
  case $(od -An -tx1 -N4 "$work/payload" | tr -d ' ') in
  28b52ffd) zstd -dcq "$work/payload" >"$new/vmlinux" 2>/dev/null || true ;;
  fd377a58) xz -dc --single-stream "$work/payload" >"$new/vmlinux" 2>/dev/null || true ;;
  02214c18) lz4 -dcq "$work/payload" >"$new/vmlinux" 2>/dev/null || true ;;
  1f8b*) gzip -dc "$work/payload" >"$new/vmlinux" 2>/dev/null || true ;;
  esac
  if ! readelf -h "$new/vmlinux" >/dev/null 2>&1; then
    say "could not unpack the kernel: it will boot compressed"
    rm -f "$new/vmlinux"
  fi
}

libraries_of() {
  chroot "$stage" /lib64/ld-linux-x86-64.so.2 --list "$1" 2>/dev/null | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }'
}

copy_library() { [ -e "$root$1" ] || { mkdir -p "$root$(dirname "$1")"; cp -L "$stage$1" "$root$1"; }; }

install_programs() {
  local program library
  for program; do
    [ -e "$stage$program" ] || { say "no $program in the packages"; exit 1; }
    rm -f "$root/usr/bin/${program##*/}" # the busybox applet of that name
    mkdir -p "$root$(dirname "$program")"
    cp -L "$stage$program" "$root$program"
    for library in $(libraries_of "$program"); do copy_library "$library"; done
  done
}

# fio links ceph, gluster, NFS and RDMA libraries, 40 MB that take seconds to load under emulation. Its engines for them
# are never used here, so each becomes an empty library with the same name, symbols and symbol versions.
install_fio() {
  local fio=$stage/usr/bin/fio library path
  rm -f "$root/usr/bin/fio"
  cp "$fio" "$root/usr/bin/fio"
  nm -D --with-symbol-versions --undefined-only "$fio" | awk '{ print $NF }' | sort -u >"$work/wanted"
  for library in $(readelf -d "$fio" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p'); do
    path=$(libraries_of /usr/bin/fio | grep "/$library\$" || true)
    [ -n "$path" ] || continue
    case $library in
    libibverbs.so* | librdmacm.so* | libnfs.so* | libgfapi.so* | libnbd.so* | librados.so* | librbd.so* | libpmem.so*)
      stub_library "$library" "$path" ;;
    *) copy_library "$path" ;;
    esac
  done
}

stub_library() { # stub_library SONAME PATH
  local symbol version versions=()
  declare -A by_version=()
  nm -D --defined-only "$stage$2" | awk '{ sub(/@.*/, "", $NF); print $NF }' | sort -u >"$work/defined"
  : >"$work/stub.c"
  while IFS=@ read -r symbol version; do
    grep -qx -- "$symbol" "$work/defined" || continue
    echo "void $symbol(void) { __builtin_trap(); }" >>"$work/stub.c"
    [ -z "$version" ] || by_version[${version#@}]+="$symbol; "
  done <"$work/wanted"
  for version in "${!by_version[@]}"; do echo "$version { global: ${by_version[$version]} };"; done >"$work/stub.map"
  [ ! -s "$work/stub.map" ] || versions=("-Wl,--version-script=$work/stub.map")
  mkdir -p "$root$(dirname "$2")"
  gcc -w -shared -nostdlib -fPIC -Wl,-soname,"$1" "${versions[@]}" -o "$root$2" "$work/stub.c"
}

install_modules() {
  local from=$kernel_dir/lib/modules/$kernel_version to=$root/usr/lib/modules/$kernel_version path dest
  # The wanted modules and, recursively, what modules.dep says they need; every checksum and cipher, found by alias only.
  awk -F: -v want="${modules[*]}" '
    { path[NR] = $1; deps[$1] = $2; name = $1; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); gsub(/-/, "_", name); by_name[name] = $1 }
    function take(p,   i, list, n) { if (p in taken) return; taken[p] = 1; n = split(deps[p], list, " "); for (i = 1; i <= n; i++) take(list[i]) }
    END { n = split(want, list, " "); for (i = 1; i <= n; i++) { name = list[i]; gsub(/-/, "_", name); if (name in by_name) take(by_name[name]) }
          for (p in deps) if (p ~ /^kernel\/(crypto|arch\/x86\/crypto)\//) take(p)
          for (p in taken) print p }' "$from/modules.dep" >"$work/modules"
  while read -r path; do
    dest=$to/${path%.xz}
    mkdir -p "$(dirname "$dest")"
    case $path in *.xz) xz -dc "$from/$path" >"$dest" ;; *) cp "$from/$path" "$dest" ;; esac
    objcopy --strip-debug -R .BTF "$dest"
  done <"$work/modules"
  cp "$from"/modules.{builtin,order} "$to/"
  depmod -b "$root" "$kernel_version" 2>/dev/null
}

build_root() {
  local d applet source
  mkdir -p "$root"/{dev,proc,sys,tmp,run,root,mnt,out,suite,var/run,var/log,etc/nvme,usr/bin,usr/sbin,usr/lib/modules,usr/lib64}
  for d in bin sbin lib lib64; do ln -s usr/$d "$root/$d"; done
  cp "$stage/usr/bin/busybox" "$root/usr/bin/busybox"
  "$root/usr/bin/busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$root/usr/bin/$applet"
  done
  ln -s ../bin/busybox "$root/usr/sbin/modprobe" # the path that the kernel calls
  install_programs "${programs[@]}"
  install_fio
  strip --strip-unneeded "$root"/usr/lib/x86_64-linux-gnu/*.so* 2>/dev/null || true
  for source in "$here"/guest-src/*.c; do gcc -O2 -static -Wall -Wextra -o "$root/usr/bin/$(basename "$source" .c)" "$source"; done
  install -m 755 "$here/guest-src/init" "$root/init"
  echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
  printf 'passwd: files\ngroup: files\nhosts: files\nservices: files\n' >"$root/etc/nsswitch.conf"
  : >"$root/etc/fstab"
  ln -s /proc/self/mounts "$root/etc/mtab"
  install_modules
}

write_versions() {
  local deb
  for deb in "$kernel_deb" "$apt"/archives/{nvme-cli,libnvme1,fio,e2fsprogs,xfsprogs,util-linux,busybox-static}*_*.deb; do
    [ ! -e "$deb" ] || dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb"
  done >"$new/VERSIONS"
}

[ "${1:-}" = -f ] || [ $# -eq 0 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$cache" "$kit"
exec 9>"$cache/lock"
flock 9
install_tools
stamp=$(cat "$here/mkguest.sh" "$here"/guest-src/* | sha256sum | cut -d' ' -f1)
if [ "${1:-}" != -f ] && [ "$(cat "$kit/STAMP" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

work=$cache/work new=$cache/work/kit stage=$cache/work/stage root=$cache/work/root
rm -rf "$work"
mkdir -p "$new" "$stage" "$root"
fetch_userland
fetch_kernel
unpack_userland
extract_vmlinux
build_root
(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0) >"$new/base.cpio"
write_versions
echo "$stamp" >"$new/STAMP"
rm -rf "$kit"
mv "$new" "$kit"
rm -rf "$work"
say "kernel $kernel_version, initramfs $(($(stat -c %s "$kit/base.cpio") / 1048576)) MiB"
