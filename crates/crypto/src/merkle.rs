//! Merkle trees on BLAKE3 (`docs/protocol.md` section 1), in the shape of RFC 9162: split at the largest power of two.
//!
//! Leaves and nodes are hashed under the tree's label with different prefixes, so that a node can't pass for a leaf or a
//! leaf of one kind of tree for one of another.

use crate::CryptoError;
use crate::kdf::{Hasher, Label};

fn leaf_hash(label: Label, leaf: &[u8]) -> [u8; 32] {
    Hasher::new(label).update(&[0]).update(leaf).finalize()
}

fn node_hash(label: Label, left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Hasher::new(label).update(&[1]).update(left).update(right).finalize()
}

/// A tree over leaves in a fixed order, with all its levels.
pub struct Tree {
    label: Label,
    /// From the leaves' hashes up to the root; a node without a sibling is promoted unchanged.
    levels: Vec<Vec<[u8; 32]>>,
}

/// Makes a tree level by level, so that its nodes can be kept elsewhere than in memory: 32 bytes a leaf are held, and half as many
/// while the levels are made.
pub struct Builder {
    label: Label,
    hashes: Vec<[u8; 32]>,
}

impl Builder {
    /// A tree without leaves.
    pub fn new(label: Label) -> Self {
        Self { label, hashes: Vec::new() }
    }

    /// Adds the next leaf.
    pub fn push(&mut self, leaf: &[u8]) {
        self.hashes.push(leaf_hash(self.label, leaf));
    }

    /// Number of leaves.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Hands out the levels, from the leaves' hashes up to the root, and returns the root.
    ///
    /// # Errors
    /// The first error of `level`.
    pub fn finish<E>(self, mut level: impl FnMut(Vec<[u8; 32]>) -> Result<(), E>) -> Result<[u8; 32], E> {
        let mut last = self.hashes;
        while last.len() > 1 {
            let next = last
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => node_hash(self.label, left, right),
                    _ => pair[0],
                })
                .collect();
            level(std::mem::replace(&mut last, next))?;
        }
        let root = last.first().copied();
        level(last)?;
        Ok(root.unwrap_or_else(|| root_of_none(self.label)))
    }
}

fn root_of_none(label: Label) -> [u8; 32] {
    Hasher::new(label).update(&[2]).finalize()
}

/// Numbers of the nodes on the path of leaf `index` in a tree of `size` leaves, from the leaf's sibling upwards. Nodes are numbered
/// from 0, level by level as [`Builder::finish`] hands them out. Empty for a leaf beyond the end.
pub fn path_nodes(size: u64, index: u64) -> Vec<u64> {
    let (mut nodes, mut at, mut width, mut before) = (Vec::new(), index, size, 0);
    while index < size && width > 1 {
        if at ^ 1 < width {
            nodes.push(before + (at ^ 1));
        }
        (before, at, width) = (before + width, at / 2, width.div_ceil(2));
    }
    nodes
}

impl Tree {
    /// Hashes `leaves` under `label`.
    pub fn new<L: AsRef<[u8]>>(label: Label, leaves: impl IntoIterator<Item = L>) -> Self {
        let hashes = leaves.into_iter().map(|leaf| leaf_hash(label, leaf.as_ref())).collect();
        let mut levels = Vec::new();
        let made = Builder { label, hashes }.finish(|level| {
            levels.push(level);
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(_) = made;
        Self { label, levels }
    }

    /// The root, 32 bytes; for no leaves, the labelled hash of the prefix 2.
    pub fn root(&self) -> [u8; 32] {
        let top = self.levels.last().and_then(|level| level.first());
        top.copied().unwrap_or_else(|| root_of_none(self.label))
    }

    /// Number of leaves.
    pub fn len(&self) -> usize {
        self.levels[0].len()
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sibling hashes from leaf `index` upwards; `None` beyond the end.
    pub fn path(&self, index: usize) -> Option<Vec<[u8; 32]>> {
        if index >= self.len() {
            return None;
        }
        Some(self.levels.iter().enumerate().filter_map(|(up, level)| level.get((index >> up) ^ 1).copied()).collect())
    }
}

/// Checks that `leaf` is the leaf number `index` of the tree of `size` leaves with this `root`.
///
/// # Errors
/// [`CryptoError::MerklePath`].
pub fn verify(
    label: Label,
    root: &[u8; 32],
    size: u64,
    index: u64,
    leaf: &[u8],
    path: &[[u8; 32]],
) -> Result<(), CryptoError> {
    if index >= size {
        return Err(CryptoError::MerklePath);
    }
    let mut hash = leaf_hash(label, leaf);
    let mut path = path.iter();
    let (mut at, mut last) = (index, size - 1);
    while last > 0 {
        // The last node of a level with an odd number of nodes is promoted.
        if at % 2 == 1 || at != last {
            let sibling = path.next().ok_or(CryptoError::MerklePath)?;
            hash = if at % 2 == 1 { node_hash(label, sibling, &hash) } else { node_hash(label, &hash, sibling) };
        }
        (at, last) = (at / 2, last / 2);
    }
    if path.next().is_none() && hash == *root { Ok(()) } else { Err(CryptoError::MerklePath) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kdf::label::{TREE_ADVERTS, TREE_ROSTER};

    #[test]
    fn every_leaf_of_every_small_tree_verifies_and_nothing_else_does() {
        for size in 1..if cfg!(miri) { 6 } else { 70u64 } {
            let leaves: Vec<Vec<u8>> = (0..size).map(|i| vec![i as u8; 3]).collect();
            let tree = Tree::new(TREE_ROSTER, &leaves);
            let root = tree.root();
            let (mut builder, mut nodes) = (Builder::new(TREE_ROSTER), Vec::new());
            leaves.iter().for_each(|leaf| builder.push(leaf));
            let built = builder.finish(|level| {
                nodes.extend(level);
                Ok::<_, ()>(())
            });
            assert_eq!(built, Ok(root));
            for index in 0..size {
                let leaf = &leaves[index as usize];
                let path = tree.path(index as usize).unwrap();
                let from_nodes: Vec<_> = path_nodes(size, index).iter().map(|&node| nodes[node as usize]).collect();
                assert_eq!(from_nodes, path, "{index} of {size}");
                assert_eq!(verify(TREE_ROSTER, &root, size, index, leaf, &path), Ok(()), "{index} of {size}");
                assert!(verify(TREE_ADVERTS, &root, size, index, leaf, &path).is_err());
                assert!(verify(TREE_ROSTER, &root, size, index, b"other", &path).is_err());
                assert!(verify(TREE_ROSTER, &root, size, (index + 1) % size, leaf, &path).is_err() || size == 1);
                assert!(verify(TREE_ROSTER, &root, size, size, leaf, &path).is_err());
                let longer = [path.as_slice(), &[[0; 32]]].concat();
                assert!(verify(TREE_ROSTER, &root, size, index, leaf, &longer).is_err());
                if let Some((_, shorter)) = path.split_last() {
                    assert!(verify(TREE_ROSTER, &root, size, index, leaf, shorter).is_err());
                }
            }
            assert_eq!(tree.path(size as usize), None);
            assert_eq!(path_nodes(size, size), []);
        }
    }

    #[test]
    fn the_empty_tree_has_a_root_of_its_own() {
        let none: [&[u8]; 0] = [];
        assert_ne!(Tree::new(TREE_ROSTER, none).root(), Tree::new(TREE_ROSTER, [b""]).root());
        assert_eq!(Tree::new(TREE_ROSTER, none).path(0), None);
    }
}
