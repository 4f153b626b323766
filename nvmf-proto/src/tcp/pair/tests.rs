//! Whole conversations between the two machines, each the judge of the other.

use super::*;
use crate::tcp::target::CloseReason;
use crate::wire::NvmOpcode;
use crate::wire::pdu::Fes;

/// NSIDs that tell the controller below what to do.
const GOOD: u32 = 1;
const REFUSED: u32 = 2;
const ABANDONED: u32 = 3;

/// The data of the block at `slba`: both ends know what it has to be.
fn pattern(slba: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(slba);
    (0..len).map(|_| rng.below(256) as u8).collect()
}

/// Reads give the pattern, writes have to.
fn controller(request: Request<'_>) -> Answer {
    match request {
        Request::Command {
            sqe, cid_conflict, ..
        } => {
            assert!(!cid_conflict);
            let len = sqe.sgl().length;
            match (sqe.nsid(), NvmOpcode(sqe.opcode())) {
                (REFUSED, _) => Answer::status(Status::INVALID_FIELD.dnr()),
                (ABANDONED, NvmOpcode::WRITE) => Answer::Abandon(len, Status::WRITE_FAULT),
                (_, NvmOpcode::WRITE) => Answer::Receive(len),
                (_, NvmOpcode::READ) => Answer::Complete {
                    status: Status::SUCCESS,
                    result: sqe.slba() % 3,
                    data: pattern(sqe.slba(), len as usize),
                },
                _ => Answer::status(Status::SUCCESS),
            }
        }
        Request::Received {
            sqe,
            data,
            digest_ok,
        } => {
            if !digest_ok {
                return Answer::status(Status::TRANSIENT_TRANSPORT_ERROR);
            }
            assert_eq!(data, pattern(sqe.slba(), data.len()), "write {sqe:?}");
            assert_eq!(data.len(), sqe.sgl().length as usize);
            Answer::status(Status::SUCCESS)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flush,
    Read,
    InCapsule,
    R2t,
}

const ALL: &[Kind] = &[Kind::Flush, Kind::Read, Kind::InCapsule, Kind::R2t];

/// A conversation to be had.
#[derive(Clone, Debug)]
struct Talk {
    host: host::Config,
    target: target::Config,
    queue: QueueConfig,
    kinds: &'static [Kind],
    commands: usize,
    /// The most data of a command.
    longest: usize,
    /// One command in so many is refused or abandoned; 0: none.
    misfits: usize,
}

impl Default for Talk {
    fn default() -> Self {
        Self {
            host: host::Config::default(),
            target: target::Config::default(),
            queue: QueueConfig {
                entries: 32,
                flow_control: true,
                in_capsule: 8192,
            },
            kinds: ALL,
            commands: 150,
            longest: 20_000,
            misfits: 0,
        }
    }
}

/// What became of the commands.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    good: usize,
    refused: usize,
    abandoned: usize,
    spoiled: usize,
}

impl Talk {
    fn pair(&self, seed: u64) -> Pair {
        Pair::new(seed, &self.host, &self.target, self.queue, controller)
    }

    /// The first command of a queue, that opens it.
    fn connect(pair: &mut Pair) {
        pair.submit(Sqe::with_opcode(NvmOpcode::FLUSH.0)).unwrap();
        assert!(pair.drive(10_000), "{pair:?}");
        assert_eq!(pair.violations(), (None, None));
        assert_eq!(pair.completed().unwrap().cqe.status, Status::SUCCESS);
    }

    /// Has the conversation, checks every completion and every byte, and counts.
    fn run(&self, seed: u64, faults: Faults) -> Outcome {
        let mut pair = self.pair(seed);
        Self::connect(&mut pair);
        pair.set_faults(faults);
        let mut rng = Rng::new(!seed);
        let mut outcome = Outcome::default();
        // Per host slot: what was asked for.
        let mut asked = BTreeMap::new();
        let mut left = self.commands;
        for _ in 0..4_000_000 {
            if left > 0 && rng.once_in(4) {
                let sqe = self.sqe(&mut rng);
                let kind = self.kinds[rng.below(self.kinds.len())];
                if let Some((slot, len)) = self.submit(&mut pair, sqe, kind, &mut rng) {
                    assert_eq!(asked.insert(slot.index(), (slot, sqe, kind, len)), None);
                    left -= 1;
                }
            }
            pair.step();
            while let Some(completion) = pair.completed() {
                let asked = asked.remove(&completion.slot.index()).unwrap();
                check(&completion, asked, &mut outcome);
            }
            if left == 0 && asked.is_empty() {
                break;
            }
        }
        assert!(pair.drive(100_000), "idle in the end");
        assert_eq!(pair.violations(), (None, None));
        assert_eq!((left, asked.len()), (0, 0), "seed {seed} {pair:?}");
        assert_eq!(
            (pair.host().outstanding(), pair.target().outstanding()),
            (0, 0)
        );
        outcome
    }

    fn sqe(&self, rng: &mut Rng) -> Sqe {
        let mut sqe = Sqe::with_opcode(0);
        let nsid = if rng.once_in(self.misfits) {
            2 + rng.below(2) as u32
        } else {
            GOOD
        };
        sqe.set_nsid(nsid);
        sqe.set_cdw10_15([rng.below(1 << 30) as u32, 0, 0, 0, 0, 0]);
        sqe
    }

    fn submit(
        &self,
        pair: &mut Pair,
        mut sqe: Sqe,
        kind: Kind,
        rng: &mut Rng,
    ) -> Option<(Slot, usize)> {
        let len = rng.amount(self.longest);
        let len = if kind == Kind::InCapsule {
            len.min(8192)
        } else {
            len
        };
        let opcode = match kind {
            Kind::Flush => NvmOpcode::FLUSH,
            Kind::Read => NvmOpcode::READ,
            Kind::InCapsule | Kind::R2t => NvmOpcode::WRITE,
        };
        sqe.0[0] = opcode.0;
        let slot = match kind {
            Kind::Flush => pair.submit(sqe),
            Kind::Read => pair.read(sqe, len as u32),
            Kind::InCapsule | Kind::R2t => {
                pair.write(sqe, pattern(sqe.slba(), len), kind == Kind::InCapsule)
            }
        };
        slot.map(|slot| (slot, len))
    }
}

fn check(
    completion: &Completion,
    (slot, sqe, kind, len): (Slot, Sqe, Kind, usize),
    outcome: &mut Outcome,
) {
    assert_eq!(completion.slot, slot);
    let status = completion.cqe.status;
    match status {
        Status::SUCCESS if !completion.digest_ok => {
            assert_eq!(kind, Kind::Read);
            outcome.spoiled += 1;
        }
        Status::SUCCESS => {
            assert_ne!(sqe.nsid(), REFUSED);
            let want = if kind == Kind::Read {
                pattern(sqe.slba(), len)
            } else {
                Vec::new()
            };
            assert!(
                completion.data == want,
                "{kind:?} of {len} bytes at {}",
                sqe.slba()
            );
            let result = if kind == Kind::Read {
                sqe.slba() % 3
            } else {
                0
            };
            assert_eq!(completion.cqe.result, result);
            outcome.good += 1;
        }
        Status::TRANSIENT_TRANSPORT_ERROR => {
            assert!(matches!(kind, Kind::InCapsule | Kind::R2t));
            outcome.spoiled += 1;
        }
        Status::WRITE_FAULT => {
            assert_eq!(sqe.nsid(), ABANDONED);
            outcome.abandoned += 1;
        }
        _ => {
            assert_eq!((status, sqe.nsid()), (Status::INVALID_FIELD.dnr(), REFUSED));
            outcome.refused += 1;
        }
    }
}

const NO_FAULTS: Faults = Faults {
    payload: 0,
    headers: 0,
};

fn all_good(talk: &Talk) {
    for seed in 0..4 {
        let outcome = talk.run(seed, NO_FAULTS);
        assert_eq!(
            outcome,
            Outcome {
                good: talk.commands,
                ..Outcome::default()
            }
        );
    }
}

fn digests(header: bool, data: bool) -> host::Config {
    host::Config {
        header_digest: header,
        data_digest: data,
        ..host::Config::default()
    }
}

#[test]
fn reads() {
    all_good(&Talk {
        kinds: &[Kind::Read],
        ..Talk::default()
    });
}

#[test]
fn in_capsule_writes() {
    all_good(&Talk {
        kinds: &[Kind::InCapsule],
        ..Talk::default()
    });
}

#[test]
fn r2t_writes() {
    all_good(&Talk {
        kinds: &[Kind::R2t],
        ..Talk::default()
    });
}

#[test]
fn everything_at_depth() {
    let host = host::Config {
        entries: 128,
        ..host::Config::default()
    };
    let queue = QueueConfig {
        entries: 128,
        ..Talk::default().queue
    };
    all_good(&Talk {
        host,
        queue,
        commands: 500,
        ..Talk::default()
    });
}

#[test]
fn digests_in_every_combination() {
    for (header, data) in [(true, false), (false, true), (true, true)] {
        all_good(&Talk {
            host: digests(header, data),
            ..Talk::default()
        });
    }
    // The target does not permit what the host asks for.
    let target = target::Config {
        header_digest: false,
        data_digest: false,
        ..Default::default()
    };
    all_good(&Talk {
        host: digests(true, true),
        target,
        ..Talk::default()
    });
}

#[test]
fn alignment_of_data() {
    for (pda, header) in [(1, false), (5, true), (31, false), (31, true)] {
        let host = host::Config {
            hpda: pda,
            ..digests(header, header)
        };
        let target = target::Config {
            cpda: pda,
            ..target::Config::default()
        };
        all_good(&Talk {
            host,
            target,
            ..Talk::default()
        });
    }
}

#[test]
fn many_h2c_data_for_one_r2t() {
    let target = target::Config {
        maxh2cdata: 4096,
        ..target::Config::default()
    };
    for host in [digests(false, false), digests(true, true)] {
        let kinds = &[Kind::R2t, Kind::Flush];
        let (target, longest, commands) = (target.clone(), 200_000, 60);
        all_good(&Talk {
            host,
            target,
            kinds,
            longest,
            commands,
            ..Talk::default()
        });
    }
}

#[test]
fn sq_flow_control_disabled() {
    let host = host::Config {
        flow_control: false,
        ..host::Config::default()
    };
    let queue = QueueConfig {
        flow_control: false,
        ..Talk::default().queue
    };
    all_good(&Talk {
        host,
        queue,
        ..Talk::default()
    });
}

/// The smallest queue, and one whose host believes it to be larger than it is: the stream stands
/// still until a slot is free.
#[test]
fn a_target_with_few_slots() {
    let small = QueueConfig {
        entries: 2,
        ..Talk::default().queue
    };
    let host = host::Config {
        entries: 2,
        ..host::Config::default()
    };
    all_good(&Talk {
        host,
        queue: small,
        ..Talk::default()
    });
    let host = host::Config {
        entries: 16,
        flow_control: false,
        ..host::Config::default()
    };
    let queue = QueueConfig {
        entries: 2,
        flow_control: false,
        ..small
    };
    // No R2Ts, or it would be the deadlock that the target has to report.
    let kinds = &[Kind::Flush, Kind::Read, Kind::InCapsule];
    all_good(&Talk {
        host,
        queue,
        kinds,
        ..Talk::default()
    });
}

#[test]
fn commands_refused_and_abandoned_at_any_stage() {
    for (host, seed) in [(digests(false, false), 0), (digests(true, true), 1)] {
        let talk = Talk {
            host,
            misfits: 2,
            commands: 600,
            ..Talk::default()
        };
        let outcome = talk.run(seed, NO_FAULTS);
        assert_eq!(outcome.spoiled, 0);
        assert_eq!(outcome.good + outcome.refused + outcome.abandoned, 600);
        assert!(
            outcome.refused > 50 && outcome.abandoned > 10,
            "{outcome:?}"
        );
    }
}

/// A wrong data digest costs a command and never the connection.
#[test]
fn payload_bits_flip() {
    for seed in 0..4 {
        let talk = Talk {
            host: digests(true, true),
            ..Talk::default()
        };
        let outcome = talk.run(
            seed,
            Faults {
                payload: 20,
                headers: 0,
            },
        );
        assert!(outcome.spoiled > 0 && outcome.good > 0, "{outcome:?}");
        assert_eq!(outcome.good + outcome.spoiled, talk.commands);
    }
}

/// A bit that flips in a header ends the connection: one end says so, the other hears it, both
/// close.
#[test]
fn header_bits_flip() {
    let talk = Talk {
        host: digests(true, true),
        ..Talk::default()
    };
    let (mut of_host, mut of_target) = (0, 0);
    for seed in 0..60 {
        let mut pair = talk.pair(seed);
        Talk::connect(&mut pair);
        pair.set_faults(Faults {
            payload: 0,
            headers: 5,
        });
        let mut rng = Rng::new(seed);
        for _ in 0..10_000 {
            let kind = talk.kinds[rng.below(talk.kinds.len())];
            let sqe = talk.sqe(&mut rng);
            talk.submit(&mut pair, sqe, kind, &mut rng);
            pair.step();
            if pair.violations() != (None, None) {
                break;
            }
        }
        assert_ne!(pair.violations(), (None, None), "seed {seed}");
        // What comes after the first violation is not of interest.
        pair.set_faults(NO_FAULTS);
        assert!(pair.drive(1_000_000), "seed {seed}");
        pair.advance(40_000_000_000);
        assert!(pair.drive(1_000_000));
        assert_eq!(pair.host().need(), Need::Closed, "seed {seed}");
        assert_eq!(pair.target().need(), Need::Closed, "seed {seed}");
        of_host += usize::from(pair.violations().0.is_some());
        of_target += usize::from(pair.violations().1.is_some());
    }
    assert!(of_host > 5 && of_target > 5, "{of_host} {of_target}");
}

/// More writes than the target has slots, each of which waits for its data: the host has broken
/// the limit that Connect set, and is told so.
#[test]
fn more_writes_than_slots() {
    let host = host::Config {
        entries: 16,
        flow_control: false,
        ..host::Config::default()
    };
    let queue = QueueConfig {
        entries: 2,
        flow_control: false,
        in_capsule: 8192,
    };
    let talk = Talk {
        host,
        queue,
        ..Talk::default()
    };
    let mut pair = talk.pair(7);
    Talk::connect(&mut pair);
    for slba in 0..15 {
        let mut sqe = Sqe::with_opcode(NvmOpcode::WRITE.0);
        sqe.set_cdw10_15([slba, 0, 0, 0, 0, 0]);
        pair.write(sqe, pattern(slba.into(), 512), false).unwrap();
    }
    assert!(pair.drive(100_000));
    let (host, target) = pair.violations();
    assert_eq!(
        (host, target),
        (None, Some(Violation::new(Fes::PDU_SEQUENCE, 0)))
    );
    assert_eq!(
        (pair.host().need(), pair.target().need()),
        (Need::Closed, Need::Closed)
    );
}

/// Everything at once, as the seed has it.
#[test]
fn random_conversations() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed ^ 0xabcd);
        let flow_control = rng.below(2) == 0;
        let entries = 2 + rng.amount(60) as u32;
        let host = host::Config {
            hpda: rng.below(32) as u8,
            maxr2t: rng.below(3) as u32,
            entries,
            flow_control,
            ..digests(rng.below(2) == 0, rng.below(2) == 0)
        };
        let target = target::Config {
            cpda: rng.below(32) as u8,
            maxh2cdata: 4096 << rng.below(5),
            ..target::Config::default()
        };
        let talk = Talk {
            host,
            target,
            queue: QueueConfig {
                entries,
                flow_control,
                in_capsule: 8192,
            },
            commands: 40,
            longest: 1 + rng.below(100_000),
            misfits: rng.below(6),
            ..Talk::default()
        };
        let payload = if talk.host.data_digest { 30 } else { 0 };
        let outcome = talk.run(
            seed,
            Faults {
                payload,
                headers: 0,
            },
        );
        let Outcome {
            good,
            refused,
            abandoned,
            spoiled,
        } = outcome;
        assert_eq!(good + refused + abandoned + spoiled, talk.commands);
    }
}

