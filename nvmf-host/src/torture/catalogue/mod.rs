//! The cases, as tables.

mod admin;
mod command;
mod connect;
mod data;
mod header;
mod icreq;
mod life;
mod property;
mod queue;
mod sgl;

use super::answer::{Answer, Want};
use super::scene::{At, CID, Facts, Scene, Setback, connect_sqe, failed};
use crate::raw::{RawConnection, RawPdu, Received, Terms};
use nvmf_proto::wire::fabrics::CNTLID_DYNAMIC;
use nvmf_proto::wire::pdu::{CommonHeader, DataHeader, Fes, InitConnection, PduFlags, PduType};
use nvmf_proto::wire::{Sqe, Status};

/// A command and the data in its capsule.
type Command = (Sqe, Vec<u8>);

/// What a case does once it is where it begins.
#[derive(Clone, Copy, Debug)]
enum Play {
    /// Sends an ICReq that was right before it was changed.
    IcReq(fn(&mut RawPdu)),
    /// Sends bytes.
    Bytes(fn(&Facts) -> Vec<u8>),
    /// Sends a command.
    Command(fn(&Facts) -> Command),
    /// Sends a command in a capsule that was right before it was changed.
    Capsule(fn(&Facts) -> Command, fn(&mut RawPdu)),
    /// Starts a write, and sends bytes for its R2T.
    Data(fn(&Wanted) -> Vec<u8>),
    /// Sends a Connect of an admin queue that was right before its SQE and data were changed.
    ConnectAdmin(fn(&mut Sqe, &mut [u8; 1024])),
    /// The same for an I/O queue of the controller whose admin queue the case has.
    ConnectIo(fn(&mut Sqe, &mut [u8; 1024])),
    /// Sends commands one after the other; each has to be answered and none with more data than it
    /// has asked for.
    Sweep(fn(&Facts) -> Vec<Command>),
    /// Anything else.
    Script(fn(&mut Scene<'_>) -> Result<Answer, Setback>),
}

/// One lie, and what there is to say to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) scenarios: &'static [u8],
    pub(super) sends: &'static str,
    pub(super) source: &'static str,
    pub(super) at: At,
    pub(super) conforms: &'static [Want],
    pub(super) tolerates: &'static [Want],
    /// The demand in words, where `conforms` does not say it.
    pub(super) rule: &'static str,
    play: Play,
    slow: bool,
    effect: Effect,
}

/// What a case may do to the blocks that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// No write at all: it is played without such blocks, too.
    None,
    /// Writes, none of which may get through.
    Attempts,
    /// Writes that may get through.
    Overwrites,
}

/// A case whose answer counts as right if it is one of `conforms`.
const fn case(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    at: At,
    play: Play,
    conforms: &'static [Want],
) -> Case {
    Case {
        name,
        scenarios,
        sends,
        source: "",
        at,
        conforms,
        tolerates: &[],
        rule: "",
        play,
        slow: false,
        effect: Effect::None,
    }
}

