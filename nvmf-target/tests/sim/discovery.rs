//! Discovery controllers: what their log shows each host while subsystems, listeners and host lists
//! change, and that they tell of it.

use crate::association::Association;
use crate::command::{Command, What};
use crate::facts::History;
use crate::queries::{Query, RESERVE};
use crate::queue::Data;
use crate::trace;
use crate::world::{Outcome, World};
use nvmf_host::command;
use nvmf_proto::wire::Sqe;
use nvmf_proto::wire::discovery::{DiscoveryLogEntry, DiscoveryLogHeader, SubsystemType};
use nvmf_proto::wire::fabrics::CNTLID_DYNAMIC;
use nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid};
use nvmf_proto::wire::nqn::Nqn;
use std::collections::BTreeMap;

/// Header and entries have the same size.
const BLOCK: usize = DiscoveryLogEntry::SIZE;
/// As much as one command may ask for in every plan: the whole log, as a rule.
const WHOLE: u32 = 8192;
/// Pages that a discovery controller does not have.
pub const NO_PAGES: [Lid; 3] = [Lid::SMART, Lid::ANA, Lid::CHANGED_NAMESPACES];

/// What the log says to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// 1, and one more with each change of what this host is shown.
    genctr: u64,
    /// SUBNQN and TRADDR of all ways to NVM subsystems, sorted.
    ways: Vec<(String, String)>,
}

/// A part of the log that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    offset: u64,
    length: u32,
    retain: bool,
}

/// What a host knows of its log, by one discovery controller.
#[derive(Debug, Default)]
pub struct Watch {
    /// It is to be told of changes.
    on: bool,
    /// It knows this GENCTR, or one up to `high`.
    low: u64,
    high: u64,
    /// It has been told that there is another one, and is not told again.
    heard: bool,
    /// A read has failed that would have changed that.
    unsure: bool,
    reading: Option<Reading>,
}

/// A log that is read part by part.
#[derive(Debug)]
struct Reading {
    genctr: u64,
    /// Bytes in all.
    size: usize,
    bytes: Vec<u8>,
}

impl Reading {
    fn is_complete(&self) -> bool {
        self.bytes.len() >= self.size
    }

    fn take(&mut self, data: &[u8]) {
        let room = self.size.saturating_sub(self.bytes.len());
        self.bytes.extend(&data[..data.len().min(room)]);
    }
}

impl Part {
    pub fn encode(self) -> (Sqe, Data) {
        let get = GetLogPage {
            lpo: self.offset,
            rae: self.retain,
            ..GetLogPage::new(Lid::DISCOVERY, self.length)
        };
        (command::get_log_page(0, &get), Data::Read(self.length))
    }
}

impl Log {
    pub const fn new() -> Self {
        Self {
            genctr: 1,
            ways: Vec::new(),
        }
    }

    /// Bytes of the page.
    fn size(&self) -> usize {
        // There is an entry for the discovery subsystem itself.
        (self.ways.len() + 2) * BLOCK
    }

    /// Whether a page, from its beginning to its end or beyond, says this. `port`: where the host has
    /// come in.
    fn check(&self, page: &[u8], port: &str) -> Outcome {
        let (mut found, mut own, mut ports) = (Vec::new(), Vec::new(), BTreeMap::new());
        let (entries, rest) = page[BLOCK..].split_at(self.size() - BLOCK);
        for block in entries.chunks_exact(BLOCK) {
            let entry = DiscoveryLogEntry::decode(block.try_into().expect("its size"));
            let nqn = entry.subsystem_nqn().map_err(|err| err.to_string())?;
            let way = (nqn.as_str().to_owned(), entry.address());
            let known = *ports.entry(way.1.clone()).or_insert(entry.portid);
            if entry.cntlid != CNTLID_DYNAMIC || known != entry.portid {
                return Err(format!("{entry:?} is not a way to a dynamic controller"));
            }
            match entry.subtype {
                SubsystemType::NVM => found.push(way),
                SubsystemType::CURRENT_DISCOVERY => own.push(way),
                other => return Err(format!("there is an entry of subtype {other:?}")),
            }
        }
        let ids: std::collections::BTreeSet<u16> = ports.values().copied().collect();
        found.sort();
        let here = (Nqn::discovery().as_str().to_owned(), port.to_owned());
        let right = found == self.ways && own == [here] && ids.len() == ports.len();
        if right && rest.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(format!(
            "{found:?} and {own:?} are shown instead of {self:?}"
        ))
    }
}

