//! One association of a host with a subsystem: its way up, its commands, its end.

use crate::command::{Command, What};
use crate::discovery::Watch;
use crate::limits::Crowd;
use crate::network::{SharedLink, lock};
use crate::plan;
use crate::queries::Features;
use crate::queue::{Data, Queue};
use crate::trace;
use nvmf_host::command;
use nvmf_proto::tcp::host::Config;
use nvmf_proto::wire::Cqe;
use nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, Cattr, ConnectCommand, ConnectData, ConnectResponse, FabricsType, PropertyGet,
    PropertySet, PropertySize,
};
use nvmf_proto::wire::feature::{AsyncEventConfig, Fid, NumberOfQueues, SetFeatures};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::{Cc, Csts, PropertyOffset};
use nvmf_target::Status;

/// Entries of an admin queue.
const ADMIN_ENTRIES: u32 = 32;
/// Aborts that a controller takes at a time, ACL + 1.
const ABORTS: usize = 4;
const SECOND: u64 = 1_000_000_000;
/// How long a host without a Keep Alive Timeout may be silent at a discovery controller.
const SILENT_DISCOVERY: u64 = 120 * SECOND;

/// How far an association has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is none; the next one is tried at this time, if any.
    Down(u64),
    /// On its way up.
    Rising,
    Up,
    /// The host has cleared CC.EN, or will when the controller is shut down, and is going to set it
    /// again.
    Restarting,
    /// The host has asked for its end: CC.EN, CC.SHN or Disconnect.
    Leaving,
}

pub struct Association {
    pub host: usize,
    pub plan: plan::Association,
    pub stage: Stage,
    /// The admin queue, then the I/O queues.
    pub queues: Vec<Queue>,
    pub cntlid: Option<u16>,
    /// Why it may end, if it may.
    pub excuse: Option<&'static str>,
    /// When the host submitted the last command that was answered: the target was told then or
    /// later that the host lives.
    pub proof: u64,
    /// When the host submitted its last command.
    pub last_submit: u64,
    /// When bytes of the host arrived last.
    pub last_arrival: u64,
    /// The host sends nothing more, for good.
    pub silent: bool,
    /// So often it has not come up since it was up last.
    pub tries: u32,
    /// When its host began to reset the controller last, or to shut it down.
    pub stopped_at: u64,
    /// When its host looks next whether the controller is disabled or shut down.
    pub look_at: u64,
    /// The controller is to be shut down first.
    halting: bool,
    /// Commands that began before may have ended with the controller's reset.
    pub restarted: u64,
    /// Since it is tried.
    pub crowd: Crowd,
    /// What its host knows of the discovery log.
    pub watch: Watch,
    /// What its host has set.
    pub features: Features,
    /// How commands ended that the host wanted aborted, by their start.
    ended: Vec<(u64, Status)>,
}

/// What becomes of a completion on the way up.
pub enum Progress {
    Fine,
    /// The next I/O queue wants a connection.
    OpenQueue(u16),
    /// The host is refused.
    Refused,
}

impl Association {
    pub fn new(host: usize, plan: plan::Association) -> Self {
        Self {
            host,
            plan,
            stage: Stage::Down(0),
            queues: Vec::new(),
            cntlid: None,
            excuse: None,
            proof: 0,
            last_submit: 0,
            last_arrival: 0,
            silent: false,
            tries: 0,
            stopped_at: 0,
            look_at: u64::MAX,
            halting: false,
            restarted: 0,
            crowd: Crowd::default(),
            watch: Watch::default(),
            features: Features::new(),
            ended: Vec::new(),
        }
    }

    pub fn kato(&self) -> u64 {
        if self.plan.discovery && self.plan.kato == 0 {
            // The target has one of its own then.
            return SILENT_DISCOVERY;
        }
        self.plan.kato * SECOND
    }

    /// When the host has to show a sign of life.
    pub fn keep_alive_due(&self) -> Option<u64> {
        let wanted = self.plan.kato > 0 && !self.silent && self.stage == Stage::Up;
        let admin = self.queues.first()?;
        (wanted && admin.joined && admin.has_room()).then(|| self.last_submit + self.kato() / 3)
    }

    fn config(&self, qid: u16, in_capsule: u32) -> Config {
        let plan = &self.plan;
        Config {
            header_digest: plan.header_digest,
            data_digest: plan.data_digest,
            hpda: plan.hpda,
            maxr2t: plan.maxr2t,
            entries: if qid == 0 {
                ADMIN_ENTRIES
            } else {
                plan.entries
            },
            flow_control: plan.flow_control,
            in_capsule: if qid == 0 { 8192 } else { in_capsule },
            // The simulation has its own deadlines.
            ic_timeout: u64::MAX / 2,
            linger: u64::MAX / 2,
        }
    }

