//! Identifiers, depth, and commands about commands: CID, more commands than entries, Abort,
//! Asynchronous Event Request, Keep Alive.

use super::{At, CID, Case, Want, ends, script};
use crate::command;
use crate::raw::Received;
use crate::torture::answer::Answer;
use crate::torture::scene::{ADMIN_ENTRIES, Digests, Scene, Setback, completion};
use nvmf_proto::wire::{Sqe, Status};
use std::collections::BTreeMap;

const PLAIN: At = At::Io(Digests::NONE);
const CIDS: &str = "NVMe Base 2.1, command identifier";
const DEPTH: &str = "NVMe Base 2.1, SQ flow control";
const ABORT: &str = "NVMe Base 2.1, Abort command";
const AER: &str = "NVMe Base 2.1, Asynchronous Event Request command";
const KEEP_ALIVE: &str = "NVMe Base 2.1, Keep Alive command";

pub(super) const CASES: &[Case] = &[
    script(
        "queue/cid-in-use",
        &[34],
        "a Read with the CID of a write that waits for its data",
        PLAIN,
        cid_in_use,
        "Command ID Conflict for the second; the first goes on",
    )
    .source(CIDS)
    .tolerates(&[Want::End, Want::Success, Want::Error])
    .overwrites_blocks(),
    script(
        "queue/cid-ffffh",
        &[34],
        "a Read with CID FFFFh",
        PLAIN,
        |scene| {
            scene.submit(0xffff, &scene.facts.read(1), &[]);
            Ok(match scene.completions(1)[..] {
                [(0xffff, status)] => Answer::Kept(status.without_more().to_string()),
                _ => Answer::Broken("no completion with that CID".to_owned()),
            })
        },
        "an answer",
    )
    .source(CIDS)
    .tolerates(&[Want::End]),
    script(
        "queue/overrun",
        &[35],
        "four times as many Reads as the queue has entries, at once",
        PLAIN,
        overrun,
        "all answered, or the end of the connection",
    )
    .source(DEPTH),
    script(
        "queue/overrun-by-writes",
        &[35],
        "more writes than entries, none of which gets its data",
        PLAIN,
        overrun_by_writes,
        "no more R2Ts than entries; then the end of the connection, or silence",
    )
    .source(DEPTH)
    .attempts(),
    script(
        "queue/overrun-on-admin",
        &[35],
        "four times as many Keep Alives as the admin queue has entries",
        At::Admin,
        |scene| {
            let count = ADMIN_ENTRIES * 4;
            flood(scene, &command::keep_alive(), count)
        },
        "all answered, or the end of the connection",
    )
    .source(DEPTH),
    script(
        "abort/of-nobody",
        &[47],
        "500 Aborts of a CID that is not there",
        At::Admin,
        |scene| in_turn(scene, &command::abort(0, 0x7001), 500),
        "every one answered, as not aborted",
    )
    .source(ABORT),
    script(
        "abort/of-itself",
        &[47],
        "an Abort of itself",
        At::Admin,
        |scene| in_turn(scene, &command::abort(0, CID), 1),
        "an answer",
    )
    .source(ABORT),
    script(
        "abort/of-another-queue",
        &[47],
        "an Abort for SQID FFFFh",
        At::Admin,
        |scene| in_turn(scene, &command::abort(0xffff, 1), 1),
        "an answer",
    )
    .source(ABORT),
    script(
        "abort/of-an-event-request",
        &[46, 47],
        "an Abort of an Asynchronous Event Request",
        At::Admin,
        of_event_request,
        "both are answered",
    )
    .source(ABORT),
    script(
        "abort/at-once",
        &[47],
        "as many Aborts at once as the admin queue has room for",
        At::Admin,
        |scene| flood(scene, &command::abort(0, 0x7001), ADMIN_ENTRIES - 2),
        "every one answered",
    )
    .source(ABORT),
    script(
        "aer/beyond-the-limit",
        &[46],
        "one Asynchronous Event Request more than AERL allows",
        At::Admin,
        beyond_aerl,
        "Asynchronous Event Request Limit Exceeded for the last",
    )
    .source(AER)
    .tolerates(&[Want::Error]),
    script(
        "aer/flood",
        &[46],
        "500 Asynchronous Event Requests beyond the limit",
        At::Admin,
        |scene| {
            let room = scene.facts.event_requests;
            for cid in 0..room {
                scene.submit(0x1000 + cid, &command::async_event_request(), &[]);
            }
            in_turn(scene, &command::async_event_request(), 500)
        },
        "every one answered, with an error",
    )
    .source(AER),
    script(
        "aer/and-fin",
        &[46],
        "Asynchronous Event Requests, and FIN",
        At::Admin,
        |scene| {
            for cid in 0..scene.facts.event_requests {
                scene.submit(0x1000 + cid, &command::async_event_request(), &[]);
            }
            scene.connection.half_close();
            Ok(super::icreq::end(scene))
        },
        "the end of the connection",
    )
    .source(AER),
    script(
        "keep-alive/flood",
        &[48],
        "1000 Keep Alives",
        At::Admin,
        |scene| in_turn(scene, &command::keep_alive(), 1000),
        "every one answered",
    )
    .source(KEEP_ALIVE),
    script(
        "queue/disconnect-then-read",
        &[41],
        "a Read right behind a Disconnect of its queue",
        PLAIN,
        |scene| {
            let disconnect = nvmf_proto::wire::fabrics::FabricsType::DISCONNECT.sqe();
            scene.submit(CID, &disconnect, &[]);
            scene.submit(CID + 1, &scene.facts.read(1), &[]);
            Ok(super::icreq::end(scene))
        },
        "the end of the connection",
    )
    .source("NVMe Base 2.1, Disconnect command")
    .tolerates(&[Want::Error]),
];

