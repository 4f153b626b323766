//! Log lines that hosts can provoke, so many at a time: no host fills a disk with them, and what
//! one kind of line is about does not keep those of other kinds out. And the ways to write a line, for
//! all of the crate.

use nvmf_proto::tcp::Time;
use std::sync::{Mutex, PoisonError};

/// Lines of a kind that come at once.
const BURST: u64 = 256;
/// From then on: nanoseconds for each.
const EACH: u64 = 1_000_000_000;

/// Lets through 256 lines, and from then on one per second. Below level debug it stands before
/// every line that a host can provoke.
#[derive(Debug, Default)]
pub(crate) struct Chatter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When all lines will have been paid for, each with [`EACH`]: at most [`BURST`] ahead of the
    /// time. What is behind it is idle time.
    paid: u64,
    left_out: u64,
}

/// Leave to write a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leave {
    /// Lines that were left out since the last one.
    pub(crate) left_out: u64,
    /// The next line will be left out if it comes at once.
    pub(crate) last: bool,
}

impl Chatter {
    /// Leave for one line, unless there have been too many.
    pub(crate) fn leave(&self, now: Time) -> Option<Leave> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = state.paid.max(now.0) + EACH;
        if paid - now.0 > BURST * EACH {
            state.left_out += 1;
            return None;
        }
        state.paid = paid;
        Some(Leave {
            left_out: std::mem::take(&mut state.left_out),
            last: paid + EACH - now.0 > BURST * EACH,
        })
    }
}

/// The kinds of lines that a target's hosts provoke.
#[derive(Debug, Default)]
pub(crate) struct Chatters {
    /// Connections are refused or ended because there are too many.
    pub(crate) accept: Chatter,
    /// Accepting fails.
    pub(crate) listen: Chatter,
    /// There is no reactor left for a connection.
    pub(crate) ended: Chatter,
    /// Hosts that break NVMe/TCP, or say that the target does.
    pub(crate) protocol: Chatter,
    /// Hosts that are silent.
    pub(crate) silence: Chatter,
    /// Connects that are refused.
    pub(crate) refusal: Chatter,
    /// Controllers that come.
    pub(crate) open: Chatter,
    /// Controllers that go.
    pub(crate) close: Chatter,
}

/// A line of the log that a host can provoke: `limited!(Level, chatter, now, format...)`.
macro_rules! limited {
    ($level:ident, $chatter:expr, $now:expr, $($line:tt)+) => {
        if log::Level::$level <= log::max_level()
            && let Some(leave) = $chatter.leave($now)
        {
            if leave.left_out > 0 {
                crate::chatter::line!(
                    $level,
                    "{} lines like the following one were left out",
                    leave.left_out
                );
            }
            crate::chatter::line!($level, $($line)+);
            if leave.last {
                crate::chatter::line!($level, "lines like this one are left out for a while");
            }
        }
    };
}

/// A line of the log. The logger is the embedder's and may panic, as those do that write to a
/// standard error which is gone: what the line is about goes on.
macro_rules! line {
    ($level:ident, $($line:tt)+) => {
        if log::Level::$level <= log::max_level() {
            let _ = crate::contain::contain(|| log::log!(log::Level::$level, $($line)+));
        }
    };
}

macro_rules! error {
    ($($line:tt)+) => { crate::chatter::line!(Error, $($line)+) };
}

macro_rules! warning {
    ($($line:tt)+) => { crate::chatter::line!(Warn, $($line)+) };
}

macro_rules! info {
    ($($line:tt)+) => { crate::chatter::line!(Info, $($line)+) };
}

macro_rules! debug {
    ($($line:tt)+) => { crate::chatter::line!(Debug, $($line)+) };
}

// A macro of the name `warn` would be taken for the attribute.
pub(crate) use warning as warn;
pub(crate) use {debug, error, info, limited, line};

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000 * EACH;

    /// What gets through of `lines` at one moment.
    fn burst(chatter: &Chatter, now: u64, lines: u64) -> Vec<Leave> {
        (0..lines)
            .filter_map(|_| chatter.leave(Time(now)))
            .collect()
    }

    #[test]
    fn a_burst_and_then_one_per_second() {
        let chatter = Chatter::default();
        let through = burst(&chatter, START, 1_000_000);
        assert_eq!(through.len() as u64, BURST);
        let last = through.iter().position(|leave| leave.last);
        assert_eq!(last, Some(through.len() - 1));
        assert!(through.iter().all(|leave| leave.left_out == 0));
        // A flood of a day, a thousand lines per second.
        let mut total = 0;
        for second in 1..=86_400 {
            let through = burst(&chatter, START + second * EACH, 1000);
            let before = if second == 1 { 1_000_000 - BURST } else { 999 };
            let leave = Leave {
                left_out: before,
                last: true,
            };
            assert_eq!(through, [leave]);
            total += through.len();
        }
        assert_eq!(total, 86_400);
        assert_eq!(burst(&chatter, START + 86_400 * EACH, 1), []);
    }

    #[test]
    fn quiet_pays_for_the_next_burst_and_no_more() {
        let chatter = Chatter::default();
        burst(&chatter, START, BURST);
        let later = START + 10 * EACH;
        let through = burst(&chatter, later, 20);
        assert_eq!(through.len(), 10);
        let later = START + 1_000_000 * EACH;
        assert_eq!(burst(&chatter, later, 1000).len() as u64, BURST);
    }

    /// What a flood of connections provokes keeps out nothing that an operator must see.
    #[test]
    fn kinds_do_not_keep_one_another_out() {
        let chatters = Chatters::default();
        burst(&chatters.accept, START, 2 * BURST);
        for other in [&chatters.listen, &chatters.ended] {
            assert_eq!(burst(other, START, 1).len(), 1);
        }
    }

    /// A target that is simulated may begin at any time, another target at another.
    #[test]
    fn any_time_will_do() {
        let chatter = Chatter::default();
        assert_eq!(burst(&chatter, 1, 2 * BURST).len() as u64, BURST);
        assert_eq!(burst(&chatter, u64::MAX / 2, 2 * BURST).len() as u64, BURST);
        assert_eq!(burst(&chatter, 1, 10), []);
    }
}
