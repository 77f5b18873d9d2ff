//! Many devices in one process: public data that they all hold, in memory once.
//!
//! Each device checks what it is shown on its own; only afterwards may equal values share their memory. It changes no
//! result. A device on its own has no use for this.

use std::sync::{Arc, OnceLock};

use unisono_crypto::sign::VerifyingKey;

use super::share::Shared;
use crate::cohort::Advert;
use crate::graph::Graph;

/// Keys of a member, as its neighbours know them.
type Keys = (Arc<Advert>, Option<Arc<VerifyingKey>>);

/// The public keys of one cohort's members, and its graph.
pub struct KeyPool {
    graph: OnceLock<Arc<Graph>>,
    /// By cohort index.
    members: Vec<OnceLock<Keys>>,
}

impl KeyPool {
    /// An empty pool for a cohort of at most `clients`.
    pub fn new(clients: usize) -> Self {
        Self { graph: OnceLock::new(), members: (0..clients).map(|_| OnceLock::new()).collect() }
    }
}

impl Shared {
    /// Replaces what this state knows about its neighbours and the graph by the pool's copies, where they are equal. The
    /// first device's values become the pool's.
    pub fn share_memory(&mut self, pool: &KeyPool) {
        let graph = pool.graph.get_or_init(|| self.cohort.graph.clone());
        if *graph == self.cohort.graph {
            self.cohort.graph = graph.clone();
        }
        for neighbour in &mut self.neighbours {
            let Some(slot) = pool.members.get(neighbour.index as usize) else { continue };
            let (advert, identity) = slot.get_or_init(|| (neighbour.advert.clone(), neighbour.identity.clone()));
            if *advert == neighbour.advert && *identity == neighbour.identity {
                neighbour.advert = advert.clone();
                neighbour.identity = identity.clone();
            }
        }
    }
}
