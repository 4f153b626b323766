//! Hosts that do not move, do not read, come in crowds, and vanish.

use super::{At, CID, Case, Facts, connect, ends, script};
use crate::command;
use crate::raw::{RawConnection, RawPdu, Received};
use crate::torture::answer::Answer;
use crate::torture::scene::{
    CC_ENABLED, Digests, Scene, Setback, completion, connect_sqe, set_cc, with_sgl,
};
use nvmf_proto::wire::SglDescriptor;
use nvmf_proto::wire::pdu::InitConnection;
use std::time::{Duration, Instant};

const PLAIN: At = At::Io(Digests::NONE);
const TCP: &str = "NVMe/TCP 1.1, connection establishment and termination";
const QUEUE: &str = "NVMe Base 2.1, queues of a controller";
const KATO: &str = "NVMe Base 2.1, Keep Alive";
const OTHERS: &str = "others are served meanwhile";
/// Connections of a crowd: fewer than any target that is worth the name takes.
const CROWD: usize = 64;
/// How long slow cases wait for a target to lose its patience.
const DEADLINE: Duration = Duration::from_secs(180);

pub(super) const CASES: &[Case] = &[
    script(
        "life/never-reads",
        &[32],
        "as many Reads as fit the queue, and nothing is read",
        PLAIN,
        never_reads,
        OTHERS,
    )
    .source(TCP),
    script(
        "life/never-reads-admin",
        &[32],
        "Identify commands without end on an admin queue, and nothing is read",
        At::Admin,
        never_reads_admin,
        OTHERS,
    )
    .source(TCP),
    script(
        "life/owes-data",
        &[33, 65],
        "as many large writes as fit the queue, and no data",
        PLAIN,
        owes_data,
        OTHERS,
    )
    .source(TCP)
    .attempts(),
    script(
        "life/half-a-capsule",
        &[3, 13],
        "half the data of a capsule",
        PLAIN,
        |scene| {
            let pdu = in_capsule(scene);
            let _ = scene.connection.send(&pdu[..pdu.len() / 2]);
            Ok(Answer::Kept("held".to_owned()))
        },
        OTHERS,
    )
    .source(TCP)
    .attempts(),
    script(
        "life/crumbs",
        &[2, 13],
        "a Write with data in its capsule, each byte in a segment of its own",
        PLAIN,
        |scene| {
            let pdu = in_capsule(scene);
            let _ = scene.connection.send_pieces(&pdu, 1, Duration::ZERO);
            Ok(match scene.listen() {
                Answer::Completed { status, .. } => Answer::Kept(status.without_more().to_string()),
                other => other,
            })
        },
        "an answer",
    )
    .source(TCP)
    .overwrites_blocks(),
    script(
        "life/idle",
        &[1, 9],
        "64 TCP connections that say nothing",
        At::Tcp,
        |scene| {
            for _ in 0..CROWD {
                let idle = connect(scene.facts)?;
                scene.others.push(idle);
            }
            Ok(Answer::Kept("held".to_owned()))
        },
        OTHERS,
    )
    .source(TCP),
    script(
        "life/never-connects",
        &[9, 11],
        "64 connections that stop after ICResp",
        At::Tcp,
        |scene| {
            for _ in 0..CROWD {
                let idle = scene.facts.open(Digests::NONE)?;
                scene.others.push(idle);
            }
            Ok(Answer::Kept("held".to_owned()))
        },
        OTHERS,
    )
    .source(TCP),
    script(
        "life/crowd",
        &[43],
        "64 hosts that connect at once",
        At::Tcp,
        crowd,
        "every one gets an answer",
    )
    .source(QUEUE),
    script(
        "life/crowd-that-comes-back",
        &[43, 44],
        "64 hosts that connect and vanish, 8 times",
        At::Tcp,
        |scene| {
            for _ in 0..8 {
                let answer = crowd(scene)?;
                if !matches!(answer, Answer::Kept(_)) {
                    return Ok(answer);
                }
                for connection in scene.others.drain(..) {
                    connection.reset();
                }
            }
            Ok(Answer::Kept("8 times 64 answered".to_owned()))
        },
        "every one gets an answer each time",
    )
    .source(QUEUE),
    script(
        "life/half-close-with-reads",
        &[33],
        "Reads, and FIN at once",
        PLAIN,
        |scene| {
            for cid in 0..8 {
                scene.submit(cid, &scene.facts.read(8), &[]);
            }
            scene.connection.half_close();
            Ok(super::icreq::end(scene))
        },
        "the end of the connection",
    )
    .source(TCP),
    script(
        "life/half-close-with-writes",
        &[33],
        "a write that waits for its data, and FIN",
        PLAIN,
        |scene| {
            scene.submit(CID, &scene.facts.owed(), &[]);
            scene.r2t()?;
            scene.connection.half_close();
            Ok(super::icreq::end(scene))
        },
        "the end of the connection",
    )
    .source(TCP)
    .attempts(),
    script(
        "life/reset-at-every-stage",
        &[3, 33],
        "a session that ends by a reset at each of 12 places",
        At::Tcp,
        |scene| stages(scene.facts, true),
        OTHERS,
    )
    .source(TCP)
    .attempts(),
    script(
        "life/close-at-every-stage",
        &[3, 33],
        "the same, by FIN",
        At::Tcp,
        |scene| stages(scene.facts, false),
        OTHERS,
    )
    .source(TCP)
    .attempts(),
    script(
        "life/admin-goes",
        &[44],
        "the admin connection ends, the I/O queue stays",
        PLAIN,
        |scene| {
            scene.others.clear();
            Ok(super::icreq::end(scene))
        },
        "the end of the I/O queue: the association is over",
    )
    .source(QUEUE)
    .tolerates(&[super::Want::Success]),
    script(
        "life/admin-goes-while-io-comes",
        &[44],
        "the admin connection ends while an I/O queue connects, 50 times",
        At::Tcp,
        admin_goes,
        "an answer or an end each time",
    )
    .source(QUEUE),
    script(
        "life/io-queue-goes",
        &[33],
        "an I/O queue with Reads ends by a reset, the admin queue stays",
        PLAIN,
        |scene| {
            for cid in 0..8 {
                scene.submit(cid, &scene.facts.read(8), &[]);
            }
            reset(scene)?;
            Ok(Answer::Kept("gone".to_owned()))
        },
        OTHERS,
    )
    .source(QUEUE),
    script(
        "slow/says-nothing",
        &[1],
        "a TCP connection that says nothing",
        At::Tcp,
        given_up,
        "the end of the connection, in time",
    )
    .source(TCP)
    .slow(),
    script(
        "slow/never-connects",
        &[11],
        "a connection that stops after ICResp",
        At::Open,
        given_up,
        "the end of the connection, in time",
    )
    .source(TCP)
    .slow(),
    script(
        "slow/byte-a-second",
        &[2],
        "an ICReq of a byte a second",
        At::Tcp,
        |scene| {
            let bytes = RawPdu::ic_req(&InitConnection::default()).bytes();
            let pause = Duration::from_secs(1);
            let sent = scene.connection.send_pieces(&bytes, 1, pause);
            Ok(match sent {
                Err(_) => Answer::Kept("ended".to_owned()),
                Ok(()) => match scene.listen() {
                    Answer::Ready => Answer::Kept("ICResp".to_owned()),
                    Answer::Ended(_) => Answer::Kept("ended".to_owned()),
                    other => other,
                },
            })
        },
        "an ICResp, or the end of the connection",
    )
    .source(TCP)
    .slow(),
    script(
        "slow/never-closes",
        &[14],
        "after a C2HTermReq, nothing",
        At::Open,
        |scene| {
            let _ = scene
                .connection
                .send(&super::header(super::PduType(0xff), 0, 24, 0, 24));
            let is_ended = ends(&mut scene.connection);
            Ok(if is_ended {
                Answer::Kept("ended".to_owned())
            } else {
                given_up(scene)?
            })
        },
        "the end of the connection, in time",
    )
    .source(TCP)
    .slow(),
    script(
        "slow/silent-controller",
        &[48],
        "KATO of a second, and silence",
        At::Open,
        |scene| {
            let facts = scene.facts;
            let mut command = facts.connect_command(0);
            command.kato = 1000;
            let data = facts.connect_data(&facts.subsystem, 0xffff);
            facts.execute(&mut scene.connection, connect_sqe(&command), &data)?;
            facts.execute(&mut scene.connection, set_cc(CC_ENABLED), &[])?;
            given_up(scene)
        },
        "the end of the connection, in time",
    )
    .source(KATO)
    .slow(),
];

