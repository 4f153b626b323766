//! How associations come up and end, and what becomes of the commands that they had.

use crate::association::{Stage, hostnqn};
use crate::command::{Command, What};
use crate::facts::Namespace;
use crate::limits::Crowd;
use crate::network::{Link, SharedLink, lock};
use crate::world::{Outcome, START, Wire, World};
use crate::{note, stats, trace};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_target::Status;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
/// Time that a host lets pass before it comes back, the first time.
const RETRY: u64 = SECOND / 10;
/// How long a controller may be there that is not in use: its reset waits for disks.
const UNUSED: u64 = 120 * SECOND;
/// Between two looks at CSTS during a reset, at least.
const POLL: u64 = SECOND / 20;
/// What the target may take to notice that a time is over.
const SLACK: u64 = SECOND;
/// The default of [`TargetConfig::connect_timeout`].
const CONNECT_TIMEOUT: u64 = 10 * SECOND;
/// The default of [`TargetConfig::stall_timeout`].
const STALL_TIMEOUT: u64 = 5 * SECOND;

/// A command whose host will not get an answer.
pub struct Lost {
    /// The association, where a reset of its controller has ended the queue.
    reset_of: Option<usize>,
    link: SharedLink,
    subsystem: usize,
    command: Command,
}

impl World {
    /// A host connects.
    pub fn rise(&mut self, index: usize) {
        let now = trace::now();
        let it = &mut self.associations[index];
        it.stage = Stage::Rising;
        it.proof = now;
        it.last_arrival = now;
        it.silent = it.plan.silent;
        it.crowd = Crowd::default();
        self.open(index, 0);
    }

    /// Opens a connection for a queue.
    pub fn open(&mut self, association: usize, qid: u16) {
        let it = &mut self.associations[association];
        let plan = it.plan;
        let link = Link::new(self.links, address(it.host), plan.window, plan.harsh);
        note!("link {} for queue {} of {}", self.links, qid, association);
        self.links += 1;
        {
            let mut link = lock(&link);
            if !self.calm {
                link.up.flips = plan.flips;
                link.down.flips = plan.flips;
            }
        }
        let discovery = Nqn::discovery();
        let nqn = if plan.discovery {
            discovery.as_str()
        } else {
            &self.model.subsystems[plan.subsystem].nqn
        };
        let host = hostnqn(it.host);
        if !self.doors[plan.listener].is_open() {
            it.excuse = Some("nobody listens");
        }
        it.open(Arc::clone(&link), qid, self.plan.in_capsule, nqn, &host);
        self.doors[plan.listener].connect(&link, self.rng.fork(), plan.cut);
        self.wires.push(Wire {
            link,
            association: Some(association),
        });
        self.count_connections();
    }

    /// Whether there is a reason for the target to end an association.
    pub fn may_end(&self, association: usize) -> bool {
        let it = &self.associations[association];
        if it.excuse.is_some() {
            return true;
        }
        // A target that has said why it ends a connection waits for the host to close it.
        let closed_at = it.closed_at().unwrap_or_else(trace::now);
        let stopped = it.stage == Stage::Restarting && closed_at >= it.stopped_at + UNUSED;
        let unused = stopped && self.plan.has_hangs();
        let silent = it.kato() > 0 && closed_at >= it.proof + it.kato();
        let spoiled = it.queues.iter().any(|q| lock(&q.link).is_spoiled());
        let slow = it
            .queues
            .iter()
            .any(|q| !q.joined && closed_at >= lock(&q.link).opened_at + CONNECT_TIMEOUT);
        // Its host may not have moved a byte for so long, and others wanted the buffers.
        let stuck = self.plan.is_tight() && closed_at >= START + STALL_TIMEOUT;
        silent || unused || spoiled || slow || stuck || self.may_have_made_room(association)
    }

    /// The target has ended a connection.
    pub fn ended(&mut self, association: usize, qid: u16) -> Outcome {
        note!("association {} lost queue {}", association, qid);
        if qid > 0 && self.associations[association].stage == Stage::Restarting {
            self.drop_queue(association, qid);
            return Ok(());
        }
        if !self.may_end(association) {
            let it = &self.associations[association];
            return Err(format!(
                "the target ended queue {qid} of association {association} without a reason; last sign of life at {}, closed at {:?}",
                it.proof,
                it.closed_at()
            ));
        }
        self.give_up(association, false);
        Ok(())
    }

    /// The host lets go of an association, for now.
    pub fn give_up(&mut self, association: usize, reset: bool) {
        let it = &mut self.associations[association];
        it.tries = if it.stage == Stage::Rising {
            it.tries.min(4) + 1
        } else {
            0
        };
        let delay = (RETRY + self.rng.below(RETRY)) << it.tries;
        let at = if self.calm {
            u64::MAX
        } else {
            trace::now() + delay
        };
        let subsystem = self.associations[association].plan.subsystem;
        for lost in &mut self.lost {
            // The next one is about another controller.
            lost.reset_of = lost.reset_of.filter(|of| *of != association);
        }
        let lost = self.associations[association].tear_down(reset, at);
        for (link, command) in lost {
            self.lose(Lost {
                reset_of: None,
                link,
                subsystem,
                command,
            });
        }
    }

    fn lose(&mut self, lost: Lost) {
        if matches!(&lost.command.what, What::Io(io) if io.changes_something()) {
            self.lost.push(lost);
        } else {
            self.model.under_way.remove(&lost.command.start);
        }
    }

