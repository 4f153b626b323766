//! A load host: a process of its own, which can be killed like one.
//!
//! It owns a region of a namespace, and keeps a model of it in a file. It connects, puts commands of
//! all kinds on several queues, verifies all that it reads, and leaves in one of several ways, again
//! and again. What it has done it says on standard output, once a second; `fail` and a sentence is
//! the last line of a host that has seen something wrong.

mod command;
mod session;

use crate::board::{Board, Moment, Word};
use crate::cut::{Fuse, FusedStream};
use crate::model::Model;
use crate::random::Random;
use clap::Args;
use command::{Kind, Limits};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Controller, Error, Stream};
use session::Session;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long commands of a host that has gone may still be carried out. What comes after that
/// without having been read before is an error.
const SETTLING: Duration = Duration::from_secs(3);
/// Between two looks at the board.
const LOOK: Duration = Duration::from_millis(20);
/// How long after a disturbance its consequences may be noticed.
const AFTERMATH: Duration = Duration::from_secs(5);
/// Between two lines of what was done.
const TELL: Duration = Duration::from_secs(1);

/// What a load host is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct HostArgs {
    /// The board of the run.
    #[arg(long)]
    board: PathBuf,
    /// Where the model of the region is.
    #[arg(long)]
    model: PathBuf,
    /// Where the target listens.
    #[arg(long)]
    address: SocketAddr,
    /// NQN of the subsystem.
    #[arg(long)]
    nqn: String,
    /// Number of the host, from 1: its names follow from it.
    #[arg(long)]
    number: u16,
    /// Namespace.
    #[arg(long)]
    nsid: u32,
    /// First logical block of its region.
    #[arg(long)]
    first: u64,
    /// Logical blocks of its region.
    #[arg(long)]
    blocks: u32,
    /// What is written is gone with the daemon.
    #[arg(long)]
    volatile: bool,
    /// The namespace is churned: errors are to be expected while the board says so.
    #[arg(long)]
    churned: bool,
    /// Decides what is done.
    #[arg(long)]
    seed: u64,
    /// How many hosts had the region before; what they wrote differs.
    #[arg(long)]
    life: u16,
    /// Most commands a second; 0: as many as there can be.
    #[arg(long)]
    rate: u32,
    /// Seconds that anything may take.
    #[arg(long)]
    patience: u64,
}

/// NQN and Host Identifier of the hosts that a run consists of.
pub(crate) fn host_names(number: u16) -> (String, [u8; 16]) {
    let mut id = *b"nvmf soak host\0\0";
    id[14..].copy_from_slice(&number.to_be_bytes());
    (format!("nqn.2014-08.org.example:soak-host-{number}"), id)
}

/// Why a session ended before its time.
#[derive(Debug)]
enum Trouble {
    /// Somebody is to blame, maybe this host itself.
    Ended(Error),
    /// What must never happen.
    Wrong(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Ended(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Wrong(format!("model: {error}"))
    }
}

/// What was done since the last line.
#[derive(Debug, Default)]
struct Tally {
    counts: BTreeMap<&'static str, u64>,
    /// Longest time that a command took, in nanoseconds.
    slowest: u64,
}

impl Tally {
    fn count(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }
}

/// A load host.
struct Host {
    args: HostArgs,
    board: Board,
    model: Model,
    random: Random,
    tally: Tally,
    told: Instant,
    /// Number of the next stamp.
    stamps: u64,
    /// The next block of a read of the whole region, if one is going on.
    audit: Option<usize>,
    /// When something was last going on that excuses errors.
    disturbed: Option<Instant>,
}

/// Runs a load host until the board says that the run is over.
pub(crate) fn run(args: HostArgs) -> ExitCode {
    let lived = Host::new(args).and_then(|mut host| {
        let lived = host.live();
        host.tell();
        lived
    });
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("fail {why}");
            ExitCode::FAILURE
        }
    }
}

impl Host {
    fn new(args: HostArgs) -> Result<Self, String> {
        let said = |what: &'static str| move |err| format!("{what}: {err}");
        Ok(Self {
            board: Board::open(&args.board).map_err(said("board"))?,
            model: Model::open(&args.model, args.blocks as usize).map_err(said("model"))?,
            random: Random::new(
                args.seed,
                u64::from(args.number) << 16 | u64::from(args.life),
            ),
            tally: Tally::default(),
            told: Instant::now(),
            stamps: u64::from(args.number) << 48 | u64::from(args.life) << 32 | 1,
            // What the host before has left is looked at from end to end.
            audit: Some(0),
            disturbed: None,
            args,
        })
    }

    fn live(&mut self) -> Result<(), String> {
        // What the one before had under way when it was killed.
        let mut unsettled = self.args.life > 0;
        while !self.board.is_set(Word::Stop) {
            let now = self.board.moment();
            if self.board.is_set(Word::Pause) || !now.run.is_multiple_of(2) {
                std::thread::sleep(LOOK);
                self.tell_now_and_then();
                continue;
            }
            if unsettled {
                std::thread::sleep(SETTLING);
                unsettled = false;
                continue;
            }
            if self.args.volatile && self.model.generation() != now.run {
                self.model
                    .forget(now.run)
                    .map_err(|err| format!("model: {err}"))?;
            }
            let fuse = self.fuse();
            let ended = self.session(now, &fuse);
            self.model.release_all();
            match ended {
                Ok(orderly) => unsettled = !orderly,
                Err(trouble) => {
                    self.judge(trouble, now, &fuse)?;
                    unsettled = true;
                }
            }
        }
        Ok(())
    }

