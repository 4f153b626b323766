use super::*;
use crate::change::Change;
use crate::ctrl::AnaState;
use crate::ctrl::testing::listen;
use crate::ns::NsInfo;
use crate::{NamespaceConfig, Role};
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::identify::{
    AnaCapabilities, Cns, IdentifyCommand, IdentifyController, IdentifyNamespace,
    IdentifyNamespaceIndependent,
};
use nvmf_proto::wire::log::{
    AnaGroup, AnaLsp, AnaStateCode, AsyncEvent, GetLogPage, Lid, decode_ana_log,
};
use std::sync::Arc;

const STATES: [AnaState; 5] = [
    AnaState::Optimized,
    AnaState::NonOptimized,
    AnaState::Inaccessible,
    AnaState::PersistentLoss,
    AnaState::Change,
];

fn read(rig: &Rig, lsp: AnaLsp, rae: bool) -> (u64, Vec<AnaGroup>) {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
    sqe.set_nsid(0xffff_ffff);
    let get = GetLogPage {
        lsp: lsp.bits(),
        rae,
        ..GetLogPage::new(Lid::ANA, 4096)
    };
    get.encode(&mut sqe);
    let (mut data, len) = ([0xa5; 4096], 4096);
    assert_eq!(transfer(&rig.cx(), &sqe), Ok(Transfer::ToHost(len)));
    execute(&rig.cx(), &sqe, &mut data).unwrap();
    decode_ana_log(&data).unwrap()
}

/// ANAGRPID, state, change count and NSIDs of each group.
fn groups(rig: &Rig) -> Vec<(u32, AnaStateCode, u64, Vec<u32>)> {
    let (_, groups) = read(rig, AnaLsp::empty(), true);
    let groups = groups.into_iter();
    groups
        .map(|g| (g.anagrpid, g.state, g.chgcnt, g.nsids))
        .collect()
}

fn chgcnt(rig: &Rig) -> u64 {
    read(rig, AnaLsp::empty(), true).0
}

fn set(rig: &Rig, listener: &str, anagrpid: u32, state: AnaState) {
    rig.apply(Change::SetAnaState {
        nqn: rig.nqn(),
        listener: listener.to_owned(),
        anagrpid,
        state,
    });
}

/// Namespaces 1 and 3 in group 1, 5 in group 7, 6 in group 9 and for another host only.
fn rig() -> Rig {
    let rig = Rig::nvm();
    let mut config = NamespaceConfig::new(5);
    config.anagrpid = 7;
    rig.attach_with(config, NsInfo::new(512, 8));
    let mut config = NamespaceConfig::new(6);
    config.anagrpid = 9;
    config.hosts = Some(vec![nqn("other").as_str().to_owned()]);
    rig.attach_with(config, NsInfo::new(512, 8));
    rig
}

const HERE: &str = "192.0.2.1";
const ALL: AsyncEventConfig =
    AsyncEventConfig::ANA_CHANGE.union(AsyncEventConfig::NAMESPACE_ATTRIBUTE);

#[test]
fn the_log_shows_groups_states_and_change_counts() {
    let rig = rig();
    let optimized = AnaStateCode::OPTIMIZED;
    let before = chgcnt(&rig);
    assert_ne!(before, 0);
    let (one, seven) = (groups(&rig)[0].2, groups(&rig)[1].2);
    let expected = |a: u64, state, b: u64| {
        vec![
            (1, optimized, one + a, vec![1, 3]),
            (7, state, seven + b, vec![5]),
        ]
    };
    assert_eq!(groups(&rig), expected(0, optimized, 0));
    let codes = [(2, 2), (3, 3), (4, 4), (5, 0xf)];
    for ((n, code), state) in codes.into_iter().zip(&STATES[1..]) {
        set(&rig, HERE, 7, *state);
        let n = n - 1;
        assert_eq!(groups(&rig), expected(0, AnaStateCode(code), n), "{state}");
        assert_eq!(chgcnt(&rig), before + n);
        // The same again is no change; nor is what this host cannot see.
        set(&rig, HERE, 7, *state);
        set(&rig, HERE, 9, *state);
        assert_eq!(chgcnt(&rig), before + n);
    }
    let (count, only) = read(&rig, AnaLsp::GROUPS_ONLY, true);
    assert_eq!(count, before + 4);
    assert!(only.iter().all(|group| group.nsids.is_empty()));
    assert_eq!(only.len(), 2);
    rig.apply(Change::SetAnaGroup {
        nqn: rig.nqn(),
        nsid: 3,
        anagrpid: 7,
    });
    assert_eq!(
        groups(&rig),
        [
            (1, optimized, one + 1, vec![1]),
            (7, AnaStateCode::CHANGE, seven + 5, vec![3, 5]),
        ]
    );
    // The other host's log is its own, and has a group more.
    assert_eq!(groups(&rig.other("other")).len(), 3);
}

