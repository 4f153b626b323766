//! What a connection may take of the heap once it is a queue, at the most.

use super::Command;
use super::io::Copying;
use crate::ctrl::CONTROLLER_BYTES;
use crate::ns::REQUEST_BYTES;
use crate::reactor::{LIST_BYTES, READ_MIN};
use nvmf_proto::tcp::target::TcpTarget;

/// Per command, beside its places in the tables: a Copy, a request, and its
/// place in lists that grow by doubling.
const COMMAND_BYTES: usize = size_of::<Command>() + size_of::<Copying>() + REQUEST_BYTES + 64;

/// Bytes that a queue is charged with: its tables, what its host does not read, what it has sent
/// too early, and the controller of an admin queue. Buffers are counted elsewhere, and what grows
/// with the number of namespaces is the operator's.
pub(crate) const fn queue_bytes(qid: u16, entries: u32) -> usize {
    let entries = entries as usize;
    let tables = entries * COMMAND_BYTES + TcpTarget::queue_bytes(entries);
    let controller = if qid == 0 { CONTROLLER_BYTES } else { 0 };
    tables + LIST_BYTES + READ_MIN + controller
}
