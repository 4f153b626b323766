//! A target, its storage, its hosts and the network between them, in one thread and in virtual
//! time.
//!
//! A step lets one of them do one thing. What is drawn from the seed is which, and how much of it;
//! so every byte stream is cut anywhere, and everything overtakes everything that it may overtake.

use crate::association::{Association, Progress, Stage, hostnqn};
use crate::command::{Command, What};
use crate::disk::Disk;
use crate::facts::{Namespace, Subsystem};
use crate::limits::Crowd;
use crate::model::{Model, Place, Storage};
use crate::network::{self, Door, Link, SharedLink, SimTransport, lock};
use crate::plan::{self, Kind, Plan};
use crate::queries::Answers;
use crate::queue::Received;
use crate::rng::Rng;
use crate::{note, stats, trace};
use nvmf_target::ns::{Inline, Namespace as Backend, NsInfo, RamDisk, Support};
use nvmf_target::sim::SimTarget;
use nvmf_target::{NamespaceConfig, Role, Status, SubsystemConfig, TargetConfig};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// When a run begins.
pub const START: u64 = 1_000_000_000;
const SECOND: u64 = 1_000_000_000;
/// Steps without effect before everything is looked at.
const LUCKLESS: usize = 16;
/// Time that a host lets pass before it comes back, the first time.
const RETRY: u64 = SECOND / 10;
/// What the target may take to notice that a time is over.
const SLACK: u64 = SECOND;
/// The default of [`TargetConfig::connect_timeout`].
const CONNECT_TIMEOUT: u64 = 10 * SECOND;
/// The default of [`TargetConfig::stall_timeout`].
const STALL_TIMEOUT: u64 = 5 * SECOND;

/// A connection that exists at one of its ends.
pub struct Wire {
    pub link: SharedLink,
    pub association: Option<usize>,
}

/// A command whose host will not get an answer.
struct Lost {
    link: SharedLink,
    subsystem: usize,
    command: Command,
}

pub struct World {
    pub rng: Rng,
    pub plan: Plan,
    pub sim: SimTarget,
    pub model: Model,
    pub doors: Vec<Door>,
    pub backends: Vec<Arc<dyn Backend>>,
    pub associations: Vec<Association>,
    pub wires: Vec<Wire>,
    /// Commands whose hosts will not get an answer, and which may still do something.
    lost: Vec<Lost>,
    /// Reactors that had something to do in their last turn, and may have more.
    busy: Vec<bool>,
    links: usize,
    /// Commands that are still to be drawn.
    pub commands_left: u64,
    /// Faults are over.
    pub calm: bool,
    pub answers: Answers,
}

pub type Outcome<T = ()> = Result<T, String>;

impl World {
    /// A target with everything attached, and hosts that have not connected yet.
    pub fn new(plan: Plan, mut rng: Rng) -> Self {
        let mut config = TargetConfig::default();
        config.reactors = plan.reactors;
        config.max_transfer = plan.max_transfer;
        config.buffer_bytes = plan.buffer_bytes;
        config.in_capsule = plan.in_capsule;
        config.maxh2cdata = plan.maxh2cdata;
        plan.limits.apply(&mut config);
        config.busy_poll = std::time::Duration::ZERO;
        let sim = SimTarget::new(config, START).expect("the plan is valid");
        let (backends, storage) = storage(&plan, &mut rng);
        let mut model = Model::new(storage, Vec::new());
        model.tight = plan.is_tight();
        model.copies = plan.mix.weights[7] > 0;
        model.max_transfer = plan.max_transfer.into();
        let mut world = Self {
            busy: vec![true; plan.reactors],
            commands_left: plan.commands,
            rng,
            sim,
            model,
            doors: Vec::new(),
            backends,
            associations: Vec::new(),
            wires: Vec::new(),
            lost: Vec::new(),
            links: 0,
            calm: false,
            answers: Answers::default(),
            plan,
        };
        world.build();
        world
    }

