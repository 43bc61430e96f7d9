//! The state of a room as an immutable persistent tree, kept in small nodes under small keys.
//!
//! A node is never changed: an update copies the path to what changed and shares the rest, so
//! every event can name the whole state before it by one root, and comparing two states looks only
//! at what differs. Under a top node hang two trees, one of the members and one of everything
//! else. A tree branches 16 ways on the bits of a hash of type and state key; up to 32 entries
//! stay together in a leaf. The shape depends on the entries only, not on the order they came in.
//!
//! Not here: storage (the caller hands out nodes by id and keeps the new ones), and what the
//! entries mean.

use std::{collections::HashMap, sync::Arc};

use crate::event::EventNr;

/// More entries than this split a leaf.
const LEAF_MAX: usize = 32;
/// Nibbles in a hash: no tree is deeper.
const MAX_DEPTH: u32 = 32;

/// Where an entry lives: a truncated SHA-256 of type and state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    part: Part,
    hash: u128,
}

impl Key {
    pub fn new(kind: &str, state_key: &str) -> Self {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        // The length makes ("ab", "c") and ("a", "bc") differ.
        digest.update(&(kind.len() as u64).to_be_bytes());
        digest.update(kind.as_bytes());
        digest.update(state_key.as_bytes());
        let digest = digest.finish();
        let hash = digest.as_ref().iter().take(16).fold(0, |hash, byte| hash << 8 | *byte as u128);
        let part = if kind == "m.room.member" { Part::Members } else { Part::Others };
        Self { part, hash }
    }

    pub fn member(user_id: &ruma::UserId) -> Self {
        Self::new("m.room.member", user_id.as_str())
    }

    /// Which of the two trees the entry is in.
    pub fn part(self) -> Part {
        self.part
    }
}

/// One of the two trees, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Members,
    Others,
}

/// Which entries to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    All,
    Only(Part),
}

impl Select {
    fn takes(self, part: Part) -> bool {
        self == Self::All || self == Self::Only(part)
    }
}

/// The key of a node: the number it was written with and its place among the nodes of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    pub nr: EventNr,
    pub idx: u16,
}

/// A whole state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Root(pub Option<NodeId>);

impl Root {
    pub const EMPTY: Self = Self(None);

    /// The root with its number made real, given the base of the commit.
    pub fn resolve(self, base: u64) -> Self {
        Self(self.0.map(|id| NodeId { nr: id.nr.resolve(base), idx: id.idx }))
    }
}

/// Takes the encoding of a node. Numbers come separately because they may still be pending.
pub trait Sink {
    fn bytes(&mut self, bytes: &[u8]);
    /// Eight bytes, big endian.
    fn nr(&mut self, nr: EventNr);
}

impl Sink for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn nr(&mut self, nr: EventNr) {
        self.extend_from_slice(&nr.0.to_be_bytes());
    }
}

/// Hands out nodes. They never change, so they can be cached for ever.
pub trait Nodes {
    type Error: From<Corrupt>;

    fn node(&self, id: NodeId) -> Result<Arc<Node>, Self::Error>;
}

impl<N: Nodes> Nodes for &N {
    type Error = N::Error;

    fn node(&self, id: NodeId) -> Result<Arc<Node>, Self::Error> {
        (**self).node(id)
    }
}

