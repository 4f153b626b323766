//! Log page and features of reservations (NVMe Base 2.1 §5.1.12.1.32, §5.1.25.1.29 and
//! §5.1.25.1.30).

use super::AdminCx;
use crate::ctrl::NsEntry;
use crate::ctrl::reservation::HostId;
use nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_proto::wire::identify::{NSID_BROADCAST, Rescap};
use nvmf_proto::wire::reservation::{
    NotificationMask, ReservationNotificationLog, ReservationPersistence,
};
use nvmf_proto::wire::{AdminOpcode, Sqe};
use std::sync::Arc;

/// RESCAP of a namespace.
pub(super) fn rescap(entry: &NsEntry) -> Rescap {
    let mut rescap = Rescap::all();
    rescap.set(Rescap::PTPL, entry.shared.reservations.can_persist());
    rescap
}

/// The oldest notification: it is taken from the queue, however much of the page is read.
pub(super) fn notification(cx: &AdminCx<'_>) -> [u8; ReservationNotificationLog::SIZE] {
    let mut page = [0; ReservationNotificationLog::SIZE];
    cx.controller.take_notice().encode(&mut page);
    page
}

/// The current value of a feature of this file, for a namespace that is there.
pub(super) fn current(cx: &AdminCx<'_>, fid: Fid, nsid: u32) -> Option<u32> {
    match fid {
        Fid::RESERVATION_NOTIFICATION_MASK => Some(cx.controller.notification_mask(nsid).bits()),
        Fid::RESERVATION_PERSISTENCE => {
            let view = cx.controller.view();
            let ptpl = view
                .get(nsid)
                .is_some_and(|seen| seen.entry.shared.reservations.ptpl());
            Some(u32::from(ptpl))
        }
        _ => None,
    }
}

/// Sets the Reservation Notification Mask of a namespace, or of all that the controller sees.
pub(super) fn set_mask(cx: &AdminCx<'_>, nsid: u32, cdw11: u32) {
    let mask = NotificationMask::from_bits_truncate(cdw11);
    let entries = named(cx, nsid);
    cx.controller
        .set_notification_mask(entries.iter().map(|entry| entry.nsid), mask);
}

/// What a Set Features of Reservation Persistence wants.
#[derive(Debug)]
pub(crate) struct Persistence {
    pub(crate) host: HostId,
    pub(crate) entries: Vec<Arc<NsEntry>>,
    pub(crate) ptpl: bool,
}

/// What a command that has passed its checks says about Reservation Persistence, if it is a Set
/// Features that does. Not where it cannot be set at all: that is a feature of one value like
/// others.
pub(crate) fn persistence(cx: &AdminCx<'_>, sqe: &Sqe) -> Option<Persistence> {
    let set = SetFeatures::decode(sqe);
    let is_set = sqe.opcode() == AdminOpcode::SET_FEATURES.0;
    if !is_set || set.fid != Fid::RESERVATION_PERSISTENCE {
        return None;
    }
    let entries = named(cx, sqe.nsid());
    if !entries.iter().all(|e| e.shared.reservations.can_persist()) {
        return None;
    }
    let value = ReservationPersistence::from_bits_truncate(set.cdw11);
    let ptpl = value.contains(ReservationPersistence::PTPL);
    Some(Persistence {
        host: cx.controller.hostid,
        entries,
        ptpl,
    })
}

/// The namespaces that an NSID names.
fn named(cx: &AdminCx<'_>, nsid: u32) -> Vec<Arc<NsEntry>> {
    let view = cx.controller.view();
    let fits = |entry: &&Arc<NsEntry>| nsid == NSID_BROADCAST || nsid == entry.nsid;
    let entries = view.iter().map(|seen| &seen.entry);
    entries.filter(fits).cloned().collect()
}
