//! Live users: what is remembered of those who synced lately, so that an empty poll costs the same in one room and in a
//! thousand.
//!
//! A live user listens (by signals of the store's hub) to what concerns them: their account, their memberships, and the
//! rooms they are in. What was read of memberships, push rules and ignored users is kept until the signal moves.
//! Listening begins before anything is read; so nothing falls between. All of it can be dropped at any time.

use std::sync::Arc;

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::push::Ruleset;
use ruma::{OwnedUserId, UserId};
use store::{Hub, Pos, Read, Signal, Snapshot, Store};

use super::unread::Counts;
use crate::error::Result;
use crate::push::rules::Rules;
use crate::rooms::visibility::Ignored;
use crate::schema::{self, Membership, MembershipState, RoomNr, topic};
use crate::users::push_rules;

/// What a user takes in memory who is in no room: mostly the signals.
const USER_BYTES: usize = 1_536;
/// What a room takes: a row, and a listener in the hub.
const ROOM_BYTES: usize = size_of::<(RoomNr, Membership)>() + 48;

/// Who synced lately.
pub struct LiveUsers {
    users: Cache<OwnedUserId, Weighed, UserWeight>,
    rules: Arc<ChangedRules>,
}

/// A user with what they were weighed with: the cache wants that to stay.
#[derive(Clone)]
struct Weighed {
    user: Arc<LiveUser>,
    bytes: usize,
}

#[derive(Clone)]
struct UserWeight;
impl Weighter<OwnedUserId, Weighed> for UserWeight {
    fn weight(&self, _: &OwnedUserId, weighed: &Weighed) -> u64 {
        weighed.bytes as u64
    }
}

impl LiveUsers {
    /// With about so many bytes for users, and so many for the push rules of those who changed theirs.
    pub fn new(users_bytes: u64, rules_bytes: u64) -> Self {
        let users = Cache::with_weighter((users_bytes / 4_096) as usize, users_bytes, UserWeight);
        LiveUsers { users, rules: Arc::new(ChangedRules::new(rules_bytes)) }
    }

    /// The user, who is live from now on.
    pub fn get(&self, store: &Store, user_id: &UserId) -> Arc<LiveUser> {
        let fresh = || {
            let user = Arc::new(LiveUser::new(store.hub(), user_id, self.rules.clone()));
            Ok::<_, std::convert::Infallible>(Weighed { user, bytes: USER_BYTES })
        };
        let known = match self.users.get_or_insert_with(user_id, fresh) {
            Ok(known) => known,
            Err(never) => match never {},
        };
        // Weighed again, if they came into many rooms or left many since they came last.
        let bytes = known.user.bytes().unwrap_or(known.bytes);
        if known.bytes.abs_diff(bytes) > known.bytes / 4 {
            self.users.insert(user_id.to_owned(), Weighed { user: known.user.clone(), bytes });
        }
        known.user
    }

    /// As if nobody had synced yet.
    #[cfg(test)]
    pub fn forget(&self) {
        self.users.clear();
    }

    /// What decides over what a user gets, for those who do not sync.
    pub fn tastes(&self, snapshot: &Snapshot, user_id: &UserId, known: Option<&Tastes>) -> Result<Tastes> {
        Tastes::read(&self.rules, snapshot, user_id, known)
    }

    /// The rooms a user is in, if that is known without asking the store.
    pub fn peek_rooms(&self, user_id: &UserId) -> Option<Arc<Memberships>> {
        let user = self.users.get(user_id)?.user;
        let known = user.state.lock().memberships.clone()?;
        (user.membership.last() <= known.as_of).then_some(known)
    }
}

/// Somebody who synced lately.
pub struct LiveUser {
    user_id: OwnedUserId,
    /// Moves with everything that concerns the user.
    pub signal: Arc<Signal>,
    membership: Arc<Signal>,
    account: Arc<Signal>,
    state: Mutex<State>,
    pub counts: Mutex<Counts>,
    rules: Arc<ChangedRules>,
}

#[derive(Default)]
struct State {
    memberships: Option<Arc<Memberships>>,
    tastes: Option<Arc<Tastes>>,
}

