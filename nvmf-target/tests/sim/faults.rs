//! What goes wrong, and what management does meanwhile.

use crate::association::{Stage, hostnqn};
use crate::command::What;
use crate::facts::History;
use crate::network::lock;
use crate::note;
use crate::trace;
use crate::world::{Outcome, World};
use nvmf_target::AnaState;

const MILLISECOND: u64 = 1_000_000;

impl World {
    /// Perhaps something goes wrong; false if not.
    pub fn fault(&mut self) -> Outcome<bool> {
        if self.calm {
            return Ok(false);
        }
        let faults = self.plan.faults;
        // A step in 32 is one of these.
        let strikes = |world: &mut Self, odds: u64| world.rng.once_in(odds.div_ceil(32));
        let mut any = false;
        if strikes(self, faults.reset) {
            any |= self.drop_association();
        }
        if strikes(self, faults.half_close) {
            any |= self.half_close();
        }
        if strikes(self, faults.stall) {
            any |= self.stall();
        }
        if strikes(self, faults.deaf) {
            any |= self.freeze(true);
        }
        if strikes(self, faults.mute) {
            any |= self.freeze(false);
        }
        if strikes(self, faults.resize) {
            any |= self.resize();
        }
        if strikes(self, faults.remove) {
            any |= self.remove_or_attach();
        }
        if strikes(self, faults.ana) {
            any |= self.set_ana();
        }
        if strikes(self, faults.abort) {
            any |= self.abort();
        }
        if strikes(self, faults.leave) {
            any |= self.leave();
        }
        if strikes(self, faults.bar) {
            any |= self.bar();
        }
        if strikes(self, faults.listener) {
            any |= self.move_listener();
        }
        if self.plan.has_discovery() && strikes(self, faults.subsystem) {
            any |= self.toggle_subsystem();
        }
        Ok(any)
    }

    /// How long something lasts.
    fn spell(&mut self) -> u64 {
        let most = self.rng.pick(&[1, 100, 3000, 20_000]);
        MILLISECOND * self.rng.range(1, most)
    }

    fn any_association(&mut self) -> Option<usize> {
        let index = self.rng.index(self.associations.len());
        let there = !self.associations[index].queues.is_empty();
        there.then_some(index)
    }

    /// A host lets its connections drop, with or without a reset.
    fn drop_association(&mut self) -> bool {
        let Some(index) = self.any_association() else {
            return false;
        };
        let reset = self.rng.once_in(2);
        note!("association {} is dropped", index);
        self.give_up(index, reset);
        true
    }

    /// A host says that it writes no more on a connection, but goes on reading.
    fn half_close(&mut self) -> bool {
        let Some(index) = self.any_association() else {
            return false;
        };
        let it = &mut self.associations[index];
        it.excuse = Some("its host has closed its half");
        let queue = self.rng.index(it.queues.len());
        note!("association {} half-closes queue {}", index, queue);
        it.queues[queue].mute_until = u64::MAX;
        lock(&it.queues[queue].link).host_half_close();
        true
    }

    /// One direction of a connection stands still.
    fn stall(&mut self) -> bool {
        if self.wires.is_empty() {
            return false;
        }
        let spell = self.spell();
        let wire = self.rng.index(self.wires.len());
        let up = self.rng.once_in(2);
        let mut link = lock(&self.wires[wire].link);
        note!("link {} stands still, up {}, for {}", link.id, up, spell);
        let pipe = if up { &mut link.up } else { &mut link.down };
        pipe.held_until = trace::now() + spell;
        true
    }

    /// A host stops to read or to write.
    fn freeze(&mut self, reading: bool) -> bool {
        let Some(index) = self.any_association() else {
            return false;
        };
        let spell = self.spell();
        let queues = self.associations[index].queues.len();
        let queue = self.rng.index(queues);
        let queue = &mut self.associations[index].queues[queue];
        note!(
            "queue {} freezes, reading {}, for {}",
            queue.id,
            reading,
            spell
        );
        let until = trace::now() + spell;
        if reading {
            queue.deaf_until = queue.deaf_until.max(until);
        } else {
            queue.mute_until = queue.mute_until.max(until);
        }
        true
    }

    /// A simulated disk gets another size.
    fn resize(&mut self) -> bool {
        let index = self.rng.index(self.model.storage.len());
        let storage = &mut self.model.storage[index];
        let Some(disk) = storage.disk.clone() else {
            return false;
        };
        let most = disk.sectors() * 512 / storage.block_size;
        // Requests that the disk has were checked against the size that it had.
        let blocks = self.rng.range(1, most);
        note!("storage {} has {} blocks now", index, blocks);
        storage.blocks = blocks;
        for subsystem in 0..self.model.subsystems.len() {
            let of = &self.model.subsystems[subsystem];
            let shown: Vec<_> = of
                .namespaces
                .iter()
                .filter_map(|(nsid, h)| h.now().map(|ns| (*nsid, ns)))
                .filter(|(_, ns)| ns.storage == index)
                .collect();
            for (nsid, mut namespace) in shown {
                namespace.blocks = blocks;
                self.model.set_namespace(subsystem, nsid, Some(namespace));
            }
        }
        disk.resize(blocks);
        true
    }

