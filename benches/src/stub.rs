//! What the TCP of this machine could do: NVMe/TCP's bytes without NVMe/TCP.
//!
//! The server knows from the first bytes of a connection how long requests and answers are. From
//! then on it counts: for every so many bytes that came, it owes so many. It parses nothing, checks
//! nothing, holds no state per command and copies nothing in user space: answers are gathered right
//! out of the RAM region, at random blocks. What separates it from a target is the price of a
//! target. One thread, level-triggered epoll, one receive and one gather write per turn.
//!
//! A large write is the bytes of command, R2T, H2CData and response, without waiting for the R2T.
//!
//! Data of writes stays where it is received: one after the other, through a landing area larger
//! than any cache. With [`Shape::place`] each is copied to a random block of that area instead,
//! which is the least that a target with a RAM disk has to do.

use crate::poll::Poller;
use crate::report::{self, Report, Tally, Window};
use crate::system::pin;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Writes up to this many bytes go in the capsule, as with `nvmfd`'s default.
const IN_CAPSULE: u32 = 16 << 10;
/// Bytes received at once.
const RECEIVE: usize = 256 << 10;
/// Runs per gather write; Linux takes no more than 1024.
const GATHER: usize = 1024;
/// Bytes that say what a connection is used for.
const HELLO: usize = 16;
const MAGIC: u32 = u32::from_le_bytes(*b"stub");
/// Number of the listener with the poller; connections are numbered from 0.
const LISTENER: u64 = u64::MAX;
/// Headers have to come from somewhere.
static ZEROS: [u8; 256] = [0; 256];

/// What every I/O of a connection looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Writes; reads otherwise.
    pub write: bool,
    /// Bytes of data.
    pub size: u32,
    /// As many bytes more as header and data digests would be; none is computed.
    pub digests: bool,
    /// Reads without CapsuleResp.
    pub success: bool,
    /// The data of writes is copied to random blocks.
    pub place: bool,
}

/// The bytes of one message: header bytes, data, header bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    head: usize,
    data: usize,
    tail: usize,
}

impl Layout {
    const fn len(&self) -> u64 {
        (self.head + self.data + self.tail) as u64
    }
}

impl Shape {
    fn request(&self) -> Layout {
        let digest = if self.digests { 4 } else { 0 };
        let mut layout = Layout {
            head: 72 + digest,
            data: 0,
            tail: 0,
        };
        if self.write {
            layout.data = self.size as usize;
            layout.tail = digest;
            if self.size > IN_CAPSULE {
                layout.head += 24 + digest;
            }
        }
        layout
    }

    fn answer(&self) -> Layout {
        let digest = if self.digests { 4 } else { 0 };
        let response = 24 + digest;
        if self.write {
            let r2t = if self.size > IN_CAPSULE {
                24 + digest
            } else {
                0
            };
            return Layout {
                head: r2t + response,
                data: 0,
                tail: 0,
            };
        }
        let tail = if self.success {
            digest
        } else {
            digest + response
        };
        Layout {
            head: 24 + digest,
            data: self.size as usize,
            tail,
        }
    }

    fn encode(self) -> [u8; HELLO] {
        let mut hello = [0; HELLO];
        hello[..4].copy_from_slice(&MAGIC.to_le_bytes());
        hello[4..8].copy_from_slice(&self.size.to_le_bytes());
        for (byte, flag) in
            hello[8..]
                .iter_mut()
                .zip([self.write, self.digests, self.success, self.place])
        {
            *byte = u8::from(flag);
        }
        hello
    }

    fn decode(hello: [u8; HELLO]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, write, digests, success, place, ..] = hello;
        let size = u32::from_le_bytes([e, f, g, h]);
        (u32::from_le_bytes([a, b, c, d]) == MAGIC && size > 0).then_some(Self {
            write: write != 0,
            size,
            digests: digests != 0,
            success: success != 0,
            place: place != 0,
        })
    }
}

/// Blocks of a RAM region in a random order that takes no state: message `n` is always the same
/// block, so that a message which left in part can be continued.
#[derive(Clone, Copy, Debug)]
struct Region<'a> {
    bytes: &'a [u8],
}

impl<'a> Region<'a> {
    fn block(&self, n: u64, size: usize) -> &'a [u8] {
        let start = block_start(self.bytes.len(), n, size);
        &self.bytes[start..start + size]
    }
}

/// Where the block of message `n` begins in a region of so many bytes.
fn block_start(bytes: usize, n: u64, size: usize) -> usize {
    let blocks = (bytes / size).max(1) as u64;
    let mut mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 32;
    // The upper half of a 32 by 32 bit product is a number below `blocks`.
    let index = ((mixed & 0xffff_ffff) * blocks) >> 32;
    usize::try_from(index).unwrap_or(0) * size
}

