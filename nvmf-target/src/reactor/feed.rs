//! Buffers for commands that wait for some, and the end of connections that hold some and make no
//! use of them, and of commands for namespaces that keep them.

use super::{Reactor, SMALL};
use crate::buf::BufPool;
use crate::chatter::limited;
use crate::conn::Fed;
use nvmf_proto::tcp::Time;
use std::time::Duration;

/// Who among the connections that wait for buffers has been passed over for longest, and what that
/// means for others.
///
/// By the usual rule what is free settles where a large command does not fit beside what busy
/// connections hold at a time, and goes to whoever needs less. So it is counted what others take
/// before the one that is next. After as much as all buffers are, or after a time, it has a claim:
/// others take no more but for small commands of connections that hold nothing, and then nothing.
/// A claim lapses soon, and for a while nobody has another: what is held by a device that hangs no
/// claim brings back, and meanwhile others must get on with what is left. Nor is there another for a
/// while when one has been given up, and when one has had its effect for as long as that took.
#[derive(Debug)]
pub(crate) struct Line {
    /// A quarter of the stall timeout, in nanoseconds.
    quarter: u64,
    /// Who is next. Nobody, as a rule.
    next: Option<u64>,
    /// Bytes that others have taken since then.
    overtaken: usize,
    claim: Claim,
    /// Since when it has been that.
    since: Time,
    /// Since when there has been a claim.
    claimed: Time,
    /// Nobody is next before then.
    rests: Time,
    /// What others were not given they may have now, or the next.
    changed: bool,
}

/// What others may not take any more before the one that is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Claim {
    #[default]
    Nothing,
    /// More than the small first buffer of a connection.
    Much,
    Anything,
}

impl Claim {
    /// How long it lasts at the most, in quarters of the stall timeout.
    const fn lasts(self) -> u64 {
        match self {
            Self::Nothing => 8,
            Self::Much | Self::Anything => 1,
        }
    }
}

/// How long nobody is next when a claim has lapsed, in quarters of the stall timeout.
const REST: u64 = 16;

