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
    iter.todo.extend(root.0);
    iter
}

/// See [`iter`].
pub struct Iter<'a, N> {
    nodes: &'a N,
    select: Select,
    todo: Vec<NodeId>,
    leaf: std::vec::IntoIter<Entry>,
}

impl<N: Nodes> Iter<'_, N> {
    fn open(&mut self, id: NodeId) -> Result<(), N::Error> {
        match &self.nodes.node(id)?.0 {
            Shape::Top { members, others } => {
                let others = others.filter(|_| self.select.takes(Part::Others));
                let members = members.filter(|_| self.select.takes(Part::Members));
                self.todo.extend(others.map(|tree| tree.id));
                self.todo.extend(members.map(|tree| tree.id));
            }
            Shape::Branch { children, .. } => self.todo.extend(children.iter().rev()),
            Shape::Leaf(entries) => self.leaf = entries.clone().into_iter(),
        }
        // Deeper than any tree with this many children can be: the nodes point in a circle.
        if self.todo.len() > (MAX_DEPTH as usize + 1) * 16 {
            self.todo.clear();
            return Err(Corrupt("nodes in a circle").into());
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
            let id = self.todo.pop()?;
            if let Err(error) = self.open(id) {
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
    let mut iter = Iter { nodes, select: Select::All, todo: id.into_iter().collect(), leaf: Vec::new().into_iter() };
    let mut entries = Vec::new();
    while let Some(id) = iter.todo.pop() {
        iter.open(id)?;
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
