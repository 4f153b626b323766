//! Asynchronous events of a controller.

use super::super::ana::AnaHistory;
use super::super::{NsTable, Snapshot, lock};
use super::Controller;
use super::notices::Notices;
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::log::{AnaGroup, AsyncEvent, CriticalWarning, Lid};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// NSIDs that the Changed Attached Namespace List can hold.
const CHANGED_MAX: usize = 1024;

/// Asynchronous events (NVMe Base 2.1 §5.1.2).
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) config: AsyncEventConfig,
    pending: VecDeque<AsyncEvent>,
    /// Log pages whose event was raised and not yet cleared by reading the page: further events
    /// of the same page say nothing new.
    masked: BTreeSet<u8>,
    changed: BTreeSet<u32>,
    pub(super) notices: Notices,
    ana: AnaHistory,
}

impl Events {
    /// Takes an event in, if the host wants to know of it and does not know already.
    fn raise(&mut self, event: AsyncEvent) -> bool {
        let new = enabled_by(self.config, event) && self.masked.insert(event.log_page.0);
        if new {
            self.pending.push_back(event);
        }
        new
    }

    /// The host has read a log page without Retain Asynchronous Event.
    fn clear(&mut self, page: Lid) {
        self.masked.remove(&page.0);
        self.pending.retain(|event| event.log_page != page);
    }

    /// What is turned off now is not sent any more, nor does it stand in the way later.
    fn configure(&mut self, config: AsyncEventConfig) {
        self.config = config;
        let masked = &mut self.masked;
        self.pending.retain(|&event| {
            let wanted = enabled_by(config, event);
            if !wanted {
                masked.remove(&event.log_page.0);
            }
            wanted
        });
    }
}

/// Whether an Asynchronous Event Configuration lets an event through. It has no bit for errors, nor
/// for reservations, which have a feature of their own.
fn enabled_by(config: AsyncEventConfig, event: AsyncEvent) -> bool {
    let warning = |w: CriticalWarning| AsyncEventConfig::from_bits_retain(w.bits().into());
    let needed = match event {
        AsyncEvent::SPARE_BELOW_THRESHOLD => warning(CriticalWarning::SPARE),
        AsyncEvent::TEMPERATURE_THRESHOLD => warning(CriticalWarning::TEMPERATURE),
        AsyncEvent::RELIABILITY => warning(CriticalWarning::RELIABILITY),
        AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED => AsyncEventConfig::NAMESPACE_ATTRIBUTE,
        AsyncEvent::ANA_CHANGE => AsyncEventConfig::ANA_CHANGE,
        AsyncEvent::DISCOVERY_LOG_CHANGED => AsyncEventConfig::DISCOVERY_LOG,
        _ => AsyncEventConfig::empty(),
    };
    config.contains(needed)
}

impl Controller {
    /// Tells the host of an event, when it has an Asynchronous Event Request for it. Events of one
    /// log page are one until the host has read that page, so at most one per page is kept.
    pub(crate) fn raise(&self, event: AsyncEvent) {
        let raised = lock(&self.state).events.raise(event);
        if raised {
            self.admin.notify();
        }
    }

    /// The namespaces of the subsystem have changed, at the NSIDs `differing` or in the states of
    /// their ANA groups. What makes a difference to this controller becomes events.
    pub(in crate::ctrl) fn namespaces_changed(
        &self,
        old: &Snapshot,
        new: &Snapshot,
        differing: &[u32],
    ) {
        let port = self.listener.uid;
        let (old_ana, new_ana) = (old.ana.port(port), new.ana.port(port));
        let visible = |table: &NsTable, nsid| {
            let entry = table.get(nsid)?;
            let shown = entry.visibility.includes(&self.hostnqn);
            shown.then(|| Arc::clone(entry))
        };
        let (mut changed, mut moved, mut ana) = (Vec::new(), false, false);
        for &nsid in differing {
            match (visible(&old.table, nsid), visible(&new.table, nsid)) {
                (None, None) => {}
                (Some(a), Some(b)) if a.uid == b.uid => {
                    moved = true;
                    ana |= a.anagrpid != b.anagrpid;
                    if a.info != b.info || a.is_protected() != b.is_protected() {
                        changed.push(nsid);
                    }
                }
                _ => {
                    moved = true;
                    changed.push(nsid);
                }
            }
        }
        // NVMe Base 2.1, Asymmetric Namespace Access Change: not for what comes and goes, of which
        // the other event tells.
        ana |= old_ana != new_ana
            && new.table.iter().any(|entry| {
                entry.visibility.includes(&self.hostnqn)
                    && old_ana.get(entry.anagrpid) != new_ana.get(entry.anagrpid)
            });
        if moved || ana {
            let view = self.view();
            lock(&self.state).events.ana.update(&view);
        }
        for nsid in changed {
            self.namespace_changed(nsid);
        }
        if ana {
            self.raise(AsyncEvent::ANA_CHANGE);
        }
    }

