//! What the target may answer: every status and every byte is checked against what the world was
//! like while the command was under way.

use crate::command::{Command, Io, IoOp, Right};
use crate::content::{BAD, SECTOR, Tag};
use crate::disk::Disk;
use crate::facts::{History, Namespace, Subsystem};
use crate::reservations::{Reservations, State};
use crate::store::Store;
use crate::trace;
use crate::versions::{Content, Versions};
use nvmf_target::{AnaState, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A device and what it may hold.
pub struct Storage {
    pub versions: Versions,
    /// The simulated disk, unless it is the product's own RAM disk.
    pub disk: Option<Disk>,
    pub block_size: u64,
    pub blocks: u64,
}

/// A write that is under way, wherever it may go.
#[derive(Clone, Debug)]
struct Pending {
    write: u32,
    subsystem: usize,
    io: Io,
    start: u64,
}

/// What the model knows.
pub struct Model {
    pub storage: Vec<Storage>,
    pub subsystems: Vec<Subsystem>,
    pending: Vec<Pending>,
    writes: u32,
    /// Commands may fail for want of a buffer.
    pub tight: bool,
    pub max_transfer: u64,
    /// There are Copy commands, which bring back what was there before.
    pub copies: bool,
    /// What fused pairs have found and replaced: storage, sector, content.
    replaced: BTreeSet<(usize, u64, Tag)>,
    /// Where reservations persist, if anywhere.
    pub store: Option<Arc<Store>>,
    /// By subsystem and NSID.
    pub reservations: BTreeMap<(usize, u32), Reservations>,
    /// Starts of the commands that are under way.
    pub under_way: BTreeSet<u64>,
}

/// Where a command was sent.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub host: usize,
    pub subsystem: usize,
    pub listener: usize,
    /// Bits of what it sent flipped.
    pub spoiled: bool,
    /// Its controller is being reset or shut down, or its connections have a reason to end.
    pub stopping: bool,
    /// It may have been silent for too long.
    pub expired: bool,
}

impl Model {
    pub fn new(storage: Vec<Storage>, subsystems: Vec<Subsystem>) -> Self {
        Self {
            storage,
            subsystems,
            pending: Vec::new(),
            writes: 0,
            tight: false,
            max_transfer: 0,
            copies: false,
            replaced: BTreeSet::new(),
            store: None,
            reservations: BTreeMap::new(),
            under_way: BTreeSet::new(),
        }
    }

    /// A number for a write to come.
    pub const fn next_write(&mut self) -> u32 {
        self.writes += 1;
        self.writes
    }

    /// A command leaves its host.
    pub fn submitted(&mut self, subsystem: usize, host: usize, io: &Io, start: u64) {
        self.under_way.insert(start);
        if let IoOp::Reservation(reserve) = io.op {
            self.reservations_of(subsystem, io.nsid)
                .begin(start, host, reserve);
        }
        let Some(write) = io.write else {
            return;
        };
        let pending = Pending {
            write,
            subsystem,
            io: io.clone(),
            start,
        };
        if let Some(namespace) = self.subsystems[subsystem].namespace(io.nsid) {
            self.may_reach(namespace.storage, &pending);
        }
        self.pending.push(pending);
    }

    /// A write may come to a storage.
    fn may_reach(&mut self, storage: usize, pending: &Pending) {
        let oldest = self.under_way.first().copied().unwrap_or(u64::MAX);
        let storage = &mut self.storage[storage];
        // Data for another format is refused.
        if storage.block_size != pending.io.block_size && !pending.io.op.is_without_data() {
            return;
        }
        let content = match pending.io.op {
            IoOp::WriteZeroes | IoOp::Deallocate(_) => Content::Zeroes,
            IoOp::Uncorrectable => Content::Mark,
            IoOp::Copy(_) => Content::CopyOf(pending.io.copied(storage.block_size)),
            _ => Content::Data,
        };
        storage.versions.oldest = oldest;
        let sectors = pending.io.written(storage.block_size);
        storage
            .versions
            .begin(pending.write, pending.start, sectors, content);
    }

