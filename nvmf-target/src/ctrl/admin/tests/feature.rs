use super::*;
use crate::ctrl::Usage;
use crate::ctrl::admin::Settle;
use crate::ns::NsInfo;
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::feature::{
    AsyncEventConfig, FeatureSelect, Fid, GetFeatures, NumberOfQueues, SetFeatures, Timestamp,
    TimestampOrigin,
};
use nvmf_proto::wire::log::{AsyncEvent, Lid};

const INVALID_FIELD: Status = Status::INVALID_FIELD.dnr();
const INVALID_NAMESPACE: Status = Status::INVALID_NAMESPACE.dnr();
const NOT_CHANGEABLE: Status = Status::FEATURE_NOT_CHANGEABLE.dnr();
const SEQUENCE: Status = Status::COMMAND_SEQUENCE_ERROR.dnr();

fn get_sqe(fid: Fid, sel: u8, cdw11: u32, nsid: u32) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_FEATURES.0);
    sqe.set_nsid(nsid);
    let sel = FeatureSelect(sel);
    GetFeatures {
        sel,
        cdw11,
        ..GetFeatures::new(fid)
    }
    .encode(&mut sqe);
    sqe
}

fn set_sqe(fid: Fid, cdw11: u32, nsid: u32) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::SET_FEATURES.0);
    sqe.set_nsid(nsid);
    SetFeatures::new(fid, cdw11).encode(&mut sqe);
    sqe
}

/// An NSID that suits a feature.
fn nsid_of(fid: Fid) -> u32 {
    let of_namespace = [
        Fid::ERROR_RECOVERY,
        Fid::RESERVATION_NOTIFICATION_MASK,
        Fid::RESERVATION_PERSISTENCE,
        Fid::NAMESPACE_WRITE_PROTECTION,
    ];
    u32::from(of_namespace.contains(&fid))
}

/// The value as the specification has it: dword 0, or the data.
fn get(rig: &Rig, fid: Fid, sel: u8, cdw11: u32) -> Result<Value, Status> {
    let (dw0, data) = rig.run(&get_sqe(fid, sel, cdw11, nsid_of(fid)))?;
    Ok(if data.is_empty() {
        Dword(u32::try_from(dw0).unwrap())
    } else {
        assert_eq!(dw0, 0);
        Data(data)
    })
}

fn set(rig: &Rig, fid: Fid, cdw11: u32) -> Result<u64, Status> {
    rig.run(&set_sqe(fid, cdw11, nsid_of(fid)))
        .map(|(dw0, _)| dw0)
}

fn set_data(rig: &Rig, fid: Fid, data: &[u8]) -> Result<u64, Status> {
    rig.try_run(&set_sqe(fid, 0, 0), data)
        .map(|(dw0, _)| dw0)
        .map_err(|fault| fault.status)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Dword(u32),
    Data(Vec<u8>),
}
use Value::{Data, Dword};

/// What there is to say of a feature of an I/O controller.
struct Row {
    fid: Fid,
    /// CDW11 of Get Features.
    cdw11: u32,
    /// Current as of a controller that is new, and default; saved is default.
    current: Value,
    default: Value,
    /// SEL 011b: 1 saveable, 2 of a namespace, 4 changeable.
    capabilities: u32,
    /// Bits of CDW11 of Set Features that are reserved.
    reserved: u32,
}

