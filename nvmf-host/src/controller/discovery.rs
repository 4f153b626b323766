//! The discovery service.

use super::Controller;
use crate::error::Error;
use crate::options::ConnectOptions;
use nvmf_proto::wire::discovery::{DiscoveryLogEntry, DiscoveryLogHeader};
use nvmf_proto::wire::log::{GetLogPage, Lid};
use std::net::SocketAddr;
use std::time::Instant;

/// How often the log is read again when it changes meanwhile.
const ATTEMPTS: u32 = 5;
/// More entries than this are not believed.
const ENTRIES_MAX: u64 = 65_536;

/// What the discovery service at an address offers to this host.
///
/// # Errors
///
/// As [`Controller::connect`] and [`Controller::discovery_log`].
pub fn discover(address: SocketAddr) -> Result<Vec<DiscoveryLogEntry>, Error> {
    let mut controller = Controller::connect(&ConnectOptions::discovery(address))?;
    let entries = controller.discovery_log()?;
    controller.disconnect()?;
    Ok(entries)
}

impl Controller {
    /// Reads the Discovery log page: header, entries and header again, until GENCTR is the same
    /// before and after.
    ///
    /// # Errors
    ///
    /// The controller refused, the log makes no sense or has more than 65,536 entries, it changed
    /// whenever it was read, or that took too long.
    pub fn discovery_log(&mut self) -> Result<Vec<DiscoveryLogEntry>, Error> {
        let deadline = self.deadline();
        for _ in 0..ATTEMPTS {
            let header = self.discovery_header(deadline)?;
            if header.recfmt != 0 {
                return Err(Error::BadAnswer(
                    "RECFMT of the Discovery log page is not 0",
                ));
            }
            if header.numrec > ENTRIES_MAX {
                return Err(Error::BadAnswer(
                    "NUMREC of the Discovery log page is absurd",
                ));
            }
            // A log that has become shorter refuses what was asked of the longer one.
            let entries = self.discovery_entries(header.numrec, deadline);
            if self.discovery_header(deadline)?.genctr == header.genctr {
                return entries;
            }
        }
        Err(Error::BadAnswer(
            "the Discovery log page changed whenever it was read",
        ))
    }

    fn discovery_header(&mut self, deadline: Option<Instant>) -> Result<DiscoveryLogHeader, Error> {
        let request = GetLogPage::new(Lid::DISCOVERY, 0);
        let page = self.log_page_until(0, &request, DiscoveryLogHeader::SIZE, deadline)?;
        let bytes = page
            .first_chunk()
            .ok_or(Error::BadAnswer("the log page is too short"))?;
        Ok(DiscoveryLogHeader::decode(bytes))
    }

    fn discovery_entries(
        &mut self,
        count: u64,
        deadline: Option<Instant>,
    ) -> Result<Vec<DiscoveryLogEntry>, Error> {
        let length = usize::try_from(count).unwrap_or(0) * DiscoveryLogEntry::SIZE;
        let request = GetLogPage {
            lpo: DiscoveryLogHeader::SIZE as u64,
            ..GetLogPage::new(Lid::DISCOVERY, 0)
        };
        let page = self.log_page_until(0, &request, length, deadline)?;
        let entries = page.chunks_exact(DiscoveryLogEntry::SIZE);
        Ok(entries
            .filter_map(|bytes| bytes.first_chunk().map(DiscoveryLogEntry::decode))
            .collect())
    }
}