/// Copies the data of a stream of messages to the blocks of a region: `bytes` stand at `start` in
/// the stream, and may begin and end within a message.
fn place(layout: Layout, start: u64, mut bytes: &[u8], region: &mut [u8]) {
    let Layout { head, data, .. } = layout;
    let len = layout.len();
    let mut n = start / len;
    let mut at = usize::try_from(start % len).unwrap_or(0);
    while !bytes.is_empty() {
        if at < head {
            let skipped = (head - at).min(bytes.len());
            bytes = &bytes[skipped..];
            at += skipped;
        } else if at < head + data {
            let taken = (head + data - at).min(bytes.len());
            let block = block_start(region.len(), n, data) + at - head;
            region[block..block + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            at += taken;
        } else {
            let skipped = (head + data + layout.tail - at).min(bytes.len());
            bytes = &bytes[skipped..];
            at += skipped;
        }
        if at as u64 == len {
            (n, at) = (n + 1, 0);
        }
    }
}

/// A stream of equal messages, of which so many bytes have left.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    layout: Layout,
    sent: u64,
}

impl Outgoing {
    /// Sends messages until `messages` have left since the beginning or the socket is full; true
    /// if they all have.
    fn send<'a>(
        &mut self,
        messages: u64,
        region: Region<'a>,
        gather: &mut Vec<IoSlice<'a>>,
        stream: &mut TcpStream,
    ) -> io::Result<bool> {
        let end = messages * self.layout.len();
        while self.sent < end {
            self.gather(messages, region, gather);
            match stream.write_vectored(gather) {
                Ok(n) => self.sent += n as u64,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn gather<'a>(&self, messages: u64, region: Region<'a>, gather: &mut Vec<IoSlice<'a>>) {
        let Layout { head, data, tail } = self.layout;
        let len = self.layout.len();
        let mut skip = usize::try_from(self.sent % len).unwrap_or(0);
        gather.clear();
        for n in self.sent / len..messages {
            if gather.len() + 3 > GATHER {
                break;
            }
            let block = if data > 0 { region.block(n, data) } else { &[] };
            for part in [&ZEROS[..head], block, &ZEROS[..tail]] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    gather.push(IoSlice::new(&part[skipped..]));
                }
            }
        }
    }
}

/// How the server runs.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Bytes of RAM that reads are answered from; writes land in as many more.
    pub region: u64,
    /// Poll for events instead of sleeping, as long as there are connections.
    pub spin: bool,
}

/// A server with its memory.
#[derive(Debug)]
pub struct Server {
    spin: bool,
    region: Vec<u8>,
    landing: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    shape: Shape,
    received: u64,
    answers: Outgoing,
    /// The socket was full; the poller waits for room.
    blocked: bool,
}

impl Server {
    /// Takes and fills its memory: from then on it can serve at once.
    ///
    /// # Errors
    ///
    /// The region does not fit the address space.
    pub fn new(options: &ServerOptions) -> io::Result<Self> {
        let bytes = usize::try_from(options.region).map_err(io::Error::other)?;
        Ok(Self {
            spin: options.spin,
            // Filled, or every page would be the one page of zeros and never leave the cache; and
            // taking memory is not what is measured.
            region: vec![0x5a; bytes.max(RECEIVE)],
            landing: vec![0x5a; bytes.max(RECEIVE)],
        })
    }

    /// Serves connections until there is an error that is not one of a connection.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn serve(self, listener: &TcpListener) -> io::Result<()> {
        let Self {
            spin,
            region,
            mut landing,
        } = self;
        let region = Region { bytes: &region };
        let mut scratch = vec![0; RECEIVE];
        let mut position = 0;
        let mut gather = Vec::with_capacity(GATHER);
        let mut connections: Vec<Option<Connection>> = Vec::new();
        let mut open = 0;
        let mut poller = Poller::new(false)?;
        let mut ready = Vec::new();
        poller.add(listener, LISTENER)?;
        loop {
            ready.extend(poller.wait()?);
            for number in ready.drain(..) {
                if number == LISTENER {
                    // A client that is gone before it has said what it wants is no reason to stop.
                    if let Ok(connection) = accept(listener) {
                        poller.add(&connection.stream, connections.len() as u64)?;
                        connections.push(Some(connection));
                        open += 1;
                        poller.set_spin(spin);
                    }
                    continue;
                }
                let index = usize::try_from(number).unwrap_or(usize::MAX);
                let Some(entry) = connections.get_mut(index) else {
                    continue;
                };
                let Some(connection) = entry else { continue };
                // Data that writes bring lands all over the region, as it would with a disk.
                let moves_on = connection.shape.write && !connection.shape.place;
                if !moves_on || position + RECEIVE > landing.len() {
                    position = 0;
                }
                let turn = if moves_on {
                    let space = &mut landing[position..position + RECEIVE];
                    connection.turn(space, None, region, &mut gather)
                } else {
                    connection.turn(&mut scratch, Some(&mut landing), region, &mut gather)
                };
                match turn {
                    Ok(received) => {
                        position += received;
                        let left = !connection.is_done();
                        if left != connection.blocked {
                            connection.blocked = left;
                            poller.want_output(&connection.stream, number, left)?;
                        }
                    }
                    Err(_) => {
                        poller.remove(&connection.stream)?;
                        *entry = None;
                        open -= 1;
                        poller.set_spin(spin && open > 0);
                    }
                }
            }
        }
    }
}

