//! Identify (NVMe Base 2.1, Identify command; NVM Command Set 1.1 for its own structures).

use super::{ACL, AdminCx, Kind, NsEntry, Transfer, feature, reservation};
use crate::conn::{CopyLimits, DMRL, DMRSL, STRIDE};
use crate::ctrl::AnaState;
use crate::ctrl::ana::ANATT;
use crate::ctrl::controller::{CRDT1, ErrorLog, KAS, WCTEMP};
use crate::ctrl::persistent::PersistentLog;
use crate::ctrl::property::VERSION;
use crate::ctrl::{Controller, Fault};
use crate::ns::{NsInfo, Support};
use nvmf_proto::wire::copy::CopyFormat;
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::identify::{
    AnaCapabilities, Cmic, Cns, ControllerType, Csi, Ctratt, Dlfeat, Frmw, Fuses, IDENTIFY_SIZE,
    IdentifyCommand, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
    IdentifyNamespaceIndependent, LbaFormat, Lpa, Nmic, NsFeatures, NsFeaturesIndependent,
    NsIdDescriptors, Nsattr, Nstat, Oaes, Ofcs, Oncs, Sgls, Vwc, encode_controller_list,
    encode_nsid_list,
};
use nvmf_proto::wire::log::ParameterLocation;
use nvmf_proto::wire::property::Vs;
use nvmf_proto::wire::{Sqe, Status, padded_ascii};
use std::sync::Arc;

/// The notices of OAES that a host can ask for. Both have one bit for one notice.
pub(super) const EVENTS: AsyncEventConfig =
    AsyncEventConfig::NAMESPACE_ATTRIBUTE.union(AsyncEventConfig::ANA_CHANGE);

/// Byte 24 of the SQE: DPTR.
pub(super) const DATA_POINTER: ParameterLocation = ParameterLocation::byte(24);

/// CCTEMP in kelvins.
const CCTEMP: u16 = 358;

/// CNTID FFFFh of CNS 1Ch: the controller that is asked.
const CNTID_SELF: u16 = 0xffff;

/// VSL and WZSL: log2 of the recommended size in units of CAP.MPSMIN, 4 KiB.
#[expect(clippy::cast_possible_truncation, reason = "a log2")]
const STRIDE_LOG2: u8 = (STRIDE.ilog2() - 12) as u8;

/// The version of the NVM Command Set specification that the I/O controllers follow.
const NVM_VERSION: Vs = Vs::new(1, 1, 0);

/// A data structure that can be given to the host.
enum Structure {
    Controller,
    /// `None`: nothing is attached under the NSID.
    Namespace(Option<Arc<NsEntry>>),
    NamespaceIndependent(Option<Arc<NsEntry>>),
    Descriptors(Arc<NsEntry>),
    /// Every namespace that is there for the host is attached, so active and allocated are one.
    Nsids {
        above: u32,
    },
    /// The controllers from one CNTLID on, of the subsystem or those that a namespace is there for.
    Controllers {
        from: u16,
        of: Option<Arc<NsEntry>>,
    },
    NvmController,
    CommandSets,
    /// There is nothing to be said.
    Zeroes,
}

pub(super) fn transfer(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    Structure::asked(cx, sqe).map(|_| Transfer::ToHost(4096))
}

pub(super) fn identify(cx: &AdminCx<'_>, sqe: &Sqe, data: &mut [u8]) -> Result<(), Fault> {
    let structure = Structure::asked(cx, sqe)?;
    let out = data
        .first_chunk_mut()
        .ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())?;
    structure.encode(cx, out);
    Ok(())
}

