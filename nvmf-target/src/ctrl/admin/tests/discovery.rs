use super::*;
use crate::Role;
use crate::TargetConfig;
use crate::change::Change;
use crate::ctrl::testing::listen;
use crate::{ListenerConfig, Referral, SubsystemConfig};
use nvmf_proto::wire::discovery::{
    AddressFamily, DiscoveryLogEntry, DiscoveryLogHeader, EntryFlags, SubsystemType, TransportType,
    Treq,
};
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid};
use std::sync::Arc;

fn read(rig: &Rig, lpo: u64, length: u32) -> Result<Vec<u8>, Status> {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
    let get = GetLogPage {
        lpo,
        rae: true,
        ..GetLogPage::new(Lid::DISCOVERY, length)
    };
    get.encode(&mut sqe);
    rig.run(&sqe).map(|(_, data)| data)
}

fn header(rig: &Rig) -> DiscoveryLogHeader {
    DiscoveryLogHeader::decode(&read(rig, 0, 1024).unwrap().try_into().unwrap())
}

fn entries(rig: &Rig) -> Vec<DiscoveryLogEntry> {
    (1..=header(rig).numrec)
        .map(|n| read(rig, n * 1024, 1024).unwrap().try_into().unwrap())
        .map(|block| DiscoveryLogEntry::decode(&block))
        .collect()
}

/// SUBTYPE, name, address and service of each entry.
fn ways(rig: &Rig) -> Vec<(u8, String, String, String)> {
    entries(rig)
        .iter()
        .map(|entry| {
            let name = entry.subsystem_nqn().unwrap().as_str().to_owned();
            let name = name.rsplit(':').next().unwrap_or_default().to_owned();
            (entry.subtype.0, name, entry.address(), entry.service())
        })
        .collect()
}

fn way(subtype: SubsystemType, name: &str, at: &str, port: &str) -> (u8, String, String, String) {
    (subtype.0, name.to_owned(), at.to_owned(), port.to_owned())
}

const OWN: SubsystemType = SubsystemType::CURRENT_DISCOVERY;
const NVM: SubsystemType = SubsystemType::NVM;
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

#[test]
fn an_entry_for_each_subsystem_by_each_io_listener() {
    let rig = Rig::discovery();
    assert_eq!(ways(&rig), [way(OWN, DISCOVERY, "192.0.2.1", "4420")]);
    nvm_subsystem(&rig.core, "a");
    nvm_subsystem(&rig.core, "b");
    listen(&rig.core, tcp_address("2001:db8::1", 4421), Role::Io);
    listen(&rig.core, tcp_address("192.0.2.1", 8009), Role::Discovery);
    assert_eq!(
        ways(&rig),
        [
            way(OWN, DISCOVERY, "192.0.2.1", "4420"),
            way(NVM, "a", "192.0.2.1", "4420"),
            way(NVM, "a", "2001:db8::1", "4421"),
            way(NVM, "b", "192.0.2.1", "4420"),
            way(NVM, "b", "2001:db8::1", "4421"),
        ]
    );
    for (n, entry) in entries(&rig).iter().enumerate() {
        assert_eq!((entry.trtype, entry.cntlid), (TransportType::TCP, 0xffff));
        assert_eq!(entry.treq, Treq::SQ_FLOW_CONTROL_DISABLE);
        assert!(entry.asqsz >= 32 && entry.tcp_sectype.0 == 0);
        let own = n == 0;
        assert_eq!(
            entry.eflags,
            if own {
                EntryFlags::PERSISTENT
            } else {
                EntryFlags::empty()
            }
        );
        let ipv6 = n == 2 || n == 4;
        assert_eq!(entry.portid, if ipv6 { 2 } else { 1 });
        let family = if ipv6 {
            AddressFamily::IPV6
        } else {
            AddressFamily::IPV4
        };
        assert_eq!(entry.adrfam, family);
    }
}