    /// An NSID stands for something else from now on.
    pub fn set_namespace(&mut self, subsystem: usize, nsid: u32, namespace: Option<Namespace>) {
        let stamp = trace::stamp();
        let before = self.subsystems[subsystem].namespace(nsid);
        if let Some(namespace) = namespace {
            self.may_be_forgotten(stamp, namespace.storage);
        }
        self.subsystems[subsystem].set(stamp, nsid, namespace);
        let Some(namespace) = namespace else {
            return;
        };
        if before.is_none() {
            self.reservations_of(subsystem, nsid).reset(stamp);
        }
        let affected: Vec<_> = self
            .pending
            .iter()
            .filter(|p| p.subsystem == subsystem && p.io.nsid == nsid)
            .cloned()
            .collect();
        for pending in affected {
            self.may_reach(namespace.storage, &pending);
        }
    }

    /// A storage is shown. If it was not until now, the marks on it may be forgotten: the target
    /// knows them as long as it serves the device.
    fn may_be_forgotten(&mut self, stamp: u64, storage: usize) {
        let namespaces = self.subsystems.iter().flat_map(|s| s.namespaces.values());
        let mut shown = namespaces.filter_map(|history| *history.now());
        if !shown.any(|namespace| namespace.storage == storage) {
            self.storage[storage].versions.forget_marks(stamp);
        }
    }

    /// An ANA group is in another state from now on.
    pub fn set_ana(&mut self, subsystem: usize, listener: usize, group: u32, state: AnaState) {
        let stamp = trace::stamp();
        self.subsystems[subsystem]
            .ana
            .entry((listener, group))
            .or_insert_with(|| History::new(AnaState::Optimized))
            .set(stamp, state);
    }

    pub fn reservations_of(&mut self, subsystem: usize, nsid: u32) -> &mut Reservations {
        let persists = self.store.is_some();
        self.reservations
            .entry((subsystem, nsid))
            .or_insert_with(|| Reservations::new(persists))
    }

    /// Whether a namespace's reservations gave a right or refused it at some time since `start`.
    fn had_right(&self, place: Place, io: &Io, start: u64, given: bool) -> bool {
        let Some(reservations) = self.reservations.get(&(place.subsystem, io.nsid)) else {
            return given;
        };
        let right = |state: &State| match io.op.right() {
            Right::None => true,
            Right::Read => state.may_read(place.host),
            Right::Write => state.may_write(place.host),
        };
        reservations.was(start, |state| right(state) == given)
    }

    /// A lost command can do nothing any more.
    pub fn settle(&mut self, subsystem: usize, io: &Io) {
        if matches!(io.op, IoOp::Reservation(_)) {
            let stamp = trace::stamp();
            let sure = self.store.as_ref().is_none_or(|store| store.is_sure());
            self.reservations_of(subsystem, io.nsid).lost(stamp, sure);
        }
        if let Some(write) = io.write {
            let now = trace::stamp();
            self.pending.retain(|p| p.write != write);
            for storage in &mut self.storage {
                storage.versions.fail(write, now);
            }
        }
    }

    /// Judges the completion of an I/O command.
    pub fn completed(
        &mut self,
        place: Place,
        command: &Command,
        io: &Io,
        status: Status,
        data: &[u8],
    ) -> Result<(), String> {
        let now = trace::stamp();
        self.under_way.remove(&command.start);
        if let Some(write) = io.write {
            self.pending.retain(|p| p.write != write);
        }
        let seen = self.subsystems[place.subsystem].namespaces_since(io.nsid, command.start);
        let verdict = if status.is_success() && !self.had_right(place, io, command.start, true) {
            Err("a reservation excludes its host".to_owned())
        } else if let IoOp::Reservation(_) = io.op {
            self.reserved(place, command, io, &seen, status, now)
        } else if status.is_success() {
            self.succeeded(place, command, io, &seen, data, now)
        } else {
            self.failed(place, command, io, &seen, status, now)
        };
        verdict.map_err(|why| format!("{io:?} ended with {status}: {why}"))
    }