/// The features of I/O controllers; every other FID is Invalid Field.
fn rows() -> Vec<Row> {
    let row = |fid, cdw11, current, default, capabilities, reserved| Row {
        fid,
        cdw11,
        current,
        default,
        capabilities,
        reserved,
    };
    let one = |fid, cdw11, value: u32, capabilities, reserved| {
        row(
            fid,
            cdw11,
            Dword(value),
            Dword(value),
            capabilities,
            reserved,
        )
    };
    let host_id = Data(HOST_ID.to_vec());
    let behavior = Data(vec![0; 512]);
    vec![
        one(Fid::ARBITRATION, 0, 7, 0, 0xf8),
        one(Fid::POWER_MANAGEMENT, 0, 0, 4, 0xffff_ff00),
        one(Fid::TEMPERATURE_THRESHOLD, 0, 343, 4, 0xfe00_0000),
        one(Fid::TEMPERATURE_THRESHOLD, 1 << 20, 0, 4, 0xfe00_0000),
        one(Fid::ERROR_RECOVERY, 0, 0, 2, 0xfffe_0000),
        one(Fid::VOLATILE_WRITE_CACHE, 0, 1, 4, 0xffff_fffe),
        one(Fid::NUMBER_OF_QUEUES, 0, 0x7_0007, 4, 0),
        one(Fid::WRITE_ATOMICITY, 0, 0, 4, 0xffff_fffe),
        one(Fid::ASYNC_EVENT_CONFIG, 0, 0, 4, 0),
        row(Fid::KEEP_ALIVE_TIMER, 0, Dword(5000), Dword(120_000), 4, 0),
        row(
            Fid::HOST_BEHAVIOR,
            0,
            behavior.clone(),
            behavior,
            4,
            u32::MAX,
        ),
        one(Fid::RESERVATION_NOTIFICATION_MASK, 0, 0, 6, 0xffff_fff1),
        one(Fid::RESERVATION_PERSISTENCE, 0, 0, 6, 0xffff_fffe),
        one(Fid::NAMESPACE_WRITE_PROTECTION, 0, 0, 6, 0xffff_fff8),
        row(Fid::HOST_IDENTIFIER, 1, host_id.clone(), host_id, 0, 0),
    ]
}

/// FIDs of the discovery controllers.
const DISCOVERY: [Fid; 2] = [Fid::ASYNC_EVENT_CONFIG, Fid::KEEP_ALIVE_TIMER];

/// FIDs of the I/O controllers. The current value of Timestamp moves, so it has no row.
fn fids() -> Vec<Fid> {
    rows()
        .iter()
        .map(|row| row.fid)
        .chain([Fid::TIMESTAMP])
        .collect()
}

#[test]
fn every_fid() {
    for (rig, fids) in [(Rig::nvm(), fids()), (Rig::discovery(), DISCOVERY.to_vec())] {
        for fid in (0..=u8::MAX).map(Fid) {
            for sel in 0..8 {
                let outcome = get(&rig, fid, sel, u32::from(fid == Fid::HOST_IDENTIFIER));
                if fids.contains(&fid) && sel < 4 {
                    assert!(outcome.is_ok(), "{fid:?} {sel}: {outcome:?}");
                } else {
                    assert_eq!(outcome, Err(INVALID_FIELD), "{fid:?} {sel}");
                }
            }
            let mut sqe = set_sqe(fid, 0, nsid_of(fid));
            SetFeatures {
                sv: true,
                ..SetFeatures::new(fid, 0)
            }
            .encode(&mut sqe);
            let expected = if fids.contains(&fid) {
                Status::FEATURE_NOT_SAVEABLE.dnr()
            } else {
                INVALID_FIELD
            };
            assert_eq!(rig.status(&sqe), expected, "{fid:?} with SV");
        }
    }
}

#[test]
fn values_by_select_and_reserved_bits() {
    let rig = Rig::nvm();
    for row in rows() {
        let fid = row.fid;
        let values = [
            row.current,
            row.default.clone(),
            row.default,
            Dword(row.capabilities),
        ];
        for (sel, value) in (0..).zip(values) {
            assert_eq!(get(&rig, fid, sel, row.cdw11), Ok(value), "{fid:?} {sel}");
        }
        for bit in (0..32).filter(|bit| row.reserved & 1 << bit != 0) {
            let sqe = set_sqe(fid, 1 << bit, nsid_of(fid));
            let at = ParameterLocation::cdw(11, bit);
            let expected = Err(Fault::new(INVALID_FIELD, at));
            let data = vec![0; if fid == Fid::HOST_BEHAVIOR { 512 } else { 0 }];
            assert_eq!(rig.try_run(&sqe, &data), expected, "{fid:?} {bit}");
        }
    }
    // Sensors other than the Composite Temperature, and a reserved threshold.
    for cdw11 in [1 << 16, 0xf << 16, 2 << 20] {
        assert_eq!(
            get(&rig, Fid::TEMPERATURE_THRESHOLD, 0, cdw11),
            Err(INVALID_FIELD)
        );
    }
}

