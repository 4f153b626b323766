//! The target starts anew: what persists of reservations is there again, and nothing else.

use crate::association::{Association, Stage};
use crate::command::{Io, IoOp};
use crate::end::PATIENCE;
use crate::world::{Outcome, World, target};
use crate::{note, plan, trace};

impl World {
    /// After a shutdown, where there is a reservation store: another target reports what the model
    /// expects.
    pub fn start_anew(&mut self) -> Outcome {
        let reserves = self.plan.mix.weights[9] > 0;
        if self.model.store.is_none() || !reserves {
            return Ok(());
        }
        self.leave_all();
        if !self.run(PATIENCE, |world| world.wires.is_empty())? {
            return Err("connections outlive the target".to_owned());
        }
        note!("the target starts anew");
        self.sim = target(&self.plan, trace::now());
        self.busy.fill(true);
        self.add_listener("again");
        for subsystem in 0..self.model.subsystems.len() {
            let of = &self.model.subsystems[subsystem];
            let nsids: Vec<u32> = of.namespaces.keys().copied().collect();
            self.configure_subsystem(&of.nqn);
            for &nsid in &nsids {
                self.model.set_namespace(subsystem, nsid, None);
                self.attach(subsystem, nsid, 0, 1);
            }
            self.report_all(subsystem, &nsids)?;
        }
        self.shut_down()
    }

    /// A fresh host asks for all reservations of a subsystem.
    fn report_all(&mut self, subsystem: usize, nsids: &[u32]) -> Outcome {
        let plan = plan::Association {
            subsystem,
            listener: self.doors.len() - 1,
            ..plan::Association::PLAIN
        };
        let witness = self.associations.len();
        self.associations.push(Association::new(251, plan));
        self.rise(witness);
        let is_up = |world: &mut Self| world.associations[witness].stage == Stage::Up;
        if !self.run(PATIENCE, is_up)? {
            return Err(
                "a fresh host cannot connect to the target that was started anew".to_owned(),
            );
        }
        for &nsid in nsids {
            let io = Io {
                op: IoOp::ReservationReport,
                nsid,
                slba: 0,
                blocks: 1,
                fua: false,
                write: None,
                block_size: self.model.storage[0].block_size,
            };
            self.send_io(witness, 1, io);
            self.finish(witness)?;
        }
        self.leave_all();
        Ok(())
    }
}
