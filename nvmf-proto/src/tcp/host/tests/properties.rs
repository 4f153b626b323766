//! The contract of [`crate::tcp`] under arbitrary input.

use super::*;
use proptest::prelude::*;

/// One PDU of a controller: mostly what is due for a command, now and then something else.
#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    command: usize,
    len: u16,
    /// XORed into a byte of the PDU, at a position modulo its length; 0 changes nothing.
    flip: u8,
    at: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flip = prop_oneof![12 => Just(0u8), 1 => any::<u8>()];
    let step = (0u8..12, 0usize..7, any::<u16>(), flip, any::<u8>()).prop_map(
        |(kind, command, len, flip, at)| Step {
            kind,
            command,
            len,
            flip,
            at,
        },
    );
    prop::collection::vec(step, 0..40)
}

const READ: u32 = 3000;
const WRITE: u32 = 9000;

/// A machine with seven commands at the controller, and their CIDs.
fn loaded(config: &Config) -> (Rig, Vec<u16>) {
    let mut rig = Rig::ready(config);
    let kinds = [
        HostData::Read { len: READ },
        HostData::Write {
            len: WRITE,
            in_capsule: true,
        },
        HostData::Read { len: READ },
        HostData::Write {
            len: WRITE,
            in_capsule: false,
        },
        HostData::None,
        HostData::Write {
            len: 64,
            in_capsule: true,
        },
        HostData::Read { len: READ },
    ];
    let cids = kinds.map(|data| rig.issue(data).1).to_vec();
    rig.sent.clear();
    (rig, cids)
}

/// The stream of a controller that takes these steps.
fn stream(config: &Config, cids: &[u16], steps: &[Step]) -> Vec<u8> {
    let mut moved = [0u32; 7];
    let mut bytes = Vec::new();
    for step in steps {
        let at = &mut moved[step.command];
        let cid = cids[step.command];
        let mut pdu = match step.kind {
            0..=6 => {
                let len = (u32::from(step.len) % READ + 1)
                    .min(READ.saturating_sub(*at))
                    .max(1);
                let last = *at + len == READ;
                let flags = if last {
                    PduFlags::LAST_PDU
                } else {
                    PduFlags::empty()
                };
                let data = vec![step.at; len as usize];
                let pdu = c2h_data(config, cid, *at, &data, flags);
                *at += len;
                pdu
            }
            7..=9 => {
                let len = (u32::from(step.len) + 1)
                    .min(WRITE.saturating_sub(*at))
                    .max(1);
                let pdu = r2t(config, cid, step.len, *at, len);
                *at += len;
                pdu
            }
            10 => resp(config, cid, 1, Status::SUCCESS),
            _ => resp(config, cid, 2, Status::INTERNAL_ERROR),
        };
        let len = pdu.len();
        pdu[usize::from(step.at) % len] ^= step.flip;
        bytes.extend_from_slice(&pdu);
    }
    bytes
}

fn any_config() -> impl Strategy<Value = Config> {
    (0usize..4, 0u32..4).prop_map(|(which, maxr2t)| Config {
        maxr2t,
        ..configs()[which].clone()
    })
}