/// A stored node that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt state node: {0}")]
pub struct Corrupt(pub &'static str);

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node(Shape);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    /// The root: the two trees and how many entries each has.
    Top { members: Option<Subtree>, others: Option<Subtree> },
    /// `children` in the order of their nibble; `bitmap` says which nibbles there are.
    Branch { len: u32, bitmap: u16, children: Vec<NodeId> },
    /// Entries in the order of their hash.
    Leaf(Vec<Entry>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subtree {
    id: NodeId,
    len: u32,
}

type Entry = (u128, EventNr);

const TAG_TOP: u8 = 1;
const TAG_BRANCH: u8 = 2;
const TAG_LEAF: u8 = 3;

impl Node {
    /// Write the node in its stored form.
    pub fn encode(&self, sink: &mut impl Sink) {
        match &self.0 {
            Shape::Top { members, others } => {
                let flags = u8::from(members.is_some()) | u8::from(others.is_some()) << 1;
                sink.bytes(&[TAG_TOP, flags]);
                for tree in [members, others].into_iter().flatten() {
                    encode_id(sink, tree.id);
                    sink.bytes(&tree.len.to_be_bytes());
                }
            }
            Shape::Branch { len, bitmap, children } => {
                sink.bytes(&[TAG_BRANCH]);
                sink.bytes(&len.to_be_bytes());
                sink.bytes(&bitmap.to_be_bytes());
                for child in children {
                    encode_id(sink, *child);
                }
            }
            Shape::Leaf(entries) => {
                sink.bytes(&[TAG_LEAF]);
                for (hash, nr) in entries {
                    sink.bytes(&hash.to_be_bytes());
                    sink.nr(*nr);
                }
            }
        }
    }

    /// Read a node from its stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader(bytes);
        let node = match u8::from_be_bytes(reader.take()?) {
            TAG_TOP => decode_top(&mut reader)?,
            TAG_BRANCH => decode_branch(&mut reader)?,
            TAG_LEAF => decode_leaf(&mut reader)?,
            _ => return Err(Corrupt("unknown kind")),
        };
        if reader.0.is_empty() { Ok(Self(node)) } else { Err(Corrupt("trailing bytes")) }
    }

    /// The node with all its numbers made real, given the base of the commit.
    pub fn resolve(&self, base: u64) -> Self {
        let id = |id: NodeId| NodeId { nr: id.nr.resolve(base), idx: id.idx };
        let tree = |tree: Subtree| Subtree { id: id(tree.id), len: tree.len };
        Self(match &self.0 {
            Shape::Top { members, others } => Shape::Top { members: members.map(tree), others: others.map(tree) },
            Shape::Branch { len, bitmap, children } => {
                Shape::Branch { len: *len, bitmap: *bitmap, children: children.iter().copied().map(id).collect() }
            }
            Shape::Leaf(entries) => Shape::Leaf(entries.iter().map(|(hash, nr)| (*hash, nr.resolve(base))).collect()),
        })
    }

    fn tree(&self, part: Part) -> Result<Option<Subtree>, Corrupt> {
        match (&self.0, part) {
            (Shape::Top { members, .. }, Part::Members) => Ok(*members),
            (Shape::Top { others, .. }, Part::Others) => Ok(*others),
            _ => Err(Corrupt("a root that is no top node")),
        }
    }
}

fn encode_id(sink: &mut impl Sink, id: NodeId) {
    sink.nr(id.nr);
    sink.bytes(&id.idx.to_be_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Corrupt("too short"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn id(&mut self) -> Result<NodeId, Corrupt> {
        let nr = EventNr(u64::from_be_bytes(self.take()?));
        Ok(NodeId { nr, idx: u16::from_be_bytes(self.take()?) })
    }
}

fn decode_top(reader: &mut Reader<'_>) -> Result<Shape, Corrupt> {
    let flags = u8::from_be_bytes(reader.take()?);
    if flags & !3 != 0 {
        return Err(Corrupt("unknown flags"));
    }
    let mut tree = |flag: u8| -> Result<Option<Subtree>, Corrupt> {
        if flags & flag == 0 {
            return Ok(None);
        }
        let id = reader.id()?;
        Ok(Some(Subtree { id, len: u32::from_be_bytes(reader.take()?) }))
    };
    Ok(Shape::Top { members: tree(1)?, others: tree(2)? })
}

fn decode_branch(reader: &mut Reader<'_>) -> Result<Shape, Corrupt> {
    let len = u32::from_be_bytes(reader.take()?);
    let bitmap = u16::from_be_bytes(reader.take()?);
    let children = (0..bitmap.count_ones()).map(|_| reader.id()).collect::<Result<_, _>>()?;
    Ok(Shape::Branch { len, bitmap, children })
}

fn decode_leaf(reader: &mut Reader<'_>) -> Result<Shape, Corrupt> {
    if reader.0.len() > LEAF_MAX * 24 {
        return Err(Corrupt("leaf too large"));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(reader.0.len() / 24);
    while !reader.0.is_empty() {
        let hash = u128::from_be_bytes(reader.take()?);
        let nr = EventNr(u64::from_be_bytes(reader.take()?));
        if entries.last().is_some_and(|(last, _)| *last >= hash) {
            return Err(Corrupt("leaf out of order"));
        }
        entries.push((hash, nr));
    }
    Ok(Shape::Leaf(entries))
}

fn nibble(hash: u128, depth: u32) -> u32 {
    (hash >> (124 - 4 * depth)) as u32 & 15
}

fn child_index(bitmap: u16, nibble: u32) -> Option<usize> {
    let bit = 1u16 << nibble;
    (bitmap & bit != 0).then(|| (bitmap & (bit - 1)).count_ones() as usize)
}

/// The event that is the state under a key, if there is one.
pub fn get<N: Nodes>(nodes: &N, root: Root, key: Key) -> Result<Option<EventNr>, N::Error> {
    let Some(top) = root.0 else { return Ok(None) };
    let Some(tree) = nodes.node(top)?.tree(key.part)? else { return Ok(None) };
    let mut id = tree.id;
    for depth in 0..=MAX_DEPTH {
        let node = nodes.node(id)?;
        match &node.0 {
            Shape::Leaf(entries) => {
                let found = entries.binary_search_by_key(&key.hash, |(hash, _)| *hash);
                return Ok(found.ok().and_then(|at| entries.get(at)).map(|(_, nr)| *nr));
            }
            Shape::Branch { bitmap, children, .. } if depth < MAX_DEPTH => {
                let at = child_index(*bitmap, nibble(key.hash, depth));
                let Some(child) = at.and_then(|at| children.get(at)) else { return Ok(None) };
                id = *child;
            }
            _ => break,
        }
    }
    Err(Corrupt("misplaced node").into())
}

/// How many entries a state has.
pub fn len<N: Nodes>(nodes: &N, root: Root, select: Select) -> Result<usize, N::Error> {
    let Some(top) = root.0 else { return Ok(0) };
    let top = nodes.node(top)?;
    let mut sum = 0;
    for part in [Part::Members, Part::Others] {
        if select.takes(part) {
            sum += top.tree(part)?.map_or(0, |tree| tree.len as usize);
        }
    }
    Ok(sum)
}

/// All entries of a state, members first, each as its event.
pub fn iter<N: Nodes>(nodes: &N, root: Root, select: Select) -> Iter<'_, N> {
    let mut iter = Iter { nodes, select, todo: Vec::new(), leaf: Vec::new().into_iter() };
    iter.todo.extend(root.0.map(|id| (id, 0)));
    iter
}

/// See [`iter`].
pub struct Iter<'a, N> {
    nodes: &'a N,
    select: Select,
    /// Nodes and their depths, the next one last.
    todo: Vec<(NodeId, u32)>,
    leaf: std::vec::IntoIter<Entry>,
}

impl<N: Nodes> Iter<'_, N> {
    fn open(&mut self, id: NodeId, depth: u32) -> Result<(), N::Error> {
        // Deeper than any tree is: the nodes point in a circle.
        if depth > MAX_DEPTH + 1 {
            self.todo.clear();
            return Err(Corrupt("nodes in a circle").into());
        }
        match &self.nodes.node(id)?.0 {
            Shape::Top { members, others } => {
                let others = others.filter(|_| self.select.takes(Part::Others));
                let members = members.filter(|_| self.select.takes(Part::Members));
                self.todo.extend(others.map(|tree| (tree.id, depth + 1)));
                self.todo.extend(members.map(|tree| (tree.id, depth + 1)));
            }
            Shape::Branch { children, .. } => {
                self.todo.extend(children.iter().rev().map(|id| (*id, depth + 1)));
            }
            Shape::Leaf(entries) => self.leaf = entries.clone().into_iter(),
        }
        Ok(())
    }
}

impl<N: Nodes> Iterator for Iter<'_, N> {
    type Item = Result<EventNr, N::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((_, nr)) = self.leaf.next() {
                return Some(Ok(nr));
            }
            let (id, depth) = self.todo.pop()?;
            if let Err(error) = self.open(id, depth) {
                return Some(Err(error));
            }
        }
    }
}

