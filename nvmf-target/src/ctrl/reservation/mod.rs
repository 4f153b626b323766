//! Reservations on namespaces (NVMe Base 2.1 §8.1.22).
//!
//! [`state`] is what the commands mean, [`record`] what outlives the target and [`store`] where.
//! [`Reservations`] puts them together for one namespace.

mod change;
mod record;
mod state;
mod store;

#[cfg(test)]
mod tests;

pub(crate) use change::{Keeper, Waiter, set_persistence};
pub(crate) use state::{Command, HostId, Rights};
pub use store::{FileReservationStore, ReservationScope, ReservationStore};

use super::lock;
use crate::Error;
use crate::chatter::{error, info, warn};
use crate::contain::{Guarded, contain};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{CNTLID_NONE, ChangePtpl};
use state::{Effects, State};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak};

/// The reservations of a namespace, shared by all controllers of its subsystem, and by attachments
/// of the namespace that follow each other.
#[derive(Debug)]
pub(crate) struct Reservations {
    scope: ReservationScope,
    store: Option<Guarded<Arc<dyn ReservationStore>>>,
    state: Mutex<State>,
    /// Why the record that was found makes no sense. It is set aside before anything else is kept.
    damaged: Mutex<Option<String>>,
    /// Held while a change is made and kept; the state itself stays readable meanwhile.
    changing: Mutex<Kept>,
}

/// What is known of the record in the store.
#[derive(Debug, Default)]
struct Kept {
    /// It may be another than that of the state: a change has failed on the way.
    is_unsure: bool,
}

impl Reservations {
    /// Those of a namespace that is to be attached: as they were kept, if they were.
    ///
    /// # Errors
    ///
    /// The store cannot tell. A record that it has but that makes no sense is no error: there is no
    /// hope that it ever will. See [`Self::set_aside`].
    pub(crate) fn open(
        scope: ReservationScope,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Self, Error> {
        let (mut state, mut damaged) = (State::default(), None);
        let store = store.map(|store| Guarded::new("a reservation store", store));
        if let Some(store) = &store {
            let record = call(|| store.load(&scope))
                .map_err(|err| Error::io(format!("cannot load reservations of {scope}"), err))?;
            match record.map(|record| record::decode(&scope, &record)) {
                None => {}
                Some(Ok(kept)) => state = kept,
                Some(Err(reason)) => damaged = Some(reason),
            }
        }
        Ok(Self {
            scope,
            store,
            state: Mutex::new(state),
            damaged: Mutex::new(damaged),
            changing: Mutex::default(),
        })
    }

    /// Sets a record aside that makes no sense, if that is what was found. May block then.
    pub(crate) fn set_aside(&self) {
        let mut damaged = lock(&self.damaged);
        if let (Some(store), Some(reason)) = (&self.store, damaged.take()) {
            let place = call(|| store.set_aside(&self.scope))
                .unwrap_or_else(|err| format!("which cannot be set aside: {err}"));
            error!(
                "{}: its reservations are LOST, no host is excluded: the record makes no sense, for {reason}: {place}",
                self.scope
            );
        }
    }

    /// The namespace is attached anew, after it was not for a while: what does not persist is gone.
    pub(crate) fn restart(&self) {
        let mut state = lock(&self.state);
        if !state.ptpl {
            *state = State::default();
        }
    }

    /// Whether the namespace can persist through power loss. Then changes may block.
    pub(crate) const fn can_persist(&self) -> bool {
        self.store.is_some()
    }

    /// What a host may do.
    pub(crate) fn rights(&self, host: &HostId) -> Rights {
        lock(&self.state).rights(host)
    }

    /// PTPLS.
    pub(crate) fn ptpl(&self) -> bool {
        lock(&self.state).ptpl
    }

    /// Writes the Reservation Status Extended data structure: as much as there is room for, and
    /// zeroes behind it. `cntlids` are controllers of hosts.
    pub(crate) fn report(&self, cntlids: &BTreeMap<HostId, u16>, out: &mut [u8]) {
        let cntlid = |host: &HostId| cntlids.get(host).copied().unwrap_or(CNTLID_NONE);
        lock(&self.state).report(cntlid, out);
    }

    /// Carries out a command of a host, and says what follows and whether rights have changed. May
    /// block, see [`Self::can_persist`].
    ///
    /// # Errors
    ///
    /// The status that the command ends with; nothing has changed.
    pub(crate) fn execute(
        &self,
        host: HostId,
        command: &Command,
    ) -> Result<(Effects, bool), Status> {
        if let Command::Register(register, _) = command
            && register.cptpl == ChangePtpl::SET
            && !self.can_persist()
        {
            // Linux asks for it whenever its block layer registers, whatever RESCAP says.
            info!(
                "{}: a host wants reservations that persist through power loss: refused, for there is no reservation store",
                self.scope
            );
        }
        self.change(|state| state.execute(host, command, self.can_persist()))
    }

    /// Sets PTPLS. May block, see [`Self::can_persist`].
    ///
    /// # Errors
    ///
    /// Feature Not Changeable without a store; Internal Error if it fails.
    pub(crate) fn set_ptpl(&self, ptpl: bool) -> Result<(), Status> {
        if ptpl && !self.can_persist() {
            return Err(Status::FEATURE_NOT_CHANGEABLE.dnr());
        }
        self.change(|state| {
            state.ptpl = ptpl;
            Ok(())
        })
        .map(|_| ())
    }

    /// Changes the state, once what is to outlive a power loss is where it does. Says whether that
    /// has changed what hosts may do.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Status>,
    ) -> Result<(T, bool), Status> {
        let mut kept = lock(&self.changing);
        let before = lock(&self.state).clone();
        let mut after = before.clone();
        let done = change(&mut after)?;
        let rights_changed = !after.same_rights(&before);
        if after != before || kept.is_unsure {
            self.keep(&mut kept, &before, &after)?;
            *lock(&self.state) = after;
        }
        Ok((done, rights_changed))
    }

