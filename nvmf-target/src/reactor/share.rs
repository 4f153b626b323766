//! What the backends of a reactor may have of its buffers, and which of them do not answer.
//!
//! A buffer that a backend has comes back when the backend wants. So that one that never answers
//! leaves something to other namespaces, none has all of them: what exceeds its part waits here, where
//! it can be taken back from.

use nvmf_proto::tcp::Time;

/// The buffers of a reactor.
#[derive(Debug, Default)]
pub(super) struct Share {
    total: usize,
    /// Bytes that backends have.
    given: usize,
}

impl Share {
    pub(super) const fn new(total: usize) -> Self {
        Self { total, given: 0 }
    }

    /// Whether a backend that has `has` bytes may have `more`: up to three times as much as none has.
    /// One gets three quarters, the next as much of the rest.
    pub(super) const fn admits(&self, has: usize, more: usize) -> bool {
        has == 0 || more == 0 || has + more <= 3 * self.total.saturating_sub(self.given)
    }

    pub(super) const fn give(&mut self, bytes: usize) {
        self.given += bytes;
    }

    pub(super) const fn take_back(&mut self, bytes: usize) {
        self.given -= bytes;
    }
}

/// Whether a backend ends requests. Those without buffers do not count: who ends nothing but flushes
/// keeps buffers as well.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// How many it has ended.
    beats: u32,
    /// How many it had ended when it was first seen that it has some to end, and when that was.
    seen: Option<(u32, Time)>,
    /// It has ended none for too long.
    stopped: bool,
    /// Requests that come back though the backend has not had them, or has given them up.
    foreign: u32,
}

impl Pulse {
    pub(super) const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// A request is about to come back, with so many `bytes` of buffers, that the backend has not ended.
    pub(super) fn note_foreign(&mut self, bytes: usize) {
        self.foreign += u32::from(bytes > 0);
    }

    /// A request has come back, with so many `bytes` of buffers.
    pub(super) const fn beat(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if self.foreign > 0 {
            self.foreign -= 1;
        } else {
            self.beats = self.beats.wrapping_add(1);
            self.stopped = false;
        }
    }

    /// It has nothing to end.
    pub(super) const fn rest(&mut self) {
        (self.seen, self.stopped) = (None, false);
    }

    /// Has a look at a backend that has something to end, or not. True if it has ended nothing for
    /// `limit` nanoseconds, which has just been found out.
    pub(super) fn look(&mut self, has_some: bool, now: Time, limit: u64) -> bool {
        let seen = self
            .seen
            .filter(|&(beats, _)| has_some && beats == self.beats);
        self.seen = has_some.then(|| seen.unwrap_or((self.beats, now)));
        let is_late = seen.is_some_and(|(_, since)| since.after(limit) <= now);
        let is_news = is_late && !self.stopped;
        self.stopped |= is_late;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_left_whoever_keeps_what_he_gets() {
        let mut share = Share::new(64);
        let mut left = 64;
        for most in [48, 12, 3] {
            let mut has = 0;
            while share.admits(has, 1) {
                has += 1;
                share.give(1);
            }
            assert_eq!(has, most);
            left -= most;
        }
        assert_eq!(left, 1);
        // Somebody else's first request is not his fault.
        assert!(share.admits(0, 64));
        share.take_back(48);
        assert!(share.admits(12, 32) && share.admits(12, 39 * 3 / 2 + 1));
        assert!(!share.admits(12, 3 * 49));
    }

    #[test]
    fn who_ends_nothing_for_too_long_has_stopped() {
        let mut pulse = Pulse::default();
        assert!(!pulse.look(true, Time(10), 100));
        assert!(!pulse.look(true, Time(109), 100) && !pulse.is_stopped());
        assert!(pulse.look(true, Time(110), 100) && pulse.is_stopped());
        assert!(!pulse.look(true, Time(120), 100), "no news");
        // What it has not had says nothing about it.
        pulse.note_foreign(1);
        pulse.note_foreign(0);
        pulse.beat(1);
        pulse.beat(0);
        assert!(pulse.is_stopped());
        pulse.beat(1);
        assert!(!pulse.is_stopped());
        // Its time begins when it is looked at again, and not while it has nothing to do.
        assert!(!pulse.look(true, Time(500), 100));
        assert!(!pulse.look(false, Time(590), 100));
        assert!(!pulse.look(true, Time(610), 100));
        assert!(!pulse.look(true, Time(700), 100));
        assert!(pulse.look(true, Time(710), 100));
        // What has been taken back from it is no fault of its.
        pulse.rest();
        assert!(!pulse.is_stopped() && !pulse.look(true, Time(900), 100));
    }
}