    /// A queue on a new connection: Connect is on its way.
    pub fn open(&mut self, link: SharedLink, qid: u16, in_capsule: u32, nqn: &str, host: &str) {
        let config = self.config(qid, in_capsule);
        let mut queue = Queue::new(link, qid, &config, trace::now());
        if qid > 0 {
            queue.depth = self.plan.depth;
        }
        let mut cattr = Cattr::empty();
        cattr.set(Cattr::DISABLE_SQ_FLOW_CONTROL, !self.plan.flow_control);
        let sqe = ConnectCommand {
            qid,
            sqsize: (config.entries - 1) as u16,
            cattr,
            kato: if qid == 0 {
                self.plan.kato as u32 * 1000
            } else {
                0
            },
            ..ConnectCommand::default()
        }
        .to_sqe();
        let field = |name: &str| Nqn::new(name).expect("an NQN").to_field();
        let mut data = [0; 1024];
        ConnectData {
            hostid: hostid(self.host),
            cntlid: self.cntlid.unwrap_or(CNTLID_DYNAMIC),
            subnqn: field(nqn),
            hostnqn: field(host),
        }
        .encode(&mut data);
        let command = Command::new(What::Connect, trace::stamp(), trace::now());
        queue.submit(sqe, Data::Write(data.to_vec(), true), command);
        self.last_submit = trace::now();
        self.queues.push(queue);
    }

    fn send(&mut self, what: What, sqe: nvmf_proto::wire::Sqe) {
        let command = Command::new(what, trace::stamp(), trace::now());
        if let Some(admin) = self.queues.first_mut() {
            admin.submit(sqe, Data::None, command);
        }
        self.last_submit = trace::now();
    }

    /// The next step of the way up.
    pub fn rise(&mut self, qid: u16, what: &What, cqe: &Cqe) -> Progress {
        if !cqe.status.is_success() {
            return Progress::Refused;
        }
        match what {
            What::Connect if qid == 0 => {
                self.cntlid = Some(ConnectResponse::from_dw0(cqe.result as u32).cntlid);
                self.queues[0].joined = true;
                self.send(What::Enable, set_cc(enabled()));
            }
            What::Connect => {
                if let Some(queue) = self.queues.iter_mut().find(|q| q.qid == qid) {
                    queue.joined = true;
                }
                return self.next_queue(qid);
            }
            What::Enable => self.send(What::Ready, get_csts()),
            What::Ready => {
                assert!(Csts(cqe.result as u32).rdy(), "it is enabled at once");
                if self.plan.discovery {
                    let events = AsyncEventConfig::DISCOVERY_LOG.bits();
                    let set = SetFeatures::new(Fid::ASYNC_EVENT_CONFIG, events);
                    self.send(What::Watch, command::set_features(0, &set));
                    return Progress::Fine;
                }
                let set = SetFeatures::new(
                    Fid::NUMBER_OF_QUEUES,
                    NumberOfQueues::pairs(self.plan.queues).to_bits(),
                );
                self.send(What::QueueCount, command::set_features(0, &set));
            }
            What::QueueCount | What::Watch => {
                for _ in 0..self.plan.events {
                    self.send(What::Event, command::async_event_request());
                }
                return self.next_queue(0);
            }
            _ => {}
        }
        Progress::Fine
    }

    fn next_queue(&mut self, qid: u16) -> Progress {
        if qid < self.plan.queues {
            return Progress::OpenQueue(qid + 1);
        }
        self.stage = Stage::Up;
        Progress::Fine
    }

    pub fn keep_alive(&mut self) {
        self.send(What::KeepAlive, command::keep_alive());
    }

    /// An Asynchronous Event Request in place of one that was answered.
    pub fn await_event(&mut self) {
        self.send(What::Event, command::async_event_request());
    }

    /// Asks for the end of a command.
    pub fn abort(&mut self, qid: u16, cid: u16, victim: u64) {
        let others = self.queues[0].commands();
        let others = others.filter(|c| matches!(c.what, What::Abort { .. }));
        let crowded = others.count() >= ABORTS;
        self.send(What::Abort { crowded, victim }, command::abort(qid, cid));
    }

    /// Controller reset: CC.EN is cleared.
    pub fn disable(&mut self) {
        self.stage = Stage::Leaving;
        self.excuse = Some("its host resets the controller");
        self.send(What::Disable, set_cc(enabled().with_en(false)));
    }

    /// Controller reset, perhaps behind a shutdown, with the intention to go on.
    pub fn restart(&mut self, halt: bool) {
        self.halting = halt;
        self.stage = Stage::Restarting;
        self.stopped_at = trace::now();
        self.look_at = u64::MAX;
        let stamp = trace::stamp();
        self.restarted = stamp;
        for history in self.features.values_mut() {
            history.set(stamp, None);
        }
        if halt {
            self.send(What::Halt, set_cc(enabled().with_shn(Cc::SHN_NORMAL)));
        } else {
            self.disable_for_now();
        }
    }

