#[path = "../../../../tests/tables/reservation.rs"]
mod table;

use crate::ctrl::reservation::state::{Command, Effects, Held, HostId, REGISTRANTS_MAX, State};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, NotificationType, RegisterAction,
    RegisterCommand, RegisterData, RegistrantExtended, RegistrantStatus, ReleaseAction,
    ReleaseCommand, ReleaseData, ReservationStatus, ReservationType,
};
use table::{
    ACCESS, ACQUIRE, After, GROUPS, Group, HOLDINGS, Holding, Is, KEYS, Key, PREEMPT, Prkey,
    RELEASE, Role, register_row,
};

const A: HostId = [0xa; 16];
const B: HostId = [0xb; 16];
const C: HostId = [0xc; 16];
/// Not registered.
const N: HostId = [0x4e; 16];
const KEY_A: u64 = 0xaa;
const KEY_B: u64 = 0xbb;
const KEY_C: u64 = 0xcc;

const WRITE_EXCLUSIVE: ReservationType = ReservationType::WRITE_EXCLUSIVE;

fn register(action: RegisterAction, iekey: bool, crkey: u64, nrkey: u64) -> Command {
    let cptpl = ChangePtpl::NONE;
    Command::Register(
        RegisterCommand {
            action,
            iekey,
            cptpl,
        },
        RegisterData { crkey, nrkey },
    )
}

fn acquire(action: AcquireAction, rtype: ReservationType, crkey: u64, prkey: u64) -> Command {
    Command::Acquire(
        AcquireCommand {
            action,
            iekey: false,
            rtype,
        },
        AcquireData { crkey, prkey },
    )
}

fn release(action: ReleaseAction, rtype: ReservationType, crkey: u64) -> Command {
    Command::Release(
        ReleaseCommand {
            action,
            iekey: false,
            rtype,
        },
        ReleaseData { crkey },
    )
}

/// Executes a command, and asserts what holds for each: a failure changes nothing.
#[track_caller]
fn run(state: &mut State, host: HostId, command: &Command) -> Result<Effects, Status> {
    let before = state.clone();
    let result = state.execute(host, command, true);
    if let Err(status) = result {
        assert_eq!(*state, before, "{status} has changed something");
    }
    let rights = |state: &State| [A, B, C, N].map(|host| state.rights(&host));
    assert!(!state.same_rights(&before) || rights(state) == rights(&before));
    result
}

/// Hosts A, B and C are registered; A holds a reservation of this type, if any.
fn held(rtype: ReservationType) -> State {
    let mut state = State::default();
    for (host, key) in [(A, KEY_A), (B, KEY_B), (C, KEY_C)] {
        run(
            &mut state,
            host,
            &register(RegisterAction::REGISTER, false, 0, key),
        )
        .unwrap();
    }
    if rtype != ReservationType::NONE {
        let command = acquire(AcquireAction::ACQUIRE, rtype, KEY_A, 0);
        run(&mut state, A, &command).unwrap();
    }
    state
}

fn types() -> impl Iterator<Item = ReservationType> {
    (1..=6).map(ReservationType)
}

fn status(result: &Result<Effects, Status>) -> Is {
    match result {
        Ok(_) => Is::Success,
        Err(status) if status.same_code(Status::RESERVATION_CONFLICT) => Is::Conflict,
        Err(status) if status.same_code(Status::INVALID_FIELD) => Is::InvalidField,
        Err(status) => panic!("{status}"),
    }
}

#[test]
fn every_cell_of_the_table_of_commands_and_types() {
    for (rtype, role, row) in ACCESS {
        let rtype = ReservationType(rtype);
        let (host, key) = match role {
            Role::Holder => (A, KEY_A),
            Role::Registrant => (B, KEY_B),
            Role::Stranger => (N, 0x99),
        };
        let prkey = if rtype.is_all_registrants() { 0 } else { KEY_A };
        for (group, cell) in GROUPS.into_iter().zip(row.chars()) {
            let mut state = held(rtype);
            let command = match group {
                Group::Read | Group::Write => {
                    let rights = state.rights(&host);
                    let got = if group == Group::Read {
                        rights.read
                    } else {
                        rights.write
                    };
                    assert_eq!(got, cell == 'A', "{rtype:?} {role:?} {group:?}");
                    continue;
                }
                // Not checked against the reservation: whoever asks is told.
                Group::Report => continue,
                Group::Acquire => acquire(AcquireAction::ACQUIRE, rtype, key, 0),
                Group::Preempt => acquire(AcquireAction::PREEMPT, rtype, key, prkey),
                Group::PreemptAndAbort => {
                    acquire(AcquireAction::PREEMPT_AND_ABORT, rtype, key, prkey)
                }
                Group::Release => release(ReleaseAction::RELEASE, rtype, key),
                Group::Register => register(RegisterAction::REGISTER, false, 0, key),
            };
            let want = if cell == 'A' {
                Is::Success
            } else {
                Is::Conflict
            };
            let got = run(&mut state, host, &command);
            assert_eq!(status(&got), want, "{rtype:?} {role:?} {group:?}");
        }
    }
    let rows = ACCESS.map(|(rtype, role, _)| (rtype, role as u8));
    assert!(rows.is_sorted(), "each row once");
}