/// An entry that differs between two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub before: Option<EventNr>,
    pub after: Option<EventNr>,
}

/// What differs between two states. Shared nodes are not looked at.
pub fn diff<N: Nodes>(nodes: &N, before: Root, after: Root, select: Select) -> Result<Vec<Change>, N::Error> {
    let mut changes = Vec::new();
    if before == after {
        return Ok(changes);
    }
    for part in [Part::Members, Part::Others] {
        if select.takes(part) {
            let tree = |root: Root| -> Result<Option<NodeId>, N::Error> {
                let Some(top) = root.0 else { return Ok(None) };
                Ok(nodes.node(top)?.tree(part)?.map(|tree| tree.id))
            };
            Differ { nodes, part, changes: &mut changes }.trees(tree(before)?, tree(after)?, 0)?;
        }
    }
    Ok(changes)
}

struct Differ<'a, N> {
    nodes: &'a N,
    part: Part,
    changes: &'a mut Vec<Change>,
}

impl<N: Nodes> Differ<'_, N> {
    fn trees(&mut self, before: Option<NodeId>, after: Option<NodeId>, depth: u32) -> Result<(), N::Error> {
        if before == after {
            return Ok(());
        }
        let open = |id: Option<NodeId>| id.map(|id| self.nodes.node(id)).transpose();
        let (before_node, after_node) = (open(before)?, open(after)?);
        let branches = (before_node.as_deref().and_then(Node::branch), after_node.as_deref().and_then(Node::branch));
        if let (Some(before), Some(after)) = branches
            && depth < MAX_DEPTH
        {
            for nibble in 0..16 {
                self.trees(before.child(nibble), after.child(nibble), depth + 1)?;
            }
            return Ok(());
        }
        let before = collect(self.nodes, before)?;
        let after = collect(self.nodes, after)?;
        self.entries(&before, &after);
        Ok(())
    }

    fn entries(&mut self, before: &[Entry], after: &[Entry]) {
        let part = self.part;
        let change = |hash, before, after| Change { key: Key { part, hash }, before, after };
        let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
        loop {
            let next_old = old.peek().map(|(hash, _)| *hash);
            let next_new = new.peek().map(|(hash, _)| *hash);
            let Some(hash) = next_old.into_iter().chain(next_new).min() else { return };
            let was = old.next_if(|(at, _)| *at == hash).map(|(_, nr)| *nr);
            let is = new.next_if(|(at, _)| *at == hash).map(|(_, nr)| *nr);
            if was != is {
                self.changes.push(change(hash, was, is));
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Branch<'a> {
    len: u32,
    bitmap: u16,
    children: &'a [NodeId],
}

impl Branch<'_> {
    fn child(&self, nibble: u32) -> Option<NodeId> {
        self.children.get(child_index(self.bitmap, nibble)?).copied()
    }
}

impl Node {
    fn branch(&self) -> Option<Branch<'_>> {
        match &self.0 {
            Shape::Branch { len, bitmap, children } => Some(Branch { len: *len, bitmap: *bitmap, children }),
            _ => None,
        }
    }
}

