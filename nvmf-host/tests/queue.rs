//! The queue over a stream that takes and gives as much as the test wants.

use nvmf_host::nvmf_proto::tcp::host::Config;
use nvmf_host::nvmf_proto::wire::pdu::{
    CommonHeader, InitConnection, PduFlags, PduType, encode_capsule_resp,
};
use nvmf_host::nvmf_proto::wire::{Cqe, Status};
use nvmf_host::{Data, Error, Queue, Stream, command};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
struct Pipe {
    /// To the host.
    input: Vec<u8>,
    /// From the host.
    output: Vec<u8>,
    /// How many bytes more it takes from the host.
    room: usize,
    closed: bool,
}

#[derive(Clone, Debug, Default)]
struct Script(Arc<Mutex<Pipe>>);

impl Script {
    fn feed(&self, bytes: &[u8]) {
        self.0.lock().unwrap().input.extend_from_slice(bytes);
    }

    fn make_room(&self, bytes: usize) {
        self.0.lock().unwrap().room = bytes;
    }

    fn sent(&self) -> usize {
        self.0.lock().unwrap().output.len()
    }
}

impl Stream for Script {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        if pipe.input.is_empty() {
            return if pipe.closed {
                Ok(0)
            } else {
                Err(ErrorKind::WouldBlock.into())
            };
        }
        let mut total = 0;
        for buf in bufs {
            let n = buf.len().min(pipe.input.len());
            buf[..n].copy_from_slice(&pipe.input[..n]);
            pipe.input.drain(..n);
            total += n;
        }
        Ok(total)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        if pipe.room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut total = 0;
        for buf in bufs {
            let n = buf.len().min(pipe.room);
            pipe.output.extend_from_slice(&buf[..n]);
            pipe.room -= n;
            total += n;
        }
        Ok(total)
    }

    fn wait(&mut self, _or_write: bool, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn open() -> (Script, Queue) {
    let script = Script::default();
    script.make_room(usize::MAX);
    let ic = InitConnection {
        pfv: 0,
        pda: 0,
        dgst: 0,
        max: 4096,
    };
    // The ICResp may come only after the ICReq, which the first turn sends before it reads.
    script.feed(&ic.encode(PduType::IC_RESP));
    let queue = Queue::open(script.clone(), &Config::default(), Duration::from_secs(10)).unwrap();
    (script, queue)
}

fn resp(cid: u16, status: Status) -> [u8; 24] {
    let header = CommonHeader {
        pdu_type: PduType::CAPSULE_RESP,
        flags: PduFlags::empty(),
        hlen: 24,
        pdo: 0,
        plen: 24,
    };
    encode_capsule_resp(
        &header,
        &Cqe {
            result: 0,
            sqhd: 1,
            cid,
            status,
        },
    )
}

#[test]
fn everything_submitted_leaves_in_one_write() {
    let (script, mut queue) = open();
    let before = script.sent();
    for _ in 0..31 {
        queue
            .submit(command::write(1, 0, 1), Data::Write(vec![1; 512]))
            .unwrap();
    }
    assert_eq!(script.sent(), before);
    assert!(queue.flush().unwrap());
    assert_eq!(script.sent(), before + 31 * (72 + 512));
}

#[test]
fn a_buffer_stays_until_it_has_left() {
    let (script, mut queue) = open();
    script.make_room(100);
    let token = queue
        .submit(command::write(1, 0, 8), Data::Write(vec![1; 4096]))
        .unwrap();
    assert!(!queue.flush().unwrap());
    // The controller refuses before it has seen all of the data.
    script.feed(&resp(0, Status::LBA_OUT_OF_RANGE));
    assert_eq!(queue.progress().unwrap(), 0);
    assert_eq!(queue.outstanding(), 1);
    script.make_room(usize::MAX);
    assert_eq!(queue.progress().unwrap(), 1);
    let done = queue.next_completion().unwrap();
    assert_eq!((done.token, done.buffer), (token, vec![1; 4096]));
    assert_eq!(done.cqe.status, Status::LBA_OUT_OF_RANGE);
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn completions_that_came_before_the_end_can_be_taken() {
    let (script, mut queue) = open();
    for _ in 0..2 {
        queue.submit(command::flush(1), Data::None).unwrap();
    }
    queue.flush().unwrap();
    script.feed(&resp(0, Status::SUCCESS));
    script.0.lock().unwrap().closed = true;
    assert_eq!(queue.poll(Duration::from_secs(10)).unwrap().count(), 1);
    assert!(matches!(queue.progress(), Err(Error::Closed)));
    assert!(matches!(queue.progress(), Err(Error::Closed)));
    let refused = queue
        .submit(command::flush(1), Data::Write(vec![3; 3]))
        .unwrap_err();
    assert!(matches!(refused.error, Error::Closed));
    assert_eq!(refused.data.into_buffer(), [3; 3]);
}

#[test]
fn a_liar_is_told_so() {
    let (script, mut queue) = open();
    let before = script.sent();
    script.feed(&resp(5, Status::SUCCESS));
    let error = queue.progress().unwrap_err();
    assert!(matches!(error, Error::Violation(_)), "{error}");
    let output = script.0.lock().unwrap().output[before..].to_vec();
    assert_eq!(
        (output[0], output.len()),
        (2, 24 + 24),
        "an H2CTermReq that quotes the header"
    );
}
