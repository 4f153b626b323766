use super::*;
use crate::ns::NsInfo;
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::feature::{AsyncEventConfig, Fid};
use nvmf_proto::wire::identify::decode_nsid_list;
use nvmf_proto::wire::log::{
    AsyncEvent, CommandEffects, CommandEffectsLog, FirmwareSlotLog, GetLogPage, Lid, SmartLog,
    SupportedLogPages,
};
use nvmf_proto::wire::{NvmOpcode, trimmed_text};

const INVALID_FIELD: Status = Status::INVALID_FIELD.dnr();

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
        (Rig::nvm(), &[0, 1, 2, 3, 4, 5, 0x12, 0x13]),
        (Rig::discovery(), &[0, 1, 0x70]),
    ];
    for (rig, lids) in pages {
        let supported = SupportedLogPages::decode(&page(&rig, Lid::SUPPORTED_LOG_PAGES));
        for lid in 0..=u8::MAX {
            let has = lids.contains(&lid);
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

#[test]
fn fields_that_are_refused() {
    let rig = Rig::nvm();
    let good = peek(Lid::SMART, 512);
    assert_eq!(rig.status(&sqe(&good)), Status::SUCCESS);
    for lpo in 1..4 {
        assert_eq!(rig.status(&sqe(&GetLogPage { lpo, ..good })), INVALID_FIELD);
    }
    assert_eq!(
        rig.status(&sqe(&GetLogPage { ot: true, ..good })),
        INVALID_FIELD
    );
    // 64 KiB is the longest transfer here.
    for (numd, expected) in [
        (16383, Status::SUCCESS),
        (16384, INVALID_FIELD),
        (0x3fff_ffff, INVALID_FIELD),
        (0x4000_0000, INVALID_FIELD),
        (u32::MAX, INVALID_FIELD),
    ] {
        assert_eq!(
            rig.status(&sqe(&GetLogPage { numd, ..good })),
            expected,
            "NUMD {numd:x}h"
        );
    }
    for (nsid, expected) in [
        (0, Status::SUCCESS),
        (0xffff_ffff, Status::SUCCESS),
        (1, INVALID_FIELD),
        (NN + 1, INVALID_FIELD),
    ] {
        let mut sqe = sqe(&good);
        sqe.set_nsid(nsid);
        assert_eq!(rig.status(&sqe), expected, "NSID {nsid:x}h");
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
    let queues = [1, 2].map(|qid| rig.controller.add_queue(qid, conn(), Time(0)).unwrap());
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
    assert_eq!(opcodes(&log.io, supported), [0, 1, 2, 5, 8, 9, 0xc, 0x7f]);
    assert_eq!(
        opcodes(&log.io, CommandEffects::LOGICAL_BLOCK_CHANGE),
        [1, 8, 9]
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
        [1, 2, 4, 5, 6, 7, 0xa, 0xb, 0xe, 0xf, 0x16, 0x81]
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
        assert_eq!(execute(&rig.cx(), &sqe(get), &mut data), Ok(0));
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
        assert_eq!(execute(&rig.cx(), &sqe(&get), &mut [0; 4096]), Ok(0));
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
