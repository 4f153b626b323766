use super::*;
use nvmf_proto::wire::Status;
use std::collections::VecDeque;

struct Rig {
    door: Arc<Door>,
    mailbox: Arc<Mailbox>,
}

impl Rig {
    fn new(change: fn(&mut TargetConfig)) -> Self {
        let mut config = TargetConfig::default();
        change(&mut config);
        Self {
            door: Door::new(&config),
            mailbox: Mailbox::new().unwrap(),
        }
    }

    /// A connection that has not come to its reactor.
    fn enter(&self, peer: Option<&str>) -> Result<Guest, Full> {
        let peer = peer.map(|ip| ip.parse().unwrap());
        self.door.enter(peer, &self.mailbox)
    }

    /// One that has sent its ICReq.
    fn greeted(&self, peer: &str) -> Guest {
        let guest = self.waiting(peer);
        guest.greet();
        guest
    }

    /// One that has, with its number as its id.
    fn waiting(&self, peer: &str) -> Guest {
        let guest = self.enter(Some(peer)).unwrap();
        assert!(guest.arrive(guest.number));
        guest
    }

    /// One that has become a queue of a host.
    fn queue(&self, peer: &str, host: &str) -> Guest {
        let mut guest = self.waiting(peer);
        assert!(guest.sit_down(self.seat(host).unwrap()));
        guest
    }

    fn seat(&self, host: &str) -> Result<Seat, Refusal> {
        let host = Nqn::new(&format!("nqn.2014-08.org.example:{host}"));
        self.door.seat(&host.unwrap(), 1000)
    }

    /// The connections that were told to end since the last call.
    fn evicted(&self) -> Vec<u64> {
        let mut messages = Vec::new();
        self.mailbox.take(&mut messages);
        let id = |message| match message {
            Message::Evict(id) => id,
            other => panic!("{other:?}"),
        };
        messages.into_iter().map(id).collect()
    }

    fn assert_empty(&self) {
        assert_eq!(self.door.counts().connections, 0);
        assert_eq!(self.mailbox.connections.load(Ordering::Acquire), 0);
        let state = lock(&self.door.state);
        assert!(state.waiting.is_empty() && state.addresses.is_empty() && state.hosts.is_empty());
        assert!(state.order.silent.0.is_empty() && state.order.greeted.0.is_empty());
        assert_eq!((state.queue_bytes, state.discovery), (0, 0));
        assert_eq!(self.mailbox.ending.load(Ordering::Acquire), 0);
    }
}

#[test]
fn the_one_that_has_waited_longest_makes_room() {
    let rig = Rig::new(|c| c.max_unconnected = 3);
    let mut guests: Vec<_> = (1..=3)
        .map(|i| rig.waiting(&format!("192.0.2.{i}")))
        .collect();
    assert_eq!(rig.evicted(), []);
    // One becomes a queue, one goes: neither counts any more, nor can it be ended.
    let seat = rig.seat("a").unwrap();
    assert!(guests[0].sit_down(seat));
    drop(guests.remove(1));
    guests.extend((4..=5).map(|i| rig.waiting(&format!("192.0.2.{i}"))));
    assert_eq!(rig.evicted(), []);
    for i in 6..10 {
        guests.push(rig.waiting(&format!("192.0.2.{i}")));
    }
    assert_eq!(rig.evicted(), [2, 3, 4, 5]);
    // They count until they are gone, and none of them becomes a queue any more.
    assert_eq!(rig.door.counts().connections, 8);
    assert!(!guests[1].sit_down(rig.seat("a").unwrap()));
    drop(guests);
    rig.assert_empty();
}

