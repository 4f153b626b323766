//! The persistent event log of a subsystem: what happened to it, as long as the target runs.
//!
//! Events are kept as they are reported. The oldest make room for new ones, so that the log never
//! exceeds [`PersistentLog::MAX`] bytes.

use super::controller::Clock;
use super::{NsEntry, Subsystem, Visibility, lock};
use nvmf_proto::wire::feature::Timestamp;
use nvmf_proto::wire::identify::Nmic;
use nvmf_proto::wire::log::{
    Lid, NamespaceChange, PersistentEventHeader, PersistentEventLogHeader, PersistentEventType,
    ReportingContext, ResetInformation, SmartLog, TimestampChange,
};
use nvmf_proto::wire::nqn::Nqn;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

/// CNTLID of what happened to no controller in particular.
const NO_CONTROLLER: u16 = 0xffff;

#[derive(Debug)]
pub(crate) struct PersistentLog {
    /// What Power On Hours count from.
    started: Instant,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// The newest in front.
    events: VecDeque<Event>,
    /// Bytes of all events.
    size: usize,
    /// One clock for all events, so that they stand in order: the latest that a host has set.
    clock: Clock,
    /// Of the reporting context made last.
    generation: u16,
}

#[derive(Debug)]
struct Event {
    /// Which hosts may know of it.
    visibility: Visibility,
    /// Header and data.
    bytes: Box<[u8]>,
}

/// What is the same for all reports of a subsystem.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) vid: u16,
    pub(crate) ssvid: u16,
    pub(crate) sn: [u8; 20],
    pub(crate) mn: [u8; 40],
    pub(crate) subnqn: [u8; 256],
}

impl PersistentLog {
    /// The most bytes of a report: PELS in units of 64 KiB.
    const MAX: usize = Self::PELS as usize * (64 << 10);
    /// PELS of Identify Controller.
    pub(crate) const PELS: u32 = 1;

    /// A log with its first event, a power-on.
    pub(crate) fn new(firmware: [u8; 8]) -> Self {
        let log = Self {
            started: Instant::now(),
            log: Mutex::default(),
        };
        log.record_for(
            Visibility::All,
            NO_CONTROLLER,
            PersistentEventType::POWER_ON_OR_RESET,
            &firmware,
        );
        log
    }

    /// How long the subsystem has been there.
    pub(crate) fn power_on_hours(&self) -> u128 {
        u128::from(self.started.elapsed().as_secs() / 3600)
    }

    /// A controller has been reset, or is new.
    pub(crate) fn reset(&self, firmware: [u8; 8], cntlid: u16, timestamp: Timestamp) {
        let mut data = [0; 8 + ResetInformation::SIZE];
        let (revision, information) = data.split_at_mut(8);
        revision.copy_from_slice(&firmware);
        if let Some(out) = information.first_chunk_mut() {
            ResetInformation {
                cntlid,
                power_cycle: 1,
                power_on: milliseconds_since(self.started),
                timestamp,
                ..ResetInformation::default()
            }
            .encode(out);
        }
        self.record(cntlid, PersistentEventType::POWER_ON_OR_RESET, &data);
    }

    /// A host has set the timestamp of its controller, which was reset at `reset_at`.
    pub(super) fn timestamp_set(&self, cntlid: u16, clock: Clock, reset_at: Instant) {
        let previous = {
            let mut log = lock(&self.log);
            std::mem::replace(&mut log.clock, clock).now()
        };
        let mut data = [0; TimestampChange::SIZE];
        TimestampChange {
            previous,
            since_reset: milliseconds_since(reset_at),
        }
        .encode(&mut data);
        self.record(cntlid, PersistentEventType::TIMESTAMP_CHANGE, &data);
    }

    /// A namespace was attached or detached, which concerns those that it is there for.
    pub(crate) fn namespace_changed(&self, visibility: Visibility, change: &NamespaceChange) {
        let mut data = [0; NamespaceChange::SIZE];
        change.encode(&mut data);
        let event = PersistentEventType::CHANGE_NAMESPACE;
        self.record_for(visibility, NO_CONTROLLER, event, &data);
    }

