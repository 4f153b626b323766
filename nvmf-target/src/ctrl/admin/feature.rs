//! Get Features and Set Features (NVMe Base 2.1, Get Features and Set Features commands).
//!
//! The features that an I/O controller must have and that mean nothing here (arbitration between
//! its queues, power, temperature, ...) have one value: it can be read, and set to what it is.

use super::{AdminCx, Fault, Kind, Transfer, identify};
use crate::ctrl::controller::KAS;
use nvmf_proto::wire::feature::{
    AsyncEventConfig, FeatureCapabilities, FeatureSelect, Fid, GetFeatures, HOST_ID_EXTENDED,
    NumberOfQueues, SetFeatures, VWC_ENABLE,
};
use nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_proto::wire::log::{CommandEffects, CriticalWarning};
use nvmf_proto::wire::{Sqe, Status};

/// Arbitration Burst 111b: no limit.
const ARBITRATION: u32 = 0b111;

/// The default Keep Alive Timeout over Fabrics, in milliseconds.
const KATO_DEFAULT_MS: u32 = 120_000;

/// Bytes of the Host Identifier in its extended form.
const HOST_ID_SIZE: u32 = 16;

/// Whether a controller has a feature, and whose it is.
fn capabilities(kind: Kind, fid: Fid) -> Option<FeatureCapabilities> {
    match (kind, fid) {
        (_, Fid::ASYNC_EVENT_CONFIG | Fid::KEEP_ALIVE_TIMER)
        | (Kind::Nvm, Fid::NUMBER_OF_QUEUES) => Some(FeatureCapabilities::CHANGEABLE),
        (Kind::Nvm, Fid::ERROR_RECOVERY) => Some(FeatureCapabilities::NAMESPACE_SPECIFIC),
        (
            Kind::Nvm,
            Fid::ARBITRATION
            | Fid::POWER_MANAGEMENT
            | Fid::TEMPERATURE_THRESHOLD
            | Fid::VOLATILE_WRITE_CACHE
            | Fid::WRITE_ATOMICITY
            | Fid::HOST_IDENTIFIER,
        ) => Some(FeatureCapabilities::empty()),
        _ => None,
    }
}

/// A feature's entry in the Feature Identifiers Supported and Effects log page, whose bits stand
/// where those of the commands do.
pub(super) fn effects(cx: &AdminCx<'_>, fid: u8) -> CommandEffects {
    match capabilities(cx.kind(), Fid(fid)) {
        None => CommandEffects::empty(),
        Some(c) if c.contains(FeatureCapabilities::NAMESPACE_SPECIFIC) => {
            CommandEffects::SUPPORTED | CommandEffects::SCOPE_NAMESPACE
        }
        Some(_) => CommandEffects::SUPPORTED | CommandEffects::SCOPE_CONTROLLER,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Get,
    Set,
}

/// NVMe Base 2.1 §4.4, scopes of features: a feature of the controller is read whatever valid
/// NSID is named, but set for all namespaces only; one of a namespace is read of one namespace.
fn check_nsid(
    cx: &AdminCx<'_>,
    nsid: u32,
    capabilities: FeatureCapabilities,
    access: Access,
) -> Result<(), Fault> {
    let of_namespace = capabilities.contains(FeatureCapabilities::NAMESPACE_SPECIFIC);
    match nsid {
        NSID_BROADCAST if of_namespace && access == Access::Get => {
            Err(Status::INVALID_NAMESPACE.dnr().into())
        }
        NSID_BROADCAST => Ok(()),
        0 if !of_namespace => Ok(()),
        _ => match cx.namespace(nsid)? {
            None if of_namespace => Err(Fault::nsid()),
            _ if !of_namespace && access == Access::Set => {
                Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr().into())
            }
            _ => Ok(()),
        },
    }
}