    /// An I/O queue has ended with its controller's reset.
    fn drop_queue(&mut self, association: usize, qid: u16) {
        let it = &mut self.associations[association];
        let subsystem = it.plan.subsystem;
        let at = it.queues.iter().position(|queue| queue.qid == qid);
        let mut queue = it.queues.remove(at.expect("it has just been heard of"));
        queue.close(false);
        for command in queue.take_commands() {
            self.lose(Lost {
                reset_of: Some(association),
                link: Arc::clone(&queue.link),
                subsystem,
                command,
            });
        }
    }

    /// A shutdown or a reset takes its time.
    pub fn look_later(&mut self, association: usize) {
        let delay = POLL + self.rng.below(POLL);
        self.associations[association].look_at = trace::now() + delay;
    }

    /// With a reset or a shutdown all I/O queues have ended.
    fn check_queues(&self, association: usize) -> Outcome {
        let mut queues = self.associations[association].queues.iter().skip(1);
        match queues.find(|q| lock(&q.link).closed_at.is_none()) {
            Some(queue) => Err(format!(
                "CSTS says it is over, and there is queue {}",
                queue.qid
            )),
            None => Ok(()),
        }
    }

    /// A shutdown is complete: what was written is on stable storage, unless the controller has
    /// failed because a disk has.
    pub fn halted(&mut self, association: usize, failed: bool) -> Outcome {
        note!(
            "association {} is shut down, failed {}",
            association,
            failed
        );
        stats::count("a shutdown", Status::SUCCESS);
        self.check_queues(association)?;
        let it = &self.associations[association];
        let start = it.restarted;
        let subsystem = &self.model.subsystems[it.plan.subsystem];
        let stayed = subsystem.namespaces.keys().filter_map(|&nsid| {
            let seen = subsystem.namespaces_since(nsid, start);
            let storage = seen[0]?.storage;
            let same = |ns: &Option<Namespace>| ns.is_some_and(|ns| ns.storage == storage);
            seen.iter().all(same).then_some(storage)
        });
        let stayed = if it.plan.discovery {
            Vec::new()
        } else {
            stayed.collect()
        };
        let disks = || self.model.storage.iter().filter_map(|of| of.disk.as_ref());
        if failed && !disks().any(|disk| disk.has_failed_at_all(start)) {
            return Err("the controller has failed for nothing".to_owned());
        }
        for storage in stayed.into_iter().filter(|_| !failed) {
            let Some(disk) = &self.model.storage[storage].disk else {
                continue;
            };
            if let Some(sector) = disk.owes(0..disk.sectors(), start) {
                return Err(format!(
                    "storage {storage}: sector {sector} is only in the cache after a shutdown of the controller"
                ));
            }
        }
        self.associations[association].disable_for_now();
        Ok(())
    }

    /// A reset is complete: nothing of the I/O queues is left, no connection, no request that might
    /// still do something, nor one for events.
    pub fn disabled(&mut self, association: usize) -> Outcome {
        note!("association {} is reset", association);
        stats::count("a reset", Status::SUCCESS);
        self.check_queues(association)?;
        let it = &self.associations[association];
        let early = |c: &&Command| c.start < it.restarted && matches!(c.what, What::Event);
        if it.queues[0].commands().any(|c| early(&c)) {
            return Err("a request for events outlives a reset".to_owned());
        }
        let qids: Vec<u16> = it.queues.iter().skip(1).map(|queue| queue.qid).collect();
        for qid in qids {
            self.drop_queue(association, qid);
        }
        let of_it = |lost: &Lost| lost.reset_of == Some(association);
        let (over, left) = std::mem::take(&mut self.lost).into_iter().partition(of_it);
        self.lost = left;
        let over: Vec<Lost> = over;
        for lost in over {
            self.forget(lost.subsystem, &lost.command);
        }
        self.associations[association].enable_again();
        Ok(())
    }

    /// A command whose outcome its host cannot know.
    pub fn forget(&mut self, subsystem: usize, command: &Command) {
        self.model.under_way.remove(&command.start);
        if let What::Io(io) = &command.what {
            self.model.settle(subsystem, io);
        }
    }

    /// With every reactor idle and no request anywhere, commands of connections that are gone have
    /// done what they could do.
    pub fn settle(&mut self) {
        if self.sim.target().stats().in_flight > 0 {
            return;
        }
        self.wires.retain(|wire| {
            let link = lock(&wire.link);
            link.closed_at.is_none() || !link.host_closed
        });
        let (gone, left) = std::mem::take(&mut self.lost)
            .into_iter()
            .partition(|lost: &Lost| lock(&lost.link).closed_at.is_some());
        self.lost = left;
        let gone: Vec<Lost> = gone;
        for lost in gone {
            self.forget(lost.subsystem, &lost.command);
        }
    }

    /// A controller whose host has been silent for the Keep Alive Timeout is gone.
    pub fn check_silence(&self) -> Outcome {
        for (index, it) in self.associations.iter().enumerate() {
            let Some(admin) = it.queues.first() else {
                continue;
            };
            // Where commands wait for buffers, they count as a sign of life.
            if it.kato() == 0 || self.plan.is_tight() || it.stage != Stage::Up {
                continue;
            }
            let open = lock(&admin.link).closed_at.is_none();
            if open && trace::now() > it.last_arrival + it.kato() + SLACK {
                return Err(format!(
                    "association {index} was silent since {}, with a Keep Alive Timeout of {} s, and is still there",
                    it.last_arrival, it.plan.kato
                ));
            }
        }
        Ok(())
    }
}

/// Where a host connects from.
fn address(host: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, host as u8).into()
}
