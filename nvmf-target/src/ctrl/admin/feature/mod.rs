//! Get Features and Set Features (NVMe Base 2.1, Get Features and Set Features commands).
//!
//! What a feature is stands in one table, [`Feature::of`]; both commands are checked against it
//! before anything is read or set.

mod protect;
mod set;

pub(super) use protect::NWPC;
pub(super) use set::{set, transfer_set};

use super::{AdminCx, Fault, Kind, Transfer, reservation};
use crate::ctrl::controller::Settings;
use nvmf_proto::wire::feature::{
    FeatureCapabilities, FeatureSelect, Fid, GetFeatures, HOST_ID_EXTENDED, HostBehavior,
    NumberOfQueues, TemperatureThreshold, Timestamp, VWC_ENABLE,
};
use nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_proto::wire::log::CommandEffects;
use nvmf_proto::wire::reservation::{NotificationMask, ReservationPersistence};
use nvmf_proto::wire::{Sqe, Status};

/// Arbitration Burst 111b: no limit. Commands come when their host sends them.
const ARBITRATION: u32 = 0b111;

/// The default Keep Alive Timeout over Fabrics, in milliseconds.
const KATO_DEFAULT_MS: u32 = 120_000;

/// What a feature is, whatever its value.
#[derive(Clone, Copy)]
struct Feature {
    capabilities: FeatureCapabilities,
    /// Bytes that its value has as data; 0: it stands in dword 0 and CDW11.
    data: u32,
    /// The bits of CDW11 of Set Features that are not reserved.
    cdw11: u32,
}

impl Feature {
    const fn new(capabilities: FeatureCapabilities, cdw11: u32) -> Self {
        Self {
            capabilities,
            data: 0,
            cdw11,
        }
    }

    const fn with_data(self, data: u32) -> Self {
        Self { data, ..self }
    }

    /// A feature that controllers of a kind have. Nothing is saveable.
    fn of(kind: Kind, fid: Fid) -> Option<Self> {
        let fixed = FeatureCapabilities::empty();
        let changeable = FeatureCapabilities::CHANGEABLE;
        let of_namespace = FeatureCapabilities::NAMESPACE_SPECIFIC;
        let feature = match fid {
            Fid::ASYNC_EVENT_CONFIG | Fid::KEEP_ALIVE_TIMER => Self::new(changeable, u32::MAX),
            _ if kind == Kind::Discovery => return None,
            Fid::ARBITRATION => Self::new(fixed, 0xffff_ff07),
            Fid::POWER_MANAGEMENT => Self::new(changeable, 0xff),
            Fid::TEMPERATURE_THRESHOLD => Self::new(changeable, 0x01ff_ffff),
            Fid::ERROR_RECOVERY => Self::new(of_namespace, 0x0001_ffff),
            Fid::VOLATILE_WRITE_CACHE => Self::new(changeable, VWC_ENABLE),
            Fid::NUMBER_OF_QUEUES => Self::new(changeable, u32::MAX),
            Fid::WRITE_ATOMICITY => Self::new(changeable, 1),
            Fid::TIMESTAMP => Self::new(changeable, 0).with_data(8),
            Fid::HOST_BEHAVIOR => Self::new(changeable, 0).with_data(512),
            // NVMe over Fabrics has the 128-bit form only.
            Fid::HOST_IDENTIFIER => Self::new(fixed, HOST_ID_EXTENDED).with_data(16),
            Fid::RESERVATION_NOTIFICATION_MASK => Self::new(
                of_namespace.union(changeable),
                NotificationMask::all().bits(),
            ),
            Fid::RESERVATION_PERSISTENCE => Self::new(
                of_namespace.union(changeable),
                ReservationPersistence::all().bits(),
            ),
            Fid::NAMESPACE_WRITE_PROTECTION => Self::new(of_namespace.union(changeable), 7),
            _ => return None,
        };
        Some(feature)
    }

    fn is_of_namespace(self) -> bool {
        self.capabilities
            .contains(FeatureCapabilities::NAMESPACE_SPECIFIC)
    }
}

