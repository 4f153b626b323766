//! SIGTERM, beyond what the rounds show: while hosts come, and with a host that holds it up.

use super::storage::Storage;
use super::writer::end_of_target;
use crate::common::*;
use nvmf_host::nvmf_proto::wire::pdu::DataHeader;
use nvmf_host::raw::{RawPdu, Terms};
use nvmf_host::{ConnectOptions, Controller, Data, Error, command};
use rustix::process::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

/// Connects, moves data and goes, again and again, until the target is gone. Half of the time it
/// leaves a connection behind that has not come far.
fn come_and_go(address: SocketAddr, seed: u64, connected: &(dyn Fn() + Sync)) {
    let mut left = Vec::new();
    let mut come = |round: u64| -> Result<(), Error> {
        let options = ConnectOptions::new(address, NQN)?;
        let mut controller = Controller::connect(&options)?;
        connected();
        controller.set_queue_count(2)?;
        let namespace = controller.namespace(1)?;
        let slba = seed * 8;
        let data = vec![u8::try_from(round % 251).unwrap(); 4096];
        for qid in 1..=2 {
            let mut queue = controller.io_queue(qid)?;
            queue.write(&namespace, slba, &data)?;
            let mut back = vec![0; data.len()];
            queue.read(&namespace, slba, &mut back)?;
            assert!(back == data, "round {round} of host {seed}");
        }
        if round.is_multiple_of(2)
            && let Ok(mut stream) = TcpStream::connect(address)
        {
            // It says nothing, or half of an ICReq.
            if round.is_multiple_of(4) {
                let _ = stream.write(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0]);
            }
            left.truncate(4);
            left.push(stream);
        }
        Ok(())
    };
    let error = (0..).find_map(|round| come(round).err()).unwrap();
    end_of_target(&error);
}

#[test]
fn hosts_that_are_just_coming_do_not_hold_it_up() {
    for round in 0..4 {
        let daemon = Daemon::start(&["-n", NQN, "--threads", "2", "ramdisk:1m"]);
        let address = daemon.address("nvme connect");
        let left = AtomicI64::new(30 + 17 * round);
        let connected = || {
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                daemon.signal(Signal::TERM);
            }
        };
        thread::scope(|scope| {
            for host in 0..24 {
                let connected = &connected;
                scope.spawn(move || come_and_go(address, host, connected));
            }
        });
        assert_eq!(daemon.end(), Some(0));
    }
}

/// How a daemon ends with a host that never sends the data of its write, by one signal or two.
fn end_with_a_stalled_host(hurried: bool) -> Option<i32> {
    let daemon = Daemon::start(&["-n", NQN, "ramdisk:1m"]);
    let mut controller = daemon.connect(|_| {});
    let mut queue = io_queue(&mut controller);
    let write = command::write(1, 0, 128);
    let data = Data::Write(vec![1; 64 << 10]);
    queue.queue().submit(write, data).unwrap();
    assert!(queue.queue().flush().unwrap());
    // What the target asks for next, this host does not hear. That it has asked, another's command
    // behind it shows.
    let mut other = daemon.connect(|_| {});
    let namespace = other.namespace(1).unwrap();
    write_and_read_back(&mut io_queue(&mut other), &namespace, 512, 1);
    let mut idle = TcpStream::connect(daemon.address("nvme connect")).unwrap();
    daemon.signal(Signal::TERM);
    // It has begun to end when it closes what does nothing.
    let end = idle.read(&mut [0]);
    let reset = |err: std::io::Error| err.kind() == ErrorKind::ConnectionReset;
    assert!(end.map_or_else(reset, |n| n == 0));
    if hurried {
        daemon.signal(Signal::TERM);
    }
    daemon.end()
}

#[test]
fn a_second_sigterm_is_the_end() {
    assert_eq!(end_with_a_stalled_host(false), Some(0), "it is given up");
    // The host might have been given up before the second signal came.
    let status = (0..20).map(|_| end_with_a_stalled_host(true));
    assert!(status.into_iter().any(|status| status == Some(1)));
}

/// A host that brings a byte now and then holds nothing up, and its fault is none of the target's.
#[test]
fn a_host_that_drips_is_given_up() {
    let daemon = Daemon::start(&["-n", NQN, "ramdisk:1m"]);
    let mut controller = daemon.connect(|_| {});
    let mut queue = io_queue(&mut controller);
    let write = command::write(1, 0, 128);
    let data = Data::WriteByR2t(vec![1; 64 << 10]);
    queue.queue().submit(write, data).unwrap();
    assert!(queue.queue().flush().unwrap());
    // From here on the stream is written by hand.
    let fd = queue.queue().fd().unwrap().try_clone_to_owned().unwrap();
    let mut stream = TcpStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    let mut r2t = [0; 24];
    stream.read_exact(&mut r2t).unwrap();
    let r2t = DataHeader::decode(&r2t);
    let pdu = RawPdu::h2c_data(&r2t, 0, &[1; 64 << 10], true, Terms::default()).bytes();
    daemon.signal(Signal::TERM);
    let pause = Duration::from_millis(100);
    stream.set_read_timeout(Some(pause)).unwrap();
    for byte in pdu {
        let pause_is_over = |err: &std::io::Error| err.kind() == ErrorKind::WouldBlock;
        let gone = stream.write(&[byte]).is_err();
        if gone || !stream.read(&mut [0]).is_err_and(|err| pause_is_over(&err)) {
            break;
        }
    }
    assert_eq!(daemon.end(), Some(0));
}

/// What hosts have written and not flushed is on stable storage when the daemon has ended.
#[test]
fn what_is_cached_is_flushed() {
    let Some(storage) = Storage::device(4 * MIB, 512) else {
        eprintln!("skipped: no loop device is to be had here");
        return;
    };
    for engine in ["threads", "auto"] {
        let arguments = ["--direct", "off", "--io-engine", engine, storage.path()];
        let daemon = Daemon::start(&arguments);
        let mut controller = daemon.connect(|_| {});
        let namespace = controller.namespace(1).unwrap();
        let mut queue = io_queue(&mut controller);
        queue.write(&namespace, 0, &vec![1; 1 << 20]).unwrap();
        let before = storage.flushes();
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.end(), Some(0));
        assert!(storage.flushes() > before, "{engine}");
    }
}
