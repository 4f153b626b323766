//! One test for each of the scenarios of docs/reliability.md and of the seed's flaws that concern
//! survival, under its number. Each ends as [`fixture::scenario_with`] says.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
mod fixture;

mod admin;
mod connect;
mod data;
mod handshake;
mod io;
mod life;
mod pdu;
mod seed;
#[cfg(feature = "sim")]
mod stepped;
