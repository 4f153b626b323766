//! The control language: one command per line.

use crate::cli::{Device, quoted};
use nvmf_target::AnaState;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

/// The commands with their arguments, and what each does; the last ones are for a daemon that serves.
const USAGE: [(&str, &str); 15] = [
    ("add NSID DEVICE", "a new namespace"),
    ("remove NSID", "no longer a namespace; its device is closed"),
    ("resize NSID", "look at the size of a file or device again"),
    ("read-only NSID on|off", "refuse writes, or no longer"),
    (
        "visible NSID all|none|HOST...",
        "which hosts see the namespace",
    ),
    ("group NSID ANAGRPID", "move the namespace to an ANA group"),
    (
        "ana ADDR:PORT|all ANAGRPID STATE",
        "state of an ANA group at an I/O port: optimized, non-optimized,\n\
         inaccessible, persistent-loss or change",
    ),
    (
        "allow any|HOST",
        "let any host connect, or this one as well",
    ),
    (
        "forbid any|HOST",
        "let only hosts connect that are listed, or no longer list this one;\n\
         who is connected and may not be any more is disconnected",
    ),
    ("listen ADDR:PORT", "a new port for I/O and discovery"),
    (
        "unlisten ADDR:PORT",
        "close a port and what is connected there",
    ),
    ("refer ADDR:PORT", "tell hosts of another discovery service"),
    ("unrefer ADDR:PORT", "no longer"),
    ("stats", "how much there is of what hosts take up"),
    ("quit", "end as by SIGTERM"),
];

/// How many of them make sense before anything is served.
const FIRST: usize = 13;

/// The commands as `--help` shows them.
pub(crate) fn help() -> String {
    let mut text = String::new();
    for (usage, what) in USAGE {
        let what = what.replace('\n', "\n      ");
        text += &format!("  {usage}\n      {what}\n");
    }
    text
}

/// A line of the control language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add {
        nsid: u32,
        device: Device,
    },
    Remove {
        nsid: u32,
    },
    Resize {
        nsid: u32,
    },
    ReadOnly {
        nsid: u32,
        on: bool,
    },
    /// Host NQNs; `None`: all.
    Visible {
        nsid: u32,
        hosts: Option<Vec<String>>,
    },
    Group {
        nsid: u32,
        anagrpid: u32,
    },
    /// At one I/O port, or all.
    Ana {
        port: Option<SocketAddr>,
        anagrpid: u32,
        state: AnaState,
    },
    /// A host's NQN; `None`: any.
    Allow {
        host: Option<String>,
    },
    Forbid {
        host: Option<String>,
    },
    Listen {
        address: SocketAddr,
    },
    Unlisten {
        address: SocketAddr,
    },
    Refer {
        address: SocketAddr,
    },
    Unrefer {
        address: SocketAddr,
    },
    Stats,
    Quit,
}

impl Command {
    /// Reads a line: words separated by blanks. A DEVICE goes to the end of the line, and a path
    /// may hold any byte but a newline.
    ///
    /// # Errors
    /// What is wrong, and what is wanted.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        Self::parse_one_of(&USAGE, line)
    }

    /// The same before anything is served.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn parse_first(line: &[u8]) -> Result<Self, String> {
        let (first, later) = USAGE.split_at(FIRST);
        let (name, _) = split_word(line);
        if usage(later, name).is_some() {
            return Err("it makes no sense before anything is served".to_owned());
        }
        Self::parse_one_of(first, line)
    }

    fn parse_one_of(commands: &[(&'static str, &str)], line: &[u8]) -> Result<Self, String> {
        let (name, rest) = split_word(line);
        let Some(usage) = usage(commands, name) else {
            let names: Vec<&str> = commands.iter().map(|(usage, _)| name_of(usage)).collect();
            return Err(format!(
                "{}: one of {} is wanted",
                lossy(line.trim_ascii()),
                names.join(", ")
            ));
        };
        let mut words = Words { usage, rest };
        let command = match name {
            b"add" => {
                let nsid = words.nsid()?;
                let device = std::mem::take(&mut words.rest);
                if device.is_empty() {
                    return Err(words.wanted("the DEVICE is missing"));
                }
                let device = Device::parse(OsStr::from_bytes(device).to_owned())
                    .map_err(|text| words.wanted(&format!("{}: {text}", lossy(device))))?;
                Self::Add { nsid, device }
            }
            b"remove" => Self::Remove {
                nsid: words.nsid()?,
            },
            b"resize" => Self::Resize {
                nsid: words.nsid()?,
            },
            b"read-only" => Self::ReadOnly {
                nsid: words.nsid()?,
                on: words.one_of(&[("on", true), ("off", false)])?,
            },
            b"visible" => Self::Visible {
                nsid: words.nsid()?,
                hosts: words.hosts()?,
            },
            b"group" => Self::Group {
                nsid: words.nsid()?,
                anagrpid: words.number("ANAGRPID")?,
            },
            b"ana" => Self::Ana {
                port: words.port_or_all()?,
                anagrpid: words.number("ANAGRPID")?,
                state: words.one_of(&ANA_STATES)?,
            },
            b"allow" => Self::Allow {
                host: words.host_or_any()?,
            },
            b"forbid" => Self::Forbid {
                host: words.host_or_any()?,
            },
            b"listen" => Self::Listen {
                address: words.address()?,
            },
            b"unlisten" => Self::Unlisten {
                address: words.address()?,
            },
            b"refer" => Self::Refer {
                address: words.peer()?,
            },
            b"unrefer" => Self::Unrefer {
                address: words.peer()?,
            },
            b"stats" => Self::Stats,
            _ => Self::Quit,
        };
        match words.rest {
            [] => Ok(command),
            rest => Err(words.wanted(&format!("{} is too much", lossy(rest)))),
        }
    }
}

const ANA_STATES: [(&str, AnaState); 5] = [
    ("optimized", AnaState::Optimized),
    ("non-optimized", AnaState::NonOptimized),
    ("inaccessible", AnaState::Inaccessible),
    ("persistent-loss", AnaState::PersistentLoss),
    ("change", AnaState::Change),
];

/// The words of a command behind its name.
struct Words<'a> {
    usage: &'static str,
    rest: &'a [u8],
}

