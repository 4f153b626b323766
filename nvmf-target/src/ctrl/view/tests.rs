use super::*;
use crate::ctrl::reservation::{Command, HostId, Waiter};
use crate::ctrl::subsystem::Changed;
use crate::ctrl::testing::Rig;
use crate::ns::NsInfo;
use crate::reactor::Mailbox;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, RegisterAction, RegisterCommand,
    RegisterData, ReleaseAction, ReleaseCommand, ReleaseData, ReservationType,
};

/// Another host than that of any [`Rig`].
const STRANGER: HostId = [9; 16];
const KEY: u64 = 5;
const RTYPE: ReservationType = ReservationType::WRITE_EXCLUSIVE;

fn reserve(rig: &Rig, nsid: u32, command: Command) {
    let entry = Arc::clone(rig.subsystem.table().get(nsid).unwrap());
    let waiter = Waiter::new(&Mailbox::new().unwrap(), 0, Slot::default());
    let keeper = &rig.core.keeper;
    rig.subsystem
        .reserve(keeper, &entry, STRANGER, command, waiter);
}

fn register(rig: &Rig, nsid: u32) {
    let command = RegisterCommand {
        action: RegisterAction::REGISTER,
        iekey: false,
        cptpl: ChangePtpl::NONE,
    };
    let (crkey, nrkey) = (0, KEY);
    let data = RegisterData { crkey, nrkey };
    reserve(rig, nsid, Command::Register(command, data));
}

fn acquire(rig: &Rig, nsid: u32) {
    let command = AcquireCommand {
        action: AcquireAction::ACQUIRE,
        iekey: false,
        rtype: RTYPE,
    };
    let (crkey, prkey) = (KEY, 0);
    let data = AcquireData { crkey, prkey };
    reserve(rig, nsid, Command::Acquire(command, data));
}

fn release(rig: &Rig, nsid: u32) {
    let command = ReleaseCommand {
        action: ReleaseAction::RELEASE,
        iekey: false,
        rtype: RTYPE,
    };
    let data = ReleaseData { crkey: KEY };
    reserve(rig, nsid, Command::Release(command, data));
}

/// What is refused of Read, Flush and Write.
fn refused(view: &View, nsid: u32) -> [Option<Status>; 3] {
    let seen = view.get(nsid).unwrap();
    [Usage::Read, Usage::Flush, Usage::Write].map(|usage| seen.refusal(usage))
}

#[test]
fn what_hosts_change_themselves_makes_no_view_anew() {
    let rig = Rig::nvm();
    let other = rig.other("other");
    (10..100).for_each(|nsid| rig.attach(nsid, NsInfo::new(512, 8)));
    let (mut view, mut generation) = (Arc::default(), 0);
    rig.controller.refresh(&mut view, &mut generation);
    let made = Arc::clone(&view);
    [1, 50].iter().for_each(|&nsid| register(&rig, nsid));
    let conflict = Some(Status::RESERVATION_CONFLICT.dnr());
    for round in 0..100 {
        acquire(&rig, 1);
        rig.controller.refresh(&mut view, &mut generation);
        assert_eq!(refused(&view, 1), [None, conflict, conflict]);
        release(&rig, 1);
        acquire(&rig, 50);
        other.controller.enable_write_cache(round % 2 == 0);
        rig.controller.enable_write_cache(round % 2 == 1);
        rig.controller.refresh(&mut view, &mut generation);
        assert_eq!(refused(&view, 1), [None; 3]);
        assert_eq!(refused(&view, 50), [None, conflict, conflict]);
        assert_eq!(view.write_through(), round % 2 == 0);
        release(&rig, 50);
        rig.controller.refresh(&mut view, &mut generation);
        assert!(Arc::ptr_eq(&view, &made), "round {round}");
    }
}

#[test]
fn who_was_away_looks_at_what_has_changed_and_once() {
    let rig = Rig::nvm();
    rig.attach(5, NsInfo::new(512, 8));
    let protected = Some(Status::NAMESPACE_WRITE_PROTECTED.dnr());
    let conflict = Some(Status::RESERVATION_CONFLICT.dnr());
    let made = rig.controller.view();
    let since = rig.subsystem.generation();
    [3, 5].iter().for_each(|&nsid| register(&rig, nsid));
    for _ in 0..1000 {
        for nsid in [3, 5] {
            acquire(&rig, nsid);
            release(&rig, nsid);
        }
    }
    acquire(&rig, 3);
    let now = rig.subsystem.generation();
    assert_eq!(now, since + 4001);
    let (generation, changed) = rig.subsystem.changed_since(since);
    assert_eq!((generation, changed), (now, Changed::Rights(vec![5, 3])));
    assert!(Arc::ptr_eq(&rig.controller.view(), &made));
    assert_eq!(refused(&made, 3), [None, conflict, conflict]);
    assert_eq!(refused(&made, 5), [None; 3]);
    release(&rig, 3);
    rig.controller.view();
    assert_eq!(refused(&made, 3), [None, None, protected]);
    // Another table is looked at as a whole, and what was before it is forgotten.
    rig.attach(7, NsInfo::new(512, 8));
    let changed = |since| rig.subsystem.changed_since(since).1;
    assert_eq!(changed(now), Changed::All);
    assert_eq!(changed(rig.subsystem.generation()), Changed::Rights(vec![]));
    assert!(rig.controller.view().get(7).is_some());
}
