//! Who does what next. A step lets one of them do one thing. What is drawn from the seed is which,
//! and how much of it; so every byte stream is cut anywhere, and everything overtakes everything
//! that it may overtake. When nobody can do anything, time goes on.

use crate::association::Stage;
use crate::network::{self, Door, lock};
use crate::queue::Received;
use crate::world::{Outcome, World};
use crate::{note, trace};
use std::sync::Arc;

/// Steps without effect before everything is looked at.
const LUCKLESS: usize = 16;

impl World {
    /// Moves the time on.
    fn pass(&mut self, nanos: u64) {
        let now = trace::now() + nanos;
        trace::set_now(now);
        self.sim.set_time(now);
    }

    /// One of them does one thing; false if it had nothing to do.
    pub fn step(&mut self) -> Outcome<bool> {
        let nanos = 1 + self.rng.below(self.plan.tempo);
        self.pass(nanos);
        match self.rng.below(32) {
            0..8 => Ok(self.turn()),
            8 => Ok(self.accept()),
            9..13 => Ok(self.deliver(true)),
            13..17 => Ok(self.deliver(false)),
            17..21 => self.receive(),
            21..25 => Ok(self.send()),
            25..28 => Ok(self.submit()),
            28 => Ok(self.answer()),
            29 => Ok(self.sim.keep() || self.answer()),
            30 => self.drive(),
            _ => self.fault(),
        }
    }

