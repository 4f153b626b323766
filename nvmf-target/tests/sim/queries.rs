//! What hosts ask their controllers while everything else goes on: Identify, Get Log Page, Get and
//! Set Features. The answers are judged by all that was true while the command was under way.

use crate::command::{Command, What};
use crate::discovery::Part;
use crate::facts::{History, Namespace};
use crate::model::Place;
use crate::queue::Data;
use crate::rng::Rng;
use crate::world::{Outcome, World};
use crate::{note, stats, trace};
use nvmf_host::command;
use nvmf_proto::wire::feature::{
    AsyncEventConfig, FeatureSelect, Fid, GetFeatures, NumberOfQueues, SetFeatures,
};
use nvmf_proto::wire::identify::{
    Cns, ControllerType, IDENTIFY_SIZE, IdentifyCommand, IdentifyController, IdentifyNamespace,
    NSID_BROADCAST, decode_nsid_list,
};
use nvmf_proto::wire::log::{ErrorLogEntry, GetLogPage, Lid, decode_ana_log};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::{Cqe, Sqe};
use nvmf_target::{AnaState, Status};
use std::collections::BTreeMap;

/// Room that a host leaves on its admin queue for what is more urgent.
pub const RESERVE: usize = 8;
/// A log page is asked for at most so far.
const PAGE: u64 = 4096;
/// A CNS and an FID that there are not.
const NO_CNS: Cns = Cns(0x7f);
const NO_FID: Fid = Fid(0xc0);
/// Pages whose contents never change.
const FIXED: [Lid; 4] = [
    Lid::SUPPORTED_LOG_PAGES,
    Lid::FIRMWARE_SLOT,
    Lid::COMMAND_EFFECTS,
    Lid::FEATURE_EFFECTS,
];
/// Pages of every size and kind, and two that an I/O controller does not have.
const PAGES: [Lid; 11] = [
    FIXED[0],
    FIXED[1],
    FIXED[2],
    FIXED[3],
    Lid::ERROR_INFORMATION,
    Lid::SMART,
    Lid::CHANGED_NAMESPACES,
    Lid::ANA,
    Lid::RESERVATION_NOTIFICATION,
    Lid::DISCOVERY,
    Lid::TELEMETRY_HOST,
];

/// A question, with what makes it a wrong one.
#[derive(Clone, Debug)]
pub enum Query {
    Controller,
    Namespace(u32),
    /// The active NSIDs above this one.
    Active(u32),
    NoStructure,
    Log(Page),
    /// The log of a discovery controller.
    Discovery(Part),
    /// A page that a discovery controller does not have.
    NoPage(Lid),
    Get(Fid, FeatureSelect),
    Set(SetFeatures),
}

/// A part of a log page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    lid: Lid,
    nsid: u32,
    offset: u64,
    length: u32,
    retain: bool,
}

/// What answers have shown that must be the same in later ones.
#[derive(Debug, Default)]
pub struct Answers {
    /// The bytes of fixed log pages, by page and offset.
    pages: BTreeMap<(u8, u64), u8>,
}

/// The features that one association has set, by FID; `None`: it may be anything.
pub type Features = BTreeMap<u8, History<Option<u32>>>;

