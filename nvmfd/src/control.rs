//! The operator's commands: from the command line before anything is served, and from standard
//! input afterwards.

mod command;

use crate::cli::{FirstCommand, one_line, shortened};
use crate::devices::Devices;
use crate::{Failure, listen};
use command::lossy;
pub(crate) use command::{Command, help};
use nvmf_target::{Change, Error, ListenerConfig, ListenerInfo, Referral, Role, Target};
use std::io::{self, BufRead, Read, Write};

/// Bytes of a line of commands, with its end: room for the longest path, or for a list of hosts.
const LINE_MAX: usize = 64 << 10;

/// Bytes of an answer that is an error.
const ERROR_MAX: usize = 1024;

/// What commands work on.
pub(crate) struct Control {
    pub(crate) target: Target,
    /// NQN of the subsystem.
    pub(crate) nqn: String,
    pub(crate) devices: Devices,
}

/// The beginning: what makes the ports, which come last.
struct First {
    changes: Vec<Change>,
    /// By which command each of them came, if by one.
    sources: Vec<Option<usize>>,
    /// Names of the I/O listeners.
    ports: Vec<String>,
}

impl Control {
    /// Begins to serve at `listeners`, whose names are those of their addresses, with `commands`
    /// carried out in their order: hosts never see anything else.
    ///
    /// # Errors
    /// If one of the commands cannot be done, or the target's.
    pub(crate) fn start(
        &mut self,
        listeners: Vec<ListenerConfig>,
        commands: &[FirstCommand],
    ) -> Result<(), Failure> {
        let mut first = First {
            ports: listeners
                .iter()
                .filter(|listener| listener.role == Role::Io)
                .filter_map(|listener| listener.name.clone())
                .collect(),
            sources: vec![None; listeners.len()],
            changes: listeners.into_iter().map(Change::AddListener).collect(),
        };
        for (index, FirstCommand { text, command }) in commands.iter().enumerate() {
            let done = self.prepare(command, index, &mut first);
            done.map_err(|err| err.of_command(text))?;
        }
        let First {
            changes, sources, ..
        } = first;
        match self.target.apply(changes) {
            Ok(_) => Ok(()),
            Err(Error::Change { index, source, .. }) => {
                let command = sources.get(index).copied().flatten();
                let command = command.and_then(|index| commands.get(index));
                let err = Failure::asked_for(*source);
                Err(match command {
                    Some(command) => err.of_command(&command.text),
                    None => err,
                })
            }
            Err(err) => Err(Failure::asked_for(err)),
        }
    }

    /// Carries out a command while nothing is served; what concerns listeners is left for `first`.
    fn prepare(
        &mut self,
        command: &Command,
        index: usize,
        first: &mut First,
    ) -> Result<(), Failure> {
        let changes = match command {
            Command::Listen { address } => {
                let listener = listen::at(*address)?;
                first.ports.extend(listener.name.clone());
                vec![Change::AddListener(listener)]
            }
            Command::Unlisten { address } => {
                let name = address.to_string();
                first.ports.retain(|port| *port != name);
                vec![Change::RemoveListener { listener: name }]
            }
            command => match self.changes(command, &first.ports) {
                Some((changes, _)) => changes,
                None => return self.work_on_devices(command).map(drop),
            },
        };
        match command {
            Command::Listen { .. } | Command::Unlisten { .. } | Command::Ana { .. } => {
                first.sources.extend(changes.iter().map(|_| Some(index)));
                first.changes.extend(changes);
                Ok(())
            }
            _ => {
                let done = self.target.apply(changes);
                done.map(drop).map_err(Failure::asked_for)
            }
        }
    }

