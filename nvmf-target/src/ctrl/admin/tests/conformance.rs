//! What docs/conformance.md says there is, is there, and nothing else is: asked of controllers.
//!
//! Its tables start with the codes or names of what they are about and end with their tests. That
//! those exist is what `nvmf-target/tests/docs.rs` sees to.

use super::*;
use crate::ctrl::admin::{feature, log};
use nvmf_proto::wire::NvmOpcode;
use nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_proto::wire::log::{CommandEffectsLog, GetLogPage, Lid};
use std::collections::BTreeSet;

const DOCUMENT: &str = include_str!("../../../../../docs/conformance.md");

/// The rows of all tables below a heading, without their heads.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let below = DOCUMENT.split("\n## ").find(|s| s.starts_with(heading));
    let mut table = 0;
    below
        .unwrap_or_else(|| panic!("no section {heading}"))
        .lines()
        .filter(|line| {
            // The first two lines of each table are its head.
            table = if line.starts_with('|') { table + 1 } else { 0 };
            table > 2
        })
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// The codes (`07h`) that the rows below a heading start with.
fn codes(heading: &str) -> BTreeSet<u8> {
    let code = |word: &str| u8::from_str_radix(word.strip_suffix('h')?, 16).ok();
    rows(heading)
        .iter()
        .flat_map(|row| row[0].split(", "))
        .filter_map(code)
        .collect()
}

fn supported(there: impl Fn(u8) -> bool) -> BTreeSet<u8> {
    (0..=u8::MAX).filter(|&code| there(code)).collect()
}

#[test]
fn every_structure_of_identify_is_listed() {
    let rig = Rig::nvm();
    let answers = |cns| {
        [0, 1, 2].iter().any(|&nsid| {
            let mut sqe = Sqe::with_opcode(AdminOpcode::IDENTIFY.0);
            sqe.set_nsid(nsid);
            let cntid = if cns == Cns::IO_COMMAND_SETS.0 {
                0xffff
            } else {
                0
            };
            IdentifyCommand {
                cntid,
                ..IdentifyCommand::new(Cns(cns))
            }
            .encode(&mut sqe);
            rig.status(&sqe).is_success()
        })
    };
    assert_eq!(supported(answers), codes("Identify"));
}

#[test]
fn every_log_page_is_listed() {
    let (nvm, discovery) = (Rig::nvm(), Rig::discovery());
    let there = |lid| {
        let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
        GetLogPage::new(Lid(lid), 64).encode(&mut sqe);
        let unknown = Err(Status::INVALID_LOG_PAGE.dnr().into());
        [&nvm, &discovery]
            .iter()
            .any(|rig| log::transfer(&rig.cx(), &sqe) != unknown)
    };
    assert_eq!(supported(there), codes("Log pages"));
}

#[test]
fn every_feature_is_listed() {
    let (nvm, discovery) = (Rig::nvm(), Rig::discovery());
    let there = |fid| {
        [&nvm, &discovery]
            .iter()
            .any(|rig| !feature::effects(&rig.cx(), fid).is_empty())
    };
    assert_eq!(supported(there), codes("Features"));
}

#[test]
fn every_command_is_listed() {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
    GetLogPage::new(Lid::COMMAND_EFFECTS, 4096).encode(&mut sqe);
    let (_, page) = Rig::nvm().run(&sqe).unwrap();
    let log = CommandEffectsLog::decode(&page.try_into().unwrap());
    let listed: Vec<&str> = ["Other admin commands", "I/O commands"]
        .iter()
        .flat_map(|heading| rows(heading))
        .map(|row| row[0])
        .collect();
    let own_section = [
        "Identify",
        "Get Log Page",
        "Get Features",
        "Set Features",
        "Fabrics",
    ];
    for opcode in 0..=u8::MAX {
        let admin =
            (!log.admin[usize::from(opcode)].is_empty()).then(|| AdminOpcode(opcode).name());
        let io = (!log.io[usize::from(opcode)].is_empty()).then(|| NvmOpcode(opcode).name());
        for name in admin
            .into_iter()
            .chain(io)
            .filter(|name| !own_section.contains(name))
        {
            assert!(
                listed.iter().any(|row| row.contains(name)),
                "{name} is not in a table"
            );
        }
    }
}
#[test]
fn every_row_names_a_test() {
    for heading in [
        "NVMe/TCP",
        "Fabrics commands",
        "Properties",
        "Identify",
        "Log pages",
        "Features",
        "Other admin commands",
        "I/O commands",
        "Discovery",
    ] {
        for row in rows(heading) {
            let last = row.last().unwrap();
            assert!(
                last.contains("::") || last.contains("`interop ") || last.contains("]("),
                "{heading}: {row:?}"
            );
        }
    }
}