#[test]
fn without_a_reservation_everybody_reads_and_writes() {
    let state = held(ReservationType::NONE);
    for host in [A, N, HostId::default()] {
        let rights = state.rights(&host);
        assert!(rights.read && rights.write);
    }
}

#[test]
fn every_combination_of_register() {
    for registered in [false, true] {
        for (action, iekey) in (0..8).flat_map(|a| [(a, false), (a, true)]) {
            for (crkey, nrkey) in KEYS.into_iter().flat_map(|c| KEYS.map(|n| (c, n))) {
                let (want, after) = register_row(registered, action, iekey, crkey, nrkey);
                let mut state = held(WRITE_EXCLUSIVE);
                let (host, own) = if registered { (B, KEY_B) } else { (N, 0x99) };
                let key = |key| match key {
                    Key::Own => own,
                    Key::Other => 0x77,
                    Key::Zero => 0,
                };
                let before = state.registrants.get(&host).copied();
                let generation = state.generation;
                let command = register(RegisterAction(action), iekey, key(crkey), key(nrkey));
                let got = status(&run(&mut state, host, &command));
                let what = format!("{registered} {action} {iekey} {crkey:?} {nrkey:?}");
                assert_eq!(got, want, "{what}");
                let key_after = match after {
                    After::Unchanged => before,
                    After::New => Some(key(nrkey)),
                    After::Gone => None,
                };
                assert_eq!(state.registrants.get(&host).copied(), key_after, "{what}");
                let moved = state.generation - generation;
                assert_eq!(moved == 1, want == Is::Success, "{what}: GEN");
                // The reservation of another host is none of its business.
                assert_eq!(state.held, Some(Held::One(WRITE_EXCLUSIVE, A)), "{what}");
            }
        }
    }
}

/// Host B sends the commands; A is the other host, C the third.
fn holding(holding: Holding) -> State {
    let mut state = held(ReservationType::NONE);
    state.held = match holding {
        Holding::Nothing => None,
        Holding::Own => Some(Held::One(WRITE_EXCLUSIVE, B)),
        Holding::Others => Some(Held::One(WRITE_EXCLUSIVE, A)),
        Holding::All => Some(Held::All(ReservationType::WRITE_EXCLUSIVE_ALL)),
    };
    state
}

#[test]
fn every_combination_of_acquire() {
    for (what, rtype, want) in ACQUIRE {
        let mut state = holding(what);
        let before = state.clone();
        let command = acquire(AcquireAction::ACQUIRE, ReservationType(rtype), KEY_B, 0);
        let got = run(&mut state, B, &command);
        assert_eq!(status(&got), want, "{what:?} {rtype}");
        assert!(got.is_err() || got == Ok(Effects::default()));
        assert_eq!(
            state.generation, before.generation,
            "Acquire does not move GEN"
        );
        if want == Is::Success {
            assert_eq!(state.held.unwrap().rtype().0, rtype, "{what:?} {rtype}");
            assert!(state.rights(&B).write);
        }
    }
}