/// A good Write with its data in the capsule.
fn in_capsule(scene: &Scene<'_>) -> Vec<u8> {
    let mut sqe = scene.facts.write_in_capsule(1);
    sqe.set_cid(CID);
    RawPdu::capsule(&sqe, &scene.facts.zeroes(1), scene.connection.terms).bytes()
}

/// The most blocks that a command may move, within reason.
fn large(scene: &Scene<'_>) -> u32 {
    let max = scene.facts.max_transfer.unwrap_or(1 << 20).min(1 << 20);
    let blocks = u64::from(max / scene.facts.block_size).min(scene.facts.blocks);
    u32::try_from(blocks).unwrap_or(1).max(1)
}

fn never_reads(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    let blocks = large(scene);
    let sqe = command::read(facts.nsid, 0, blocks);
    let sqe = with_sgl(sqe, SglDescriptor::transport(facts.bytes(blocks)));
    for cid in 0..facts.entries - 1 {
        scene.submit(cid, &sqe, &[]);
    }
    Ok(Answer::Kept("held".to_owned()))
}

fn never_reads_admin(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    use nvmf_proto::wire::identify::{Cns, IdentifyCommand};
    let sqe = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    let sqe = with_sgl(sqe, SglDescriptor::transport(4096));
    let capsule = RawPdu::capsule(&sqe, &[], scene.connection.terms).bytes();
    // Until the target does not take any more, which it may show by not reading.
    let flood = capsule.repeat(64);
    for _ in 0..256 {
        if scene.connection.send_at_once(&flood).is_err() {
            break;
        }
    }
    Ok(Answer::Kept("held".to_owned()))
}