    fn succeeded(
        &mut self,
        place: Place,
        command: &Command,
        io: &Io,
        seen: &[Option<Namespace>],
        data: &[u8],
        now: u64,
    ) -> Result<(), String> {
        let usable = |ns: &&Namespace| {
            let states = &self.subsystems[place.subsystem];
            let states = states.ana_since(place.listener, ns.group, command.start);
            let open = states.iter().any(|s| is_open(*s));
            let fits = ns.block_size == io.block_size || io.op.is_without_data();
            open && fits && io.end() <= ns.blocks
        };
        let possible: Vec<Namespace> = seen.iter().flatten().filter(usable).copied().collect();
        let Some(first) = possible.first() else {
            return Err(format!("it cannot have succeeded, there was {seen:?}"));
        };
        let storages: BTreeSet<usize> = possible.iter().map(|ns| ns.storage).collect();
        let sole = storages.len() == 1;
        if let Some(write) = io.write {
            for (index, storage) in self.storage.iter_mut().enumerate() {
                if sole && index == first.storage {
                    let hint = matches!(io.op, IoOp::Deallocate(_));
                    storage.versions.acknowledge(write, now, hint);
                } else if sole {
                    storage.versions.refuse(write);
                } else {
                    storage.versions.fail(write, now);
                }
            }
        }
        if !sole {
            // Which of them answered nobody knows.
            return Ok(());
        }
        let storage = &mut self.storage[first.storage];
        match &io.op {
            IoOp::Read => {
                if data.len() != (io.blocks * io.block_size) as usize {
                    return Err(format!("{} bytes of data came", data.len()));
                }
                let sectors = io.sectors();
                storage
                    .versions
                    .check(sectors.start, data, command.start, now)
            }
            IoOp::Write if io.fua => storage.is_forced(io),
            IoOp::Verify => storage.is_readable(io.sectors(), command.start),
            IoOp::Copy(_) => {
                let sectors = io.copied(storage.block_size);
                storage.is_readable(sectors, command.start)
            }
            IoOp::ReservationReport => {
                let reservations = self.reservations.get(&(place.subsystem, io.nsid));
                reservations.map_or(Ok(()), |r| r.check_report(command.start, data))
            }
            IoOp::Flush => {
                let all = storage.blocks * storage.block_size / SECTOR as u64;
                storage.is_stable(0..all, command.start)
            }
            IoOp::FusedWrite(tags) => {
                let took = first.storage;
                for (sector, &tag) in io.sectors().zip(tags) {
                    // Zeroes and what is copied may be there more than once.
                    if tag == 0 || self.copies {
                        continue;
                    }
                    // Nobody else can have found the same there and replaced it.
                    if !self.replaced.insert((took, sector, tag)) {
                        return Err(format!("sector {sector} was replaced twice"));
                    }
                    let write = io.write.unwrap_or_default();
                    storage.versions.replaced(sector, tag, write, now);
                }
                Ok(())
            }
            IoOp::Compare(tags) | IoOp::FusedCompare(tags) => {
                for (sector, &tag) in io.sectors().zip(tags) {
                    if !storage.versions.may_hold(sector, tag, command.start) {
                        return Err(format!("sector {sector} cannot have been that"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A reservation command was answered.
    fn reserved(
        &mut self,
        place: Place,
        command: &Command,
        io: &Io,
        seen: &[Option<Namespace>],
        status: Status,
        now: u64,
    ) -> Result<(), String> {
        let is = |other: Status| status.same_code(other);
        let own = is(Status::RESERVATION_CONFLICT)
            || (is(Status::INVALID_FIELD) && !io.op.is_feature())
            || is(Status::FEATURE_NOT_CHANGEABLE);
        let store = self.store.as_ref();
        let unsaved = store.is_some_and(|store| store.has_failed(command.start));
        // With the next change that succeeds the target has to put right what it could not.
        let idle = |store: &Store| status.is_success() && !store.was_called(command.start);
        let sure = store.is_none_or(|store| store.is_sure() || idle(store));
        let reservations = self.reservations_of(place.subsystem, io.nsid);
        if status.is_success() || own {
            let answer = if own {
                Err(Status::from_bits(status.bits() & 0x7ff))
            } else {
                Ok(())
            };
            return reservations.answered(now, answer, sure);
        }
        if unsaved && is(Status::INTERNAL_ERROR) {
            reservations.unsaved(now, sure);
            return Ok(());
        }
        let verdict = self.may_fail(place, command, io, seen, status);
        let reservations = self.reservations_of(place.subsystem, io.nsid);
        if matches!(verdict, Ok(Failure::Refused)) {
            reservations.refused(now);
        } else {
            reservations.lost(now, sure);
        }
        verdict.map(|_| ())
    }

    fn failed(
        &mut self,
        place: Place,
        command: &Command,
        io: &Io,
        seen: &[Option<Namespace>],
        status: Status,
        now: u64,
    ) -> Result<(), String> {
        let verdict = self.may_fail(place, command, io, seen, status);
        if let Some(write) = io.write {
            for storage in &mut self.storage {
                if matches!(verdict, Ok(Failure::Refused)) && io.is_one_request() {
                    storage.versions.refuse(write);
                } else {
                    storage.versions.fail(write, now);
                }
            }
        }
        verdict.map(|_| ())
    }

    fn may_fail(
        &self,
        place: Place,
        command: &Command,
        io: &Io,
        seen: &[Option<Namespace>],
        status: Status,
    ) -> Result<Failure, String> {
        use Failure::{InTheMiddle, Refused};
        let is = |other: Status| status.same_code(other);
        let any = |test: &dyn Fn(&Namespace) -> bool| seen.iter().flatten().any(test);
        let storages = || seen.iter().flatten().map(|ns| &self.storage[ns.storage]);
        let ana = |test: &dyn Fn(AnaState) -> bool| {
            let subsystem = &self.subsystems[place.subsystem];
            any(&|ns| {
                let states = subsystem.ana_since(place.listener, ns.group, command.start);
                states.into_iter().any(test)
            })
        };
        // What the world says about it; in the order of the specification's status codes.
        let (allowed, what) = if is(Status::INVALID_NAMESPACE) {
            let which = |ns: &Option<Namespace>| ns.map(|ns| ns.storage);
            let changed = seen.iter().any(|ns| which(ns) != which(&seen[0]));
            (changed || seen[0].is_none(), Refused)
        } else if is(Status::LBA_OUT_OF_RANGE) {
            (any(&|ns| io.end() > ns.blocks), Refused)
        } else if is(Status::DATA_SGL_LENGTH_INVALID) {
            (any(&|ns| ns.block_size != io.block_size), Refused)
        } else if is(Status::INVALID_FIELD) {
            let too_long = io.blocks * io.block_size > self.max_transfer;
            // A namespace that is not there has no features.
            let missing = io.op.is_feature() && seen.iter().any(Option::is_none);
            (
                missing || too_long || any(&|ns| ns.block_size != io.block_size),
                Refused,
            )
        } else if is(Status::ANA_INACCESSIBLE) {
            (ana(&|s| s == AnaState::Inaccessible), Refused)
        } else if is(Status::ANA_PERSISTENT_LOSS) {
            (ana(&|s| s == AnaState::PersistentLoss), Refused)
        } else if is(Status::ANA_TRANSITION) {
            (ana(&|s| s == AnaState::Change), Refused)
        } else if is(Status::TRANSIENT_TRANSPORT_ERROR) {
            (place.spoiled, Refused)
        } else if is(Status::COMPARE_FAILURE) {
            (self.may_differ(command, io, seen), InTheMiddle)
        } else if is(Status::UNRECOVERED_READ_ERROR) {
            (self.may_meet_mark(command, io, seen), InTheMiddle)
        } else if is(Status::ABORTED_FAILED_FUSED) {
            (io.op.is_fused(), Refused)
        } else if is(Status::COMMAND_INTERRUPTED) {
            (self.tight, InTheMiddle)
        } else if is(Status::NAMESPACE_NOT_READY) {
            // Its device has ended nothing for long, and others wait for buffers.
            let may_stand_still = storages().any(|storage| storage.disk.is_some());
            (self.tight && may_stand_still, InTheMiddle)
        } else if is(Status::RESERVATION_CONFLICT) {
            (self.had_right(place, io, command.start, false), Refused)
        } else if is(Status::ABORT_REQUESTED) {
            let preempted = self.reservations.get(&(place.subsystem, io.nsid));
            let preempted = preempted.is_some_and(|r| r.aborted >= command.start);
            (command.unwanted || preempted, InTheMiddle)
        } else if is(Status::COMMAND_SEQUENCE_ERROR) {
            (place.stopping, Refused)
        } else if is(Status::ABORTED_SQ_DELETION) {
            (place.stopping || place.expired, InTheMiddle)
        } else {
            (false, InTheMiddle)
        };
        let injected = || {
            storages()
                .filter_map(|s| s.disk.as_ref())
                .any(|disk| disk.has_failed(command.start, status))
        };
        if allowed {
            Ok(what)
        } else if injected() {
            Ok(InTheMiddle)
        } else {
            Err(format!("nothing allows that; there was {seen:?}"))
        }
    }

    /// Whether a Compare may have found something else.
    fn may_differ(&self, command: &Command, io: &Io, seen: &[Option<Namespace>]) -> bool {
        let (IoOp::Compare(tags) | IoOp::FusedCompare(tags)) = &io.op else {
            return false;
        };
        seen.iter().flatten().any(|ns| {
            let versions = &self.storage[ns.storage].versions;
            io.sectors().zip(tags).any(|(sector, &tag)| {
                let mut may = versions.possible(sector, command.start).into_iter();
                may.any(|other| other != tag && other != BAD)
            })
        })
    }

    /// Whether a command may have had to read blocks that Write Uncorrectable has marked.
    fn may_meet_mark(&self, command: &Command, io: &Io, seen: &[Option<Namespace>]) -> bool {
        seen.iter().flatten().any(|ns| {
            let versions = &self.storage[ns.storage].versions;
            let mut read = match &io.op {
                IoOp::Copy(_) => io.copied(ns.block_size),
                op if op.right() == Right::Read => io.written(ns.block_size),
                _ => Vec::new(),
            }
            .into_iter();
            read.any(|sector| versions.may_be_marked(sector, command.start))
        })
    }
}

/// Whether a failed command can have had an effect.
enum Failure {
    /// It was refused before it began.
    Refused,
    /// It may have.
    InTheMiddle,
}

const fn is_open(state: AnaState) -> bool {
    matches!(state, AnaState::Optimized | AnaState::NonOptimized)
}

impl IoOp {
    const fn is_fused(&self) -> bool {
        matches!(self, Self::FusedCompare(_) | Self::FusedWrite(_))
    }
}

impl Io {
    /// Whether it is carried out as one request, which is refused or not.
    const fn is_one_request(&self) -> bool {
        let one = matches!(
            self.op,
            IoOp::Write | IoOp::FusedWrite(_) | IoOp::Uncorrectable
        );
        one && !self.fua
    }
}

impl Storage {
    pub fn new(disk: Option<Disk>, block_size: u64, blocks: u64) -> Self {
        Self {
            versions: Versions::new(blocks * block_size / SECTOR as u64),
            disk,
            block_size,
            blocks,
        }
    }

    /// What the device holds, but where a mark may hide it.
    pub fn check_unmarked(&mut self, data: &[u8], now: u64) -> Result<(), String> {
        for (sector, bytes) in (0..).zip(data.chunks_exact(SECTOR)) {
            if !self.versions.may_be_marked(sector, now) {
                self.versions.check(sector, bytes, now, now)?;
            }
        }
        Ok(())
    }

    /// Whether a command that had to read these sectors can have succeeded.
    fn is_readable(
        &self,
        sectors: impl IntoIterator<Item = u64>,
        start: u64,
    ) -> Result<(), String> {
        let spoilt = |sector: &u64| !self.versions.may_be_unmarked(*sector, start);
        match sectors.into_iter().find(spoilt) {
            Some(sector) => Err(format!("sector {sector} was marked")),
            None => Ok(()),
        }
    }

    /// Whether a write with FUA is where it survives a loss of power.
    fn is_forced(&self, io: &Io) -> Result<(), String> {
        let (Some(disk), Some(write)) = (&self.disk, io.write) else {
            return Ok(());
        };
        match disk.owes_write(io.sectors(), write) {
            Some(sector) => Err(format!("sector {sector} is not on stable storage")),
            None => Ok(()),
        }
    }

    /// Whether what was written to these sectors before `start` survives a loss of power.
    fn is_stable(&self, sectors: std::ops::Range<u64>, start: u64) -> Result<(), String> {
        match self.disk.as_ref().and_then(|d| d.owes(sectors, start)) {
            Some(sector) => Err(format!("sector {sector} is not on stable storage")),
            None => Ok(()),
        }
    }
}
