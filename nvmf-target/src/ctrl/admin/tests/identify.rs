use super::*;
use crate::change::Change;
use crate::ctrl::admin::ACL;
use crate::ns::{Caps, NsInfo, Support};
use nvmf_proto::wire::identify::{
    Cmic, Cns, ControllerType, Csi, Ctratt, Dlfeat, IdentifyCommand, IdentifyController,
    IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, Lpa, Nmic, NsFeatures,
    NsFeaturesIndependent, NsIdDescriptors, Nsattr, Nstat, Oaes, Ofcs, Oncs,
    decode_controller_list, decode_nsid_list,
};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::trimmed_text;
use std::collections::BTreeSet;
use std::sync::Arc;

const OK: Status = Status::SUCCESS;
const INVALID_FIELD: Status = Status::INVALID_FIELD.dnr();
const INVALID_NAMESPACE: Status = Status::INVALID_NAMESPACE.dnr();

fn sqe(cns: Cns, nsid: u32) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::IDENTIFY.0);
    sqe.set_nsid(nsid);
    IdentifyCommand {
        cntid: 0xffff,
        ..IdentifyCommand::new(cns)
    }
    .encode(&mut sqe);
    sqe
}

fn data(rig: &Rig, cns: Cns, nsid: u32) -> [u8; 4096] {
    rig.run(&sqe(cns, nsid)).unwrap().1.try_into().unwrap()
}

#[test]
fn every_cns() {
    let (nvm, discovery) = (Rig::nvm(), Rig::discovery());
    for cns in 0..=u8::MAX {
        let expected = match cns {
            0..=3 | 5..=8 | 0x10..=0x13 | 0x1a..=0x1c => OK,
            _ => INVALID_FIELD,
        };
        assert_eq!(nvm.status(&sqe(Cns(cns), 1)), expected, "CNS {cns:02x}h");
        let expected = if cns == 1 { OK } else { INVALID_FIELD };
        assert_eq!(
            discovery.status(&sqe(Cns(cns), 0)),
            expected,
            "discovery, CNS {cns:02x}h"
        );
    }
}

#[test]
fn every_kind_of_nsid() {
    let rig = Rig::nvm();
    // Active, inactive, 0, beyond NN, FFFFFFFEh, FFFFFFFFh.
    let nsids = [1, 2, 0, NN + 1, 0xffff_fffe, 0xffff_ffff];
    let no = INVALID_NAMESPACE;
    let table = [
        (Cns::NAMESPACE, [OK, OK, no, no, no, no]),
        (Cns::CS_NAMESPACE, [OK, OK, no, no, no, no]),
        (Cns::NAMESPACE_INDEPENDENT, [OK, OK, no, no, no, no]),
        (Cns::NS_ID_DESCRIPTORS, [OK, no, no, no, no, no]),
        (Cns::ACTIVE_NSID_LIST, [OK, OK, OK, OK, no, no]),
        (Cns::CS_ACTIVE_NSID_LIST, [OK, OK, OK, OK, no, no]),
        (Cns::ALLOCATED_NSID_LIST, [OK, OK, OK, OK, no, no]),
        (Cns::CS_ALLOCATED_NSID_LIST, [OK, OK, OK, OK, no, no]),
        (Cns::ALLOCATED_NAMESPACE, [OK, OK, no, no, no, no]),
        (Cns::CS_ALLOCATED_NAMESPACE, [OK, OK, no, no, no, no]),
        (Cns::NS_CONTROLLER_LIST, [OK, OK, no, no, no, no]),
        (Cns::CONTROLLER_LIST, [OK; 6]),
        (Cns::CONTROLLER, [OK; 6]),
        (Cns::CS_CONTROLLER, [OK; 6]),
    ];
    for (cns, expected) in table {
        for (nsid, expected) in nsids.into_iter().zip(expected) {
            assert_eq!(rig.status(&sqe(cns, nsid)), expected, "{cns:?} {nsid:x}h");
        }
    }
    for cns in [
        Cns::NAMESPACE,
        Cns::CS_NAMESPACE,
        Cns::NAMESPACE_INDEPENDENT,
        Cns::ALLOCATED_NAMESPACE,
        Cns::NS_CONTROLLER_LIST,
    ] {
        assert_eq!(data(&rig, cns, 2), [0; 4096], "{cns:?} of an inactive NSID");
    }
}

