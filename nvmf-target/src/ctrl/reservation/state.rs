//! Registrants and reservation of one namespace: who may do what, and what a command changes.
//!
//! Pure: no lock, no I/O, no clock. A command either fails and changes nothing, or it succeeds, and
//! its [`Effects`] say whom to tell and whose commands to abort.

use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, NotificationType, RegisterAction,
    RegisterCommand, RegisterData, RegistrantExtended, RegistrantStatus, ReleaseAction,
    ReleaseCommand, ReleaseData, ReservationStatus, ReservationType,
};
use std::collections::BTreeMap;

/// HOSTID, 128 bits.
pub(crate) type HostId = [u8; 16];

/// Hosts that can be registered with a namespace. The specification knows no limit, but
/// registrations outlive their hosts' controllers, and a host may connect under ever new names.
pub(crate) const REGISTRANTS_MAX: usize = 4096;

/// The reservation that is held on a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// One registrant is the holder.
    One(ReservationType, HostId),
    /// Every registrant is a holder.
    All(ReservationType),
}

impl Held {
    fn by(host: HostId, rtype: ReservationType) -> Self {
        if rtype.is_all_registrants() {
            Self::All(rtype)
        } else {
            Self::One(rtype, host)
        }
    }

    pub(crate) const fn rtype(&self) -> ReservationType {
        match self {
            Self::One(rtype, _) | Self::All(rtype) => *rtype,
        }
    }
}

/// What a host may do with a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// The Read command group.
    pub(crate) read: bool,
    /// The Write command group, to which Flush belongs.
    pub(crate) write: bool,
}

/// What follows from a command that has succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Hosts on whose controllers a notification occurs.
    pub(crate) notify: Vec<(HostId, NotificationType)>,
    /// Hosts whose commands on the namespace are to end before this one does.
    pub(crate) abort: Vec<HostId>,
}

/// A reservation command with its data, apart from Reservation Report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Register(RegisterCommand, RegisterData),
    Acquire(AcquireCommand, AcquireData),
    Release(ReleaseCommand, ReleaseData),
}

/// Registrants and reservation of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// GEN.
    pub(crate) generation: u32,
    /// PTPLS: the state outlives a power loss.
    pub(crate) ptpl: bool,
    /// The keys of the registrants.
    pub(crate) registrants: BTreeMap<HostId, u64>,
    pub(crate) held: Option<Held>,
}

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

impl State {
    /// What a host may do (NVMe Base 2.1 §8.1.22.1, the table of reservation types).
    pub(crate) fn rights(&self, host: &HostId) -> Rights {
        let Some(held) = &self.held else {
            return Rights {
                read: true,
                write: true,
            };
        };
        let holds = matches!(held, Held::One(_, holder) if holder == host);
        let registered = || self.registrants.contains_key(host);
        let all = holds || (held.rtype().admits_registrants() && registered());
        Rights {
            read: all || !held.rtype().excludes_reads(),
            write: all,
        }
    }

    /// Whether every host may do the same in both states.
    pub(crate) fn same_rights(&self, other: &Self) -> bool {
        let of_registrants = self.held.is_some_and(|h| h.rtype().admits_registrants());
        self.held == other.held
            && (!of_registrants || self.registrants.keys().eq(other.registrants.keys()))
    }

    /// Carries out a command of a host. `can_persist`: there is where to keep what is to outlive a
    /// power loss.
    ///
    /// # Errors
    ///
    /// The status that the command ends with; then nothing has changed.
    pub(crate) fn execute(
        &mut self,
        host: HostId,
        command: &Command,
        can_persist: bool,
    ) -> Result<Effects, Status> {
        // NVMe Base 2.1 §8.1.22: with CTRATT.RHII set, a host without identifier has no part in
        // reservations, other than being excluded by them.
        if host == HostId::default() {
            return Err(Status::HOST_ID_NOT_INITIALIZED.dnr());
        }
        match command {
            Command::Register(command, data) => self.register(host, command, data, can_persist),
            Command::Acquire(command, data) => self.acquire(host, command, data),
            Command::Release(command, data) => self.release(host, command, data),
        }
    }

