//! An association with a controller: Connect, properties, and its life from enable to shutdown.

mod admin;
mod discovery;

pub use discovery::discover;

use crate::error::{Error, dword0};
use crate::io_queue::IoQueue;
use crate::options::ConnectOptions;
use crate::queue::{Completion, Data, Queue};
use crate::stream::{Stream, connect_tcp};
use nvmf_proto::tcp::host::Config;
use nvmf_proto::wire::Sqe;
use nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, Cattr, ConnectCommand, ConnectData, ConnectResponse, PropertyGet, PropertySet,
    PropertySize,
};
use nvmf_proto::wire::identify::{ControllerType, IdentifyController};
use nvmf_proto::wire::property::{Cap, Cc, Csts, PropertyOffset, Vs};
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

/// Makes one connection to the target; called once per queue.
pub type Connector = Box<dyn FnMut() -> io::Result<Box<dyn Stream>> + Send>;

/// Between two looks at CSTS.
const CSTS_INTERVAL: Duration = Duration::from_millis(1);
/// SQE size of a capsule; IOCCSZ counts it.
const SQE_SIZE: u32 = 64;
/// How often the timeout of one command fits into a list or log of many.
const LONG: u32 = 8;
/// Longest command of the blocking helpers where the controller names no limit.
const TRANSFER_MAX: u32 = 1 << 20;

/// A controller and its admin queue.
///
/// Every method that talks to the controller blocks: for [`ConnectOptions::timeout`] at most where
/// one command is enough, and for ten times that where it takes several (connecting, waiting for
/// CSTS, lists and logs of many pages), however a target spreads its answers. For anything
/// asynchronous there is [`Controller::admin_queue`].
pub struct Controller {
    admin: Queue,
    connector: Connector,
    options: ConnectOptions,
    cntlid: u16,
    cap: Cap,
    vs: Vs,
    identity: IdentifyController,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("subsystem", &self.options.subsystem)
            .field("cntlid", &self.cntlid)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// Connects to [`ConnectOptions::address`] by TCP, enables the controller and identifies it.
    ///
    /// # Errors
    ///
    /// The connection failed, the target refused or broke the protocol, or took too long.
    pub fn connect(options: &ConnectOptions) -> Result<Self, Error> {
        let (address, timeout) = (options.address, options.timeout);
        let connector =
            move || -> io::Result<Box<dyn Stream>> { Ok(Box::new(connect_tcp(address, timeout)?)) };
        Self::connect_over(Box::new(connector), options)
    }

