//! The write gate of a namespace: while it is closed, nothing is written but by who closed it.
//!
//! Writers pay nothing for it: whether the gate is closed and how many requests that write are
//! under way is known to each lane for itself, and lanes belong to one thread. Closing asks every
//! reactor with a lane by a message and waits, without blocking anybody, for their answers.
//!
//! What a lane gets after it has learned that the gate is closed it parks. So a request that was
//! parked has passed its checks later than the closing began: whoever makes writes illegal first
//! and closes the gate then has seen the last of them when the gate is closed.

use super::{Mailbox, Message};
use crate::ns::Uncorrectable;
use crate::sync::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

/// What is done when the gate is closed.
type Then = Box<dyn FnOnce(Exclusive) + Send>;

/// The gate of one backend, shared by the reactors and by all namespaces that the backend is.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Blocks that a host has marked as invalid. They are here because they are shared alike.
    pub(crate) uncorrectable: Uncorrectable,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// Who wants to be next, in the order of their coming.
    waiting: BTreeMap<u64, Then>,
    lanes: Vec<Entry>,
    /// The latest, of a lane or of who wants the gate closed.
    last_id: u64,
    /// Somebody hands the closed gate out, and looks afterwards who is next.
    handing_out: bool,
}

#[derive(Default)]
enum Phase {
    #[default]
    Open,
    /// Lanes have been asked, and some still have requests that write.
    Closing(u64, Then),
    /// Somebody holds an [`Exclusive`].
    Closed,
}

/// A lane as the gate knows it.
struct Entry {
    id: u64,
    uid: u64,
    mailbox: Arc<Mailbox>,
    /// For whom it has been asked to close, and has not answered.
    asked: Option<u64>,
}

impl Entry {
    /// Tells it to close for somebody, or to open.
    fn tell(&self, closes_for: Option<u64>) {
        self.mailbox.send(Message::Gate {
            uid: self.uid,
            lane: self.id,
            closes_for,
        });
    }
}

/// Somebody's wish to have a gate closed.
#[derive(Debug)]
pub(crate) struct Wish {
    gate: Arc<Gate>,
    id: u64,
}

impl Wish {
    /// Forgets it; false if it is too late, because the gate has been closed for it. Others write
    /// again, if they have been kept from it.
    pub(crate) fn give_up(&self) -> bool {
        let then = {
            let mut state = self.gate.lock();
            state.forget(self.id)
        };
        self.gate.advance();
        then.is_some()
    }
}

impl Gate {
    /// Calls `then` when every request that writes and was submitted before is over. Nothing else
    /// is written until the [`Exclusive`] that it gets is dropped. From any thread; `then` runs on
    /// this one or on a reactor, and must not block. It may never run, if a backend does not complete
    /// a request: see [`Wish::give_up`].
    pub(crate) fn close(self: &Arc<Self>, then: impl FnOnce(Exclusive) + Send + 'static) -> Wish {
        let id = {
            let mut state = self.lock();
            let id = state.new_id();
            state.waiting.insert(id, Box::new(then));
            id
        };
        self.advance();
        let gate = Arc::clone(self);
        Wish { gate, id }
    }

    /// Tells the lanes of a namespace that they take another number of requests at a time.
    pub(crate) fn tell_depth(&self, uid: u64, depth: u32) {
        for entry in self.lock().lanes.iter().filter(|entry| entry.uid == uid) {
            entry.mailbox.send(Message::Depth {
                uid,
                lane: entry.id,
                depth,
            });
        }
    }

