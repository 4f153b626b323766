//! Admin commands.

use super::Controller;
use crate::command;
use crate::error::{Error, dword0};
use crate::io_queue::Namespace;
use crate::queue::{Completion, Data};
use nvmf_proto::wire::Sqe;
use nvmf_proto::wire::feature::{AsyncEventConfig, Fid, GetFeatures, NumberOfQueues, SetFeatures};
use nvmf_proto::wire::identify::{
    Cns, IDENTIFY_SIZE, IdentifyCommand, IdentifyController, IdentifyNamespace, NsIdDescriptors,
    decode_nsid_list,
};
use nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid, SmartLog};
use std::time::{Duration, Instant};

/// Tag of Asynchronous Event Requests on the admin queue.
const EVENT_TAG: u64 = u64::MAX;
/// More active namespaces than this are not believed.
const NAMESPACES_MAX: usize = 1 << 20;
/// Bytes of a log page that one command reads.
const LOG_CHUNK: usize = 4096;

impl Controller {
    fn run(&mut self, name: &'static str, sqe: Sqe, data: Data) -> Result<Completion, Error> {
        self.admin.execute(name, sqe, data)?.success(name)
    }

    /// Identify: the 4,096 bytes of one data structure.
    ///
    /// # Errors
    ///
    /// The controller refused, or the connection is over.
    pub fn identify(
        &mut self,
        nsid: u32,
        command: &IdentifyCommand,
    ) -> Result<Box<[u8; IDENTIFY_SIZE]>, Error> {
        let sqe = command::identify(nsid, command);
        let done = self.run("Identify", sqe, Data::Read(vec![0; IDENTIFY_SIZE]))?;
        done.buffer
            .into_boxed_slice()
            .try_into()
            .map_err(|_| Error::BadAnswer("Identify data is not 4,096 bytes"))
    }

    /// Identify Controller (CNS 01h).
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn identify_controller(&mut self) -> Result<IdentifyController, Error> {
        let bytes = self.identify(0, &IdentifyCommand::new(Cns::CONTROLLER))?;
        Ok(IdentifyController::decode(&bytes))
    }

    /// Identify Namespace (CNS 00h).
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn identify_namespace(&mut self, nsid: u32) -> Result<IdentifyNamespace, Error> {
        let bytes = self.identify(nsid, &IdentifyCommand::new(Cns::NAMESPACE))?;
        Ok(IdentifyNamespace::decode(&bytes))
    }