#[test]
fn what_has_one_value_can_be_set_to_it() {
    let rig = Rig::nvm();
    let table = [(Fid::ARBITRATION, 7, 6), (Fid::ERROR_RECOVERY, 0, 1 << 16)];
    for (fid, same, other) in table {
        assert_eq!(set(&rig, fid, same), Ok(0), "{fid:?}");
        assert_eq!(set(&rig, fid, other), Err(NOT_CHANGEABLE), "{fid:?}");
    }
}

#[test]
fn what_is_set_is_read_until_a_reset() {
    // CDW11 of Set Features and of Get Features, and what the latter answers.
    let table = [
        (Fid::POWER_MANAGEMENT, 2 << 5, 0, Ok(2 << 5)),
        (Fid::POWER_MANAGEMENT, 3 << 5, 0, Err(INVALID_FIELD)),
        (Fid::POWER_MANAGEMENT, 1, 0, Err(INVALID_FIELD)),
        (Fid::TEMPERATURE_THRESHOLD, 400, 0, Ok(400)),
        (Fid::TEMPERATURE_THRESHOLD, 0xf << 16 | 401, 0, Ok(401)),
        (Fid::TEMPERATURE_THRESHOLD, 1 << 20 | 200, 1 << 20, Ok(200)),
        (
            Fid::TEMPERATURE_THRESHOLD,
            1 << 16 | 400,
            0,
            Err(INVALID_FIELD),
        ),
        (
            Fid::TEMPERATURE_THRESHOLD,
            2 << 20 | 400,
            0,
            Err(INVALID_FIELD),
        ),
        (
            Fid::TEMPERATURE_THRESHOLD,
            1 << 22 | 400,
            0,
            Err(INVALID_FIELD),
        ),
        (Fid::VOLATILE_WRITE_CACHE, 1, 0, Ok(1)),
        (Fid::VOLATILE_WRITE_CACHE, 0, 0, Ok(0)),
        (Fid::WRITE_ATOMICITY, 1, 0, Ok(1)),
        (Fid::WRITE_ATOMICITY, 0, 0, Ok(0)),
    ];
    let rig = Rig::nvm();
    rig.enable();
    for (fid, wanted, asked, outcome) in table {
        assert_eq!(
            set(&rig, fid, wanted),
            outcome.map(|_| 0),
            "{fid:?} {wanted:x}h"
        );
        if let Ok(value) = outcome {
            assert_eq!(
                get(&rig, fid, 0, asked),
                Ok(Dword(value)),
                "{fid:?} {wanted:x}h"
            );
        }
    }
    set(&rig, Fid::WRITE_ATOMICITY, 1).unwrap();
    rig.reset();
    for row in rows().iter().filter(|row| row.fid != Fid::KEEP_ALIVE_TIMER) {
        let value = row.current.clone();
        assert_eq!(get(&rig, row.fid, 0, row.cdw11), Ok(value), "{:?}", row.fid);
    }
}

#[test]
fn without_a_write_cache_all_writes_are_forced_and_what_was_written_is_flushed() {
    let rig = Rig::nvm();
    let through = || rig.controller.view().write_through();
    assert!(!through());
    let set_to = |value| {
        let sqe = set_sqe(Fid::VOLATILE_WRITE_CACHE, value, 0);
        let before = rig.subsystem.generation();
        let answer = execute(&rig.cx(), &sqe, &mut []).unwrap();
        assert_ne!(rig.subsystem.generation(), before, "queues look anew");
        answer
    };
    let Answer::Settle(Settle { namespaces, fence }) = set_to(0) else {
        panic!("nothing is flushed");
    };
    let nsids: Vec<_> = namespaces.iter().map(|entry| entry.nsid).collect();
    // The other one has no cache.
    assert_eq!((nsids, fence), (vec![3], true));
    assert!(through());
    assert!(matches!(set_to(1), Answer::Done(0)));
    assert!(!through());
    // A reset brings the default back.
    set_to(0);
    rig.enable();
    rig.reset();
    assert!(!through());
}

