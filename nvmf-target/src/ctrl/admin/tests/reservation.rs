use super::*;
use nvmf_proto::wire::feature::{Fid, GetFeatures, SetFeatures};
use nvmf_proto::wire::identify::{
    Cns, IdentifyCommand, IdentifyNamespace, IdentifyNamespaceIndependent, Rescap,
};
use nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid};
use nvmf_proto::wire::reservation::{
    NotificationMask, NotificationType, ReservationNotificationLog,
};

const MASK: Fid = Fid::RESERVATION_NOTIFICATION_MASK;
const PERSISTENCE: Fid = Fid::RESERVATION_PERSISTENCE;
const ALL: u32 = 0xffff_ffff;

fn set(rig: &Rig, fid: Fid, nsid: u32, cdw11: u32) -> Status {
    let mut sqe = Sqe::with_opcode(AdminOpcode::SET_FEATURES.0);
    sqe.set_nsid(nsid);
    SetFeatures::new(fid, cdw11).encode(&mut sqe);
    rig.status(&sqe)
}

fn get(rig: &Rig, fid: Fid, nsid: u32) -> Result<u64, Status> {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_FEATURES.0);
    sqe.set_nsid(nsid);
    GetFeatures::new(fid).encode(&mut sqe);
    rig.run(&sqe).map(|(dw0, _)| dw0)
}

/// The oldest notification.
fn take(rig: &Rig, rae: bool) -> ReservationNotificationLog {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
    let get = GetLogPage::new(Lid::RESERVATION_NOTIFICATION, 64);
    GetLogPage { rae, ..get }.encode(&mut sqe);
    let mut page = [0xee; 64];
    execute(&rig.cx(), &sqe, &mut page).unwrap();
    ReservationNotificationLog::decode(&page)
}

#[test]
fn masks_are_of_a_namespace() {
    let rig = Rig::nvm();
    let invalid = Status::INVALID_FIELD.dnr();
    assert_eq!(set(&rig, MASK, 1, 0b0100), Status::SUCCESS);
    assert_eq!((get(&rig, MASK, 1), get(&rig, MASK, 3)), (Ok(4), Ok(0)));
    assert_eq!(set(&rig, MASK, ALL, 0b1110), Status::SUCCESS);
    assert_eq!((get(&rig, MASK, 1), get(&rig, MASK, 3)), (Ok(14), Ok(14)));
    assert_eq!(set(&rig, MASK, 3, 0), Status::SUCCESS);
    assert_eq!((get(&rig, MASK, 1), get(&rig, MASK, 3)), (Ok(14), Ok(0)));
    for (nsid, cdw11, status) in [
        (1, 1, invalid),
        (1, 0x10, invalid),
        (2, 0, invalid),
        (0, 0, Status::INVALID_NAMESPACE.dnr()),
        (NN + 1, 0, Status::INVALID_NAMESPACE.dnr()),
    ] {
        assert_eq!(set(&rig, MASK, nsid, cdw11), status, "{nsid} {cdw11:x}");
    }
    assert_eq!(get(&rig, MASK, ALL), Err(Status::INVALID_NAMESPACE.dnr()));
    assert_eq!(get(&rig, MASK, 1), Ok(14));
}

#[test]
fn what_is_masked_is_neither_told_nor_counted() {
    let rig = Rig::nvm();
    rig.enable();
    let controller = &rig.controller;
    let released = NotificationType::RESERVATION_RELEASED;
    let preempted = NotificationType::REGISTRATION_PREEMPTED;
    let mask = NotificationMask::RESERVATION_RELEASED;
    assert_eq!(set(&rig, MASK, 1, mask.bits()), Status::SUCCESS);
    controller.reservation_notice(1, released);
    // Not attached.
    controller.reservation_notice(2, preempted);
    assert_eq!(controller.next_event(), None);
    assert_eq!(take(&rig, false), ReservationNotificationLog::default());

    controller.reservation_notice(1, preempted);
    controller.reservation_notice(3, released);
    assert_eq!(controller.next_event(), Some(AsyncEvent::RESERVATION_LOG));
    assert_eq!(
        controller.next_event(),
        None,
        "one event until the page is read"
    );
    let notice = take(&rig, true);
    assert_eq!((notice.count, notice.kind), (1, preempted));
    assert_eq!((notice.available, notice.nsid), (1, 1));
    // RAE keeps the event, though not the page.
    controller.reservation_notice(3, preempted);
    assert_eq!(controller.next_event(), None);
    let notice = take(&rig, false);
    assert_eq!((notice.count, notice.kind), (2, released));
    controller.reservation_notice(3, preempted);
    assert_eq!(controller.next_event(), Some(AsyncEvent::RESERVATION_LOG));
}

#[test]
fn persistence_without_a_store() {
    let rig = Rig::nvm();
    for nsid in [1, 3, ALL] {
        assert_eq!(set(&rig, PERSISTENCE, nsid, 0), Status::SUCCESS);
        let status = set(&rig, PERSISTENCE, nsid, 1);
        assert_eq!(status, Status::FEATURE_NOT_CHANGEABLE.dnr());
    }
    assert_eq!(get(&rig, PERSISTENCE, 1), Ok(0));
    let identify = |cns| {
        let mut sqe = Sqe::with_opcode(AdminOpcode::IDENTIFY.0);
        sqe.set_nsid(1);
        IdentifyCommand::new(cns).encode(&mut sqe);
        let page: [u8; 4096] = rig.run(&sqe).unwrap().1.try_into().unwrap();
        page
    };
    let id = IdentifyNamespace::decode(&identify(Cns::NAMESPACE));
    assert_eq!(id.rescap, Rescap::all() - Rescap::PTPL);
    let id = IdentifyNamespaceIndependent::decode(&identify(Cns::NAMESPACE_INDEPENDENT));
    assert_eq!(id.rescap, Rescap::all() - Rescap::PTPL);
}