/// A feature's entry in the Feature Identifiers Supported and Effects log page, whose bits stand
/// where those of the commands do.
pub(super) fn effects(cx: &AdminCx<'_>, fid: u8) -> CommandEffects {
    match Feature::of(cx.kind(), Fid(fid)) {
        None => CommandEffects::empty(),
        Some(_) if Fid(fid) == Fid::NAMESPACE_WRITE_PROTECTION => {
            CommandEffects::SUPPORTED
                | CommandEffects::NAMESPACE_CHANGE
                | CommandEffects::SCOPE_NAMESPACE
        }
        Some(feature) if feature.is_of_namespace() => {
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
fn check_nsid(cx: &AdminCx<'_>, nsid: u32, feature: Feature, access: Access) -> Result<(), Fault> {
    let of_namespace = feature.is_of_namespace();
    if of_namespace && let Some(status) = cx.controller.view().refused_by_ana(nsid) {
        // NVMe Base 2.1 §8.1.1, ANA effects on command processing.
        return Err(status.into());
    }
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

/// A Get Features command that names a feature and one of its values properly.
fn asked(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<(GetFeatures, Feature), Fault> {
    let get = GetFeatures::decode(sqe);
    let feature = Feature::of(cx.kind(), get.fid).ok_or(Fault::cdw(10, 0))?;
    check_nsid(cx, sqe.nsid(), feature, Access::Get)?;
    if get.sel.0 > FeatureSelect::CAPABILITIES.0 {
        return Err(Fault::cdw(10, 8));
    }
    Ok((get, feature))
}

pub(super) fn transfer_get(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    let (get, feature) = asked(cx, sqe)?;
    if feature.data == 0 || get.sel == FeatureSelect::CAPABILITIES {
        return Ok(Transfer::None);
    }
    if get.fid == Fid::HOST_IDENTIFIER && get.cdw11 & HOST_ID_EXTENDED == 0 {
        return Err(Fault::cdw(11, 0));
    }
    Ok(Transfer::ToHost(feature.data))
}

/// Returns dword 0; `out` takes the value of a feature that has it as data.
pub(super) fn get(cx: &AdminCx<'_>, sqe: &Sqe, out: &mut [u8]) -> Result<u32, Fault> {
    let (get, feature) = asked(cx, sqe)?;
    // Nothing is saveable, and then the saved value is the default one.
    let settings = match get.sel {
        FeatureSelect::CAPABILITIES => return Ok(feature.capabilities.bits()),
        FeatureSelect::CURRENT => cx.controller.settings(),
        _ => Settings::default(),
    };
    if feature.data != 0 {
        transfer_get(cx, sqe)?;
        let value = data_of(cx, &get, &settings);
        if out.len() != value.len() {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into());
        }
        out.copy_from_slice(&value);
        return Ok(0);
    }
    if get.sel == FeatureSelect::CURRENT {
        if let Some(value) = reservation::current(cx, get.fid, sqe.nsid()) {
            return Ok(value);
        }
        if get.fid == Fid::NAMESPACE_WRITE_PROTECTION {
            return Ok(protect::current(cx, sqe.nsid()));
        }
        current(cx, &get, &settings)
    } else {
        default(cx, &get, &settings)
    }
}

/// The value of a feature that has it as data.
fn data_of(cx: &AdminCx<'_>, get: &GetFeatures, settings: &Settings) -> Vec<u8> {
    match get.fid {
        Fid::HOST_IDENTIFIER => cx.controller.hostid.to_vec(),
        Fid::TIMESTAMP if get.sel == FeatureSelect::CURRENT => {
            settings.clock.now().0.to_le_bytes().to_vec()
        }
        Fid::HOST_BEHAVIOR => {
            let mut bytes = [0; HostBehavior::SIZE];
            settings.host_behavior.encode(&mut bytes);
            bytes.to_vec()
        }
        _ => vec![0; Timestamp::SIZE],
    }
}

fn current(cx: &AdminCx<'_>, get: &GetFeatures, settings: &Settings) -> Result<u32, Fault> {
    let controller = cx.controller;
    match get.fid {
        Fid::NUMBER_OF_QUEUES => {
            let granted = controller.granted_queues();
            let queues = granted.unwrap_or(controller.limits.io_queues);
            Ok(NumberOfQueues::pairs(queues).to_bits())
        }
        Fid::ASYNC_EVENT_CONFIG => Ok(controller.event_config().bits()),
        Fid::KEEP_ALIVE_TIMER => Ok(controller.kato_ms()),
        _ => default(cx, get, settings),
    }
}

/// The value by the settings, and the default of what they do not hold.
fn default(cx: &AdminCx<'_>, get: &GetFeatures, settings: &Settings) -> Result<u32, Fault> {
    match get.fid {
        Fid::ARBITRATION => Ok(ARBITRATION),
        Fid::POWER_MANAGEMENT => Ok(u32::from(settings.workload_hint) << 5),
        Fid::TEMPERATURE_THRESHOLD => {
            let asked = TemperatureThreshold::from_bits(get.cdw11);
            // There is one sensor, the Composite Temperature.
            match (asked.sensor, asked.kind) {
                (TemperatureThreshold::COMPOSITE, TemperatureThreshold::OVER) => {
                    Ok(settings.over_temperature.into())
                }
                (TemperatureThreshold::COMPOSITE, TemperatureThreshold::UNDER) => {
                    Ok(settings.under_temperature.into())
                }
                _ => Err(Fault::cdw(11, 16)),
            }
        }
        // The controller has a volatile write cache, whichever namespaces are attached now; CNS
        // 08h says which of them need no Flush.
        Fid::VOLATILE_WRITE_CACHE => Ok(u32::from(settings.write_cache) * VWC_ENABLE),
        Fid::NUMBER_OF_QUEUES => {
            Ok(NumberOfQueues::pairs(cx.controller.limits.io_queues).to_bits())
        }
        Fid::WRITE_ATOMICITY => Ok(settings.disable_normal.into()),
        Fid::KEEP_ALIVE_TIMER => Ok(KATO_DEFAULT_MS),
        // No event is configured, and there is no error recovery to be limited.
        _ => Ok(0),
    }
}