    /// What a controller has counted, before it is gone.
    pub(crate) fn smart_snapshot(&self, cntlid: u16, smart: &SmartLog) {
        let mut data = [0; SmartLog::SIZE];
        smart.encode(&mut data);
        self.record(cntlid, PersistentEventType::SMART_SNAPSHOT, &data);
    }

    fn record(&self, cntlid: u16, event: PersistentEventType, data: &[u8]) {
        self.record_for(Visibility::All, cntlid, event, data);
    }

    fn record_for(
        &self,
        visibility: Visibility,
        cntlid: u16,
        event: PersistentEventType,
        data: &[u8],
    ) {
        let mut log = lock(&self.log);
        let mut header = [0; PersistentEventHeader::SIZE];
        PersistentEventHeader {
            event,
            revision: 1,
            header_length: PersistentEventHeader::LENGTH,
            additional: PersistentEventHeader::NO_PORT,
            cntlid,
            timestamp: log.clock.now(),
            length: u16::try_from(data.len()).unwrap_or(u16::MAX),
            ..PersistentEventHeader::default()
        }
        .encode(&mut header);
        let bytes: Box<[u8]> = [&header, data].concat().into();
        log.size += bytes.len();
        log.events.push_front(Event { visibility, bytes });
        while log.size > Self::MAX - PersistentEventLogHeader::SIZE
            && let Some(oldest) = log.events.pop_back()
        {
            log.size -= oldest.bytes.len();
        }
    }

    /// The length of a report that is made now.
    pub(crate) fn length(&self, host: &Nqn) -> usize {
        let log = lock(&self.log);
        let events: usize = log.seen_by(host).map(<[u8]>::len).sum();
        PersistentEventLogHeader::SIZE + events
    }

    /// A report for a host: the whole log page as it is now.
    pub(crate) fn report(
        &self,
        host: &Nqn,
        identity: &Identity,
        context: ReportingContext,
    ) -> Vec<u8> {
        let mut log = lock(&self.log);
        log.generation = log.generation.wrapping_add(1);
        let mut page = vec![0; PersistentEventLogHeader::SIZE];
        let mut count = 0;
        for event in log.seen_by(host) {
            page.extend_from_slice(event);
            count += 1;
        }
        let mut header = PersistentEventLogHeader {
            lid: Lid::PERSISTENT_EVENT,
            tnev: count,
            tll: page.len() as u64,
            revision: PersistentEventLogHeader::REVISION,
            header_length: PersistentEventLogHeader::LENGTH,
            timestamp: log.clock.now(),
            power_on_hours: self.power_on_hours(),
            power_cycles: 1,
            vid: identity.vid,
            ssvid: identity.ssvid,
            sn: identity.sn,
            mn: identity.mn,
            subnqn: identity.subnqn,
            generation: log.generation,
            context,
            ..PersistentEventLogHeader::default()
        };
        for event in [
            PersistentEventType::SMART_SNAPSHOT,
            PersistentEventType::TIMESTAMP_CHANGE,
            PersistentEventType::POWER_ON_OR_RESET,
            PersistentEventType::CHANGE_NAMESPACE,
        ] {
            header.support(event);
        }
        if let Some(out) = page.first_chunk_mut() {
            header.encode(out);
        }
        page
    }
}

impl Log {
    /// The events that a host may know of, the newest first.
    fn seen_by<'a>(&'a self, host: &'a Nqn) -> impl Iterator<Item = &'a [u8]> {
        let visible = self.events.iter().filter(|e| e.visibility.includes(host));
        visible.map(|event| &*event.bytes)
    }
}

impl Subsystem {
    /// A namespace comes or goes: SEL of the Namespace Management command that it would have been.
    pub(super) fn log_namespace(&self, entry: &NsEntry, management: u32) {
        let change = NamespaceChange {
            management,
            nsze: entry.info.blocks,
            ncap: entry.info.blocks,
            nmic: Nmic::SHARED.bits(),
            anagrpid: entry.anagrpid,
            nsid: entry.nsid,
            ..NamespaceChange::default()
        };
        let visibility = entry.visibility.clone();
        self.persistent.namespace_changed(visibility, &change);
    }
}

