//! Discovery by hosts that stay connected while everything around them changes.

mod common;

use common::{NQN, PATIENCE, assert_idle, config, target};
use nvmf_host::nvmf_proto::wire::discovery::{
    DiscoveryLogEntry, DiscoveryLogHeader, DiscoveryLsp, EntryFlags, SubsystemType,
};
use nvmf_host::nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_host::nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Controller};
use nvmf_target::{Change, ListenerConfig, Referral, SubsystemConfig, Target};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

const SECRET: &str = "nqn.2026-11.org.example:secret";

fn host(name: &str) -> String {
    format!("nqn.2026-11.org.example:host-{name}")
}

fn discovery(address: SocketAddr, name: &str) -> Controller {
    let mut options = ConnectOptions::discovery(address);
    options.host = Nqn::new(&host(name)).unwrap();
    options.kato = 60_000;
    Controller::connect(&options).unwrap()
}

/// SUBTYPE, NQN and port of each entry but that of the service itself.
fn entries(controller: &mut Controller) -> Vec<(SubsystemType, String, String)> {
    let (own, others): (Vec<_>, Vec<_>) = controller
        .discovery_log()
        .unwrap()
        .into_iter()
        .partition(|entry| entry.subtype == SubsystemType::CURRENT_DISCOVERY);
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].eflags, EntryFlags::PERSISTENT);
    let fields = |entry: DiscoveryLogEntry| {
        let nqn = entry.subsystem_nqn().unwrap().as_str().to_owned();
        (entry.subtype, nqn, entry.service())
    };
    others.into_iter().map(fields).collect()
}

fn header(controller: &mut Controller) -> DiscoveryLogHeader {
    let mut request = GetLogPage::new(Lid::DISCOVERY, 0);
    request.rae = true;
    let page = controller
        .log_page(0, &request, DiscoveryLogHeader::SIZE)
        .unwrap();
    DiscoveryLogHeader::decode(page.first_chunk().unwrap())
}

#[test]
fn a_host_is_told_of_what_concerns_it() {
    let (target, address) = target(config());
    let port = address.port().to_string();
    let [mut a, mut b] = ["a", "b"].map(|name| discovery(address, name));
    for controller in [&mut a, &mut b] {
        controller
            .set_event_config(AsyncEventConfig::DISCOVERY_LOG)
            .unwrap();
        controller.submit_event_request().unwrap();
    }
    let open = (SubsystemType::NVM, NQN.to_owned(), port.clone());
    assert_eq!(entries(&mut a), std::slice::from_ref(&open));
    let before = header(&mut b).genctr;
    let mut secret = SubsystemConfig::new(SECRET);
    secret.allow_any_host = false;
    secret.hosts = vec![host("a")];
    target.add_subsystem(secret).unwrap();
    let event = Some(AsyncEvent::DISCOVERY_LOG_CHANGED);
    assert_eq!(a.poll_event(PATIENCE).unwrap(), event);
    let hidden = (SubsystemType::NVM, SECRET.to_owned(), port.clone());
    assert_eq!(entries(&mut a), [hidden, open.clone()]);
    assert_eq!(header(&mut b).genctr, before);
    // The first that b hears of, and the next generation for it, is the referral.
    let elsewhere = Referral::tcp("192.0.2.7:8009".parse().unwrap());
    target.add_referral(elsewhere.clone()).unwrap();
    assert_eq!(b.poll_event(PATIENCE).unwrap(), event);
    let well_known = Nqn::discovery().as_str().to_owned();
    let referral = (SubsystemType::REFERRAL, well_known, "8009".to_owned());
    assert_eq!(entries(&mut b), [open, referral]);
    assert_eq!(header(&mut b).genctr, before + 1);
    target.remove_referral(elsewhere).unwrap();
    drop((a, b));
    assert_idle(&target);
}