#[test]
fn wildcard_listeners_are_shown_by_the_address_that_was_reached() {
    let mut rig = Rig::discovery();
    nvm_subsystem(&rig.core, "a");
    listen(&rig.core, tcp_address("0.0.0.0", 5000), Role::Io);
    listen(&rig.core, tcp_address("::", 6000), Role::Io);
    let listener = listen(&rig.core, tcp_address("::", 8009), Role::Discovery);
    let fixed = way(NVM, "a", "192.0.2.1", "4420");
    let mut come_by = |local_ip: Option<&str>| {
        let local_ip = local_ip.map(|ip| ip.parse().unwrap());
        rig.come_by(Arc::clone(&listener), local_ip);
        ways(&rig)
    };
    let own = way(OWN, DISCOVERY, "2001:db8::7", "8009");
    assert_eq!(
        come_by(Some("2001:db8::7")),
        [own, fixed.clone(), way(NVM, "a", "2001:db8::7", "6000")]
    );

    // An IPv4 host of a socket for both families.
    assert_eq!(
        come_by(Some("::ffff:192.0.2.9")),
        [fixed.clone(), way(NVM, "a", "192.0.2.9", "5000")]
    );

    assert_eq!(come_by(None), [fixed]);
}

#[test]
fn parts_make_up_the_whole() {
    let rig = Rig::discovery();
    for name in ["a", "b", "c"] {
        nvm_subsystem(&rig.core, name);
    }
    let size = 5 * 1024;
    let whole = read(&rig, 0, size).unwrap();
    for (offset, length) in [
        (0, 16),
        (4, 1024),
        (1020, 8),
        (1024, 2048),
        (1000, 3000),
        (size - 4, 4),
        (size - 4, 4096),
        (size, 1024),
        (0, 16 * 1024),
    ] {
        let mut expected = whole[offset as usize..].to_vec();
        expected.resize(length as usize, 0);
        assert_eq!(
            read(&rig, offset.into(), length).unwrap(),
            expected,
            "{offset} {length}"
        );
    }
    assert_eq!(
        read(&rig, u64::from(size) + 4, 4),
        Err(Status::INVALID_FIELD.dnr())
    );
    assert_eq!(
        read(&rig, u64::MAX - 3, 4),
        Err(Status::INVALID_FIELD.dnr())
    );
}

#[test]
fn the_generation_tells_of_every_change() {
    let rig = Rig::discovery();
    let first = header(&rig);
    assert_eq!((first.recfmt, first.numrec), (0, 1));
    assert_ne!(first.genctr, 0);
    assert_eq!(header(&rig), first);
    nvm_subsystem(&rig.core, "a");
    let second = header(&rig);
    assert_eq!((second.genctr, second.numrec), (first.genctr + 1, 2));
    listen(&rig.core, tcp_address("192.0.2.2", 4420), Role::Io);
    let third = header(&rig);
    assert_eq!((third.genctr, third.numrec), (second.genctr + 1, 3));
}

#[test]
fn flow_control_is_required_if_it_cannot_be_disabled() {
    let config = TargetConfig {
        sq_flow_control_disable: false,
        ..TargetConfig::default()
    };
    let rig = Rig::with(config, |core| Arc::clone(&core.discovery));
    assert_eq!(entries(&rig)[0].treq, Treq::empty());
}

fn name(of: &str) -> String {
    nqn(of).as_str().to_owned()
}

/// GENCTR and whether there was an event since the last look, for each.
fn news(rigs: &[&Rig]) -> Vec<(u64, bool)> {
    let look = |rig: &&Rig| {
        let event = rig.controller.next_event();
        rig.controller.clear_event(Lid::DISCOVERY);
        let expected = AsyncEvent::DISCOVERY_LOG_CHANGED;
        assert!(event.is_none_or(|event| event == expected));
        (header(rig).genctr, event.is_some())
    };
    rigs.iter().map(look).collect()
}