#[test]
fn other_command_sets_and_controllers() {
    let rig = Rig::nvm();
    let with = |cns, csi, cntid| {
        let mut sqe = sqe(cns, 1);
        IdentifyCommand {
            csi,
            cntid,
            ..IdentifyCommand::new(cns)
        }
        .encode(&mut sqe);
        rig.status(&sqe)
    };
    for cns in [
        Cns::CS_NAMESPACE,
        Cns::CS_CONTROLLER,
        Cns::CS_ACTIVE_NSID_LIST,
        Cns::CS_ALLOCATED_NSID_LIST,
        Cns::CS_ALLOCATED_NAMESPACE,
    ] {
        assert_eq!(with(cns, Csi::NVM, 0), OK);
        assert_eq!(with(cns, Csi::ZNS, 0), Status::INVALID_IO_COMMAND_SET.dnr());
    }
    let own = rig.controller.cntlid;
    assert_eq!(with(Cns::IO_COMMAND_SETS, Csi::NVM, own), OK);
    assert_eq!(with(Cns::IO_COMMAND_SETS, Csi::NVM, own + 1), INVALID_FIELD);
    let sets = data(&rig, Cns::IO_COMMAND_SETS, 0);
    assert!(sets[0] == 1 && sets[1..].iter().all(|&b| b == 0));
}

#[test]
fn io_controller() {
    let rig = Rig::nvm();
    let id = IdentifyController::decode(&data(&rig, Cns::CONTROLLER, 0));
    assert_eq!(trimmed_text(&id.sn), "S123");
    assert_eq!(trimmed_text(&id.mn), "nvmf target");
    assert_eq!(trimmed_text(&id.fr), env!("CARGO_PKG_VERSION"));
    assert_eq!(id.subnqn, nqn("disks").to_field());
    assert_eq!((id.cntlid, id.ver), (rig.controller.cntlid, 0x0002_0100));
    assert_eq!(id.cntrltype, ControllerType::IO);
    assert_eq!(4096 << id.mdts, rig.core.config.max_transfer);
    assert_eq!(
        id.cmic,
        Cmic::MULTI_PORT | Cmic::MULTI_CONTROLLER | Cmic::ANA_REPORTING
    );
    assert_eq!(id.oaes, Oaes::ANA_CHANGE | Oaes::NAMESPACE_ATTRIBUTE);
    assert_eq!(
        id.ctratt,
        Ctratt::HOST_ID_128 | Ctratt::TBKAS | Ctratt::RESERVATION_HOST_ID
    );
    assert_eq!((id.acl, id.aerl, id.kas), (ACL, 3, 1));
    assert_eq!((id.sqes, id.cqes, id.maxcmd), (0x66, 0x44, 1024));
    assert_eq!((id.nn, id.mnan), (NN, NN));
    assert_eq!(id.tnvmcap, (1 << 20) + (16 << 12));
    assert_eq!(
        id.oncs,
        Oncs::COMPARE
            | Oncs::DATASET_MANAGEMENT
            | Oncs::WRITE_ZEROES
            | Oncs::SAVE_AND_SELECT
            | Oncs::RESERVATIONS
            | Oncs::TIMESTAMP
            | Oncs::VERIFY
            | Oncs::COPY
            | Oncs::COPY_SINGLE_ATOMICITY
            | Oncs::WRITE_UNCORRECTABLE
            | Oncs::NAMESPACE_ZEROES
    );
    assert_eq!((id.vwc.bits(), id.sgls.bits()), (0x07, 0x30_0001));
    assert_eq!((id.ioccsz, id.iorcsz, id.icdoff), ((64 + 16384) / 16, 1, 0));
    assert_eq!((id.fcatt, id.msdbd, id.ofcs), (0, 1, Ofcs::DISCONNECT));
    assert_eq!((id.nwpc, id.crdt1, id.pels, id.elpe), (0b011, 1, 1, 127));
    assert_eq!((id.wctemp, id.oacs.bits(), id.fuses.bits()), (343, 0, 1));
    assert!(
        id.lpa
            .contains(Lpa::EXTENDED_DATA | Lpa::SMART_PER_NAMESPACE | Lpa::PERSISTENT_EVENT)
    );
}

