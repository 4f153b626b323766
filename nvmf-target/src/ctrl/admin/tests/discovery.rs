use super::*;
use crate::Role;
use crate::TargetConfig;
use crate::ctrl::testing::listen;
use nvmf_proto::wire::discovery::{
    AddressFamily, DiscoveryLogEntry, DiscoveryLogHeader, EntryFlags, SubsystemType, TransportType,
    Treq,
};
use nvmf_proto::wire::log::{GetLogPage, Lid};
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