fn milliseconds_since(moment: Instant) -> u64 {
    u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmf_proto::wire::log::persistent_events;
    use std::sync::Arc;

    const FIRMWARE: [u8; 8] = *b"1.0     ";

    fn identity() -> Identity {
        Identity {
            vid: 1,
            ssvid: 2,
            sn: [b's'; 20],
            mn: [b'm'; 40],
            subnqn: [b'n'; 256],
        }
    }

    fn report(log: &PersistentLog) -> (PersistentEventLogHeader, Vec<u8>) {
        report_for(log, "a")
    }

    fn host(name: &str) -> Nqn {
        Nqn::new(&format!("nqn.2014-08.org.example:{name}")).unwrap()
    }

    fn report_for(log: &PersistentLog, name: &str) -> (PersistentEventLogHeader, Vec<u8>) {
        let host = host(name);
        let page = log.report(&host, &identity(), ReportingContext::default());
        let header = PersistentEventLogHeader::decode(page.first_chunk().unwrap());
        let length = log.length(&host);
        assert_eq!((header.tll, length), (page.len() as u64, page.len()));
        (header, page[512..].to_vec())
    }

    #[test]
    fn events_are_reported_newest_first_with_their_data() {
        let log = PersistentLog::new(FIRMWARE);
        log.reset(FIRMWARE, 7, Timestamp(5));
        log.timestamp_set(7, Clock::set(1 << 40), Instant::now());
        let change = NamespaceChange {
            nsid: 3,
            nsze: 100,
            ..NamespaceChange::default()
        };
        log.namespace_changed(Visibility::All, &change);
        let smart = SmartLog {
            data_units_read: 9,
            ..SmartLog::default()
        };
        log.smart_snapshot(7, &smart);

        let (header, events) = report(&log);
        assert_eq!((header.lid, header.tnev), (Lid::PERSISTENT_EVENT, 5));
        assert_eq!((header.vid, header.ssvid, header.sn), (1, 2, [b's'; 20]));
        assert_eq!(header.supported[0], 0b0101_1010);
        let events: Vec<_> = persistent_events(&events).collect();
        let kinds: Vec<_> = events.iter().map(|(h, _)| (h.event.0, h.cntlid)).collect();
        assert_eq!(kinds, [(1, 7), (6, 0xffff), (3, 7), (4, 7), (4, 0xffff)]);
        assert_eq!(SmartLog::decode(events[0].1.try_into().unwrap()), smart);
        assert_eq!(
            NamespaceChange::decode(events[1].1.try_into().unwrap()),
            change
        );
        let set = TimestampChange::decode(events[2].1.try_into().unwrap());
        assert!(set.previous.milliseconds() < 1 << 40);
        let (firmware, reset) = events[3].1.split_first_chunk::<8>().unwrap();
        let reset = ResetInformation::decode(reset.try_into().unwrap());
        assert_eq!(
            (*firmware, reset.cntlid, reset.timestamp),
            (FIRMWARE, 7, Timestamp(5))
        );
        assert_eq!(events[4].1, FIRMWARE);
        // What came after the host has set the clock has its time.
        let times: Vec<_> = events
            .iter()
            .map(|(h, _)| h.timestamp.milliseconds())
            .collect();
        assert!(times[2] >= 1 << 40 && times[3] < 1 << 40);
    }

    #[test]
    fn the_oldest_events_make_room() {
        let log = PersistentLog::new(FIRMWARE);
        for nsid in 1..=10_000 {
            let change = NamespaceChange {
                nsid,
                ..NamespaceChange::default()
            };
            log.namespace_changed(Visibility::All, &change);
        }
        let (header, events) = report(&log);
        assert_eq!(header.tnev as usize, (65_536 - 512) / 72);
        let newest = persistent_events(&events).next().unwrap().1;
        assert_eq!(
            NamespaceChange::decode(newest.try_into().unwrap()).nsid,
            10_000
        );
        assert!(persistent_events(&events).all(|(header, _)| header.event.0 == 6));
        let (again, _) = report(&log);
        assert_eq!(again.generation, header.generation + 1);
    }

    #[test]
    fn hosts_learn_nothing_of_namespaces_that_are_not_there_for_them() {
        let log = PersistentLog::new(FIRMWARE);
        let only = Visibility::Hosts(Arc::new([host("a")].into()));
        log.namespace_changed(only, &NamespaceChange::default());
        assert_eq!(report_for(&log, "a").0.tnev, 2);
        assert_eq!(report_for(&log, "b").0.tnev, 1);
    }
}