    /// How long an association lasts, in bytes.
    fn fuse(&mut self) -> Arc<Fuse> {
        if self.random.percent(40) {
            return Fuse::new(i64::MAX, false);
        }
        // As often in the handshake as anywhere else.
        let magnitude = self.random.within(7, 25);
        let bytes = self.random.within(1, 1 << magnitude);
        let reset = self.random.percent(70);
        Fuse::new(i64::try_from(bytes).unwrap_or(i64::MAX), reset)
    }

    /// Connects, works for a while and leaves; returns whether nothing can be under way any more.
    fn session(&mut self, since: Moment, fuse: &Arc<Fuse>) -> Result<bool, Trouble> {
        let options = self.options()?;
        let (address, timeout, with) = (options.address, options.timeout, Arc::clone(fuse));
        let connector = move || -> std::io::Result<Box<dyn Stream>> {
            Ok(Box::new(FusedStream::connect(address, timeout, &with)?))
        };
        let mut controller = Controller::connect_over(Box::new(connector), &options)?;
        let namespace = controller.namespace(self.args.nsid)?;
        if self.args.first + u64::from(self.args.blocks) > namespace.blocks {
            return Err(Trouble::Wrong(format!("the namespace is {namespace:?}")));
        }
        let queues = u16::try_from(self.random.within(1, 4)).unwrap_or(1);
        let given = controller.set_queue_count(queues)?;
        let mut connections = Vec::new();
        for qid in (1..=queues).take(given as usize) {
            connections.push(controller.io_queue(qid)?.into_queue());
        }
        // The daemon that this is connected to is the one that the model is about.
        if !self.board.moment().same_run(since) {
            return Ok(true);
        }
        self.tally.count("connects", 1);
        self.tally.count("queues", connections.len() as u64);
        let limits = Limits {
            namespace,
            first: self.args.first,
            max_bytes: controller.max_transfer().unwrap_or(1 << 20),
        };
        let mut session = Session::new(self, connections, limits);
        session.work()?;
        let is_idle = session.is_idle();
        let left_over = session.into_queues();
        match self.random.below(3) {
            0 => {
                // With all that is under way.
                controller.reset()?;
                self.tally.count("controller-resets", 1);
            }
            1 if is_idle => {
                drop(left_over);
                controller.disconnect()?;
                self.tally.count("disconnects", 1);
            }
            // FIN on all connections, as of a process that ends.
            _ => self.tally.count("drops", 1),
        }
        Ok(is_idle)
    }

    fn options(&mut self) -> Result<ConnectOptions, Trouble> {
        let (name, id) = host_names(self.args.number);
        let mut options = ConnectOptions::new(self.args.address, &self.args.nqn)?;
        options.host = Nqn::new(&name).map_err(|err| Trouble::Wrong(format!("{name}: {err}")))?;
        options.host_id = id;
        options.timeout = Duration::from_secs(self.args.patience);
        let random = &mut self.random;
        options.header_digest = random.percent(30);
        options.data_digest = random.percent(30);
        options.hpda = u8::try_from(random.below(32)).unwrap_or(0);
        options.maxr2t = u32::try_from(random.below(4)).unwrap_or(0);
        options.disable_sq_flow_control = random.percent(50);
        let most = *[4, 16, 64, 256].get(random.index(4)).unwrap_or(&64);
        options.io_entries = u32::try_from(random.within(3, most)).unwrap_or(64);
        Ok(options)
    }

    /// Whether trouble was to be expected.
    fn judge(&mut self, trouble: Trouble, since: Moment, fuse: &Fuse) -> Result<(), String> {
        let error = match trouble {
            Trouble::Wrong(why) => return Err(why),
            // Nothing excuses these.
            Trouble::Ended(error @ (Error::Violation(_) | Error::DataDigest { .. })) => {
                return Err(error.to_string());
            }
            Trouble::Ended(error) => error,
        };
        if fuse.is_blown() {
            self.tally.count("cuts", 1);
            return Ok(());
        }
        // Whoever ends a daemon says so on the board before.
        if !self.board.moment().same_run(since) {
            self.tally.count("ended-by-restarts", 1);
            self.audit = Some(0);
            return Ok(());
        }
        if self.is_disturbed(since) {
            self.tally.count("ended-by-churn", 1);
            return Ok(());
        }
        Err(format!("undisturbed, but: {error}"))
    }

    /// Whether errors are excused, because something has been going on since `since`, or just
    /// before.
    fn is_disturbed(&mut self, since: Moment) -> bool {
        let now = self.board.moment();
        if !now.same_run(since) {
            return true;
        }
        if !self.args.churned {
            return false;
        }
        if !now.is_undisturbed_since(since) {
            self.disturbed = Some(Instant::now());
        }
        self.disturbed.is_some_and(|at| at.elapsed() < AFTERMATH)
    }

    fn tell_now_and_then(&mut self) {
        if self.told.elapsed() >= TELL {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told = Instant::now();
        let tally = std::mem::take(&mut self.tally);
        let mut line = format!("did slowest {}", tally.slowest);
        for (what, n) in tally.counts {
            line += &format!(" {what} {n}");
        }
        // If nobody listens any more the run is over.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            std::process::exit(0);
        }
    }
}
