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
pub(crate) use state::{Command, HostId};
pub use store::{FileReservationStore, ReservationScope, ReservationStore};

use super::lock;
use crate::Error;
use log::{error, info, warn};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{CNTLID_NONE, ChangePtpl};
use state::{Effects, Rights, State};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The reservations of one attached namespace, shared by all controllers of its subsystem.
#[derive(Debug)]
pub(crate) struct Reservations {
    scope: ReservationScope,
    store: Option<Arc<dyn ReservationStore>>,
    state: Mutex<State>,
    /// Held while a change is made and kept; the state itself stays readable meanwhile.
    changing: Mutex<()>,
}

impl Reservations {
    /// Those of a namespace that is being attached: as they were kept, if they were.
    ///
    /// # Errors
    ///
    /// The store cannot tell. A record that it has but that makes no sense is set aside: there is
    /// no hope that it ever will.
    pub(crate) fn open(
        scope: ReservationScope,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Self, Error> {
        let mut state = State::default();
        if let Some(store) = &store {
            let record = store
                .load(&scope)
                .map_err(|err| Error::io(format!("cannot load reservations of {scope}"), err))?;
            match record.map(|record| record::decode(&scope, &record)) {
                None => {}
                Some(Ok(kept)) => state = kept,
                Some(Err(reason)) => {
                    let place = store
                        .set_aside(&scope)
                        .unwrap_or_else(|err| format!("which cannot be set aside: {err}"));
                    error!(
                        "{scope}: its reservations are LOST, no host is excluded: the record makes no sense, for {reason}: {place}"
                    );
                }
            }
        }
        Ok(Self {
            scope,
            store,
            state: Mutex::new(state),
            changing: Mutex::default(),
        })
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
        let _alone = lock(&self.changing);
        let before = lock(&self.state).clone();
        let mut after = before.clone();
        let done = change(&mut after)?;
        let rights_changed = !after.same_rights(&before);
        if after != before {
            self.keep(&before, &after)?;
            *lock(&self.state) = after;
        }
        Ok((done, rights_changed))
    }

    fn keep(&self, before: &State, after: &State) -> Result<(), Status> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let kept = match (before.ptpl, after.ptpl) {
            (_, true) => store.save(&self.scope, &record::encode(&self.scope, after)),
            (true, false) => store.remove(&self.scope),
            (false, false) => Ok(()),
        };
        kept.map_err(|err| {
            warn!("{}: reservations cannot be kept: {err}", self.scope);
            Status::INTERNAL_ERROR
        })
    }
}