/// States that a namespace goes through: what is set, the outcome, and what it is then.
#[test]
fn namespace_write_protection() {
    const FID: Fid = Fid::NAMESPACE_WRITE_PROTECTION;
    let rig = Rig::nvm();
    let table = [
        (0, Ok(()), 0),
        (1, Ok(()), 1),
        (3, Err(INVALID_FIELD), 1),
        (7, Err(INVALID_FIELD), 1),
        (1, Ok(()), 1),
        (0, Ok(()), 0),
        (2, Ok(()), 2),
        (2, Ok(()), 2),
        (1, Err(NOT_CHANGEABLE), 2),
        (0, Err(NOT_CHANGEABLE), 2),
    ];
    for (wanted, outcome, state) in table {
        assert_eq!(set(&rig, FID, wanted).map(|_| ()), outcome, "{wanted}");
        assert_eq!(get(&rig, FID, 0, 0), Ok(Dword(state)), "{wanted}");
        let view = rig.controller.view();
        let refused = view.get(1).unwrap().refusal(Usage::Write).is_some();
        assert_eq!(refused, state != 0, "{wanted}");
    }
    // Of the others none was changed, and none can be with the one that cannot.
    rig.attach(5, NsInfo::new(512, 1));
    let of = |nsid| rig.run(&get_sqe(FID, 0, 0, nsid)).unwrap().0;
    assert_eq!((of(3), of(5)), (0, 0));
    assert_eq!(rig.status(&set_sqe(FID, 1, 0xffff_ffff)), NOT_CHANGEABLE);
    assert_eq!(of(5), 0);
    assert_eq!(rig.status(&set_sqe(FID, 2, 0xffff_ffff)), Status::SUCCESS);
    assert_eq!((of(3), of(5)), (2, 2));
    // A reset is no power cycle.
    rig.enable();
    rig.reset();
    assert_eq!(of(1), 2);
}

#[test]
fn protecting_a_namespace_waits_for_its_writes() {
    let rig = Rig::nvm();
    let run = |value| {
        let sqe = set_sqe(Fid::NAMESPACE_WRITE_PROTECTION, value, 1);
        execute(&rig.cx(), &sqe, &mut []).unwrap()
    };
    let Answer::Settle(Settle { namespaces, fence }) = run(1) else {
        panic!("it does not wait");
    };
    assert_eq!((namespaces.len(), namespaces[0].nsid, fence), (1, 1, true));
    assert!(matches!(run(0), Answer::Done(0)));
}

#[test]
fn a_temperature_beyond_a_threshold_is_a_critical_warning() {
    let rig = Rig::nvm();
    let event = AsyncEvent::TEMPERATURE_THRESHOLD;
    set(&rig, Fid::TEMPERATURE_THRESHOLD, 300).unwrap();
    assert_eq!(rig.controller.next_event(), None, "it was not asked for");
    set(&rig, Fid::ASYNC_EVENT_CONFIG, 1 << 1).unwrap();
    assert_eq!(rig.controller.next_event(), Some(event));
    set(&rig, Fid::TEMPERATURE_THRESHOLD, 299).unwrap();
    assert_eq!(rig.controller.next_event(), None, "the log was not read");
    rig.controller.clear_event(Lid::SMART);
    set(&rig, Fid::TEMPERATURE_THRESHOLD, 343).unwrap();
    assert_eq!(rig.controller.next_event(), None);
    set(&rig, Fid::TEMPERATURE_THRESHOLD, 1 << 20 | 300).unwrap();
    assert_eq!(rig.controller.next_event(), Some(event));
}