#[test]
fn an_address_makes_room_for_itself() {
    let rig = Rig::new(|c| (c.max_unconnected, c.max_silent_per_address) = (100, 2));
    let mut guests = vec![rig.waiting("192.0.2.1")];
    for i in 1..10 {
        guests.push(rig.waiting("192.0.2.2"));
        let gone: Vec<u64> = if i > 2 { vec![i - 2] } else { vec![] };
        assert_eq!(rig.evicted(), gone);
    }
    drop(guests);
    // An IPv4 address is the same in an IPv6 one; of others the first half counts.
    for same in [
        ["198.51.100.7", "::ffff:198.51.100.7", "198.51.100.7"],
        [
            "2001:db8:1:2::1",
            "2001:db8:1:2:ffff::",
            "2001:db8:1:2:3::4",
        ],
    ] {
        let guests = same.map(|ip| rig.waiting(ip));
        assert_eq!(rig.evicted(), [guests[0].number]);
    }
    let guests =
        ["2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:4::1"].map(|ip| rig.waiting(ip));
    assert_eq!(rig.evicted(), []);
    drop(guests);
    // What has no address is nobody's.
    let guests: Vec<_> = (0..50).map(|_| rig.enter(None).unwrap()).collect();
    assert_eq!(rig.evicted(), []);
    drop(guests);
    rig.assert_empty();
}

#[test]
fn a_full_target_takes_no_place_from_queues() {
    let rig = Rig::new(|c| c.max_connections = 3);
    let queue = rig.queue("192.0.2.1", "a");
    let waiting = [rig.waiting("192.0.2.1"), rig.waiting("192.0.2.2")];
    let third = rig.queue("192.0.2.3", "b");
    assert_eq!(rig.evicted(), [waiting[0].number]);
    let fourth = rig.queue("192.0.2.4", "b");
    assert_eq!(rig.evicted(), [waiting[1].number]);
    drop(waiting);
    assert_eq!(rig.door.counts().connections, 3);
    for peer in [Some("192.0.2.1"), Some("192.0.2.9"), None] {
        assert_eq!(rig.enter(peer).unwrap_err(), Full::Target(3));
    }
    drop(fourth);
    drop(rig.waiting("192.0.2.9"));
    drop((queue, third));
    rig.assert_empty();
}

/// The log names the limit that an operator can raise, also where one address has all connections.
#[test]
fn an_address_without_a_limit_is_not_what_is_full() {
    let rig = Rig::new(|c| c.max_connections = 3);
    let queues = [0, 1, 2].map(|_| rig.queue("192.0.2.1", "a"));
    let full = rig.enter(Some("192.0.2.1")).unwrap_err();
    assert_eq!(full.to_string(), "3 connections are the limit");
    drop(queues);
    rig.assert_empty();
}

#[test]
fn an_address_has_so_many_connections_if_so_configured() {
    let rig = Rig::new(|c| c.max_connections_per_address = Some(2));
    let first = rig.queue("192.0.2.1", "a");
    let waiting = rig.waiting("192.0.2.1");
    let third = rig.queue("192.0.2.1", "a");
    assert_eq!(rig.evicted(), [waiting.number]);
    let full = rig.enter(Some("192.0.2.1")).unwrap_err();
    assert_eq!(full, Full::Address(2));
    let other = rig.queue("192.0.2.2", "a");
    drop((first, waiting, third, other));
    drop(rig.queue("192.0.2.1", "a"));
    rig.assert_empty();
}

#[test]
fn a_host_has_so_many_queues() {
    let rig = Rig::new(|c| c.max_connections_per_host = 2);
    let queues = [rig.queue("192.0.2.1", "a"), rig.queue("192.0.2.2", "a")];
    let refusal = rig.seat("a").unwrap_err();
    assert_eq!(refusal, Refusal::busy(Limit::ConnectionsPerHost));
    // To the host it is the same as with all limits; the log says which.
    assert_eq!(refusal.status, Status::CONNECT_CONTROLLER_BUSY);
    let line = refusal.to_string();
    assert!(
        line.ends_with("the limit of connections per host"),
        "{line}"
    );
    let other = rig.queue("192.0.2.1", "b");
    drop(queues);
    drop(rig.queue("192.0.2.1", "a"));
    drop(other);
    rig.assert_empty();
}