/// Who sees each change: hosts `a`, `b`, and `c` that no list has.
#[test]
fn generations_and_events_are_those_of_the_host() {
    let rig = Rig::discovery();
    let (a, b, c) = (rig.other("a"), rig.other("b"), rig.other("c"));
    let rigs = [&a, &b, &c];
    for rig in rigs {
        rig.controller
            .set_event_config(AsyncEventConfig::DISCOVERY_LOG);
    }
    let mut before = news(&rigs);
    let mut step = |change: Change, affected: &str| {
        let what = change.to_string();
        rig.apply(change);
        let now = news(&rigs);
        for ((host, before), now) in ["a", "b", "c"].into_iter().zip(&before).zip(&now) {
            let seen = affected.contains(host);
            let expected = (before.0 + u64::from(seen), seen);
            assert_eq!(*now, expected, "host {host}: {what}");
        }
        before = now;
        rigs.map(|rig| ways(rig).len() - 1)
    };
    let host = |host: &str, add: bool| {
        let (nqn, host) = (name("s"), name(host));
        if add {
            Change::AddHost { nqn, host }
        } else {
            Change::RemoveHost { nqn, host }
        }
    };
    let any = |allow| Change::AllowAnyHost {
        nqn: name("s"),
        allow,
    };
    let mut config = SubsystemConfig::new(name("s"));
    config.allow_any_host = false;
    assert_eq!(step(Change::AddSubsystem(config), ""), [0, 0, 0]);
    assert_eq!(step(host("a", true), "a"), [1, 0, 0]);
    assert_eq!(step(host("a", true), ""), [1, 0, 0]);
    assert_eq!(step(any(true), "bc"), [1, 1, 1]);
    assert_eq!(step(host("b", true), ""), [1, 1, 1]);
    assert_eq!(step(host("a", false), ""), [1, 1, 1]);
    assert_eq!(step(any(false), "ac"), [0, 1, 0]);
    let mut config = ListenerConfig::tcp(([127, 0, 0, 1], 0).into());
    config.name = Some("l".to_owned());
    config.subsystems = Some(vec![]);
    assert_eq!(step(Change::AddListener(config), ""), [0, 1, 0]);
    let (listener, nqn) = ("l".to_owned(), name("s"));
    assert_eq!(step(Change::Serve { listener, nqn }, "b"), [0, 2, 0]);
    let mut wild = ListenerConfig::tcp(([0, 0, 0, 0, 0, 0, 0, 0], 0).into());
    wild.name = Some("wild".to_owned());
    // All have come by IPv4, so an IPv6 wildcard is none of their business.
    assert_eq!(step(Change::AddListener(wild), ""), [0, 2, 0]);
    let listener = "l".to_owned();
    assert_eq!(step(Change::RemoveListener { listener }, "b"), [0, 1, 0]);
    let referral = Referral::tcp(([192, 0, 2, 9], 8009).into());
    let add = Change::AddReferral(referral.clone());
    assert_eq!(step(add, "abc"), [1, 2, 1]);
    let entry = entries(&c).pop().unwrap();
    assert_eq!(entry.subtype, SubsystemType::REFERRAL);
    assert_eq!(entry.subsystem_nqn().unwrap().as_str(), DISCOVERY);
    assert_eq!(
        (&*entry.address(), &*entry.service()),
        ("192.0.2.9", "8009")
    );
    let remove = Change::RemoveReferral(referral);
    assert_eq!(step(remove, "abc"), [0, 1, 0]);
    let nqn = name("s");
    assert_eq!(step(Change::RemoveSubsystem { nqn }, "b"), [0, 0, 0]);
}

/// The generation of a host goes on where it was, named or not, connected or not.
#[test]
fn generations_do_not_depend_on_connections() {
    let rig = Rig::discovery();
    let genctr = || header(&rig.other("a")).genctr;
    let first = genctr();
    nvm_subsystem(&rig.core, "s");
    assert_eq!(genctr(), first + 1);
    let (nqn, host) = (name("s"), name("a"));
    rig.apply(Change::AddHost {
        nqn: nqn.clone(),
        host: host.clone(),
    });
    assert_eq!(genctr(), first + 1);
    rig.apply(Change::AllowAnyHost {
        nqn: nqn.clone(),
        allow: false,
    });
    assert_eq!((genctr(), header(&rig).genctr), (first + 1, first + 2));
    rig.apply(Change::RemoveHost { nqn, host });
    assert_eq!(genctr(), first + 2);
    nvm_subsystem(&rig.core, "t");
    assert_eq!((genctr(), header(&rig).genctr), (first + 3, first + 3));
}

#[test]
fn the_service_has_a_name_of_its_own_if_so_wished() {
    let config = TargetConfig {
        discovery_nqn: Some(name("discovery")),
        ..TargetConfig::default()
    };
    let rig = Rig::with(config, |core| Arc::clone(&core.discovery));
    assert_eq!(ways(&rig), [way(OWN, "discovery", "192.0.2.1", "4420")]);
}