    fn build(&mut self) {
        let plan = self.plan.clone();
        for (index, subsystem) in plan.subsystems.iter().enumerate() {
            let nqn = format!("nqn.2026-11.org.example:sim{index}");
            self.add_subsystem(nqn.clone(), &subsystem.namespaces);
            if plan.faults.bar > 0 {
                let target = self.sim.target().clone();
                for host in 0..plan.hosts.len() {
                    target.add_host(&nqn, &hostnqn(host)).expect("it is an NQN");
                }
                target.allow_any_host(&nqn, false).expect("it is there");
            }
        }
        for listener in 0..plan.listeners {
            self.add_listener(&format!("door{listener}"));
        }
        for (index, host) in plan.hosts.iter().enumerate() {
            for association in &host.associations {
                self.associations
                    .push(Association::new(index, *association));
            }
        }
    }

    pub fn add_subsystem(&mut self, nqn: String, namespaces: &[(u32, usize, u32)]) {
        let target = self.sim.target().clone();
        target
            .add_subsystem(SubsystemConfig::new(&nqn))
            .expect("its name is new");
        self.model.subsystems.push(Subsystem::new(nqn));
        let index = self.model.subsystems.len() - 1;
        for &(nsid, storage, group) in namespaces {
            self.attach(index, nsid, storage, group);
        }
    }

    /// Attaches a storage under an NSID that is free.
    pub fn attach(&mut self, subsystem: usize, nsid: u32, storage: usize, group: u32) {
        note!("attach storage {} as {} of {}", storage, nsid, subsystem);
        let nqn = self.model.subsystems[subsystem].nqn.clone();
        let mut config = NamespaceConfig::new(nsid);
        config.anagrpid = group;
        let backend = Arc::clone(&self.backends[storage]);
        let target = self.sim.target().clone();
        // From the first moment on, so before the target can know.
        let namespace = self.shown(storage, group);
        self.model.set_namespace(subsystem, nsid, Some(namespace));
        target
            .add_namespace_with(&nqn, config, backend)
            .expect("the NSID is free");
    }

    fn shown(&self, storage: usize, group: u32) -> Namespace {
        let of = &self.model.storage[storage];
        Namespace {
            storage,
            blocks: of.blocks,
            block_size: of.block_size,
            group,
        }
    }

    pub fn add_listener(&mut self, name: &str) {
        let door = self.listen(name);
        self.doors.push(door);
    }