impl Query {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Controller => "Identify Controller",
            Self::Namespace(_) => "Identify Namespace",
            Self::Active(_) => "Identify (active NSIDs)",
            Self::NoStructure => "Identify (no structure)",
            Self::Log(_) | Self::NoPage(_) => "Get Log Page",
            Self::Discovery(_) => "Get Log Page (Discovery)",
            Self::Get(..) => "Get Features",
            Self::Set(_) => "Set Features",
        }
    }

    fn draw(rng: &mut Rng, nsids: &[u32], max_transfer: u64) -> Self {
        let wrong = rng.once_in(8);
        match rng.below(8) {
            0 => Self::Controller,
            1 => Self::Namespace(if wrong {
                rng.pick(&[0, NSID_BROADCAST])
            } else {
                rng.pick(nsids)
            }),
            2 => Self::Active(if wrong {
                NSID_BROADCAST - 1
            } else {
                rng.pick(&[0, 0, 1, 3, 1000])
            }),
            3 if wrong => Self::NoStructure,
            3..6 => Self::Log(Page::draw(rng, nsids, max_transfer, wrong)),
            6 => {
                let fids = [
                    Fid::KEEP_ALIVE_TIMER,
                    Fid::NUMBER_OF_QUEUES,
                    Fid::WRITE_ATOMICITY,
                    Fid::ASYNC_EVENT_CONFIG,
                    NO_FID,
                ];
                let selects = [0, 0, 0, 1, 2, 3, 4];
                Self::Get(rng.pick(&fids), FeatureSelect(rng.pick(&selects)))
            }
            _ => {
                let events = [
                    AsyncEventConfig::NAMESPACE_ATTRIBUTE,
                    AsyncEventConfig::ANA_CHANGE,
                    AsyncEventConfig::empty(),
                ];
                let set = if rng.once_in(2) {
                    SetFeatures::new(Fid::WRITE_ATOMICITY, rng.below(2) as u32)
                } else {
                    SetFeatures::new(Fid::ASYNC_EVENT_CONFIG, rng.pick(&events).bits())
                };
                Self::Set(match rng.below(4) {
                    0 if wrong => SetFeatures { sv: true, ..set },
                    1 if wrong => SetFeatures::new(NO_FID, 0),
                    // A notice that only a discovery controller has.
                    _ if wrong => SetFeatures::new(
                        Fid::ASYNC_EVENT_CONFIG,
                        AsyncEventConfig::DISCOVERY_LOG.bits(),
                    ),
                    _ => set,
                })
            }
        }
    }

    fn encode(&self) -> (Sqe, Data) {
        let identify = |nsid, cns| {
            (
                command::identify(nsid, &IdentifyCommand::new(cns)),
                Data::Read(IDENTIFY_SIZE as u32),
            )
        };
        match *self {
            Self::Controller => identify(0, Cns::CONTROLLER),
            Self::Namespace(nsid) => identify(nsid, Cns::NAMESPACE),
            Self::Active(above) => identify(above, Cns::ACTIVE_NSID_LIST),
            Self::NoStructure => identify(0, NO_CNS),
            Self::Log(page) => page.encode(),
            Self::Discovery(part) => part.encode(),
            Self::NoPage(lid) => {
                let get = GetLogPage::new(lid, 512);
                (command::get_log_page(NSID_BROADCAST, &get), Data::Read(512))
            }
            Self::Get(fid, sel) => {
                let get = GetFeatures {
                    sel,
                    ..GetFeatures::new(fid)
                };
                (command::get_features(0, &get), Data::None)
            }
            Self::Set(ref set) => (command::set_features(0, set), Data::None),
        }
    }

    /// The error that it must end with, whatever the world is like.
    fn refusal(&self, max_transfer: u64) -> Option<Status> {
        let reason = match self {
            Self::Controller => return None,
            Self::Namespace(nsid) => {
                return (*nsid == 0 || *nsid == NSID_BROADCAST)
                    .then_some(Status::INVALID_NAMESPACE);
            }
            Self::Active(above) => {
                return (*above >= NSID_BROADCAST - 1).then_some(Status::INVALID_NAMESPACE);
            }
            Self::NoStructure => true,
            Self::NoPage(_) => return Some(Status::INVALID_LOG_PAGE),
            Self::Discovery(_) => false,
            Self::Log(page) if matches!(page.lid, Lid::DISCOVERY | Lid::TELEMETRY_HOST) => {
                return Some(Status::INVALID_LOG_PAGE);
            }
            Self::Log(page) => page.is_wrong(max_transfer),
            Self::Get(fid, select) => *fid == NO_FID || select.0 > FeatureSelect::CAPABILITIES.0,
            Self::Set(set) if set.sv => return Some(Status::FEATURE_NOT_SAVEABLE),
            Self::Set(set) => {
                let discovery = AsyncEventConfig::DISCOVERY_LOG.bits();
                set.fid == NO_FID || set.cdw11 & discovery != 0
            }
        };
        reason.then_some(Status::INVALID_FIELD)
    }
}

impl Page {
    fn draw(rng: &mut Rng, nsids: &[u32], max_transfer: u64, wrong: bool) -> Self {
        let lid = rng.pick(&PAGES);
        let mut page = Self {
            lid,
            nsid: rng.pick(&[0, NSID_BROADCAST]),
            offset: rng.pick(&[0, 0, 4, 60]),
            length: rng.pick(&[4, 64, 512, 4096]),
            retain: rng.once_in(2),
        };
        if lid == Lid::SMART && rng.once_in(2) {
            page.nsid = rng.pick(nsids);
        }
        if lid == Lid::ANA {
            // As a rule all of it, which is what can be judged.
            page.offset = rng.pick(&[0, 0, 0, 4]);
            page.length = PAGE as u32;
        }
        match rng.below(3) {
            0 if wrong => page.offset = 2,
            1 if wrong => page.offset = 1 << 20,
            _ if wrong => page.length = max_transfer as u32 + 4,
            _ => {}
        }
        page
    }

