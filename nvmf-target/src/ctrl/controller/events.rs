//! Asynchronous events of a controller.

use super::super::lock;
use super::Controller;
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::log::{AsyncEvent, Lid};
use std::collections::{BTreeSet, VecDeque};

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
}

impl Events {
    fn raise(&mut self, event: AsyncEvent) -> bool {
        let new = self.masked.insert(event.log_page.0);
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
}

impl Controller {
    /// A namespace was added, removed or changed.
    pub(crate) fn namespace_changed(&self, nsid: u32) {
        let raised = {
            let mut state = lock(&self.state);
            state.events.changed.insert(nsid);
            state
                .events
                .config
                .contains(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
                && state.events.raise(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED)
        };
        if raised {
            self.admin.notify();
        }
    }

    /// The discovery log has changed.
    pub(crate) fn discovery_changed(&self) {
        let raised = {
            let mut state = lock(&self.state);
            state
                .events
                .config
                .contains(AsyncEventConfig::DISCOVERY_LOG)
                && state.events.raise(AsyncEvent::DISCOVERY_LOG_CHANGED)
        };
        if raised {
            self.admin.notify();
        }
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
        let list: Vec<u32> = changed.iter().copied().take(CHANGED_MAX + 1).collect();
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
        lock(&self.state).events.config = config;
    }
}
