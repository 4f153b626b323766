//! What hosts make of the completions that they get.

use crate::association::{Association, Progress, Stage};
use crate::command::{Command, What};
use crate::model::Place;
use crate::network::{SharedLink, lock};
use crate::queue::Completion;
use crate::world::{Outcome, World};
use crate::{stats, trace};
use nvmf_proto::wire::Cqe;
use nvmf_proto::wire::property::Csts;
use nvmf_target::Status;

impl World {
    /// `start`: of the command.
    fn place(&self, association: usize, link: &SharedLink, start: u64) -> Place {
        let it = &self.associations[association];
        Place {
            host: it.host,
            subsystem: it.plan.subsystem,
            listener: it.plan.listener,
            spoiled: lock(link).up.flipped > 0,
            stopping: is_stopping(it) || start < it.restarted,
            expired: it.kato() > 0 && trace::now() >= it.proof + it.kato(),
        }
    }

    pub fn completed(
        &mut self,
        association: usize,
        qid: u16,
        link: &SharedLink,
        done: Completion,
    ) -> Outcome {
        let place = self.place(association, link, done.command.start);
        let it = &mut self.associations[association];
        let Completion {
            command,
            cqe,
            data,
            digest_ok,
        } = done;
        let status = cqe.status.without_more();
        // A Connect that is refused is none of the controller's business.
        let answers = !matches!(command.what, What::Connect) || status.is_success();
        // One reactor may answer while another has found that the time is over.
        let in_time = it.closed_at().is_none_or(|at| lock(link).wrote_at < at);
        if answers && in_time {
            it.proof = it.proof.max(command.at);
        }
        if !digest_ok && lock(link).down.flipped == 0 {
            return Err("a data digest of the target is wrong".to_owned());
        }
        it.note_end(&command, status)?;
        match &command.what {
            What::Io(io) => {
                stats::count(io.op.name(), status);
                if !digest_ok {
                    self.forget(place.subsystem, &command);
                    return Ok(());
                }
                return self.model.completed(place, &command, io, status, &data);
            }
            What::Query(query) => {
                if digest_ok {
                    return self.answered(association, place, (&command, query), &cqe, &data);
                }
                self.miss_part(association);
            }
            // NVMe Base 2.1, Abort command: bit 0 of dword 0 is clear if the command was aborted.
            What::Abort { victim, .. } if status.is_success() && cqe.result & 1 == 0 => {
                it.aborted(*victim)?;
            }
            What::KeepAlive | What::Abort { .. } => {
                let limit = status.same_code(Status::ABORT_LIMIT_EXCEEDED);
                let crowded = matches!(command.what, What::Abort { crowded: true, .. });
                let excused = place.spoiled || place.stopping || (limit && crowded);
                if !status.is_success() && !excused {
                    return Err(format!("{} ended with {status}", command.what.name()));
                }
            }
            What::Event if status.is_success() => {
                self.hear(association, cqe.result as u32)?;
                let it = &mut self.associations[association];
                if !matches!(it.stage, Stage::Leaving | Stage::Restarting) {
                    it.await_event();
                }
            }
            What::Event => {
                if !command.unwanted && !place.stopping {
                    return Err(format!("a request for events ended with {status}"));
                }
            }
            What::Disable | What::Shutdown | What::Disconnect => {
                if !status.is_success() {
                    return Err(format!("{} ended with {status}", command.what.name()));
                }
                self.give_up(association, false);
            }
            What::Halt | What::IsHalted | What::Restart | What::IsOff => {
                return self.restarts(association, &command.what, &cqe);
            }
            _ => return self.rises(association, place, (qid, &command), &cqe),
        }
        Ok(())
    }

    /// A controller is on its way to be enabled again.
    fn restarts(&mut self, association: usize, what: &What, cqe: &Cqe) -> Outcome {
        if !cqe.status.is_success() {
            return Err(format!("{} ended with {}", what.name(), cqe.status));
        }
        let csts = Csts(cqe.result as u32);
        match what {
            What::IsHalted if csts.shst() == Csts::SHST_COMPLETE => {
                self.halted(association, csts.cfs())
            }
            What::IsOff if !csts.rdy() => self.disabled(association),
            _ => {
                self.look_later(association);
                Ok(())
            }
        }
    }

    /// An association is on its way up.
    fn rises(
        &mut self,
        association: usize,
        place: Place,
        (qid, command): (u16, &Command),
        cqe: &Cqe,
    ) -> Outcome {
        let status = cqe.status;
        let connected = matches!(command.what, What::Connect) && status.is_success();
        if connected && !self.was_admitted(association, command) {
            return Err("a host was admitted that is barred".to_owned());
        }
        match self.associations[association].rise(qid, &command.what, cqe) {
            Progress::Fine => {
                if matches!(command.what, What::Watch) {
                    self.begin_watch(association, command.start);
                }
                self.check_cntlid(association)?;
                self.check_limits()?;
            }
            Progress::OpenQueue(qid) => self.open(association, qid),
            Progress::Refused => {
                let excused = place.spoiled
                    || self.may_end(association)
                    || (status.same_code(Status::CONNECT_CONTROLLER_BUSY)
                        && self.has_many_queues(association))
                    || self.was_refused(association, command);
                if !excused {
                    return Err(format!("{} ended with {status}", command.what.name()));
                }
                self.give_up(association, false);
            }
        }
        Ok(())
    }

    /// No other controller of the subsystem that is there has the same CNTLID.
    fn check_cntlid(&self, association: usize) -> Outcome {
        let is_open = |it: &&Association| {
            let admin = it.queues.first();
            admin.is_some_and(|admin| lock(&admin.link).closed_at.is_none())
        };
        let it = &self.associations[association];
        let same = |other: &&Association| {
            let subsystem = |it: &Association| (!it.plan.discovery).then_some(it.plan.subsystem);
            other.cntlid == it.cntlid && subsystem(other) == subsystem(it)
        };
        let mut count = self.associations.iter().filter(is_open).filter(same);
        if it.cntlid.is_some() && count.nth(1).is_some() {
            return Err(format!("CNTLID {:?} is given out twice", it.cntlid));
        }
        Ok(())
    }

    /// Whether a host may have been admitted since it sent a command.
    fn was_admitted(&self, association: usize, command: &Command) -> bool {
        let it = &self.associations[association];
        let of = &self.model.subsystems[it.plan.subsystem];
        it.plan.discovery || of.was_barred(it.host, command.start, false)
    }

    /// Whether it may have been refused.
    fn was_refused(&self, association: usize, command: &Command) -> bool {
        let it = &self.associations[association];
        let of = &self.model.subsystems[it.plan.subsystem];
        !it.plan.discovery && of.was_barred(it.host, command.start, true)
    }
}

fn is_stopping(it: &Association) -> bool {
    matches!(it.stage, Stage::Leaving | Stage::Restarting) || it.excuse.is_some()
}