impl Structure {
    fn asked(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Self, Fault> {
        let command = IdentifyCommand::decode(sqe);
        match (cx.kind(), command.cns) {
            (_, Cns::CONTROLLER) => Ok(Self::Controller),
            (Kind::Discovery, _) => Err(CNS_INVALID),
            (Kind::Nvm, _) => Self::asked_of_io_controller(cx, &command, sqe.nsid()),
        }
    }

    fn asked_of_io_controller(
        cx: &AdminCx<'_>,
        command: &IdentifyCommand,
        nsid: u32,
    ) -> Result<Self, Fault> {
        let of_a_command_set = matches!(
            command.cns,
            Cns::CS_NAMESPACE
                | Cns::CS_CONTROLLER
                | Cns::CS_ACTIVE_NSID_LIST
                | Cns::CS_ALLOCATED_NSID_LIST
                | Cns::CS_ALLOCATED_NAMESPACE
        );
        if of_a_command_set && command.csi != Csi::NVM {
            let status = Status::INVALID_IO_COMMAND_SET.dnr();
            return Err(Fault::new(status, ParameterLocation::cdw(11, 24)));
        }
        let namespace = || cx.namespace(nsid).map_err(Fault::from);
        match command.cns {
            Cns::NAMESPACE | Cns::ALLOCATED_NAMESPACE => namespace().map(Self::Namespace),
            Cns::NAMESPACE_INDEPENDENT => namespace().map(Self::NamespaceIndependent),
            // No protection information, and no sizes beyond those of CNS 00h.
            Cns::CS_NAMESPACE | Cns::CS_ALLOCATED_NAMESPACE => namespace().map(|_| Self::Zeroes),
            Cns::NS_ID_DESCRIPTORS => namespace()?
                .map(Self::Descriptors)
                .ok_or_else(|| Status::INVALID_NAMESPACE.dnr().into()),
            // NVMe Base 2.1, Identify, CNS 02h: there is no NSID above these two.
            Cns::ACTIVE_NSID_LIST
            | Cns::CS_ACTIVE_NSID_LIST
            | Cns::ALLOCATED_NSID_LIST
            | Cns::CS_ALLOCATED_NSID_LIST
                if nsid >= 0xffff_fffe =>
            {
                Err(Status::INVALID_NAMESPACE.dnr().into())
            }
            Cns::ACTIVE_NSID_LIST
            | Cns::CS_ACTIVE_NSID_LIST
            | Cns::ALLOCATED_NSID_LIST
            | Cns::CS_ALLOCATED_NSID_LIST => Ok(Self::Nsids { above: nsid }),
            Cns::NS_CONTROLLER_LIST => Ok(match namespace()? {
                None => Self::Zeroes,
                of => Self::Controllers {
                    from: command.cntid,
                    of,
                },
            }),
            Cns::CONTROLLER_LIST => Ok(Self::Controllers {
                from: command.cntid,
                of: None,
            }),
            Cns::CS_CONTROLLER => Ok(Self::NvmController),
            Cns::IO_COMMAND_SETS => {
                let known = command.cntid == CNTID_SELF
                    || cx.subsystem().controller(command.cntid).is_some();
                known.then_some(Self::CommandSets).ok_or(Fault::cdw(10, 16))
            }
            _ => Err(CNS_INVALID),
        }
    }

    fn encode(self, cx: &AdminCx<'_>, out: &mut [u8; IDENTIFY_SIZE]) {
        match self {
            Self::Controller => match cx.kind() {
                Kind::Nvm => io_controller(cx).encode(out),
                Kind::Discovery => discovery_controller(cx).encode(out),
            },
            Self::Namespace(Some(entry)) => namespace(cx, &entry).encode(out),
            Self::NamespaceIndependent(Some(entry)) => namespace_independent(&entry).encode(out),
            Self::Namespace(None) | Self::NamespaceIndependent(None) | Self::Zeroes => out.fill(0),
            Self::Descriptors(entry) => descriptors(&entry.info).encode(out),
            Self::Nsids { above } => {
                let view = cx.controller.view();
                let nsids = view.iter().map(|seen| seen.entry.nsid);
                encode_nsid_list(nsids.filter(|&nsid| nsid > above), out);
            }
            Self::Controllers { from, of } => {
                let all = cx.subsystem().controllers();
                let sees = |c: &&Arc<Controller>| {
                    let visible = |e: &Arc<NsEntry>| e.visibility.includes(&c.hostnqn);
                    c.cntlid >= from && of.as_ref().is_none_or(visible)
                };
                encode_controller_list(all.iter().filter(sees).map(|c| c.cntlid), out);
            }
            Self::NvmController => {
                IdentifyControllerNvm {
                    vsl: STRIDE_LOG2,
                    wzsl: STRIDE_LOG2,
                    dmrl: DMRL,
                    dmrsl: DMRSL,
                    // The two above bound it.
                    dmsl: u64::MAX,
                    ver: NVM_VERSION.0,
                    ..IdentifyControllerNvm::default()
                }
                .encode(out);
            }
            Self::CommandSets => {
                // One combination, and in it bit 0: the NVM command set.
                out.fill(0);
                out[0] = 1;
            }
        }
    }
}

/// CNS: what there is nothing for (NVM sets, endurance groups, virtualization, UUIDs, domains) is
/// not offered by Identify Controller either.
const CNS_INVALID: Fault = Fault::cdw(10, 0);

/// What I/O controllers and discovery controllers have in common.
fn controller(cx: &AdminCx<'_>) -> IdentifyController {
    let limits = &cx.controller.limits;
    let subsystem = cx.subsystem();
    // Least significant byte first.
    let [ieee0, ieee1, ieee2] = subsystem.ieee_oui;
    // The unit is CAP.MPSMIN, which is 4 KiB.
    let mdts = limits.max_transfer.ilog2().saturating_sub(12);
    IdentifyController {
        sn: padded_ascii(&subsystem.serial),
        mn: padded_ascii(&subsystem.model),
        fr: subsystem.firmware(),
        vid: subsystem.vendor.0,
        ssvid: subsystem.vendor.1,
        ieee: [ieee2, ieee1, ieee0],
        mdts: u8::try_from(mdts).unwrap_or(u8::MAX),
        cntlid: cx.controller.cntlid,
        ver: VERSION.0,
        ctratt: Ctratt::HOST_ID_128 | Ctratt::TBKAS,
        acl: ACL,
        aerl: u8::try_from(limits.event_requests - 1).unwrap_or(u8::MAX),
        elpe: ErrorLog::ENTRIES - 1,
        kas: KAS,
        maxcmd: u16::try_from(limits.io_queue_entries).unwrap_or(u16::MAX),
        sgls: Sgls::SUPPORTED | Sgls::OFFSET | Sgls::TRANSPORT_DATA_BLOCK,
        subnqn: subsystem.nqn.to_field(),
        ..IdentifyController::default()
    }
}

fn io_controller(cx: &AdminCx<'_>) -> IdentifyController {
    let subsystem = cx.subsystem();
    IdentifyController {
        // Hosts need a Host Identifier for reservations, though not for anything else.
        ctratt: Ctratt::HOST_ID_128 | Ctratt::TBKAS | Ctratt::RESERVATION_HOST_ID,
        // Every host gets a controller of its own, by any of the listeners.
        cmic: Cmic::MULTI_PORT | Cmic::MULTI_CONTROLLER | Cmic::ANA_REPORTING,
        oaes: Oaes::from_bits_retain(EVENTS.bits()),
        anatt: ANATT,
        anacap: AnaCapabilities::OPTIMIZED
            | AnaCapabilities::NON_OPTIMIZED
            | AnaCapabilities::INACCESSIBLE
            | AnaCapabilities::PERSISTENT_LOSS
            | AnaCapabilities::CHANGE,
        anagrpmax: subsystem.ana_groups,
        nanagrpid: subsystem.ana_groups,
        cntrltype: ControllerType::IO,
        crdt1: CRDT1,
        frmw: Frmw::SLOT_1_READ_ONLY | Frmw::ONE_SLOT,
        lpa: Lpa::SMART_PER_NAMESPACE
            | Lpa::COMMAND_EFFECTS
            | Lpa::EXTENDED_DATA
            | Lpa::PERSISTENT_EVENT
            | Lpa::SUPPORTED_LOG_PAGES,
        pels: PersistentLog::PELS,
        wctemp: WCTEMP,
        cctemp: CCTEMP,
        // As far as the host knows: of what is masked it learns not even that.
        tnvmcap: cx
            .controller
            .view()
            .iter()
            .map(|seen| u128::from(seen.entry.info.bytes()))
            .sum(),
        sqes: 0x66,
        cqes: 0x44,
        nn: subsystem.max_namespaces,
        mnan: subsystem.max_namespaces,
        // For the life of the controller, whatever namespaces come later.
        oncs: Oncs::COMPARE
            | Oncs::DATASET_MANAGEMENT
            | Oncs::WRITE_ZEROES
            | Oncs::SAVE_AND_SELECT
            | Oncs::RESERVATIONS
            | Oncs::TIMESTAMP
            | Oncs::VERIFY
            | Oncs::COPY
            | Oncs::COPY_SINGLE_ATOMICITY
            | Oncs::WRITE_UNCORRECTABLE
            | Oncs::NAMESPACE_ZEROES,
        fuses: Fuses::COMPARE_AND_WRITE,
        nwpc: feature::NWPC,
        cdfs: CopyFormat::SAME_NAMESPACE.bit() | CopyFormat::ANY_NAMESPACE.bit(),
        vwc: Vwc::PRESENT | Vwc::FLUSH_BROADCAST,
        ioccsz: (64 + cx.controller.limits.in_capsule) / 16,
        iorcsz: 1,
        msdbd: 1,
        ofcs: Ofcs::DISCONNECT,
        ..controller(cx)
    }
}

/// CDFS: the Copy Descriptor Formats that there are.
pub(super) fn copy_formats(cx: &AdminCx<'_>) -> u16 {
    io_controller(cx).cdfs
}

fn discovery_controller(cx: &AdminCx<'_>) -> IdentifyController {
    IdentifyController {
        oaes: Oaes::DISCOVERY_LOG,
        cntrltype: ControllerType::DISCOVERY,
        lpa: Lpa::EXTENDED_DATA,
        ..controller(cx)
    }
}

fn namespace(cx: &AdminCx<'_>, entry: &NsEntry) -> IdentifyNamespace {
    let info = &entry.info;
    let mut lbaf = [LbaFormat::default(); 64];
    lbaf[0].data_size_log2 = info.lba_shift;
    // 0's based blocks of a preferred size; what is not known is one block.
    let preferred =
        |bytes: u32| u16::try_from((bytes >> info.lba_shift).max(1) - 1).unwrap_or(u16::MAX);
    let (write, deallocate) = (
        preferred(info.preferred_write),
        preferred(info.preferred_deallocate),
    );
    let mut nsfeat = NsFeatures::empty();
    // UIDREUSE stays clear: identifiers that come from the NSID come back with it.
    nsfeat.set(
        NsFeatures::OPTIMAL_IO,
        info.preferred_write != 0 || info.preferred_deallocate != 0,
    );
    let mut id = IdentifyNamespace {
        nsze: info.blocks,
        ncap: info.blocks,
        nuse: info.blocks,
        nsfeat,
        nmic: Nmic::SHARED,
        rescap: reservation::rescap(entry),
        dlfeat: dlfeat(info),
        nvmcap: u128::from(info.bytes()),
        mssrl: CopyLimits::of(info).range_blocks,
        mcl: CopyLimits::of(info).blocks,
        msrc: CopyLimits::RANGES - 1,
        anagrpid: entry.anagrpid,
        nsattr: nsattr(entry),
        nguid: info.nguid,
        eui64: info.eui64,
        lbaf,
        ..IdentifyNamespace::default()
    };
    // NVM Command Set 1.1, Identify Namespace: what is in use cannot be known at such a port. NSZE
    // and NCAP stay: a namespace without capacity would be none.
    let state = cx.controller.view().ana_state(entry.anagrpid);
    if matches!(state, AnaState::Inaccessible | AnaState::PersistentLoss) {
        (id.nuse, id.nvmcap) = (0, 0);
    }
    set_atomicity(&mut id, info, cx.core.config.max_transfer);
    if nsfeat.contains(NsFeatures::OPTIMAL_IO) {
        (id.npwg, id.npwa, id.nows) = (write, write, write);
        (id.npdg, id.npda) = (deallocate, deallocate);
    }
    id
}

/// What is more than one logical block: that much AWUN, AWUPF and ACWU promise of any namespace.
fn set_atomicity(id: &mut IdentifyNamespace, info: &NsInfo, max_transfer: u32) {
    let blocks = |bytes: u32| u16::try_from((bytes >> info.lba_shift).max(1) - 1).unwrap_or(0);
    // Copy writes no more at a time.
    id.nawun = blocks(info.atomic_write.min(max_transfer));
    id.nawupf = blocks(info.atomic_write_power_fail.min(max_transfer));
    if info.caps.compare_and_write != Support::None {
        // Nothing but reads gets in between, and for these it is a write.
        id.nacwu = id.nawun;
    }
    (id.nabsn, id.nabspf) = (blocks(info.atomic_boundary), blocks(info.atomic_boundary));
    let any = id.nawun | id.nawupf | id.nabsn != 0;
    id.nsfeat.set(NsFeatures::ATOMIC_FIELDS, any);
}

fn dlfeat(info: &NsInfo) -> Dlfeat {
    let zeroes_deallocate = info.caps.write_zeroes == Support::Native;
    let deallocates = zeroes_deallocate || info.caps.deallocate == Support::Native;
    match (info.dealloc_reads_zero && deallocates, zeroes_deallocate) {
        (false, _) => Dlfeat::READ_NOT_REPORTED,
        (true, false) => Dlfeat::READ_ZEROES,
        (true, true) => Dlfeat::READ_ZEROES.with_write_zeroes_deallocate(),
    }
}

fn nsattr(entry: &NsEntry) -> Nsattr {
    let mut nsattr = Nsattr::empty();
    nsattr.set(Nsattr::WRITE_PROTECTED, entry.is_protected());
    nsattr
}

fn namespace_independent(entry: &NsEntry) -> IdentifyNamespaceIndependent {
    let mut nsfeat = NsFeaturesIndependent::empty();
    nsfeat.set(
        NsFeaturesIndependent::NO_VOLATILE_WRITE_CACHE,
        !entry.info.volatile_cache,
    );
    IdentifyNamespaceIndependent {
        nsfeat,
        nmic: Nmic::SHARED,
        rescap: reservation::rescap(entry),
        anagrpid: entry.anagrpid,
        nsattr: nsattr(entry),
        nstat: Nstat::READY,
        ..IdentifyNamespaceIndependent::default()
    }
}

fn descriptors(info: &NsInfo) -> NsIdDescriptors {
    NsIdDescriptors {
        eui64: Some(info.eui64).filter(|id| *id != [0; 8]),
        nguid: Some(info.nguid).filter(|id| *id != [0; 16]),
        uuid: Some(info.uuid).filter(|id| *id != [0; 16]),
        csi: Some(Csi::NVM),
    }
}