#[test]
fn every_combination_of_preempt() {
    let type_2 = ReservationType::EXCLUSIVE_ACCESS;
    for (what, prkey, want, left) in PREEMPT {
        for action in [AcquireAction::PREEMPT, AcquireAction::PREEMPT_AND_ABORT] {
            let key = match prkey {
                Prkey::Own => KEY_B,
                Prkey::Other => KEY_A,
                Prkey::Third => KEY_C,
                Prkey::Nobody => 0x77,
                Prkey::Zero => 0,
            };
            let mut state = holding(what);
            let before = state.clone();
            let got = run(&mut state, B, &acquire(action, type_2, KEY_B, key));
            let case = format!("{what:?} {prkey:?} {action:?}");
            assert_eq!(status(&got), want, "{case}");
            let registered = [B, A, C].map(|host| state.registrants.contains_key(&host));
            assert_eq!(registered, left.registered, "{case}");
            let held = if left.taken {
                Some(Held::One(type_2, B))
            } else {
                before.held
            };
            assert_eq!(state.held, held, "{case}");
            let Ok(effects) = got else { continue };
            assert_eq!(state.generation, before.generation + 1, "{case}");
            // Who is preempted, other than by itself, learns of it and has its commands aborted;
            // who stays a registrant learns of a new type.
            let gone: Vec<HostId> = [A, C]
                .into_iter()
                .filter(|host| !state.registrants.contains_key(host))
                .collect();
            let preempted = |h: &HostId| (*h, NotificationType::REGISTRATION_PREEMPTED);
            let mut notify: Vec<_> = gone.iter().map(preempted).collect();
            if left.taken {
                let stay = state.registrants.keys().filter(|host| **host != B);
                notify.extend(stay.map(|h| (*h, NotificationType::RESERVATION_RELEASED)));
            }
            assert_eq!(effects.notify, notify, "{case}");
            let aborted = if action == AcquireAction::PREEMPT {
                Vec::new()
            } else {
                gone
            };
            assert_eq!(effects.abort, aborted, "{case}");
        }
    }
    assert_eq!(PREEMPT.len(), HOLDINGS.len() * 5);
}

#[test]
fn every_combination_of_release() {
    for (what, rtype, want, still) in RELEASE {
        let mut state = holding(what);
        let before = state.clone();
        let command = release(ReleaseAction::RELEASE, ReservationType(rtype), KEY_B);
        let got = run(&mut state, B, &command);
        assert_eq!(status(&got), want, "{what:?} {rtype}");
        assert_eq!(state.held.is_some(), still, "{what:?} {rtype}");
        assert_eq!(state.registrants, before.registrants);
        assert_eq!(
            state.generation, before.generation,
            "Release does not move GEN"
        );
    }
}

#[test]
fn commands_that_need_a_key_need_the_right_one() {
    for rtype in types() {
        for (host, key) in [(B, KEY_A), (B, 0), (N, KEY_B), (N, 0)] {
            let commands = [
                acquire(AcquireAction::ACQUIRE, rtype, key, 0),
                acquire(AcquireAction::PREEMPT, rtype, key, KEY_A),
                acquire(AcquireAction::PREEMPT_AND_ABORT, rtype, key, 0),
                release(ReleaseAction::RELEASE, rtype, key),
                release(ReleaseAction::CLEAR, rtype, key),
            ];
            for command in commands {
                let got = run(&mut held(rtype), host, &command);
                assert_eq!(status(&got), Is::Conflict, "{command:?}");
            }
        }
    }
}

#[test]
fn fields_that_are_wrong() {
    let mut commands = vec![
        acquire(AcquireAction::ACQUIRE, ReservationType(0), KEY_B, 0),
        acquire(AcquireAction::PREEMPT, ReservationType(7), KEY_B, KEY_A),
        acquire(AcquireAction::ACQUIRE, ReservationType(0xff), KEY_B, 0),
    ];
    commands.extend((3..8).map(|a| acquire(AcquireAction(a), WRITE_EXCLUSIVE, KEY_B, KEY_A)));
    commands.extend((2..8).map(|a| release(ReleaseAction(a), WRITE_EXCLUSIVE, KEY_B)));
    for action in 0..3 {
        let mut command = acquire(AcquireAction(action), WRITE_EXCLUSIVE, KEY_B, KEY_A);
        if let Command::Acquire(command, _) = &mut command {
            command.iekey = true;
        }
        commands.push(command);
    }
    for action in 0..2 {
        let mut command = release(ReleaseAction(action), WRITE_EXCLUSIVE, KEY_B);
        if let Command::Release(command, _) = &mut command {
            command.iekey = true;
        }
        commands.push(command);
    }
    let mut reserved = register(RegisterAction::REGISTER, false, 0, KEY_B);
    if let Command::Register(command, _) = &mut reserved {
        command.cptpl = ChangePtpl(1);
    }
    commands.push(reserved);
    for command in commands {
        let got = run(&mut held(WRITE_EXCLUSIVE), B, &command);
        assert_eq!(status(&got), Is::InvalidField, "{command:?}");
    }
}

#[test]
fn a_host_without_identifier_has_no_part_in_reservations() {
    let commands = [
        register(RegisterAction::REGISTER, false, 0, 1),
        acquire(AcquireAction::ACQUIRE, WRITE_EXCLUSIVE, 1, 0),
        release(ReleaseAction::CLEAR, WRITE_EXCLUSIVE, 1),
    ];
    for command in commands {
        let got = run(
            &mut held(ReservationType::NONE),
            HostId::default(),
            &command,
        );
        assert_eq!(got, Err(Status::HOST_ID_NOT_INITIALIZED.dnr()));
    }
    for rtype in types() {
        let rights = held(rtype).rights(&HostId::default());
        assert!(!rights.write && rights.read != rtype.excludes_reads());
    }
}

