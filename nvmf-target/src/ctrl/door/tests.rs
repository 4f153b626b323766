use super::*;

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
        assert_eq!(state.queue_bytes, 0);
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
    let rig = Rig::new(|c| (c.max_unconnected, c.max_unconnected_per_address) = (100, 2));
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
    assert_eq!(refusal, Refusal::status(Status::CONNECT_CONTROLLER_BUSY));
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

/// However slow the reactors are, only so many connections are there beyond the limit.
#[test]
fn accepting_waits_for_connections_that_are_to_end() {
    let rig = Rig::new(|c| c.max_unconnected = 4);
    let mut guests = Vec::new();
    while !rig.door.is_busy() {
        guests.push(rig.waiting("192.0.2.1"));
    }
    assert_eq!(guests.len(), 4 + ENDING_MAX);
    drop(guests.remove(0));
    assert!(!rig.door.is_busy());
    drop(guests);
    rig.assert_empty();
}

#[test]
fn where_the_system_has_nothing_left_the_older_half_goes() {
    let rig = Rig::new(|_| {});
    let queue = rig.queue("192.0.2.1", "a");
    let mut guests: Vec<_> = (0..5).map(|_| rig.waiting("192.0.2.1")).collect();
    assert_eq!(rig.door.give_way(), 3);
    assert_eq!(rig.evicted(), [1, 2, 3]);
    guests.drain(..3);
    assert_eq!(rig.door.give_way(), 1);
    assert_eq!(rig.door.give_way(), 1);
    assert_eq!(rig.door.give_way(), 0);
    assert_eq!(rig.evicted(), [4, 5]);
    drop((guests, queue));
    rig.assert_empty();
}

#[test]
fn queues_have_so_many_bytes_together() {
    let rig = Rig::new(|c| c.queue_bytes = 2999);
    let queues = [rig.queue("192.0.2.1", "a"), rig.queue("192.0.2.2", "b")];
    assert_eq!(rig.door.counts().queue_bytes, 2000);
    let refusal = rig.seat("c").unwrap_err();
    assert_eq!(refusal, Refusal::status(Status::CONNECT_CONTROLLER_BUSY));
    drop(queues);
    drop([rig.queue("192.0.2.1", "c"), rig.queue("192.0.2.1", "c")]);
    rig.assert_empty();
}
