//! Log pages through real queues.

mod common;

use common::{NQN, assert_idle, config, connect, target};
use nvmf_host::{Controller, Data, command};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::log::{
    GetLogPage, Lid, PersistentEventAction, PersistentEventLogHeader, PersistentEventType,
    SmartLog, persistent_events,
};

/// Get Log Page of the persistent event log into `buffer` bytes: its status, and what came.
fn events(
    host: &mut Controller,
    action: PersistentEventAction,
    lpo: u64,
    buffer: u32,
) -> (Status, Vec<u8>) {
    let get = GetLogPage {
        lsp: action.0,
        lpo,
        ..GetLogPage::new(Lid::PERSISTENT_EVENT, buffer)
    };
    let room = Data::Read(vec![0; buffer as usize]);
    let done = host.raw(command::get_log_page(0, &get), room).unwrap();
    let received = done.received as usize;
    (done.status(), done.buffer[..received].to_vec())
}

#[test]
fn persistent_events_are_read_in_parts_and_let_go() {
    let (target, address) = target(config());
    let mut gone = connect(address);
    let cntlid = gone.cntlid();
    gone.set_queue_count(1).unwrap();
    let ns = gone.namespace(1).unwrap();
    let mut queue = gone.io_queue(1).unwrap();
    queue.write(&ns, 0, &[7; 4096]).unwrap();
    drop((queue, gone));
    assert_idle(&target);
    target.remove_namespace(NQN, 1).unwrap();

    let mut host = connect(address);
    let sequence_error = Status::COMMAND_SEQUENCE_ERROR.dnr();
    let (status, _) = events(&mut host, PersistentEventAction::READ, 0, 512);
    assert_eq!(status, sequence_error);
    // Room that is not needed is none that is filled.
    let (status, header) = events(&mut host, PersistentEventAction::ESTABLISH_HEADER, 0, 512);
    assert_eq!((status, header.len()), (Status::SUCCESS, 512));
    let header = PersistentEventLogHeader::decode(&header.try_into().unwrap());
    let (total, mut page) = (usize::try_from(header.tll).unwrap(), Vec::new());
    while page.len() < total {
        let at = page.len() as u64;
        let (status, part) = events(&mut host, PersistentEventAction::READ, at, 100);
        assert_eq!((status, part.len()), (Status::SUCCESS, 100));
        page.extend(part);
    }
    let all: Vec<_> = persistent_events(&page[512..total]).collect();
    assert_eq!(all.len(), header.tnev as usize);
    let snapshot = all
        .iter()
        .find(|(header, _)| header.event == PersistentEventType::SMART_SNAPSHOT)
        .expect("what the controller that is gone had counted");
    assert_eq!(snapshot.0.cntlid, cntlid);
    let smart = SmartLog::decode(snapshot.1.try_into().unwrap());
    assert_eq!(
        (smart.host_write_commands, smart.data_units_written),
        (1, 1)
    );
    let newest = all[0].0;
    assert_eq!(newest.event, PersistentEventType::POWER_ON_OR_RESET);
    assert_eq!(newest.cntlid, host.cntlid());
    assert_eq!(all[1].0.event, PersistentEventType::CHANGE_NAMESPACE);

    let (status, nothing) = events(&mut host, PersistentEventAction::RELEASE, 0, 512);
    assert_eq!((status, nothing), (Status::SUCCESS, vec![0; 512]));
    let (status, _) = events(&mut host, PersistentEventAction::READ, 0, 512);
    assert_eq!(status, sequence_error);
    drop(host);
    assert_idle(&target);
}

#[test]
fn a_namespace_counts_for_all_its_hosts_and_a_controller_for_itself() {
    let (target, address) = target(config());
    let (mut first, mut second) = (connect(address), connect(address));
    let ns = first.namespace(1).unwrap();
    for host in [&mut first, &mut second] {
        host.set_queue_count(1).unwrap();
        let mut queue = host.io_queue(1).unwrap();
        queue.write(&ns, 0, &[1; 4096]).unwrap();
        queue.read(&ns, 0, &mut [0; 4096]).unwrap();
        queue.read(&ns, 8, &mut [0; 512]).unwrap();
    }
    let mut smart = |nsid| {
        let page = first.log_page(nsid, &GetLogPage::new(Lid::SMART, 0), 512);
        let smart = SmartLog::decode(page.unwrap().as_slice().try_into().unwrap());
        (smart.host_read_commands, smart.host_write_commands)
    };
    assert_eq!((smart(0), smart(1)), ((2, 1), (4, 2)));
    drop((first, second));
    assert_idle(&target);
}
