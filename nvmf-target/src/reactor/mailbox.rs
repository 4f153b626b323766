//! What other threads send to a reactor.

use super::Exclusive;
use crate::conn::Wire;
use crate::ctrl::reservation::Waiter;
use crate::ctrl::{ConnRef, ENDING_MAX, Guest, Inquiry, Listener};
use crate::ns::Port;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::wake::Waker;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::fmt;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};

pub(crate) enum Message {
    /// A new connection.
    Accept(Wire, Arc<Listener>, Guest),
    /// End this connection, which was no queue yet, to make room for others.
    Evict(u64),
    /// End this connection.
    Stop(u64),
    /// The controller of this admin queue has something for it.
    Notify(u64),
    /// The time of this I/O queue's controller is over, unless there are commands to be read here.
    CatchUp(u64, Inquiry),
    /// The host wants the command with this CID of this connection aborted.
    Abort {
        conn: u64,
        cid: u16,
        /// The admin queue that the Abort command has come on, and its place there.
        asker: ConnRef,
        slot: Slot,
    },
    /// What became of it: whether the command was aborted immediately.
    Aborted {
        /// The admin queue.
        conn: u64,
        /// Of the Abort command.
        slot: Slot,
        aborted: bool,
    },
    /// A command of this connection has asked for a change of reservations, and this is its status.
    Changed {
        conn: u64,
        slot: Slot,
        status: Status,
    },
    /// The commands of this connection on a namespace are to end; the waiter is to be kept until
    /// they have.
    Quiesce {
        conn: u64,
        nsid: u32,
        waiter: Waiter,
    },
    /// The listener is gone: end its connections.
    Unlistened(Arc<Listener>),
    /// The namespace with this uid is detached: flush its cache, if it is volatile, and drop its lane.
    Detached { uid: u64, volatile: bool },
    /// The write gate of a namespace closes for somebody, or opens, for this lane of it; see [`Gate`].
    ///
    /// [`Gate`]: super::Gate
    Gate {
        uid: u64,
        lane: u64,
        closes_for: Option<u64>,
    },
    /// The namespace of this lane takes another number of requests at a time.
    Depth { uid: u64, lane: u64, depth: u32 },
    /// The write gate is closed, as a command of this connection has asked for.
    Exclusive(u64, Slot, Exclusive),
    /// Take no new commands; end when nothing is in flight any more.
    Drain,
    /// End now.
    Quit,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept(..) => "Accept",
            Self::Evict(_) => "Evict",
            Self::Stop(_) => "Stop",
            Self::Notify(_) => "Notify",
            Self::CatchUp(..) => "CatchUp",
            Self::Abort { .. } => "Abort",
            Self::Aborted { .. } => "Aborted",
            Self::Changed { .. } => "Changed",
            Self::Quiesce { .. } => "Quiesce",
            Self::Unlistened(_) => "Unlistened",
            Self::Detached { .. } => "Detached",
            Self::Gate { .. } => "Gate",
            Self::Depth { .. } => "Depth",
            Self::Exclusive(..) => "Exclusive",
            Self::Drain => "Drain",
            Self::Quit => "Quit",
        })
    }
}

/// Messages for which there is room all the time, and not only in a burst of them.
pub(super) const ROOM: usize = 128;

/// The way to reach a reactor, and what it lets others read.
#[derive(Debug)]
pub(crate) struct Mailbox {
    messages: Mutex<Vec<Message>>,
    any: AtomicBool,
    pub(crate) waker: Waker,
    pub(crate) port: Arc<Port>,
    /// The reactor has ended: nobody takes messages any more.
    pub(crate) ended: AtomicBool,
    /// Connections that the reactor has, for placing the next one.
    pub(crate) connections: AtomicUsize,
    /// Those of them that were told to end to make room for others.
    pub(crate) ending: AtomicUsize,
    /// Bytes of buffers that are lent out.
    pub(crate) buffers_lent: AtomicUsize,
    /// Requests that are in backends.
    pub(crate) in_flight: AtomicUsize,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let waker = Waker::new()?;
        Ok(Arc::new(Self {
            messages: Mutex::default(),
            any: AtomicBool::new(false),
            port: Port::new(waker.clone()),
            waker,
            ended: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            ending: AtomicUsize::new(0),
            buffers_lent: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
        }))
    }

    /// So many of its connections are still to end that it should get no others, nor be told to end
    /// more.
    pub(crate) fn is_crowded(&self) -> bool {
        self.ending.load(Ordering::Acquire) >= ENDING_MAX
    }

    pub(crate) fn send(&self, message: Message) {
        {
            let mut messages = self.lock();
            if self.ended.load(Ordering::Acquire) {
                // Nobody would take it, and what it holds must not stay here for ever.
                drop(messages);
                return drop(message);
            }
            messages.push(message);
        }
        self.any.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// The reactor has ended: drops what it has not taken and whatever comes from now on.
    pub(crate) fn close(&self) {
        let left = {
            let mut messages = self.lock();
            self.ended.store(true, Ordering::Release);
            std::mem::take(&mut *messages)
        };
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all messages, in the order of their sending. For the reactor only.
    pub(crate) fn take(&self, into: &mut Vec<Message>) {
        if self.any.load(Ordering::SeqCst) && self.any.swap(false, Ordering::SeqCst) {
            let mut messages = self.lock();
            into.append(&mut messages);
            messages.shrink_to(ROOM);
        }
    }
}
