//! Which endpoint is next. Nothing here waits or locks: a turn of round robin and the owners of hash slots are made beforehand, and what
//! changes while requests are under way is atomic.

use super::{Endpoint, policy::Policy};
use std::sync::{Arc, atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed}};
use weir_config::kong::Algorithm;
use xxhash_rust::xxh3::xxh3_64;

/// An endpoint with its weight, which is above 0.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) weight: u32,
    /// Names it in hashes: the same in every process.
    seed: u64,
}

/// The endpoints among which is chosen.
pub(super) struct Balancer {
    algorithm: Algorithm,
    pub(super) members: Vec<Member>,
    /// A turn: members in the order of smooth weighted round robin.
    turn: Vec<u32>,
    next: AtomicUsize,
    /// The place in the turn of those whose own turn fell on an endpoint that is out: apart from `next`, or the one that follows it in
    /// the turn would get all of its share.
    detour: AtomicUsize,
    /// Who owns a slot, plus 1; 0: not yet found out.
    owners: Vec<AtomicU32>,
}

impl Balancer {
    pub(super) fn new(algorithm: Algorithm, endpoints: Vec<(Arc<Endpoint>, u32)>, slots: usize) -> Balancer {
        let member = |(endpoint, weight): (Arc<Endpoint>, u32)| Member { seed: xxh3_64(endpoint.name.as_bytes()), endpoint, weight };
        let members: Vec<Member> = endpoints.into_iter().filter(|(_, w)| *w > 0).map(member).collect();
        let slots = if algorithm == Algorithm::ConsistentHashing && members.len() > 1 { slots } else { 0 };
        Balancer {
            algorithm,
            turn: turn(&members, slots.max(10_000)),
            members,
            next: AtomicUsize::new(0),
            detour: AtomicUsize::new(0),
            owners: (0..slots).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// The next member by the algorithm among those of which `share` leaves something. `hash`: of what consistent hashing hashes.
    pub(super) fn choose(&self, hash: Option<u64>, policy: &Policy, share: &dyn Fn(&Member) -> f32) -> Option<usize> {
        match (self.algorithm, hash) {
            (Algorithm::LeastConnections, _) => self.least(share),
            (Algorithm::Latency, _) => self.fastest(share),
            (Algorithm::ConsistentHashing, Some(hash)) if !self.owners.is_empty() => self.owner(hash, policy, share),
            _ => self.in_turn(share),
        }
    }

    fn in_turn(&self, share: &dyn Fn(&Member) -> f32) -> Option<usize> {
        let length = self.turn.len();
        if length == 0 {
            return None;
        }
        let at = |place: usize| self.turn[place % length] as usize;
        let accepts = |share: f32| share >= 1.0 || (share > 0.0 && fastrand::f32() < share);
        let own = at(self.next.fetch_add(1, Relaxed));
        if accepts(share(&self.members[own])) {
            return Some(own);
        }
        if !self.members.iter().any(|m| share(m) > 0.0) {
            return None;
        }
        let mut willing = None;
        for _ in 0..length {
            let other = at(self.detour.fetch_add(1, Relaxed));
            let share = share(&self.members[other]);
            if accepts(share) {
                return Some(other);
            }
            if share > 0.0 {
                willing = Some(other);
            }
        }
        willing
    }

    /// The fewest requests under way for its weight; among equals in turn.
    fn least(&self, share: &dyn Fn(&Member) -> f32) -> Option<usize> {
        let count = self.members.len();
        let first = self.next.fetch_add(1, Relaxed);
        let mut best: Option<(usize, f64)> = None;
        for i in (0..count).map(|i| first.wrapping_add(i) % count) {
            let member = &self.members[i];
            let share = share(member);
            if share > 0.0 {
                let load = f64::from(member.endpoint.in_flight.load(Relaxed) + 1) / (f64::from(member.weight) * f64::from(share));
                if best.is_none_or(|(_, least)| load < least) {
                    best = Some((i, load));
                }
            }
        }
        best.map(|(i, _)| i)
    }

    /// The cheaper of two chosen at random: the very cheapest would draw everybody at once.
    fn fastest(&self, share: &dyn Fn(&Member) -> f32) -> Option<usize> {
        let usable: smallvec::SmallVec<[(usize, f32); 16]> =
            self.members.iter().enumerate().map(|(i, m)| (i, share(m))).filter(|(_, s)| *s > 0.0).collect();
        let cost = |(i, share): (usize, f32)| {
            let member = &self.members[i];
            member.endpoint.speed.cost(member.endpoint.in_flight.load(Relaxed)) / (f64::from(member.weight) * f64::from(share))
        };
        match usable.len() {
            0 => None,
            1 => Some(usable[0].0),
            count => {
                let one = fastrand::usize(..count);
                let other = (one + 1 + fastrand::usize(..count - 1)) % count;
                let (one, other) = (usable[one], usable[other]);
                Some(if cost(other) < cost(one) { other.0 } else { one.0 })
            }
        }
    }

    /// How much a member wants a slot: weighted rendezvous hashing. When members come or go, only their own slots change hands.
    fn claim(slot: usize, member: &Member) -> f64 {
        let mut text = [0; 16];
        text[..8].copy_from_slice(&(slot as u64).to_le_bytes());
        text[8..].copy_from_slice(&member.seed.to_le_bytes());
        // From 2^-53 to 1, both taken: the logarithm is finite.
        let drawn = ((xxh3_64(&text) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        f64::from(member.weight) / -drawn.ln().min(-f64::MIN_POSITIVE)
    }

    fn owner(&self, hash: u64, policy: &Policy, share: &dyn Fn(&Member) -> f32) -> Option<usize> {
        let slot = (hash % self.owners.len() as u64) as usize;
        let strongest = |allowed: &dyn Fn(&Member) -> bool| {
            let claims = self.members.iter().enumerate().filter(|(_, m)| allowed(m)).map(|(i, m)| (i, Self::claim(slot, m)));
            claims.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
        };
        let owner = match self.owners[slot].load(Relaxed) {
            0 => {
                let owner = strongest(&|_| true)?;
                self.owners[slot].store(owner as u32 + 1, Relaxed);
                owner
            }
            known => known as usize - 1,
        };
        let bound = (policy.balance > 0).then(|| {
            let (mut weight, mut load) = (0.0, 1.0);
            for member in &self.members {
                weight += f64::from(member.weight) * f64::from(share(member));
                load += f64::from(member.endpoint.in_flight.load(Relaxed));
            }
            load * f64::from(policy.balance.max(100)) / 100.0 / f64::max(weight, 1.0)
        });
        let has_room = |member: &Member| {
            let share = share(member);
            let fits = |each: f64| f64::from(member.endpoint.in_flight.load(Relaxed)) + 1.0 <= (each * f64::from(member.weight) * f64::from(share)).ceil();
            share > 0.0 && bound.is_none_or(fits)
        };
        if has_room(&self.members[owner]) {
            return Some(owner);
        }
        strongest(&has_room).or_else(|| strongest(&|member| share(member) > 0.0))
    }
}

/// One turn of smooth weighted round robin: each step adds its weight to each member, takes the highest and takes the sum from it.
fn turn(members: &[Member], longest: usize) -> Vec<u32> {
    let common = members.iter().fold(0, |a, m| gcd(a, m.weight)).max(1);
    let mut weights: Vec<i64> = members.iter().map(|m| i64::from(m.weight / common)).collect();
    let sum: i64 = weights.iter().sum();
    let longest = longest.max(members.len()) as i64;
    if sum > longest {
        weights.iter_mut().for_each(|w| *w = (*w * longest / sum).max(1));
    }
    let sum: i64 = weights.iter().sum();
    let mut current = vec![0; weights.len()];
    let mut turn = Vec::with_capacity(sum as usize);
    for _ in 0..sum {
        let mut best = 0;
        for i in 0..weights.len() {
            current[i] += weights[i];
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= sum;
        turn.push(best as u32);
    }
    turn
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
