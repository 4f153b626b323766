#!/bin/bash
# Runs the parts of the suite that PARTS names, in the guest. Status 0 if no step failed.
#
# Environment, from interop/run: TARGET=nvmfd or nvmet, PARTS, CONTROL_PORT (nvmfd), LOOP (a loop device of the machine that
# nvmfd may serve, or nothing).
cd /suite || exit 1
. ./lib.sh
. "./target-$TARGET.sh"

devices=(ram:320 file:main.img:320)
[ -z "$LOOP" ] || devices+=(loop)
step "target: starts" target_start main "${devices[@]}"

for part in $PARTS; do
  . "./part-$part.sh"
  nvme disconnect-all # what a step that failed has left
done

ends_well() {
  local name
  for name in $(cd /run/target && ls -- *.namespaces | sed 's/\.namespaces$//'); do
    detach "$name"
    wait_until target_unburdened "$name"
    target_stop "$name"
    # A host that resets a subsystem is worth a warning, and so is a state folder that was not there.
    if target_log "$name" | grep -vE '" resets "nqn|no reservations are known of earlier runs' | grep -A 5 -E 'panicked| (WARN|ERROR) '; then fail "nvmfd had something to complain about"; fi
  done
}
step "target: has closed what it opened, logged no warning, exits 0" ends_well

[ $failed = 0 ]
