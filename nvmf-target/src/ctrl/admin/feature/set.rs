//! Set Features.

use super::{
    ARBITRATION, Access, AdminCx, Fault, Feature, Kind, Transfer, VWC_ENABLE, check_nsid, protect,
};
use crate::ctrl::admin::{Answer, Settle, identify, reservation};
use crate::ctrl::controller::Clock;
use nvmf_proto::wire::feature::{
    AsyncEventConfig, Fid, HostBehavior, NumberOfQueues, SetFeatures, TemperatureThreshold,
    Timestamp, WRITE_ATOMICITY_DISABLE_NORMAL,
};
use nvmf_proto::wire::log::CriticalWarning;
use nvmf_proto::wire::{Sqe, Status};
use std::sync::Arc;

pub(in crate::ctrl::admin) fn transfer_set(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    let (_, feature) = to_be_set(cx, sqe)?;
    Ok(match feature.data {
        0 => Transfer::None,
        len => Transfer::FromHost(len),
    })
}

/// A Set Features command that names a feature properly; its value may still be wrong.
fn to_be_set(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<(SetFeatures, Feature), Fault> {
    let set = SetFeatures::decode(sqe);
    let feature = Feature::of(cx.kind(), set.fid).ok_or(Fault::cdw(10, 0))?;
    if set.sv {
        return Err(Status::FEATURE_NOT_SAVEABLE.dnr().into());
    }
    check_nsid(cx, sqe.nsid(), feature, Access::Set)?;
    // NVMe Base 2.1, Host Identifier: over Fabrics it is Connect that sets it.
    if set.fid == Fid::HOST_IDENTIFIER {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into());
    }
    let reserved = set.cdw11 & !feature.cdw11;
    if reserved != 0 {
        let bit = u8::try_from(reserved.trailing_zeros()).unwrap_or(0);
        return Err(Fault::cdw(11, bit));
    }
    Ok((set, feature))
}

/// `data` is what the host sent, of the length that [`transfer_set`] said.
pub(in crate::ctrl::admin) fn set(
    cx: &AdminCx<'_>,
    sqe: &Sqe,
    data: &[u8],
) -> Result<Answer, Fault> {
    let (set, feature) = to_be_set(cx, sqe)?;
    if data.len() != feature.data as usize {
        return Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into());
    }
    match set.fid {
        Fid::NUMBER_OF_QUEUES => return set_queues(cx, set.cdw11).map(Answer::Done),
        Fid::ASYNC_EVENT_CONFIG => set_events(cx, set.cdw11)?,
        Fid::KEEP_ALIVE_TIMER => set_kato(cx, set.cdw11)?,
        Fid::POWER_MANAGEMENT => set_power(cx, set.cdw11)?,
        Fid::TEMPERATURE_THRESHOLD => set_temperature(cx, set.cdw11)?,
        Fid::WRITE_ATOMICITY => {
            let disable = set.cdw11 & WRITE_ATOMICITY_DISABLE_NORMAL != 0;
            cx.controller
                .change_settings(|s| s.disable_normal = disable);
        }
        Fid::RESERVATION_NOTIFICATION_MASK => {
            reservation::set_mask(cx, sqe.nsid(), set.cdw11);
        }
        Fid::TIMESTAMP => set_timestamp(cx, data),
        Fid::HOST_BEHAVIOR => set_host_behavior(cx, data)?,
        Fid::ARBITRATION => fixed(set.cdw11, ARBITRATION)?,
        Fid::VOLATILE_WRITE_CACHE => return Ok(set_write_cache(cx, set.cdw11)),
        Fid::NAMESPACE_WRITE_PROTECTION => return protect::set(cx, sqe.nsid(), set.cdw11),
        // Error Recovery: no limit, and no error for deallocated blocks (NSFEAT.DAE is clear).
        _ => fixed(set.cdw11, 0)?,
    }
    Ok(Answer::Done(0))
}

/// A feature with one value can be set to that.
fn fixed(wanted: u32, value: u32) -> Result<(), Fault> {
    if wanted == value {
        Ok(())
    } else {
        Err(Status::FEATURE_NOT_CHANGEABLE.dnr().into())
    }
}