    const fn is_wrong(&self, max_transfer: u64) -> bool {
        !self.offset.is_multiple_of(4) || self.offset > PAGE || self.length as u64 > max_transfer
    }

    fn encode(self) -> (Sqe, Data) {
        let get = GetLogPage {
            lpo: self.offset,
            rae: self.retain,
            ..GetLogPage::new(self.lid, self.length)
        };
        (
            command::get_log_page(self.nsid, &get),
            Data::Read(self.length),
        )
    }
}

impl World {
    /// A host asks its controller something; false if it has no room for that.
    pub fn ask(&mut self, association: usize) -> bool {
        let it = &self.associations[association];
        if !it.queues[0].has_room_for(RESERVE) {
            return false;
        }
        let of = &self.model.subsystems[it.plan.subsystem];
        let nsids: Vec<u32> = of.namespaces.keys().copied().chain([1000]).collect();
        let query = Query::draw(&mut self.rng, &nsids, self.model.max_transfer);
        self.send_query(association, query);
        true
    }

    pub fn send_query(&mut self, association: usize, query: Query) {
        note!("association {} asks: {}", association, query.name());
        if trace::wants_lines() {
            trace::line(format_args!("    {query:?}"));
        }
        let (sqe, data) = query.encode();
        let refused = query.refusal(self.model.max_transfer).is_some();
        let start = trace::stamp();
        let it = &mut self.associations[association];
        if let Query::Set(set) = &query
            && !refused
        {
            it.features
                .entry(set.fid.0)
                .or_insert_with(|| History::new(Some(0)))
                .set(start, Some(set.cdw11));
        }
        let command = Command::new(What::Query(query), start, trace::now());
        it.last_submit = trace::now();
        it.queues[0].submit(sqe, data, command);
    }

    /// A question was answered.
    pub fn answered(
        &mut self,
        association: usize,
        place: Place,
        (command, query): (&Command, &Query),
        cqe: &Cqe,
        data: &[u8],
    ) -> Outcome {
        let status = cqe.status.without_more();
        stats::count(query.name(), status);
        if !status.is_success() && matches!(query, Query::Discovery(_)) {
            self.miss_part(association);
        }
        let verdict = if status.is_success() {
            self.told(association, place, (command, query), cqe, data)
        } else {
            if let Query::Set(set) = query
                && let Some(history) = self.associations[association].features.get_mut(&set.fid.0)
            {
                // It may have been set all the same, or not.
                history.set(trace::stamp(), None);
            }
            self.may_refuse(place, command, query, status)
        };
        verdict.map_err(|why| format!("{query:?} ended with {status}: {why}"))
    }

    fn may_refuse(
        &self,
        place: Place,
        command: &Command,
        query: &Query,
        status: Status,
    ) -> Outcome {
        let is = |other: Status| status.same_code(other);
        let wanted = query.refusal(self.model.max_transfer);
        // A namespace that is not there has no health.
        let missing = match query {
            Query::Log(page) if page.lid == Lid::SMART => {
                let seen = self.namespaces_of(place, page.nsid, command.start);
                let named = page.nsid != 0 && page.nsid != NSID_BROADCAST;
                named && seen.iter().any(Option::is_none)
            }
            _ => false,
        };
        let behind = match query {
            Query::Discovery(part) => self.may_be_behind(place.host, command.start, *part),
            _ => false,
        };
        let allowed = wanted.is_some_and(is)
            || (behind && is(Status::INVALID_FIELD))
            || (missing && (is(Status::INVALID_FIELD) || is(Status::INVALID_NAMESPACE)))
            || (place.stopping && is(Status::COMMAND_SEQUENCE_ERROR))
            || ((place.stopping || place.expired) && is(Status::ABORTED_SQ_DELETION))
            || (place.spoiled && is(Status::TRANSIENT_TRANSPORT_ERROR))
            || (command.unwanted && is(Status::ABORT_REQUESTED))
            || (self.model.tight && is(Status::COMMAND_INTERRUPTED));
        allowed
            .then_some(())
            .ok_or_else(|| format!("{wanted:?} was to be expected"))
    }

    fn namespaces_of(&self, place: Place, nsid: u32, start: u64) -> Vec<Option<Namespace>> {
        self.model.subsystems[place.subsystem].namespaces_since(nsid, start)
    }