    /// [`Controller::connect`] over streams that the caller makes.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn connect_over(connector: Connector, options: &ConnectOptions) -> Result<Self, Error> {
        let mut controller = Self::open(connector, options)?;
        controller.cap = Cap(controller.property_get(PropertyOffset::CAP, PropertySize::BYTES_8)?);
        let vs = controller.property_get(PropertyOffset::VS, PropertySize::BYTES_4)?;
        controller.vs = Vs(dword0(vs));
        controller.enable()?;
        controller.identity = controller.identify_controller()?;
        controller.judge_identity()?;
        Ok(controller)
    }

    /// Only the Connect command of the admin queue: the controller is not enabled, and
    /// [`Controller::cap`], [`Controller::vs`] and [`Controller::identity`] are all zero.
    ///
    /// # Errors
    ///
    /// As [`Controller::connect`].
    pub fn open(mut connector: Connector, options: &ConnectOptions) -> Result<Self, Error> {
        let config = options.admin_config();
        let (admin, cntlid) = connect_queue(&mut connector, options, &config, 0, CNTLID_DYNAMIC)?;
        Ok(Self {
            admin,
            connector,
            options: options.clone(),
            cntlid,
            cap: Cap::default(),
            vs: Vs::default(),
            identity: IdentifyController::default(),
        })
    }

    /// What Identify Controller says must fit what this host does and what Connect said.
    fn judge_identity(&self) -> Result<(), Error> {
        let id = &self.identity;
        if id.cntlid != self.cntlid {
            return Err(Error::BadAnswer(
                "Identify Controller and Connect differ in CNTLID",
            ));
        }
        let is_io =
            id.cntrltype != ControllerType::DISCOVERY && !self.options.subsystem.is_discovery();
        if is_io && id.ioccsz < SQE_SIZE / 16 {
            return Err(Error::BadAnswer("IOCCSZ is less than an SQE"));
        }
        if is_io && id.icdoff != 0 {
            return Err(Error::BadAnswer("ICDOFF is not 0"));
        }
        Ok(())
    }

    /// CNTLID, as Connect returned it.
    #[must_use]
    pub const fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// Controller Capabilities, read when connecting.
    #[must_use]
    pub const fn cap(&self) -> Cap {
        self.cap
    }

    /// Version, read when connecting.
    #[must_use]
    pub const fn vs(&self) -> Vs {
        self.vs
    }

    /// Identify Controller, read when connecting.
    #[must_use]
    pub const fn identity(&self) -> &IdentifyController {
        &self.identity
    }

    /// The options it was made with.
    #[must_use]
    pub const fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// The admin queue, for asynchronous use and for everything that has no method.
    pub const fn admin_queue(&mut self) -> &mut Queue {
        &mut self.admin
    }

    /// MDTS in bytes; `None` if the controller names no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<u64> {
        if self.identity.mdts == 0 {
            return None;
        }
        let page = 4096 << self.cap.mpsmin();
        let pages = 1u64.checked_shl(u32::from(self.identity.mdts))?;
        Some(pages.saturating_mul(page))
    }

    /// The most bytes that one command of the blocking helpers moves.
    fn chunk(&self) -> u32 {
        let limit = self
            .max_transfer()
            .and_then(|bytes| u32::try_from(bytes).ok());
        limit.map_or(TRANSFER_MAX, |bytes| bytes.min(TRANSFER_MAX))
    }

    /// Connects an I/O queue, `qid` from 1. The controller has to be told their number first, by
    /// [`Controller::set_queue_count`].
    ///
    /// # Errors
    ///
    /// As [`Controller::connect`].
    pub fn io_queue(&mut self, qid: u16) -> Result<IoQueue, Error> {
        // MAXCMD is a number of outstanding commands; a queue holds one less than its entries.
        let maxcmd = match self.identity.maxcmd {
            0 => u32::MAX,
            maxcmd => u32::from(maxcmd) + 1,
        };
        let mqes = u32::try_from(self.cap.mqes())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let entries = self
            .options
            .io_entries
            .min(mqes)
            .min(maxcmd)
            .clamp(2, 1 << 16);
        let in_capsule = self
            .identity
            .ioccsz
            .saturating_mul(16)
            .saturating_sub(SQE_SIZE);
        let config = self.options.io_config(entries, in_capsule);
        let (queue, _) = connect_queue(
            &mut self.connector,
            &self.options,
            &config,
            qid,
            self.cntlid,
        )?;
        Ok(IoQueue::new(queue, qid, self.chunk()))
    }

    /// Runs any Admin command and waits for it. A status is not an error here.
    ///
    /// # Errors
    ///
    /// The connection is over, the queue is full, or no completion came in time.
    pub fn raw(&mut self, sqe: Sqe, data: Data) -> Result<Completion, Error> {
        self.admin.execute("Admin command", sqe, data)
    }

    /// Reads a property of 4 or 8 bytes.
    ///
    /// # Errors
    ///
    /// The controller refused, or the connection is over.
    pub fn property_get(
        &mut self,
        offset: PropertyOffset,
        size: PropertySize,
    ) -> Result<u64, Error> {
        const NAME: &str = "Property Get";
        let sqe = PropertyGet { size, offset }.to_sqe();
        Ok(self
            .admin
            .execute(NAME, sqe, Data::None)?
            .success(NAME)?
            .cqe
            .result)
    }

    /// Writes a property of 4 or 8 bytes.
    ///
    /// # Errors
    ///
    /// As [`Controller::property_get`].
    pub fn property_set(
        &mut self,
        offset: PropertyOffset,
        size: PropertySize,
        value: u64,
    ) -> Result<(), Error> {
        const NAME: &str = "Property Set";
        let sqe = PropertySet {
            size,
            offset,
            value,
        }
        .to_sqe();
        self.admin.execute(NAME, sqe, Data::None)?.success(NAME)?;
        Ok(())
    }

    /// Reads CSTS.
    ///
    /// # Errors
    ///
    /// As [`Controller::property_get`].
    pub fn csts(&mut self) -> Result<Csts, Error> {
        let value = self.property_get(PropertyOffset::CSTS, PropertySize::BYTES_4)?;
        Ok(Csts(dword0(value)))
    }

    /// Writes CC.
    ///
    /// # Errors
    ///
    /// As [`Controller::property_get`].
    pub fn set_cc(&mut self, cc: Cc) -> Result<(), Error> {
        self.property_set(PropertyOffset::CC, PropertySize::BYTES_4, u64::from(cc.0))
    }

    fn enabled_cc(&self) -> Cc {
        let all_sets = self.cap.css() & Cap::CSS_IO_COMMAND_SETS != 0;
        // NVMe Base 2.1, CC: 64-byte SQEs and 16-byte CQEs.
        Cc::default()
            .with_en(true)
            .with_css(if all_sets { Cc::CSS_ALL } else { Cc::CSS_NVM })
            .with_iosqes(6)
            .with_iocqes(4)
    }

    /// Sets CC.EN and waits for CSTS.RDY.
    ///
    /// # Errors
    ///
    /// As [`Controller::property_get`], or CSTS.CFS, or it took too long.
    pub fn enable(&mut self) -> Result<(), Error> {
        self.set_cc(self.enabled_cc())?;
        self.wait_csts("CSTS.RDY", Csts::rdy)
    }

    /// Clears CC.EN and waits for CSTS.RDY to go: a controller reset, which ends all I/O queues.
    ///
    /// # Errors
    ///
    /// As [`Controller::enable`].
    pub fn reset(&mut self) -> Result<(), Error> {
        self.set_cc(self.enabled_cc().with_en(false))?;
        self.wait_csts("end of CSTS.RDY", |csts| !csts.rdy())
    }

    /// Asks for a normal shutdown by CC.SHN and waits until CSTS.SHST says that it is complete.
    ///
    /// # Errors
    ///
    /// As [`Controller::enable`].
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.set_cc(self.enabled_cc().with_shn(Cc::SHN_NORMAL))?;
        self.wait_csts("end of shutdown", |csts| csts.shst() == Csts::SHST_COMPLETE)
    }

    /// [`Controller::shutdown`], then closes the admin connection. I/O queues should be dropped
    /// before. Dropping the controller closes without a shutdown.
    ///
    /// # Errors
    ///
    /// As [`Controller::shutdown`]; the connection is closed all the same.
    pub fn disconnect(mut self) -> Result<(), Error> {
        self.shutdown()
    }

    /// When something that takes many commands has taken too long; `None`: never.
    fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.admin.timeout().saturating_mul(LONG))
    }

    /// An error once a deadline has passed.
    fn in_time(&self, what: &'static str, deadline: Option<Instant>) -> Result<(), Error> {
        match deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Timeout {
                what,
                within: self.admin.timeout().saturating_mul(LONG),
            }),
            _ => Ok(()),
        }
    }

    fn wait_csts(&mut self, what: &'static str, done: impl Fn(Csts) -> bool) -> Result<(), Error> {
        let within = self.options.timeout;
        let start = Instant::now();
        loop {
            let csts = self.csts()?;
            if csts.cfs() {
                return Err(Error::ControllerFatal);
            }
            if done(csts) {
                return Ok(());
            }
            if start.elapsed() >= within {
                return Err(Error::Timeout { what, within });
            }
            std::thread::sleep(CSTS_INTERVAL);
        }
    }
}