#[test]
fn timestamp() {
    let rig = Rig::nvm();
    let stamp = |sel| match get(&rig, Fid::TIMESTAMP, sel, 0).unwrap() {
        Data(bytes) => Timestamp(u64::from_le_bytes(bytes.try_into().unwrap())),
        dword @ Dword(_) => panic!("{dword:?}"),
    };
    assert_eq!(stamp(0).origin(), TimestampOrigin::RESET);
    let year_2100 = 4_102_444_800_000u64;
    // Two bytes are no milliseconds; the clock goes on from there.
    let bytes = (year_2100 | 0xffff << 48).to_le_bytes();
    assert_eq!(set_data(&rig, Fid::TIMESTAMP, &bytes), Ok(0));
    assert_eq!(stamp(0).origin(), TimestampOrigin::HOST);
    assert!((year_2100..year_2100 + 3_600_000).contains(&stamp(0).milliseconds()));
    assert_eq!((stamp(1), stamp(2)), (Timestamp(0), Timestamp(0)));
    assert_eq!(get(&rig, Fid::TIMESTAMP, 3, 0), Ok(Dword(4)));
}

#[test]
fn host_behavior() {
    let rig = Rig::nvm();
    let with = |at: usize, value| {
        let mut data = [0; 512];
        data[at] = value;
        data
    };
    // ACRE, ETDAS, LBAFEE, HDISNS, and CDFE, of which there is no bit.
    let table = [(0, 1), (1, 1), (2, 0), (3, 1), (4, 0), (5, 0)];
    for (at, most) in table {
        for value in [0, 1, 2, 0x80] {
            let outcome = set_data(&rig, Fid::HOST_BEHAVIOR, &with(at, value));
            if value <= most {
                assert_eq!(outcome, Ok(0), "byte {at} {value}");
                let data = Data(with(at, value).to_vec());
                assert_eq!(get(&rig, Fid::HOST_BEHAVIOR, 0, 0), Ok(data));
            } else {
                assert_eq!(outcome, Err(INVALID_FIELD), "byte {at} {value}");
            }
        }
    }
}

#[test]
fn retry_delays_are_for_hosts_that_know_of_them() {
    let rig = Rig::nvm();
    let sqe = Sqe::with_opcode(1);
    let note = |status: Status| rig.controller.note_failure(1, &sqe, status.into());
    let (busy, missing) = (Status::COMMAND_INTERRUPTED, Status::NAMESPACE_NOT_READY);
    assert_eq!((note(busy), note(missing)), (busy, missing.more()));
    let mut data = [0; 512];
    data[0] = 1;
    set_data(&rig, Fid::HOST_BEHAVIOR, &data).unwrap();
    assert_eq!(note(busy), busy.with_crd(1));
    assert_eq!(note(missing), missing.with_crd(1).more());
    assert_eq!(note(missing.dnr()), missing.dnr().more());
}

#[test]
fn scopes() {
    let rig = Rig::nvm();
    let specific = Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr();
    // NSID; Get and Set of a feature of the controller, Get and Set of one of a namespace.
    let (ok, no) = (Status::SUCCESS, INVALID_NAMESPACE);
    let table = [
        (0, [ok, ok, no, no]),
        (0xffff_ffff, [ok, ok, no, ok]),
        (1, [ok, specific, ok, ok]),
        (2, [ok, specific, INVALID_FIELD, INVALID_FIELD]),
        (NN + 1, [no, no, no, no]),
    ];
    for (nsid, expected) in table {
        for row in rows() {
            let fid = row.fid;
            let of_namespace = row.capabilities & 2 != 0;
            let [get_controller, set_controller, get_namespace, set_namespace] = expected;
            let (get_status, set_status) = if of_namespace {
                (get_namespace, set_namespace)
            } else {
                (get_controller, set_controller)
            };
            let found = rig.status(&get_sqe(fid, 0, row.cdw11, nsid));
            assert_eq!(found, get_status, "get {fid:?} of {nsid:x}h");
            // What these take is another matter.
            let (Dword(value), false) = (row.current, fid == Fid::TEMPERATURE_THRESHOLD) else {
                continue;
            };
            let found = rig.status(&set_sqe(fid, value, nsid));
            assert_eq!(found, set_status, "set {fid:?} of {nsid:x}h");
        }
    }
}