/// All entries under a node, in the order of their hash.
fn collect<N: Nodes>(nodes: &N, id: Option<NodeId>) -> Result<Vec<Entry>, N::Error> {
    let mut iter = Iter {
        nodes,
        select: Select::All,
        todo: id.map(|id| (id, 0)).into_iter().collect(),
        leaf: Vec::new().into_iter(),
    };
    let mut entries = Vec::new();
    while let Some((id, depth)) = iter.todo.pop() {
        iter.open(id, depth)?;
        entries.extend(std::mem::replace(&mut iter.leaf, Vec::new().into_iter()));
    }
    Ok(entries)
}

/// Gives new nodes their ids: all under one number, and under the numbers after it if there are
/// more of them than fit.
#[derive(Clone, Debug)]
pub struct Fresh {
    nr: EventNr,
    idx: Option<u16>,
    numbers: u64,
}

impl Fresh {
    /// Nodes are written under `nr`, which may be pending. Nobody else may use it for nodes.
    pub fn new(nr: EventNr) -> Self {
        Self { nr, idx: Some(0), numbers: 1 }
    }

    /// How many numbers the nodes took: 1, or more after more than 65,536 nodes.
    pub fn numbers_used(&self) -> u64 {
        self.numbers
    }

    fn next(&mut self) -> NodeId {
        let idx = self.idx.unwrap_or_else(|| {
            self.nr = EventNr(self.nr.0 + 1);
            self.numbers += 1;
            0
        });
        self.idx = idx.checked_add(1);
        NodeId { nr: self.nr, idx }
    }
}

/// A new state and the nodes it needs that are not stored yet.
#[derive(Clone, Debug)]
pub struct Updated {
    pub root: Root,
    pub nodes: Vec<(NodeId, Arc<Node>)>,
}

/// Set entries: the state with all of `entries` in it.
pub fn insert<N: Nodes>(
    nodes: &N,
    root: Root,
    entries: impl IntoIterator<Item = (Key, EventNr)>,
    fresh: &mut Fresh,
) -> Result<Updated, N::Error> {
    update(nodes, root, entries.into_iter().map(|(key, nr)| (key, Some(nr))), fresh)
}

