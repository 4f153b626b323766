//! What the specification says of reservations, once more and by itself: NVMe Base 2.1 §8.1.22.
//!
//! One reservation command is under way per namespace at a time. Where its host never learns how
//! it ended, the namespace has several possible states, until an answer tells which it was. What
//! persists is there again after the namespace was detached or the target started anew.

use crate::association::hostid;
use crate::facts::History;
use nvmf_host::command;
use nvmf_proto::wire::Sqe;
use nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, RegisterAction, RegisterCommand,
    RegisterData, RegistrantExtended, RegistrantStatus, ReleaseAction, ReleaseCommand, ReleaseData,
    ReservationStatus, ReservationType,
};
use nvmf_target::Status;
use std::collections::BTreeMap;

/// A reservation command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    pub action: Action,
    /// CRKEY.
    pub key: u64,
    /// NRKEY or PRKEY.
    pub other: u64,
    pub rtype: ReservationType,
    pub iekey: bool,
    pub cptpl: ChangePtpl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Register,
    Unregister,
    Replace,
    Acquire,
    Preempt,
    PreemptAndAbort,
    Release,
    Clear,
    /// Set Features, Reservation Persistence.
    Persist,
}

/// What registrants ask for, often enough that there are reservations to be seen.
pub const ACTIONS: [Action; 14] = [
    Action::Register,
    Action::Unregister,
    Action::Replace,
    Action::Replace,
    Action::Acquire,
    Action::Acquire,
    Action::Acquire,
    Action::Acquire,
    Action::Preempt,
    Action::Preempt,
    Action::PreemptAndAbort,
    Action::Release,
    Action::Clear,
    Action::Persist,
];

impl Reserve {
    /// The command and its data.
    pub fn encode(&self, nsid: u32) -> (Sqe, Vec<u8>) {
        let Self {
            key: crkey,
            other,
            rtype,
            iekey,
            cptpl,
            ..
        } = *self;
        let register = |action| {
            let command = RegisterCommand {
                action,
                iekey,
                cptpl,
            };
            let mut data = [0; RegisterData::SIZE];
            let nrkey = other;
            RegisterData { crkey, nrkey }.encode(&mut data);
            (command::reservation_register(nsid, &command), data.to_vec())
        };
        let acquire = |action| {
            let command = AcquireCommand {
                action,
                iekey,
                rtype,
            };
            let mut data = [0; AcquireData::SIZE];
            let prkey = other;
            AcquireData { crkey, prkey }.encode(&mut data);
            (command::reservation_acquire(nsid, &command), data.to_vec())
        };
        let release = |action| {
            let command = ReleaseCommand {
                action,
                iekey,
                rtype,
            };
            let mut data = [0; ReleaseData::SIZE];
            ReleaseData { crkey }.encode(&mut data);
            (command::reservation_release(nsid, &command), data.to_vec())
        };
        match self.action {
            Action::Register => register(RegisterAction::REGISTER),
            Action::Unregister => register(RegisterAction::UNREGISTER),
            Action::Replace => register(RegisterAction::REPLACE),
            Action::Acquire => acquire(AcquireAction::ACQUIRE),
            Action::Preempt => acquire(AcquireAction::PREEMPT),
            Action::PreemptAndAbort => acquire(AcquireAction::PREEMPT_AND_ABORT),
            Action::Release => release(ReleaseAction::RELEASE),
            Action::Clear => release(ReleaseAction::CLEAR),
            Action::Persist => {
                let value = u32::from(self.cptpl == ChangePtpl::SET);
                let set = SetFeatures::new(Fid::RESERVATION_PERSISTENCE, value);
                (command::set_features(nsid, &set), Vec::new())
            }
        }
    }
}

/// Registrants and reservation. `holder` is `None` if all registrants are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub keys: BTreeMap<usize, u64>,
    held: Option<(ReservationType, Option<usize>)>,
    /// It persists through power loss.
    ptpl: bool,
}

type Answer = Result<(), Status>;

impl State {
    pub fn may_read(&self, host: usize) -> bool {
        let excludes = self.held.is_some_and(|(rtype, _)| rtype.excludes_reads());
        !excludes || self.may_write(host)
    }

    pub fn may_write(&self, host: usize) -> bool {
        let Some((rtype, holder)) = self.held else {
            return true;
        };
        let registered = self.keys.contains_key(&host);
        holder == Some(host) || (rtype.admits_registrants() && registered)
    }

