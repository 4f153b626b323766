//! Sending: everything that is finished leaves in one gather write.

use super::Conn;
use crate::reactor::Cx;
use nvmf_proto::tcp::{Need, Seg, TxList};
use std::io::{self, IoSlice};

/// Runs that one system call takes.
const IOVECS: usize = 256;

impl Conn {
    /// Sends what there is, until the stream takes no more.
    pub(crate) fn flush(&mut self, cx: &mut Cx) {
        self.dirty = false;
        self.end_disconnect(cx);
        while self.stream.is_some() {
            let mut list = match self.list.take() {
                Some(list) => list,
                None if self.tcp.has_transmit() => cx.take_list(),
                None => break,
            };
            if list.is_empty() && self.tcp.poll_transmit(&mut list) {
                let commands = &self.commands;
                list.fill_digests(|d| {
                    &commands[d.slot.index()].buf[d.offset as usize..(d.offset + d.len) as usize]
                });
            }
            if list.is_empty() {
                cx.give_list(list);
                break;
            }
            let result = if self.writable {
                self.write(&list)
            } else {
                Ok(0)
            };
            match result {
                Ok(0) => {
                    self.list = Some(list);
                    break;
                }
                Ok(n) => self.sent(cx, list, n),
                Err(err) => {
                    cx.give_list(list);
                    self.close(cx, &err.to_string());
                }
            }
        }
        let sent = self.list.is_none() && !self.tcp.has_transmit();
        if self.closing && self.disconnect.is_none() && sent && !self.leaving {
            self.leave(cx);
        }
        if self.list.is_none() && !self.half_closed && self.tcp.need() == Need::Drain {
            // The TermReq has left. Its reader is to see the end, and to close before we do:
            // unread data at our close would make a reset that may overtake the TermReq.
            self.half_closed = true;
            if let Some(stream) = &mut self.stream {
                stream.shutdown_write();
            }
        }
        // Slots have become free: the machine may have waited for one.
        self.resume(cx);
    }

    /// One write. `Ok(0)`: the stream takes nothing at the moment.
    fn write(&mut self, list: &TxList) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else {
            return Ok(0);
        };
        let mut iov = [IoSlice::new(&[]); IOVECS];
        let mut count = 0;
        for (to, seg) in iov.iter_mut().zip(list.segments()) {
            *to = IoSlice::new(match *seg {
                Seg::Head { start, len } => &list.heads()[start as usize..(start + len) as usize],
                Seg::Data { slot, offset, len } => {
                    &self.commands[slot.index()].buf[offset as usize..(offset + len) as usize]
                }
            });
            count += 1;
        }
        loop {
            match stream.writev(&iov[..count]) {
                Ok(n) => return Ok(n),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(0);
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Takes note of `n` bytes that have left, and of the commands that are over by that.
    fn sent(&mut self, cx: &mut Cx, mut list: Box<TxList>, n: usize) {
        list.advance(n);
        self.moved = cx.now;
        let Self {
            tcp,
            commands,
            held,
            ..
        } = self;
        tcp.transmitted(n, |slot| {
            let buf = std::mem::take(&mut commands[slot.index()].buf);
            *held -= buf.footprint();
            cx.give_buffer(buf);
        });
        if list.is_empty() {
            cx.give_list(list);
        } else {
            self.list = Some(list);
        }
    }
}