    /// Carries out commands until `quit`, the end of the input or an error of either stream.
    /// Returns whether it was `quit`. A line that is too long is not kept, and one without an end
    /// not carried out.
    ///
    /// # Errors
    /// Reading a command or writing an answer has failed.
    pub(crate) fn serve(
        &mut self,
        mut input: impl BufRead,
        mut output: impl Write,
    ) -> io::Result<bool> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = LINE_MAX as u64;
            if input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
                return Ok(false);
            }
            let is_whole = line.ends_with(b"\n");
            let command = if is_whole && line.trim_ascii().is_empty() {
                continue;
            } else if is_whole {
                Command::parse(&line)
            } else if line.len() == LINE_MAX {
                input.skip_until(b'\n')?;
                Err(format!(
                    "{} is the beginning of a line that is too long; at most {LINE_MAX} bytes are \
                     wanted",
                    lossy(&line)
                ))
            } else {
                // Whoever was writing it has been cut short: `remove 1` may have been to be
                // `remove 12`.
                Err(format!(
                    "{} is the beginning of a line that has no end; a newline is wanted",
                    lossy(&line)
                ))
            };
            let quit = command == Ok(Command::Quit);
            let done = command
                .map_err(Failure::Usage)
                .and_then(|command| self.run(&command));
            match done {
                Ok(answer) => writeln!(output, "ok {}", one_line(&answer))?,
                Err(err) => {
                    let text = one_line(&err.to_string());
                    writeln!(output, "error {}", shortened(&text, ERROR_MAX))?;
                }
            }
            output.flush()?;
            if quit {
                return Ok(true);
            }
        }
    }

    /// Does all that the command says, or nothing. Returns what there is to say about it.
    fn run(&mut self, command: &Command) -> Result<String, Failure> {
        let listeners = self.target.listeners();
        let ports: Vec<String> = listeners
            .into_iter()
            .filter(|listener| listener.role == Role::Io)
            .map(|listener| listener.name)
            .collect();
        match self.changes(command, &ports) {
            Some((changes, answer)) => {
                let added = self.target.apply(changes)?;
                let name = |port: &ListenerInfo| format!("listening on {}", port.name);
                Ok(added.first().map_or(answer, name))
            }
            None => self.work_on_devices(command),
        }
    }

    fn work_on_devices(&mut self, command: &Command) -> Result<String, Failure> {
        match command {
            Command::Add { nsid, device } => self.devices.add(&self.target, *nsid, device),
            Command::Remove { nsid } => {
                let closed = self.devices.remove(&self.target, *nsid)?;
                let still = if closed {
                    ""
                } else {
                    "; its device is still busy"
                };
                Ok(format!("namespace {nsid} removed{still}"))
            }
            Command::Resize { nsid } => self.devices.resize(*nsid),
            Command::ReadOnly { nsid, on } => self.devices.set_read_only(*nsid, *on),
            Command::Stats => Ok(self.stats()),
            _ => Ok("quitting".to_owned()),
        }
    }

    /// What a command changes in the target, and what there is to say about it then; `None` if it
    /// is about devices. `ports` are the names of the I/O listeners.
    fn changes(&self, command: &Command, ports: &[String]) -> Option<(Vec<Change>, String)> {
        let nqn = || self.nqn.clone();
        let one = |change, answer: String| Some((vec![change], answer));
        match command {
            Command::Add { .. }
            | Command::Remove { .. }
            | Command::Resize { .. }
            | Command::ReadOnly { .. }
            | Command::Stats
            | Command::Quit => None,
            Command::Visible { nsid, hosts } => {
                let text = match hosts.as_deref() {
                    None => "all hosts".to_owned(),
                    Some([]) => "no host".to_owned(),
                    Some(hosts) => hosts.join(" "),
                };
                let change = Change::SetNamespaceHosts {
                    nqn: nqn(),
                    nsid: *nsid,
                    hosts: hosts.clone(),
                };
                one(change, format!("namespace {nsid} is visible to {text}"))
            }
            Command::Group { nsid, anagrpid } => {
                let change = Change::SetAnaGroup {
                    nqn: nqn(),
                    nsid: *nsid,
                    anagrpid: *anagrpid,
                };
                one(
                    change,
                    format!("namespace {nsid} is in ANA group {anagrpid}"),
                )
            }
            Command::Ana {
                port,
                anagrpid,
                state,
            } => {
                let at = port.map_or_else(|| ports.to_vec(), |port| vec![port.to_string()]);
                let answer = format!("ANA group {anagrpid} is {state} at {}", at.join(" "));
                let change = |listener| Change::SetAnaState {
                    nqn: nqn(),
                    listener,
                    anagrpid: *anagrpid,
                    state: *state,
                };
                Some((at.into_iter().map(change).collect(), answer))
            }
            Command::Allow { host } | Command::Forbid { host } => {
                let allow = matches!(command, Command::Allow { .. });
                let (change, answer) = self.host_change(host.clone(), allow);
                one(change, answer)
            }
            Command::Listen { address } => one(
                Change::AddListener(ListenerConfig::tcp(*address)),
                format!("listening on {address}"),
            ),
            Command::Unlisten { address } => {
                let listener = address.to_string();
                one(
                    Change::RemoveListener { listener },
                    format!("no longer listening on {address}"),
                )
            }
            Command::Refer { address } => one(
                Change::AddReferral(Referral::tcp(*address)),
                format!("hosts are referred to {address}"),
            ),
            Command::Unrefer { address } => one(
                Change::RemoveReferral(Referral::tcp(*address)),
                format!("hosts are no longer referred to {address}"),
            ),
        }
    }

    fn stats(&self) -> String {
        let stats = self.target.stats();
        format!(
            "connections {} controllers {} io-queues {} buffer-bytes {} in-flight {} \
             unconnected {} queue-bytes {}",
            stats.connections,
            stats.controllers,
            stats.io_queues,
            stats.buffers_lent,
            stats.in_flight,
            stats.unconnected,
            stats.queue_bytes
        )
    }

    fn host_change(&self, host: Option<String>, allow: bool) -> (Change, String) {
        let nqn = self.nqn.clone();
        match (host, allow) {
            (None, true) => {
                let answer = "any host may connect".to_owned();
                (Change::AllowAnyHost { nqn, allow }, answer)
            }
            (None, false) => {
                let answer = "a host that is not listed may not connect".to_owned();
                (Change::AllowAnyHost { nqn, allow }, answer)
            }
            (Some(host), true) => {
                let answer = format!("{host} may connect");
                (Change::AddHost { nqn, host }, answer)
            }
            // It still may where any host may.
            (Some(host), false) => {
                let answer = format!("{host} is not listed any more");
                (Change::RemoveHost { nqn, host }, answer)
            }
        }
    }
}
