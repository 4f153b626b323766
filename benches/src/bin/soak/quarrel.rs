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

fn acquire(
    queue: &mut IoQueue,
    nsid: u32,
    action: AcquireAction,
    rtype: ReservationType,
    (crkey, prkey): (u64, u64),
) -> Result<Status, String> {
    let command = AcquireCommand {
        action,
        iekey: false,
        rtype,
    };
    let done = queue.reservation_acquire(nsid, &command, &AcquireData { crkey, prkey });
    done.map_err(doing("Acquire"))
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

/// One reservation; `holder` gets it first.
pub(crate) fn round(
    queues: &mut [IoQueue],
    holder: usize,
    namespace: &Namespace,
    random: &mut Random,
) -> Outcome {
    const ALL: [Status; 2] = [Status::SUCCESS; 2];
    let nsid = namespace.nsid;
    let keys = [random.next() | 1, random.next() | 1];
    let other = 1 - holder;
    let cptpl = if random.percent(50) {
        ChangePtpl::SET
    } else {
        ChangePtpl::CLEAR
    };
    let rtype = if random.percent(50) {
        ReservationType::WRITE_EXCLUSIVE
    } else {
        ReservationType::EXCLUSIVE_ACCESS
    };
    // What a round that a restart has ended left, goes first.
    for (queue, key) in queues.iter_mut().zip(keys) {
        register(queue, nsid, RegisterAction::REPLACE, key, cptpl)?;
    }
    clear(&mut queues[other], nsid, keys[other])?;
    for (queue, key) in queues.iter_mut().zip(keys) {
        register(queue, nsid, RegisterAction::REGISTER, key, cptpl)?;
    }
    let acquired = acquire(
        &mut queues[holder],
        nsid,
        AcquireAction::ACQUIRE,
        rtype,
        (keys[holder], 0),
    )?;
    expect("Acquire", acquired, Status::SUCCESS)?;
    let refused = acquire(
        &mut queues[other],
        nsid,
        AcquireAction::ACQUIRE,
        rtype,
        (keys[other], 0),
    )?;
    expect(
        "Acquire of what is held",
        refused,
        Status::RESERVATION_CONFLICT,
    )?;
    let excluded = [
        Status::RESERVATION_CONFLICT,
        if rtype.excludes_reads() {
            Status::RESERVATION_CONFLICT
        } else {
            Status::SUCCESS
        },
    ];
    io("the holder", &mut queues[holder], namespace, ALL)?;
    io("the other", &mut queues[other], namespace, excluded)?;
    let report = queues[other].reservation_report(nsid, 4);
    let report = report.map_err(doing("Report"))?;
    if report.registrants.len() != 2 || report.status.rtype != rtype {
        return Err(format!("two are registered, not {report:?}"));
    }
    if random.percent(50) {
        let preempted = acquire(
            &mut queues[other],
            nsid,
            AcquireAction::PREEMPT,
            rtype,
            (keys[other], keys[holder]),
        )?;
        expect("Preempt", preempted, Status::SUCCESS)?;
        io("the preempted", &mut queues[holder], namespace, excluded)?;
        clear(&mut queues[other], nsid, keys[other])?;
    } else {
        clear(&mut queues[holder], nsid, keys[holder])?;
    }
    io("anyone", &mut queues[holder], namespace, ALL)?;
    io("anyone", &mut queues[other], namespace, ALL)
}
