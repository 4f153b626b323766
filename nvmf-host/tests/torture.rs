//! `nvmf-torture` as a program. What it finds out is tested against targets, in nvmf-target and nvmfd.

use std::net::TcpListener;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvmf-torture"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_catalogue_is_listed() {
    let output = run(&["--list"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2 * nvmf_host::torture::cases().len());
    let output = run(&["--list", "--json", "--only", "icreq/twice"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text,
        "{\"number\":21,\"name\":\"icreq/twice\",\"sends\":\"a second ICReq after ICResp\",\
         \"demands\":\"C2HTermReq FES 2 (PDU sequence error); tolerable: the end of the connection\",\
         \"source\":\"NVMe/TCP 1.1, connection establishment\",\"scenarios\":[5]}\n"
    );
}

#[test]
fn where_there_is_no_target_it_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = run(&[&address]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.starts_with(b"nvmf-torture: "));
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&[&address, "--scratch", "3"]).status.code(), Some(2));
}