/// Set or remove (`None`) entries; of several changes to one key the last one counts.
pub fn update<N: Nodes>(
    nodes: &N,
    root: Root,
    changes: impl IntoIterator<Item = (Key, Option<EventNr>)>,
    fresh: &mut Fresh,
) -> Result<Updated, N::Error> {
    let mut members = Vec::new();
    let mut others = Vec::new();
    for (key, nr) in changes {
        match key.part {
            Part::Members => members.push((key.hash, nr)),
            Part::Others => others.push((key.hash, nr)),
        }
    }
    let top = root.0.map(|id| nodes.node(id)).transpose()?;
    let tree = |part| top.as_ref().map_or(Ok(None), |top| top.tree(part));
    let (old_members, old_others) = (tree(Part::Members)?, tree(Part::Others)?);
    let mut update = Update { nodes, fresh, new: Vec::new() };
    let new_members = update.tree(old_members, members)?;
    let new_others = update.tree(old_others, others)?;
    if new_members == old_members && new_others == old_others {
        return Ok(Updated { root, nodes: update.new });
    }
    let root = if new_members.is_none() && new_others.is_none() {
        Root::EMPTY
    } else {
        Root(Some(update.add(Shape::Top { members: new_members, others: new_others })))
    };
    Ok(Updated { root, nodes: update.new })
}

struct Update<'a, N> {
    nodes: &'a N,
    fresh: &'a mut Fresh,
    new: Vec<(NodeId, Arc<Node>)>,
}

type EntryChange = (u128, Option<EventNr>);

impl<N: Nodes> Update<'_, N> {
    fn add(&mut self, shape: Shape) -> NodeId {
        let id = self.fresh.next();
        self.new.push((id, Arc::new(Node(shape))));
        id
    }

    fn tree(&mut self, tree: Option<Subtree>, mut changes: Vec<EntryChange>) -> Result<Option<Subtree>, N::Error> {
        if changes.is_empty() {
            return Ok(tree);
        }
        // A stable sort keeps changes to one key in order; only the last of them stays.
        changes.sort_by_key(|(hash, _)| std::cmp::Reverse(*hash));
        changes.reverse();
        changes.dedup_by_key(|(hash, _)| *hash);
        let old = tree.map(|tree| tree.id);
        let (id, grown) = self.apply(old, &changes, 0)?;
        let len = i64::from(tree.map_or(0, |tree| tree.len)) + grown;
        Ok(id.map(|id| Subtree { id, len: len.max(0) as u32 }))
    }

    /// Change the entries under a node; the node that takes its place, and by how many entries it
    /// has more.
    fn apply(
        &mut self,
        id: Option<NodeId>,
        changes: &[EntryChange],
        depth: u32,
    ) -> Result<(Option<NodeId>, i64), N::Error> {
        let node = id.map(|id| self.nodes.node(id)).transpose()?;
        if let Some(branch) = node.as_deref().and_then(Node::branch)
            && depth < MAX_DEPTH
        {
            let removals = changes.iter().filter(|(_, nr)| nr.is_none()).count();
            if removals == 0 || branch.len as usize > LEAF_MAX + removals {
                return self.apply_to_branch(id, branch, changes, depth);
            }
        }
        let old = collect(self.nodes, id)?;
        let new = merge(&old, changes);
        if new == old {
            return Ok((id, 0));
        }
        let grown = new.len() as i64 - old.len() as i64;
        Ok((self.grow(&new, depth), grown))
    }

    fn apply_to_branch(
        &mut self,
        id: Option<NodeId>,
        branch: Branch<'_>,
        changes: &[EntryChange],
        depth: u32,
    ) -> Result<(Option<NodeId>, i64), N::Error> {
        let mut grown = 0;
        let mut changed = false;
        let mut slots: [Option<NodeId>; 16] = std::array::from_fn(|nibble| branch.child(nibble as u32));
        for group in changes.chunk_by(|a, b| nibble(a.0, depth) == nibble(b.0, depth)) {
            let Some(slot) = group.first().and_then(|(hash, _)| slots.get_mut(nibble(*hash, depth) as usize)) else {
                continue;
            };
            let (child, more) = self.apply(*slot, group, depth + 1)?;
            changed |= child != *slot;
            grown += more;
            *slot = child;
        }
        if !changed {
            return Ok((id, 0));
        }
        let len = (i64::from(branch.len) + grown).max(0) as u32;
        Ok((Some(self.branch(len, slots)), grown))
    }

    fn branch(&mut self, len: u32, slots: [Option<NodeId>; 16]) -> NodeId {
        let bitmap = slots.iter().enumerate().fold(0, |bitmap, (at, slot)| bitmap | u16::from(slot.is_some()) << at);
        let children = slots.into_iter().flatten().collect();
        self.add(Shape::Branch { len, bitmap, children })
    }

    /// New nodes for sorted entries.
    fn grow(&mut self, entries: &[Entry], depth: u32) -> Option<NodeId> {
        if entries.is_empty() {
            return None;
        }
        if entries.len() <= LEAF_MAX || depth == MAX_DEPTH {
            return Some(self.add(Shape::Leaf(entries.to_vec())));
        }
        let mut slots = [None; 16];
        for group in entries.chunk_by(|a, b| nibble(a.0, depth) == nibble(b.0, depth)) {
            if let Some(slot) = group.first().and_then(|(hash, _)| slots.get_mut(nibble(*hash, depth) as usize)) {
                *slot = self.grow(group, depth + 1);
            }
        }
        Some(self.branch(entries.len() as u32, slots))
    }
}