fn cid_in_use(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    scene.submit(CID, &facts.owed(), &[]);
    let r2t = scene.r2t()?;
    scene.submit(CID, &facts.read(1), &[]);
    let second = scene.completions(1);
    let [(CID, status)] = second[..] else {
        return Ok(Answer::Broken(format!("{second:?} to the second")));
    };
    if !status.same_code(Status::COMMAND_ID_CONFLICT) {
        let (dw0, data) = (0, 0);
        return Ok(Answer::Completed { status, dw0, data });
    }
    facts.supply(&mut scene.connection, &r2t);
    Ok(match scene.listen() {
        Answer::Completed { status, .. } if status.is_success() => {
            Answer::Kept("Command ID Conflict, and the first succeeds".to_owned())
        }
        other => Answer::Broken(format!("Command ID Conflict, and {other} for the first")),
    })
}

/// Commands at once: how many are answered, and how.
fn flood(scene: &mut Scene<'_>, sqe: &Sqe, count: u16) -> Result<Answer, Setback> {
    for cid in 0..count {
        scene.submit(cid, sqe, &[]);
    }
    let completions = scene.completions(usize::from(count));
    if completions.len() == usize::from(count) {
        return Ok(Answer::Kept(tally(&completions)));
    }
    Ok(if ends(&mut scene.connection) {
        Answer::Kept("ended".to_owned())
    } else {
        Answer::Broken(format!("{} of {count} answered", completions.len()))
    })
}

/// How many completions there are of each status.
fn tally(completions: &[(u16, Status)]) -> String {
    let mut counts = BTreeMap::new();
    for (_, status) in completions {
        *counts.entry(status.without_more().to_string()).or_insert(0) += 1;
    }
    let words = counts
        .iter()
        .map(|(status, count)| format!("{count} {status}"));
    words.collect::<Vec<_>>().join(", ")
}

fn overrun(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    flood(scene, &scene.facts.read(1), scene.facts.entries * 4)
}

fn overrun_by_writes(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let entries = scene.facts.entries;
    for cid in 0..entries + 8 {
        scene.submit(cid, &scene.facts.owed(), &[]);
    }
    let mut asked = 0;
    let mut left = scene.connection.endurance;
    let how = loop {
        match scene.connection.receive_next(&mut left) {
            Received::Pdu(pdu) if pdu.r2t().is_some() => asked += 1,
            Received::Pdu(pdu) => {
                if let Some(term) = pdu.term() {
                    break format!("FES {}", term.fes.0);
                }
            }
            Received::End(_) => break "ended".to_owned(),
            Received::Silence => break "silence".to_owned(),
            Received::Nonsense(header) => return Ok(Answer::Nonsense(format!("{header:?}"))),
        }
    };
    Ok(if asked <= entries {
        Answer::Kept(how)
    } else {
        Answer::Broken(format!("{asked} R2Ts for {entries} entries"))
    })
}

/// Commands one after the other, each of which has to be answered.
fn in_turn(scene: &mut Scene<'_>, sqe: &Sqe, count: usize) -> Result<Answer, Setback> {
    let mut completions = Vec::new();
    for _ in 0..count {
        scene.submit(CID, sqe, &[]);
        match scene.completions(1)[..] {
            [(CID, status)] => completions.push((CID, status)),
            _ => return Ok(Answer::Broken(format!("{} answered", completions.len()))),
        }
    }
    Ok(Answer::Kept(tally(&completions)))
}

fn of_event_request(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    scene.submit(CID, &command::async_event_request(), &[]);
    scene.submit(CID + 1, &command::abort(0, CID), &[]);
    let completions = scene.completions(2);
    Ok(if completions.len() == 2 {
        Answer::Kept(tally(&completions))
    } else {
        Answer::Broken(format!("{} of 2 answered", completions.len()))
    })
}

fn beyond_aerl(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let room = scene.facts.event_requests;
    for cid in 0..=room {
        scene.submit(cid, &command::async_event_request(), &[]);
    }
    let pdu = scene.next();
    let (dw0, data) = (0, 0);
    Ok(match pdu.as_ref().and_then(completion) {
        Some((_, status, _)) if status.same_code(Status::AER_LIMIT_EXCEEDED) => {
            Answer::Kept(status.without_more().to_string())
        }
        Some((_, status, _)) => Answer::Completed { status, dw0, data },
        None => Answer::Broken(format!("{pdu:?}")),
    })
}