/// Between accept and its reactor a connection has no id: its reactor is told when it gets there.
#[test]
fn a_connection_on_its_way_to_a_reactor_can_be_ended() {
    let rig = Rig::new(|c| c.max_unconnected = 1);
    let first = rig.enter(Some("192.0.2.1")).unwrap();
    let second = rig.enter(Some("192.0.2.1")).unwrap();
    assert_eq!(rig.evicted(), []);
    assert!(!first.arrive(7));
    assert!(second.arrive(7));
    drop((first, second));
    rig.assert_empty();
}

/// However slow a reactor is, only so many connections of it are there beyond the limit; whoever
/// accepts is woken when the first of them has ended.
#[test]
fn accepting_waits_for_connections_that_are_to_end() {
    let rig = Rig::new(|c| c.max_unconnected = 4);
    let waker = Waker::new().unwrap();
    rig.door.set_acceptor(waker.clone());
    let mut guests = Vec::new();
    while !rig.mailbox.is_crowded() {
        guests.push(rig.waiting("192.0.2.1"));
    }
    assert_eq!(guests.len(), 4 + ENDING_MAX);
    // It gets no others, and is told to end no more.
    let full = rig.enter(Some("192.0.2.1")).unwrap_err();
    assert_eq!(full, Full::Unconnected(4));
    rig.door.give_way();
    assert_eq!(rig.evicted().len(), ENDING_MAX);
    assert!(!waker.awake());
    drop(guests.remove(0));
    assert!(!rig.mailbox.is_crowded());
    assert!(waker.awake());
    drop(guests.remove(0));
    assert!(!waker.awake(), "once is enough");
    drop(guests);
    rig.assert_empty();
}

/// A reactor that stands still keeps what it has: those of the others make room.
#[test]
fn a_reactor_that_stands_still_holds_up_nobody_else() {
    let rig = Rig::new(|c| c.max_unconnected = 2 * ENDING_MAX);
    let other = Rig {
        door: Arc::clone(&rig.door),
        mailbox: Mailbox::new().unwrap(),
    };
    let peer = "192.0.2.1";
    let mut guests: Vec<_> = (0..2 * ENDING_MAX).map(|_| rig.waiting(peer)).collect();
    let mut others: Vec<_> = (0..ENDING_MAX).map(|_| other.waiting(peer)).collect();
    assert!(rig.mailbox.is_crowded());
    assert_eq!(other.evicted(), []);
    for _ in 0..3 * ENDING_MAX {
        let oldest = others[0].number;
        others.push(other.waiting(peer));
        assert_eq!(other.evicted(), [oldest]);
        drop(others.remove(0));
    }
    assert_eq!(rig.evicted().len(), ENDING_MAX);
    guests.clear();
    drop((guests, others));
    rig.assert_empty();
}

/// Whoever waits for the lock does not wait for a flood: connections whose reactor gets round to no
/// more are passed over at once, and where there are no others, `give_way` is done. One by one these
/// would be some billions to look at, and this test would take many minutes.
#[test]
fn connections_that_cannot_be_ended_are_not_looked_at_one_by_one() {
    const MANY: usize = 1 << 16;
    let rig = Rig::new(|c| {
        (c.max_connections, c.max_unconnected) = (2 * MANY, 2 * MANY);
        c.max_silent_per_address = 2 * MANY;
    });
    let other = Rig {
        door: Arc::clone(&rig.door),
        mailbox: Mailbox::new().unwrap(),
    };
    let peer = "192.0.2.1";
    let greeted: Vec<_> = (0..MANY / 2).map(|_| rig.greeted(peer)).collect();
    let silent: Vec<_> = (0..MANY / 2).map(|_| rig.waiting(peer)).collect();
    rig.door.give_way();
    assert!(rig.mailbox.is_crowded());
    assert_eq!(rig.evicted().len(), ENDING_MAX);
    rig.door.give_way();
    assert_eq!(rig.evicted(), []);
    // There is room for as many again, and for each one more one of these goes.
    let others: Vec<_> = (0..MANY + ENDING_MAX)
        .map(|_| other.waiting(peer))
        .collect();
    let mut others = VecDeque::from(others);
    for _ in 0..MANY / 2 {
        let oldest = others.pop_front().unwrap();
        others.push_back(other.waiting(peer));
        assert_eq!(other.evicted(), [oldest.number]);
    }
    assert_eq!(rig.evicted(), []);
    drop((greeted, silent, others));
    rig.assert_empty();
}