    /// The ANA log page: its change count and the groups of the namespaces that there are.
    pub(crate) fn ana_log(&self) -> (u64, Vec<AnaGroup>) {
        let view = self.view();
        let mut state = lock(&self.state);
        let (chgcnt, groups) = state.events.ana.update(&view);
        (chgcnt, groups.to_vec())
    }

    /// A namespace was added, removed or changed.
    fn namespace_changed(&self, nsid: u32) {
        {
            let changed = &mut lock(&self.state).events.changed;
            // One more than the log page can hold stands for all others.
            if changed.len() <= CHANGED_MAX {
                changed.insert(nsid);
            }
        }
        self.raise(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
    }

    /// The next event for an outstanding Asynchronous Event Request.
    pub(crate) fn next_event(&self) -> Option<AsyncEvent> {
        lock(&self.state).events.pending.pop_front()
    }

    /// The Changed Attached Namespace List: NSIDs in ascending order, one more than the log page
    /// can hold if there are that many. With `release` the host lets go of that many entries of
    /// the page, and the list starts anew if it has no others.
    pub(crate) fn changed_namespaces(&self, release: Option<usize>) -> Vec<u32> {
        let mut state = lock(&self.state);
        let changed = &mut state.events.changed;
        let list: Vec<u32> = changed.iter().copied().collect();
        // More than the page can hold are one entry there: FFFFFFFFh.
        let shown = if list.len() > CHANGED_MAX {
            1
        } else {
            list.len()
        };
        if release.is_some_and(|entries| entries >= shown) {
            changed.clear();
        }
        list
    }

    /// A log page was read without Retain Asynchronous Event.
    pub(crate) fn clear_event(&self, page: Lid) {
        lock(&self.state).events.clear(page);
    }

    /// Asynchronous Event Configuration.
    pub(crate) fn event_config(&self) -> AsyncEventConfig {
        lock(&self.state).events.config
    }

    /// Sets the Asynchronous Event Configuration.
    pub(crate) fn set_event_config(&self, config: AsyncEventConfig) {
        lock(&self.state).events.configure(config);
        self.raise_warnings();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: AsyncEvent = AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED;
    const ANA: AsyncEvent = AsyncEvent::ANA_CHANGE;
    const ERROR: AsyncEvent = AsyncEvent::TRANSIENT_INTERNAL_ERROR;

    fn pending(events: &mut Events) -> Vec<AsyncEvent> {
        events.pending.drain(..).collect()
    }

    #[test]
    fn each_event_has_its_bit_or_none() {
        let table = [
            (NAMESPACE, 1 << 8),
            (ANA, 1 << 11),
            (AsyncEvent::DISCOVERY_LOG_CHANGED, 1 << 31),
            (AsyncEvent::SPARE_BELOW_THRESHOLD, 1 << 0),
            (AsyncEvent::TEMPERATURE_THRESHOLD, 1 << 1),
            (AsyncEvent::RELIABILITY, 1 << 2),
        ];
        for (event, bit) in table {
            let lets = |bits| enabled_by(AsyncEventConfig::from_bits_retain(bits), event);
            assert!(lets(bit) && !lets(!bit), "{event:?}");
        }
        for event in [ERROR, AsyncEvent::RESERVATION_LOG] {
            assert!(enabled_by(AsyncEventConfig::empty(), event), "{event:?}");
        }
    }

    #[test]
    fn one_event_per_log_page_in_the_order_of_their_coming() {
        let mut events = Events::default();
        assert!(!events.raise(NAMESPACE), "nobody has asked for it");
        events.configure(AsyncEventConfig::NAMESPACE_ATTRIBUTE | AsyncEventConfig::ANA_CHANGE);
        assert!(pending(&mut events).is_empty());
        for _ in 0..1000 {
            for event in [ANA, ERROR, NAMESPACE] {
                events.raise(event);
            }
        }
        assert_eq!(pending(&mut events), [ANA, ERROR, NAMESPACE]);
        // Sent, and not read: none comes again but the one whose page was read.
        events.clear(Lid::ANA);
        for event in [NAMESPACE, ERROR, ANA] {
            events.raise(event);
        }
        assert_eq!(pending(&mut events), [ANA]);
    }

    #[test]
    fn what_is_turned_off_or_read_is_not_sent() {
        let mut events = Events::default();
        let both = AsyncEventConfig::NAMESPACE_ATTRIBUTE | AsyncEventConfig::ANA_CHANGE;
        events.configure(both);
        assert!(events.raise(NAMESPACE) && events.raise(ANA));
        events.configure(AsyncEventConfig::ANA_CHANGE);
        assert_eq!(pending(&mut events), [ANA]);
        events.configure(both);
        assert!(events.raise(NAMESPACE), "it was never sent");
        events.clear(Lid::CHANGED_NAMESPACES);
        assert!(
            pending(&mut events).is_empty(),
            "the host has seen the page"
        );
    }
}