    /// A lane joins. Says whether the gate is closed to it.
    pub(super) fn join(self: &Arc<Self>, uid: u64, mailbox: &Arc<Mailbox>) -> (Member, bool) {
        let mut state = self.lock();
        let id = state.new_id();
        state.lanes.push(Entry {
            id,
            uid,
            mailbox: Arc::clone(mailbox),
            asked: None,
        });
        let closed = !matches!(state.phase, Phase::Open);
        let gate = Arc::clone(self);
        (Member { gate, id }, closed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with closing. Those who let go of the closed gate as soon as they have it, as those of
    /// a reactor that has ended do, come one after the other here and not one inside the other:
    /// hosts choose how many they are.
    fn advance(self: &Arc<Self>) {
        let mut state = self.lock();
        while !state.handing_out
            && let Some(then) = state.advance()
        {
            state.handing_out = true;
            drop(state);
            then(Exclusive(Arc::clone(self)));
            state = self.lock();
            state.handing_out = false;
        }
    }

    fn open(self: &Arc<Self>) {
        // Also if another one waits: what the lanes have parked goes in between.
        self.lock().open();
        self.advance();
    }
}

impl State {
    const fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn open(&mut self) {
        self.phase = Phase::Open;
        for lane in &mut self.lanes {
            lane.asked = None;
            lane.tell(None);
        }
    }

    /// Takes back whom the gate is to be closed for, if it has not been.
    fn forget(&mut self, id: u64) -> Option<Then> {
        if !matches!(self.phase, Phase::Closing(of, _) if of == id) {
            return self.waiting.remove(&id);
        }
        let phase = std::mem::take(&mut self.phase);
        self.open();
        match phase {
            Phase::Closing(_, then) => Some(then),
            Phase::Open | Phase::Closed => None,
        }
    }

    /// Begins to close an open gate for who is next; hands that one out if the gate is closed.
    fn advance(&mut self) -> Option<Then> {
        if matches!(self.phase, Phase::Open) {
            let (id, then) = self.waiting.pop_first()?;
            self.phase = Phase::Closing(id, then);
            for lane in &mut self.lanes {
                lane.asked = Some(id);
                lane.tell(Some(id));
            }
        }
        if self.lanes.iter().any(|lane| lane.asked.is_some()) {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Closing(_, then) => Some(then),
            other => {
                self.phase = other;
                None
            }
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("open", &matches!(self.phase, Phase::Open))
            .field("waiting", &self.waiting.len())
            .field("lanes", &self.lanes.len())
            .finish_non_exhaustive()
    }
}

/// The closed gate. Dropping it, on any thread, opens the gate again.
#[derive(Debug)]
pub(crate) struct Exclusive(Arc<Gate>);

impl Exclusive {
    /// Whether it is this gate that is closed.
    pub(crate) fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.0, gate)
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// A lane's membership; ends with the lane.
#[derive(Debug)]
pub(super) struct Member {
    gate: Arc<Gate>,
    id: u64,
}

impl Member {
    /// What [`Message::Gate`] calls this lane.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// The lane was asked to close for somebody, and none of its requests writes any more. An answer
    /// that comes after he has given up counts for nobody else: by then it has been told to open.
    pub(super) fn answer(&self, closes_for: u64) {
        let is_it = |lane: &&mut Entry| lane.id == self.id && lane.asked == Some(closes_for);
        if let Some(lane) = self.gate.lock().lanes.iter_mut().find(is_it) {
            lane.asked = None;
        }
        self.gate.advance();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.gate.lock().lanes.retain(|lane| lane.id != self.id);
        self.gate.advance();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn begin(gate: &Arc<Gate>) -> (Wish, Receiver<Exclusive>) {
        let (sender, receiver) = channel();
        let closing = gate.close(move |exclusive| drop(sender.send(exclusive)));
        (closing, receiver)
    }

    fn closing(gate: &Arc<Gate>) -> Receiver<Exclusive> {
        begin(gate).1
    }

    /// What the gate has told a lane: for whom it closes, or that it opens.
    fn asks(mailbox: &Mailbox) -> Vec<Option<u64>> {
        let mut messages = Vec::new();
        mailbox.take(&mut messages);
        let closes_for = |message: Message| match message {
            Message::Gate { closes_for, .. } => closes_for,
            other => panic!("{other:?}"),
        };
        messages.into_iter().map(closes_for).collect()
    }

    /// The same: closed or open.
    fn told(mailbox: &Mailbox) -> Vec<bool> {
        asks(mailbox).iter().map(Option::is_some).collect()
    }

    #[test]
    fn without_lanes_the_gate_closes_at_once_and_one_at_a_time() {
        let gate = Arc::<Gate>::default();
        let (first, second) = (closing(&gate), closing(&gate));
        let held = first.try_recv().unwrap();
        second.try_recv().unwrap_err();
        drop(held);
        drop(second.try_recv().unwrap());
        drop(closing(&gate).try_recv().unwrap());
    }

    /// A reactor that ends drops what it is sent: whoever waits for the gate gets it and lets go of it
    /// at once, one after the other, and not one inside the other.
    #[test]
    fn very_many_that_let_go_of_it_at_once_take_no_stack() {
        const MANY: usize = 100_000;
        let gate = Arc::<Gate>::default();
        let held = closing(&gate).try_recv().unwrap();
        let done = Arc::new(());
        for _ in 0..MANY {
            let done = Arc::clone(&done);
            gate.close(move |exclusive| drop((exclusive, done)));
        }
        assert_eq!(Arc::strong_count(&done), MANY + 1);
        drop(held);
        assert_eq!(Arc::strong_count(&done), 1);
        drop(closing(&gate).try_recv().unwrap());
    }

    #[test]
    fn every_lane_answers_first_and_those_that_come_later_are_closed() {
        let gate = Arc::<Gate>::default();
        let mailboxes = [(); 3].map(|()| Mailbox::new().unwrap());
        let (first, closed) = gate.join(7, &mailboxes[0]);
        assert!(!closed);
        let (second, _) = gate.join(7, &mailboxes[1]);
        let waits = closing(&gate);
        let asked = asks(&mailboxes[0])[0].unwrap();
        first.answer(asked);
        first.answer(asked);
        waits.try_recv().unwrap_err();
        let (_third, closed) = gate.join(7, &mailboxes[2]);
        assert!(closed);
        // A lane that ends has answered.
        drop(second);
        let held = waits.try_recv().unwrap();
        let next = closing(&gate);
        assert_eq!(told(&mailboxes[2]), []);
        drop(held);
        // Open, so that what was parked has its turn, and closed for the next.
        assert_eq!(told(&mailboxes[0]), [false, true]);
        assert_eq!(told(&mailboxes[1]), [true]);
        assert_eq!(told(&mailboxes[2]), [false, true]);
        next.try_recv().unwrap_err();
    }

    #[test]
    fn who_gives_up_lets_others_write_and_the_next_waits_for_answers_of_his_own() {
        let gate = Arc::<Gate>::default();
        let mailbox = Mailbox::new().unwrap();
        let (lane, _) = gate.join(7, &mailbox);
        let (first, first_waits) = begin(&gate);
        let (second, second_waits) = begin(&gate);
        let (_third, third_waits) = begin(&gate);
        assert!(second.give_up() && !second.give_up());
        assert_eq!(told(&mailbox).len(), 1);
        assert!(first.give_up());
        let asked = asks(&mailbox);
        assert_eq!(asked[0], None);
        // The answer to the first, which was on its way.
        lane.answer(first.id);
        third_waits.try_recv().unwrap_err();
        lane.answer(asked[1].unwrap());
        let held = third_waits.try_recv().unwrap();
        assert!(!first.give_up());
        drop(held);
        assert_eq!(asks(&mailbox), [None]);
        first_waits.try_recv().unwrap_err();
        second_waits.try_recv().unwrap_err();
        let (last, _waits) = begin(&gate);
        drop(lane);
        assert!(!last.give_up(), "it is too late");
    }
}

/// The gate in every order of its steps; see [`crate::loom_models`].
#[cfg(all(loom, test))]
mod loom_tests {
    use super::*;
    use crate::loom_models::{model, wait};
    use loom::cell::UnsafeCell;
    use loom::thread;
    use nvmf_proto::tcp::Slot;

    /// A reactor with one lane: it writes while the gate is open to it, until it is told to end.
    fn lane(gate: &Arc<Gate>, mailbox: Arc<Mailbox>, blocks: Arc<UnsafeCell<()>>) {
        let (member, mut closed) = gate.join(1, &mailbox);
        let mut messages = Vec::new();
        loop {
            if !closed {
                blocks.with_mut(|_| ());
            }
            wait(&mailbox.waker);
            mailbox.take(&mut messages);
            for message in messages.drain(..) {
                match message {
                    Message::Gate { closes_for, .. } => {
                        closed = closes_for.is_some();
                        if let Some(closes_for) = closes_for {
                            member.answer(closes_for);
                        }
                    }
                    Message::Quit => return,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// That nobody writes beside who has closed it is what loom sees.
    #[test]
    fn who_has_closed_it_is_alone() {
        model(|| {
            let gate = Arc::<Gate>::default();
            let blocks = Arc::new(UnsafeCell::new(()));
            let (own, other) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
            let writer = {
                let (gate, other, blocks) = (gate.clone(), other.clone(), blocks.clone());
                thread::spawn(move || lane(&gate, other, blocks))
            };
            for _ in 0..2 {
                let mailbox = Arc::clone(&own);
                gate.close(move |exclusive| {
                    mailbox.send(Message::Exclusive(0, Slot::default(), exclusive));
                });
            }
            let (mut messages, mut turns) = (Vec::new(), 0);
            while turns < 2 {
                wait(&own.waker);
                own.take(&mut messages);
                for message in messages.drain(..) {
                    turns += 1;
                    blocks.with_mut(|_| ());
                    drop(message);
                }
            }
            other.send(Message::Quit);
            writer.join().unwrap();
        });
    }

    /// So it is for who comes after somebody who has given up, whatever the lane has answered to him.
    #[test]
    fn who_comes_after_somebody_who_has_given_up_is_alone() {
        model(|| {
            let gate = Arc::<Gate>::default();
            let blocks = Arc::new(UnsafeCell::new(()));
            let (own, other) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
            let writer = {
                let (gate, other, blocks) = (gate.clone(), other.clone(), blocks.clone());
                thread::spawn(move || lane(&gate, other, blocks))
            };
            let close = || {
                let mailbox = Arc::clone(&own);
                gate.close(move |exclusive| {
                    mailbox.send(Message::Exclusive(0, Slot::default(), exclusive));
                })
            };
            let (first, _second) = (close(), close());
            let left = if first.give_up() { 1 } else { 2 };
            let (mut messages, mut turns) = (Vec::new(), 0);
            while turns < left {
                wait(&own.waker);
                own.take(&mut messages);
                for message in messages.drain(..) {
                    turns += 1;
                    blocks.with_mut(|_| ());
                    drop(message);
                }
            }
            other.send(Message::Quit);
            writer.join().unwrap();
        });
    }
}
