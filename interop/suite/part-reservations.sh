# Reservations between two hosts: registration, all types, preemption, notifications, persistence over a restart

# The kernel takes controllers of both hosts for paths of one disk; commands go to one of them by its own device, which
# the kernel allows as long as there is one namespace.
both_hosts() {
  nvmet_deviates "has no reservations in Linux 6.12"
  detach shared
  nvme_connect shared "$@"
  a=/dev/$controller
  nvme_connect shared "${other_host[@]}" "$@"
  b=/dev/$controller
  wait_until has_paths shared 1 2
}
key_a=0xa1 key_b=0xb2

register() { says success nvme resv-register "$1" -n 1 -k "$2" -r 0 --iekey; }      # HOST KEY
acquire() { says success nvme resv-acquire "$1" -n 1 -c "$2" -t "$3" -a 0; }        # HOST KEY TYPE
release() { says success nvme resv-release "$1" -n 1 -c "$2" -t "$3" -a 0; }        # HOST KEY TYPE
clear_all() { says success nvme resv-release "$1" -n 1 -c "$2" -t 0 -a 1; }         # HOST KEY
unregister() { says success nvme resv-register "$1" -n 1 -c "$2" -r 1; }            # HOST KEY
report() { nvme resv-report "$1" -n 1 -e; }                                         # HOST
reads() { says Success nvme read "$1" -n 1 -s 0 -c 0 -z 512 -d /tmp/back; }
writes() { says Success nvme write "$1" -n 1 -s 0 -c 0 -z 512 -d /tmp/data; }
conflicts() { refused 'Reservation Conflict' nvme "$2" "$1" -n 1 -s 0 -c 0 -z 512 -d /tmp/"$2"; } # HOST read|write
random 512 >/tmp/write
cp /tmp/write /tmp/data

start_shared() { target_start shared --state-dir=state file:shared.img:16; }
step "reservations: a target starts" start_shared

registers() {
  both_hosts
  register "$a" $key_a
  register "$b" $key_b
  local status
  status=$(report "$a")
  is "$(field regctl <<<"$status")" 2 registrants
  is "$(field rtype <<<"$status")" 0 type
  like "$status" 'rkey *: a1.*hostid *: 00000000000040008000000000000001'
  like "$status" 'rkey *: b2.*hostid *: 00000000000040008000000000000002'
  # Another key without the current one, or with a wrong one.
  refused 'Reservation Conflict' nvme resv-register "$b" -n 1 -k 0xdead -r 0
  refused 'Reservation Conflict' nvme resv-register "$b" -n 1 -c 0xbad -k 0xdead -r 2
  says success nvme resv-register "$b" -n 1 -c $key_b -k 0xb3 -r 2
  like "$(report "$b")" 'rkey *: b3'
  unregister "$b" 0xb3
  is "$(report "$a" | field regctl)" 1 registrants
  unregister "$a" $key_a
}
step "reservations: register, replace, unregister, report" registers

# Who is not the holder: may a registrant and one that is not registered read and write?
types() { # TYPE REGISTRANT-READS REGISTRANT-WRITES OTHER-READS OTHER-WRITES, y or n
  both_hosts
  register "$a" $key_a
  acquire "$a" $key_a "$1"
  is "$(report "$b" | field rtype)" "$1" type
  reads "$a"
  writes "$a"
  "may_$4" "$b" read
  "may_$5" "$b" write
  register "$b" $key_b
  "may_$2" "$b" read
  "may_$3" "$b" write
  release "$a" $key_a "$1"
  writes "$b"
  clear_all "$a" $key_a
  is "$(report "$a" | field regctl)" 0 registrants
}
may_y() { "${2}s" "$1"; }
may_n() { conflicts "$1" "$2"; }
step "reservations: 1, Write Exclusive" types 1 y n y n
step "reservations: 2, Exclusive Access" types 2 n n n n
step "reservations: 3, Write Exclusive, Registrants Only" types 3 y y y n
step "reservations: 4, Exclusive Access, Registrants Only" types 4 y y n n
step "reservations: 5, Write Exclusive, All Registrants" types 5 y y y n
step "reservations: 6, Exclusive Access, All Registrants" types 6 y y n n

preempts() {
  both_hosts
  register "$a" $key_a
  register "$b" $key_b
  acquire "$a" $key_a 1
  conflicts "$b" write
  refused 'Reservation Conflict' nvme resv-acquire "$b" -n 1 -c $key_b -t 1 -a 0
  says success nvme resv-acquire "$b" -n 1 -c $key_b -p $key_a -t 2 -a 1
  conflicts "$a" write
  conflicts "$a" read
  writes "$b"
  local status
  status=$(report "$b")
  is "$(field regctl <<<"$status")" 1 registrants
  is "$(field rtype <<<"$status")" 2 type
  register "$a" $key_a
  says success nvme resv-acquire "$a" -n 1 -c $key_a -p $key_b -t 1 -a 2
  conflicts "$b" write
  writes "$a"
  clear_all "$a" $key_a
  writes "$b"
}
step "reservations: preempt, preempt and abort, clear" preempts

# Log page 80h of each host: 1, registration preempted; 2, reservation released; 3, reservation preempted.
notified() {
  both_hosts
  register "$a" $key_a
  register "$b" $key_b
  acquire "$a" $key_a 3
  release "$a" $key_a 3
  is "$(notification "$b")" 2 "page type"
  acquire "$a" $key_a 1
  says success nvme resv-acquire "$b" -n 1 -c $key_b -p $key_a -t 1 -a 1
  like "$(notification "$a")" '^[13]$'
  clear_all "$b" $key_b
}
notification() { nvme get-log "$1" -i 0x80 -l 64 -b | od -An -v -tu1 -j8 -N1 | tr -d ' \n'; }
step "reservations: notifications" notified

# Of a host whose controller is gone the reservation stays, and it is the holder again when it comes back.
outlives_the_controller() {
  both_hosts
  register "$a" $key_a
  acquire "$a" $key_a 1
  nvme disconnect -d "$(basename "$a")"
  conflicts "$b" write
  nvme_connect shared "${this_host[@]}" --duplicate-connect
  a=/dev/$controller
  wait_until is_live "$controller"
  wait_until has_paths shared 1 2
  writes "$a"
  clear_all "$a" $key_a
}
step "reservations: held by a host, not by its controller" outlives_the_controller

# With PTPL set the restarted target knows registrants and holder; without, nobody.
persists() { # CPTPL REGISTRANTS
  both_hosts --reconnect-delay=1 --ctrl-loss-tmo=60
  says success nvme resv-register "$a" -n 1 -k $key_a -r 0 -p "$1" --iekey
  register "$b" $key_b
  acquire "$a" $key_a 1
  is "$(report "$a" | field ptpls)" $(($1 & 1)) PTPLS
  target_kill shared
  wait_until is_gone "$a"
  wait_until is_gone "$b"
  target_restart shared
  wait_until is_live "$(basename "$a")"
  wait_until is_live "$(basename "$b")"
  is "$(report "$b" | field regctl)" "$2" registrants
  if [ "$2" = 0 ]; then
    writes "$b"
  else
    is "$(report "$b" | field rtype)" 1 type
    conflicts "$b" write
    writes "$a"
    says success nvme resv-register "$a" -n 1 -c $key_a -k $key_a -r 2 -p 2
    clear_all "$a" $key_a
  fi
}
is_gone() { ! is_live "$(basename "$1")"; }
step "reservations: with PTPL they outlive a killed target" persists 3 2
step "reservations: without PTPL they do not" persists 2 0
