//! Somebody else's target.

use super::{Blocks, Manner, REGION, Region, Stage};
use crate::run::Place;
use nvmf_host::{ConnectOptions, Controller, Error, Namespace};
use std::net::SocketAddr;

/// Load hosts.
const HOSTS: u16 = 4;
/// Blocks for the probe, and as many for the catalogue.
const OWN: u64 = 1024;

/// Its first namespace is divided among all, and erased.
pub(crate) fn foreign(
    manner: Manner<'_>,
    address: SocketAddr,
    nqn: String,
) -> Result<Stage, String> {
    let said = |err: Error| err.to_string();
    let options = ConnectOptions::new(address, &nqn).map_err(said)?;
    let mut controller = Controller::connect(&options).map_err(said)?;
    let nsids = controller.active_namespaces().map_err(said)?;
    let &nsid = nsids.first().ok_or("there is no namespace")?;
    let namespace = controller.namespace(nsid).map_err(said)?;
    let most = REGION / u64::from(namespace.block_size);
    let blocks = most.min(namespace.blocks.saturating_sub(2 * OWN) / u64::from(HOSTS));
    if blocks < OWN {
        return Err(format!("{namespace:?} is too small"));
    }
    let regions = blocks * u64::from(HOSTS);
    erase(&mut controller, &namespace, regions).map_err(said)?;
    controller.disconnect().map_err(said)?;
    let herd = (1..=HOSTS).map(|number| {
        let region = Region {
            number,
            nsid,
            first: u64::from(number - 1) * blocks,
            blocks,
            volatile: false,
            churned: false,
        };
        manner.member(&nqn, address, &region)
    });
    Ok(Stage {
        herd: herd.collect(),
        recipe: None,
        churned: None,
        namespaces: nsids.iter().copied().collect(),
        stable: vec![nsid],
        probed: Blocks {
            nsid,
            range: regions..regions + OWN,
        },
        reserved: None,
        scratch: Some(Blocks {
            nsid,
            range: regions + OWN..regions + 2 * OWN,
        }),
        block_size: namespace.block_size,
        devices: vec![format!("namespace {nsid} of {nqn}")],
        place: Place {
            address,
            churned: address,
            discovery: address,
            nqn,
        },
        _loop_device: None,
    })
}

/// Models begin with zeroes.
fn erase(controller: &mut Controller, namespace: &Namespace, blocks: u64) -> Result<(), Error> {
    /// At a time.
    const BYTES: usize = 64 << 10;
    controller.set_queue_count(1)?;
    let mut queue = controller.io_queue(1)?;
    let zeroes = [0; BYTES];
    let end = blocks * u64::from(namespace.block_size);
    let mut start = 0;
    while start < end {
        let len = usize::try_from(end - start).unwrap_or(BYTES).min(BYTES);
        queue.write(
            namespace,
            start / u64::from(namespace.block_size),
            &zeroes[..len],
        )?;
        start += len as u64;
    }
    Ok(())
}