impl World {
    /// The ways that the log has to show a host at this moment.
    fn ways(&self, host: usize) -> Vec<(String, String)> {
        let extra = self.extra.then(|| EXTRA.to_owned());
        let of = self.model.subsystems.iter();
        let allowed = of.filter(|subsystem| !subsystem.is_barred(host));
        let nqns = allowed.map(|subsystem| subsystem.nqn.clone()).chain(extra);
        let open = || self.doors.iter().filter(|door| door.is_open());
        let mut ways: Vec<_> = nqns
            .flat_map(|nqn| open().map(move |door| (nqn.clone(), door.name().to_owned())))
            .collect();
        ways.sort();
        ways
    }

    /// Subsystems, listeners or host lists have changed, once.
    pub fn topology_changed(&mut self) {
        for host in 0..self.logs.len() {
            let ways = self.ways(host);
            let now = self.logs[host].now();
            if now.ways != ways {
                let genctr = now.genctr + 1;
                self.logs[host].set(trace::stamp(), Log { genctr, ways });
            }
        }
    }

    /// A subsystem that has no namespaces comes or goes.
    pub fn toggle_subsystem(&mut self) -> bool {
        let target = self.sim.target().clone();
        if self.extra {
            target.remove_subsystem(EXTRA).expect("it is there");
        } else {
            self.configure_subsystem(EXTRA);
        }
        self.extra = !self.extra;
        self.topology_changed();
        true
    }

    /// A host asks a discovery controller something; false if it has no room for that.
    pub fn ask_discovery(&mut self, association: usize) -> bool {
        let admin = &self.associations[association].queues[0];
        let is_reading = |c: &Command| matches!(c.what, What::Query(Query::Discovery(_)));
        if !admin.has_room_for(RESERVE) || admin.commands().any(is_reading) {
            return false;
        }
        let query = match self.rng.below(8) {
            0 => Query::Controller,
            1 => Query::NoPage(self.rng.pick(&NO_PAGES)),
            _ => Query::Discovery(self.next_part(association)),
        };
        self.send_query(association, query);
        true
    }

    /// What a host reads next: on where it is, the beginning again once it has come to the end.
    fn next_part(&mut self, association: usize) -> Part {
        let retain = self.rng.once_in(3);
        let reading = self.associations[association].watch.reading.as_ref();
        let (offset, lengths): (u64, &[u32]) = match reading {
            Some(reading) if !reading.is_complete() => {
                (reading.bytes.len() as u64, &[1024, 1000, 2500, 4096])
            }
            Some(_) => (0, &[16]),
            None => (0, &[16, 1024, 2048, WHOLE, WHOLE, WHOLE]),
        };
        Part {
            offset,
            length: self.rng.pick(lengths),
            retain,
        }
    }

    /// The logs of an association's host since a moment.
    fn logs_since(&self, it: &Association, start: u64) -> Vec<Log> {
        self.logs[it.host].since(start).cloned().collect()
    }

    /// From the command that began at `start` on its host is told of changes.
    pub fn begin_watch(&mut self, association: usize, start: u64) {
        let logs = self.logs_since(&self.associations[association], start);
        self.associations[association].watch = Watch {
            on: true,
            low: logs[0].genctr,
            high: logs[logs.len() - 1].genctr,
            ..Watch::default()
        };
    }