    /// Namespace Identification Descriptors (CNS 03h).
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`], or the list is malformed.
    pub fn namespace_descriptors(&mut self, nsid: u32) -> Result<NsIdDescriptors, Error> {
        let bytes = self.identify(nsid, &IdentifyCommand::new(Cns::NS_ID_DESCRIPTORS))?;
        NsIdDescriptors::decode(&bytes)
            .map_err(|_| Error::BadAnswer("malformed namespace identification descriptors"))
    }

    /// NSIDs of all active namespaces, ascending (CNS 02h, as often as it takes).
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`], or the NSIDs do not ascend, go beyond NN, or are more than 2^20.
    pub fn active_namespaces(&mut self) -> Result<Vec<u32>, Error> {
        let deadline = self.deadline();
        let mut all: Vec<u32> = Vec::new();
        loop {
            self.in_time("end of the active namespaces", deadline)?;
            let last = all.last().copied().unwrap_or(0);
            let bytes = self.identify(last, &IdentifyCommand::new(Cns::ACTIVE_NSID_LIST))?;
            let before = all.len();
            all.extend(decode_nsid_list(&bytes));
            let new = &all[before..];
            if new.first().is_some_and(|&first| first <= last) || !new.is_sorted_by(|a, b| a < b) {
                return Err(Error::BadAnswer("the active namespaces do not ascend"));
            }
            // NVMe Base 2.1, Identify Controller: NN is the largest NSID that is valid.
            if all.last().is_some_and(|&last| last > self.identity.nn) {
                return Err(Error::BadAnswer("the active namespaces go beyond NN"));
            }
            if all.len() > NAMESPACES_MAX {
                return Err(Error::BadAnswer("the active namespaces are absurdly many"));
            }
            if new.len() < IDENTIFY_SIZE / 4 {
                return Ok(all);
            }
        }
    }

    /// Size and block size of a namespace, as the I/O helpers need them.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`], or it is not active, or its format has metadata or no possible
    /// block size.
    pub fn namespace(&mut self, nsid: u32) -> Result<Namespace, Error> {
        let id = self.identify_namespace(nsid)?;
        // NVMe Base 2.1, Identify Namespace: all zeroes for one that is not active.
        if id.nsze == 0 {
            return Err(Error::InvalidInput("the namespace is not active"));
        }
        let format = id.formatted();
        if format.metadata_size != 0 {
            return Err(Error::BadAnswer("the namespace has metadata"));
        }
        if !(9..=24).contains(&format.data_size_log2) {
            return Err(Error::BadAnswer(
                "the namespace has no block size between 512 B and 16 MiB",
            ));
        }
        Ok(Namespace {
            nsid,
            blocks: id.nsze,
            block_size: 1 << format.data_size_log2,
        })
    }

    /// Reads `length` bytes of a log page from `request.lpo` on, in several commands if needed.
    /// `request.numd` is not looked at; `request.rae` is for the last command, the ones before it
    /// retain the event.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`]; `length` is a multiple of 4.
    pub fn log_page(
        &mut self,
        nsid: u32,
        request: &GetLogPage,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        let deadline = self.deadline();
        self.log_page_until(nsid, request, length, deadline)
    }

    /// [`Controller::log_page`], begun before a deadline that is for more than this.
    pub(super) fn log_page_until(
        &mut self,
        nsid: u32,
        request: &GetLogPage,
        length: usize,
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, Error> {
        if !length.is_multiple_of(4) {
            return Err(Error::InvalidInput("a log page is read in dwords"));
        }
        let mut page = Vec::with_capacity(length);
        while page.len() < length {
            self.in_time("end of the log page", deadline)?;
            let part = (length - page.len()).min(LOG_CHUNK);
            let is_last = page.len() + part == length;
            let command = GetLogPage {
                numd: u32::try_from(part / 4 - 1).unwrap_or(u32::MAX),
                lpo: request.lpo + page.len() as u64,
                rae: request.rae || !is_last,
                ..*request
            };
            let sqe = command::get_log_page(nsid, &command);
            let done = self.run("Get Log Page", sqe, Data::Read(vec![0; part]))?;
            page.extend_from_slice(&done.buffer);
        }
        Ok(page)
    }

    /// SMART / Health log of the controller.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn smart_log(&mut self) -> Result<SmartLog, Error> {
        let request = GetLogPage::new(Lid::SMART, 0);
        let page = self.log_page(
            nvmf_proto::wire::identify::NSID_BROADCAST,
            &request,
            SmartLog::SIZE,
        )?;
        let bytes = page
            .first_chunk()
            .ok_or(Error::BadAnswer("the SMART log is too short"))?;
        Ok(SmartLog::decode(bytes))
    }

    /// NSIDs of the Changed Attached Namespace List (LID 04h); reading it clears it.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn changed_namespaces(&mut self) -> Result<Vec<u32>, Error> {
        let request = GetLogPage::new(Lid::CHANGED_NAMESPACES, 0);
        let page = self.log_page(
            nvmf_proto::wire::identify::NSID_BROADCAST,
            &request,
            IDENTIFY_SIZE,
        )?;
        let bytes = page
            .first_chunk()
            .ok_or(Error::BadAnswer("the list is too short"))?;
        Ok(decode_nsid_list(bytes).collect())
    }

    /// Get Features: dword 0 of the result. Features with data need [`Controller::raw`].
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn get_features(&mut self, nsid: u32, command: &GetFeatures) -> Result<u32, Error> {
        let done = self.run(
            "Get Features",
            command::get_features(nsid, command),
            Data::None,
        )?;
        Ok(dword0(done.cqe.result))
    }

    /// Set Features: dword 0 of the result. Features with data need [`Controller::raw`].
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn set_features(&mut self, nsid: u32, command: &SetFeatures) -> Result<u32, Error> {
        let done = self.run(
            "Set Features",
            command::set_features(nsid, command),
            Data::None,
        )?;
        Ok(dword0(done.cqe.result))
    }

    /// Asks for `queues` I/O queue pairs and returns how many the controller gives, which may be
    /// more or less (Number of Queues).
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn set_queue_count(&mut self, queues: u16) -> Result<u32, Error> {
        let wanted = NumberOfQueues::pairs(queues).to_bits();
        let given = self.set_features(0, &SetFeatures::new(Fid::NUMBER_OF_QUEUES, wanted))?;
        Ok(NumberOfQueues::from_bits(given).pair_count())
    }

    /// Chooses the events that the controller may report.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn set_event_config(&mut self, config: AsyncEventConfig) -> Result<(), Error> {
        self.set_features(0, &SetFeatures::new(Fid::ASYNC_EVENT_CONFIG, config.bits()))?;
        Ok(())
    }

    /// Sends one Asynchronous Event Request; at most AERL + 1 may be outstanding.
    ///
    /// # Errors
    ///
    /// The queue is full or the connection is over.
    pub fn submit_event_request(&mut self) -> Result<(), Error> {
        self.admin
            .submit_tagged(command::async_event_request(), Data::None, EVENT_TAG)?;
        self.admin.flush()?;
        Ok(())
    }

    /// Waits for the completion of an Asynchronous Event Request, at most for `timeout`. For the
    /// next event another request has to be sent, after the log page that the event names was read.
    ///
    /// # Errors
    ///
    /// The request was refused, or the connection is over.
    pub fn poll_event(&mut self, timeout: Duration) -> Result<Option<AsyncEvent>, Error> {
        let Some(done) = self.admin.poll_tagged(EVENT_TAG, timeout)? else {
            return Ok(None);
        };
        let done = done.success("Asynchronous Event Request")?;
        Ok(Some(AsyncEvent::from_dw0(dword0(done.cqe.result))))
    }

    /// Keep Alive.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn keep_alive(&mut self) -> Result<(), Error> {
        self.run("Keep Alive", command::keep_alive(), Data::None)?;
        Ok(())
    }

    /// Abort of a command by queue and CID; whether it was aborted.
    ///
    /// # Errors
    ///
    /// As [`Controller::identify`].
    pub fn abort(&mut self, sqid: u16, cid: u16) -> Result<bool, Error> {
        let done = self.run("Abort", command::abort(sqid, cid), Data::None)?;
        // NVMe Base 2.1, Abort: bit 0 of dword 0 is set if the command was not aborted.
        Ok(dword0(done.cqe.result) & 1 == 0)
    }
}
