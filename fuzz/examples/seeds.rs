//! Writes the first inputs of `corpus/`: whole conversations between the two machines.
//!
//! `cargo run -p nvmf-fuzz --example seeds`, in the folder `fuzz`.

use nvmf_fuzz::{host_rx, rx};
use std::fs;
use std::io;

/// Host and target exchange streams until nothing more is said. Every round starts anew: machines
/// that are told the same do the same.
fn talk(host: u8, target: u8, commands: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut to_target, mut to_host) = (Vec::new(), Vec::new());
    for _ in 0..32 {
        let before = (to_target.clone(), to_host.clone());
        to_target = host_rx::sent(host, commands, &to_host);
        to_host = rx::sent(target, &to_target);
        if before == (to_target.clone(), to_host.clone()) {
            break;
        }
    }
    (to_target, to_host)
}

/// Name, options of host and target, commands (opcode, length).
type Conversation<'a> = (&'a str, u8, u8, &'a [(u8, u16)]);

fn main() -> io::Result<()> {
    // Opcodes stand for what `rx` does about them; the first is a Connect.
    let [connect, none, write, read, fail, late, abandon, result] = [0x7f, 0, 1, 2, 3, 4, 5, 6];
    let conversations: [Conversation<'_>; 7] = [
        (
            "read",
            0,
            0x60,
            &[(connect, 0), (read, 512), (read, 96), (result, 64)],
        ),
        (
            "no-flow-control",
            0x20,
            0x70,
            &[(connect, 0), (read, 64), (write, 32), (none, 0)],
        ),
        (
            "in-capsule",
            0,
            0x60,
            &[(connect, 0), (write, 64), (fail, 0), (write, 48)],
        ),
        (
            "r2t",
            0x10,
            0x60,
            &[(connect, 0), (write, 600), (late, 0), (abandon, 40)],
        ),
        (
            "header-digest",
            1,
            0x60,
            &[(connect, 0), (read, 32), (write, 32), (write, 520)],
        ),
        (
            "digests",
            3,
            0x60,
            &[(connect, 0), (read, 32), (write, 32), (write, 520)],
        ),
        (
            "padding",
            3 | 3 << 2,
            0x60 | 3 << 2,
            &[(connect, 0), (read, 36), (write, 36)],
        ),
    ];
    fs::create_dir_all("corpus/rx")?;
    fs::create_dir_all("corpus/host_rx")?;
    for (name, host, target, commands) in conversations {
        let count = u8::try_from(commands.len()).map_err(io::Error::other)?;
        let encode =
            |&(opcode, len): &(u8, u16)| [[opcode].as_slice(), &len.to_le_bytes()].concat();
        let commands: Vec<u8> = commands.iter().flat_map(encode).collect();
        let (to_target, to_host) = talk(host, target, &commands);
        let cuts = [7, 65, 1, 30];
        let input = [&[target, 4][..], &cuts, &to_target].concat();
        fs::write(format!("corpus/rx/{name}"), input)?;
        let input = [&[host, count][..], &commands, &[4], &cuts, &to_host].concat();
        fs::write(format!("corpus/host_rx/{name}"), input)?;
    }
    Ok(())
}