/// What a user is in which rooms.
#[derive(Debug)]
pub struct Memberships {
    /// At this version.
    as_of: Pos,
    /// From this version on the signal is attached to all the rooms the user is in.
    pub attached: Pos,
    /// Sorted by room.
    rows: Vec<(RoomNr, Membership)>,
    /// None of them changed after this.
    newest: Pos,
}

impl Memberships {
    pub fn of(&self, room: RoomNr) -> Option<&Membership> {
        let at = self.rows.binary_search_by_key(&room, |(room, _)| *room).ok()?;
        self.rows.get(at).map(|(_, membership)| membership)
    }

    pub fn is_joined(&self, room: RoomNr) -> bool {
        self.of(room).is_some_and(|member| member.state == MembershipState::Join)
    }

    pub fn iter(&self) -> impl Iterator<Item = (RoomNr, &Membership)> {
        self.rows.iter().map(|(room, membership)| (*room, membership))
    }

    /// Those that changed after a position: in constant time if there are none.
    pub fn changed_after(&self, since: Pos) -> impl Iterator<Item = (RoomNr, &Membership)> {
        let rows = if self.newest > since { &*self.rows } else { &[] };
        rows.iter().filter(move |(_, member)| member.event > since).map(|(room, member)| (*room, member))
    }

    pub fn joined(&self) -> impl Iterator<Item = RoomNr> {
        self.iter().filter(|(_, member)| member.state == MembershipState::Join).map(|(room, _)| room)
    }

    /// Whether two users are in one room.
    pub fn share_a_room(&self, other: &Memberships) -> bool {
        let (few, many) = if self.rows.len() < other.rows.len() { (self, other) } else { (other, self) };
        few.joined().any(|room| many.is_joined(room))
    }

    /// What somebody is where, read from the store.
    pub fn read(snapshot: &Snapshot, user_id: &UserId) -> Result<Self> {
        let mut rows = Vec::new();
        for row in snapshot.scan(&schema::MEMBERSHIPS, schema::MEMBERSHIPS.prefix((user_id.as_str(),))) {
            let ((_, room), membership) = row?;
            rows.push((room, membership));
        }
        rows.shrink_to_fit();
        let as_of = snapshot.version();
        let newest = rows.iter().map(|(_, member)| member.event).max().unwrap_or(Pos::ZERO);
        Ok(Memberships { as_of, attached: as_of, rows, newest })
    }
}

/// What in a user's account data decides over what they get.
pub struct Tastes {
    as_of: Pos,
    /// Where the rules are, if they are not the ones that everybody starts with.
    changed_rules: Option<Arc<ChangedRules>>,
    /// Where the push rules lie: another place means other rules.
    pub rules_at: Pos,
    pub ignored: Ignored,
    ignored_at: Pos,
}

impl Tastes {
    /// The version they were read at.
    pub fn as_of(&self) -> Pos {
        self.as_of
    }

    /// What the store says now. What was known before is taken over as far as it did not change.
    fn read(
        changed_rules: &Arc<ChangedRules>,
        snapshot: &Snapshot,
        user_id: &UserId,
        known: Option<&Tastes>,
    ) -> Result<Self> {
        let at = |kind| -> Result<Pos> {
            let at = snapshot.get(&schema::ACCOUNT_DATA_AT, (user_id.as_str(), "", kind))?;
            Ok(at.unwrap_or(Pos::ZERO))
        };
        let (rules_at, ignored_at) = (at("m.push_rules")?, at("m.ignored_user_list")?);
        let changed_rules = match known.filter(|known| known.rules_at == rules_at) {
            Some(known) => known.changed_rules.clone(),
            None => changed_rules.if_changed(snapshot, user_id, rules_at)?,
        };
        let ignored = match known.filter(|known| known.ignored_at == ignored_at) {
            Some(known) => known.ignored.clone(),
            None => Ignored::by(snapshot, user_id)?,
        };
        Ok(Tastes { as_of: snapshot.version(), changed_rules, rules_at, ignored, ignored_at })
    }

    /// The push rules of the user whose tastes these are.
    pub fn rules(&self, read: &impl Read, user_id: &UserId) -> Result<Rules> {
        match &self.changed_rules {
            None => Ok(Rules::default()),
            Some(changed) => changed.of(read, user_id, self.rules_at),
        }
    }

    pub fn ignores(&self, user_id: &str) -> bool {
        self.ignored.hides_sender(user_id)
    }