#[test]
fn nvm_controller() {
    let id = IdentifyControllerNvm::decode(&data(&Rig::nvm(), Cns::CS_CONTROLLER, 0));
    assert_eq!(
        id,
        IdentifyControllerNvm {
            vsl: 13,
            wzsl: 13,
            dmrl: 255,
            dmrsl: 1 << 23,
            dmsl: u64::MAX,
            ver: 0x0001_0100,
            ..IdentifyControllerNvm::default()
        }
    );
}

#[test]
fn discovery_controller() {
    let rig = Rig::discovery();
    let id = IdentifyController::decode(&data(&rig, Cns::CONTROLLER, 0));
    assert_eq!(id.cntrltype, ControllerType::DISCOVERY);
    assert_eq!(id.subnqn, Nqn::discovery().to_field());
    assert_eq!(id.oaes, Oaes::DISCOVERY_LOG);
    assert_eq!((id.lpa, id.aerl, id.kas), (Lpa::EXTENDED_DATA, 3, 1));
    assert_eq!(
        (id.nn, id.oncs.bits(), id.vwc.bits(), id.sqes, id.cqes),
        (0, 0, 0, 0, 0)
    );
    assert_eq!((id.ioccsz, id.cmic.bits()), (0, 0));
    assert!(id.maxcmd > 0 && id.sgls.bits() == 0x30_0001);
}

#[test]
fn namespaces() {
    let rig = Rig::nvm();
    let id = IdentifyNamespace::decode(&data(&rig, Cns::NAMESPACE, 1));
    assert_eq!(
        (id.nsze, id.ncap, id.nuse, id.nvmcap),
        (2048, 2048, 2048, 1 << 20)
    );
    assert_eq!(
        (id.nlbaf, id.flbas, id.formatted().data_size_log2),
        (0, 0, 9)
    );
    assert_eq!(
        (id.nsfeat, id.dlfeat),
        (NsFeatures::empty(), Dlfeat::READ_NOT_REPORTED)
    );
    assert_eq!((id.nmic, id.nsattr), (Nmic::SHARED, Nsattr::empty()));
    assert!(id.nguid != [0; 16] && id.eui64 != [0; 8]);

    let descriptors = NsIdDescriptors::decode(&data(&rig, Cns::NS_ID_DESCRIPTORS, 1)).unwrap();
    assert_eq!(
        (descriptors.nguid, descriptors.eui64),
        (Some(id.nguid), Some(id.eui64))
    );
    assert_eq!(descriptors.csi, Some(Csi::NVM));
    assert!(descriptors.uuid.is_some_and(|uuid| uuid != id.nguid));

    let id = IdentifyNamespace::decode(&data(&rig, Cns::NAMESPACE, 3));
    assert_eq!(
        (id.formatted().data_size_log2, id.nsattr),
        (12, Nsattr::WRITE_PROTECTED)
    );

    let independent =
        |nsid| IdentifyNamespaceIndependent::decode(&data(&rig, Cns::NAMESPACE_INDEPENDENT, nsid));
    let (one, three) = (independent(1), independent(3));
    assert_eq!(one.nsfeat, NsFeaturesIndependent::NO_VOLATILE_WRITE_CACHE);
    assert_eq!(
        (one.nmic, one.nstat, one.nsattr),
        (Nmic::SHARED, Nstat::READY, Nsattr::empty())
    );
    assert_eq!(three.nsfeat, NsFeaturesIndependent::empty());
    assert_eq!(
        (three.nstat, three.nsattr),
        (Nstat::READY, Nsattr::WRITE_PROTECTED)
    );
}