    fn told(
        &mut self,
        association: usize,
        place: Place,
        (command, query): (&Command, &Query),
        cqe: &Cqe,
        data: &[u8],
    ) -> Outcome {
        if let Some(status) = query.refusal(self.model.max_transfer) {
            return Err(format!("it should have ended with {status}"));
        }
        let structure = || {
            let whole = data.first_chunk::<IDENTIFY_SIZE>();
            whole.ok_or_else(|| format!("{} bytes of data came", data.len()))
        };
        match query {
            Query::Controller => self.check_controller(association, place, structure()?),
            Query::Namespace(nsid) => {
                let told = IdentifyNamespace::decode(structure()?);
                self.check_namespace(place, *nsid, command.start, &told)
            }
            Query::Active(above) => {
                let told: Vec<u32> = decode_nsid_list(structure()?).collect();
                self.check_active(place, *above, command.start, &told)
            }
            Query::Discovery(part) => self.check_part(association, command.start, *part, data),
            Query::Log(page) if data.len() != page.length as usize => {
                Err(format!("{} bytes of data came", data.len()))
            }
            Query::Log(page) => self.check_page(place, command.start, page, data),
            Query::Get(fid, select) => {
                self.check_feature(association, command.start, (*fid, *select), cqe.result)
            }
            Query::Set(_) | Query::NoStructure | Query::NoPage(_) => Ok(()),
        }
    }

    fn check_controller(
        &self,
        association: usize,
        place: Place,
        data: &[u8; IDENTIFY_SIZE],
    ) -> Outcome {
        let told = IdentifyController::decode(data);
        if self.associations[association].plan.discovery {
            let right = Some(told.cntlid) == self.associations[association].cntlid
                && told.subnqn == Nqn::discovery().to_field()
                && told.cntrltype == ControllerType::DISCOVERY;
            return right
                .then_some(())
                .ok_or_else(|| format!("that is another controller: CNTLID {}", told.cntlid));
        }
        let nqn = &self.model.subsystems[place.subsystem].nqn;
        let field = Nqn::new(nqn).map(|nqn| nqn.to_field());
        let mdts = (self.model.max_transfer / 4096).ilog2();
        let right = Some(told.cntlid) == self.associations[association].cntlid
            && Ok(told.subnqn) == field
            && u32::from(told.mdts) == mdts
            && told.cntrltype == ControllerType::IO
            && told.ioccsz == (64 + self.plan.in_capsule) / 16;
        right
            .then_some(())
            .ok_or_else(|| format!("that is another controller: CNTLID {}", told.cntlid))
    }

    fn check_namespace(
        &self,
        place: Place,
        nsid: u32,
        start: u64,
        told: &IdentifyNamespace,
    ) -> Outcome {
        let seen = self.namespaces_of(place, nsid, start);
        let is = |ns: &Option<Namespace>| match ns {
            None => *told == IdentifyNamespace::default(),
            Some(ns) => {
                let states = &self.model.subsystems[place.subsystem];
                let states = states.ana_since(place.listener, ns.group, start);
                // At a port that does not reach the namespace it is not known what is in use.
                let hidden =
                    |s: &AnaState| matches!(s, AnaState::Inaccessible | AnaState::PersistentLoss);
                let used = |s: &AnaState| if hidden(s) { 0 } else { ns.blocks };
                told.nsze == ns.blocks
                    && told.ncap == ns.blocks
                    && told.anagrpid == ns.group
                    && 1 << told.formatted().data_size_log2 == ns.block_size
                    && states.iter().any(|s| told.nuse == used(s))
            }
        };
        seen.iter().any(is).then_some(()).ok_or_else(|| {
            let IdentifyNamespace {
                nsze,
                nuse,
                anagrpid,
                ..
            } = told;
            format!("NSZE {nsze}, NUSE {nuse}, group {anagrpid}; there was {seen:?}")
        })
    }

    fn check_active(&self, place: Place, above: u32, start: u64, told: &[u32]) -> Outcome {
        let ascending = told.windows(2).all(|pair| pair[0] < pair[1]);
        let known = &self.model.subsystems[place.subsystem].namespaces;
        let right = known.keys().filter(|nsid| **nsid > above).all(|nsid| {
            let seen = self.namespaces_of(place, *nsid, start);
            let present = told.contains(nsid);
            seen.iter().any(|ns| ns.is_some() == present)
        });
        let unknown = told
            .iter()
            .any(|nsid| !known.contains_key(nsid) || *nsid <= above);
        (ascending && right && !unknown)
            .then_some(())
            .ok_or_else(|| format!("they cannot be {told:?}"))
    }