/// Hosts that have sent their ICReq, and whose Connects are still to come, are not ended for those
/// that are silent, whichever came first; and what comes is not ended for those that only stay.
#[test]
fn silent_connections_make_room_first() {
    let rig = Rig::new(|c| c.max_unconnected = 16);
    let mut greeted: Vec<_> = (0..10).map(|_| rig.greeted("192.0.2.1")).collect();
    let silent: Vec<_> = (0..12).map(|_| rig.waiting("192.0.2.1")).collect();
    assert_eq!(rig.evicted(), [10, 11, 12, 13, 14, 15]);
    // Two silent ones come while the ICReq of one that came before them is on its way: it is spared.
    drop(silent);
    greeted.extend((0..6).map(|_| rig.greeted("192.0.2.1")));
    assert_eq!(rig.evicted(), []);
    let fresh = rig.waiting("192.0.2.2");
    let flood = [rig.waiting("192.0.2.1"), rig.waiting("192.0.2.1")];
    assert_eq!(rig.evicted(), [0, 1, 2]);
    fresh.greet();
    let third = rig.waiting("192.0.2.1");
    assert_eq!(rig.evicted(), [3]);
    let fourth = rig.waiting("192.0.2.1");
    assert_eq!(rig.evicted(), [flood[0].number]);
    drop((greeted, fresh, flood, third, fourth));
    rig.assert_empty();
}

/// Where one of few has to go, an eighth of these few is spared, not of all that there may be: a host
/// does not lose its own connections to silent ones from its address.
#[test]
fn silent_connections_of_an_address_make_room_first() {
    let rig = Rig::new(|c| c.max_connections_per_address = Some(32));
    let silent: Vec<_> = (0..20).map(|_| rig.waiting("192.0.2.1")).collect();
    let host: Vec<_> = (0..17).map(|_| rig.greeted("192.0.2.1")).collect();
    assert_eq!(rig.evicted(), [0, 1, 2, 3, 4]);
    drop(silent);
    // What is there is 17. One that comes is spared, however many come from elsewhere.
    let more: Vec<_> = (0..14).map(|_| rig.greeted("192.0.2.1")).collect();
    let fresh = rig.waiting("192.0.2.1");
    let elsewhere: Vec<_> = (0..100)
        .map(|i| rig.waiting(&format!("198.51.100.{i}")))
        .collect();
    assert_eq!(rig.evicted(), []);
    let flood: Vec<_> = (0..4).map(|_| rig.waiting("192.0.2.1")).collect();
    assert_eq!(rig.evicted(), [20, 21, 22, 23]);
    let last = rig.waiting("192.0.2.1");
    assert_eq!(rig.evicted(), [fresh.number]);
    drop((host, more, fresh, elsewhere, flood, last));
    rig.assert_empty();
}

/// The same where queues have left few connections to others.
#[test]
fn silent_connections_make_room_first_near_the_limit() {
    let rig = Rig::new(|c| c.max_connections = 150);
    let queues: Vec<_> = (0..100).map(|_| rig.queue("192.0.2.9", "a")).collect();
    let silent: Vec<_> = (0..30).map(|_| rig.waiting("192.0.2.1")).collect();
    let host: Vec<_> = (0..50).map(|_| rig.greeted("192.0.2.2")).collect();
    let numbers: Vec<_> = silent.iter().map(|guest| guest.number).collect();
    assert_eq!(rig.evicted(), numbers);
    drop((queues, silent, host));
    rig.assert_empty();
}

