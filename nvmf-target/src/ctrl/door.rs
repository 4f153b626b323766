//! Who is connected: how many in all, from each address and of each host, and which connections are
//! no queues yet.
//!
//! Asked when a connection comes, when its ICReq has come, when it becomes a queue and when it is
//! gone, never by an I/O. Where connections that are no queues yet are too many, one of them makes
//! room for the one that comes: first those that are silent, then those that have been there
//! longest. Honest hosts send their ICReq within milliseconds, so a flood of silent connections ends
//! itself and keeps nobody out. Their Connects may take longer: Linux opens the connections of all
//! its I/O queues, ICReq included, before it sends the first of their Connects, and a thousand
//! hosts that come back together have many thousands of them.

use super::connect::{Limit, Refusal};
use super::lock;
use crate::TargetConfig;
use crate::reactor::{Mailbox, Message};
use crate::wake::Waker;
use nvmf_proto::wire::nqn::Nqn;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

/// Connections of a reactor that have been told to end, and have not yet, while it gets others.
pub(crate) const ENDING_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Door {
    limits: Limits,
    /// Of the thread that accepts.
    acceptor: OnceLock<Waker>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    per_address: usize,
    per_host: usize,
    discovery: usize,
    unconnected: usize,
    silent_per_address: usize,
    queue_bytes: usize,
    /// A silent connection is not the first to make room before so many have come after it: what
    /// comes is silent at first, and must not be ended for those that are not and stay.
    spared: u64,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next connection.
    next: u64,
    /// Connections that exist and have not been told to end.
    staying: usize,
    /// Connections that were told to end to make room.
    ending: usize,
    /// Of those that stay: which are no queues yet.
    waiting: BTreeMap<u64, Waiting>,
    order: Order,
    addresses: BTreeMap<IpAddr, Address>,
    /// Queues by HOSTNQN, but for those of discovery controllers.
    hosts: BTreeMap<Nqn, Host>,
    discovery: usize,
    /// What all queues are charged with.
    queue_bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    address: Option<IpAddr>,
    mailbox: Arc<Mailbox>,
    /// Its id, once its reactor has it.
    conn: Option<u64>,
}

/// What stays of the connections from one address.
#[derive(Debug, Default)]
struct Address {
    connections: usize,
    order: Order,
}

/// The queues of a host.
#[derive(Debug, Default)]
struct Host {
    queues: usize,
    /// What they are charged with.
    bytes: usize,
}

/// Connections that are no queues yet, in the order of their coming.
#[derive(Debug, Default)]
struct Order {
    /// No ICReq has come yet.
    silent: BTreeSet<u64>,
    greeted: BTreeSet<u64>,
}

impl Order {
    fn greet(&mut self, number: u64) {
        if self.silent.remove(&number) {
            self.greeted.insert(number);
        }
    }

    fn remove(&mut self, number: u64) {
        if !self.silent.remove(&number) {
            self.greeted.remove(&number);
        }
    }
}

/// What there is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections, whatever their state.
    pub(crate) connections: usize,
    /// Connections that are no queues yet and have not been told to end.
    pub(crate) unconnected: usize,
    /// What queues are charged with.
    pub(crate) queue_bytes: usize,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// All connections of the target are queues.
    Target(usize),
    /// All connections from its address are queues.
    Address(usize),
    /// The reactors of those without a Connect do not get round to ending them.
    Unconnected(usize),
    /// The same for those from its address without an ICReq.
    Silent(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(most) => write!(f, "{most} connections are the limit"),
            Self::Address(most) => write!(f, "{most} connections from its address are the limit"),
            Self::Unconnected(most) => {
                write!(f, "{most} connections without a Connect are the limit")
            }
            Self::Silent(most) => write!(
                f,
                "{most} connections from its address without an ICReq are the limit"
            ),
        }
    }
}

/// A connection's being counted, from accept until it is gone.
#[derive(Debug)]
pub(crate) struct Guest {
    door: Arc<Door>,
    number: u64,
    address: Option<IpAddr>,
    mailbox: Arc<Mailbox>,
    /// Of whom it is, once it is a queue.
    seat: Option<Seat>,
}

/// A queue's being counted as one of its host, or else as a discovery controller's.
#[derive(Debug)]
pub(crate) struct Seat {
    door: Arc<Door>,
    host: Option<Nqn>,
    bytes: usize,
}

/// Connections are counted by IPv4 address, and by the first 64 bits of an IPv6 address: whoever
/// has one of these has them all.
fn counted_by(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => {
            let network = ip.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
        ip @ IpAddr::V4(_) => ip,
    }
}

