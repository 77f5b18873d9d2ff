//! The communication graph (section 3): a Harary graph on a ring whose order nobody could choose.

use unisono_crypto::kdf::{Label, hash, label};

use crate::degree::Topology;
use crate::ids::CohortId;

/// A cohort's graph. Clients are named by their index in the cohort.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    topology: Topology,
    /// Index of the client at each place of the ring.
    ring: Vec<u32>,
    /// Place of each client on the ring.
    place: Vec<u32>,
    /// The committee, ascending.
    committee: Vec<u32>,
}

/// The indices below `n`, sorted by `hash(label, cohort_id, index)`, index as 32 bits little-endian.
fn permutation(label: Label, cohort: CohortId, n: u32) -> Vec<u32> {
    let mut order: Vec<([u8; 32], u32)> = (0..n).map(|i| (hash(label, &[&cohort.0, &i.to_le_bytes()]), i)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, i)| i).collect()
}

impl Graph {
    /// The graph of a cohort of `n`, and its committee. Ring and committee come from two permutations of the indices, each sorted
    /// by `hash(label, cohort_id, index)` under a label of its own; the committee is the first `s` of the second one.
    pub fn new(cohort: CohortId, n: u32, topology: Topology) -> Self {
        let ring = permutation(label::GRAPH_SEED, cohort, n);
        let mut place = vec![0; n as usize];
        ring.iter().enumerate().for_each(|(at, &i)| place[i as usize] = at as u32);
        let size = topology.committee.map_or(0, |committee| committee.size);
        let mut committee = if size >= n { (0..n).collect() } else { permutation(label::COMMITTEE_SEED, cohort, n) };
        committee.truncate(size as usize);
        committee.sort_unstable();
        Self { topology, ring, place, committee }
    }

    /// The committee of the cohort (section 3), ascending; empty in semi-honest mode.
    pub fn committee(&self) -> &[u32] {
        &self.committee
    }

    /// Place of `u` in [`Self::committee`]; `None` for a client that is not on it.
    pub fn on_committee(&self, u: u32) -> Option<usize> {
        self.committee.binary_search(&u).ok()
    }

    /// Signatures that a certificate needs, tau; 0 in semi-honest mode.
    pub fn quorum(&self) -> usize {
        self.topology.committee.map_or(0, |committee| committee.quorum as usize)
    }

    /// Number of clients.
    pub fn n(&self) -> u32 {
        self.ring.len() as u32
    }

    /// Whether all clients are each other's neighbours.
    pub fn complete(&self) -> bool {
        self.topology.degree >= self.n() - 1
    }

    /// Degree, threshold, window bound and committee.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// Places from `u` forward to `v`.
    fn distance(&self, u: u32, v: u32) -> u32 {
        let n = self.n();
        (self.place[v as usize] + n - self.place[u as usize]) % n
    }

    /// The neighbours of `u`, ascending.
    pub fn neighbours(&self, u: u32) -> Vec<u32> {
        let n = self.n();
        let mut neighbours: Vec<u32> = if self.complete() {
            (0..n).filter(|&v| v != u).collect()
        } else {
            let at = self.place[u as usize];
            let half = self.topology.degree / 2;
            (1..=half).flat_map(|step| [(at + step) % n, (at + n - step) % n]).map(|p| self.ring[p as usize]).collect()
        };
        neighbours.sort_unstable();
        neighbours
    }

    /// Whether `u` and `v` are neighbours.
    pub fn adjacent(&self, u: u32, v: u32) -> bool {
        let distance = self.distance(u, v);
        u != v && (self.complete() || distance.min(self.n() - distance) <= self.topology.degree / 2)
    }

    /// Whether `u` encapsulates to its neighbour `v`, and adds their mask: whether `v` follows `u` on the ring (opposite
    /// places, in a complete graph of even size: the earlier one does).
    pub fn encapsulates(&self, u: u32, v: u32) -> bool {
        let forward = self.distance(u, v);
        let backward = self.n() - forward;
        forward < backward || (forward == backward && self.place[u as usize] < self.place[v as usize])
    }