#[test]
fn any_port_answers_for_all_and_both_names_do() {
    let own = "nqn.2026-11.org.example:discovery";
    let mut config = config();
    config.discovery_nqn = Some(own.to_owned());
    let (target, io) = target(config);
    let only = target
        .listen_discovery("127.0.0.1:0".parse().unwrap())
        .unwrap();
    for address in [io, only] {
        for name in [None, Some(own)] {
            let mut options = ConnectOptions::discovery(address);
            if let Some(name) = name {
                options.subsystem = Nqn::new(name).unwrap();
            }
            let mut controller = Controller::connect(&options).unwrap();
            let id = controller.identify_controller().unwrap();
            assert_eq!(id.subnqn, Nqn::new(own).unwrap().to_field());
            let log = controller.discovery_log().unwrap();
            assert_eq!(log.len(), 2);
            assert_eq!(log[0].subsystem_nqn().unwrap().as_str(), own);
            assert_eq!(log[0].service(), address.port().to_string());
            assert_eq!(log[1].subsystem_nqn().unwrap().as_str(), NQN);
            assert_eq!(log[1].service(), io.port().to_string());
        }
    }
    let refused = Controller::connect(&ConnectOptions::new(only, NQN).unwrap());
    assert!(refused.unwrap_err().status().is_some());
}

#[test]
fn port_local_entries_are_those_of_the_port() {
    let (target, first) = target(config());
    let second = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    for address in [first, second] {
        let mut controller = discovery(address, "a");
        let mut request = GetLogPage::new(Lid::DISCOVERY, 0);
        let mut numrec = |lsp: DiscoveryLsp| {
            request.lsp = lsp.bits();
            let page = controller.log_page(0, &request, 4096).unwrap();
            let entry = DiscoveryLogEntry::decode(page[2048..3072].try_into().unwrap());
            let header = DiscoveryLogHeader::decode(page.first_chunk().unwrap());
            (header.numrec, entry.service())
        };
        assert_eq!(numrec(DiscoveryLsp::empty()).0, 3);
        let port = address.port().to_string();
        assert_eq!(numrec(DiscoveryLsp::PORT_LOCAL), (2, port));
    }
}

/// A log of two states, each of many records, is never seen as a mixture: the generation tells.
#[test]
fn a_log_that_changes_while_it_is_read_is_read_again() {
    let (target, address) = target(config());
    let nqns = |kind: &str| {
        let name = |n| format!("nqn.2026-11.org.example:{kind}-{n:02}");
        (0..40).map(name).collect::<Vec<String>>()
    };
    let (old, new) = (nqns("old"), nqns("new"));
    let replace = |target: &Target, from: &[String], to: &[String]| {
        let remove = from
            .iter()
            .map(|nqn| Change::RemoveSubsystem { nqn: nqn.clone() });
        let add = to
            .iter()
            .map(|nqn| Change::AddSubsystem(SubsystemConfig::new(nqn.clone())));
        target.apply(remove.chain(add).collect()).unwrap();
    };
    replace(&target, &[NQN.to_owned()], &old);
    let over = AtomicBool::new(false);
    let (mut states, mut read) = ([false; 2], 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                replace(&target, &old, &new);
                replace(&target, &new, &old);
            }
        });
        let mut controller = discovery(address, "a");
        let mut attempts = 0;
        while read < 20 && attempts < 20_000 {
            attempts += 1;
            // It gives up after some attempts: that is the generation's doing.
            let Ok(log) = controller.discovery_log() else {
                continue;
            };
            let names = log.iter().skip(1).map(|e| e.subsystem_nqn().unwrap());
            let names: Vec<String> = names.map(|nqn| nqn.as_str().to_owned()).collect();
            assert!(names == old || names == new, "{names:?}");
            states[usize::from(names == new)] = true;
            read += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(read > 0 && states.contains(&true));
}

#[test]
fn limits_and_roles_of_listeners_are_told_honestly() {
    let (target, _) = target(config());
    let mut listener = ListenerConfig::tcp("127.0.0.1:0".parse().unwrap());
    listener.port_id = Some(700);
    let info = target.listen_with(listener).unwrap();
    let mut controller = discovery(info.socket.unwrap(), "a");
    let log = controller.discovery_log().unwrap();
    let ids: Vec<u16> = log.iter().map(|entry| entry.portid).collect();
    assert_eq!(ids, [700, 1, 700]);
    for entry in &log {
        // As many as the entry says, and no more, may an admin queue have.
        let mut options = ConnectOptions::discovery(info.socket.unwrap());
        options.admin_entries = entry.asqsz.into();
        Controller::connect(&options).unwrap();
    }
}