impl Door {
    pub(crate) fn new(config: &TargetConfig) -> Arc<Self> {
        let connections = config.max_connections;
        Arc::new(Self {
            limits: Limits {
                connections,
                per_address: config.max_connections_per_address.unwrap_or(connections),
                per_host: config.max_connections_per_host,
                discovery: config.max_discovery_controllers,
                unconnected: config.max_unconnected,
                silent_per_address: config.max_silent_per_address,
                queue_bytes: config.queue_bytes,
                spared: (config.max_unconnected.min(connections) / 8) as u64,
            },
            acceptor: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// What there is at this moment.
    pub(crate) fn counts(&self) -> Counts {
        let state = lock(&self.state);
        Counts {
            connections: state.staying + state.ending,
            unconnected: state.waiting.len(),
            queue_bytes: state.queue_bytes,
        }
    }

    /// Connections that have ever come in.
    pub(crate) fn accepted(&self) -> u64 {
        lock(&self.state).next
    }

    /// Whom to wake when a reactor that had too many connections to end may get others again.
    pub(crate) fn set_acceptor(&self, waker: Waker) {
        let _ = self.acceptor.set(waker);
    }

    /// Counts a connection from `peer` that is for the reactor of `mailbox`, and ends others if it
    /// takes that. What has no address is not limited by address: there is no telling who is who.
    pub(crate) fn enter(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        mailbox: &Arc<Mailbox>,
    ) -> Result<Guest, Full> {
        let address = peer.map(counted_by);
        let mut state = lock(&self.state);
        self.make_room(&mut state, address)?;
        let number = state.next;
        state.next += 1;
        state.staying += 1;
        if let Some(ip) = address {
            let at = state.addresses.entry(ip).or_default();
            at.connections += 1;
            at.order.silent.insert(number);
        }
        state.order.silent.insert(number);
        let waiting = Waiting {
            address,
            mailbox: Arc::clone(mailbox),
            conn: None,
        };
        state.waiting.insert(number, waiting);
        mailbox.connections.fetch_add(1, Ordering::AcqRel);
        Ok(Guest {
            door: Arc::clone(self),
            number,
            address,
            mailbox: Arc::clone(mailbox),
            seat: None,
        })
    }

    /// Makes room for one more connection.
    fn make_room(&self, state: &mut State, address: Option<IpAddr>) -> Result<(), Full> {
        let limits = &self.limits;
        if let Some(at) = address.and_then(|ip| state.addresses.get(&ip)) {
            if at.connections >= limits.per_address {
                let first = state.first_to_go(&at.order, limits.spared);
                state.evict(first.ok_or(Full::Address(limits.per_address))?);
            } else if at.order.silent.len() >= limits.silent_per_address {
                let first = state.first_of(&at.order.silent);
                state.evict(first.ok_or(Full::Silent(limits.silent_per_address))?);
            }
        }
        let full = if state.staying >= limits.connections {
            Full::Target(limits.connections)
        } else if state.waiting.len() >= limits.unconnected {
            Full::Unconnected(limits.unconnected)
        } else {
            return Ok(());
        };
        let first = state.first_to_go(&state.order, limits.spared);
        state.evict(first.ok_or(full)?);
        Ok(())
    }

    /// The system has no descriptor or memory left: ends half of the connections that are no queues
    /// yet, in the order in which they make room for others.
    pub(crate) fn give_way(&self) {
        let mut state = lock(&self.state);
        for _ in 0..state.waiting.len().div_ceil(2) {
            if let Some(first) = state.first_to_go(&state.order, self.limits.spared) {
                state.evict(first);
            }
        }
    }

    /// A place for one more queue of a host, that may take so many bytes. All queues of a host may
    /// take as much as is left for others, so that none takes all.
    pub(super) fn seat(self: &Arc<Self>, host: &Nqn, bytes: usize) -> Result<Seat, Refusal> {
        let mut state = lock(&self.state);
        let left = self.limits.queue_bytes - state.queue_bytes;
        let of_host = state.hosts.get(host);
        let (queues, held) = of_host.map_or((0, 0), |of| (of.queues, of.bytes));
        if queues >= self.limits.per_host {
            return Err(Refusal::busy(Limit::ConnectionsPerHost));
        }
        if bytes > left {
            return Err(Refusal::busy(Limit::QueueBytes));
        }
        // Its first queue a host gets if there is room at all.
        if held > 0 && held + bytes > left {
            return Err(Refusal::busy(Limit::QueueBytesPerHost));
        }
        let of_host = state.hosts.entry(host.clone()).or_default();
        of_host.queues += 1;
        of_host.bytes += bytes;
        state.queue_bytes += bytes;
        drop(state);
        Ok(Seat {
            door: Arc::clone(self),
            host: Some(host.clone()),
            bytes,
        })
    }

    /// A place for one more discovery controller. Everybody may have some, and under any name: they
    /// count for no host, and together get only a part of what there is.
    pub(super) fn seat_discovery(self: &Arc<Self>, bytes: usize) -> Result<Seat, Refusal> {
        let mut state = lock(&self.state);
        if state.discovery >= self.limits.discovery {
            return Err(Refusal::busy(Limit::DiscoveryControllers));
        }
        if bytes > self.limits.queue_bytes - state.queue_bytes {
            return Err(Refusal::busy(Limit::QueueBytes));
        }
        state.discovery += 1;
        state.queue_bytes += bytes;
        drop(state);
        Ok(Seat {
            door: Arc::clone(self),
            host: None,
            bytes,
        })
    }
}

impl State {
    /// The connection that makes room for another.
    fn first_to_go(&self, order: &Order, spared: u64) -> Option<u64> {
        self.first_of(&order.silent)
            .filter(|number| self.next - number > spared)
            .or_else(|| self.first_of(&order.greeted))
            .or_else(|| self.first_of(&order.silent))
    }

    /// The first of those whose reactors get round to ending connections.
    fn first_of(&self, numbers: &BTreeSet<u64>) -> Option<u64> {
        let ends = |number: &&u64| {
            let waiting = self.waiting.get(number);
            waiting.is_some_and(|waiting| !waiting.mailbox.is_crowded())
        };
        numbers.iter().find(ends).copied()
    }

    /// Tells a connection that is no queue yet to end.
    fn evict(&mut self, number: u64) {
        let Some(waiting) = self.stop_waiting(number) else {
            return;
        };
        self.leave(waiting.address);
        self.ending += 1;
        waiting.mailbox.ending.fetch_add(1, Ordering::AcqRel);
        if let Some(conn) = waiting.conn {
            waiting.mailbox.send(Message::Evict(conn));
        }
    }

    /// A connection is a queue now, or gone.
    fn stop_waiting(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        self.order.remove(number);
        if let Some(at) = waiting.address.and_then(|ip| self.addresses.get_mut(&ip)) {
            at.order.remove(number);
        }
        Some(waiting)
    }

    /// A connection from an address does not stay.
    fn leave(&mut self, address: Option<IpAddr>) {
        self.staying -= 1;
        if let Some(ip) = address
            && let Some(at) = self.addresses.get_mut(&ip)
        {
            at.connections -= 1;
            if at.connections == 0 {
                self.addresses.remove(&ip);
            }
        }
    }
}

impl Guest {
    /// The connection has come to its reactor, which calls it `id`. False if it is to end already.
    pub(crate) fn arrive(&self, id: u64) -> bool {
        let mut state = lock(&self.door.state);
        let waiting = state.waiting.get_mut(&self.number);
        waiting.is_some_and(|waiting| {
            waiting.conn = Some(id);
            true
        })
    }

    /// Its ICReq has come.
    pub(crate) fn greet(&self) {
        let mut state = lock(&self.door.state);
        state.order.greet(self.number);
        if let Some(at) = self.address.and_then(|ip| state.addresses.get_mut(&ip)) {
            at.order.greet(self.number);
        }
    }

    /// The connection has become a queue. False if it has been told to end meanwhile.
    pub(crate) fn sit_down(&mut self, seat: Seat) -> bool {
        let stays = lock(&self.door.state).stop_waiting(self.number).is_some();
        self.seat = stays.then_some(seat);
        stays
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.mailbox.connections.fetch_sub(1, Ordering::AcqRel);
        let mut state = lock(&self.door.state);
        let stayed = self.seat.is_some() || state.stop_waiting(self.number).is_some();
        if stayed {
            state.leave(self.address);
            return;
        }
        state.ending -= 1;
        drop(state);
        let before = self.mailbox.ending.fetch_sub(1, Ordering::AcqRel);
        if before == ENDING_MAX
            && let Some(acceptor) = self.door.acceptor.get()
        {
            acceptor.wake();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = lock(&self.door.state);
        state.queue_bytes -= self.bytes;
        let Some(host) = &self.host else {
            state.discovery -= 1;
            return;
        };
        if let Some(of_host) = state.hosts.get_mut(host) {
            of_host.queues -= 1;
            of_host.bytes -= self.bytes;
            if of_host.queues == 0 {
                state.hosts.remove(host);
            }
        }
    }
}

#[cfg(test)]
mod tests;