/// A case of many steps, with the rule that they show.
const fn script(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    at: At,
    run: fn(&mut Scene<'_>) -> Result<Answer, Setback>,
    rule: &'static str,
) -> Case {
    Case {
        rule,
        ..case(name, scenarios, sends, at, Play::Script(run), &[Want::Kept])
    }
}

impl Case {
    /// The document and topic that demand it.
    const fn source(self, source: &'static str) -> Self {
        Self { source, ..self }
    }

    /// Answers that can be lived with.
    const fn tolerates(self, tolerates: &'static [Want]) -> Self {
        Self { tolerates, ..self }
    }

    /// It sends writes that must not get through.
    const fn attempts(self) -> Self {
        Self {
            effect: Effect::Attempts,
            ..self
        }
    }

    /// It sends writes that may get through.
    const fn overwrites_blocks(self) -> Self {
        Self {
            effect: Effect::Overwrites,
            ..self
        }
    }

    /// It waits for a deadline of the target.
    const fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    pub(super) const fn is_slow(&self) -> bool {
        self.slow
    }

    pub(super) const fn writes(&self) -> bool {
        !matches!(self.effect, Effect::None)
    }

    pub(super) const fn overwrites(&self) -> bool {
        matches!(self.effect, Effect::Overwrites)
    }

    pub(super) fn play(&self, scene: &mut Scene<'_>) -> Result<Answer, Setback> {
        let facts = scene.facts;
        let terms = scene.connection.terms;
        let (qid, in_capsule) = (scene.qid, facts.in_capsule as usize);
        let fits = |(sqe, data): Command| {
            if qid > 0 && data.len() > in_capsule {
                return Err(Setback::NotOffered("such in-capsule data"));
            }
            Ok((sqe, data))
        };
        Ok(match self.play {
            Play::IcReq(lie) => {
                let mut pdu = RawPdu::ic_req(&InitConnection::default());
                lie(&mut pdu);
                scene.say(&pdu.bytes())
            }
            Play::Bytes(bytes) => scene.say(&bytes(facts)),
            Play::Command(command) => {
                let (sqe, data) = fits(command(facts))?;
                scene.command(&sqe, &data)
            }
            Play::Capsule(command, lie) => {
                let (mut sqe, data) = fits(command(facts))?;
                sqe.set_cid(CID);
                let mut pdu = RawPdu::capsule(&sqe, &data, terms);
                lie(&mut pdu);
                scene.say(&pdu.bytes())
            }
            Play::Data(_) if facts.bytes(facts.owed_blocks()) > facts.maxh2cdata => {
                return Err(Setback::NotOffered("H2CData of as much"));
            }
            Play::Data(bytes) => {
                scene.submit(CID, &facts.owed(), &[]);
                let r2t = scene.r2t()?;
                scene.say(&bytes(&Wanted { r2t, terms }))
            }
            Play::ConnectAdmin(lie) => {
                let mut sqe = connect_sqe(&facts.connect_command(0));
                let mut data = facts.connect_data(&facts.subsystem, CNTLID_DYNAMIC);
                lie(&mut sqe, &mut data);
                connect_with(facts, &mut scene.connection, &sqe, &data)
            }
            Play::ConnectIo(lie) => {
                let mut sqe = connect_sqe(&facts.connect_command(1));
                let mut data = facts.connect_data(&facts.subsystem, scene.cntlid);
                lie(&mut sqe, &mut data);
                let mut queue = facts.open(super::scene::Digests::NONE)?;
                let answer = connect_with(facts, &mut queue, &sqe, &data);
                scene.others.push(queue);
                answer
            }
            Play::Sweep(commands) => sweep(scene, &commands(facts)),
            Play::Script(run) => run(scene)?,
        })
    }
}

/// No probe follows: what the connection is now is what is asked.
fn connect_with(
    facts: &Facts,
    connection: &mut RawConnection,
    sqe: &Sqe,
    data: &[u8; 1024],
) -> Answer {
    let _ = connection.submit(sqe, data);
    facts.observe(connection, CID, None)
}

fn sweep(scene: &mut Scene<'_>, commands: &[Command]) -> Answer {
    let mut succeeded = 0;
    for (sqe, data) in commands {
        let room = sqe.sgl().length as usize;
        scene.submit(CID, sqe, data);
        match scene.facts.observe(&mut scene.connection, CID, None) {
            Answer::Completed { data, .. } if data > room => {
                return Answer::Broken(format!("{data} bytes for {sqe:?}"));
            }
            Answer::Completed { status, .. } => succeeded += usize::from(status.is_success()),
            other => return Answer::Broken(format!("{other} to {sqe:?}")),
        }
    }
    let count = commands.len();
    Answer::Kept(format!("{count} answered, {succeeded} with success"))
}

/// Data that a target has asked for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    r2t: DataHeader,
    terms: Terms,
}