impl Line {
    pub(super) fn new(stall_timeout: Duration) -> Self {
        let nanos = u64::try_from(stall_timeout.as_nanos()).unwrap_or(u64::MAX);
        Self {
            quarter: nanos / 4,
            next: None,
            overtaken: 0,
            claim: Claim::Nothing,
            since: Time(0),
            claimed: Time(0),
            rests: Time(0),
            changed: false,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    /// Somebody may have more now, though no buffer has come back.
    pub(crate) const fn note_change(&mut self) {
        self.changed = true;
    }

    /// Whether there is a reason to look at those who wait though no buffer has come back.
    pub(super) const fn has_changed(&self) -> bool {
        self.changed
    }

    /// Whether a connection that holds `held` bytes may take `footprint` more. `has_share`: it may
    /// by the rule for when nobody waits.
    #[cold]
    pub(crate) fn admits(
        &mut self,
        pool: &BufPool,
        now: Time,
        conn: u64,
        held: usize,
        footprint: usize,
        has_share: bool,
    ) -> bool {
        if self.next == Some(conn) {
            // Some stays free even where hosts make claims only to hold what they get.
            let (free, total) = (pool.free_bytes(), pool.total_bytes());
            let claims = self.claim != Claim::Nothing && footprint + total / 8 <= free;
            return has_share || claims;
        }
        let small = held == 0 && footprint <= SMALL;
        if has_share && self.claim == Claim::Nothing && !small {
            self.overtaken += footprint;
            if self.overtaken >= pool.total_bytes() {
                self.turn_to(Claim::Much, now);
            }
            return true;
        }
        has_share && (self.claim == Claim::Nothing || (self.claim == Claim::Much && small))
    }

    /// A connection waits no more, though it has got nothing.
    pub(crate) fn leave(&mut self, conn: u64, now: Time) {
        if self.next == Some(conn) {
            self.end(now, REST.saturating_mul(self.quarter));
        }
    }

    /// The one that is next has got its buffer.
    fn serve(&mut self, now: Time) {
        self.end(now, now.0.saturating_sub(self.claimed.0));
    }

    /// Nobody is next, and if there was a claim that stays so for `rest` nanoseconds.
    fn end(&mut self, now: Time, rest: u64) {
        if self.claim != Claim::Nothing {
            self.rests = now.after(rest);
        }
        (self.next, self.claim) = (None, Claim::Nothing);
        (self.overtaken, self.changed) = (0, true);
    }

    fn turn_to(&mut self, claim: Claim, now: Time) {
        if self.claim == Claim::Nothing {
            self.claimed = now;
        }
        (self.claim, self.since, self.changed) = (claim, now, true);
    }

    /// When the claim of the one that is next becomes another, or lapses.
    pub(super) fn next_stage(&self) -> Option<Time> {
        let lasts = self.quarter.saturating_mul(self.claim.lasts());
        self.next.map(|_| self.since.after(lasts))
    }

    /// The time is `now`. Returns whose claim has lapsed.
    fn age(&mut self, now: Time) -> Option<u64> {
        if self.next_stage().is_none_or(|at| now < at) {
            return None;
        }
        match self.claim {
            Claim::Nothing => self.turn_to(Claim::Much, now),
            Claim::Much => self.turn_to(Claim::Anything, now),
            Claim::Anything => {
                let lapsed = self.next?;
                self.leave(lapsed, now);
                return Some(lapsed);
            }
        }
        None
    }

    /// `conn` is next if nobody is.
    fn follow(&mut self, conn: Option<u64>, now: Time) {
        if self.next.is_none() && self.rests <= now {
            self.next = conn;
            self.since = now;
        }
    }
}

/// A time in which commands wait for buffers.
#[derive(Debug)]
pub(super) struct Shortage {
    began: Time,
    /// When to look for connections that hold buffers idly.
    look: Time,
}

impl Shortage {
    /// How often the time is halved of those that hold buffers and have moved nothing at all: what one
    /// of too many gives back the next one gets, who may be no better. `limit` is the stall timeout.
    fn hurry(&self, now: Time, limit: u64) -> u32 {
        let lasted = now.0.saturating_sub(self.began.0) / limit.max(1);
        lasted.saturating_sub(1).min(2) as u32
    }

    pub(super) const fn next_look(&self) -> Time {
        self.look
    }
}

impl Reactor {
    /// Gives buffers to commands that wait for them.
    pub(super) fn feed(&mut self) -> bool {
        self.cx.line.changed = false;
        let fed = self.feed_blocked() | self.feed_starved();
        self.fed_at = self.cx.free_bytes();
        fed
    }

    /// In-capsule data goes first: nothing else of its connection moves before it has come.
    fn feed_blocked(&mut self) -> bool {
        let mut fed = false;
        while let Some(&id) = self.cx.blocked.front() {
            if let Some(conn) = self.conns.get(id)
                && !conn.feed_capsule(&mut self.cx)
            {
                break;
            }
            self.bury(id);
            self.cx.blocked.pop_front();
            fed = true;
        }
        fed
    }

    /// First come first served; one command per connection and round, so that none takes all.
    fn feed_starved(&mut self) -> bool {
        if self.cx.starved.is_empty() {
            debug_assert!(self.cx.line.is_empty(), "who is next does not wait");
            return false;
        }
        let mut fed = self.feed_next();
        let mut passed_over = None;
        for _ in 0..self.cx.starved.len() {
            let Some(id) = self.cx.starved.pop_front() else {
                break;
            };
            if self.cx.line.next == Some(id) {
                self.cx.starved.push_back(id);
                continue;
            }
            // What one waits for, others may not need.
            match self.feed_conn(id) {
                Fed::Satisfied => fed = true,
                Fed::More => {
                    fed = true;
                    self.fed.push_back(id);
                }
                Fed::Waits => {
                    passed_over = passed_over.or(Some(id));
                    self.cx.starved.push_back(id);
                }
                Fed::Full => self.cx.starved.push_back(id),
            }
        }
        // Behind those that got nothing, in this turn and in later ones.
        while let Some(id) = self.fed.pop_front() {
            match self.feed_conn(id) {
                Fed::Satisfied => {}
                Fed::More => self.fed.push_back(id),
                Fed::Waits | Fed::Full => self.cx.starved.push_back(id),
            }
        }
        self.cx.line.follow(passed_over, self.cx.now);
        fed
    }

    /// Gives its buffer to who is next, if it can be.
    fn feed_next(&mut self) -> bool {
        if let Some(id) = self.cx.line.age(self.cx.now) {
            // Others have their turns first.
            self.cx.starved.retain(|&conn| conn != id);
            self.cx.starved.push_back(id);
        }
        let Some(id) = self.cx.line.next else {
            return false;
        };
        let waited = self.conns.get(id).is_some_and(|conn| conn.waits());
        let fed = self.feed_conn(id);
        match fed {
            Fed::Waits => {}
            Fed::Satisfied | Fed::More if waited => self.cx.line.serve(self.cx.now),
            Fed::Satisfied | Fed::More | Fed::Full => self.cx.line.leave(id, self.cx.now),
        }
        matches!(fed, Fed::Satisfied | Fed::More)
    }

    fn feed_conn(&mut self, id: u64) -> Fed {
        let fed = match self.conns.get(id) {
            Some(conn) => conn.feed_one(&mut self.cx),
            None => Fed::Satisfied,
        };
        self.bury(id);
        fed
    }

    pub(super) fn stall_timeout(&self) -> u64 {
        let limit = self.cx.core.config.stall_timeout.as_nanos();
        u64::try_from(limit).unwrap_or(u64::MAX)
    }

    /// While commands wait for buffers: ends connections that hold some and whose hosts have moved
    /// too little for too long, and fails what namespaces have not been given that have answered
    /// nothing for as long. Without this a few hosts that stop reading would stop the others, and so
    /// would a namespace.
    pub(super) fn end_stuck(&mut self) {
        if self.cx.starved.is_empty() && self.cx.blocked.is_empty() {
            self.shortage = None;
            return;
        }
        let now = self.cx.now;
        let limit = self.stall_timeout();
        let is_new = self.shortage.is_none();
        let shortage = self.shortage.get_or_insert_with(|| Shortage {
            began: now,
            look: now.after(limit),
        });
        if now < shortage.look && !is_new {
            return;
        }
        // What is refused is answered in the next turn.
        self.backlog |= self.cx.lanes.refuse_stopped(now, limit);
        if is_new {
            return;
        }
        let (began, hurry) = (shortage.began, shortage.hurry(now, limit));
        shortage.look = now.after(limit >> hurry >> 2);
        for id in self.conns.ids() {
            let Some(conn) = self.conns.get(id) else {
                continue;
            };
            conn.end_starved_pair(&mut self.cx, limit);
            conn.write_off(&mut self.cx);
            if conn.is_stuck(&self.cx, limit, hurry, began) {
                limited!(
                    Warn,
                    self.cx.core.chatters.silence,
                    now,
                    "{}: holds buffers and moves too little data; it is ended",
                    conn.peer()
                );
                conn.close(&mut self.cx, "it held buffers that others wait for");
            }
            self.bury(id);
        }
        // Pairs that have been ended are answered, whatever comes next and whenever.
        self.flush();
    }
}