    fn check_page(&mut self, place: Place, start: u64, page: &Page, data: &[u8]) -> Outcome {
        if FIXED.contains(&page.lid) {
            for (&byte, at) in data.iter().zip(page.offset..) {
                let known = *self.answers.pages.entry((page.lid.0, at)).or_insert(byte);
                if known != byte {
                    return Err(format!("byte {at} is {byte}, and was {known}"));
                }
            }
        }
        match page.lid {
            Lid::SMART if page.nsid != 0 && page.nsid != NSID_BROADCAST => {
                let seen = self.namespaces_of(place, page.nsid, start);
                let there = seen.iter().any(Option::is_some);
                there
                    .then_some(())
                    .ok_or_else(|| "there is no such namespace".to_owned())
            }
            Lid::ANA if page.offset == 0 => self.check_ana(place, start, data),
            Lid::ERROR_INFORMATION if page.offset == 0 => check_errors(data),
            Lid::CHANGED_NAMESPACES if page.offset == 0 => {
                let known = &self.model.subsystems[place.subsystem].namespaces;
                let words = data.chunks_exact(4).filter_map(|bytes| bytes.first_chunk());
                let told: Vec<u32> = words
                    .map(|bytes| u32::from_le_bytes(*bytes))
                    .take_while(|nsid| *nsid != 0)
                    .collect();
                let ascending = told.windows(2).all(|pair| pair[0] < pair[1]);
                (ascending && told.iter().all(|nsid| known.contains_key(nsid)))
                    .then_some(())
                    .ok_or_else(|| format!("{told:?} cannot have changed"))
            }
            _ => Ok(()),
        }
    }

    /// Each group in a state that it was in, with the namespaces that were in it.
    fn check_ana(&self, place: Place, start: u64, data: &[u8]) -> Outcome {
        let (_, groups) = decode_ana_log(data).ok_or("the page is cut short")?;
        let subsystem = &self.model.subsystems[place.subsystem];
        for group in &groups {
            let states = subsystem.ana_since(place.listener, group.anagrpid, start);
            if !states.iter().any(|s| code(*s) == group.state.0) {
                return Err(format!("{group:?} was in none of {states:?}"));
            }
        }
        let ascending = groups.windows(2).all(|p| p[0].anagrpid < p[1].anagrpid);
        for nsid in subsystem.namespaces.keys() {
            let told: Vec<u32> = groups
                .iter()
                .filter(|group| group.nsids.contains(nsid))
                .map(|group| group.anagrpid)
                .collect();
            let seen = self.namespaces_of(place, *nsid, start);
            let is = |ns: &Option<Namespace>| match ns {
                None => told.is_empty(),
                Some(ns) => told == [ns.group],
            };
            if !ascending || !seen.iter().any(is) {
                return Err(format!(
                    "namespace {nsid} is in {told:?}; there was {seen:?}"
                ));
            }
        }
        Ok(())
    }

    fn check_feature(
        &self,
        association: usize,
        start: u64,
        (fid, select): (Fid, FeatureSelect),
        value: u64,
    ) -> Outcome {
        if select != FeatureSelect::CURRENT {
            return Ok(());
        }
        let it = &self.associations[association];
        let wanted: Vec<Option<u32>> = match fid {
            Fid::KEEP_ALIVE_TIMER => vec![Some(it.plan.kato as u32 * 1000)],
            Fid::NUMBER_OF_QUEUES => {
                vec![Some(NumberOfQueues::pairs(it.plan.queues).to_bits())]
            }
            _ => match it.features.get(&fid.0) {
                Some(history) => history.since(start).copied().collect(),
                None => vec![Some(0)],
            },
        };
        let fits = |v: &Option<u32>| v.is_none_or(|v| u64::from(v) == value);
        wanted
            .iter()
            .any(fits)
            .then_some(())
            .ok_or_else(|| format!("{value:#x}, and {wanted:x?} was set"))
    }
}

/// Entries of the error log: the latest first, each with a count of its own.
fn check_errors(data: &[u8]) -> Outcome {
    let entries = data
        .chunks_exact(ErrorLogEntry::SIZE)
        .filter_map(|bytes| bytes.first_chunk())
        .map(|bytes| ErrorLogEntry::decode(bytes).error_count);
    let counts: Vec<u64> = entries.collect();
    let falling = |pair: &[u64]| pair[0] > pair[1] || pair == [0, 0];
    counts
        .windows(2)
        .all(falling)
        .then_some(())
        .ok_or_else(|| format!("errors are counted {counts:?}"))
}

/// ANA state as the log page has it.
const fn code(state: AnaState) -> u8 {
    use nvmf_proto::wire::log::AnaStateCode as Code;
    match state {
        AnaState::Optimized => Code::OPTIMIZED.0,
        AnaState::NonOptimized => Code::NON_OPTIMIZED.0,
        AnaState::Inaccessible => Code::INACCESSIBLE.0,
        AnaState::PersistentLoss => Code::PERSISTENT_LOSS.0,
        AnaState::Change => Code::CHANGE.0,
    }
}