    /// Steps until `done`, at most for so long; false if that was not enough.
    pub fn run(&mut self, nanos: u64, mut done: impl FnMut(&mut Self) -> bool) -> Outcome<bool> {
        let end = trace::now() + nanos;
        let mut luckless = 0;
        while trace::now() < end {
            luckless = if self.step()? { 0 } else { luckless + 1 };
            if luckless > LUCKLESS {
                luckless = 0;
                if !self.sweep()? {
                    self.settle();
                    self.check_silence()?;
                    if done(self) {
                        return Ok(true);
                    }
                    if !self.skip(end) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Bad luck is no proof that there is nothing to do: everything is tried once.
    fn sweep(&mut self) -> Outcome<bool> {
        let mut any = false;
        for reactor in 0..self.busy.len() {
            any |= self.turn_of(reactor);
        }
        any |= self.accept();
        for index in 0..self.wires.len() {
            any |= self.deliver_on(index, true, usize::MAX);
            any |= self.deliver_on(index, false, usize::MAX);
        }
        for association in 0..self.associations.len() {
            any |= self.drive_one(association)?;
            for queue in 0..self.associations[association].queues.len() {
                any |= self.send_on(association, queue, usize::MAX);
            }
            let mut queue = 0;
            while queue < self.associations[association].queues.len() {
                any |= self.receive_on(association, queue)?;
                queue += 1;
            }
        }
        any |= self.sim.keep();
        any |= self.answer();
        any |= self.submit();
        Ok(any)
    }

    /// Nothing moves: on to the next moment when something may; false if there is none.
    fn skip(&mut self, end: u64) -> bool {
        let now = trace::now();
        let due = self.sim.next_deadline();
        let mut next = due.map_or_else(|| end.max(now), |at| at.max(now + 1));
        let mut wait = |at: u64| {
            if at > now {
                next = next.min(at);
            }
        };
        for wire in &self.wires {
            let link = lock(&wire.link);
            wait(link.up.held_until);
            wait(link.down.held_until);
        }
        for association in &self.associations {
            if let Stage::Down(at) = association.stage {
                wait(at);
            }
            if association.stage == Stage::Restarting {
                wait(association.look_at);
            }
            association.keep_alive_due().into_iter().for_each(&mut wait);
            for queue in &association.queues {
                wait(queue.deaf_until);
                wait(queue.mute_until);
            }
        }
        note!("nothing moves until {}", next);
        self.pass(next - now);
        next < end
    }

    fn turn(&mut self) -> bool {
        let reactor = self.rng.index(self.busy.len());
        self.turn_of(reactor)
    }

    /// A turn of a reactor, unless its thread would sleep: a wake-up that the target forgets is not
    /// made good for.
    fn turn_of(&mut self, reactor: usize) -> bool {
        let idle = !self.busy[reactor] && !network::has_ready(reactor);
        if idle && self.sim.would_sleep(reactor) {
            return false;
        }
        network::begin_turn(reactor);
        self.busy[reactor] = self.sim.turn(reactor);
        self.busy[reactor]
    }

    fn accept(&mut self) -> bool {
        self.doors.iter().any(Door::is_waiting) && self.sim.accept()
    }

    fn deliver(&mut self, up: bool) -> bool {
        if self.wires.is_empty() {
            return false;
        }
        let index = self.rng.index(self.wires.len());
        let most = self.rng.amount(16 << 10);
        self.deliver_on(index, up, most)
    }

    fn deliver_on(&mut self, index: usize, up: bool, most: usize) -> bool {
        let wire = &self.wires[index];
        let mut link = lock(&wire.link);
        let pipe = if up { &link.up } else { &link.down };
        let gone = if up {
            link.closed_at.is_some()
        } else {
            link.host_closed
        };
        if gone || !pipe.is_moving() || pipe.held_until > trace::now() {
            return false;
        }
        let n = if up {
            link.deliver_up(most, &mut self.rng)
        } else {
            link.deliver_down(most, &mut self.rng)
        };
        note!("link {} delivers {} up {}", link.id, n, up);
        drop(link);
        if up && let Some(association) = wire.association.filter(|_| n > 0) {
            self.associations[association].last_arrival = trace::now();
        }
        true
    }

    fn any_queue(&mut self) -> Option<(usize, usize)> {
        let association = self.rng.index(self.associations.len());
        let queues = self.associations[association].queues.len();
        (queues > 0).then(|| (association, self.rng.index(queues)))
    }

    fn send(&mut self) -> bool {
        let Some((association, queue)) = self.any_queue() else {
            return false;
        };
        let most = self.rng.amount(32 << 10);
        self.send_on(association, queue, most)
    }

    fn send_on(&mut self, association: usize, queue: usize, most: usize) -> bool {
        let queue = &mut self.associations[association].queues[queue];
        queue.mute_until <= trace::now() && queue.wants_to_send() && queue.send(most) > 0
    }

    fn receive(&mut self) -> Outcome<bool> {
        match self.any_queue() {
            Some((association, queue)) => self.receive_on(association, queue),
            None => Ok(false),
        }
    }

    fn receive_on(&mut self, association: usize, index: usize) -> Outcome<bool> {
        let queue = &mut self.associations[association].queues[index];
        if queue.deaf_until > trace::now() || !queue.has_input() {
            return Ok(false);
        }
        let qid = queue.qid;
        let link = Arc::clone(&queue.link);
        let events = queue.receive();
        // The target may write on.
        for event in events {
            match event {
                Received::Completed(done) => self.completed(association, qid, &link, *done)?,
                Received::Violation(violation) => {
                    if lock(&link).down.flipped == 0 {
                        return Err(format!("the target broke NVMe/TCP: {violation}"));
                    }
                    self.give_up(association, true);
                }
                Received::Terminated(why) => {
                    if !lock(&link).is_spoiled() {
                        return Err(format!("the target says: {why}"));
                    }
                }
                Received::Ended => self.ended(association, qid)?,
            }
            // An association that was given up has no more queues.
            let queues = &self.associations[association].queues;
            if !queues.iter().any(|q| Arc::ptr_eq(&q.link, &link)) {
                break;
            }
        }
        Ok(true)
    }

    fn drive(&mut self) -> Outcome<bool> {
        let index = self.rng.index(self.associations.len());
        self.drive_one(index)
    }

    /// An association comes up, or shows that its host lives.
    fn drive_one(&mut self, index: usize) -> Outcome<bool> {
        let now = trace::now();
        let it = &mut self.associations[index];
        match it.stage {
            Stage::Down(at) if at <= now && !self.calm => {
                self.rise(index);
                Ok(true)
            }
            Stage::Restarting if it.look_at <= now && it.queues[0].has_room() => {
                it.look();
                Ok(true)
            }
            _ if it.keep_alive_due().is_some_and(|at| at <= now) => {
                it.keep_alive();
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A simulated disk answers a request.
    fn answer(&mut self) -> bool {
        let index = self.rng.index(self.model.storage.len());
        let count = self.model.storage.len();
        for storage in (0..count).map(|i| (index + i) % count) {
            if let Some(disk) = &self.model.storage[storage].disk
                && disk.answer_one()
            {
                return true;
            }
        }
        false
    }
}
