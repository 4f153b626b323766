//! The power goes at every step of keeping reservations, and every step fails.

use super::disk::{Disk, Failure, Tree};
use super::kept::{A, B, Scripted, register, scope};
use crate::FileReservationStore;
use crate::ctrl::lock;
use crate::ctrl::reservation::state::State;
use crate::ctrl::reservation::{Command, HostId, Reservations};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, ReleaseAction, ReleaseCommand,
    ReleaseData, ReservationType,
};
use std::sync::Arc;

fn open(disk: &Disk) -> Reservations {
    let store = FileReservationStore::with("dir".into(), Box::new(disk.clone())).unwrap();
    Reservations::open(scope(), Some(Arc::new(store))).unwrap()
}

fn state(reservations: &Reservations) -> State {
    lock(&reservations.state).clone()
}

/// What is left of a state when the target has ended.
fn persistent(state: State) -> State {
    if state.ptpl { state } else { State::default() }
}

fn acquire(action: AcquireAction, crkey: u64, prkey: u64) -> Command {
    let command = AcquireCommand {
        action,
        iekey: false,
        rtype: ReservationType::EXCLUSIVE_ACCESS,
    };
    Command::Acquire(command, AcquireData { crkey, prkey })
}

/// What hosts do to the reservations of a namespace, one after the other.
fn script() -> Vec<(HostId, Scripted)> {
    let release = ReleaseCommand {
        action: ReleaseAction::RELEASE,
        iekey: false,
        rtype: ReservationType::EXCLUSIVE_ACCESS,
    };
    let command = |host, command| (host, Scripted::Command(command));
    vec![
        command(A, register(1, ChangePtpl::NONE)),
        command(A, acquire(AcquireAction::ACQUIRE, 1, 0)),
        command(B, register(2, ChangePtpl::SET)),
        command(B, acquire(AcquireAction::PREEMPT, 2, 1)),
        command(A, register(3, ChangePtpl::NONE)),
        (A, Scripted::Ptpl(false)),
        (A, Scripted::Ptpl(true)),
        command(B, Command::Release(release, ReleaseData { crkey: 2 })),
    ]
}

/// What a power cut may leave, at any step of a change that begins with `before` safe on disk.
fn check_cuts(before: &Tree, earlier: &State, host: HostId, what: &Scripted) -> usize {
    let disk = Disk::of(before.clone());
    let reservations = open(&disk);
    *lock(&reservations.state) = earlier.clone();
    what.run(&reservations, host).unwrap();
    let (old, new) = (
        persistent(earlier.clone()),
        persistent(state(&reservations)),
    );
    let mut count = 0;
    for steps in 0..=disk.steps() {
        for tree in disk.after_cut(steps) {
            let after = open(&Disk::of(tree.clone()));
            let damage = lock(&after.damaged).clone();
            assert_eq!(damage, None, "{what:?}: {tree:?}");
            let found = state(&after);
            let is_over = steps == disk.steps();
            let fits = found == new || (found == old && !is_over);
            assert!(fits, "{what:?}, cut after {steps} steps: {tree:?}");
            count += 1;
        }
    }
    count
}

/// The state and the disk before each change of the script.
fn along(mut visit: impl FnMut(&Tree, &State, HostId, &Scripted)) {
    let disk = Disk::default();
    let reservations = open(&disk);
    for (host, what) in script() {
        let settled = disk.after_cut(disk.steps());
        let [tree] = &settled[..] else {
            panic!("{what:?}: not all is on stable storage")
        };
        visit(tree, &state(&reservations), host, &what);
        what.run(&reservations, host).unwrap();
    }
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_record_or_the_new_one() {
    let mut count = 0;
    along(|tree, state, host, what| count += check_cuts(tree, state, host, what));
    assert!(count > 2_000, "{count}");
}

/// Without this the test above says nothing.
#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let disk = Disk::default();
    disk.lie();
    let reservations = open(&disk);
    reservations
        .execute(A, &register(1, ChangePtpl::SET))
        .unwrap();
    let trees = disk.after_cut(disk.steps());
    let found = trees.into_iter().map(|tree| open(&Disk::of(tree)));
    let found: Vec<_> = found
        .map(|r| (lock(&r.damaged).is_some(), state(&r).ptpl))
        .collect();
    for what in [(true, false), (false, false), (false, true)] {
        assert!(found.contains(&what), "{what:?}");
    }
}

/// Whatever step fails, whether or not it has had its effect: the command fails, and neither the
/// running target nor the next one knows of it.
#[test]
fn what_fails_on_the_way_has_never_been() {
    let mut failures = 0;
    along(|tree, earlier, host, what| {
        for (step, how) in (0..).flat_map(|n| [(n, Failure::Refused), (n, Failure::Done)]) {
            let disk = Disk::of(tree.clone());
            let reservations = open(&disk);
            *lock(&reservations.state) = earlier.clone();
            disk.fail(step, how);
            let done = what.run(&reservations, host);
            if disk.is_to_fail() {
                return;
            }
            failures += 1;
            assert_eq!(done, Err(Status::INTERNAL_ERROR), "{what:?} {step} {how:?}");
            assert_eq!(state(&reservations), *earlier);
            for tree in disk.after_cut(disk.steps()) {
                let found = state(&open(&Disk::of(tree)));
                assert_eq!(
                    found,
                    persistent(earlier.clone()),
                    "{what:?} {step} {how:?}"
                );
            }
            // And it can be tried again.
            what.run(&reservations, host).unwrap();
            let found = state(&open(&Disk::of(disk.after_cut(disk.steps())[0].clone())));
            assert_eq!(found, persistent(state(&reservations)));
        }
    });
    assert!(failures > 30, "{failures}");
}
