//! The owner of each slot of a cluster.

use crate::{Reply, url::Address};

pub(crate) const SLOTS: usize = 16_384;
const NOBODY: u16 = u16::MAX;

/// The owners of slots, and a value for each owner.
///
/// A table of all slots: 32 KB, and a lookup in one step.
pub(crate) struct Slots<N> {
    nodes: Vec<(Address, N)>,
    /// For each slot, the index in `nodes`.
    owners: Box<[u16; SLOTS]>,
}

/// A run of slots with one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    first: usize,
    last: usize,
    owner: Address,
}

impl<N> Slots<N> {
    /// Creates a table of nodes whose slots are not known yet.
    pub(crate) fn new(nodes: impl IntoIterator<Item = (Address, N)>) -> Self {
        Self {
            nodes: nodes.into_iter().collect(),
            owners: Box::new([NOBODY; SLOTS]),
        }
    }

    pub(crate) fn owner(&self, slot: u16) -> Option<&N> {
        let index = *self.owners.get(usize::from(slot))?;
        self.nodes.get(usize::from(index)).map(|(_, node)| node)
    }

    /// Whether every slot has an owner.
    pub(crate) fn is_complete(&self) -> bool {
        !self.owners.contains(&NOBODY)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &N> {
        self.nodes.iter().map(|(_, node)| node)
    }

    pub(crate) fn get(&self, address: &Address) -> Option<&N> {
        let mut nodes = self.nodes.iter();
        nodes.find_map(|(of, node)| (of == address).then_some(node))
    }

    /// Returns the node at an address, made if it is new.
    pub(crate) fn add(&mut self, address: &Address, make: impl FnOnce(&Address) -> N) -> &N {
        let index = self.index(address, make);
        &self.nodes[index].1
    }

    /// Gives one slot to the node at an address.
    pub(crate) fn point(
        &mut self,
        slot: u16,
        address: &Address,
        make: impl FnOnce(&Address) -> N,
    ) -> &N {
        let index = self.index(address, make);
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            *owner = to_u16(index);
        }
        &self.nodes[index].1
    }

    /// Replaces the table with what the cluster reports. Nodes that it does not name are dropped; the others are kept.
    pub(crate) fn install(&mut self, ranges: &[Range], mut make: impl FnMut(&Address) -> N) {
        self.nodes
            .retain(|(address, _)| ranges.iter().any(|range| range.owner == *address));
        self.owners.fill(NOBODY);
        for range in ranges {
            let index = to_u16(self.index(&range.owner, &mut make));
            if let Some(owners) = self.owners.get_mut(range.first..=range.last) {
                owners.fill(index);
            }
        }
    }

    fn index(&mut self, address: &Address, make: impl FnOnce(&Address) -> N) -> usize {
        let known = self.nodes.iter().position(|(of, _)| of == address);
        known.unwrap_or_else(|| {
            let node = make(address);
            self.nodes.push((address.clone(), node));
            self.nodes.len() - 1
        })
    }
}

impl Range {
    /// Parses the reply of the node at `asked` to CLUSTER SLOTS; `None` if it is malformed.
    pub(crate) fn all(reply: Reply, asked: &Address) -> Option<Vec<Self>> {
        let ranges = array(reply)?.into_iter();
        ranges.map(|range| Self::one(range, asked)).collect()
    }

    /// `[first, last, [host, port, ..], replicas ..]`
    fn one(reply: Reply, asked: &Address) -> Option<Self> {
        let mut parts = array(reply)?.into_iter();
        let first = integer(parts.next()?)?;
        let last = integer(parts.next()?)?;
        let mut primary = array(parts.next()?)?.into_iter();
        let host = primary.next()?.into_bytes().ok()?.unwrap_or_default();
        let port = integer(primary.next()?)?;
        let owner = asked.beside(str::from_utf8(&host).ok()?, port);
        let valid = first <= last && usize::from(last) < SLOTS;
        valid.then(|| Self {
            first: first.into(),
            last: last.into(),
            owner,
        })
    }
}

fn array(reply: Reply) -> Option<Vec<Reply>> {
    match reply {
        Reply::Array(items) => Some(items),
        _ => None,
    }
}

fn integer(reply: Reply) -> Option<u16> {
    reply.into_integer().ok()?.try_into().ok()
}

fn to_u16(index: usize) -> u16 {
    // A cluster has at most about a thousand nodes; slots of further ones would have no owner.
    u16::try_from(index).unwrap_or(NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        Address {
            host: "here".into(),
            port,
        }
    }

    fn range(first: usize, last: usize, port: u16) -> Range {
        Range {
            first,
            last,
            owner: at(port),
        }
    }

    fn reply(first: i64, last: i64, host: &'static str, port: i64) -> Reply {
        let primary = vec![Reply::Bytes(host.into()), Reply::Integer(port)];
        let parts = vec![
            Reply::Integer(first),
            Reply::Integer(last),
            Reply::Array(primary),
        ];
        Reply::Array(parts)
    }

    #[test]
    fn slots_belong_to_their_reported_owners_and_the_rest_to_none() {
        let mut slots = Slots::new([(at(1), "first")]);
        assert_eq!(slots.owner(0), None);
        slots.install(&[range(0, 99, 1), range(100, 16_000, 2)], |_| "made");
        assert_eq!(
            (slots.owner(99), slots.owner(100)),
            (Some(&"first"), Some(&"made"))
        );
        assert_eq!(
            (slots.owner(16_000), slots.owner(16_001)),
            (Some(&"made"), None)
        );
        assert!(!slots.is_complete());
        slots.install(&[range(0, 16_383, 2)], |_| "again");
        assert!(slots.is_complete());
        assert_eq!(slots.owner(16_383), Some(&"made"));
    }

    #[test]
    fn nodes_that_are_no_longer_named_are_dropped_and_the_others_kept() {
        let mut slots = Slots::new([(at(1), 1), (at(2), 2)]);
        slots.install(&[range(0, 1, 2), range(2, 3, 3)], |_| 9);
        assert_eq!(slots.nodes().collect::<Vec<_>>(), [&2, &9]);
        assert_eq!((slots.owner(0), slots.owner(3)), (Some(&2), Some(&9)));
    }

    #[test]
    fn one_slot_can_be_moved_alone() {
        let mut slots = Slots::new([(at(1), 1)]);
        slots.install(&[range(0, 16_383, 1)], |_| 0);
        assert_eq!(slots.point(5, &at(2), |_| 2), &2);
        assert_eq!(
            (slots.owner(4), slots.owner(5), slots.owner(6)),
            (Some(&1), Some(&2), Some(&1))
        );
    }

    #[test]
    fn reads_the_reply_of_a_node() {
        let said = Reply::Array(vec![reply(0, 5, "there", 7000), reply(6, 16_383, "", 7001)]);
        let ranges = Range::all(said, &at(1)).unwrap();
        let there = Address {
            host: "there".into(),
            port: 7000,
        };
        assert_eq!(ranges[0].owner, there);
        assert_eq!(ranges[1], range(6, 16_383, 7001));
    }

    #[test]
    fn a_reply_that_is_not_a_list_of_slots_is_not_read() {
        for wrong in [
            Reply::Nil,
            Reply::Array(vec![Reply::Nil]),
            Reply::Array(vec![reply(0, 16_384, "a", 1)]),
            Reply::Array(vec![reply(5, 4, "a", 1)]),
            Reply::Array(vec![reply(-1, 4, "a", 1)]),
            Reply::Array(vec![reply(0, 4, "a", 65_536)]),
        ] {
            assert_eq!(Range::all(wrong, &at(1)), None);
        }
    }
}