    /// A namespace goes, or something comes where there is none.
    fn remove_or_attach(&mut self) -> bool {
        let subsystem = self.rng.index(self.model.subsystems.len());
        let of = &self.model.subsystems[subsystem];
        let nsids: Vec<u32> = of.namespaces.keys().copied().collect();
        if nsids.is_empty() {
            return false;
        }
        let nsid = self.rng.pick(&nsids);
        if of.namespace(nsid).is_some() {
            note!("namespace {} of {} goes", nsid, subsystem);
            let nqn = of.nqn.clone();
            let target = self.sim.target().clone();
            self.model.set_namespace(subsystem, nsid, None);
            target
                .remove_namespace(&nqn, nsid)
                .expect("it was attached");
        } else {
            let storage = self.rng.index(self.model.storage.len());
            let group = self.rng.range(1, 3) as u32;
            self.attach(subsystem, nsid, storage, group);
        }
        true
    }

    fn set_ana(&mut self) -> bool {
        let subsystem = self.rng.index(self.model.subsystems.len());
        let listener = self.rng.index(self.plan.listeners);
        let group = self.rng.range(1, 3) as u32;
        let state = self.rng.pick(&[
            AnaState::Optimized,
            AnaState::Optimized,
            AnaState::NonOptimized,
            AnaState::Inaccessible,
            AnaState::PersistentLoss,
            AnaState::Change,
        ]);
        if !self.doors[listener].is_open() {
            return false;
        }
        let nqn = self.model.subsystems[subsystem].nqn.clone();
        let target = self.sim.target().clone();
        self.model.set_ana(subsystem, listener, group, state);
        target
            .set_ana_state(&nqn, &format!("door{listener}"), group, state)
            .expect("all of them are there");
        true
    }

    /// A host loses or gets back its right to use a subsystem.
    fn bar(&mut self) -> bool {
        let subsystem = self.rng.index(self.plan.subsystems.len());
        let host = self.rng.index(self.plan.hosts.len());
        let of = &mut self.model.subsystems[subsystem];
        let barred = !of.is_barred(host);
        note!("host {} of {} is barred {}", host, subsystem, barred);
        let nqn = of.nqn.clone();
        let history = of.barred.entry(host).or_insert_with(|| History::new(false));
        history.set(trace::stamp(), barred);
        let target = self.sim.target().clone();
        let changed = if barred {
            target.remove_host(&nqn, &hostnqn(host))
        } else {
            target.add_host(&nqn, &hostnqn(host))
        };
        changed.expect("both of them are there");
        self.topology_changed();
        for it in &mut self.associations {
            let of_it = it.plan.subsystem == subsystem && !it.plan.discovery;
            if barred && it.host == host && of_it && !it.queues.is_empty() {
                it.excuse = Some("its host was barred");
            }
        }
        true
    }

    /// A listener goes, or comes back.
    fn move_listener(&mut self) -> bool {
        let listener = self.rng.index(self.plan.listeners);
        let name = format!("door{listener}");
        if !self.doors[listener].is_open() {
            note!("listener {} comes back", listener);
            let door = self.listen(&name);
            self.doors[listener] = door;
            self.topology_changed();
            return true;
        }
        note!("listener {} goes", listener);
        let target = self.sim.target().clone();
        target.remove_listener(&name).expect("it is there");
        self.topology_changed();
        let stamp = trace::stamp();
        for subsystem in &mut self.model.subsystems {
            for (_, history) in subsystem.ana.range_mut((listener, 0)..(listener + 1, 0)) {
                history.set(stamp, AnaState::Optimized);
            }
        }
        for it in &mut self.associations {
            if it.plan.listener == listener && !it.queues.is_empty() {
                it.excuse = Some("its listener was removed");
            }
        }
        true
    }

    /// A host wants one of its commands aborted.
    fn abort(&mut self) -> bool {
        let Some(index) = self.any_association() else {
            return false;
        };
        let it = &mut self.associations[index];
        if it.stage != Stage::Up || it.silent || !it.queues[0].has_room() {
            return false;
        }
        let queue = self.rng.index(it.queues.len());
        let queue = &mut it.queues[queue];
        let victims: Vec<_> = queue
            .commands()
            .filter(|c| !matches!(c.what, What::Abort { .. } | What::KeepAlive))
            .map(|c| (c.cid, c.start))
            .collect();
        if victims.is_empty() {
            return false;
        }
        let (cid, victim) = victims[self.rng.index(victims.len())];
        for command in queue.commands_mut().filter(|c| c.start == victim) {
            command.unwanted = true;
        }
        let qid = queue.qid;
        it.abort(qid, cid, victim);
        true
    }

    /// A host ends its association in one of the ways that the specification has, or resets its
    /// controller and enables it again.
    fn leave(&mut self) -> bool {
        let Some(index) = self.any_association() else {
            return false;
        };
        let it = &mut self.associations[index];
        if it.stage != Stage::Up || it.silent {
            return false;
        }
        match self.rng.below(5) {
            3.. if it.queues[0].has_room() => it.restart(self.rng.once_in(3)),
            0 if it.queues[0].has_room() => it.disable(),
            1 if it.queues[0].has_room() => it.shut_down(),
            _ if it.plan.discovery => return false,
            _ => {
                let queue = 1 + self.rng.index(it.queues.len() - 1);
                if !it.queues[queue].has_room() {
                    return false;
                }
                it.disconnect(queue);
            }
        }
        true
    }
}