    /// Changes whenever unread counts have to be counted anew.
    pub fn edition(&self) -> (Pos, Pos) {
        (self.rules_at, self.ignored_at)
    }
}

/// The push rules of users who changed theirs, as far as they were needed lately, by user and where they lie.
pub struct ChangedRules(Cache<OwnedUserId, (Pos, Rules), RulesWeight>);

#[derive(Clone)]
struct RulesWeight;
impl Weighter<OwnedUserId, (Pos, Rules)> for RulesWeight {
    fn weight(&self, _: &OwnedUserId, (_, rules): &(Pos, Rules)) -> u64 {
        rules.weight()
    }
}

impl ChangedRules {
    fn new(bytes: u64) -> Self {
        ChangedRules(Cache::with_weighter((bytes / 12_288) as usize, bytes, RulesWeight))
    }

    /// Itself, if the user has changed rules.
    fn if_changed(self: &Arc<Self>, read: &impl Read, user_id: &UserId, at: Pos) -> Result<Option<Arc<Self>>> {
        let changed = match push_rules::get_changed(read, user_id)? {
            None if Rules::can_share(user_id) => return Ok(None),
            None => Ruleset::server_default(user_id),
            Some(changed) => changed,
        };
        self.0.insert(user_id.to_owned(), (at, Rules::new(changed)));
        Ok(Some(self.clone()))
    }

    fn of(&self, read: &impl Read, user_id: &UserId, at: Pos) -> Result<Rules> {
        if let Some((known, rules)) = self.0.get(user_id)
            && known == at
        {
            return Ok(rules);
        }
        let rules = Rules::new(push_rules::get(read, user_id)?);
        self.0.insert(user_id.to_owned(), (at, rules.clone()));
        Ok(rules)
    }
}

/// A moment of the store as one user sees it.
pub struct Look {
    pub user_id: OwnedUserId,
    pub snapshot: Snapshot,
    pub memberships: Arc<Memberships>,
    pub tastes: Arc<Tastes>,
    /// Nothing of the user's account happened after this (if that is known).
    pub account_moved: Pos,
}

impl LiveUser {
    fn new(hub: &Hub, user_id: &UserId, rules: Arc<ChangedRules>) -> Self {
        let (signal, membership, account) = (hub.signal(), hub.signal(), hub.signal());
        for listener in [&signal, &membership] {
            hub.attach(topic::membership(user_id.as_str()), listener);
        }
        for listener in [&signal, &account] {
            hub.attach(topic::user(user_id.as_str()), listener);
        }
        let (state, counts) = (Mutex::default(), Mutex::default());
        LiveUser { user_id: user_id.to_owned(), signal, membership, account, state, counts, rules }
    }

    /// About what is remembered of them, unless somebody changes that at this moment.
    fn bytes(&self) -> Option<usize> {
        let rooms = self.state.try_lock()?.memberships.as_ref().map_or(0, |known| known.rows.capacity());
        Some(USER_BYTES + rooms * ROOM_BYTES + self.counts.try_lock()?.bytes())
    }

    /// Whether nothing that concerns the user happened after `since`, as of a version that is returned.
    pub fn idle_since(&self, store: &Store, since: Pos) -> Option<Pos> {
        let attached = self.state.lock().memberships.as_ref()?.attached;
        // Whoever sees a version published finds the signal marked up to it: so the version first.
        let version = store.tip();
        (since >= attached && self.signal.last() <= since).then_some(version)
    }

    /// The store now, with what is remembered of the user brought up to it.
    pub fn look(&self, store: &Store) -> Result<Look> {
        let mut state = self.state.lock();
        let (snapshot, memberships) = self.memberships(store, state.memberships.take())?;
        state.memberships = Some(memberships.clone());
        let known = state.tastes.take();
        let tastes = self.tastes(&snapshot, known)?;
        state.tastes = Some(tastes.clone());
        let (user_id, account_moved) = (self.user_id.clone(), self.account.last());
        Ok(Look { user_id, snapshot, memberships, tastes, account_moved })
    }

