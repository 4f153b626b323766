//! Aborts of either half of a pair.

use super::{FAILED, SUCCESS, Way, aborts, completions, made, submit};
use crate::common::raw::{Digests, Raw};
use crate::common::step::Step;
use crate::common::{self, NQN, assert_idle, config, eventually};
use Stage::{Compare, Data, Gate, Half, Write};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::pdu::DataHeader;
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_target::Target;
use nvmf_target::ns::{NsInfo, Op, Request};

/// How far a pair comes before one half of it is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The second half has not come.
    Half,
    /// The data of the second half has not come.
    Data,
    /// The gate closes.
    Gate,
    Compare,
    Write,
}

/// A pair on queue 1 of a namespace that is run by hand, and a write on queue 2.
struct Scene {
    stage: Stage,
    target: Target,
    step: Step,
    admin: Raw,
    queue: Raw,
    other: Raw,
    second: Sqe,
    /// The write that the gate waits for.
    before: Option<Request>,
    r2t: Option<DataHeader>,
}

fn plain_write() -> Sqe {
    made(command::write(2, 100, 1), 3, 512, Way::Capsule)
}

impl Scene {
    /// The pair has come as far as `stage`.
    fn new(stage: Stage) -> Self {
        let (target, address) = common::target(config());
        let step = Step::new(NsInfo::new(512, 1 << 20));
        step.set_withdraws(true);
        target.add_namespace(NQN, 2, step.clone()).unwrap();
        let (admin, cntlid) = Raw::admin(address);
        let mut queue = Raw::io(address, cntlid, 1);
        let mut other = Raw::io(address, cntlid, 2);
        let before = (stage == Gate).then(|| {
            other.submit(&plain_write(), &[1; 512]);
            step.next()
        });
        let [first, second] = command::compare_and_write(2, 0, 1);
        submit(&mut queue, first, 1, &[0; 512], Way::Capsule);
        let mut scene = Self {
            stage,
            target,
            step,
            admin,
            queue,
            other,
            second,
            before,
            r2t: None,
        };
        scene.advance();
        scene
    }

    fn advance(&mut self) {
        let Self { target, step, .. } = self;
        if self.stage == Half {
            eventually("it is there", || target.stats().buffers_lent > 0);
            return;
        }
        let way = if self.stage == Data {
            Way::R2t
        } else {
            Way::Capsule
        };
        submit(&mut self.queue, self.second, 2, &[9; 512], way);
        self.r2t = (self.stage == Data).then(|| self.queue.recv().r2t());
        // A command behind both has been answered.
        let flush = made(command::flush(1), 7, 0, Way::R2t);
        self.queue.ok(&flush, &[]);
        match self.stage {
            Half | Data | Gate => return,
            Compare => eventually("it compares", || step.pending() == 1),
            Write => {
                let mut compare = step.next();
                compare.data_mut().fill(0);
                compare.complete(Ok(()));
                eventually("it writes", || step.pending() == 1);
            }
        }
        // Something that has to wait for the gate.
        self.other.submit(&plain_write(), &[1; 512]);
        self.other.ok(&flush, &[]);
    }

    /// What the pair waits for comes, although a half of it, `cid`, has been aborted.
    fn go_on(&mut self, cid: u16) {
        if let Some(before) = self.before.take() {
            before.complete(Ok(()));
            assert_eq!(self.other.recv().cqe().cid, 3);
        }
        match (self.stage, cid) {
            (Half, _) => submit(&mut self.queue, self.second, 2, &[9; 512], Way::Capsule),
            (Data, _) => {
                let r2t = self.r2t.unwrap();
                let data = Digests::default().h2c_data(&r2t, 0, &[9; 512], true);
                self.queue.send(&data);
            }
            (Compare, 2) => {
                let mut compare = self.step.next();
                assert_eq!(compare.op(), Op::Read);
                compare.data_mut().fill(0);
                compare.complete(Ok(()));
            }
            (Write, 1) => self.step.next().complete(Ok(())),
            _ => {}
        }
    }

    /// The gate is open, and nothing is left.
    fn end(mut self) {
        if matches!(self.stage, Compare | Write) {
            self.step.next().complete(Ok(()));
            assert_eq!(self.other.recv().cqe().cid, 3);
        }
        assert_eq!(self.step.pending(), 0, "{:?}", self.stage);
        self.queue.submit(&plain_write(), &[1; 512]);
        self.step.next().complete(Ok(()));
        assert_eq!(self.queue.recv().cqe().cid, 3);
        drop((self.admin, self.queue, self.other));
        assert_idle(&self.target);
    }
}

/// Either half, at every stage: both end, once, and what was held is given back.
#[test]
fn an_abort_of_either_half_ends_both() {
    const ABORTED: Status = Status::ABORT_REQUESTED;
    let first_ends = [(1, ABORTED), (2, FAILED)];
    let second_ends = [(1, FAILED), (2, ABORTED)];
    for (stage, cid, immediate, want) in [
        (Half, 1, true, first_ends),
        (Data, 1, true, first_ends),
        (Data, 2, false, second_ends),
        (Gate, 1, true, first_ends),
        (Gate, 2, true, second_ends),
        (Compare, 1, true, first_ends),
        (Compare, 2, false, second_ends),
        (Write, 1, false, [(1, SUCCESS), (2, SUCCESS)]),
        (Write, 2, true, second_ends),
    ] {
        let what = format!("{stage:?} {cid}");
        let mut scene = Scene::new(stage);
        assert_eq!(aborts(&mut scene.admin, cid), immediate, "{what}");
        scene.go_on(cid);
        assert_eq!(completions(&mut scene.queue, 2), want, "{what}");
        scene.end();
    }
}