impl Wanted {
    /// A part of it, all zeroes; offset and length count from the beginning of the R2T.
    fn part(&self, offset: u32, len: u32, last: bool) -> RawPdu {
        let offset = self.r2t.offset.wrapping_add(offset);
        RawPdu::h2c_data(&self.r2t, offset, &vec![0; len as usize], last, self.terms)
    }

    /// All of it.
    fn whole(&self) -> RawPdu {
        self.part(0, self.r2t.length, true)
    }

    /// All of it, but for a change.
    fn but(&self, lie: impl FnOnce(&mut RawPdu)) -> Vec<u8> {
        let mut pdu = self.whole();
        lie(&mut pdu);
        pdu.bytes()
    }

    fn half(&self) -> u32 {
        self.r2t.length / 2
    }
}

/// A common header with zeroes behind it: enough for the header of any PDU.
fn header(pdu_type: PduType, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Vec<u8> {
    let mut common = [0; 8];
    CommonHeader {
        pdu_type,
        flags: PduFlags::from_bits_retain(flags),
        hlen,
        pdo,
        plen,
    }
    .encode(&mut common);
    let mut bytes = common.to_vec();
    bytes.resize(128, 0);
    bytes
}

/// Reads on until a connection ends; `false` if it does not.
fn ends(connection: &mut RawConnection) -> bool {
    let mut left = connection.endurance;
    loop {
        match connection.receive_next(&mut left) {
            Received::End(_) => return true,
            Received::Pdu(_) => {}
            Received::Silence | Received::Nonsense(_) => return false,
        }
    }
}

/// Opens a connection for a script.
fn connect(facts: &Facts) -> Result<RawConnection, Setback> {
    RawConnection::connect(facts.address, facts.patience).map_err(failed("connecting"))
}

/// A C2HTermReq for a header field at an offset.
const fn field(offset: u32) -> Want {
    Want::Term(Fes::INVALID_HEADER_FIELD, Some(offset))
}

/// The same command with a byte of the SQE changed.
fn byte(mut sqe: Sqe, at: usize, value: u8) -> Command {
    sqe.0[at] = value;
    (sqe, Vec::new())
}

const SQE: &str = "NVMe Base 2.1, Submission Queue Entry";
const SGL: &str = "NVMe Base 2.1, SGL; NVMe/TCP 1.1, data transfer";
const SEQUENCE: Want = Want::Term(Fes::PDU_SEQUENCE, None);
const INVALID_FIELD: Want = Want::Status(Status::INVALID_FIELD);
const OPCODE: &[Want] = &[Want::Status(Status::INVALID_OPCODE)];
/// A lie that may be seen through by any status, or end the connection.
const ANY: &[Want] = &[Want::Error, Want::End];

/// The whole catalogue, in the order of its numbers.
pub(super) fn all() -> impl Iterator<Item = &'static Case> {
    [
        icreq::CASES,
        header::CASES,
        data::CASES,
        sgl::CASES,
        command::CASES,
        queue::CASES,
        connect::CASES,
        property::CASES,
        admin::CASES,
        life::CASES,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn cases_are_told_apart_and_explained() {
        let mut names = HashSet::new();
        for case in all() {
            let name = case.name;
            assert!(names.insert(name), "{name} twice");
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let (group, rest) = name.split_once('/').unwrap();
            assert!(
                group.chars().all(plain) && rest.chars().all(plain),
                "{name}"
            );
            assert!(
                !case.sends.is_empty() && !case.conforms.is_empty(),
                "{name}"
            );
            let is_script = matches!(case.play, Play::Script(_) | Play::Sweep(_));
            assert_eq!(
                case.conforms == [Want::Kept],
                !case.rule.is_empty(),
                "{name}"
            );
            assert!(is_script || case.rule.is_empty(), "{name}");
            assert!(!case.source.is_empty(), "{name}");
            assert!(
                case.scenarios.iter().all(|n| (1..=68).contains(n)),
                "{name}"
            );
        }
        assert!(names.len() >= 200, "{} cases", names.len());
    }
}