    /// What a command of a host is answered with; what it changes. `persists`: there is where to
    /// keep what persists.
    fn apply(&mut self, host: usize, reserve: &Reserve, persists: bool) -> Answer {
        if reserve.action == Action::Persist {
            let wanted = reserve.cptpl == ChangePtpl::SET;
            if wanted && !persists {
                return Err(Status::FEATURE_NOT_CHANGEABLE);
            }
            self.ptpl = wanted;
            return Ok(());
        }
        let ptpl = match reserve.cptpl {
            ChangePtpl::NONE => self.ptpl,
            ChangePtpl::CLEAR => false,
            ChangePtpl::SET if persists => true,
            _ => return Err(Status::INVALID_FIELD),
        };
        let registers = matches!(reserve.action, Action::Register | Action::Replace);
        let may_ignore = registers || reserve.action == Action::Unregister;
        if (registers && reserve.other == 0) || (reserve.iekey && !may_ignore) {
            return Err(Status::INVALID_FIELD);
        }
        let key = self.keys.get(&host).copied();
        let admitted = match reserve.action {
            Action::Register => key.is_none_or(|key| key == reserve.other),
            Action::Replace if reserve.iekey => true,
            Action::Unregister if reserve.iekey => key.is_some(),
            _ => key == Some(reserve.key),
        };
        if !admitted {
            return Err(Status::RESERVATION_CONFLICT);
        }
        self.carry_out(host, reserve)?;
        self.ptpl = ptpl;
        Ok(())
    }

    /// A command whose key is right.
    fn carry_out(&mut self, host: usize, reserve: &Reserve) -> Answer {
        match reserve.action {
            Action::Register | Action::Replace => {
                self.keys.insert(host, reserve.other);
            }
            Action::Unregister => {
                self.keys.remove(&host);
                match self.held {
                    Some((_, Some(holder))) if holder == host => self.held = None,
                    Some((_, None)) if self.keys.is_empty() => self.held = None,
                    _ => {}
                }
            }
            Action::Acquire => {
                let wanted = hold(reserve.rtype, host);
                if self.held.is_some_and(|held| held != wanted) {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                self.held = Some(wanted);
            }
            Action::Preempt | Action::PreemptAndAbort => return self.preempt(host, reserve),
            Action::Release => match self.held {
                Some((rtype, holder)) if holder.is_none_or(|holder| holder == host) => {
                    if rtype != reserve.rtype {
                        return Err(Status::INVALID_FIELD);
                    }
                    self.held = None;
                }
                _ => {}
            },
            Action::Clear => {
                self.keys.clear();
                self.held = None;
            }
            Action::Persist => {}
        }
        Ok(())
    }

    fn preempt(&mut self, host: usize, reserve: &Reserve) -> Answer {
        let key = reserve.other;
        let named = |state: &Self| state.keys.values().any(|k| *k == key);
        match self.held {
            Some((_, Some(holder))) if self.keys.get(&holder) == Some(&key) => {
                self.keys.retain(|other, k| *other == host || *k != key);
                self.held = Some(hold(reserve.rtype, host));
            }
            Some((_, Some(_))) if key == 0 => return Err(Status::INVALID_FIELD),
            Some((_, None)) if key == 0 => {
                self.keys.retain(|other, _| *other == host);
                self.held = Some(hold(reserve.rtype, host));
            }
            Some((_, None)) if !named(self) => return Err(Status::RESERVATION_CONFLICT),
            _ => {
                self.keys.retain(|_, k| *k != key);
                if self.keys.is_empty() {
                    self.held = None;
                }
            }
        }
        Ok(())
    }

    /// Whether a Reservation Report says this.
    fn is_reported(&self, page: &[u8]) -> bool {
        let Some(header) = page.first_chunk() else {
            return false;
        };
        let header = ReservationStatus::decode(header);
        let rtype = self.held.map_or(ReservationType::NONE, |(rtype, _)| rtype);
        let mut found = BTreeMap::new();
        for entry in page[ReservationStatus::EXTENDED_SIZE..]
            .chunks_exact(RegistrantExtended::SIZE)
            .take(header.registrants.into())
        {
            let entry = RegistrantExtended::decode(entry.try_into().expect("its size"));
            let holds = entry.status.contains(RegistrantStatus::HOLDER);
            found.insert(entry.hostid, (entry.rkey, holds));
        }
        let holds = |host: usize| {
            self.held
                .is_some_and(|(_, holder)| holder.is_none_or(|holder| holder == host))
        };
        let expected: BTreeMap<_, _> = self
            .keys
            .iter()
            .map(|(&host, &key)| (hostid(host), (key, holds(host))))
            .collect();
        header.rtype == rtype && header.ptpls == u8::from(self.ptpl) && found == expected
    }

    /// What is left of it when the namespace is attached anew.
    fn persistent(&self) -> Self {
        if self.ptpl {
            self.clone()
        } else {
            Self::default()
        }
    }
}

const fn hold(rtype: ReservationType, host: usize) -> (ReservationType, Option<usize>) {
    if rtype.is_all_registrants() {
        (rtype, None)
    } else {
        (rtype, Some(host))
    }
}

/// A command that is under way.
#[derive(Debug)]
struct Busy {
    host: usize,
    reserve: Reserve,
    /// The states that were possible before it.
    before: Vec<State>,
    /// The namespace was detached meanwhile: nobody knows what it was carried out on.
    disturbed: bool,
    persists: bool,
}

impl Busy {
    /// The states behind the command, from those before it that answer it in this way.
    fn after(&self, wanted: impl Fn(Answer) -> bool) -> Vec<State> {
        let mut after = Vec::new();
        for state in &self.before {
            let mut state = state.clone();
            let answer = state.apply(self.host, &self.reserve, self.persists);
            if wanted(answer) {
                add(&mut after, state);
            }
        }
        after
    }