/// Equal seed, equal history.
#[test]
fn a_run_can_be_repeated() {
    let history = |seed| {
        let talk = Talk::default();
        let mut pair = talk.pair(seed);
        Talk::connect(&mut pair);
        let mut rng = Rng::new(seed);
        let mut history = Vec::new();
        for _ in 0..3000 {
            let kind = talk.kinds[rng.below(talk.kinds.len())];
            let sqe = talk.sqe(&mut rng);
            talk.submit(&mut pair, sqe, kind, &mut rng);
            pair.step();
            history.push((pair.host().need(), pair.target().need(), pair.completed()));
        }
        history
    };
    assert_eq!(history(3), history(3));
    assert_ne!(history(3), history(4));
}

#[test]
fn a_silent_host_is_given_up() {
    let talk = Talk::default();
    let mut target = End::new(TcpTarget::new(&talk.target));
    assert_eq!(target.machine.handle_timeout(Time(0)), None);
    let event = target.machine.handle_timeout(Time(talk.target.ic_timeout));
    assert_eq!(
        event,
        Some(target::Event::Closed(CloseReason::IcReqTimeout))
    );

    // Connected, but no command ever comes.
    let mut pair = talk.pair(0);
    assert!(pair.drive(10_000));
    assert_eq!(pair.target().need(), Need::Bytes { min: 8 });
    pair.advance(talk.target.connect_timeout);
    assert!(pair.drive(10_000));
    assert_eq!(
        (pair.host().need(), pair.target().need()),
        (Need::Closed, Need::Closed)
    );
}