    /// The next one is [`Self::enable_again`].
    pub fn disable_for_now(&mut self) {
        self.halting = false;
        self.send(What::Restart, set_cc(enabled().with_en(false)));
    }

    /// Asks whether the controller is disabled or shut down.
    pub fn look(&mut self) {
        self.look_at = u64::MAX;
        let what = if self.halting {
            What::IsHalted
        } else {
            What::IsOff
        };
        self.send(what, get_csts());
    }

    /// The controller is disabled, and its features are what they are after a reset; it is enabled
    /// again.
    pub fn enable_again(&mut self) {
        self.stage = Stage::Rising;
        self.restarted = trace::stamp();
        self.features.clear();
        self.watch = Watch::default();
        self.send(What::Enable, set_cc(enabled()));
    }

    /// Controller shutdown: CC.SHN.
    pub fn shut_down(&mut self) {
        self.stage = Stage::Leaving;
        self.excuse = Some("its host shuts the controller down");
        self.send(What::Shutdown, set_cc(enabled().with_shn(Cc::SHN_NORMAL)));
    }

    /// A command is complete; an error if the target had said that it aborted it.
    pub fn note_end(&mut self, command: &Command, status: Status) -> Result<(), String> {
        let aborted = status.same_code(Status::ABORT_REQUESTED);
        if command.unwanted {
            self.ended.push((command.start, status));
        }
        if command.doomed && !aborted {
            return Err(format!("an aborted command ended with {status}"));
        }
        Ok(())
    }

    /// The target says that it has aborted a command: then that has ended like that, or will.
    pub fn aborted(&mut self, victim: u64) -> Result<(), String> {
        let ended = self.ended.iter().find(|(start, _)| *start == victim);
        match ended {
            Some((_, status)) if !status.same_code(Status::ABORT_REQUESTED) => {
                return Err(format!("an aborted command has ended with {status}"));
            }
            Some(_) => {}
            None => {
                let commands = self.queues.iter_mut().flat_map(Queue::commands_mut);
                for command in commands.filter(|command| command.start == victim) {
                    command.doomed = true;
                }
            }
        }
        Ok(())
    }

    /// Disconnect of one I/O queue.
    pub fn disconnect(&mut self, index: usize) {
        self.stage = Stage::Leaving;
        self.excuse = Some("its host disconnects a queue");
        let command = Command::new(What::Disconnect, trace::stamp(), trace::now());
        self.queues[index].submit(FabricsType::DISCONNECT.sqe(), Data::None, command);
    }

    /// The host closes all connections; returns what was under way with the links it was on.
    pub fn tear_down(&mut self, reset: bool, retry_at: u64) -> Vec<(SharedLink, Command)> {
        let mut lost = Vec::new();
        for mut queue in self.queues.drain(..) {
            queue.close(reset);
            let link = queue.link.clone();
            let commands = queue.take_commands();
            lost.extend(commands.into_iter().map(|c| (link.clone(), c)));
        }
        self.cntlid = None;
        self.excuse = None;
        self.ended.clear();
        self.features.clear();
        self.watch = Watch::default();
        self.stage = Stage::Down(retry_at);
        lost
    }

    /// Whether anything is unanswered but requests for events.
    pub fn is_waiting(&self) -> bool {
        self.queues
            .iter()
            .flat_map(Queue::commands)
            .any(|c| !matches!(c.what, What::Event))
    }

    /// Whether the target has closed one of its connections, and when it did so first.
    pub fn closed_at(&self) -> Option<u64> {
        // I/O queues end with a reset.
        let concerned = match self.stage {
            Stage::Restarting => 1,
            _ => self.queues.len(),
        };
        self.queues
            .iter()
            .take(concerned)
            .filter_map(|queue| lock(&queue.link).closed_at)
            .min()
    }
}

/// HOSTID of a host.
pub fn hostid(host: usize) -> [u8; 16] {
    [host as u8 + 1; 16]
}

/// HOSTNQN of a host.
pub fn hostnqn(host: usize) -> String {
    format!("nqn.2026-11.org.example:host{host}")
}

fn enabled() -> Cc {
    Cc::default().with_en(true).with_iosqes(6).with_iocqes(4)
}

fn get_csts() -> nvmf_proto::wire::Sqe {
    PropertyGet {
        size: PropertySize::BYTES_4,
        offset: PropertyOffset::CSTS,
    }
    .to_sqe()
}

fn set_cc(cc: Cc) -> nvmf_proto::wire::Sqe {
    PropertySet {
        size: PropertySize::BYTES_4,
        offset: PropertyOffset::CC,
        value: cc.0.into(),
    }
    .to_sqe()
}
