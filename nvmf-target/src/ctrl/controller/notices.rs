//! Reservation notifications of a controller: the queue behind log page 80h and its masks.

use super::super::lock;
use super::super::reservation::Waiter;
use super::Controller;
use crate::reactor::Message;
use nvmf_proto::wire::log::AsyncEvent;
use nvmf_proto::wire::reservation::{
    NotificationMask, NotificationType, ReservationNotificationLog,
};
use std::collections::{BTreeMap, VecDeque};

/// Notifications that are kept for a host that does not read them: as many as a page can count,
/// and itself.
const NOTICES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Notices {
    queue: VecDeque<ReservationNotificationLog>,
    /// LPC of the last one.
    count: u64,
    /// By NSID, as far as anything is masked.
    masks: BTreeMap<u32, NotificationMask>,
}

impl Notices {
    /// NVMe Base 2.1 §5.1.12.1.32: notifications count whether they are kept or not, and the last
    /// one that is kept has the count of the last one that is not.
    fn push(&mut self, nsid: u32, kind: NotificationType) {
        self.count = self.count.checked_add(1).unwrap_or(1);
        if self.queue.len() < NOTICES_MAX {
            self.queue.push_back(ReservationNotificationLog {
                count: self.count,
                kind,
                available: 0,
                nsid,
            });
        } else if let Some(last) = self.queue.back_mut() {
            last.count = self.count;
        }
    }

    fn pop(&mut self) -> ReservationNotificationLog {
        let mut notice = self.queue.pop_front().unwrap_or_default();
        notice.available = u8::try_from(self.queue.len()).unwrap_or(u8::MAX);
        notice
    }
}

impl Controller {
    /// A reservation notification occurs on a namespace.
    pub(crate) fn reservation_notice(&self, nsid: u32, kind: NotificationType) {
        if self.view().get(nsid).is_none() {
            return;
        }
        {
            let notices = &mut lock(&self.state).events.notices;
            if notices.masks.get(&nsid).is_some_and(|m| m.hides(kind)) {
                return;
            }
            notices.push(nsid, kind);
        }
        self.raise(AsyncEvent::RESERVATION_LOG);
    }

    /// The oldest reservation notification, which is taken from the queue; an empty one if there is
    /// none.
    pub(crate) fn take_notice(&self) -> ReservationNotificationLog {
        lock(&self.state).events.notices.pop()
    }

    /// Reservation Notification Mask of a namespace.
    pub(crate) fn notification_mask(&self, nsid: u32) -> NotificationMask {
        let state = lock(&self.state);
        let masks = &state.events.notices.masks;
        masks.get(&nsid).copied().unwrap_or_default()
    }

    /// Sets the Reservation Notification Mask of namespaces.
    pub(crate) fn set_notification_mask(
        &self,
        nsids: impl Iterator<Item = u32>,
        mask: NotificationMask,
    ) {
        let mut state = lock(&self.state);
        let masks = &mut state.events.notices.masks;
        for nsid in nsids {
            if mask.is_empty() {
                masks.remove(&nsid);
            } else {
                masks.insert(nsid, mask);
            }
        }
    }

    /// Has the commands on a namespace that are under way aborted, or waits for them; `waiter` is
    /// kept until then.
    pub(crate) fn quiesce(&self, nsid: u32, waiter: &Waiter) {
        for conn in lock(&self.state).queue_connections() {
            conn.mailbox.send(Message::Quiesce {
                conn: conn.id,
                nsid,
                waiter: waiter.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: NotificationType = NotificationType::RESERVATION_RELEASED;

    #[test]
    fn notices_come_in_order_and_are_counted() {
        let mut notices = Notices::default();
        assert_eq!(notices.pop(), ReservationNotificationLog::default());
        notices.push(7, KIND);
        notices.push(8, NotificationType::REGISTRATION_PREEMPTED);
        let notice = notices.pop();
        assert_eq!(
            (notice.count, notice.kind, notice.available, notice.nsid),
            (1, KIND, 1, 7)
        );
        let notice = notices.pop();
        assert_eq!((notice.count, notice.available, notice.nsid), (2, 0, 8));
        // An empty page in between is not counted.
        assert_eq!(notices.pop(), ReservationNotificationLog::default());
        notices.push(7, KIND);
        assert_eq!(notices.pop().count, 3);
    }

    #[test]
    fn lost_notices_are_counted_in_the_last_that_is_kept() {
        let mut notices = Notices::default();
        for _ in 0..NOTICES_MAX + 10 {
            notices.push(1, KIND);
        }
        for i in 0..NOTICES_MAX {
            let notice = notices.pop();
            assert_eq!(usize::from(notice.available), NOTICES_MAX - 1 - i);
            let count = if i == NOTICES_MAX - 1 { i + 11 } else { i + 1 };
            assert_eq!(notice.count, count as u64);
        }
        assert_eq!(notices.pop().count, 0);
    }

    #[test]
    fn the_count_wraps_to_one() {
        let mut notices = Notices {
            count: u64::MAX,
            ..Notices::default()
        };
        notices.push(1, KIND);
        assert_eq!(notices.pop().count, 1);
    }
}