/// As Linux does it: hosts behind one address open the connections of all their queues, ICReq
/// included, and none sends a Connect before that. Their target has room for so many.
#[test]
fn hosts_that_come_back_together_do_not_end_one_another() {
    let rig = Rig::new(|c| {
        c.max_connections = 17_000;
        c.max_unconnected = 17_000;
    });
    // The next connection of a host is opened when the ICResp of the one before has come.
    let mut guests = Vec::new();
    for _ in 0..17 {
        let opened: Vec<_> = (0..1000).map(|_| rig.waiting("192.0.2.1")).collect();
        opened.iter().for_each(Guest::greet);
        guests.extend(opened);
    }
    assert_eq!(rig.evicted(), []);
    for guest in &mut guests {
        assert!(guest.sit_down(rig.seat(&guest.number.to_string()).unwrap()));
    }
    drop(guests);
    rig.assert_empty();
    // The same with the defaults, as far as they go.
    let rig = Rig::new(|_| {});
    let guests: Vec<_> = (0..4096).map(|_| rig.greeted("192.0.2.1")).collect();
    assert_eq!(rig.evicted(), []);
    drop(guests);
    rig.assert_empty();
}

#[test]
fn where_the_system_has_nothing_left_the_older_half_goes() {
    let rig = Rig::new(|_| {});
    let queue = rig.queue("192.0.2.1", "a");
    let mut guests: Vec<_> = (0..5).map(|_| rig.waiting("192.0.2.1")).collect();
    rig.door.give_way();
    assert_eq!(rig.evicted(), [1, 2, 3]);
    guests.drain(..3);
    rig.door.give_way();
    assert_eq!(rig.evicted(), [4]);
    rig.door.give_way();
    assert_eq!(rig.evicted(), [5]);
    rig.door.give_way();
    assert_eq!(rig.evicted(), []);
    drop((guests, queue));
    rig.assert_empty();
}

#[test]
fn a_host_leaves_as_many_bytes_as_it_takes() {
    let rig = Rig::new(|c| c.queue_bytes = 6999);
    let first = [rig.queue("192.0.2.1", "a"), rig.queue("192.0.2.1", "a")];
    let third = rig.queue("192.0.2.1", "a");
    assert_eq!(
        rig.seat("a").unwrap_err(),
        Refusal::busy(Limit::QueueBytesPerHost)
    );
    // Another gets half of what is left, and at least one queue if there is room for one.
    let others = [rig.queue("192.0.2.2", "b"), rig.queue("192.0.2.2", "c")];
    assert_eq!(
        rig.seat("b").unwrap_err(),
        Refusal::busy(Limit::QueueBytesPerHost)
    );
    drop(third);
    assert_eq!(
        rig.seat("a").unwrap_err(),
        Refusal::busy(Limit::QueueBytesPerHost)
    );
    drop(others);
    drop((first, rig.queue("192.0.2.1", "a")));
    rig.assert_empty();
}

#[test]
fn discovery_takes_nothing_from_hosts() {
    let rig = Rig::new(|c| (c.max_discovery_controllers, c.max_connections_per_host) = (2, 1));
    let seats = [0, 1].map(|_| rig.door.seat_discovery(1000).unwrap());
    assert_eq!(
        rig.door.seat_discovery(1000).unwrap_err(),
        Refusal::busy(Limit::DiscoveryControllers)
    );
    let queue = rig.queue("192.0.2.1", "a");
    assert_eq!(rig.door.counts().queue_bytes, 3000);
    drop((seats, queue));
    drop(rig.door.seat_discovery(1000).unwrap());
    rig.assert_empty();
}

#[test]
fn queues_have_so_many_bytes_together() {
    let rig = Rig::new(|c| c.queue_bytes = 2999);
    let queues = [rig.queue("192.0.2.1", "a"), rig.queue("192.0.2.2", "b")];
    assert_eq!(rig.door.counts().queue_bytes, 2000);
    let refusal = rig.seat("c").unwrap_err();
    assert_eq!(refusal, Refusal::busy(Limit::QueueBytes));
    drop(queues);
    drop([rig.queue("192.0.2.1", "c"), rig.queue("192.0.2.1", "d")]);
    rig.assert_empty();
}