#[test]
fn a_holder_that_unregisters_releases() {
    let told = [B, C].map(|host| (host, NotificationType::RESERVATION_RELEASED));
    for rtype in types() {
        let mut state = held(rtype);
        let command = register(RegisterAction::UNREGISTER, true, 0, 0);
        let effects = run(&mut state, A, &command).unwrap();
        assert!(effects.abort.is_empty());
        if rtype.is_all_registrants() {
            // There are other holders, until the last has gone.
            assert_eq!(
                (state.held, &effects),
                (Some(Held::All(rtype)), &Effects::default())
            );
            run(&mut state, B, &command).unwrap();
            assert!(state.held.is_some());
            let effects = run(&mut state, C, &command).unwrap();
            assert_eq!((state.held, effects), (None, Effects::default()));
        } else {
            assert_eq!(state.held, None);
            let expected = if rtype.admits_registrants() {
                &told[..]
            } else {
                &[]
            };
            assert_eq!(effects.notify, expected, "{rtype:?}");
        }
    }
}

#[test]
fn a_release_is_told_to_registrants_where_they_had_rights() {
    let told = [B, C].map(|host| (host, NotificationType::RESERVATION_RELEASED));
    for rtype in types() {
        let command = release(ReleaseAction::RELEASE, rtype, KEY_A);
        let effects = run(&mut held(rtype), A, &command).unwrap();
        let expected = if rtype.admits_registrants() {
            &told[..]
        } else {
            &[]
        };
        assert_eq!(effects.notify, expected, "{rtype:?}");
    }
}

#[test]
fn clear_removes_everything_and_tells_the_others() {
    for rtype in types().chain([ReservationType::NONE]) {
        let mut state = held(rtype);
        let generation = state.generation;
        // By a registrant; RTYPE does not count.
        let command = release(ReleaseAction::CLEAR, ReservationType(0x55), KEY_B);
        let effects = run(&mut state, B, &command).unwrap();
        let told = [A, C].map(|host| (host, NotificationType::RESERVATION_PREEMPTED));
        assert_eq!(effects.notify, told);
        assert!(effects.abort.is_empty());
        assert!(state.held.is_none() && state.registrants.is_empty());
        assert_eq!(state.generation, generation + 1);
    }
}

#[test]
fn preempting_all_who_share_a_key_spares_the_host_itself() {
    let mut state = held(WRITE_EXCLUSIVE);
    let replace = register(RegisterAction::REPLACE, true, 0, KEY_A);
    for host in [B, C] {
        run(&mut state, host, &replace).unwrap();
    }
    let command = acquire(
        AcquireAction::PREEMPT_AND_ABORT,
        WRITE_EXCLUSIVE,
        KEY_A,
        KEY_A,
    );
    let effects = run(&mut state, B, &command).unwrap();
    assert_eq!(effects.abort, [A, C]);
    assert_eq!(state.held, Some(Held::One(WRITE_EXCLUSIVE, B)));
    assert_eq!(state.registrants.len(), 1);
    // The type is what it was: nobody is told that it was released.
    let kinds = effects.notify.iter().map(|(_, kind)| *kind);
    assert!(
        kinds
            .into_iter()
            .all(|kind| kind == NotificationType::REGISTRATION_PREEMPTED)
    );
}

#[test]
fn a_replaced_key_keeps_the_reservation() {
    let mut state = held(WRITE_EXCLUSIVE);
    let replace = register(RegisterAction::REPLACE, false, KEY_A, 0x11);
    run(&mut state, A, &replace).unwrap();
    assert!(state.rights(&A).write);
    // And it is the new key that preempts it.
    let old = acquire(AcquireAction::PREEMPT, WRITE_EXCLUSIVE, KEY_B, KEY_A);
    run(&mut state, B, &old).unwrap();
    assert_eq!(state.held, Some(Held::One(WRITE_EXCLUSIVE, A)));
    let new = acquire(AcquireAction::PREEMPT, WRITE_EXCLUSIVE, KEY_B, 0x11);
    run(&mut state, B, &new).unwrap();
    assert_eq!(state.held, Some(Held::One(WRITE_EXCLUSIVE, B)));
}