fn owes_data(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    let blocks = large(scene);
    let sqe = command::write(facts.nsid, facts.slba, blocks);
    let sqe = with_sgl(sqe, SglDescriptor::transport(facts.bytes(blocks)));
    for cid in 0..facts.entries - 1 {
        scene.submit(cid, &sqe, &[]);
    }
    Ok(Answer::Kept("held".to_owned()))
}

/// Admin queues whose Connects are all on the way before the first answer is read.
fn crowd(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    let sqe = connect_sqe(&facts.connect_command(0));
    let data = facts.connect_data(&facts.subsystem, 0xffff);
    let mut hosts = Vec::new();
    for _ in 0..CROWD {
        let mut host = connect(facts)?;
        let _ = host.send(&RawPdu::ic_req(&InitConnection::default()).bytes());
        let _ = host.submit(&sqe, &data);
        hosts.push(host);
    }
    let mut served = 0;
    for host in &mut hosts {
        let ready = host.receive();
        let answer = host.receive();
        match (ready, answer) {
            (Received::Pdu(ready), Received::Pdu(pdu))
                if ready.ic_resp().is_some() && completion(&pdu).is_some() =>
            {
                served += usize::from(completion(&pdu).is_some_and(|(_, s, _)| s.is_success()));
            }
            other => return Ok(Answer::Broken(format!("{other:?}"))),
        }
    }
    scene.others.extend(hosts);
    Ok(Answer::Kept(format!(
        "{CROWD} answered, {served} with success"
    )))
}

/// Ends the connection of the case by a reset.
fn reset(scene: &mut Scene<'_>) -> Result<(), Setback> {
    let other = connect(scene.facts)?;
    std::mem::replace(&mut scene.connection, other).reset();
    Ok(())
}

/// Sessions that end after more and more of what a host does.
fn stages(facts: &Facts, by_reset: bool) -> Result<Answer, Setback> {
    let end = |connection: RawConnection| {
        if by_reset {
            connection.reset();
        }
    };
    // In front of and inside of ICReq, behind it, and inside of Connect.
    let sqe = connect_sqe(&facts.connect_command(0));
    let data = facts.connect_data(&facts.subsystem, 0xffff);
    let start = [
        RawPdu::ic_req(&InitConnection::default()).bytes(),
        RawPdu::capsule(&sqe, &data, Default::default()).bytes(),
    ]
    .concat();
    for cut in [0, 7, 127, 128, 135, 199, 200, 1000, start.len()] {
        let mut connection = connect(facts)?;
        let _ = connection.send(&start[..cut]);
        end(connection);
    }
    end(facts.admin(&facts.subsystem, false)?.0);
    // With a capsule that is half there, and with data that is.
    for with_r2t in [false, true] {
        let (admin, cntlid) = facts.admin(&facts.subsystem, true)?;
        let mut io = Scene {
            connection: facts.io(cntlid, 1, Digests::NONE)?,
            others: vec![admin],
            facts,
            cntlid,
            qid: 1,
        };
        let bytes = if with_r2t {
            io.submit(CID, &facts.owed(), &[]);
            let r2t = io.r2t()?;
            let data = vec![0; r2t.length as usize];
            RawPdu::h2c_data(&r2t, r2t.offset, &data, true, io.connection.terms).bytes()
        } else {
            in_capsule(&io)
        };
        let _ = io.connection.send(&bytes[..bytes.len() - 4]);
        end(io.connection);
    }
    Ok(Answer::Kept("12 gone".to_owned()))
}

fn admin_goes(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    for _ in 0..50 {
        let (admin, cntlid) = facts.admin(&facts.subsystem, true)?;
        let mut queue = facts.open(Digests::NONE)?;
        let sqe = connect_sqe(&facts.connect_command(1));
        let data = facts.connect_data(&facts.subsystem, cntlid);
        let _ = queue.submit(&sqe, &data);
        admin.reset();
        if let Received::Silence = queue.receive() {
            return Ok(Answer::Broken("silence".to_owned()));
        }
    }
    Ok(Answer::Kept("50 answered or ended".to_owned()))
}

/// Waits for the target to end a connection on its own.
fn given_up(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        match scene.connection.receive_within(DEADLINE) {
            Received::End(end) => return Ok(Answer::Kept(end.to_string())),
            Received::Pdu(_) => {}
            Received::Silence | Received::Nonsense(_) => break,
        }
    }
    Ok(Answer::Broken(format!("left open for {DEADLINE:?}")))
}