proptest! {
    /// Contract 1 and 9: however the stream is cut, the same happens.
    #[test]
    fn split_invariance(
        config in any_config(),
        steps in steps(),
        cuts in prop::collection::vec(1usize..200, 1..60),
    ) {
        let (mut whole, cids) = loaded(&config);
        let bytes = stream(&config, &cids, &steps);
        whole.feed(&bytes);
        whole.transmit();

        let (mut cut, again) = loaded(&config);
        prop_assert_eq!(cids, again);
        let mut rest = &bytes[..];
        for n in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*n).min(rest.len()));
            cut.feed(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        cut.transmit();
        prop_assert_eq!(whole.events, cut.events);
        prop_assert_eq!(whole.violation, cut.violation);
        prop_assert_eq!(whole.sent, cut.sent);
        prop_assert_eq!(whole.buffers, cut.buffers);
        prop_assert_eq!(whole.host.need(), cut.host.need());
    }

    /// Contract 8: reporting progress in any portions frees the same slots.
    #[test]
    fn transmitted_in_any_portions(portions in prop::collection::vec(0usize..500, 1..80)) {
        let config = Config { entries: 8, ..Config::default() };
        let mut rig = Rig::ready(&config);
        let slots: Vec<_> =
            (0..7).map(|_| rig.submit(HostData::Write { len: 500, in_capsule: true })).collect();
        prop_assert!(rig.host.poll_transmit(&mut rig.tx));
        let total = rig.drain_list().len();
        prop_assert_eq!(total, 7 * 572);
        let mut left = 0;
        for n in portions {
            rig.host.transmitted(n);
            left = (left + n).min(total);
            for (i, slot) in slots.iter().enumerate() {
                prop_assert_eq!(rig.host.is_sending(*slot), left < (i + 1) * 572);
            }
        }
    }

    /// Contract 2 to 4 and 7: any calls with any arguments in any order.
    #[test]
    fn any_call_order(
        config in any_config(),
        calls in prop::collection::vec((0u8..11, any::<u32>(), any::<[u8; 8]>()), 1..120),
    ) {
        let mut rig = Rig::new(&config);
        let mut slots = vec![Slot::new(9999, 7)];
        let mut violations = 0;
        for (call, n, bytes) in calls {
            let len = n % 10_000;
            match call {
                0 => slots.extend(rig.host.submit(Sqe(any_sqe(bytes)), HostData::Read { len })),
                1 => {
                    let data = HostData::Write { len, in_capsule: n & 1 == 0 };
                    slots.extend(rig.host.submit(Sqe(any_sqe(bytes)), data));
                }
                2 => {
                    rig.host.poll_transmit(&mut rig.tx);
                }
                3 => {
                    rig.tx.clear();
                    rig.host.transmitted(len as usize);
                }
                4 => {
                    let _ = rig.host.placed(n, Some(len));
                }
                5 => {
                    let _ = rig.host.handle_timeout(Time(u64::from(n)));
                }
                6 if n % 16 == 0 => rig.host.peer_closed(),
                7 => rig.host.set_in_capsule(len),
                8 => {
                    let known = slots[n as usize % slots.len()];
                    let cid = rig.host.table.get(known).map_or(0, |e| e.sqe.cid());
                    let pdu = match n % 5 {
                        0 => ic_resp(&config),
                        1 => resp(&config, cid, 1, Status::INTERNAL_ERROR),
                        2 => r2t(&config, cid, 3, 0, u32::from(bytes[0]) + 1),
                        3 => c2h_data(&config, cid, 0, &bytes, PduFlags::empty()),
                        _ => bytes.to_vec(),
                    };
                    violations += parse(&mut rig, &pdu)?;
                }
                9 => violations += parse(&mut rig, &bytes[..n as usize % 9])?,
                _ => {
                    let _ = rig.host.is_sending(slots[n as usize % slots.len()]);
                }
            }
            prop_assert!(violations <= 1);
            prop_assert!(rig.host.outstanding() <= rig.host.slots());
            match rig.host.need() {
                Need::Bytes { min } => prop_assert!((1..=255).contains(&min)),
                Need::Payload { slot, offset, len, .. } => {
                    let entry = rig.host.table.get(slot).expect("a live slot");
                    prop_assert!(offset + len <= entry.len);
                }
                Need::Drain | Need::Closed => {}
                Need::Discard { .. } | Need::Wait(_) => prop_assert!(false),
            }
            let _ = (rig.host.poll_timeout(), rig.host.negotiated(), rig.host.sqhd());
            let promised = rig.host.has_transmit();
            let mut list = TxList::new(0, 0);
            if call == 10 {
                prop_assert_eq!(rig.host.poll_transmit(&mut list), promised);
            }
        }
    }
}

fn any_sqe(bytes: [u8; 8]) -> [u8; 64] {
    std::array::from_fn(|i| bytes[i % 8])
}

/// One call of `parse`; 1 if it was a violation.
fn parse(rig: &mut Rig, bytes: &[u8]) -> Result<u32, TestCaseError> {
    match rig.host.parse(bytes) {
        Ok(parsed) => {
            prop_assert!(parsed.used <= bytes.len());
            prop_assert!(parsed.event.is_none() || parsed.used > 0);
            Ok(0)
        }
        Err(_) => Ok(1),
    }
}
