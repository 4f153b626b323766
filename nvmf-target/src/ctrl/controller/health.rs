//! What a controller has counted, and what of it outlives the controller.

use super::super::{Kind, NsEntry, lock};
use super::{Clock, Controller, TEMPERATURE, Totals};
use nvmf_proto::wire::log::SmartLog;
use std::sync::Arc;

impl Controller {
    /// The SMART / Health Information log page of this controller.
    pub(in crate::ctrl) fn smart(&self) -> SmartLog {
        let errors = self.errors.counts();
        SmartLog {
            media_errors: u128::from(errors.media),
            error_log_entries: u128::from(errors.entries),
            ..self.smart_with(self.totals())
        }
    }

    /// That of a namespace: what all hosts have done with it since it was attached.
    pub(in crate::ctrl) fn smart_of(&self, entry: &NsEntry) -> SmartLog {
        let stats = &entry.shared.stats;
        SmartLog {
            media_errors: u128::from(stats.media_errors()),
            ..self.smart_with(stats.totals())
        }
    }

    fn smart_with(&self, totals: Totals) -> SmartLog {
        SmartLog {
            critical_warning: self.settings().warnings(),
            temperature: TEMPERATURE,
            available_spare: 100,
            available_spare_threshold: 10,
            data_units_read: SmartLog::data_units(u128::from(totals.bytes_read)),
            data_units_written: SmartLog::data_units(u128::from(totals.bytes_written)),
            host_read_commands: u128::from(totals.reads),
            host_write_commands: u128::from(totals.writes),
            power_cycles: 1,
            power_on_hours: self.subsystem.persistent.power_on_hours(),
            ..SmartLog::default()
        }
    }

    /// The controller starts, after its Connect or a reset.
    pub(in crate::ctrl) fn log_start(&self) {
        if self.subsystem.kind == Kind::Nvm {
            let timestamp = self.settings().clock.now();
            let log = &self.subsystem.persistent;
            log.reset(self.subsystem.firmware(), self.cntlid, timestamp);
        }
    }

    /// The controller is about to be forgotten.
    pub(in crate::ctrl) fn log_end(&self) {
        if self.subsystem.kind == Kind::Nvm {
            let log = &self.subsystem.persistent;
            log.smart_snapshot(self.cntlid, &self.smart());
        }
    }

    /// Sets the clock of the controller, and with it that of its subsystem's events.
    pub(in crate::ctrl) fn set_clock(&self, clock: Clock) {
        let reset_at = {
            let settings = &mut lock(&self.state).settings;
            settings.clock = clock;
            settings.reset_at
        };
        let log = &self.subsystem.persistent;
        log.timestamp_set(self.cntlid, clock, reset_at);
    }

    /// The persistent event log as the host is reading it.
    pub(in crate::ctrl) fn reporting_context(&self) -> Option<Arc<[u8]>> {
        lock(&self.state).reporting_context.clone()
    }

    pub(in crate::ctrl) fn set_reporting_context(&self, context: Option<Arc<[u8]>>) {
        lock(&self.state).reporting_context = context;
    }
}