/// Sorted entries with sorted changes made to them.
fn merge(entries: &[Entry], changes: &[EntryChange]) -> Vec<Entry> {
    let mut merged = Vec::with_capacity(entries.len() + changes.len());
    let mut old = entries.iter().copied().peekable();
    for (hash, nr) in changes {
        merged.extend(std::iter::from_fn(|| old.next_if(|(at, _)| at < hash)));
        let _replaced = old.next_if(|(at, _)| at == hash);
        merged.extend(nr.map(|nr| (*hash, nr)));
    }
    merged.extend(old);
    merged
}

/// Nodes that are not stored yet, in front of those that are: for building several events of one
/// commit on each other.
#[derive(Clone, Debug)]
pub struct Overlay<N> {
    stored: N,
    new: HashMap<NodeId, Arc<Node>>,
}

impl<N: Nodes> Overlay<N> {
    pub fn new(stored: N) -> Self {
        Self { stored, new: HashMap::new() }
    }

    pub fn extend(&mut self, nodes: impl IntoIterator<Item = (NodeId, Arc<Node>)>) {
        self.new.extend(nodes);
    }
}

impl<N: Nodes> Nodes for Overlay<N> {
    type Error = N::Error;

    fn node(&self, id: NodeId) -> Result<Arc<Node>, Self::Error> {
        match self.new.get(&id) {
            Some(node) => Ok(node.clone()),
            None => self.stored.node(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Memory(HashMap<NodeId, Arc<Node>>);

    impl Nodes for Memory {
        type Error = Corrupt;

        fn node(&self, id: NodeId) -> Result<Arc<Node>, Corrupt> {
            self.0.get(&id).cloned().ok_or(Corrupt("no such node"))
        }
    }

    impl Memory {
        /// Stores nodes as a store would: encoded, with real numbers.
        fn keep(&mut self, updated: Updated, base: u64) -> Root {
            for (id, node) in updated.nodes {
                let mut bytes = Vec::new();
                node.resolve(base).encode(&mut bytes);
                assert!(bytes.len() < 1024, "nodes are small");
                let id = NodeId { nr: id.nr.resolve(base), idx: id.idx };
                self.0.insert(id, Arc::new(Node::decode(&bytes).unwrap()));
            }
            updated.root.resolve(base)
        }
    }

    type Model = BTreeMap<Key, EventNr>;

    /// Few keys, of which many share their first bits, so that small tests reach deep trees.
    fn key(n: u16) -> Key {
        let part = if n.is_multiple_of(3) { Part::Others } else { Part::Members };
        let hash = Key::new("type", &n.to_string()).hash;
        let shared = if n.is_multiple_of(2) { 0 } else { u128::from(n & 0xf0) << 116 };
        Key { part, hash: if n.is_multiple_of(5) { shared | hash >> 24 } else { hash } }
    }

    fn entries(memory: &Memory, root: Root, select: Select) -> Vec<EventNr> {
        let mut all: Vec<EventNr> = iter(memory, root, select).map(Result::unwrap).collect();
        all.sort();
        all
    }

    fn model_entries(model: &Model, select: Select) -> Vec<EventNr> {
        let taken = model.iter().filter(|(key, _)| select.takes(key.part));
        let mut all: Vec<EventNr> = taken.map(|(_, nr)| *nr).collect();
        all.sort();
        all
    }

    fn shape(memory: &Memory, id: NodeId) -> String {
        match &memory.node(id).unwrap().0 {
            Shape::Top { members, others } => {
                let tree = |tree: &Option<Subtree>| tree.map(|tree| (tree.len, shape(memory, tree.id)));
                format!("top({:?},{:?})", tree(members), tree(others))
            }
            Shape::Branch { len, bitmap, children } => {
                let inner: Vec<String> = children.iter().map(|id| shape(memory, *id)).collect();
                format!("branch({len},{bitmap:x},{inner:?})")
            }
            Shape::Leaf(entries) => format!("leaf({entries:?})"),
        }
    }

    const SELECTS: [Select; 3] = [Select::All, Select::Only(Part::Members), Select::Only(Part::Others)];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_tree_is_a_map(
            batches in prop::collection::vec(
                prop::collection::vec((0u16..400, prop::option::weighted(0.8, 0u64..1000)), 1..120),
                1..12,
            ),
        ) {
            let mut memory = Memory::default();
            let mut versions = vec![(Root::EMPTY, Model::new())];
            for (at, batch) in batches.iter().enumerate() {
                let (root, mut model) = versions.last().cloned().unwrap();
                let changes: Vec<_> =
                    batch.iter().map(|(n, nr)| (key(*n), nr.map(EventNr))).collect();
                let mut fresh = Fresh::new(EventNr::pending(3));
                let updated = update(&memory, root, changes.clone(), &mut fresh).unwrap();
                prop_assert_eq!(fresh.numbers_used(), 1);
                for (key, nr) in changes {
                    match nr {
                        Some(nr) => model.insert(key, nr),
                        None => model.remove(&key),
                    };
                }
                let root = memory.keep(updated, 10_000 * (at as u64 + 1));
                versions.push((root, model));
            }
            for (root, model) in &versions {
                for n in 0..400 {
                    let found = get(&memory, *root, key(n)).unwrap();
                    prop_assert_eq!(found, model.get(&key(n)).copied());
                }
                for select in SELECTS {
                    let expected = model_entries(model, select);
                    prop_assert_eq!(len(&memory, *root, select).unwrap(), expected.len());
                    prop_assert_eq!(entries(&memory, *root, select), expected);
                }
            }
            for (before, old) in &versions {
                for (after, new) in &versions {
                    for select in SELECTS {
                        let mut found = diff(&memory, *before, *after, select).unwrap();
                        found.sort_by_key(|change| change.key);
                        let keys: std::collections::BTreeSet<Key> =
                            old.keys().chain(new.keys()).copied().collect();
                        let expected: Vec<Change> = keys
                            .into_iter()
                            .filter(|key| select.takes(key.part))
                            .map(|key| Change {
                                key,
                                before: old.get(&key).copied(),
                                after: new.get(&key).copied(),
                            })
                            .filter(|change| change.before != change.after)
                            .collect();
                        prop_assert_eq!(found, expected);
                    }
                }
            }
        }

        #[test]
        fn the_shape_depends_on_the_entries_only(
            kept in prop::collection::btree_map(0u16..300, 0u64..1000, 0..200),
            detour in prop::collection::vec(0u16..400, 0..200),
            seed: u64,
        ) {
            let mut memory = Memory::default();
            let set = |n: &u16, nr: &u64| (key(*n), Some(EventNr(*nr)));
            let straight = kept.iter().map(|(n, nr)| set(n, nr));
            let updated =
                update(&memory, Root::EMPTY, straight, &mut Fresh::new(EventNr(1))).unwrap();
            let straight = memory.keep(updated, 0);

            let mut root = Root::EMPTY;
            let mut order: Vec<_> = kept.iter().map(|(n, nr)| set(n, nr)).collect();
            order.sort_by_key(|(key, _)| key.hash.rotate_left(seed as u32 % 128));
            let extra = detour.iter().map(|n| (key(*n), Some(EventNr(5000))));
            let gone = detour.iter().map(|n| {
                (key(*n), kept.iter().find(|(k, _)| key(**k) == key(*n)).map(|(_, nr)| EventNr(*nr)))
            });
            let steps: Vec<_> = extra.chain(order).chain(gone).collect();
            for (at, step) in steps.chunks(7).enumerate() {
                let mut fresh = Fresh::new(EventNr(at as u64 + 2));
                let updated = update(&memory, root, step.iter().copied(), &mut fresh).unwrap();
                root = memory.keep(updated, 0);
            }
            let shapes = (straight.0.map(|id| shape(&memory, id)), root.0.map(|id| shape(&memory, id)));
            prop_assert_eq!(shapes.0, shapes.1);
        }

        #[test]
        fn no_bytes_make_the_decoder_fall_over(bytes: Vec<u8>) {
            if let Ok(node) = Node::decode(&bytes) {
                let mut again = Vec::new();
                node.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }

    fn room(members: u64) -> (Memory, Root) {
        let mut memory = Memory::default();
        let entries = (0..members).map(|n| (Key::new("m.room.member", &format!("@user{n}:a.test")), EventNr(n)));
        let mut fresh = Fresh::new(EventNr(1));
        let updated = insert(&memory, Root::EMPTY, entries, &mut fresh).unwrap();
        let root = memory.keep(updated, 0);
        (memory, root)
    }

    #[test]
    fn a_change_in_a_large_room_writes_little() {
        let (memory, root) = room(10_000);
        let mut fresh = Fresh::new(EventNr(2));
        let change = [(Key::new("m.room.member", "@user77:a.test"), EventNr(20_000))];
        let updated = insert(&memory, root, change, &mut fresh).unwrap();
        let mut bytes = Vec::new();
        for (_, node) in &updated.nodes {
            node.encode(&mut bytes);
        }
        assert!(updated.nodes.len() <= 5 && bytes.len() < 1500, "{} bytes", bytes.len());
    }

    #[test]
    fn setting_what_is_set_changes_nothing() {
        let (memory, root) = room(100);
        let same = [(Key::new("m.room.member", "@user7:a.test"), EventNr(7))];
        let updated = insert(&memory, root, same, &mut Fresh::new(EventNr(2))).unwrap();
        assert_eq!((updated.root, updated.nodes.len()), (root, 0));
    }

    #[test]
    fn more_nodes_than_a_number_has_spill_to_the_next_number() {
        let mut fresh = Fresh::new(EventNr::pending(5));
        let ids: Vec<NodeId> = (0..65_537).map(|_| fresh.next()).collect();
        assert_eq!(ids[65_535], NodeId { nr: EventNr::pending(5), idx: u16::MAX });
        assert_eq!(ids[65_536], NodeId { nr: EventNr::pending(6), idx: 0 });
        assert_eq!(fresh.numbers_used(), 2);
    }

    #[test]
    fn several_events_of_one_commit_build_on_each_other() {
        let (memory, root) = room(100);
        let mut overlay = Overlay::new(&memory);
        let topic = Key::new("m.room.topic", "");
        let name = Key::new("m.room.name", "");
        let first =
            insert(&overlay, root, [(topic, EventNr::pending(0))], &mut Fresh::new(EventNr::pending(0))).unwrap();
        overlay.extend(first.nodes);
        let second =
            insert(&overlay, first.root, [(name, EventNr::pending(1))], &mut Fresh::new(EventNr::pending(1))).unwrap();
        overlay.extend(second.nodes);
        assert_eq!(get(&overlay, second.root, topic).unwrap(), Some(EventNr::pending(0)));
        assert_eq!(get(&overlay, second.root, name).unwrap(), Some(EventNr::pending(1)));
        assert_eq!(len(&overlay, second.root, Select::All).unwrap(), 102);
    }

    #[test]
    fn nodes_in_a_circle_are_an_error_not_a_hang() {
        let mut memory = Memory::default();
        let at = |nr| NodeId { nr: EventNr(nr), idx: 0 };
        let circle = Shape::Branch { len: 40, bitmap: 1, children: vec![at(2)] };
        let members = Some(Subtree { id: at(2), len: 40 });
        memory.0.insert(at(1), Arc::new(Node(Shape::Top { members, others: None })));
        memory.0.insert(at(2), Arc::new(Node(circle)));
        let root = Root(Some(at(1)));
        let low = Key { part: Part::Members, hash: 0 };
        assert!(get(&memory, root, low).is_err());
        assert!(iter(&memory, root, Select::All).any(|entry| entry.is_err()));
        let change = insert(&memory, root, [(low, EventNr(1))], &mut Fresh::new(EventNr(9)));
        assert!(change.is_err());
    }

    #[test]
    fn the_stored_form_does_not_move() {
        let id = |nr, idx| NodeId { nr: EventNr(nr), idx };
        let bytes = |shape| {
            let mut bytes = Vec::new();
            Node(shape).encode(&mut bytes);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let top = Shape::Top { members: Some(Subtree { id: id(1, 2), len: 3 }), others: None };
        assert_eq!(bytes(top), "01010000000000000001000200000003");
        let branch = Shape::Branch { len: 33, bitmap: 5, children: vec![id(1, 0), id(2, 1)] };
        assert_eq!(bytes(branch), "020000002100050000000000000001000000000000000000020001");
        assert_eq!(bytes(Shape::Leaf(vec![(0xabc, EventNr(7))])), "0300000000000000000000000000000abc0000000000000007");
        let key = Key::new("m.room.member", "@alice:a.test");
        assert_eq!(format!("{:032x}", key.hash), "16e4d20e34a0d6f2c3bcea7ed57692af");
    }
}
