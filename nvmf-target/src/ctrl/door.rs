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
//!
//! What comes is silent at first, and must not be ended for those that have sent an ICReq and stay.
//! So a silent connection goes first only when an eighth of those among which one has to go have
//! come after it. That is judged by the set at hand, that of the target or of one address: a number
//! for all would be more than a small set has, and no silent one of it would ever go first.
//!
//! All this is done behind one lock, in a flood for each connection that comes, while reactors that
//! seat or drop one wait. Therefore the connections of each reactor are kept in a row of their own:
//! those of one that does not get round to ending any are passed over at once, not one by one.

use super::connect::{Limit, Refusal};
use super::lock;
use crate::TargetConfig;
use crate::reactor::{Mailbox, Message};
use crate::wake::Waker;
use nvmf_proto::wire::nqn::Nqn;
use std::collections::BTreeMap;
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
    per_address: Option<usize>,
    per_host: usize,
    discovery: usize,
    unconnected: usize,
    silent_per_address: usize,
    queue_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Connections that exist and have not been told to end.
    staying: usize,
    /// Connections that were told to end to make room.
    ending: usize,
    /// Of those that stay: which are no queues yet, by number: how many had come before.
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
    /// How many have ever come, whatever has become of them.
    arrivals: u64,
    /// No ICReq has come yet.
    silent: Rows,
    greeted: Rows,
}

impl Order {
    fn arrive(&mut self, number: u64, mailbox: &Arc<Mailbox>) {
        self.silent.insert(number, self.arrivals, mailbox);
        self.arrivals += 1;
    }

    fn greet(&mut self, number: u64, mailbox: &Arc<Mailbox>) {
        if let Some(arrival) = self.silent.remove(number, mailbox) {
            self.greeted.insert(number, arrival, mailbox);
        }
    }

    fn remove(&mut self, number: u64, mailbox: &Arc<Mailbox>) {
        if self.silent.remove(number, mailbox).is_none() {
            self.greeted.remove(number, mailbox);
        }
    }

    /// The number of the connection that makes room for another.
    fn first_to_go(&self) -> Option<u64> {
        let spared = (self.silent.len() + self.greeted.len()).div_ceil(8) as u64;
        let silent = self.silent.first();
        let (number, _) = silent
            .filter(|(_, arrival)| self.arrivals - arrival > spared)
            .or_else(|| self.greeted.first())
            .or(silent)?;
        Some(number)
    }
}

/// Connections by reactor: which arrival of their [`Order`] they were, by number. There is no row
/// without one.
#[derive(Debug, Default)]
struct Rows(Vec<(Arc<Mailbox>, BTreeMap<u64, u64>)>);

impl Rows {
    fn insert(&mut self, number: u64, arrival: u64, mailbox: &Arc<Mailbox>) {
        let at = self.position(mailbox).unwrap_or_else(|| {
            self.0.push((Arc::clone(mailbox), BTreeMap::new()));
            self.0.len() - 1
        });
        self.0[at].1.insert(number, arrival);
    }

    /// Its arrival, if it is here.
    fn remove(&mut self, number: u64, mailbox: &Arc<Mailbox>) -> Option<u64> {
        let at = self.position(mailbox)?;
        let (_, row) = &mut self.0[at];
        let arrival = row.remove(&number);
        if row.is_empty() {
            self.0.swap_remove(at);
        }
        arrival
    }

    fn position(&self, mailbox: &Arc<Mailbox>) -> Option<usize> {
        self.0.iter().position(|(of, _)| Arc::ptr_eq(of, mailbox))
    }

    fn len(&self) -> usize {
        self.0.iter().map(|(_, row)| row.len()).sum()
    }

    /// Number and arrival of the first of those whose reactors get round to ending connections.
    fn first(&self) -> Option<(u64, u64)> {
        let ending = self.0.iter().filter(|(mailbox, _)| !mailbox.is_crowded());
        let firsts = ending.filter_map(|(_, row)| row.first_key_value());
        firsts.min().map(|(&number, &arrival)| (number, arrival))
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
        Arc::new(Self {
            limits: Limits {
                connections: config.max_connections,
                per_address: config.max_connections_per_address,
                per_host: config.max_connections_per_host,
                discovery: config.max_discovery_controllers,
                unconnected: config.max_unconnected,
                silent_per_address: config.max_silent_per_address,
                queue_bytes: config.queue_bytes,
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
        lock(&self.state).order.arrivals
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
        let number = state.order.arrivals;
        state.staying += 1;
        if let Some(ip) = address {
            let at = state.addresses.entry(ip).or_default();
            at.connections += 1;
            at.order.arrive(number, mailbox);
        }
        state.order.arrive(number, mailbox);
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
            if let Some(most) = limits.per_address
                && at.connections >= most
            {
                let first = at.order.first_to_go();
                state.evict(first.ok_or(Full::Address(most))?);
            } else if at.order.silent.len() >= limits.silent_per_address {
                let first = at.order.silent.first();
                let (number, _) = first.ok_or(Full::Silent(limits.silent_per_address))?;
                state.evict(number);
            }
        }
        let full = if state.staying >= limits.connections {
            Full::Target(limits.connections)
        } else if state.waiting.len() >= limits.unconnected {
            Full::Unconnected(limits.unconnected)
        } else {
            return Ok(());
        };
        let first = state.order.first_to_go();
        state.evict(first.ok_or(full)?);
        Ok(())
    }

    /// The system has no descriptor or memory left: ends half of the connections that are no queues
    /// yet, in the order in which they make room for others, or as many as reactors get round to.
    pub(crate) fn give_way(&self) {
        let mut state = lock(&self.state);
        for _ in 0..state.waiting.len().div_ceil(2) {
            let Some(first) = state.order.first_to_go() else {
                break;
            };
            state.evict(first);
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
        self.order.remove(number, &waiting.mailbox);
        if let Some(at) = waiting.address.and_then(|ip| self.addresses.get_mut(&ip)) {
            at.order.remove(number, &waiting.mailbox);
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
        state.order.greet(self.number, &self.mailbox);
        if let Some(at) = self.address.and_then(|ip| state.addresses.get_mut(&ip)) {
            at.order.greet(self.number, &self.mailbox);
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