    fn keep(&self, kept: &mut Kept, before: &State, after: &State) -> Result<(), Status> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let persists = before.ptpl || after.ptpl;
        if !persists && !kept.is_unsure {
            return Ok(());
        }
        self.set_aside();
        let put = |state: &State| match state.ptpl {
            true => {
                let record = record::encode(&self.scope, state);
                call(|| store.save(&self.scope, &record))
            }
            false => call(|| store.remove(&self.scope)),
        };
        // Until it is known what has come of it.
        kept.is_unsure = true;
        let Err(err) = put(after) else {
            kept.is_unsure = false;
            return Ok(());
        };
        warn!(
            "{}: reservations cannot be kept, so the host's command fails: {err}",
            self.scope
        );
        if !persists {
            // An earlier failure could not be put right, which is no matter of this change.
            return Ok(());
        }
        // It may have been kept all the same. Hosts are told that nothing has changed, so that must
        // be true after a restart as well.
        match put(before) {
            Ok(()) => kept.is_unsure = false,
            Err(err) => warn!(
                "{}: the store fails for what was there before as well: {err}. If the target starts again before a reservation command has succeeded, it may find the change that has just failed, or none; put the store right and let a host register anew",
                self.scope
            ),
        }
        Err(Status::INTERNAL_ERROR)
    }
}

/// The reservations that a subsystem's namespaces have, by UUID. Attachments that follow each other
/// share theirs: what hosts have asked of the one that goes may still be on its way to the store.
#[derive(Default)]
pub(crate) struct Known(Mutex<BTreeMap<[u8; 16], Weak<Reservations>>>);

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known")
    }
}

impl Known {
    /// Those of a namespace that is to be attached.
    ///
    /// # Errors
    ///
    /// As [`Reservations::open`].
    pub(crate) fn get(
        &self,
        scope: ReservationScope,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Arc<Reservations>, Error> {
        let mut known = lock(&self.0);
        if let Some(there) = known.get(&scope.uuid).and_then(Weak::upgrade) {
            return Ok(there);
        }
        known.retain(|_, reservations| reservations.strong_count() > 0);
        let uuid = scope.uuid;
        let opened = Arc::new(Reservations::open(scope, store)?);
        known.insert(uuid, Arc::downgrade(&opened));
        Ok(opened)
    }
}

/// Calls a store. A panic in it is a failure.
fn call<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    contain(call).unwrap_or_else(|panic| Err(io::Error::other(format!("the store {panic}"))))
}