    /// Reservation Register (NVMe Base 2.1 §7.6, §8.1.22.3 and §8.1.22.4).
    fn register(
        &mut self,
        host: HostId,
        command: &RegisterCommand,
        data: &RegisterData,
        can_persist: bool,
    ) -> Result<Effects, Status> {
        let ptpl = match command.cptpl {
            ChangePtpl::NONE => self.ptpl,
            ChangePtpl::CLEAR => false,
            ChangePtpl::SET if can_persist => true,
            _ => return Err(INVALID),
        };
        let current = self.registrants.get(&host).copied();
        let effects = match command.action {
            RegisterAction::REGISTER | RegisterAction::REPLACE => {
                // PRKEY 0h of a Preempt does not stand for a key, so a registrant with that key
                // could not be preempted.
                if data.nrkey == 0 {
                    return Err(INVALID);
                }
                let allowed = match (command.action, current) {
                    (RegisterAction::REGISTER, key) => key.is_none_or(|key| key == data.nrkey),
                    (_, key) => command.iekey || key == Some(data.crkey),
                };
                if !allowed {
                    return Err(CONFLICT);
                }
                if current.is_none() && self.registrants.len() >= REGISTRANTS_MAX {
                    return Err(Status::INTERNAL_ERROR);
                }
                self.registrants.insert(host, data.nrkey);
                Effects::default()
            }
            RegisterAction::UNREGISTER => {
                let key = current.ok_or(CONFLICT)?;
                if !command.iekey && key != data.crkey {
                    return Err(CONFLICT);
                }
                self.unregister(host)
            }
            _ => return Err(INVALID),
        };
        self.ptpl = ptpl;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    /// A registrant leaves of its own accord. If it was the holder, or the last of them, the
    /// reservation ends.
    fn unregister(&mut self, host: HostId) -> Effects {
        self.registrants.remove(&host);
        let ends = match self.held {
            None => false,
            Some(Held::One(_, holder)) => holder == host,
            Some(Held::All(_)) => self.registrants.is_empty(),
        };
        let mut effects = Effects::default();
        if ends
            && let Some(held) = self.held.take()
            && held.rtype().admits_registrants()
        {
            // With the two types that do not distinguish registrants nobody is told.
            self.notify_registrants(host, &mut effects);
        }
        effects
    }

    /// Reservation Acquire (NVMe Base 2.1 §7.5, §8.1.22.5 and §8.1.22.7).
    fn acquire(
        &mut self,
        host: HostId,
        command: &AcquireCommand,
        data: &AcquireData,
    ) -> Result<Effects, Status> {
        let (action, rtype) = (command.action, command.rtype);
        if command.iekey || !rtype.is_defined() || action.0 > AcquireAction::PREEMPT_AND_ABORT.0 {
            return Err(INVALID);
        }
        self.check_key(&host, data.crkey)?;
        if action != AcquireAction::ACQUIRE {
            let mut effects = self.preempt(host, rtype, data.prkey)?;
            if action == AcquireAction::PREEMPT {
                effects.abort.clear();
            }
            self.generation = self.generation.wrapping_add(1);
            return Ok(effects);
        }
        match self.held {
            None => self.held = Some(Held::by(host, rtype)),
            // Its holder may acquire a reservation again, but not as another type.
            Some(held) if held == Held::by(host, rtype) => {}
            Some(_) => return Err(CONFLICT),
        }
        Ok(Effects::default())
    }

    fn preempt(
        &mut self,
        host: HostId,
        rtype: ReservationType,
        prkey: u64,
    ) -> Result<Effects, Status> {
        let before = self.held.map(|held| held.rtype());
        let mut effects = Effects::default();
        match self.held {
            // The reservation goes to the host that preempts it, even if that is its holder.
            Some(Held::One(_, holder)) if self.registrants.get(&holder) == Some(&prkey) => {
                self.remove(|other, key| *other != host && key == prkey, &mut effects);
                self.held = Some(Held::by(host, rtype));
            }
            Some(Held::One(..)) if prkey == 0 => return Err(INVALID),
            Some(Held::All(_)) if prkey == 0 => {
                self.remove(|other, _| *other != host, &mut effects);
                self.held = Some(Held::by(host, rtype));
            }
            Some(Held::All(_)) if !self.registrants.values().any(|&key| key == prkey) => {
                return Err(CONFLICT);
            }
            // Registrations only: also the host's own, if it is registered with that key.
            _ => {
                self.remove(|_, key| key == prkey, &mut effects);
                if self.registrants.is_empty() {
                    self.held = None;
                }
            }
        }
        let is_host = |other: &HostId| *other == host;
        effects.notify.retain(|(other, _)| !is_host(other));
        effects.abort.retain(|other| !is_host(other));
        if before.is_some() && before != self.held.map(|held| held.rtype()) {
            self.notify_registrants(host, &mut effects);
        }
        Ok(effects)
    }

    /// Unregisters the registrants for which `which` is true of host and key.
    fn remove(&mut self, which: impl Fn(&HostId, u64) -> bool, effects: &mut Effects) {
        self.registrants.retain(|other, key| {
            let gone = which(other, *key);
            if gone {
                let kind = NotificationType::REGISTRATION_PREEMPTED;
                effects.notify.push((*other, kind));
                effects.abort.push(*other);
            }
            !gone
        });
    }

    /// Reservation Release (NVMe Base 2.1 §7.7, §8.1.22.6 and §8.1.22.8).
    fn release(
        &mut self,
        host: HostId,
        command: &ReleaseCommand,
        data: &ReleaseData,
    ) -> Result<Effects, Status> {
        if command.iekey || command.action.0 > ReleaseAction::CLEAR.0 {
            return Err(INVALID);
        }
        self.check_key(&host, data.crkey)?;
        if command.action == ReleaseAction::CLEAR {
            return Ok(self.clear(host));
        }
        let mut effects = Effects::default();
        match self.held {
            Some(Held::One(_, holder)) if holder != host => {}
            None => {}
            Some(held) if held.rtype() != command.rtype => return Err(INVALID),
            Some(held) => {
                self.held = None;
                if held.rtype().admits_registrants() {
                    self.notify_registrants(host, &mut effects);
                }
            }
        }
        Ok(effects)
    }

    fn clear(&mut self, host: HostId) -> Effects {
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        let kind = NotificationType::RESERVATION_PREEMPTED;
        let others = std::mem::take(&mut self.registrants).into_keys();
        Effects {
            notify: others.filter(|h| *h != host).map(|h| (h, kind)).collect(),
            abort: Vec::new(),
        }
    }

    /// Whether a host is registered with this key.
    fn check_key(&self, host: &HostId, crkey: u64) -> Result<(), Status> {
        let ok = self.registrants.get(host) == Some(&crkey);
        if ok { Ok(()) } else { Err(CONFLICT) }
    }

    /// Reservation Released, for all registrants but one.
    fn notify_registrants(&self, but: HostId, effects: &mut Effects) {
        let kind = NotificationType::RESERVATION_RELEASED;
        let others = self.registrants.keys().filter(|other| **other != but);
        effects.notify.extend(others.map(|other| (*other, kind)));
    }

    /// Writes as much of the Reservation Status Extended data structure as `out` has room for, and
    /// zeroes behind it (NVMe Base 2.1 §7.8). `cntlid` names a controller of a host.
    pub(crate) fn report(&self, cntlid: impl Fn(&HostId) -> u16, out: &mut [u8]) {
        let mut header = [0; ReservationStatus::SIZE];
        ReservationStatus {
            generation: self.generation,
            rtype: self.held.map_or(ReservationType::NONE, |h| h.rtype()),
            registrants: u16::try_from(self.registrants.len()).unwrap_or(u16::MAX),
            ptpls: self.ptpl.into(),
        }
        .encode(&mut header);
        out.fill(0);
        copy(&header, out);
        let entries = out.chunks_mut(RegistrantExtended::SIZE).skip(1);
        for (entry, (host, key)) in entries.zip(&self.registrants) {
            let mut status = RegistrantStatus::empty();
            status.set(RegistrantStatus::HOLDER, self.holds(host));
            let mut bytes = [0; RegistrantExtended::SIZE];
            RegistrantExtended {
                cntlid: cntlid(host),
                status,
                rkey: *key,
                hostid: *host,
            }
            .encode(&mut bytes);
            copy(&bytes, entry);
        }
    }

    /// Whether a registrant is a holder.
    fn holds(&self, host: &HostId) -> bool {
        match &self.held {
            None => false,
            Some(Held::One(_, holder)) => holder == host,
            Some(Held::All(_)) => true,
        }
    }
}

/// As much of `from` as fits.
fn copy(from: &[u8], to: &mut [u8]) {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
}