/// Identifiers that the backend leaves open are derived, and are what they claim to be.
#[test]
fn identifiers_are_well_formed_and_of_one_namespace() {
    let rig = Rig::nvm();
    let (uuid, nguid, eui64) = ([0x55; 16], [0x66; 16], [0x77; 8]);
    let none = NsInfo::new(512, 1);
    rig.attach(10, none.clone());
    rig.attach(11, none.clone().with_uuid(uuid));
    rig.attach(12, none.clone().with_ids(nguid, [0; 8]));
    rig.attach(13, none.clone().with_ids([0; 16], eui64));
    rig.attach(14, none.with_uuid([0x56; 16]).with_ids(nguid, eui64));
    let ids = |nsid| {
        let data = data(&rig, Cns::NS_ID_DESCRIPTORS, nsid);
        let ids = NsIdDescriptors::decode(&data).unwrap();
        (ids.uuid.unwrap(), ids.nguid.unwrap(), ids.eui64.unwrap())
    };
    for nsid in [1, 10, 11, 13] {
        let (_, nguid, eui64) = ids(nsid);
        assert_eq!(nguid[8..], eui64, "an NGUID ends with an EUI64");
        if nsid != 13 {
            assert_eq!(eui64[0] & 0b11, 0b10, "locally administered, no group");
        }
    }
    let distinct: BTreeSet<_> = [1, 3, 10, 11].map(ids).into();
    assert_eq!(distinct.len(), 4);
    assert_eq!(ids(11).0, uuid);
    assert_eq!((ids(12).1, ids(12).2), (nguid, [0x66; 8]));
    assert_eq!(ids(13).2, eui64);
    assert_eq!(ids(14), ([0x56; 16], nguid, eui64));
    // They come back with the NSID, so UIDREUSE does not promise otherwise.
    let before = ids(10);
    rig.apply(Change::RemoveNamespace {
        nqn: rig.nqn(),
        nsid: 10,
    });
    rig.attach(10, NsInfo::new(4096, 7));
    assert_eq!(ids(10), before);
    let id = IdentifyNamespace::decode(&data(&rig, Cns::NAMESPACE, 10));
    assert!(!id.nsfeat.contains(NsFeatures::UID_NOT_REUSED));
}

#[test]
fn preferred_sizes() {
    let rig = Rig::nvm();
    let table = [
        // Bytes of write and deallocation; NPWG and NPDG, 0's based, and whether they count.
        (512, 4096, 65536, 7, 127, true),
        (512, 4096, 0, 7, 0, true),
        (4096, 0, 4096, 0, 0, true),
        // Less than a block is a block, and 65,536 blocks are the most that can be said.
        (4096, 512, 512, 0, 0, true),
        (512, 1 << 31, u32::MAX, 0xffff, 0xffff, true),
        (512, 0, 0, 0, 0, false),
    ];
    for (nsid, (block, write, deallocate, npwg, npdg, valid)) in (10..).zip(table) {
        let mut info = NsInfo::new(block, 100);
        (info.preferred_write, info.preferred_deallocate) = (write, deallocate);
        rig.attach(nsid, info);
        let id = IdentifyNamespace::decode(&data(&rig, Cns::NAMESPACE, nsid));
        assert_eq!(id.nsfeat.contains(NsFeatures::OPTIMAL_IO), valid);
        assert_eq!((id.npwg, id.npwa, id.nows), (npwg, npwg, npwg));
        assert_eq!((id.npdg, id.npda), (npdg, npdg));
    }
}

#[test]
fn atomic_writes_and_copies() {
    let rig = Rig::nvm();
    let max = rig.core.config.max_transfer;
    let most = |block: u32| u16::try_from(max.min(128 << 10) / block - 1).unwrap();
    let table = [
        // Block; bytes of a write, over a power failure, of a boundary; NAWUN, NAWUPF, NABSN; NSABP.
        (512, 0, 0, 0, 0, 0, 0, false),
        (4096, 4096, 4096, 0, 0, 0, 0, false),
        (512, 4096, 1024, 0, 7, 1, 0, true),
        (4096, 0, 0, 16384, 0, 0, 3, true),
        (512, 128 << 10, 0, 2 << 20, most(512), 0, 4095, true),
    ];
    for (nsid, row) in (10..).zip(table) {
        let (block, write, fail, boundary, nawun, nawupf, nabsn, valid) = row;
        let mut info = NsInfo::new(block, 100);
        (info.atomic_write, info.atomic_write_power_fail) = (write, fail);
        info.atomic_boundary = boundary;
        rig.attach(nsid, info);
        let id = IdentifyNamespace::decode(&data(&rig, Cns::NAMESPACE, nsid));
        assert_eq!((id.nawun, id.nawupf, id.nacwu), (nawun, nawupf, nawun));
        assert_eq!((id.nabsn, id.nabspf, id.nabo), (nabsn, nabsn, 0));
        assert_eq!(id.nsfeat.contains(NsFeatures::ATOMIC_FIELDS), valid);
        // A Copy of up to 64 MiB from up to 128 ranges.
        let mcl = (64 << 20) / block;
        let mssrl = u16::try_from(mcl).unwrap_or(u16::MAX);
        assert_eq!((id.mssrl, id.mcl, id.msrc), (mssrl, mcl, 127));
    }
}

