//! The Error Information log, through real queues.

mod common;

use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, connect, target};
use nvmf_host::{Controller, Data, IoQueue, command};
use nvmf_proto::wire::discovery::TransportType;
use nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_proto::wire::feature::{Fid, GetFeatures};
use nvmf_proto::wire::log::{
    AsyncEvent, ErrorLogEntry, GetLogPage, Lid, ParameterLocation, SmartLog,
};
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, Sqe, Status};
use nvmf_target::ns::NsInfo;
use std::time::Duration;

const ENTRIES: usize = 128;

/// The entries that are valid, the newest first.
fn entries(controller: &mut Controller) -> Vec<ErrorLogEntry> {
    let get = GetLogPage {
        rae: true,
        ..GetLogPage::new(Lid::ERROR_INFORMATION, 0)
    };
    let page = controller.log_page(0, &get, ENTRIES * 64).unwrap();
    let all: Vec<_> = page
        .as_chunks()
        .0
        .iter()
        .map(ErrorLogEntry::decode)
        .collect();
    let valid = all.iter().take_while(|e| e.error_count != 0).count();
    assert!(all[valid..].iter().all(|e| *e == ErrorLogEntry::default()));
    all[..valid].to_vec()
}

/// Runs a command that fails; returns its status as it came.
fn fail(queue: &mut IoQueue, sqe: Sqe, data: Data) -> Status {
    let done = queue.queue().execute("command", sqe, data).unwrap();
    assert!(!done.cqe.status.is_success());
    done.cqe.status
}

#[test]
fn every_failure_is_found_in_the_log_newest_first() {
    let (target, address) = target(config());
    let mut host = connect(address);
    let mut other = connect(address);
    host.set_queue_count(2).unwrap();
    let mut first = host.io_queue(1).unwrap();
    let mut second = host.io_queue(2).unwrap();
    assert_eq!(entries(&mut host), []);

    let read = |slba| (command::read(1, slba, 8), Data::Read(vec![0; 4096]));
    let (sqe, data) = read(1 << 40);
    let status = fail(&mut first, sqe, data);
    assert_eq!(status, Status::LBA_OUT_OF_RANGE.dnr().more());
    let status = fail(&mut second, command::flush(77), Data::None);
    assert_eq!(status, Status::INVALID_NAMESPACE.dnr().more());
    let unknown = Sqe::with_opcode(0xc1);
    let done = host.raw(unknown, Data::None).unwrap();
    assert_eq!(done.cqe.status, Status::INVALID_OPCODE.dnr().more());
    let select = command::get_features(0, &GetFeatures::new(Fid(0x7e)));
    let done = host.raw(select, Data::None).unwrap();
    assert_eq!(done.cqe.status, Status::INVALID_FIELD.dnr().more());

    let log = entries(&mut host);
    let seen: Vec<_> = log
        .iter()
        .map(|e| (e.error_count, e.sqid, e.opcode, e.parameter_location))
        .collect();
    let byte = ParameterLocation::byte;
    assert_eq!(
        seen,
        [
            (4, 0, AdminOpcode::GET_FEATURES.0, byte(40)),
            (3, 0, 0xc1, byte(0)),
            (2, 2, NvmOpcode::FLUSH.0, byte(4)),
            (1, 1, NvmOpcode::READ.0, byte(40)),
        ]
    );
    assert_eq!((log[3].lba, log[3].nsid), (1 << 40, 1));
    assert_eq!((log[2].lba, log[2].nsid), (0, 77));
    for entry in &log {
        assert_eq!((entry.log_page_version, entry.trtype), (1, 0));
        assert!(entry.command_status().is_more() && entry.command_status().is_dnr());
    }
    // A controller knows of its own commands only.
    assert_eq!(entries(&mut other), []);
    let smart = host.smart_log().unwrap();
    assert_eq!((smart.error_log_entries, smart.media_errors), (4, 0));
    drop((first, second, host, other));
    assert_idle(&target);
}

#[test]
fn the_log_keeps_the_newest() {
    let (target, address) = target(config());
    let mut host = connect(address);
    host.set_queue_count(1).unwrap();
    let mut queue = host.io_queue(1).unwrap();
    for nsid in 0..ENTRIES + 10 {
        let nsid = u32::try_from(nsid + 1000).unwrap();
        fail(&mut queue, command::flush(nsid), Data::None);
    }
    let log = entries(&mut host);
    assert_eq!(log.len(), ENTRIES);
    assert_eq!((log[0].error_count, log[0].nsid), (138, 1137));
    assert_eq!((log[127].error_count, log[127].nsid), (11, 1010));
    drop((queue, host));
    assert_idle(&target);
}

