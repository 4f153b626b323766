use super::*;
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::feature::{
    AsyncEventConfig, FeatureSelect, Fid, GetFeatures, NumberOfQueues, SetFeatures,
};

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
    if fid == Fid::ERROR_RECOVERY { 1 } else { 0 }
}

fn get(rig: &Rig, fid: Fid, sel: u8, cdw11: u32) -> Result<u64, Status> {
    rig.run(&get_sqe(fid, sel, cdw11, nsid_of(fid)))
        .map(|(dw0, _)| dw0)
}

fn set(rig: &Rig, fid: Fid, cdw11: u32) -> Result<u64, Status> {
    rig.run(&set_sqe(fid, cdw11, nsid_of(fid)))
        .map(|(dw0, _)| dw0)
}

#[test]
fn every_fid() {
    let features: [(Rig, &[u8]); 2] = [
        (Rig::nvm(), &[1, 2, 4, 5, 6, 7, 0xa, 0xb, 0xf, 0x81]),
        (Rig::discovery(), &[0xb, 0xf]),
    ];
    for (rig, fids) in features {
        for fid in 0..=u8::MAX {
            for sel in 0..8 {
                let outcome = get(&rig, Fid(fid), sel, u32::from(fid == 0x81));
                if fids.contains(&fid) && sel < 4 {
                    assert!(outcome.is_ok(), "{fid:02x}h {sel}: {outcome:?}");
                } else {
                    assert_eq!(outcome, Err(INVALID_FIELD), "{fid:02x}h {sel}");
                }
            }
            let mut sqe = set_sqe(Fid(fid), 0, nsid_of(Fid(fid)));
            SetFeatures {
                sv: true,
                ..SetFeatures::new(Fid(fid), 0)
            }
            .encode(&mut sqe);
            let expected = if fids.contains(&fid) {
                Status::FEATURE_NOT_SAVEABLE.dnr()
            } else {
                INVALID_FIELD
            };
            assert_eq!(rig.status(&sqe), expected, "{fid:02x}h with SV");
        }
    }
}

#[test]
fn values_by_select() {
    let rig = Rig::nvm();
    // CDW11; current, default, saved, capabilities.
    let table = [
        (Fid::ARBITRATION, 0, [7, 7, 7, 0]),
        (Fid::POWER_MANAGEMENT, 0, [0, 0, 0, 0]),
        (Fid::TEMPERATURE_THRESHOLD, 0, [343, 343, 343, 0]),
        (Fid::TEMPERATURE_THRESHOLD, 1 << 20, [0, 0, 0, 0]),
        (Fid::ERROR_RECOVERY, 0, [0, 0, 0, 2]),
        (Fid::VOLATILE_WRITE_CACHE, 0, [1, 1, 1, 0]),
        (Fid::NUMBER_OF_QUEUES, 0, [0x7_0007, 0x7_0007, 0x7_0007, 4]),
        (Fid::WRITE_ATOMICITY, 0, [0, 0, 0, 0]),
        (Fid::ASYNC_EVENT_CONFIG, 0, [0, 0, 0, 4]),
        (Fid::KEEP_ALIVE_TIMER, 0, [5000, 120_000, 120_000, 4]),
        (Fid::HOST_IDENTIFIER, 1, [0, 0, 0, 0]),
    ];
    for (fid, cdw11, values) in table {
        for (sel, value) in (0..).zip(values) {
            assert_eq!(get(&rig, fid, sel, cdw11), Ok(value), "{fid:?} {sel}");
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
    let table = [
        (Fid::ARBITRATION, 7, 6),
        (Fid::POWER_MANAGEMENT, 0, 1),
        (Fid::TEMPERATURE_THRESHOLD, 343, 300),
        (Fid::TEMPERATURE_THRESHOLD, 1 << 20, 1 << 20 | 200),
        (Fid::ERROR_RECOVERY, 0, 1 << 16),
        (Fid::VOLATILE_WRITE_CACHE, 1, 0),
        (Fid::WRITE_ATOMICITY, 0, 1),
    ];
    for (fid, same, other) in table {
        assert_eq!(set(&rig, fid, same), Ok(0), "{fid:?}");
        assert_eq!(set(&rig, fid, other), Err(NOT_CHANGEABLE), "{fid:?}");
    }
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
        let found = [
            rig.status(&get_sqe(Fid::WRITE_ATOMICITY, 0, 0, nsid)),
            rig.status(&set_sqe(Fid::WRITE_ATOMICITY, 0, nsid)),
            rig.status(&get_sqe(Fid::ERROR_RECOVERY, 0, 0, nsid)),
            rig.status(&set_sqe(Fid::ERROR_RECOVERY, 0, nsid)),
        ];
        assert_eq!(found, expected, "NSID {nsid:x}h");
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
    assert_eq!(get(&rig, Fid::NUMBER_OF_QUEUES, 0, 0), Ok(0x1_0001));
    assert_eq!(get(&rig, Fid::NUMBER_OF_QUEUES, 1, 0), Ok(0x7_0007));
    assert_eq!(ask(0xfffe, 0xfffe), Ok(0x7_0007));
    assert_eq!(rig.controller.granted_queues(), Some(8));

    rig.enable();
    rig.controller.add_queue(1, conn(), Time(0)).unwrap();
    assert_eq!(ask(0, 0), Err(SEQUENCE), "queues exist");
    rig.controller.queue_gone(1);
    assert_eq!(ask(0, 0), Ok(0));
}

#[test]
fn async_event_configuration() {
    let namespace = AsyncEventConfig::NAMESPACE_ATTRIBUTE.bits();
    let discovery = AsyncEventConfig::DISCOVERY_LOG.bits();
    let rigs = [
        (Rig::nvm(), namespace | 0x3f),
        (Rig::discovery(), discovery),
    ];
    for (rig, supported) in rigs {
        for bit in (0..32).map(|bit| 1 << bit) {
            let outcome = set(&rig, Fid::ASYNC_EVENT_CONFIG, bit);
            if bit & supported == 0 {
                assert_eq!(outcome, Err(INVALID_FIELD), "{bit:x}h");
            } else {
                assert_eq!(outcome, Ok(0), "{bit:x}h");
                assert_eq!(get(&rig, Fid::ASYNC_EVENT_CONFIG, 0, 0), Ok(bit.into()));
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
    for (asked, set_to) in [(1, 100), (100, 100), (15_001, 15_100), (u32::MAX, u32::MAX)] {
        assert_eq!(set(&nvm, Fid::KEEP_ALIVE_TIMER, asked), Ok(0));
        assert_eq!(get(&nvm, Fid::KEEP_ALIVE_TIMER, 0, 0), Ok(set_to.into()));
        assert!(nvm.controller.keep_alive_deadline().is_some());
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