fn accept(listener: &TcpListener) -> io::Result<Connection> {
    let (mut stream, _) = listener.accept()?;
    let mut hello = [0; HELLO];
    stream.read_exact(&mut hello)?;
    let shape = Shape::decode(hello)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a stub client"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let answers = Outgoing {
        layout: shape.answer(),
        sent: 0,
    };
    Ok(Connection {
        stream,
        shape,
        received: 0,
        answers,
        blocked: false,
    })
}

impl Connection {
    /// Requests that have come entirely.
    fn requests(&self) -> u64 {
        self.received / self.shape.request().len()
    }

    fn is_done(&self) -> bool {
        self.answers.sent == self.requests() * self.answers.layout.len()
    }

    /// Receives once, copies data that has to be placed into `landing`, and answers. An error is
    /// the end of the connection.
    fn turn<'a>(
        &mut self,
        space: &mut [u8],
        landing: Option<&mut [u8]>,
        region: Region<'a>,
        gather: &mut Vec<IoSlice<'a>>,
    ) -> io::Result<usize> {
        let received = match self.stream.read(space) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        if let Some(landing) = landing
            && self.shape.place
        {
            place(
                self.shape.request(),
                self.received,
                &space[..received],
                landing,
            );
        }
        self.received += received as u64;
        self.answers
            .send(self.requests(), region, gather, &mut self.stream)?;
        Ok(received)
    }
}

/// How the client runs.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Address of a stub server.
    pub address: SocketAddr,
    /// What every I/O looks like.
    pub shape: Shape,
    /// Outstanding I/Os per connection.
    pub depth: u32,
    /// Connections, all of one thread.
    pub connections: u32,
    /// Poll for events instead of sleeping.
    pub spin: bool,
    /// Processor to run on.
    pub cpu: Option<usize>,
    /// How long.
    pub window: Window,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    requests: Outgoing,
    received: u64,
    /// Requests given to `requests`, and those that are answered.
    submitted: u64,
    completed: u64,
    /// When the outstanding requests were submitted; answers come in the order of requests.
    started: Vec<u64>,
}

/// Keeps `depth` I/Os outstanding on every connection for the time of the window.
///
/// # Errors
///
/// What the system says, or the server has closed a connection.
pub fn load(options: &ClientOptions) -> io::Result<Report> {
    report::run(1, &options.window, |_, tally| {
        load_in_this_thread(options, tally)
    })
}

fn load_in_this_thread(options: &ClientOptions, tally: &mut Tally) -> io::Result<()> {
    if let Some(cpu) = options.cpu {
        pin(cpu)?;
    }
    let data = vec![0xa5; options.shape.request().data.max(1)];
    let region = Region { bytes: &data };
    let mut space = vec![0; RECEIVE];
    let mut gather = Vec::with_capacity(GATHER);
    let mut poller = Poller::new(options.spin)?;
    let mut clients = Vec::new();
    for number in 0..options.connections {
        let client = Client::connect(options)?;
        poller.add(&client.stream, u64::from(number))?;
        clients.push(client);
    }
    for client in &mut clients {
        client.submit(u64::from(options.depth), tally.now());
        client.send(region, &mut gather)?;
    }
    let mut now = tally.now();
    while !tally.is_over(now) {
        for number in poller.wait()? {
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(client) = clients.get_mut(index) else {
                continue;
            };
            if client.receive(&mut space)? {
                client.account(&options.shape, tally);
            }
            client.send(region, &mut gather)?;
        }
        now = tally.now();
    }
    Ok(())
}