pub(super) fn transfer_get(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    let (get, _) = asked(cx, sqe)?;
    if get.fid == Fid::HOST_IDENTIFIER && get.sel != FeatureSelect::CAPABILITIES {
        return Ok(Transfer::ToHost(HOST_ID_SIZE));
    }
    Ok(Transfer::None)
}

pub(super) fn get(cx: &AdminCx<'_>, sqe: &Sqe, data: &mut [u8]) -> Result<u32, Fault> {
    let (get, dw0) = asked(cx, sqe)?;
    if get.fid == Fid::HOST_IDENTIFIER && get.sel != FeatureSelect::CAPABILITIES {
        let out = data
            .first_chunk_mut()
            .ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())?;
        *out = cx.controller.hostid;
    }
    Ok(dw0)
}

/// A Get Features command and dword 0 of its answer.
fn asked(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<(GetFeatures, u32), Fault> {
    let get = GetFeatures::decode(sqe);
    let capabilities = capabilities(cx.kind(), get.fid).ok_or(Fault::cdw(10, 0))?;
    check_nsid(cx, sqe.nsid(), capabilities, Access::Get)?;
    let dw0 = match get.sel {
        FeatureSelect::CAPABILITIES => capabilities.bits(),
        FeatureSelect::CURRENT => current(cx, &get)?,
        // Nothing is saveable, and then the saved value is the default one.
        FeatureSelect::DEFAULT | FeatureSelect::SAVED => default(cx, &get)?,
        _ => return Err(Fault::cdw(10, 8)),
    };
    Ok((get, dw0))
}

fn current(cx: &AdminCx<'_>, get: &GetFeatures) -> Result<u32, Fault> {
    match get.fid {
        Fid::NUMBER_OF_QUEUES => {
            let granted = cx
                .controller
                .granted_queues()
                .unwrap_or(cx.controller.limits.io_queues);
            Ok(NumberOfQueues::pairs(granted).to_bits())
        }
        Fid::ASYNC_EVENT_CONFIG => Ok(cx.controller.event_config().bits()),
        Fid::KEEP_ALIVE_TIMER => Ok(cx.controller.kato_ms()),
        _ => default(cx, get),
    }
}

fn default(cx: &AdminCx<'_>, get: &GetFeatures) -> Result<u32, Fault> {
    match get.fid {
        Fid::NUMBER_OF_QUEUES => {
            Ok(NumberOfQueues::pairs(cx.controller.limits.io_queues).to_bits())
        }
        Fid::ASYNC_EVENT_CONFIG => Ok(AsyncEventConfig::empty().bits()),
        Fid::KEEP_ALIVE_TIMER => Ok(KATO_DEFAULT_MS),
        // NVMe over Fabrics has the 128-bit form only. The identifier goes as data.
        Fid::HOST_IDENTIFIER if get.cdw11 & HOST_ID_EXTENDED == 0 => Err(Fault::cdw(11, 0)),
        Fid::HOST_IDENTIFIER => Ok(0),
        fid => fixed(fid, get.cdw11),
    }
}

/// The value of a feature that has only one.
fn fixed(fid: Fid, cdw11: u32) -> Result<u32, Fault> {
    match fid {
        Fid::ARBITRATION => Ok(ARBITRATION),
        Fid::TEMPERATURE_THRESHOLD => temperature_threshold(cdw11),
        // The controller has a volatile write cache, whichever namespaces are attached now; CNS
        // 08h says which of them need no Flush.
        Fid::VOLATILE_WRITE_CACHE => Ok(VWC_ENABLE),
        // Power state 0; no error recovery limit; writes are as atomic as AWUN and AWUPF say.
        _ => Ok(0),
    }
}

/// TMPTH of what TMPSEL and THSEL name: there is the Composite Temperature (TMPSEL 0000b) only.
fn temperature_threshold(cdw11: u32) -> Result<u32, Fault> {
    let (tmpsel, thsel) = (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3);
    match (tmpsel, thsel) {
        (0, 0) => Ok(u32::from(identify::WCTEMP)),
        (0, 1) => Ok(0),
        _ => Err(Fault::cdw(11, 16)),
    }
}

pub(super) fn transfer_set(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    to_be_set(cx, sqe).map(|_| Transfer::None)
}

/// A Set Features command that names a feature properly; its value may still be wrong.
fn to_be_set(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<SetFeatures, Fault> {
    let set = SetFeatures::decode(sqe);
    let capabilities = capabilities(cx.kind(), set.fid).ok_or(Fault::cdw(10, 0))?;
    if set.sv {
        return Err(Status::FEATURE_NOT_SAVEABLE.dnr().into());
    }
    check_nsid(cx, sqe.nsid(), capabilities, Access::Set)?;
    // NVMe Base 2.1, Host Identifier: over Fabrics it is Connect that sets it.
    if set.fid == Fid::HOST_IDENTIFIER {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into());
    }
    Ok(set)
}

pub(super) fn set(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<u32, Fault> {
    let set = to_be_set(cx, sqe)?;
    match set.fid {
        Fid::NUMBER_OF_QUEUES => set_queues(cx, set.cdw11),
        Fid::ASYNC_EVENT_CONFIG => set_events(cx, set.cdw11).map(|()| 0),
        Fid::KEEP_ALIVE_TIMER => set_kato(cx, set.cdw11).map(|()| 0),
        fid => set_fixed(fid, set.cdw11).map(|()| 0),
    }
}

fn set_queues(cx: &AdminCx<'_>, cdw11: u32) -> Result<u32, Fault> {
    let asked = NumberOfQueues::from_bits(cdw11);
    if asked.nsq == u16::MAX || asked.ncq == u16::MAX {
        return Err(Fault::cdw(11, 0));
    }
    // A Connect makes a submission and a completion queue, so they are granted in pairs.
    let pairs = u16::try_from(asked.pair_count()).unwrap_or(u16::MAX);
    let granted = pairs.min(cx.controller.limits.io_queues);
    if !cx.controller.grant_queues(granted) {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into());
    }
    Ok(NumberOfQueues::pairs(granted).to_bits())
}

fn set_events(cx: &AdminCx<'_>, cdw11: u32) -> Result<(), Fault> {
    // The events of OAES, and the critical warnings, which cannot happen here.
    let supported = match cx.kind() {
        Kind::Nvm => {
            let warnings = u32::from(CriticalWarning::all().bits());
            AsyncEventConfig::NAMESPACE_ATTRIBUTE | AsyncEventConfig::from_bits_retain(warnings)
        }
        Kind::Discovery => AsyncEventConfig::DISCOVERY_LOG,
    };
    let config = AsyncEventConfig::from_bits_retain(cdw11);
    if !supported.contains(config) {
        return Err(Fault::cdw(11, 0));
    }
    cx.controller.set_event_config(config);
    Ok(())
}

fn set_kato(cx: &AdminCx<'_>, kato_ms: u32) -> Result<(), Fault> {
    // NVMe/TCP 1.1, Keep Alive: the transport requires it, so a host cannot turn it off. A
    // discovery controller without it is merely not a persistent one.
    if kato_ms == 0 && cx.kind() == Kind::Nvm {
        return Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr().into());
    }
    let granularity_ms = u32::from(KAS) * 100;
    cx.controller.set_kato_ms(
        kato_ms
            .div_ceil(granularity_ms)
            .saturating_mul(granularity_ms),
    );
    Ok(())
}

fn set_fixed(fid: Fid, cdw11: u32) -> Result<(), Fault> {
    let value = fixed(fid, cdw11)?;
    let wanted = match fid {
        // TMPTH stands beside what selects the threshold.
        Fid::TEMPERATURE_THRESHOLD => cdw11 & 0xffff,
        _ => cdw11,
    };
    if wanted == value {
        Ok(())
    } else {
        Err(Status::FEATURE_NOT_CHANGEABLE.dnr().into())
    }
}