#[test]
fn what_is_wrong_with_the_data_pointer_names_the_transport() {
    let (target, address) = target(config());
    let mut host = connect(address);
    host.set_queue_count(1).unwrap();
    let mut queue = host.io_queue(1).unwrap();
    // 4 KiB are to be read into 512 bytes.
    let status = fail(&mut queue, command::read(1, 0, 8), Data::Read(vec![0; 512]));
    assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr().more());
    let log = entries(&mut host);
    assert_eq!(log[0].parameter_location, ParameterLocation::byte(32));
    assert_eq!(log[0].trtype, TransportType::TCP.0);
    drop((queue, host));
    assert_idle(&target);
}

/// What a Dataset Management command has at the place of SLBA is no block, and not to blame.
#[test]
fn a_range_outside_the_namespace_is_no_matter_of_the_command_dwords() {
    let (target, address) = target(config());
    let mut host = connect(address);
    host.set_queue_count(1).unwrap();
    let mut queue = host.io_queue(1).unwrap();
    let range = DsmRange {
        slba: 1 << 40,
        length: 1,
        ..DsmRange::default()
    };
    let sqe = command::dataset_management(1, 1, DsmAttributes::DEALLOCATE);
    let status = fail(&mut queue, sqe, Data::Write(range.encode().to_vec()));
    assert_eq!(status, Status::LBA_OUT_OF_RANGE.dnr().more());
    let log = entries(&mut host);
    let seen = (log[0].lba, log[0].parameter_location);
    assert_eq!(seen, (0, ParameterLocation::NONE));
    drop((queue, host));
    assert_idle(&target);
}

#[test]
fn errors_of_the_backend_are_told_apart() {
    let (target, address) = target(config());
    let step = Step::new(NsInfo::new(512, 4096));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut host = connect(address);
    host.set_queue_count(1).unwrap();
    let mut queue = host.io_queue(1).unwrap();
    host.submit_event_request().unwrap();
    let mut end = |status: Status| {
        let read = Data::Read(vec![0; 4096]);
        let token = queue.queue().submit(command::read(2, 64, 8), read).unwrap();
        queue.queue().flush().unwrap();
        step.next().complete(Err(status));
        let done = queue.queue().wait_for("Read", token).unwrap();
        done.cqe.status
    };
    // The medium: an entry with the block, and a count.
    let status = end(Status::UNRECOVERED_READ_ERROR);
    assert_eq!(status, Status::UNRECOVERED_READ_ERROR.more());
    assert_eq!(host.poll_event(Duration::ZERO).unwrap(), None);
    // What can be tried again is no error.
    let status = end(Status::COMMAND_INTERRUPTED);
    assert_eq!(status, Status::COMMAND_INTERRUPTED);
    // An internal error: an entry, and an event that needs no asking for, once.
    for _ in 0..2 {
        assert_eq!(end(Status::INTERNAL_ERROR), Status::INTERNAL_ERROR.more());
    }
    let event = host.poll_event(PATIENCE).unwrap();
    assert_eq!(event, Some(AsyncEvent::TRANSIENT_INTERNAL_ERROR));
    host.submit_event_request().unwrap();
    assert_eq!(host.poll_event(Duration::ZERO).unwrap(), None);

    let log = entries(&mut host);
    let seen: Vec<_> = log.iter().map(|e| (e.error_count, e.lba)).collect();
    assert_eq!(seen, [(3, 0), (2, 0), (1, 64)]);
    assert_eq!(log[0].parameter_location, ParameterLocation::NONE);
    let smart = host.smart_log().unwrap();
    assert_eq!((smart.error_log_entries, smart.media_errors), (3, 1));
    let get = GetLogPage::new(Lid::SMART, 0);
    let of_namespace = |nsid, host: &mut Controller| {
        let page = host.log_page(nsid, &get, 512).unwrap();
        SmartLog::decode(page.as_slice().try_into().unwrap()).media_errors
    };
    assert_eq!(of_namespace(1, &mut host), 0);
    assert_eq!(of_namespace(2, &mut host), 1);
    drop((queue, host));
    assert_idle(&target);
}