impl Client {
    fn connect(options: &ClientOptions) -> io::Result<Self> {
        let mut stream = TcpStream::connect(options.address)?;
        stream.write_all(&options.shape.encode())?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            requests: Outgoing {
                layout: options.shape.request(),
                sent: 0,
            },
            received: 0,
            submitted: 0,
            completed: 0,
            started: vec![0; options.depth as usize],
        })
    }

    fn submit(&mut self, requests: u64, now: u64) {
        for n in self.submitted..self.submitted + requests {
            let index = n % self.started.len() as u64;
            self.started[usize::try_from(index).unwrap_or(0)] = now;
        }
        self.submitted += requests;
    }

    /// Sends what is submitted. The poller does not wait for room: it comes with the next answer.
    fn send<'a>(&mut self, region: Region<'a>, gather: &mut Vec<IoSlice<'a>>) -> io::Result<()> {
        self.requests
            .send(self.submitted, region, gather, &mut self.stream)?;
        Ok(())
    }

    /// Receives once; true if anything came.
    fn receive(&mut self, space: &mut [u8]) -> io::Result<bool> {
        match self.stream.read(space) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.received += n as u64;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Counts the answers that have come and submits as many requests.
    fn account(&mut self, shape: &Shape, tally: &mut Tally) {
        let answered = self.received / shape.answer().len();
        let now = tally.now();
        for n in self.completed..answered {
            let index = usize::try_from(n % self.started.len() as u64).unwrap_or(0);
            tally.record(self.started[index], now, shape.size);
        }
        let completed = answered - self.completed;
        self.completed = answered;
        self.submit(completed, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const READ: Shape = Shape {
        write: false,
        size: 4096,
        digests: false,
        success: true,
        place: false,
    };

    #[test]
    fn byte_counts_of_nvme_tcp() {
        assert_eq!((READ.request().len(), READ.answer().len()), (72, 24 + 4096));
        let flow_control = Shape {
            success: false,
            ..READ
        };
        assert_eq!(flow_control.answer().len(), 24 + 4096 + 24);
        let digests = Shape {
            digests: true,
            ..flow_control
        };
        assert_eq!(
            (digests.request().len(), digests.answer().len()),
            (76, 28 + 4096 + 4 + 28)
        );
        let write = Shape {
            write: true,
            ..READ
        };
        assert_eq!(
            (write.request().len(), write.answer().len()),
            (72 + 4096, 24)
        );
        let large = Shape {
            size: 128 << 10,
            ..write
        };
        assert_eq!(
            (large.request().len(), large.answer().len()),
            (96 + (128 << 10), 48)
        );
        assert_eq!(Shape::decode(digests.encode()), Some(digests));
        let placed = Shape {
            place: true,
            ..write
        };
        assert_eq!(Shape::decode(placed.encode()), Some(placed));
        assert_eq!(Shape::decode([0; HELLO]), None);
    }

    #[test]
    fn a_message_cut_anywhere_is_continued() {
        let bytes: Vec<u8> = (0..64_u8).collect();
        let region = Region { bytes: &bytes };
        let layout = Layout {
            head: 3,
            data: 8,
            tail: 2,
        };
        let from = |sent| {
            let mut gather = Vec::new();
            Outgoing { layout, sent }.gather(4, region, &mut gather);
            gather
                .iter()
                .flat_map(|part| part.to_vec())
                .collect::<Vec<u8>>()
        };
        let whole = from(0);
        assert_eq!(whole.len(), 4 * 13);
        for sent in 0..whole.len() {
            assert_eq!(from(sent as u64), whole[sent..], "{sent}");
        }
    }

    #[test]
    fn data_cut_anywhere_gets_to_its_block() {
        let layout = Layout {
            head: 3,
            data: 8,
            tail: 2,
        };
        let stream: Vec<u8> = (0..4 * 13).collect();
        let mut whole = vec![0xff; 64];
        place(layout, 0, &stream, &mut whole);
        for n in 0..4 {
            let from = n * 13 + 3;
            let block = block_start(64, n as u64, 8);
            let last = (n + 1..4).all(|later| block_start(64, later as u64, 8) != block);
            assert!(!last || whole[block..block + 8] == stream[from..from + 8]);
        }
        for cut in 0..stream.len() {
            let mut parts = vec![0xff; 64];
            place(layout, 0, &stream[..cut], &mut parts);
            place(layout, cut as u64, &stream[cut..], &mut parts);
            assert_eq!(parts, whole, "{cut}");
        }
    }

    #[test]
    fn server_and_client_agree() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(&ServerOptions {
            region: 1 << 20,
            spin: false,
        });
        let server = server.unwrap();
        std::thread::spawn(move || server.serve(&listener));
        let window = Window {
            warm_up: Duration::ZERO,
            measured: Duration::from_millis(50),
            pid: None,
        };
        for (write, place, size) in [
            (false, false, 4096),
            (true, false, 4096),
            (true, true, 4096),
            (false, false, 128 << 10),
            (true, false, 128 << 10),
            (true, true, 128 << 10),
        ] {
            let shape = Shape {
                write,
                place,
                size,
                ..READ
            };
            let (connections, depth) = (2, 8);
            let options = ClientOptions {
                address,
                shape,
                depth,
                connections,
                spin: false,
                cpu: None,
                window,
            };
            let report = load(&options).unwrap();
            assert_eq!(report.bytes, report.latency.count() * u64::from(size));
        }
    }
}