    /// With it or without it.
    fn either(&self) -> Vec<State> {
        let mut states = self.before.clone();
        for state in self.after(|_| true) {
            add(&mut states, state);
        }
        states
    }
}

fn add(states: &mut Vec<State>, state: State) {
    if !states.contains(&state) {
        states.push(state);
    }
}

/// The reservations of an attached namespace.
#[derive(Debug)]
pub struct Reservations {
    /// The states that are possible.
    states: History<Vec<State>>,
    busy: Option<Busy>,
    /// There is a store.
    persists: bool,
    /// What the store may hold, since it failed, other than what is true.
    doubtful: Vec<State>,
    /// When the last Preempt and Abort ended.
    pub aborted: u64,
}

impl Reservations {
    pub fn new(persists: bool) -> Self {
        Self {
            states: History::new(vec![State::default()]),
            busy: None,
            persists,
            doubtful: Vec::new(),
            aborted: 0,
        }
    }

    pub const fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// One of the states that are possible.
    pub fn guess(&self) -> &State {
        &self.states.now()[0]
    }

    pub fn was(&self, start: u64, test: impl Fn(&State) -> bool) -> bool {
        self.states.since(start).flatten().any(test)
    }

    /// The namespace is attached anew: of what was before there is what persists.
    pub fn reset(&mut self, stamp: u64) {
        let mut states = Vec::new();
        for state in self.states.now().iter().chain(&self.doubtful) {
            add(&mut states, state.persistent());
        }
        if let Some(busy) = &mut self.busy {
            busy.disturbed = true;
            busy.before = states;
            states = busy.either();
        }
        self.states.set(stamp, states);
    }

    /// A command is on its way: from now on it may have been carried out.
    pub fn begin(&mut self, stamp: u64, host: usize, reserve: Reserve) {
        if reserve.action == Action::PreemptAndAbort {
            self.aborted = u64::MAX;
        }
        let busy = Busy {
            host,
            reserve,
            before: self.states.now().clone(),
            disturbed: false,
            persists: self.persists,
        };
        self.states.set(stamp, busy.either());
        self.busy = Some(busy);
    }

    /// The command was answered; an error if that cannot be. `sure`: the store holds what it was told
    /// last.
    pub fn answered(&mut self, stamp: u64, answer: Answer, sure: bool) -> Result<(), String> {
        let Some(busy) = self.end(stamp) else {
            return Ok(());
        };
        let states = if busy.disturbed {
            busy.either()
        } else {
            busy.after(|other| other == answer)
        };
        if states.is_empty() {
            return Err(format!(
                "that is not the answer of {:?} to {:?}",
                busy.before, busy.reserve
            ));
        }
        self.states.set(stamp, states);
        if sure && answer.is_ok() && !busy.disturbed {
            self.doubtful.clear();
        }
        Ok(())
    }

    /// The command failed for the store: it had no effect, but the store may hold one.
    pub fn unsaved(&mut self, stamp: u64, sure: bool) {
        if let Some(busy) = self.end(stamp) {
            self.doubt(&busy.either(), sure);
            self.states.set(stamp, busy.before);
        }
    }

    /// The command had no effect.
    pub fn refused(&mut self, stamp: u64) {
        if let Some(busy) = self.end(stamp) {
            self.states.set(stamp, busy.before);
        }
    }

    /// Nobody knows whether it had, but it will not have one any more.
    pub fn lost(&mut self, stamp: u64, sure: bool) {
        if let Some(busy) = self.end(stamp) {
            let states = busy.either();
            self.doubt(&states, sure);
            self.states.set(stamp, states);
        }
    }

    fn doubt(&mut self, states: &[State], sure: bool) {
        for state in states.iter().filter(|_| !sure) {
            add(&mut self.doubtful, state.clone());
        }
    }

    fn end(&mut self, stamp: u64) -> Option<Busy> {
        if self.aborted == u64::MAX {
            self.aborted = stamp;
        }
        self.busy.take()
    }

    /// A report that was asked for at `start`.
    pub fn check_report(&self, start: u64, page: &[u8]) -> Result<(), String> {
        let mut states = self.states.since(start).flatten();
        if states.any(|state| state.is_reported(page)) {
            return Ok(());
        }
        Err(format!("{:?} does not report like that", self.states.now()))
    }
}
