//! What Set Features changes on a controller, until its next reset.

use super::super::lock;
use super::Controller;
use nvmf_proto::wire::feature::{HostBehavior, Timestamp, TimestampOrigin};
use nvmf_proto::wire::log::{AsyncEvent, CriticalWarning};
use std::time::Instant;

/// Composite Temperature in kelvins. There is no sensor; 27 °C alarms nobody.
pub(in crate::ctrl) const TEMPERATURE: u16 = 300;

/// WCTEMP in kelvins, and the over temperature threshold that comes with it: 70 °C, the value that
/// NVMe Base 2.1 recommends.
pub(in crate::ctrl) const WCTEMP: u16 = 343;

/// Values of features as Get Features returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ctrl) struct Settings {
    /// WH of Power Management. A hint, and there is one power state.
    pub(in crate::ctrl) workload_hint: u8,
    /// TMPTH of the Composite Temperature, in kelvins.
    pub(in crate::ctrl) over_temperature: u16,
    pub(in crate::ctrl) under_temperature: u16,
    /// WCE of Volatile Write Cache. Without it the controller's writes are all as with FUA.
    pub(in crate::ctrl) write_cache: bool,
    /// DN of Write Atomicity Normal: the host can do with less than AWUN. It gets no less.
    pub(in crate::ctrl) disable_normal: bool,
    pub(in crate::ctrl) host_behavior: HostBehavior,
    pub(in crate::ctrl) clock: Clock,
    /// When they became the defaults.
    pub(in crate::ctrl) reset_at: Instant,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workload_hint: 0,
            over_temperature: WCTEMP,
            under_temperature: 0,
            write_cache: true,
            disable_normal: false,
            host_behavior: HostBehavior::default(),
            clock: Clock::default(),
            reset_at: Instant::now(),
        }
    }
}

impl Settings {
    /// Critical Warning of the SMART / Health log.
    pub(in crate::ctrl) fn warnings(&self) -> CriticalWarning {
        let beyond = TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature;
        let mut warnings = CriticalWarning::empty();
        warnings.set(CriticalWarning::TEMPERATURE, beyond);
        warnings
    }
}

/// A clock that runs from what it was set to (NVMe Base 2.1, Timestamp).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ctrl) struct Clock {
    set_to: u64,
    at: Instant,
    origin: TimestampOrigin,
}

impl Default for Clock {
    /// Cleared now, as by a reset.
    fn default() -> Self {
        Self {
            set_to: 0,
            at: Instant::now(),
            origin: TimestampOrigin::RESET,
        }
    }
}

impl Clock {
    /// A clock that a host sets now, in milliseconds.
    pub(in crate::ctrl) fn set(milliseconds: u64) -> Self {
        Self {
            set_to: milliseconds,
            at: Instant::now(),
            origin: TimestampOrigin::HOST,
        }
    }

    pub(in crate::ctrl) fn now(self) -> Timestamp {
        let elapsed = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp::new(self.set_to.saturating_add(elapsed), self.origin)
    }
}

impl Controller {
    pub(in crate::ctrl) fn settings(&self) -> Settings {
        lock(&self.state).settings
    }

    /// CDFE: bits of the Copy Descriptor Formats that the host has allowed.
    pub(crate) fn copy_formats(&self) -> u16 {
        self.settings().host_behavior.cdfe
    }

    /// Changes settings; tells the host of a critical warning that comes of it.
    pub(in crate::ctrl) fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.state).settings);
        self.raise_warnings();
    }

    /// Turns the volatile write cache on or off for commands of this controller.
    pub(in crate::ctrl) fn enable_write_cache(&self, enable: bool) {
        if self.settings().write_cache != enable {
            self.change_settings(|s| s.write_cache = enable);
            // Its queues look at their view.
            self.subsystem.settings_changed();
        }
    }

    /// Sends events of the critical warnings that there are.
    pub(super) fn raise_warnings(&self) {
        if self
            .settings()
            .warnings()
            .contains(CriticalWarning::TEMPERATURE)
        {
            self.raise(AsyncEvent::TEMPERATURE_THRESHOLD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_runs_from_what_it_was_set_to() {
        let clock = Clock::set(1_000_000);
        let (first, second) = (clock.now(), clock.now());
        assert!(first.milliseconds() >= 1_000_000 && second.milliseconds() >= first.milliseconds());
        assert_eq!(first.origin(), TimestampOrigin::HOST);
        assert_eq!(Clock::default().now().origin(), TimestampOrigin::RESET);
        let cut = Clock::set(u64::MAX).now();
        assert_eq!(
            (cut.milliseconds(), cut.origin()),
            ((1 << 48) - 1, TimestampOrigin::HOST)
        );
    }

    #[test]
    fn thresholds_make_warnings() {
        let warning = |over, under| {
            let settings = Settings {
                over_temperature: over,
                under_temperature: under,
                ..Settings::default()
            };
            !settings.warnings().is_empty()
        };
        assert!(!warning(WCTEMP, 0) && !warning(301, 299));
        assert!(warning(300, 0) && warning(0, 0) && warning(WCTEMP, 300));
    }
}
