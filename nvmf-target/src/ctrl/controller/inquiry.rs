//! Whether a host was silent: asked before its controller ends for that.
//!
//! After a standstill (of the machine, of a reactor) commands that have come in time lie in sockets
//! which nobody has read yet, those of I/O queues perhaps on other reactors. They restart the Keep
//! Alive Timer as well (NVMe Base 2.1, Traffic Based Keep Alive).

use super::super::lock;
use super::Controller;
use crate::reactor::{Mailbox, Message};
use nvmf_proto::tcp::Time;
use std::sync::{Arc, Weak};

/// Notifies an admin queue when its last clone is dropped: when all I/O queues have read what had
/// come for them.
#[derive(Clone, Debug)]
pub(crate) struct Inquiry(Arc<Asking>);

#[derive(Debug)]
struct Asking {
    /// Weak, for an inquiry may be in a message to the same reactor.
    mailbox: Weak<Mailbox>,
    admin: u64,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.send(Message::Notify(self.admin));
        }
    }
}

/// What an admin queue knows of its [`Inquiry`].
#[derive(Debug)]
pub(crate) struct Inquired {
    /// The deadline that had passed.
    deadline: Time,
    answer: Weak<Asking>,
}

impl Inquired {
    pub(crate) fn is_answered(&self) -> bool {
        self.answer.strong_count() == 0
    }

    /// It was about this deadline, which would have moved if there had been a command.
    pub(crate) fn was_about(&self, deadline: Time) -> bool {
        self.deadline == deadline
    }
}

impl Controller {
    /// Asks the I/O queues to read what has come for them, as this deadline has passed. `None` if
    /// there are none.
    pub(crate) fn inquire(&self, deadline: Time) -> Option<Inquired> {
        let state = lock(&self.state);
        let mut queues = state.queue_connections().peekable();
        queues.peek()?;
        let inquiry = Inquiry(Arc::new(Asking {
            mailbox: Arc::downgrade(&self.admin.mailbox),
            admin: self.admin.id,
        }));
        for conn in queues {
            conn.mailbox
                .send(Message::CatchUp(conn.id, inquiry.clone()));
        }
        let answer = Arc::downgrade(&inquiry.0);
        Some(Inquired { deadline, answer })
    }
}