    pub fn listen(&self, name: &str) -> Door {
        let (transport, door) = SimTransport::new(name);
        let target = self.sim.target().clone();
        target
            .listen_on(Box::new(transport), Role::Io)
            .expect("its name is new");
        door
    }

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
            28..30 => Ok(self.answer()),
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
                    if lock(&link).down.flipped == 0 && !self.is_other_format(association) {
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

    fn place(&self, association: usize, link: &SharedLink) -> Place {
        let it = &self.associations[association];
        Place {
            host: it.host,
            subsystem: it.plan.subsystem,
            listener: it.plan.listener,
            spoiled: lock(link).up.flipped > 0,
            stopping: it.stage == Stage::Leaving || it.excuse.is_some(),
            expired: it.kato() > 0 && trace::now() >= it.proof + it.kato(),
        }
    }

    fn completed(
        &mut self,
        association: usize,
        qid: u16,
        link: &SharedLink,
        done: crate::queue::Completion,
    ) -> Outcome {
        let place = self.place(association, link);
        let admitted = self.was_admitted(association, &done.command);
        let it = &mut self.associations[association];
        let crate::queue::Completion {
            command,
            cqe,
            data,
            digest_ok,
        } = done;
        let status = cqe.status.without_more();
        // A Connect that is refused is none of the controller's business.
        let answers = !matches!(command.what, What::Connect) || status.is_success();
        // One reactor may answer while another has found that the time is over.
        let in_time = it.closed_at().is_none_or(|at| lock(link).wrote_at < at);
        if answers && in_time {
            it.proof = it.proof.max(command.at);
        }
        if !digest_ok && lock(link).down.flipped == 0 {
            return Err("a data digest of the target is wrong".to_owned());
        }
        it.note_end(&command, status)?;
        match &command.what {
            What::Io(io) => {
                stats::count(io.op.name(), status);
                if !digest_ok {
                    self.forget(place.subsystem, &command);
                    return Ok(());
                }
                return self.model.completed(place, &command, io, status, &data);
            }
            What::Query(query) => {
                if digest_ok {
                    return self.answered(association, place, (&command, query), &cqe, &data);
                }
            }
            What::KeepAlive | What::Abort { .. } if !status.is_success() => {
                let limit = status.same_code(Status::ABORT_LIMIT_EXCEEDED);
                let crowded = matches!(command.what, What::Abort { crowded: true, .. });
                let excused = place.spoiled || place.stopping || (limit && crowded);
                if !excused {
                    return Err(format!("{} ended with {status}", command.what.name()));
                }
            }
            // NVMe Base 2.1, Abort command: bit 0 of dword 0 is clear if the command was aborted.
            What::Abort { victim, .. } if cqe.result & 1 == 0 => it.aborted(*victim)?,
            What::KeepAlive | What::Abort { .. } => {}
            What::Event => {
                if status.is_success() {
                    if it.stage != Stage::Leaving {
                        it.await_event();
                    }
                } else if !command.unwanted && !place.stopping {
                    return Err(format!("a request for events ended with {status}"));
                }
            }
            What::Disable | What::Shutdown | What::Disconnect => {
                if !status.is_success() {
                    return Err(format!("{} ended with {status}", command.what.name()));
                }
                self.give_up(association, false);
            }
            What::Connect if status.is_success() && !admitted => {
                return Err("a host was admitted that is barred".to_owned());
            }
            what => match it.rise(qid, what, &cqe) {
                Progress::Fine => {
                    self.check_cntlid(association)?;
                    self.check_limits()?;
                }
                Progress::OpenQueue(qid) => self.open(association, qid),
                Progress::Refused => {
                    let excused = place.spoiled
                        || self.may_end(association)
                        || (status.same_code(Status::CONNECT_CONTROLLER_BUSY)
                            && self.has_many_queues(association))
                        || self.was_refused(association, &command);
                    if !excused {
                        return Err(format!("{} ended with {status}", what.name()));
                    }
                    self.give_up(association, false);
                }
            },
        }
        Ok(())
    }

    /// Whether a command of an association may have met a namespace of another format. A Read gets
    /// less data then than its host has made room for.
    fn is_other_format(&self, association: usize) -> bool {
        let it = &self.associations[association];
        let subsystem = &self.model.subsystems[it.plan.subsystem];
        let commands = it.queues.iter().flat_map(|queue| queue.commands());
        commands.into_iter().any(|command| match &command.what {
            What::Io(io) => subsystem
                .namespaces_since(io.nsid, command.start)
                .iter()
                .flatten()
                .any(|ns| ns.block_size != io.block_size),
            _ => false,
        })
    }

    /// No other controller of the subsystem that is there has the same CNTLID.
    fn check_cntlid(&self, association: usize) -> Outcome {
        let is_open = |it: &&Association| {
            let admin = it.queues.first();
            admin.is_some_and(|admin| lock(&admin.link).closed_at.is_none())
        };
        let it = &self.associations[association];
        let same = |other: &&Association| {
            other.cntlid == it.cntlid && other.plan.subsystem == it.plan.subsystem
        };
        let mut count = self.associations.iter().filter(is_open).filter(same);
        if it.cntlid.is_some() && count.nth(1).is_some() {
            return Err(format!("CNTLID {:?} is given out twice", it.cntlid));
        }
        Ok(())
    }

    /// Whether a host may have been admitted since it sent a command.
    fn was_admitted(&self, association: usize, command: &Command) -> bool {
        let it = &self.associations[association];
        self.model.subsystems[it.plan.subsystem].was_barred(it.host, command.start, false)
    }

    /// Whether it may have been refused.
    fn was_refused(&self, association: usize, command: &Command) -> bool {
        let it = &self.associations[association];
        self.model.subsystems[it.plan.subsystem].was_barred(it.host, command.start, true)
    }

    /// Whether there is a reason for the target to end an association.
    fn may_end(&self, association: usize) -> bool {
        let it = &self.associations[association];
        if it.excuse.is_some() {
            return true;
        }
        // A target that has said why it ends a connection waits for the host to close it.
        let closed_at = it.closed_at().unwrap_or_else(trace::now);
        let silent = it.kato() > 0 && closed_at >= it.proof + it.kato();
        let spoiled = it.queues.iter().any(|q| lock(&q.link).is_spoiled());
        let slow = it
            .queues
            .iter()
            .any(|q| !q.joined && closed_at >= lock(&q.link).opened_at + CONNECT_TIMEOUT);
        // Its host may not have moved a byte for so long, and others wanted the buffers.
        let stuck = self.plan.is_tight() && closed_at >= START + STALL_TIMEOUT;
        silent || spoiled || slow || stuck || self.may_have_made_room(association)
    }

    /// The target has ended a connection.
    fn ended(&mut self, association: usize, qid: u16) -> Outcome {
        note!("association {} lost queue {}", association, qid);
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
        let lost = self.associations[association].tear_down(reset, at);
        for (link, command) in lost {
            if matches!(&command.what, What::Io(io) if io.changes_something()) {
                self.lost.push(Lost {
                    link,
                    subsystem,
                    command,
                });
            } else {
                self.model.under_way.remove(&command.start);
            }
        }
    }

    /// A command whose outcome its host cannot know.
    fn forget(&mut self, subsystem: usize, command: &Command) {
        self.model.under_way.remove(&command.start);
        if let What::Io(io) = &command.what {
            self.model.settle(subsystem, io);
        }
    }

    /// With every reactor idle and no request anywhere, commands of connections that are gone have
    /// done what they could do.
    fn settle(&mut self) {
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
    fn check_silence(&self) -> Outcome {
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

    fn drive(&mut self) -> Outcome<bool> {
        let index = self.rng.index(self.associations.len());
        self.drive_one(index)
    }

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

    /// An association comes up, or shows that its host lives.
    fn drive_one(&mut self, index: usize) -> Outcome<bool> {
        let now = trace::now();
        let it = &mut self.associations[index];
        match it.stage {
            Stage::Down(at) if at <= now && !self.calm => {
                self.rise(index);
                Ok(true)
            }
            _ if it.keep_alive_due().is_some_and(|at| at <= now) => {
                it.keep_alive();
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Opens a connection for a queue.
    fn open(&mut self, association: usize, qid: u16) {
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
        let nqn = &self.model.subsystems[plan.subsystem].nqn;
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

/// Where a host connects from.
fn address(host: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, host as u8).into()
}

/// The devices of a plan.
fn storage(plan: &Plan, rng: &mut Rng) -> (Vec<Arc<dyn Backend>>, Vec<Storage>) {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    let mut all = Vec::new();
    for (index, storage) in plan.storage.iter().enumerate() {
        let bytes = storage.blocks * u64::from(storage.block_size);
        let disk = match &storage.kind {
            Kind::Ram => {
                let disk = RamDisk::new(bytes, storage.block_size).expect("a RAM disk");
                backends.push(Arc::new(Inline::new(disk)));
                None
            }
            Kind::Simulated(simulated) => {
                let info = info(storage, simulated);
                let disk = Disk::new(index, info, bytes, simulated.manners, rng.fork());
                backends.push(Arc::new(disk.clone()));
                Some(disk)
            }
        };
        all.push(Storage::new(
            disk,
            storage.block_size.into(),
            storage.blocks,
        ));
    }
    (backends, all)
}

fn info(storage: &plan::Storage, simulated: &plan::Simulated) -> NsInfo {
    let mut info = NsInfo::new(storage.block_size, storage.blocks);
    info.depth = simulated.depth;
    let choose = |bit: u64| {
        if simulated.native & bit != 0 {
            Support::Native
        } else {
            Support::Emulate
        }
    };
    if simulated.volatile {
        info = info.with_volatile_cache();
    }
    info.caps.fua = choose(plan::Simulated::FUA);
    info.caps.write_zeroes = choose(plan::Simulated::WRITE_ZEROES);
    info.caps.compare = choose(plan::Simulated::COMPARE);
    info.caps.compare_and_write = choose(plan::Simulated::COMPARE_AND_WRITE);
    info.caps.verify = choose(plan::Simulated::VERIFY);
    info.caps.deallocate = if simulated.native & plan::Simulated::DEALLOCATE != 0 {
        Support::Native
    } else {
        Support::None
    };
    info
}
