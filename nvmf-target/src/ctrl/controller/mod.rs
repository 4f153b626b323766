//! A controller: what a host opened with its first Connect, until its last connection is gone.

mod errors;
mod events;
mod health;
mod notices;
mod settings;
mod state;
mod stats;

pub(super) use errors::{CRDT1, ErrorLog};
pub(super) use settings::{Clock, Settings, TEMPERATURE, WCTEMP};
pub(super) use state::Stopping;
pub(crate) use stats::{QueueStats, Totals};

use super::{ConnRef, Kind, Limits, Listener, Reach, Subsystem, View, lock};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::nqn::Nqn;
use state::State;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// A discovery controller without Keep Alive Timeout ends when its host has been silent this long.
const SILENT_DISCOVERY_MS: u32 = 120_000;

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
    /// The connection of the admin queue.
    pub(crate) admin: ConnRef,
}

impl Controller {
    pub(super) fn new(subsystem: Arc<Subsystem>, cntlid: u16, opening: Opening) -> Self {
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
            state: Mutex::new(State::new(opening.kato_ms)),
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
        // Read first: what changes meanwhile is seen by the next call.
        let generation = self.subsystem.generation();
        if cached.0 != generation {
            *cached = (generation, Arc::new(self.subsystem.view_of(self)));
        }
        Arc::clone(&cached.1)
    }

    /// Brings a queue's view up to date. Called before each command.
    pub(crate) fn refresh(&self, view: &mut Arc<View>, generation: &mut u64) {
        let now = self.subsystem.generation();
        if now != *generation {
            *generation = now;
            *view = self.view();
        }
    }

    pub(crate) fn admin_stats(&self) -> Arc<QueueStats> {
        Arc::clone(&self.admin_stats)
    }

    /// Whether admin commands other than Fabrics ones may run.
    pub(crate) fn enabled(&self) -> bool {
        let state = lock(&self.state);
        state.cc.en() && state.stopping.is_none() && state.csts.rdy()
    }

    pub(crate) fn kato_ms(&self) -> u32 {
        lock(&self.state).kato_ms
    }

    /// Sets the Keep Alive Timeout; it starts to run at once.
    pub(crate) fn set_kato_ms(&self, kato_ms: u32) {
        lock(&self.state).kato_ms = kato_ms;
        self.admin.notify();
    }

    /// When the controller ends unless a command arrives before: every command on any queue counts
    /// (CTRATT.TBKAS). `None`: never.
    pub(crate) fn keep_alive_deadline(&self) -> Option<Time> {
        let state = lock(&self.state);
        let kato_ms = match (state.kato_ms, self.subsystem.kind) {
            (0, Kind::Nvm) => return None,
            (0, Kind::Discovery) => SILENT_DISCOVERY_MS,
            (ms, _) => ms,
        };
        let last = state.last_active().max(self.admin_stats.last_active());
        let kato_ms = u64::from(kato_ms).next_multiple_of(u64::from(KAS) * 100);
        Some(last.after(kato_ms * 1_000_000))
    }

    pub(crate) fn totals(&self) -> Totals {
        lock(&self.state).totals()
    }
}
