//! Limits on connections: what the target refuses or ends for them must have had that many.

use crate::association::Association;
use crate::network::lock;
use crate::rng::Rng;
use crate::world::{Outcome, World};
use nvmf_target::TargetConfig;

/// Limits that are lower than what hosts want. Enough for the fresh host at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub connections: Option<usize>,
    pub per_host: Option<usize>,
    pub unconnected: Option<usize>,
    pub silent_per_address: Option<usize>,
}

/// Connections that there were at a time, at most: of a host, and of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crowd {
    pub of_host: usize,
    pub in_all: usize,
}

impl Limits {
    pub fn draw(rng: &mut Rng) -> Self {
        let mut limit = |low, high| rng.once_in(2).then(|| rng.range(low, high) as usize);
        Self {
            connections: limit(3, 12),
            per_host: limit(2, 8),
            unconnected: limit(1, 3),
            silent_per_address: limit(1, 2),
        }
    }

    pub fn apply(&self, config: &mut TargetConfig) {
        let set = |field: &mut usize, limit: Option<usize>| *field = limit.unwrap_or(*field);
        set(&mut config.max_connections, self.connections);
        set(&mut config.max_connections_per_host, self.per_host);
        set(&mut config.max_unconnected, self.unconnected);
        set(&mut config.max_silent_per_address, self.silent_per_address);
    }

    pub const fn any(&self) -> bool {
        self.connections.is_some()
            || self.per_host.is_some()
            || self.unconnected.is_some()
            || self.silent_per_address.is_some()
    }

    /// Whether a connection that was no queue yet may have made room for another.
    fn may_evict(&self, crowd: Crowd) -> bool {
        let over = |limit: Option<usize>, count| limit.is_some_and(|limit| count > limit);
        over(self.connections, crowd.in_all)
            || over(self.unconnected, crowd.in_all)
            || over(self.silent_per_address, crowd.of_host)
    }
}

impl World {
    /// A connection has come: how many there may be now that the target knows of. What its host has
    /// closed counts until nothing of it can be left.
    pub fn count_connections(&mut self) {
        let host_of = |association: Option<usize>| association.map(|at| self.associations[at].host);
        let hosts: Vec<_> = self.wires.iter().map(|w| host_of(w.association)).collect();
        for it in &mut self.associations {
            let of_host = hosts.iter().filter(|host| **host == Some(it.host)).count();
            it.crowd.of_host = it.crowd.of_host.max(of_host);
            it.crowd.in_all = it.crowd.in_all.max(hosts.len());
        }
    }

    /// Whether the target may have ended a connection of an association to make room for others: not
    /// one that was a queue.
    pub fn may_have_made_room(&self, association: usize) -> bool {
        let it = &self.associations[association];
        let ended = |q: &crate::queue::Queue| !q.joined && lock(&q.link).closed_at.is_some();
        it.queues.iter().any(ended) && self.plan.limits.may_evict(it.crowd)
    }

    /// Whether a host may have had as many queues as it is granted.
    pub fn has_many_queues(&self, association: usize) -> bool {
        let it = &self.associations[association];
        let limit = self.plan.limits.per_host;
        limit.is_some_and(|limit| it.crowd.of_host > limit)
    }

    /// There are no more queues than the limits allow.
    pub fn check_limits(&self) -> Outcome {
        let queues_of = |host: Option<usize>| {
            let associations = self.associations.iter();
            // Discovery controllers are not counted for a host.
            let is_of = |it: &&Association, host| it.host == host && !it.plan.discovery;
            let of = associations.filter(|it| host.is_none_or(|host| is_of(it, host)));
            let there = |q: &&crate::queue::Queue| {
                let link = lock(&q.link);
                q.joined && link.closed_at.is_none() && !link.host_closed
            };
            of.flat_map(|it| &it.queues).filter(there).count()
        };
        let limits = self.plan.limits;
        let mut counts = vec![(limits.connections, queues_of(None))];
        for host in 0..self.plan.hosts.len() {
            counts.push((limits.per_host, queues_of(Some(host))));
        }
        let over = |(limit, count): &(Option<usize>, usize)| limit.is_some_and(|l| *count > l);
        match counts.iter().find(|count| over(count)) {
            Some((limit, count)) => Err(format!("{count} queues, and {limit:?} are the limit")),
            None => Ok(()),
        }
    }
}
