use super::*;
use crate::ns::NsInfo;
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::feature::{AsyncEventConfig, Fid};
use nvmf_proto::wire::identify::{Csi, decode_nsid_list};
use nvmf_proto::wire::log::{
    AsyncEvent, CommandEffects, CommandEffectsLog, FirmwareSlotLog, GetLogPage, Lid,
    PersistentEventAction, PersistentEventLogHeader, PersistentEventType, SmartLog,
    SupportedLogPages, persistent_events,
};
use nvmf_proto::wire::{NvmOpcode, trimmed_text};
use std::sync::Arc;

const INVALID_FIELD: Status = Status::INVALID_FIELD.dnr();
const SEQUENCE: Status = Status::COMMAND_SEQUENCE_ERROR.dnr();

fn sqe(get: &GetLogPage) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
    sqe.set_nsid(0xffff_ffff);
    get.encode(&mut sqe);
    sqe
}

/// A read that changes nothing.
fn peek(lid: Lid, length: u32) -> GetLogPage {
    GetLogPage {
        rae: true,
        ..GetLogPage::new(lid, length)
    }
}

fn page<const N: usize>(rig: &Rig, lid: Lid) -> [u8; N] {
    let length = u32::try_from(N).unwrap();
    rig.run(&sqe(&peek(lid, length)))
        .unwrap()
        .1
        .try_into()
        .unwrap()
}

#[test]
fn every_lid() {
    let pages: [(Rig, &[u8]); 2] = [
        (Rig::nvm(), &[0, 1, 2, 3, 4, 5, 0xc, 0xd, 0x12, 0x13, 0x80]),
        (Rig::discovery(), &[0, 1, 0x70]),
    ];
    for (rig, lids) in pages {
        let supported = SupportedLogPages::decode(&page(&rig, Lid::SUPPORTED_LOG_PAGES));
        for lid in 0..=u8::MAX {
            let has = lids.contains(&lid);
            if lid == Lid::PERSISTENT_EVENT.0 && has {
                // There has to be a context first.
                assert_eq!(rig.status(&sqe(&peek(Lid(lid), 64))), SEQUENCE);
                assert!(supported.supports(Lid(lid)));
                continue;
            }
            let status = rig.status(&sqe(&peek(Lid(lid), 64)));
            let expected = if has {
                Status::SUCCESS
            } else {
                Status::INVALID_LOG_PAGE.dnr()
            };
            assert_eq!(status, expected, "{lid:02x}h");
            assert_eq!(supported.supports(Lid(lid)), has, "{lid:02x}h");
        }
    }
}

#[test]
fn windows_show_the_page_and_zeroes_beyond() {
    let rig = Rig::nvm();
    let pages = [
        (0, 1024),
        (1, 128 * 64),
        (2, 512),
        (3, 512),
        (4, 4096),
        (5, 4096),
        (0x12, 1024),
    ];
    for (lid, size) in pages {
        let whole = rig.run(&sqe(&peek(Lid(lid), size))).unwrap().1;
        for (offset, length) in [
            (0, 4),
            (0, size * 2),
            (4, size - 4),
            (8, size),
            (size - 4, 4),
            (size - 4, 64),
            (size, 4),
        ] {
            let get = GetLogPage {
                lpo: offset.into(),
                ..peek(Lid(lid), length)
            };
            let part = rig.run(&sqe(&get)).unwrap().1;
            let mut expected = whole[offset as usize..].to_vec();
            expected.resize(length as usize, 0);
            assert_eq!(part, expected, "{lid:02x}h {offset} {length}");
        }
        for lpo in [u64::from(size) + 4, 1 << 32, u64::MAX - 3] {
            let get = GetLogPage {
                lpo,
                ..peek(Lid(lid), 4)
            };
            assert_eq!(rig.status(&sqe(&get)), INVALID_FIELD, "{lid:02x}h at {lpo}");
        }
    }
}

