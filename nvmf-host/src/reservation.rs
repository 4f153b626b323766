//! Reservations: the commands, and what Reservation Report answers.

use crate::command;
use crate::error::Error;
use crate::io_queue::IoQueue;
use crate::queue::Data;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{
    AcquireCommand, AcquireData, RegisterCommand, RegisterData, RegistrantExtended, ReleaseCommand,
    ReleaseData, ReservationStatus,
};

/// What Reservation Report answers: who is registered with a namespace, and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationReport {
    /// The header: generation, type, number of registrants, PTPLS.
    pub status: ReservationStatus,
    /// As many registrants as there was room for.
    pub registrants: Vec<RegistrantExtended>,
}

impl ReservationReport {
    /// Reads the Reservation Status Extended data structure; `None` if it is shorter than its
    /// header. A last registrant that is not whole is left out, and so is what stands behind the
    /// last of them.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let status = ReservationStatus::decode(data.first_chunk()?);
        let rest = data.get(ReservationStatus::EXTENDED_SIZE..);
        let registrants = rest
            .unwrap_or_default()
            .chunks_exact(RegistrantExtended::SIZE)
            .take(status.registrants.into())
            .filter_map(|entry| entry.first_chunk().map(RegistrantExtended::decode))
            .collect();
        Some(Self {
            status,
            registrants,
        })
    }
}

impl IoQueue {
    /// Reservation Register. A status is not an error here.
    ///
    /// # Errors
    ///
    /// The connection is over, the queue is full, or no completion came in time.
    pub fn reservation_register(
        &mut self,
        nsid: u32,
        command: &RegisterCommand,
        data: &RegisterData,
    ) -> Result<Status, Error> {
        let mut bytes = [0; RegisterData::SIZE];
        data.encode(&mut bytes);
        let sqe = command::reservation_register(nsid, command);
        Ok(self.raw(sqe, Data::Write(bytes.to_vec()))?.status())
    }

    /// Reservation Acquire. A status is not an error here.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::reservation_register`].
    pub fn reservation_acquire(
        &mut self,
        nsid: u32,
        command: &AcquireCommand,
        data: &AcquireData,
    ) -> Result<Status, Error> {
        let mut bytes = [0; AcquireData::SIZE];
        data.encode(&mut bytes);
        let sqe = command::reservation_acquire(nsid, command);
        Ok(self.raw(sqe, Data::Write(bytes.to_vec()))?.status())
    }

    /// Reservation Release. A status is not an error here.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::reservation_register`].
    pub fn reservation_release(
        &mut self,
        nsid: u32,
        command: &ReleaseCommand,
        data: &ReleaseData,
    ) -> Result<Status, Error> {
        let mut bytes = [0; ReleaseData::SIZE];
        data.encode(&mut bytes);
        let sqe = command::reservation_release(nsid, command);
        Ok(self.raw(sqe, Data::Write(bytes.to_vec()))?.status())
    }

    /// Reservation Report, with room for `registrants` of them.
    ///
    /// # Errors
    ///
    /// The command failed, or as [`IoQueue::reservation_register`].
    pub fn reservation_report(
        &mut self,
        nsid: u32,
        registrants: u16,
    ) -> Result<ReservationReport, Error> {
        const NAME: &str = "Reservation Report";
        let entries = usize::from(registrants) * RegistrantExtended::SIZE;
        let length = ReservationStatus::EXTENDED_SIZE + entries;
        #[expect(clippy::cast_possible_truncation, reason = "4 MiB at most")]
        let sqe = command::reservation_report(nsid, length as u32, true);
        let done = self.raw(sqe, Data::Read(vec![0; length]))?.success(NAME)?;
        ReservationReport::decode(&done.buffer).ok_or(Error::InvalidInput(
            "there is no room for the header of a Reservation Status",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_any_length() {
        let mut data = vec![0; 64 + 64 + 64];
        data[0] = 9;
        data[4] = 2;
        data[5] = 2;
        data[9] = 1;
        data[64 + 2] = 1;
        data[64 + 8] = 0xaa;
        data[64 + 16] = 0xbb;
        let whole = ReservationReport::decode(&data).unwrap();
        assert_eq!((whole.status.generation, whole.status.rtype.0), (9, 2));
        assert_eq!((whole.status.ptpls, whole.registrants.len()), (1, 2));
        let first = &whole.registrants[0];
        assert_eq!((first.rkey, first.hostid[0]), (0xaa, 0xbb));
        for (len, registrants) in [(24, 0), (64, 0), (127, 0), (128, 1), (191, 1), (192, 2)] {
            let part = ReservationReport::decode(&data[..len]).unwrap();
            assert_eq!(part.registrants.len(), registrants, "{len}");
        }
        assert_eq!(ReservationReport::decode(&data[..23]), None);
        // What is behind the registrants is none.
        data[5] = 1;
        let report = ReservationReport::decode(&data).unwrap();
        assert_eq!(report.registrants.len(), 1);
    }
}