#[test]
fn states_are_those_of_the_port() {
    let mut rig = rig();
    let second = listen(&rig.core, tcp_address("192.0.2.2", 4420), Role::Io);
    set(&rig, HERE, 1, AnaState::Inaccessible);
    set(&rig, &second.name, 1, AnaState::NonOptimized);
    assert_eq!(groups(&rig)[0].1, AnaStateCode::INACCESSIBLE);
    rig.come_by(second, None);
    assert_eq!(groups(&rig)[0].1, AnaStateCode::NON_OPTIMIZED);
    // A listener that comes after one that has gone starts with nothing of it.
    rig.apply(Change::RemoveListener {
        listener: "192.0.2.2".to_owned(),
    });
    let third = listen(&rig.core, tcp_address("192.0.2.2", 4420), Role::Io);
    rig.come_by(third, None);
    assert_eq!(groups(&rig)[0].1, AnaStateCode::OPTIMIZED);
}

#[test]
fn events_come_to_those_who_see_the_change() {
    let rig = rig();
    let other = rig.other("other");
    let second = listen(&rig.core, tcp_address("192.0.2.2", 4420), Role::Io);
    let mut elsewhere = rig.other("host");
    elsewhere.come_by(second, None);
    let quiet = rig.other("quiet");
    for rig in [&rig, &other, &elsewhere] {
        rig.controller.set_event_config(ALL);
    }
    set(&rig, HERE, 9, AnaState::Inaccessible);
    let events = |rig: &Rig| std::iter::from_fn(|| rig.controller.next_event()).collect::<Vec<_>>();
    assert_eq!(events(&other), [AsyncEvent::ANA_CHANGE]);
    for rig in [&rig, &elsewhere, &quiet] {
        assert_eq!(events(rig), []);
    }
    set(&rig, HERE, 1, AnaState::Inaccessible);
    assert_eq!(events(&rig), [AsyncEvent::ANA_CHANGE]);
    assert_eq!(events(&other), [], "masked until the log is read");
    set(&rig, HERE, 1, AnaState::Optimized);
    assert_eq!(events(&rig), []);
    read(&rig, AnaLsp::empty(), true);
    set(&rig, HERE, 1, AnaState::Change);
    assert_eq!(events(&rig), [], "RAE");
    read(&rig, AnaLsp::empty(), false);
    set(&rig, HERE, 1, AnaState::Optimized);
    assert_eq!(events(&rig), [AsyncEvent::ANA_CHANGE]);
    assert!(events(&elsewhere).is_empty() && events(&quiet).is_empty());
    // What comes is announced as such, and only as such.
    read(&rig, AnaLsp::empty(), false);
    rig.attach(8, NsInfo::new(512, 8));
    assert_eq!(events(&rig), [AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED]);
}

fn identify<const N: usize>(rig: &Rig, cns: Cns, nsid: u32) -> [u8; N] {
    let mut sqe = Sqe::with_opcode(AdminOpcode::IDENTIFY.0);
    sqe.set_nsid(nsid);
    IdentifyCommand::new(cns).encode(&mut sqe);
    rig.run(&sqe).unwrap().1.try_into().unwrap()
}

#[test]
fn identify_tells_of_groups_and_hides_what_cannot_be_known() {
    let rig = rig();
    let id = IdentifyController::decode(&identify(&rig, Cns::CONTROLLER, 0));
    assert_eq!((id.anatt, id.anagrpmax, id.nanagrpid), (10, 128, 128));
    let constant = AnaCapabilities::GROUP_ID_FIXED | AnaCapabilities::GROUP_ID_MANAGED;
    assert_eq!(id.anacap, AnaCapabilities::all().difference(constant));
    for state in STATES {
        set(&rig, HERE, 7, state);
        let ns = IdentifyNamespace::decode(&identify(&rig, Cns::NAMESPACE, 5));
        assert_eq!((ns.anagrpid, ns.nsze, ns.ncap), (7, 8, 8));
        let lost = matches!(state, AnaState::Inaccessible | AnaState::PersistentLoss);
        let expected = if lost { (0, 0) } else { (8, 4096) };
        assert_eq!((ns.nuse, ns.nvmcap), expected, "{state}");
        let ns: [u8; 4096] = identify(&rig, Cns::NAMESPACE_INDEPENDENT, 5);
        assert_eq!(IdentifyNamespaceIndependent::decode(&ns).anagrpid, 7);
    }
}

#[test]
fn io_is_refused_as_the_state_says() {
    let rig = rig();
    let expected = [
        None,
        None,
        Some((3, 0x02)),
        Some((3, 0x01)),
        Some((3, 0x03)),
    ];
    for (state, refused) in STATES.into_iter().zip(expected) {
        set(&rig, HERE, 7, state);
        let view = rig.controller.view();
        let ana = view.get(5).unwrap().ana;
        assert_eq!(ana.map(|s| (s.sct().0, s.sc())), refused, "{state}");
        assert!(ana.is_none_or(|status| !status.is_dnr()));
        assert_eq!(view.get(1).unwrap().ana, None);
        assert!(view.get(6).is_none());
        let other = rig.other("other").controller;
        assert!(Arc::ptr_eq(
            &other.view().get(5).unwrap().entry,
            &view.get(5).unwrap().entry
        ));
    }
}
