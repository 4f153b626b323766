//! The good host beside the hostile ones: what the target is, and whether it still serves.

use super::scene::Facts;
use super::{Options, SCRATCH_MIN};
use crate::raw::RawConnection;
use crate::{ConnectOptions, Controller, Error, Namespace, discover};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::pdu::InitConnection;
use std::time::Duration;

/// How long the good host waits for anything, or as long as cases do if that is longer. A target
/// that is held up as long as that by hosts that cheat is harmed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Entries of the I/O queues of cases, if the target has as many.
const ENTRIES: u32 = 32;

/// Does I/O on connections of its own.
#[derive(Debug)]
pub(super) struct Upkeep {
    options: ConnectOptions,
    namespace: Namespace,
    /// The first block of what may be written, and what was written there last.
    scratch: Option<(u64, Option<Vec<u8>>)>,
    round: u64,
}

impl Upkeep {
    /// A fresh association reads what the last one has written, writes something else and reads
    /// that; or, where nothing may be written, reads. If the case in between `overwrites`, what it
    /// left is not looked at.
    pub(super) fn verified_io(&mut self, overwrites: bool) -> Result<(), String> {
        self.round += 1;
        let io = self.io(overwrites).map_err(|err| err.to_string())?;
        match io {
            None => Ok(()),
            Some(what) => Err(what.to_owned()),
        }
    }

    /// What is wrong with the data, if anything is.
    fn io(&mut self, overwrites: bool) -> Result<Option<&'static str>, Error> {
        let mut controller = Controller::connect(&self.options)?;
        controller.set_queue_count(1)?;
        let mut queue = controller.io_queue(1)?;
        let blocks = SCRATCH_MIN.min(self.namespace.blocks);
        let mut back = vec![0; usize::try_from(blocks).unwrap_or(0) * self.block_size()];
        let namespace = self.namespace;
        let mut wrong = None;
        if let Some((slba, written)) = &mut self.scratch {
            if let Some(written) = written
                && !overwrites
            {
                queue.read(&namespace, *slba, &mut back)?;
                if back != *written {
                    wrong = Some("the data that was there before the case has changed");
                }
            }
            let data = pattern(self.round, back.len());
            queue.write(&namespace, *slba, &data)?;
            queue.read(&namespace, *slba, &mut back)?;
            if back != data {
                wrong = Some("other data is read than was written");
            }
            *written = Some(data);
        } else {
            queue.read(&namespace, 0, &mut back)?;
        }
        drop(queue);
        controller.disconnect()?;
        Ok(wrong)
    }

    const fn block_size(&self) -> usize {
        self.namespace.block_size as usize
    }
}

/// Bytes that differ from place to place and from round to round.
fn pattern(round: u64, len: usize) -> Vec<u8> {
    let mut x = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[0]
    })
    .take(len)
    .collect()
}

/// Looks at the target as a good host does.
pub(super) fn begin(options: &Options) -> Result<(Facts, Upkeep), Error> {
    let subsystem = match &options.subsystem {
        Some(nqn) => nqn.clone(),
        None => first_subsystem(options)?,
    };
    let mut connect = ConnectOptions::new(options.address, subsystem.as_str())?;
    connect.timeout = PATIENCE.max(options.patience);
    if let Some(host) = &options.host {
        connect.host = host.clone();
    }
    let mut controller = Controller::connect(&connect)?;
    let nsid = match options.nsid {
        Some(nsid) => nsid,
        None => *controller
            .active_namespaces()?
            .first()
            .ok_or(Error::InvalidInput("the subsystem has no namespace"))?,
    };
    let namespace = controller.namespace(nsid)?;
    let slba = first_scratch_block(options, namespace.blocks)?;
    let identity = controller.identity();
    let ic = InitConnection {
        dgst: InitConnection::HDGST_ENABLE | InitConnection::DDGST_ENABLE,
        ..InitConnection::default()
    };
    let (raw, ic_resp) = RawConnection::open(options.address, options.patience, &ic)
        .map_err(Error::io("ICReq with both digests"))?;
    let queue_entries = u32::try_from(controller.cap().mqes())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    let facts = Facts {
        address: options.address,
        patience: options.patience,
        subsystem,
        host: connect.host.clone(),
        host_id: connect.host_id,
        nsid,
        blocks: namespace.blocks,
        block_size: namespace.block_size,
        slba: slba.unwrap_or(0),
        may_write: slba.is_some(),
        in_capsule: identity.ioccsz.saturating_mul(16).saturating_sub(64),
        max_transfer: controller
            .max_transfer()
            .and_then(|bytes| u32::try_from(bytes).ok()),
        maxh2cdata: ic_resp.max,
        entries: u16::try_from(queue_entries.min(ENTRIES)).unwrap_or(2),
        event_requests: u16::from(identity.aerl) + 1,
        header_digest: raw.terms.header_digest,
        data_digest: raw.terms.data_digest,
    };
    let mut upkeep = Upkeep {
        options: connect,
        namespace,
        scratch: slba.map(|slba| (slba, None)),
        round: 0,
    };
    controller.disconnect()?;
    if let Some(wrong) = upkeep.io(true)? {
        return Err(Error::BadAnswer(wrong));
    }
    Ok((facts, upkeep))
}

/// `None` if nothing may be written.
fn first_scratch_block(options: &Options, blocks: u64) -> Result<Option<u64>, Error> {
    match &options.scratch {
        None => Ok(None),
        Some(range) if range.end > blocks || range.start >= range.end => Err(Error::InvalidInput(
            "scratch: a range of blocks that the namespace has is wanted, the first one less than the end",
        )),
        Some(range) if range.end - range.start < SCRATCH_MIN => Err(Error::InvalidInput(
            "scratch: at least 64 blocks are wanted",
        )),
        Some(range) => Ok(Some(range.start)),
    }
}

fn first_subsystem(options: &Options) -> Result<Nqn, Error> {
    let none = Error::InvalidInput("the discovery service at the address names no subsystem");
    discover(options.address)?
        .iter()
        .filter_map(|entry| Nqn::from_field(&entry.subnqn).ok())
        .find(|nqn| !nqn.is_discovery())
        .ok_or(none)
}