#[test]
fn number_of_queues() {
    let rig = Rig::nvm();
    let ask = |nsq, ncq| {
        let cdw11 = NumberOfQueues { nsq, ncq }.to_bits();
        set(&rig, Fid::NUMBER_OF_QUEUES, cdw11)
    };
    assert_eq!(ask(0xffff, 0), Err(INVALID_FIELD));
    assert_eq!(ask(0, 0xffff), Err(INVALID_FIELD));
    assert_eq!(rig.controller.granted_queues(), None);
    // 0's based: 4 and 2 asked for, 2 pairs granted; never more than there are.
    assert_eq!(ask(3, 1), Ok(0x1_0001));
    assert_eq!(get(&rig, Fid::NUMBER_OF_QUEUES, 0, 0), Ok(Dword(0x1_0001)));
    assert_eq!(get(&rig, Fid::NUMBER_OF_QUEUES, 1, 0), Ok(Dword(0x7_0007)));
    assert_eq!(ask(0xfffe, 0xfffe), Ok(0x7_0007));
    assert_eq!(rig.controller.granted_queues(), Some(8));

    rig.enable();
    rig.add_queue(1, Time(0));
    assert_eq!(ask(0, 0), Err(SEQUENCE), "queues exist");
    rig.controller.queue_gone(1);
    assert_eq!(ask(0, 0), Ok(0));
}

#[test]
fn async_event_configuration() {
    let namespace = AsyncEventConfig::NAMESPACE_ATTRIBUTE.bits();
    let ana = AsyncEventConfig::ANA_CHANGE.bits();
    let discovery = AsyncEventConfig::DISCOVERY_LOG.bits();
    let rigs = [
        (Rig::nvm(), namespace | ana | 0x3f),
        (Rig::discovery(), discovery),
    ];
    for (rig, supported) in rigs {
        for bit in (0..32).map(|bit| 1 << bit) {
            let outcome = set(&rig, Fid::ASYNC_EVENT_CONFIG, bit);
            if bit & supported == 0 {
                assert_eq!(outcome, Err(INVALID_FIELD), "{bit:x}h");
            } else {
                assert_eq!(outcome, Ok(0), "{bit:x}h");
                assert_eq!(get(&rig, Fid::ASYNC_EVENT_CONFIG, 0, 0), Ok(Dword(bit)));
            }
        }
        assert_eq!(set(&rig, Fid::ASYNC_EVENT_CONFIG, supported), Ok(0));
        assert_eq!(rig.controller.event_config().bits(), supported);
        assert_eq!(set(&rig, Fid::ASYNC_EVENT_CONFIG, 0), Ok(0));
    }
}

#[test]
fn keep_alive_timeout() {
    let (nvm, discovery) = (Rig::nvm(), Rig::discovery());
    for (asked, set_to) in [
        (1, 100),
        (100, 100),
        (15_001, 15_100),
        (u32::MAX, 4_294_967_200),
    ] {
        assert_eq!(set(&nvm, Fid::KEEP_ALIVE_TIMER, asked), Ok(0));
        assert_eq!(get(&nvm, Fid::KEEP_ALIVE_TIMER, 0, 0), Ok(Dword(set_to)));
    }
    let zero = |rig| set(rig, Fid::KEEP_ALIVE_TIMER, 0);
    assert_eq!(zero(&nvm), Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr()));
    assert_eq!(zero(&discovery), Ok(0));
    assert_eq!(discovery.controller.kato_ms(), 0);
}

#[test]
fn host_identifier() {
    let rig = Rig::nvm();
    for sel in 0..3 {
        let (_, data) = rig.run(&get_sqe(Fid::HOST_IDENTIFIER, sel, 1, 0)).unwrap();
        assert_eq!(data, HOST_ID);
        assert_eq!(
            get(&rig, Fid::HOST_IDENTIFIER, sel, 0),
            Err(INVALID_FIELD),
            "EXHID clear"
        );
    }
    let (_, data) = rig.run(&get_sqe(Fid::HOST_IDENTIFIER, 3, 0, 0)).unwrap();
    assert_eq!(data, [0; 0]);
    assert_eq!(set(&rig, Fid::HOST_IDENTIFIER, 1), Err(SEQUENCE));
}
