//! Two hosts and one reservation, from the first registration to its end.

use crate::guests::{Outcome, doing};
use crate::random::Random;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, RegisterAction, RegisterCommand,
    RegisterData, ReleaseAction, ReleaseCommand, ReleaseData, ReservationType,
};
use nvmf_host::{IoQueue, Namespace};

fn expect(what: &str, status: Status, expected: Status) -> Outcome {
    if status.same_code(expected) {
        return Ok(());
    }
    Err(format!("{what}: {status} where {expected} is due"))
}

fn register(
    queue: &mut IoQueue,
    nsid: u32,
    action: RegisterAction,
    nrkey: u64,
    cptpl: ChangePtpl,
) -> Outcome {
    let command = RegisterCommand {
        action,
        iekey: true,
        cptpl,
    };
    let data = RegisterData { crkey: 0, nrkey };
    let done = queue.reservation_register(nsid, &command, &data);
    expect(
        "Register",
        done.map_err(doing("Register"))?,
        Status::SUCCESS,
    )
}

/// Ends all registrations and the reservation.
fn clear(queue: &mut IoQueue, nsid: u32, crkey: u64) -> Outcome {
    let command = ReleaseCommand {
        action: ReleaseAction::CLEAR,
        iekey: false,
        rtype: ReservationType::NONE,
    };
    let done = queue.reservation_release(nsid, &command, &ReleaseData { crkey });
    expect("Clear", done.map_err(doing("Clear"))?, Status::SUCCESS)
}

/// Writes and reads a block, which have to end as said.
fn io(who: &str, queue: &mut IoQueue, namespace: &Namespace, expected: [Status; 2]) -> Outcome {
    let mut block = vec![0x5a; namespace.block_size as usize];
    let status = |done: Result<(), nvmf_host::Error>| match done {
        Ok(()) => Ok(Status::SUCCESS),
        Err(err) => err.status().ok_or_else(|| format!("I/O: {err}")),
    };
    let written = status(queue.write(namespace, 0, &block))?;
    expect(&format!("Write of {who}"), written, expected[0])?;
    let read = status(queue.read(namespace, 0, &mut block))?;
    expect(&format!("Read of {who}"), read, expected[1])
}

/// What a host sees that may do everything.
const ALL: [Status; 2] = [Status::SUCCESS; 2];

/// A quarrel: who has which key, and what it is about.
struct Quarrel {
    nsid: u32,
    keys: [u64; 2],
    holder: usize,
    other: usize,
    rtype: ReservationType,
    cptpl: ChangePtpl,
}

/// One reservation; `holder` gets it first.
pub(crate) fn round(
    queues: &mut [IoQueue; 2],
    holder: usize,
    namespace: &Namespace,
    random: &mut Random,
) -> Outcome {
    let quarrel = Quarrel {
        nsid: namespace.nsid,
        keys: [random.next() | 1, random.next() | 1],
        holder,
        other: 1 - holder,
        rtype: [
            ReservationType::WRITE_EXCLUSIVE,
            ReservationType::EXCLUSIVE_ACCESS,
        ][random.index(2)],
        cptpl: [ChangePtpl::SET, ChangePtpl::CLEAR][random.index(2)],
    };
    quarrel.begin(queues)?;
    quarrel.exclude(queues, namespace)?;
    quarrel.end(queues, namespace, random.percent(50))?;
    io("anyone", &mut queues[0], namespace, ALL)?;
    io("anyone", &mut queues[1], namespace, ALL)
}

impl Quarrel {
    /// Both are registered, and nobody has anything.
    fn begin(&self, queues: &mut [IoQueue; 2]) -> Outcome {
        // What a round that a restart has ended left, goes first.
        for (queue, key) in queues.iter_mut().zip(self.keys) {
            register(queue, self.nsid, RegisterAction::REPLACE, key, self.cptpl)?;
        }
        clear(&mut queues[self.other], self.nsid, self.keys[self.other])?;
        for (queue, key) in queues.iter_mut().zip(self.keys) {
            register(queue, self.nsid, RegisterAction::REGISTER, key, self.cptpl)?;
        }
        Ok(())
    }

    fn acquire(
        &self,
        queues: &mut [IoQueue; 2],
        who: usize,
        action: AcquireAction,
    ) -> Result<Status, String> {
        let command = AcquireCommand {
            action,
            iekey: false,
            rtype: self.rtype,
        };
        let data = AcquireData {
            crkey: self.keys[who],
            prkey: if action == AcquireAction::ACQUIRE {
                0
            } else {
                self.keys[1 - who]
            },
        };
        let done = queues[who].reservation_acquire(self.nsid, &command, &data);
        done.map_err(doing("Acquire"))
    }

    /// What a host sees that does not hold the reservation.
    const fn excluded(&self) -> [Status; 2] {
        let read = if self.rtype.excludes_reads() {
            Status::RESERVATION_CONFLICT
        } else {
            Status::SUCCESS
        };
        [Status::RESERVATION_CONFLICT, read]
    }

    /// The holder gets the reservation and the other one does not.
    fn exclude(&self, queues: &mut [IoQueue; 2], namespace: &Namespace) -> Outcome {
        let acquired = self.acquire(queues, self.holder, AcquireAction::ACQUIRE)?;
        expect("Acquire", acquired, Status::SUCCESS)?;
        let refused = self.acquire(queues, self.other, AcquireAction::ACQUIRE)?;
        expect(
            "Acquire of what is held",
            refused,
            Status::RESERVATION_CONFLICT,
        )?;
        io("the holder", &mut queues[self.holder], namespace, ALL)?;
        io(
            "the other",
            &mut queues[self.other],
            namespace,
            self.excluded(),
        )?;
        let report = queues[self.other].reservation_report(self.nsid, 4);
        let report = report.map_err(doing("Report"))?;
        if report.registrants.len() != 2 || report.status.rtype != self.rtype {
            return Err(format!("two are registered, not {report:?}"));
        }
        Ok(())
    }

    /// The holder lets go, or is preempted.
    fn end(&self, queues: &mut [IoQueue; 2], namespace: &Namespace, preempt: bool) -> Outcome {
        let mut last = self.holder;
        if preempt {
            last = self.other;
            let preempted = self.acquire(queues, last, AcquireAction::PREEMPT)?;
            expect("Preempt", preempted, Status::SUCCESS)?;
            let holder = &mut queues[self.holder];
            io("the preempted", holder, namespace, self.excluded())?;
        }
        clear(&mut queues[last], self.nsid, self.keys[last])
    }
}
