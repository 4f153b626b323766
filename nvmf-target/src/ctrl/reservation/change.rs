//! Changes of reservations on their way: off the reactor where they may block, to the views of all
//! controllers, to the hosts that are to know, and back to the command that asked.

use super::{Command, HostId};
use crate::chatter::error;
use crate::contain::contain;
use crate::ctrl::{Controller, NsEntry, NsShared, Subsystem, lock};
use crate::reactor::{Mailbox, Message};
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;

/// Completes a command when its last clone is dropped: when the change is made, and whoever had to
/// end something for it has done so. With Internal Error unless [`Waiter::succeed`] or
/// [`Waiter::fail`] was called.
#[derive(Clone, Debug)]
pub(crate) struct Waiter(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    /// Weak, for a waiter may be in a message to the same reactor.
    mailbox: Weak<Mailbox>,
    conn: u64,
    slot: Slot,
    status: AtomicU16,
}

impl Waiter {
    /// For the command in a slot of a connection, whose reactor has this mailbox.
    pub(crate) fn new(mailbox: &Arc<Mailbox>, conn: u64, slot: Slot) -> Self {
        Self(Arc::new(Waiting {
            mailbox: Arc::downgrade(mailbox),
            conn,
            slot,
            status: AtomicU16::new(Status::INTERNAL_ERROR.bits()),
        }))
    }

    fn end(&self, result: Result<(), Status>) {
        let status = result.err().unwrap_or(Status::SUCCESS);
        self.0.status.store(status.bits(), Ordering::Release);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.send(Message::Changed {
                conn: self.conn,
                slot: self.slot,
                status: Status::from_bits(self.status.load(Ordering::Acquire)),
            });
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread on which changes are made that may block. It is started with the first of them, and
/// ends when the target is gone and no job is left.
#[derive(Default)]
pub(crate) struct Keeper(Arc<Turns>);

#[derive(Default)]
struct Turns {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

/// What is to be done. Hosts take turns, so that one that asks for much holds up another by one job.
#[derive(Default)]
struct Jobs {
    /// Those of each host that has any, in the order of their coming; the host whose turn it is
    /// first.
    of_hosts: VecDeque<(HostId, VecDeque<Job>)>,
    /// There is a thread that takes them, or somebody who calls [`Keeper::step`].
    is_served: bool,
    over: bool,
}

impl Jobs {
    fn push(&mut self, host: HostId, job: Job) {
        let queue = self.of_hosts.iter_mut().find(|(other, _)| *other == host);
        match queue {
            Some((_, queue)) => queue.push_back(job),
            None => self.of_hosts.push_back((host, [job].into())),
        }
    }

    fn pop(&mut self) -> Option<Job> {
        let (host, mut queue) = self.of_hosts.pop_front()?;
        let job = queue.pop_front();
        if !queue.is_empty() {
            self.of_hosts.push_back((host, queue));
        }
        job
    }
}

impl Turns {
    fn work(&self) {
        loop {
            let mut jobs = lock(&self.jobs);
            let job = loop {
                match jobs.pop() {
                    Some(job) => break job,
                    None if jobs.over => return,
                    None => {
                        let woken = self.more.wait(jobs);
                        jobs = woken.unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            drop(jobs);
            if let Err(panic) = contain(job) {
                error!("keeping reservations {panic}");
            }
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        lock(&self.0.jobs).over = true;
        self.0.more.notify_one();
    }
}

impl Keeper {
    /// Runs a host's jobs in the order of their coming. A job that cannot be run is dropped.
    pub(super) fn run(&self, host: HostId, job: Job) {
        let mut jobs = lock(&self.0.jobs);
        if !jobs.is_served {
            let turns = Arc::clone(&self.0);
            let thread = thread::Builder::new().name("nvmf-reserve".to_owned());
            match thread.spawn(move || turns.work()) {
                Ok(_) => jobs.is_served = true,
                Err(err) => {
                    drop(jobs);
                    return error!("no thread for keeping reservations: {err}");
                }
            }
        }
        jobs.push(host, job);
        self.0.more.notify_one();
    }

    /// From here on jobs wait for [`Keeper::step`], and there is no thread.
    #[cfg(feature = "sim")]
    pub(crate) fn go_stepwise(&self) {
        lock(&self.0.jobs).is_served = true;
    }

    /// Does one job on the caller's thread; false if there is none.
    #[cfg(feature = "sim")]
    pub(crate) fn step(&self) -> bool {
        let job = lock(&self.0.jobs).pop();
        let found = job.is_some();
        if let Some(Err(panic)) = job.map(contain) {
            error!("keeping reservations {panic}");
        }
        found
    }
}

/// Sets PTPLS of namespaces for a host, one after the other until one fails; `waiter` completes the
/// command.
pub(crate) fn set_persistence(
    keeper: &Keeper,
    host: HostId,
    entries: Vec<Arc<NsEntry>>,
    ptpl: bool,
    waiter: Waiter,
) {
    if entries.is_empty() {
        return waiter.end(Ok(()));
    }
    let failed = Arc::new(AtomicBool::new(false));
    // A job for each: other hosts' may come between.
    for entry in entries {
        let (failed, waiter) = (Arc::clone(&failed), waiter.clone());
        let job = move || {
            if !failed.load(Ordering::Relaxed) {
                let set = entry.shared.reservations.set_ptpl(ptpl);
                failed.store(set.is_err(), Ordering::Relaxed);
                waiter.end(set);
            }
        };
        keeper.run(host, Box::new(job));
    }
}

impl Subsystem {
    /// Carries out a host's command on the reservations of a namespace; `waiter` completes it when
    /// that is done.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        keeper: &Keeper,
        entry: &NsEntry,
        host: HostId,
        command: Command,
        waiter: Waiter,
    ) {
        let (subsystem, shared) = (Arc::clone(self), Arc::clone(&entry.shared));
        let nsid = entry.nsid;
        let job = move || waiter.end(subsystem.change(&shared, nsid, host, &command, &waiter));
        if entry.shared.reservations.can_persist() {
            keeper.run(host, Box::new(job));
        } else {
            job();
        }
    }

    fn change(
        &self,
        shared: &NsShared,
        nsid: u32,
        host: HostId,
        command: &Command,
        waiter: &Waiter,
    ) -> Result<(), Status> {
        let (effects, rights_changed) = shared.reservations.execute(host, command)?;
        if rights_changed {
            // Whatever command of whatever host starts from here on is judged anew.
            self.rights_changed(nsid);
        }
        let notify: BTreeMap<_, _> = effects.notify.into_iter().collect();
        let abort: BTreeSet<_> = effects.abort.into_iter().collect();
        for controller in self.controllers() {
            if let Some(kind) = notify.get(&controller.hostid) {
                controller.reservation_notice(nsid, *kind);
            }
            if abort.contains(&controller.hostid) {
                controller.quiesce(nsid, waiter);
            }
        }
        Ok(())
    }

    /// A controller of a host, the one with the lowest CNTLID, for each host that has one.
    pub(crate) fn controllers_by_host(&self) -> BTreeMap<HostId, u16> {
        let controllers = self.controllers();
        let by_host = |c: &Arc<Controller>| (c.hostid, c.cntlid);
        controllers.iter().rev().map(by_host).collect()
    }
}