/// A name, what is changed of the command and its NSID, and the outcome.
type Condition = (&'static str, fn(&mut GetLogPage, &mut u32), Option<Fault>);

/// What can be wrong with the command whatever the log page, and where.
#[test]
fn fields_that_are_refused() {
    // 64 KiB is the longest transfer here.
    let (ok, numd) = (None, Some(Fault::cdw(10, 16)));
    let (lpo, ot) = (Some(Fault::cdw(12, 0)), Some(Fault::cdw(14, 23)));
    let nsid = Some(Fault::nsid());
    let conditions: [Condition; 19] = [
        ("as it should be", |_, _| {}, ok),
        ("one dword", |get, _| get.numd = 0, ok),
        ("no whole structure", |get, _| get.numd = 16, ok),
        ("beyond the end", |get, _| get.numd = 16383, ok),
        ("beyond MDTS", |get, _| get.numd = 16384, numd),
        ("NUMDU", |get, _| get.numd = 0x4000_0000, numd),
        ("NUMD at most", |get, _| get.numd = u32::MAX, numd),
        ("LPO 4", |get, _| get.lpo = 4, ok),
        ("LPO 1", |get, _| get.lpo = 1, lpo),
        ("LPO 2", |get, _| get.lpo = 2, lpo),
        ("LPO in the fourth GiB", |get, _| get.lpo = 3 << 30, lpo),
        ("LPOU", |get, _| get.lpo = 1 << 32, lpo),
        ("OT", |get, _| get.ot = true, ot),
        ("UUID Index", |get, _| get.uuid_index = 3, ok),
        ("LSP and LSI", |get, _| (get.lsp, get.lsi) = (0x7c, 9), ok),
        ("NSID 0", |_, nsid| *nsid = 0, ok),
        ("NSID 1", |_, nsid| *nsid = 1, nsid),
        ("NSID of nothing", |_, nsid| *nsid = 2, nsid),
        ("NSID above NN", |_, nsid| *nsid = NN + 1, nsid),
    ];
    let (nvm, discovery) = (Rig::nvm(), Rig::discovery());
    // Of the persistent events there has to be a context.
    events(&nvm, PersistentEventAction::ESTABLISH, 0, 512).unwrap();
    let pages = [0, 1, 2, 3, 4, 5, 0x0c, 0x0d, 0x12, 0x13, 0x80].map(|lid| (&nvm, Lid(lid)));
    let of_discovery = [0, 1, 0x70].map(|lid| (&discovery, Lid(lid)));
    for (rig, lid) in pages.into_iter().chain(of_discovery) {
        for (name, change, expected) in conditions {
            let (mut get, mut nsid) = (peek(lid, 64), 0xffff_ffff);
            change(&mut get, &mut nsid);
            let mut sqe = sqe(&get);
            sqe.set_nsid(nsid);
            let outcome = rig.try_run(&sqe, &[]).err();
            // Namespaces have a SMART log of their own.
            let expected = match (lid, name) {
                (Lid::SMART, "NSID 1") => ok,
                (Lid::SMART, "NSID above NN") => Some(Status::INVALID_NAMESPACE.dnr().into()),
                _ => expected,
            };
            assert_eq!(outcome, expected, "{lid:?}: {name}");
        }
        let other_set = GetLogPage {
            csi: Csi::ZNS,
            ..peek(lid, 64)
        };
        let expected = if lid == Lid::COMMAND_EFFECTS {
            Status::INVALID_IO_COMMAND_SET.dnr()
        } else {
            Status::SUCCESS
        };
        assert_eq!(rig.status(&sqe(&other_set)), expected, "{lid:?}");
    }
}

#[test]
fn smart_counts_what_queues_have_done() {
    let rig = Rig::nvm();
    let smart = SmartLog::decode(&page(&rig, Lid::SMART));
    assert_eq!((smart.temperature, smart.available_spare), (300, 100));
    assert!(smart.available_spare_threshold < smart.available_spare);
    assert_eq!((smart.power_cycles, smart.power_on_hours), (1, 0));
    assert_eq!((smart.data_units_read, smart.host_read_commands), (0, 0));

    rig.enable();
    assert!(rig.controller.grant_queues(2));
    let queues = [1, 2].map(|qid| rig.add_queue(qid, Time(0)));
    queues[0].read(512_000);
    queues[1].read(512);
    queues[1].written(4096);
    let smart = SmartLog::decode(&page(&rig, Lid::SMART));
    assert_eq!((smart.data_units_read, smart.host_read_commands), (2, 2));
    assert_eq!(
        (smart.data_units_written, smart.host_write_commands),
        (1, 1)
    );
    // What a queue has done counts on when it is gone.
    rig.controller.queue_gone(2);
    assert_eq!(SmartLog::decode(&page(&rig, Lid::SMART)), smart);
}

#[test]
fn smart_of_a_namespace_counts_what_all_lanes_have_done() {
    let rig = Rig::nvm();
    let of = |nsid| {
        let mut sqe = sqe(&peek(Lid::SMART, 512));
        sqe.set_nsid(nsid);
        SmartLog::decode(&rig.run(&sqe).unwrap().1.try_into().unwrap())
    };
    let shared = |nsid| Arc::clone(&rig.subsystem.table().get(nsid).unwrap().shared);
    let lanes = [shared(1).stats.lane(), shared(1).stats.lane()];
    lanes[0].read(512_000);
    lanes[1].read(512);
    lanes[1].written(4096);
    let mut read = Sqe::with_opcode(NvmOpcode::READ.0);
    read.set_nsid(1);
    let fault = Status::UNRECOVERED_READ_ERROR.into();
    rig.controller.note_failure(1, &read, fault);
    let smart = of(1);
    assert_eq!((smart.data_units_read, smart.host_read_commands), (2, 2));
    assert_eq!(
        (smart.data_units_written, smart.host_write_commands),
        (1, 1)
    );
    assert_eq!((smart.media_errors, smart.error_log_entries), (1, 0));
    let other = of(3);
    assert_eq!((other.host_read_commands, other.media_errors), (0, 0));
    let all = of(0);
    assert_eq!((all.host_read_commands, all.media_errors), (0, 1));
    assert_eq!(all.error_log_entries, 1);
}

#[test]
fn firmware_and_errors() {
    let rig = Rig::nvm();
    let log = FirmwareSlotLog::decode(&page(&rig, Lid::FIRMWARE_SLOT));
    assert_eq!((log.afi, log.revisions[1]), (1, [0; 8]));
    assert_eq!(trimmed_text(&log.revisions[0]), env!("CARGO_PKG_VERSION"));
    assert_eq!(page(&rig, Lid::ERROR_INFORMATION), [0; 128 * 64]);
    assert_eq!(page(&rig, Lid::NVME_MI_EFFECTS), [0; 4096]);
}

#[test]
fn effects() {
    let rig = Rig::nvm();
    let log = CommandEffectsLog::decode(&page(&rig, Lid::COMMAND_EFFECTS));
    let opcodes = |commands: &[CommandEffects; 256], effect| -> Vec<usize> {
        (0..256)
            .filter(|&opcode| commands[opcode].contains(effect))
            .collect()
    };
    let supported = CommandEffects::SUPPORTED;
    assert_eq!(
        opcodes(&log.admin, supported),
        [2, 6, 8, 9, 0xa, 0xc, 0x18, 0x7f]
    );
    assert_eq!(
        opcodes(&log.io, supported),
        [0, 1, 2, 4, 5, 8, 9, 0xc, 0xd, 0xe, 0x11, 0x15, 0x19, 0x7f]
    );
    assert_eq!(
        opcodes(&log.io, CommandEffects::LOGICAL_BLOCK_CHANGE),
        [1, 4, 8, 9, 0x19]
    );
    let read = log.io[usize::from(NvmOpcode::READ.0)];
    assert_eq!(
        read,
        CommandEffects::SUPPORTED,
        "Linux warns of anything more"
    );

    let features: [u8; 1024] = page(&rig, Lid::FEATURE_EFFECTS);
    let supported: Vec<_> = (0..256).filter(|fid| features[fid * 4] & 1 != 0).collect();
    assert_eq!(
        supported,
        [
            1, 2, 4, 5, 6, 7, 0xa, 0xb, 0xe, 0xf, 0x16, 0x81, 0x82, 0x83, 0x84
        ]
    );
    assert_eq!(
        features[4 * usize::from(Fid::ERROR_RECOVERY.0)..][..4],
        [1, 0, 0x10, 0]
    );
}

#[test]
fn changed_namespaces_start_anew_when_read_to_the_end() {
    let rig = Rig::nvm();
    let list = |get: &GetLogPage| {
        let mut data = vec![0xff; 4096];
        data.truncate(usize::try_from(get.length()).unwrap());
        execute(&rig.cx(), &sqe(get), &mut data).unwrap();
        data.resize(4096, 0);
        decode_nsid_list(data.as_slice().try_into().unwrap()).collect::<Vec<_>>()
    };
    let whole = GetLogPage::new(Lid::CHANGED_NAMESPACES, 4096);
    // From the namespaces that were attached before.
    assert_eq!(list(&whole), [1, 3]);
    assert_eq!(list(&whole), []);

    for nsid in 10..30 {
        rig.attach(nsid, NsInfo::new(512, 1));
    }
    assert_eq!(list(&peek(Lid::CHANGED_NAMESPACES, 4096)).len(), 20);
    // RAE is clear, but half of the list is still to be read.
    assert_eq!(
        list(&GetLogPage { numd: 9, ..whole }),
        (10..20).collect::<Vec<_>>()
    );
    assert_eq!(
        list(&GetLogPage {
            numd: 9,
            lpo: 40,
            ..whole
        }),
        (20..30).collect::<Vec<_>>()
    );
    assert_eq!(list(&whole), []);

    for nsid in 30..=30 + 1024 {
        rig.attach(nsid, NsInfo::new(512, 1));
    }
    assert_eq!(
        list(&GetLogPage {
            rae: true,
            numd: 0,
            ..whole
        }),
        [0xffff_ffff]
    );
    assert_eq!(list(&GetLogPage { numd: 0, ..whole }), [0xffff_ffff]);
    assert_eq!(list(&whole), []);
}

#[test]
fn reading_without_rae_allows_the_next_event() {
    let rig = Rig::nvm();
    rig.controller
        .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE);
    let event = Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
    let read = |rae| {
        let get = GetLogPage {
            rae,
            ..GetLogPage::new(Lid::CHANGED_NAMESPACES, 4096)
        };
        execute(&rig.cx(), &sqe(&get), &mut [0; 4096]).unwrap();
    };
    rig.attach(10, NsInfo::new(512, 1));
    assert_eq!(rig.controller.next_event(), event);
    rig.attach(11, NsInfo::new(512, 1));
    assert_eq!(
        rig.controller.next_event(),
        None,
        "masked until the log is read"
    );
    read(true);
    rig.attach(12, NsInfo::new(512, 1));
    assert_eq!(rig.controller.next_event(), None, "the event was retained");
    read(false);
    assert_eq!(rig.controller.next_event(), None);
    rig.attach(13, NsInfo::new(512, 1));
    assert_eq!(rig.controller.next_event(), event);
}

