//! A Connect that waits: its QID is taken by a queue that is ending.
//!
//! Hosts come back faster than what they have left behind is gone: the old queue's commands may be
//! in a backend still. Refusing them would make them wait for their next attempt, in seconds.

use super::Conn;
use crate::chatter::debug;
use crate::ctrl::connect::Refusal;
use crate::ctrl::{ConnRef, Controller};
use crate::reactor::Cx;
use nvmf_proto::tcp::{Slot, Time};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::fabrics::ConnectCommand;
use std::sync::Arc;

/// The Connect of an I/O queue, until the queue before it is gone.
#[derive(Debug)]
pub(super) struct Held {
    slot: Slot,
    command: ConnectCommand,
    controller: Arc<Controller>,
    /// It is refused then.
    until: Time,
}

impl Held {
    pub(super) const fn until(&self) -> Time {
        self.until
    }
}

impl Conn {
    /// The connection as others see it.
    pub(super) fn reference(&self, cx: &Cx) -> ConnRef {
        ConnRef {
            mailbox: Arc::clone(&cx.mailbox),
            id: self.id,
        }
    }

    /// Lets a Connect wait, `until` then if it has waited already.
    pub(super) fn hold_connect(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        command: &ConnectCommand,
        controller: Arc<Controller>,
        until: Option<Time>,
    ) {
        let limit = cx.core.config.connect_timeout.as_nanos() / 2;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        debug!(
            "{}: waits for queue {} of controller {} to end",
            self.peer, command.qid, controller.cntlid
        );
        self.held_connect = Some(Held {
            slot,
            command: *command,
            controller,
            until: until.unwrap_or_else(|| cx.now.after(limit)),
        });
        self.arm(cx);
    }

    /// Something has changed about the queue that a Connect waits for.
    pub(super) fn retry_connect(&mut self, cx: &mut Cx) {
        let Some(held) = self.held_connect.take() else {
            return;
        };
        self.connect(cx, held.slot, &held.command, Some(held.until));
        if self.held_connect.is_none() {
            let me = self.reference(cx);
            held.controller.forget_held(held.command.qid, &me);
        }
    }

    /// Refuses a Connect that has waited long enough. The host may try again.
    pub(super) fn expire_connect(&mut self, cx: &mut Cx) {
        if self
            .held_connect
            .as_ref()
            .is_some_and(|h| h.until <= cx.now)
            && let Some(held) = self.forget_connect(cx)
        {
            let refusal = Refusal::from(Status::COMMAND_SEQUENCE_ERROR);
            self.fail(cx, held.slot, refusal);
        }
    }

    /// Gives up waiting.
    pub(super) fn forget_connect(&mut self, cx: &Cx) -> Option<Held> {
        let held = self.held_connect.take()?;
        let me = self.reference(cx);
        held.controller.forget_held(held.command.qid, &me);
        Some(held)
    }
}