#[test]
fn deallocated_blocks() {
    use Support::{Emulate, Native, None};
    let rig = Rig::nvm();
    let table = [
        // DEALLOCATE, Write Zeroes, reads zeroes: DLFEAT.
        (None, Emulate, true, 0),
        (Native, Emulate, false, 0),
        (Native, Native, false, 0),
        (Native, Emulate, true, 0b0001),
        (Native, Native, true, 0b1001),
        (None, Native, true, 0b1001),
    ];
    for (nsid, (deallocate, write_zeroes, reads_zero, dlfeat)) in (10..).zip(table) {
        let caps = Caps {
            deallocate,
            write_zeroes,
            ..Caps::default()
        };
        let mut info = NsInfo::new(512, 100).with_caps(caps);
        info.dealloc_reads_zero = reads_zero;
        rig.attach(nsid, info);
        let id = IdentifyNamespace::decode(&data(&rig, Cns::NAMESPACE, nsid));
        assert_eq!(
            id.dlfeat,
            Dlfeat(dlfeat),
            "{deallocate:?} {write_zeroes:?} {reads_zero}"
        );
    }
}

#[test]
fn active_nsids_come_in_pages() {
    let rig = Rig::nvm();
    let list =
        |after| decode_nsid_list(&data(&rig, Cns::ACTIVE_NSID_LIST, after)).collect::<Vec<_>>();
    assert_eq!(list(0), [1, 3]);
    assert_eq!(list(1), [3]);
    assert_eq!(list(2), [3]);
    assert_eq!(list(3), []);
    for nsid in 4..=1100 {
        rig.attach(nsid, NsInfo::new(512, 1));
    }
    let first = list(0);
    assert_eq!((first.len(), first[0], first[1023]), (1024, 1, 1025));
    assert_eq!(list(1025), (1026..=1100).collect::<Vec<_>>());
    for cns in [
        Cns::CS_ACTIVE_NSID_LIST,
        Cns::ALLOCATED_NSID_LIST,
        Cns::CS_ALLOCATED_NSID_LIST,
    ] {
        let same: Vec<_> = decode_nsid_list(&data(&rig, cns, 1025)).collect();
        assert_eq!(same, list(1025), "{cns:?}");
    }
    rig.apply(Change::RemoveNamespace {
        nqn: rig.nqn(),
        nsid: 1,
    });
    assert_eq!(list(0)[0], 3);
}

#[test]
fn controllers_of_the_subsystem_and_of_a_namespace() {
    let mut rig = Rig::nvm();
    let first = rig.controller.cntlid;
    rig.come_by(Arc::clone(&rig.controller.listener), None);
    let second = rig.controller.cntlid;
    let list = |cns, cntid| {
        let mut sqe = sqe(cns, 1);
        IdentifyCommand {
            cntid,
            ..IdentifyCommand::new(cns)
        }
        .encode(&mut sqe);
        let data = rig.run(&sqe).unwrap().1.try_into().unwrap();
        decode_controller_list(&data).collect::<Vec<_>>()
    };
    for cns in [Cns::CONTROLLER_LIST, Cns::NS_CONTROLLER_LIST] {
        assert_eq!(list(cns, 0), [first, second]);
        assert_eq!(list(cns, second), [second]);
        assert_eq!(list(cns, second + 1), []);
    }
}