    fn memberships(&self, store: &Store, known: Option<Arc<Memberships>>) -> Result<(Snapshot, Arc<Memberships>)> {
        let snapshot = store.snapshot();
        if let Some(known) = known.clone()
            && self.membership.last() <= known.as_of
        {
            return Ok((snapshot, known));
        }
        let mut memberships = Memberships::read(&snapshot, &self.user_id)?;
        let attached = self.listen(store, known.as_deref(), &memberships);
        if !attached {
            memberships.attached = known.map_or(snapshot.version(), |known| known.attached);
            return Ok((snapshot, Arc::new(memberships)));
        }
        // Rooms that are new here were not listened to until now: what is certain begins with a later snapshot.
        let later = store.snapshot();
        memberships.attached = later.version();
        if self.membership.last() <= memberships.as_of {
            memberships.as_of = later.version();
            return Ok((later, Arc::new(memberships)));
        }
        Ok((snapshot, Arc::new(memberships)))
    }

    /// Attaches the signal to the rooms the user is in, detaches it from those they left. Returns whether any was new.
    fn listen(&self, store: &Store, before: Option<&Memberships>, now: &Memberships) -> bool {
        let mut any_new = before.is_none();
        for room in now.joined() {
            if !before.is_some_and(|before| before.is_joined(room)) {
                store.hub().attach(topic::room(room), &self.signal);
                any_new = true;
            }
        }
        for room in before.into_iter().flat_map(Memberships::joined) {
            if !now.is_joined(room) {
                store.hub().detach(&topic::room(room), &self.signal);
            }
        }
        any_new
    }

    fn tastes(&self, snapshot: &Snapshot, known: Option<Arc<Tastes>>) -> Result<Arc<Tastes>> {
        if let Some(known) = &known
            && self.account.last() <= known.as_of
        {
            return Ok(known.clone());
        }
        Tastes::read(&self.rules, snapshot, &self.user_id, known.as_deref()).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Server, User};

    fn shares(server: &Server, user: &User) -> bool {
        let user_id = <&ruma::UserId>::try_from(user.user_id.as_str()).unwrap();
        let look = server.app.sync.live.get(&server.app.store, user_id).look(&server.app.store).unwrap();
        look.tastes.changed_rules.is_none()
    }

    #[tokio::test]
    async fn users_are_remembered_by_the_rooms_they_are_in() {
        let server = Server::default();
        let live = LiveUsers::new(1 << 20, 1 << 16);
        let (users, rooms) = (100, 500u64);
        let member = Membership {
            state: MembershipState::Join,
            event: Pos(1),
            joined: Some(Pos(1)),
            left: None,
            was_joined: false,
            forgotten: false,
        };
        for nr in 0..users {
            let user_id = ruma::UserId::parse(format!("@{nr}:hs.test")).unwrap();
            let mut batch = store::Batch::new();
            (0..rooms).for_each(|room| batch.put(&schema::MEMBERSHIPS, (user_id.as_str(), room), &member));
            server.app.store.commit(batch).unwrap().durable().await.unwrap();
            live.get(&server.app.store, &user_id).look(&server.app.store).unwrap();
            // They are weighed when they come back.
            live.get(&server.app.store, &user_id);
        }
        let real = live.users.len() * rooms as usize * size_of::<(RoomNr, Membership)>();
        assert!(live.users.len() > 5 && real <= 1 << 20, "{} are remembered", live.users.len());
    }

    #[tokio::test]
    async fn who_changed_no_rule_keeps_none_in_memory() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert!(shares(&server, &alice) && shares(&server, &bob));
        let rule = "/_matrix/client/v3/pushrules/global/override/.m.rule.master/enabled";
        assert_eq!(alice.client.put(rule, json!({ "enabled": true })).await.status, 200);
        assert!(!shares(&server, &alice) && shares(&server, &bob));
        let user_id = <&ruma::UserId>::try_from(alice.user_id.as_str()).unwrap();
        let snapshot = server.app.store.snapshot();
        let tastes = server.app.sync.live.tastes(&snapshot, user_id, None).unwrap();
        // Also when there is no place for them in memory.
        tastes.changed_rules.as_ref().unwrap().0.clear();
        assert!(tastes.rules(&snapshot, user_id).unwrap().weight() > 0);
        assert_eq!(alice.client.put(rule, json!({ "enabled": false })).await.status, 200);
        assert!(shares(&server, &alice), "what was changed back is like never changed");
    }
}