/// Get Log Page of the persistent event log.
fn events(
    rig: &Rig,
    action: PersistentEventAction,
    lpo: u64,
    length: u32,
) -> Result<Vec<u8>, Status> {
    let get = GetLogPage {
        lsp: action.0,
        lpo,
        ..GetLogPage::new(Lid::PERSISTENT_EVENT, length)
    };
    let (cx, sqe) = (rig.cx(), sqe(&get));
    let len = transfer(&cx, &sqe).map_err(|fault| fault.status)?.len();
    let mut data = vec![0xa5; len];
    execute(&cx, &sqe, &mut data).map_err(|fault| fault.status)?;
    Ok(data)
}

#[test]
fn reporting_contexts() {
    const READ: PersistentEventAction = PersistentEventAction::READ;
    const ESTABLISH: PersistentEventAction = PersistentEventAction::ESTABLISH;
    const RELEASE: PersistentEventAction = PersistentEventAction::RELEASE;
    const HEADER: PersistentEventAction = PersistentEventAction::ESTABLISH_HEADER;
    let rig = Rig::nvm();
    rig.enable();
    assert_eq!(events(&rig, READ, 0, 512), Err(SEQUENCE));
    assert_eq!(events(&rig, RELEASE, 0, 512), Ok(Vec::new()));

    let first = events(&rig, ESTABLISH, 0, 8192).unwrap();
    assert_eq!(events(&rig, ESTABLISH, 0, 512), Err(SEQUENCE));
    assert_eq!(events(&rig, HEADER, 0, 512), Err(SEQUENCE));
    let header = |page: &[u8]| PersistentEventLogHeader::decode(page.first_chunk().unwrap());
    let length = usize::try_from(header(&first).tll).unwrap();
    assert!(!header(&first).context.exists() && first[length..].iter().all(|&b| b == 0));
    // Namespaces 1 and 3, and the start of subsystem and controller.
    assert_eq!(header(&first).tnev, 4);

    // What happens now is not in this context, whoever reads which part of it.
    rig.attach(9, NsInfo::new(512, 1));
    let again = events(&rig, READ, 0, 8192).unwrap();
    assert!(header(&again).context.exists());
    assert_eq!(header(&again).generation, header(&first).generation);
    assert_eq!(again[512..], first[512..]);
    assert_eq!(events(&rig, READ, 516, 64), Ok(first[516..580].to_vec()));
    let end = length as u64;
    assert_eq!(events(&rig, READ, end, 4), Ok(vec![0; 4]));
    assert_eq!(events(&rig, READ, end + 4, 4), Err(INVALID_FIELD));

    assert_eq!(events(&rig, RELEASE, 0, 4), Ok(Vec::new()));
    assert_eq!(events(&rig, READ, 0, 512), Err(SEQUENCE));
    // The header, whatever length and offset say.
    let next = events(&rig, HEADER, 1, 4).unwrap();
    assert_eq!((next.len(), header(&next).tnev), (512, 5));
    assert_eq!(header(&next).generation, header(&first).generation + 1);
    let page = events(&rig, READ, 0, 8192).unwrap();
    let kinds: Vec<_> = persistent_events(&page[512..])
        .map(|(header, _)| header.event)
        .take(5)
        .collect();
    assert_eq!(kinds[0], PersistentEventType::CHANGE_NAMESPACE);

    rig.reset();
    rig.enable();
    assert_eq!(
        events(&rig, READ, 0, 512),
        Err(SEQUENCE),
        "a reset releases it"
    );
}

#[test]
fn the_persistent_event_log_names_who_identify_names() {
    let rig = Rig::new(|core| {
        let mut config = crate::SubsystemConfig::new(nqn("sold").as_str());
        (config.vendor_id, config.subsystem_vendor_id) = (0x1234, 0x5678);
        crate::ctrl::testing::apply(core, crate::change::Change::AddSubsystem(config));
        Arc::clone(&core.topology().subsystems[&nqn("sold")].subsystem)
    });
    rig.enable();
    let page = events(&rig, PersistentEventAction::ESTABLISH, 0, 512).unwrap();
    let header = PersistentEventLogHeader::decode(page.first_chunk().unwrap());
    assert_eq!((header.vid, header.ssvid), (0x1234, 0x5678));
}