#[test]
fn the_last_registrants_of_all_preempt_themselves() {
    let rtype = ReservationType::EXCLUSIVE_ACCESS_ALL;
    let mut state = held(rtype);
    let replace = register(RegisterAction::REPLACE, true, 0, KEY_A);
    for host in [B, C] {
        run(&mut state, host, &replace).unwrap();
    }
    let command = acquire(AcquireAction::PREEMPT, rtype, KEY_A, KEY_A);
    let effects = run(&mut state, A, &command).unwrap();
    assert!(state.registrants.is_empty() && state.held.is_none());
    assert_eq!(effects.notify.len(), 2);
}

#[test]
fn persistence_is_changed_by_register_if_there_is_any() {
    let with = |action, cptpl| {
        let mut command = register(action, false, 0, KEY_A);
        if let Command::Register(command, _) = &mut command {
            command.cptpl = cptpl;
        }
        command
    };
    let mut state = State::default();
    let set = with(RegisterAction::REGISTER, ChangePtpl::SET);
    let refused = state.execute(A, &set, false);
    assert_eq!(
        (refused, &state),
        (Err(Status::INVALID_FIELD.dnr()), &State::default())
    );
    state.execute(A, &set, true).unwrap();
    assert!(state.ptpl);
    // A command that fails changes nothing of it.
    let fails = with(RegisterAction::UNREGISTER, ChangePtpl::CLEAR);
    run(&mut state, A, &fails).unwrap_err();
    assert!(state.ptpl);
    let clear = with(RegisterAction::REGISTER, ChangePtpl::CLEAR);
    state.execute(A, &clear, false).unwrap();
    assert!(!state.ptpl);
}

#[test]
fn registrants_are_limited() {
    let mut state = State::default();
    let host = |i: usize| (i as u128 + 1).to_le_bytes();
    let command = register(RegisterAction::REGISTER, false, 0, 1);
    for i in 0..REGISTRANTS_MAX {
        state.execute(host(i), &command, false).unwrap();
    }
    let one_more = run(&mut state, host(REGISTRANTS_MAX), &command);
    assert_eq!(one_more, Err(Status::INTERNAL_ERROR));
    // Those who are registered go on as ever.
    run(&mut state, host(7), &command).unwrap();
    let leave = register(RegisterAction::UNREGISTER, true, 0, 0);
    run(&mut state, host(8), &leave).unwrap();
    run(&mut state, host(REGISTRANTS_MAX), &command).unwrap();
}

#[test]
fn registrations_alone_change_no_rights() {
    let replace = register(RegisterAction::REPLACE, true, 0, 0x11);
    for rtype in types().chain([ReservationType::NONE]) {
        let before = held(rtype);
        let mut state = before.clone();
        run(&mut state, B, &replace).unwrap();
        assert!(state.same_rights(&before), "another key, {rtype:?}");
        run(&mut state, N, &replace).unwrap();
        let same = !rtype.admits_registrants();
        assert_eq!(state.same_rights(&before), same, "another host, {rtype:?}");
    }
}

#[test]
fn generation_wraps() {
    let mut state = held(ReservationType::NONE);
    state.generation = u32::MAX;
    let command = register(RegisterAction::REGISTER, false, 0, KEY_A);
    run(&mut state, A, &command).unwrap();
    assert_eq!(state.generation, 0);
}

#[test]
fn report() {
    for rtype in types() {
        let mut state = held(rtype);
        state.ptpl = true;
        let cntlid = |host: &HostId| if *host == B { 7 } else { 0xffff };
        let mut data = [0xee; 1024];
        state.report(cntlid, &mut data);
        let header = ReservationStatus::decode(data.first_chunk().unwrap());
        assert_eq!(
            header,
            ReservationStatus {
                generation: 3,
                rtype,
                registrants: 3,
                ptpls: 1
            }
        );
        let zeroes = [&data[24..64], &data[64 * 4..]].concat();
        assert!(zeroes.iter().all(|&b| b == 0));
        for (i, (host, key)) in [(A, KEY_A), (B, KEY_B), (C, KEY_C)].into_iter().enumerate() {
            let entry = RegistrantExtended::decode(data[64 * (i + 1)..].first_chunk().unwrap());
            let holds = host == A || rtype.is_all_registrants();
            let mut status = RegistrantStatus::empty();
            status.set(RegistrantStatus::HOLDER, holds);
            let want = RegistrantExtended {
                cntlid: cntlid(&host),
                status,
                rkey: key,
                hostid: host,
            };
            assert_eq!(entry, want, "{rtype:?}");
        }
        // Any length is a legal one.
        for room in 0..=300 {
            let mut part = vec![0xee; room];
            state.report(cntlid, &mut part);
            assert_eq!(part, data[..room]);
        }
    }
    let mut data = [0xee; 64];
    State::default().report(|_| 0, &mut data);
    assert_eq!(data, [0; 64]);
}