impl Words<'_> {
    fn wanted(&self, text: &str) -> String {
        format!("{text}; {:?} is wanted", self.usage)
    }

    fn next(&mut self, what: &str) -> Result<String, String> {
        let (word, rest) = split_word(self.rest);
        self.rest = rest;
        if word.is_empty() {
            return Err(self.wanted(&format!("{what} is missing")));
        }
        Ok(String::from_utf8_lossy(word).into_owned())
    }

    fn number(&mut self, what: &str) -> Result<u32, String> {
        let text = self.next(what)?;
        match text.parse() {
            Ok(number) if number != 0 && number != u32::MAX => Ok(number),
            _ => Err(self.wanted(&format!(
                "{what} {} is no number from 1 to 4294967294",
                quoted(&text)
            ))),
        }
    }

    fn nsid(&mut self) -> Result<u32, String> {
        self.number("NSID")
    }

    fn one_of<T: Copy>(&mut self, values: &[(&str, T)]) -> Result<T, String> {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        let names = names.join("|");
        let text = self.next(&names)?;
        values
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| self.wanted(&format!("{} is none of {names}", quoted(&text))))
    }

    fn address(&mut self) -> Result<SocketAddr, String> {
        let text = self.next("ADDR:PORT")?;
        self.read_address(&text)
    }

    fn read_address(&self, text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| {
            self.wanted(&format!(
                "{} is no address such as 192.0.2.7:4420 or [2001:db8::7]:4420",
                quoted(text)
            ))
        })
    }

    /// An address that hosts can connect to.
    fn peer(&mut self) -> Result<SocketAddr, String> {
        let address = self.address()?;
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(self.wanted(&format!(
                "\"{address}\" is nothing to connect to: an address of one machine, and a port \
                 from 1 to 65535"
            )));
        }
        Ok(address)
    }

    fn port_or_all(&mut self) -> Result<Option<SocketAddr>, String> {
        let text = self.next("ADDR:PORT|all")?;
        if text == "all" {
            return Ok(None);
        }
        self.read_address(&text).map(Some)
    }

    fn host_or_any(&mut self) -> Result<Option<String>, String> {
        let text = self.next("any|HOST")?;
        Ok((text != "any").then_some(text))
    }

    fn hosts(&mut self) -> Result<Option<Vec<String>>, String> {
        let first = self.next("all|none|HOST...")?;
        let mut hosts = Vec::new();
        match &*first {
            "all" => return Ok(None),
            "none" => return Ok(Some(hosts)),
            _ => hosts.push(first),
        }
        while !self.rest.is_empty() {
            hosts.push(self.next("HOST")?);
        }
        Ok(Some(hosts))
    }
}

/// The first word and what follows it, without the blanks around either.
fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii();
    let end = text
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (word, rest.trim_ascii())
}

/// What an operator has written, as an error names it.
pub(super) fn lossy(value: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(value))
}

