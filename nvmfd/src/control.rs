//! The operator's commands on standard input.

use crate::Failure;
use crate::cli::{Device, one_line};
use crate::devices::Devices;
use nvmf_target::Target;
use std::ffi::OsStr;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;

/// A line of the control language.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Add { nsid: u32, device: Device },
    Remove { nsid: u32 },
    Resize { nsid: u32 },
    Quit,
}

impl Command {
    /// Reads a line: words separated by blanks, the last one to the end of the line. A path may
    /// hold any byte but a newline.
    fn parse(line: &[u8]) -> Result<Self, String> {
        let (word, rest) = split_word(line);
        let (argument, device) = split_word(rest);
        let nsid = || {
            let text = String::from_utf8_lossy(argument);
            match text.parse() {
                Ok(nsid) if nsid != 0 && nsid != u32::MAX => Ok(nsid),
                _ => Err(format!("NSID {text:?}: a number from 1 is wanted")),
            }
        };
        let last = |command| match device {
            [] => Ok(command),
            _ => Err(format!("{:?} is too much", String::from_utf8_lossy(device))),
        };
        match word {
            b"add" if device.is_empty() => Err("add NSID DEVICE: the DEVICE is missing".to_owned()),
            b"add" => {
                let device = Device::parse(OsStr::from_bytes(device).to_owned())?;
                Ok(Self::Add {
                    nsid: nsid()?,
                    device,
                })
            }
            b"remove" => last(Self::Remove { nsid: nsid()? }),
            b"resize" => last(Self::Resize { nsid: nsid()? }),
            b"quit" if rest.is_empty() => Ok(Self::Quit),
            _ => Err(format!(
                "{:?}: add NSID DEVICE, remove NSID, resize NSID or quit is wanted",
                String::from_utf8_lossy(line)
            )),
        }
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

/// Carries out commands until `quit`, the end of the input or an error of either stream. Returns
/// whether it was `quit`.
///
/// # Errors
/// Reading a command or writing an answer has failed.
pub(crate) fn serve(
    mut input: impl BufRead,
    mut output: impl Write,
    devices: &mut Devices,
    target: &Target,
) -> io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let command = Command::parse(line.trim_ascii());
        let quit = command == Ok(Command::Quit);
        match command
            .map_err(Failure::Usage)
            .and_then(|command| run(command, devices, target))
        {
            Ok(answer) => writeln!(output, "ok {answer}")?,
            Err(err) => writeln!(output, "error {}", one_line(&err.to_string()))?,
        }
        output.flush()?;
        if quit {
            return Ok(true);
        }
    }
}

fn run(command: Command, devices: &mut Devices, target: &Target) -> Result<String, Failure> {
    match command {
        Command::Add { nsid, device } => devices.add(target, nsid, &device),
        Command::Remove { nsid } => {
            let closed = devices.remove(target, nsid)?;
            let still = if closed {
                ""
            } else {
                "; its device is still busy"
            };
            Ok(format!("namespace {nsid} removed{still}"))
        }
        Command::Resize { nsid } => devices.resize(nsid),
        Command::Quit => Ok("quitting".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let parse = |line: &str| Command::parse(line.as_bytes());
        let ram = Device::RamDisk { bytes: 1 << 20 };
        assert_eq!(
            parse("add 3 ramdisk:1m"),
            Ok(Command::Add {
                nsid: 3,
                device: ram
            })
        );
        let file = Device::File("/a b/c".into());
        assert_eq!(
            parse("  add\t4   /a b/c "),
            Ok(Command::Add {
                nsid: 4,
                device: file
            })
        );
        assert_eq!(parse("remove 3"), Ok(Command::Remove { nsid: 3 }));
        assert_eq!(
            parse("resize 4294967294"),
            Ok(Command::Resize { nsid: 0xffff_fffe })
        );
        assert_eq!(parse("quit"), Ok(Command::Quit));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let wrong = [
            ("list", "add NSID DEVICE, remove NSID"),
            ("quit now", "is wanted"),
            ("add", "DEVICE is missing"),
            ("add 1", "DEVICE is missing"),
            ("add x ramdisk:1m", "NSID \"x\""),
            ("add 0 ramdisk:1m", "NSID \"0\""),
            ("add 1 ramdisk:?", "a size such as"),
            ("remove", "NSID \"\""),
            ("remove 4294967295", "NSID"),
            ("remove 1 2", "too much"),
        ];
        for (line, says) in wrong {
            let text = Command::parse(line.as_bytes()).unwrap_err();
            assert!(
                text.contains(says) && !text.contains('\n'),
                "{line}: {text}"
            );
        }
        Command::parse(b"\xff\xfe").unwrap_err();
    }
}