    /// A part of the log has come.
    pub fn check_part(
        &mut self,
        association: usize,
        start: u64,
        part: Part,
        data: &[u8],
    ) -> Outcome {
        let it = &self.associations[association];
        let logs = self.logs_since(it, start);
        let port = self.doors[it.plan.listener].name().to_owned();
        let watch = &mut self.associations[association].watch;
        let (mut low, mut high) = (logs[0].genctr, logs[logs.len() - 1].genctr);
        if data.len() != part.length as usize {
            return Err(format!("{} bytes of data came", data.len()));
        }
        if logs.iter().all(|log| log.size() < part.offset as usize) {
            return Err(format!("there was nothing: {logs:?}"));
        }
        if part.offset > 0 {
            if let Some(reading) = &mut watch.reading {
                reading.take(data);
            }
        } else {
            let mut header = [0; BLOCK];
            let known = data.len().min(BLOCK);
            header[..known].copy_from_slice(&data[..known]);
            let header = DiscoveryLogHeader::decode(&header);
            let DiscoveryLogHeader { genctr, numrec, .. } = header;
            let is_it =
                |log: &&Log| log.genctr == genctr && log.size() == (numrec as usize + 1) * BLOCK;
            let log = logs.iter().find(is_it);
            let log = log.ok_or_else(|| format!("{header:?}, and there was {logs:?}"))?;
            (low, high) = (genctr, genctr);
            // What was read part by part is one log if there is no other yet.
            if let Some(read) = watch.reading.take()
                && read.is_complete()
                && read.genctr == genctr
            {
                log.check(&read.bytes, &port)?;
            } else if data.len() >= log.size() {
                log.check(data, &port)?;
            } else {
                let mut reading = Reading {
                    genctr,
                    size: log.size(),
                    bytes: Vec::new(),
                };
                reading.take(data);
                watch.reading = Some(reading);
            }
        }
        if !part.retain {
            (watch.low, watch.high) = (low, high);
            (watch.heard, watch.unsure) = (false, false);
        }
        Ok(())
    }

    /// Whether a part of the log may have been behind its end.
    pub fn may_be_behind(&self, host: usize, start: u64, part: Part) -> bool {
        let mut logs = self.logs[host].since(start);
        logs.any(|log| log.size() < part.offset as usize)
    }

    /// A part of the log has not come.
    pub fn miss_part(&mut self, association: usize) {
        let watch = &mut self.associations[association].watch;
        watch.unsure = true;
        watch.reading = None;
    }

    /// An event has come: on a discovery controller there is only one, and it must be true and new.
    pub fn hear(&mut self, association: usize, dw0: u32) -> Outcome {
        let it = &mut self.associations[association];
        if !it.plan.discovery {
            return Ok(());
        }
        let log = self.logs[it.host].now();
        let is_news = !it.watch.heard && log.genctr != it.watch.low;
        let may_be = it.watch.on && (is_news || it.watch.unsure);
        if dw0 != AsyncEvent::DISCOVERY_LOG_CHANGED.dw0() || !may_be {
            let watch = &it.watch;
            return Err(format!("event {dw0:#x}, with {watch:?} and {log:?}"));
        }
        it.watch.heard = true;
        Ok(())
    }

    /// With nothing under way every host knows that its log has changed, if it has.
    pub fn check_notices(&self) -> Outcome {
        for (index, it) in self.associations.iter().enumerate() {
            let awaits =
                |q: &crate::queue::Queue| q.commands().any(|c| matches!(c.what, What::Event));
            let watch = &it.watch;
            let told = !watch.on || watch.heard || watch.unsure;
            if told || it.excuse.is_some() || !it.queues.first().is_some_and(awaits) {
                continue;
            }
            let log = self.logs[it.host].now();
            if log.genctr != watch.high {
                return Err(format!(
                    "association {index} was not told of {log:?}: {watch:?}"
                ));
            }
        }
        Ok(())
    }
}

/// A subsystem that comes and goes.
const EXTRA: &str = "nqn.2026-11.org.example:extra";

/// The logs of the hosts of a plan, before there is anything to show.
pub fn blank_logs(hosts: usize) -> Vec<History<Log>> {
    vec![History::new(Log::new()); hosts]
}