/// Makes a connection, exchanges ICReq and ICResp, and runs Connect. Returns the CNTLID.
fn connect_queue(
    connector: &mut Connector,
    options: &ConnectOptions,
    config: &Config,
    qid: u16,
    cntlid: u16,
) -> Result<(Queue, u16), Error> {
    const NAME: &str = "Connect";
    let stream = connector().map_err(Error::io("connecting to the target"))?;
    let mut queue = Queue::open(stream, config, options.timeout)?;
    let agreed = queue.negotiated();
    if (agreed.header_digest, agreed.data_digest) != (config.header_digest, config.data_digest) {
        return Err(Error::BadAnswer(
            "the target does not do the digests that were asked for",
        ));
    }
    let mut cattr = Cattr::empty();
    cattr.set(Cattr::DISABLE_SQ_FLOW_CONTROL, !config.flow_control);
    let sqe = ConnectCommand {
        qid,
        sqsize: u16::try_from(config.entries - 1).unwrap_or(u16::MAX),
        cattr,
        kato: if qid == 0 { options.kato } else { 0 },
        ..ConnectCommand::default()
    }
    .to_sqe();
    let mut data = [0; ConnectData::SIZE];
    ConnectData {
        hostid: options.host_id,
        cntlid,
        subnqn: options.subsystem.to_field(),
        hostnqn: options.host.to_field(),
    }
    .encode(&mut data);
    let done = queue
        .execute(NAME, sqe, Data::Write(data.to_vec()))?
        .success(NAME)?;
    let response = ConnectResponse::from_dw0(dword0(done.cqe.result));
    if !response.authreq.is_empty() {
        return Err(Error::BadAnswer("the target requires authentication"));
    }
    if qid != 0 && response.cntlid != cntlid {
        return Err(Error::BadAnswer(
            "an I/O queue was connected to another controller",
        ));
    }
    Ok((queue, response.cntlid))
}
