//! Abort (NVMe Base 2.1, Abort command).

use super::Sqe;

/// The command dword of an Abort command: which command is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbortCommand {
    /// SQID: the submission queue that the command was sent to; 0 is the Admin Queue.
    pub sqid: u16,
    /// CID: its command identifier.
    pub cid: u16,
}

impl AbortCommand {
    /// In dword 0 of the response: Immediate Abort Not Performed. The command goes on, was over
    /// already, or is aborted later.
    pub const NOT_PERFORMED: u32 = 1;

    /// Reads CDW10.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [a, b, c, d] = sqe.cdw10().to_le_bytes();
        Self {
            sqid: u16::from_le_bytes([a, b]),
            cid: u16::from_le_bytes([c, d]),
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        let cdw10 = u32::from(self.cid) << 16 | u32::from(self.sqid);
        sqe.set_cdw10_15([cdw10, 0, 0, 0, 0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_in_the_low_half_and_command_in_the_high() {
        let mut sqe = Sqe::default();
        let abort = AbortCommand {
            sqid: 0x1234,
            cid: 0x5678,
        };
        abort.encode(&mut sqe);
        assert_eq!(sqe.0[40..44], [0x34, 0x12, 0x78, 0x56]);
        assert_eq!(AbortCommand::decode(&sqe), abort);
    }
}