    /// The first place of the ring whose window of `k / 2` places does not hold more than `a_w` members (section 6); `None` if
    /// all do, or no window is to be checked.
    pub fn thin_window(&self, members: &[bool]) -> Option<u32> {
        let bound = self.topology.window_bound?;
        let n = self.ring.len();
        let width = self.topology.degree as usize / 2;
        let member = |place: usize| u32::from(members[self.ring[place % n] as usize]);
        let mut held: u32 = (0..width).map(member).sum();
        for start in 0..n {
            if held <= bound {
                return Some(start as u32);
            }
            held = held + member(start + width) - member(start);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degree::Committee;

    fn graph(n: u32, degree: u32, window_bound: Option<u32>, id: u8) -> Graph {
        Graph::new(CohortId([id; 32]), n, Topology { degree, threshold: 2, window_bound, committee: None })
    }

    #[test]
    fn every_client_has_k_neighbours_half_of_them_following() {
        let (n, k) = if cfg!(miri) { (7, 4) } else { (100, 22) };
        for (n, k) in [(20, 12), (21, 4), (5, 4), (6, 5), (n, k)] {
            let graph = graph(n, k, None, 7);
            for u in 0..n {
                let neighbours = graph.neighbours(u);
                assert_eq!(neighbours.len(), k as usize);
                assert!(neighbours.windows(2).all(|pair| pair[0] < pair[1]));
                for v in 0..n {
                    assert_eq!(neighbours.contains(&v), graph.adjacent(u, v));
                    assert_eq!(graph.adjacent(u, v), graph.adjacent(v, u));
                    assert!(u == v || graph.encapsulates(u, v) != graph.encapsulates(v, u));
                }
                if k % 2 == 0 {
                    assert_eq!(neighbours.iter().filter(|&&v| graph.encapsulates(u, v)).count(), k as usize / 2);
                }
            }
        }
    }

    #[test]
    fn the_cohort_id_decides_the_ring() {
        assert_eq!(graph(50, 4, None, 1).ring, graph(50, 4, None, 1).ring);
        assert_ne!(graph(50, 4, None, 1).ring, graph(50, 4, None, 2).ring);
    }

    #[test]
    fn the_committee_is_drawn_apart_from_the_ring_and_is_everybody_in_a_complete_graph() {
        let committee = |size| Some(Committee { size, quorum: size / 2 + 1 });
        let drawn = |id, size| {
            let topology = Topology { degree: 4, threshold: 2, window_bound: None, committee: committee(size) };
            Graph::new(CohortId([id; 32]), 50, topology)
        };
        let graph = drawn(1, 12);
        assert_eq!((graph.committee().len(), graph.quorum()), (12, 7));
        assert!(graph.committee().is_sorted_by(|a, b| a < b));
        assert_ne!(graph.committee(), drawn(2, 12).committee());
        let mut first: Vec<u32> = graph.ring[..12].to_vec();
        first.sort_unstable();
        assert_ne!(graph.committee(), first);
        assert!((0..50).all(|u| graph.on_committee(u).is_some() == graph.committee().contains(&u)));
        assert_eq!(drawn(1, 50).committee(), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn an_arc_without_survivors_is_found_wherever_it_is() {
        let graph = graph(20, 8, Some(1), 3);
        assert_eq!(graph.thin_window(&[true; 20]), None);
        for start in 0..20 {
            let mut members = [true; 20];
            (start..start + 3).for_each(|place| members[graph.ring[place % 20] as usize] = false);
            assert!(graph.thin_window(&members).is_some(), "arc at {start}");
            members[graph.ring[start] as usize] = true;
            assert_eq!(graph.thin_window(&members), None, "two dropped at {start} leave two of four");
        }
    }
}