fn set_queues(cx: &AdminCx<'_>, cdw11: u32) -> Result<u32, Fault> {
    let asked = NumberOfQueues::from_bits(cdw11);
    if asked.nsq == u16::MAX {
        return Err(Fault::cdw(11, 0));
    }
    if asked.ncq == u16::MAX {
        return Err(Fault::cdw(11, 16));
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
    // The events of OAES, and the critical warnings.
    let supported = match cx.kind() {
        Kind::Nvm => {
            let warnings = u32::from(CriticalWarning::all().bits());
            identify::EVENTS | AsyncEventConfig::from_bits_retain(warnings)
        }
        Kind::Discovery => AsyncEventConfig::DISCOVERY_LOG,
    };
    let config = AsyncEventConfig::from_bits_retain(cdw11);
    let unknown = config.difference(supported);
    if !unknown.is_empty() {
        let bit = u8::try_from(unknown.bits().trailing_zeros()).unwrap_or(0);
        return Err(Fault::cdw(11, bit));
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
    cx.controller.set_kato_ms(kato_ms);
    Ok(())
}

fn set_power(cx: &AdminCx<'_>, cdw11: u32) -> Result<(), Fault> {
    // PS: NPSS is 0. WH: 0 to 2 have a meaning.
    let (state, hint) = (cdw11 & 0x1f, cdw11 >> 5 & 7);
    if state != 0 {
        return Err(Fault::cdw(11, 0));
    }
    let hint = u8::try_from(hint).ok().filter(|&hint| hint <= 2);
    let hint = hint.ok_or(Fault::cdw(11, 5))?;
    cx.controller.change_settings(|s| s.workload_hint = hint);
    Ok(())
}

fn set_temperature(cx: &AdminCx<'_>, cdw11: u32) -> Result<(), Fault> {
    let wanted = TemperatureThreshold::from_bits(cdw11);
    let composite = matches!(
        wanted.sensor,
        TemperatureThreshold::COMPOSITE | TemperatureThreshold::ALL_SENSORS
    );
    if !composite {
        return Err(Fault::cdw(11, 16));
    }
    // Hysteresis is not offered (OAES.TTHRY is clear).
    if wanted.hysteresis != 0 {
        return Err(Fault::cdw(11, 22));
    }
    match wanted.kind {
        TemperatureThreshold::OVER => cx
            .controller
            .change_settings(|s| s.over_temperature = wanted.threshold),
        TemperatureThreshold::UNDER => cx
            .controller
            .change_settings(|s| s.under_temperature = wanted.threshold),
        _ => return Err(Fault::cdw(11, 20)),
    }
    Ok(())
}

fn set_write_cache(cx: &AdminCx<'_>, cdw11: u32) -> Answer {
    let enable = cdw11 & VWC_ENABLE != 0;
    cx.controller.enable_write_cache(enable);
    if enable {
        return Answer::Done(0);
    }
    // From now on what is written is safe when its command is over. What was written before has to
    // be, too, before the host is told that there is no cache; and what is being written goes without
    // FUA.
    let view = cx.controller.view();
    let entries = view.iter().map(|seen| &seen.entry);
    let volatile = entries.filter(|entry| entry.info.volatile_cache);
    Answer::Settle(Settle {
        namespaces: volatile.map(Arc::clone).collect(),
        fence: true,
    })
}

fn set_timestamp(cx: &AdminCx<'_>, data: &[u8]) {
    let bytes = data.first_chunk().copied().unwrap_or_default();
    // What is not milliseconds is reserved in what a host sends.
    let milliseconds = Timestamp(u64::from_le_bytes(bytes)).milliseconds();
    cx.controller.set_clock(Clock::set(milliseconds));
}

fn set_host_behavior(cx: &AdminCx<'_>, data: &[u8]) -> Result<(), Fault> {
    // The fault is in the data, of which the log has no way to name a part: DPTR.
    let invalid = Fault::new(Status::INVALID_FIELD.dnr(), identify::DATA_POINTER);
    let behavior = HostBehavior::decode(data.first_chunk().ok_or(invalid)?);
    // Formats 0h and 1h need no permission, and cannot have one.
    let copy_formats = identify::copy_formats(cx) & !0b11;
    let valid = behavior.acre <= 1
        && behavior.etdas <= 1
        && behavior.hdisns <= 1
        // Without extended LBA formats (CTRATT.ELBAS is clear) there is nothing to enable.
        && behavior.lbafee == 0
        && behavior.cdfe & !copy_formats == 0;
    if !valid {
        return Err(invalid);
    }
    cx.controller
        .change_settings(|s| s.host_behavior = behavior);
    Ok(())
}
