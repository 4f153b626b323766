//! A controller: what a host opened with its first Connect, until its last connection is gone.

mod errors;
mod events;
mod health;
mod inquiry;
mod notices;
mod settings;
mod state;
mod stats;

pub(super) use errors::{CRDT1, ErrorLog};
pub(crate) use inquiry::{Inquired, Inquiry};
pub(super) use settings::{Clock, Settings, TEMPERATURE, WCTEMP};
pub(super) use state::{Join, Shutdown};
pub(crate) use stats::{NsStats, QueueStats, Totals};

use super::reservation::Rights;
use super::subsystem::Changed;
use super::{ConnRef, Kind, Limits, Listener, NsEntry, Reach, Subsystem, View, lock};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::nqn::Nqn;
use state::State;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A discovery controller without Keep Alive Timeout ends when its host has been silent this long.
const SILENT_DISCOVERY_MS: u32 = 120_000;

/// What a controller takes of the heap at the most, beside what grows with the number of namespaces:
/// its reporting context, its error log, and its lists of notices, events and changed namespaces.
pub(crate) const CONTROLLER_BYTES: usize = 112 << 10;

/// KAS: Keep Alive Timeout granularity, in units of 100 ms.
pub(super) const KAS: u16 = 1;

#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) cntlid: u16,
    pub(crate) hostnqn: Nqn,
    pub(crate) hostid: [u8; 16],
    /// Where the host has come in: the subsystem port of all its queues.
    pub(crate) listener: Arc<Listener>,
    /// The local address by which the host has reached the target.
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) limits: Limits,
    /// The connection of the admin queue.
    admin: ConnRef,
    admin_stats: Arc<QueueStats>,
    pub(super) errors: ErrorLog,
    pub(super) state: Mutex<State>,
    /// What it sees of the namespaces, as of a generation of the subsystem.
    view: Mutex<(u64, Arc<View>)>,
}

/// What a Connect of an admin queue makes a controller of.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) hostnqn: Nqn,
    pub(crate) hostid: [u8; 16],
    pub(crate) kato_ms: u32,
    pub(crate) listener: Arc<Listener>,
    /// The local address by which the host has reached the target.
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) limits: Limits,
    /// Controllers that the host may have of the subsystem, this one included.
    pub(crate) most: usize,
    /// The connection of the admin queue.
    pub(crate) admin: ConnRef,
    pub(crate) now: Time,
}

/// Why a controller ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// Its host was silent for the Keep Alive Timeout.
    KeepAlive,
    /// Its host has not enabled it, or not again, for so long.
    Unused,
}

/// A Keep Alive Timeout as it is kept: rounded up to a multiple of the granularity.
fn rounded_kato(kato_ms: u32) -> u32 {
    let granularity = u32::from(KAS) * 100;
    let most = u32::MAX / granularity;
    kato_ms.div_ceil(granularity).min(most) * granularity
}

impl Controller {
    pub(super) fn new(subsystem: Arc<Subsystem>, cntlid: u16, opening: Opening) -> Self {
        let kato_ms = rounded_kato(opening.kato_ms);
        let state = State::new(kato_ms, subsystem.initial_status(), opening.now);
        Self {
            subsystem,
            cntlid,
            hostnqn: opening.hostnqn,
            hostid: opening.hostid,
            listener: opening.listener,
            local_ip: opening.local_ip,
            limits: opening.limits,
            admin: opening.admin,
            admin_stats: Arc::default(),
            errors: ErrorLog::default(),
            state: Mutex::new(state),
            view: Mutex::default(),
        }
    }

    /// How the discovery log is shown to the host.
    pub(crate) fn reach(&self) -> Reach {
        Reach::of(self.local_ip)
    }

    /// What the controller sees of the namespaces at this moment.
    pub(crate) fn view(&self) -> Arc<View> {
        let mut cached = lock(&self.view);
        if cached.0 != self.subsystem.generation() {
            // Inquired first: what changes meanwhile is seen by the next call.
            let (generation, changed) = self.subsystem.changed_since(cached.0);
            cached.0 = generation;
            match changed {
                Changed::Rights(nsids) => {
                    let seen = nsids.iter().filter_map(|&nsid| cached.1.get(nsid));
                    seen.for_each(|seen| seen.set_rights(self.rights(&seen.entry)));
                }
                Changed::All => cached.1 = Arc::new(self.subsystem.view_of(self)),
            }
        }
        let view = Arc::clone(&cached.1);
        view.set_write_through(!self.settings().write_cache);
        view
    }

    /// Brings a queue's view up to date. Called before each command.
    pub(crate) fn refresh(&self, view: &mut Arc<View>, generation: &mut u64) {
        let now = self.subsystem.generation();
        if now != *generation {
            *generation = now;
            *view = self.view();
        }
    }

    /// What reservations leave to the host.
    pub(super) fn rights(&self, entry: &NsEntry) -> Rights {
        entry.shared.reservations.rights(&self.hostid)
    }

    pub(crate) fn admin_stats(&self) -> Arc<QueueStats> {
        Arc::clone(&self.admin_stats)
    }

    /// Whether admin commands other than Fabrics ones may run.
    pub(crate) fn enabled(&self) -> bool {
        lock(&self.state).in_use()
    }

    /// Whether Keep Alive may run: after a shutdown too.
    pub(crate) fn is_ready(&self) -> bool {
        let state = lock(&self.state);
        state.cc.en() && state.csts.rdy()
    }

    pub(crate) fn kato_ms(&self) -> u32 {
        lock(&self.state).kato_ms
    }

    /// Sets the Keep Alive Timeout; it starts to run at once.
    pub(crate) fn set_kato_ms(&self, kato_ms: u32) {
        lock(&self.state).kato_ms = rounded_kato(kato_ms);
        self.admin.notify();
    }

    /// When the controller ends by itself, and why; `None`: never. While it is in use it ends
    /// unless a command arrives before: every command on any queue counts (CTRATT.TBKAS).
    /// Otherwise (NVMe Base 2.1 §3.9: the Keep Alive Timer does not run) `association` after it was
    /// in use last.
    pub(crate) fn deadline(&self, association: Duration) -> Option<(Time, Expiry)> {
        let state = lock(&self.state);
        if !state.in_use() {
            let limit = u64::try_from(association.as_nanos()).unwrap_or(u64::MAX);
            return Some((state.unused_since.after(limit), Expiry::Unused));
        }
        let kato_ms = match (state.kato_ms, self.subsystem.kind) {
            (0, Kind::Nvm) => return None,
            (0, Kind::Discovery) => SILENT_DISCOVERY_MS,
            (ms, _) => ms,
        };
        let last = state.last_active().max(self.admin_stats.last_active());
        let at = last.after(u64::from(kato_ms) * 1_000_000);
        Some((at, Expiry::KeepAlive))
    }

    pub(crate) fn totals(&self) -> Totals {
        lock(&self.state).totals()
    }
}