/// A command and its arguments.
fn usage(commands: &[(&'static str, &str)], name: &[u8]) -> Option<&'static str> {
    commands
        .iter()
        .map(|(usage, _)| *usage)
        .find(|usage| name_of(usage).as_bytes() == name)
}

fn name_of(usage: &str) -> &str {
    usage.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "nqn.2014-08.org.example:host";

    #[test]
    fn commands() {
        let parse = |line: &str| Command::parse(line.as_bytes()).unwrap();
        let address = "[::1]:4421".parse().unwrap();
        let host = || HOST.to_owned();
        let cases = [
            (
                "add 3 ramdisk:1m".to_owned(),
                Command::Add {
                    nsid: 3,
                    device: Device::RamDisk { bytes: 1 << 20 },
                },
            ),
            (
                "  add\t4   /a b/c ".to_owned(),
                Command::Add {
                    nsid: 4,
                    device: Device::File("/a b/c".into()),
                },
            ),
            ("remove 3".to_owned(), Command::Remove { nsid: 3 }),
            (
                "resize 4294967294".to_owned(),
                Command::Resize { nsid: 0xffff_fffe },
            ),
            (
                "read-only 1 on".to_owned(),
                Command::ReadOnly { nsid: 1, on: true },
            ),
            (
                "visible 1 all".to_owned(),
                Command::Visible {
                    nsid: 1,
                    hosts: None,
                },
            ),
            (
                "visible 1 none".to_owned(),
                Command::Visible {
                    nsid: 1,
                    hosts: Some(vec![]),
                },
            ),
            (
                format!("visible 1 {HOST} {HOST}2"),
                Command::Visible {
                    nsid: 1,
                    hosts: Some(vec![host(), format!("{HOST}2")]),
                },
            ),
            (
                "group 1 7".to_owned(),
                Command::Group {
                    nsid: 1,
                    anagrpid: 7,
                },
            ),
            (
                "ana [::1]:4421 7 persistent-loss".to_owned(),
                Command::Ana {
                    port: Some(address),
                    anagrpid: 7,
                    state: AnaState::PersistentLoss,
                },
            ),
            (
                "ana all 1 change".to_owned(),
                Command::Ana {
                    port: None,
                    anagrpid: 1,
                    state: AnaState::Change,
                },
            ),
            ("allow any".to_owned(), Command::Allow { host: None }),
            (
                format!("allow {HOST}"),
                Command::Allow { host: Some(host()) },
            ),
            (
                format!("forbid {HOST}"),
                Command::Forbid { host: Some(host()) },
            ),
            ("listen [::1]:4421".to_owned(), Command::Listen { address }),
            (
                "unlisten [::1]:4421".to_owned(),
                Command::Unlisten { address },
            ),
            ("refer [::1]:4421".to_owned(), Command::Refer { address }),
            (
                "unrefer [::1]:4421".to_owned(),
                Command::Unrefer { address },
            ),
            ("stats".to_owned(), Command::Stats),
            ("quit".to_owned(), Command::Quit),
        ];
        for (usage, _) in USAGE {
            let name = name_of(usage);
            assert!(cases.iter().any(|(line, _)| line.trim().starts_with(name)));
            assert!(help().contains(usage));
        }
        for (line, command) in cases {
            assert_eq!(parse(&line), command, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let wrong = [
            ("list", "one of add, remove, resize"),
            ("", "is wanted"),
            ("quit now", "\"now\" is too much; \"quit\" is wanted"),
            ("add", "NSID is missing; \"add NSID DEVICE\" is wanted"),
            ("add 1", "DEVICE is missing"),
            ("add x ramdisk:1m", "NSID \"x\""),
            ("add 0 ramdisk:1m", "NSID \"0\""),
            ("add 1 ramdisk:?", "\"ramdisk:?\": a size such as"),
            ("add 1 ramdisk:1m\0", r#""ramdisk:1m\0": a size such as"#),
            ("remove", "NSID is missing"),
            ("remove 4294967295", "NSID"),
            ("remove -1", "NSID \"-1\" is no number from 1"),
            ("remove 1 2", "too much"),
            ("read-only 1", "on|off is missing"),
            ("read-only 1 yes", "\"yes\" is none of on|off"),
            ("visible 1", "all|none|HOST... is missing"),
            ("visible 1 all x", "too much"),
            ("group 1 0", "ANAGRPID \"0\""),
            (
                "ana 127.0.0.1 1 change",
                "\"127.0.0.1\" is no address such as",
            ),
            ("ana all 1 gone", "none of optimized|non-optimized|"),
            ("allow", "any|HOST is missing"),
            ("listen 4420", "\"4420\" is no address"),
            ("refer", "ADDR:PORT is missing; \"refer ADDR:PORT\""),
            ("refer 127.0.0.1:0", "\"127.0.0.1:0\" is nothing to connect"),
            ("refer [::]:8009", "\"[::]:8009\" is nothing to connect"),
        ];
        for (line, says) in wrong {
            let text = Command::parse(line.as_bytes()).unwrap_err();
            assert!(
                text.contains(says) && !text.contains('\n'),
                "{line}: {text}"
            );
        }
        Command::parse(b"\xff\xfe").unwrap_err();
        for long in [
            "",
            "add 1 ramdisk:",
            "remove ",
            "refer ",
            "read-only 1 ",
            "quit ",
        ] {
            let text = Command::parse(format!("{long}{:09999}", 0).as_bytes()).unwrap_err();
            assert!(text.len() < 400, "{text}");
        }
    }

    #[test]
    fn what_asks_a_daemon_that_serves_is_not_done_before() {
        let refused = |line: &str| Command::parse_first(line.as_bytes()).unwrap_err();
        for line in ["stats", "quit"] {
            Command::parse(line.as_bytes()).unwrap();
            assert!(refused(line).contains("no sense before"));
        }
        for line in ["", "nonsense"] {
            let text = refused(line);
            assert!(
                text.contains("unrefer") && !text.contains("stats"),
                "{text}"
            );
        }
        Command::parse_first(b"remove 1").unwrap();
    }
}
