//! Every table of the homeserver, on one page: tag, name, key, value, what a row means, and whom a write wakes.
//!
//! Tags are never reused. A test pins the list of tables. What the rows are *for* lives in the modules that use them;
//! how rows are ordered, committed and read lives in the `store` crate.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ruma::RoomId;
use serde::{Deserialize, Serialize};
use store::{Corrupt, Hint, Pos, Raw, Read as _, Table, TableDef, Tx, Value, ValueBuf, postcard_value};

use crate::stored::{Head, StoredEvent};

/// Topics: who wants to hear of a commit.
pub mod topic {
    use store::Topic;

    use super::RoomNr;

    /// The class of room topics; the key is the room number, big endian.
    pub const ROOM: u8 = 1;
    /// The class of user topics; the key is the user ID.
    pub const USER: u8 = 2;
    /// The class of membership topics; the key is the user ID.
    pub const MEMBERSHIP: u8 = 3;
    /// The class of uploads; the key is the media ID.
    pub const MEDIA: u8 = 4;

    /// The class of the topic of all jobs.
    pub const JOBS: u8 = 5;

    /// The class of pushers; the key is the user ID, or empty for those of anybody.
    pub const PUSHERS: u8 = 6;

    /// The class of the topic of all delayed events.
    pub const DELAYED: u8 = 7;

    /// The class of the topic of the room directory.
    pub const DIRECTORY: u8 = 12;

    /// A room came into the room directory, or is no longer in it.
    pub fn directory() -> Topic {
        Topic::new(DIRECTORY, [])
    }
    /// The class of application services; the key is the service's ID.
    pub const APPSERVICE: u8 = 8;

    /// An application service shows that it is there.
    pub fn appservice(id: &str) -> Topic {
        Topic::new(APPSERVICE, id.as_bytes())
    }
    /// Somebody's pushers changed.
    pub fn pushers() -> Topic {
        Topic::new(PUSHERS, [])
    }
    /// A user's pushers changed.
    pub fn pushers_of(user_id: &str) -> Topic {
        Topic::new(PUSHERS, user_id.as_bytes())
    }
    /// An event was delayed, or is due at another time.
    pub fn delayed() -> Topic {
        Topic::new(DELAYED, [])
    }
    /// There is work to do in the background.
    pub fn jobs() -> Topic {
        Topic::new(JOBS, [])
    }
    /// Something happened in a room: an event, a receipt.
    pub fn room(room: RoomNr) -> Topic {
        Topic::number(ROOM, room)
    }
    /// Something happened to a user: account data, devices, to-device messages.
    pub fn user(user_id: &str) -> Topic {
        Topic::new(USER, user_id.as_bytes())
    }
    /// The set of rooms that a user is joined to, invited to, … changed.
    pub fn membership(user_id: &str) -> Topic {
        Topic::new(MEMBERSHIP, user_id.as_bytes())
    }
    /// An upload arrived, or is gone.
    pub fn media(media_id: &str) -> Topic {
        Topic::new(MEDIA, media_id.as_bytes())
    }
}

/// A room's number: the first eight bytes of the SHA-256 of its ID. Who creates or joins a room checks that the head
/// under this number is absent or of the same room, so two rooms never share one.
pub type RoomNr = u64;

/// The number of a room. It says nothing about whether the room is known.
pub fn room_nr(room_id: &RoomId) -> RoomNr {
    let digest = ring::digest::digest(&ring::digest::SHA256, room_id.as_bytes());
    let (first, _) = digest.as_ref().split_at(8);
    first.iter().fold(0, |nr, byte| nr << 8 | u64::from(*byte))
}

// ---- the server itself -------------------------------------------------------------------------------------------

pub const SERVER: Table<String, Bytes> = Table::new(0x01, "server", Hint::Small, None, "a fact about this server");
pub const JOBS: Table<Pos, Job> = Table::new(
    0x02,
    "jobs",
    Hint::Small,
    Some(|_| topic::jobs()),
    "work that was decided and is carried out in the background",
);

/// The key is what whoever asked for the work was given to ask for it by.
pub const TASKS: Table<String, Task> =
    Table::new(0x0a, "tasks", Hint::Small, None, "how work that an administrator asked for stands");

// ---- accounts ----------------------------------------------------------------------------------------------------

pub const USERS: Table<String, User> = Table::new(0x10, "users", Hint::Small, None, "an account, by user ID");
pub const PROFILES: Table<(String, String), Bytes> =
    Table::new(0x11, "profiles", Hint::Small, None, "a profile field as JSON, by user ID and field");
pub const DEVICES: Table<(String, String), Device> =
    Table::new(0x12, "devices", Hint::Small, Some(|(user, _)| topic::user(user)), "a device, by user ID and device ID");
/// The key is the SHA-256 of the token, so that a stolen disk does not log anybody in.
pub const TOKENS: Table<[u8; 32], Token> =
    Table::new(0x13, "tokens", Hint::Small, None, "an access, refresh, login or OpenID token, by hash");
/// The device ID is empty for login and OpenID tokens.
pub const DEVICE_TOKENS: Table<(String, String, [u8; 32]), ()> =
    Table::new(0x14, "device_tokens", Hint::Small, None, "a device's tokens, by user ID, device ID and token hash");
pub const REGISTRATION_TOKENS: Table<String, RegistrationToken> =
    Table::new(0x15, "registration_tokens", Hint::Small, None, "a registration token");
/// The room ID is empty for global account data.
pub const ACCOUNT_DATA: Table<(String, String, String), AccountData> =
    Table::new(0x16, "account_data", Hint::Small, None, "account data, by user ID, room ID or nothing, and type")
        .chunked();
pub const ACCOUNT_DATA_LOG: Table<(String, Pos), AccountDataKey> = Table::new(
    0x17,
    "account_data_log",
    Hint::Log,
    Some(|(user, _)| topic::user(user)),
    "what account data changed last here, by user ID and position",
);
/// The position in [`ACCOUNT_DATA_LOG`] of each piece of account data, so that its older log row can be deleted.
pub const ACCOUNT_DATA_AT: Table<(String, String, String), Pos> = Table::new(
    0x18,
    "account_data_at",
    Hint::Small,
    None,
    "where account data changed last, by user ID, room ID, type",
);
pub const FILTERS: Table<(String, u64), Bytes> =
    Table::new(0x19, "filters", Hint::Small, None, "a sync filter as JSON, by user ID and filter ID").chunked();

/// Apart from the device, because it is written often and wakes nobody.
pub const DEVICE_SEEN: Table<(String, String), Seen> =
    Table::new(0x1a, "device_seen", Hint::Small, None, "when a device was last used, by user ID and device ID");

// ---- rooms -------------------------------------------------------------------------------------------------------

pub const HEADS: Table<RoomNr, Head> = Table::new(0x21, "heads", Hint::Small, None, "what a room looks like now");
/// An event's number is the position of its first storage, which is its place in the stream.
pub const EVENTS: Table<(RoomNr, Pos), StoredEvent> =
    Table::new(0x22, "events", Hint::Bulk, Some(|(room, _)| topic::room(room)), "an event, by room and position");
pub const EVENT_IDS: Table<String, EventAt> =
    Table::new(0x23, "event_ids", Hint::Lookup, None, "where an event lies, by event ID");
pub const STATE_NODES: Table<(Pos, u16), Bytes> =
    Table::new(0x24, "state_nodes", Hint::Lookup, None, "a node of a state tree, by event number and index");
pub const MEMBERSHIPS: Table<(String, RoomNr), Membership> = Table::new(
    0x25,
    "memberships",
    Hint::Small,
    Some(|(user, _)| topic::membership(user)),
    "what a local user is in a room, by user ID and room",
);
/// The hash is over the request path without the transaction ID, and the transaction ID.
pub const TXNS: Table<(String, String, [u8; 16]), Txn> =
    Table::new(0x26, "txns", Hint::Lookup, None, "an answered transaction, by user ID, device ID, hash of path and ID");
pub const RELATIONS: Table<(RoomNr, String, Pos), Relation> =
    Table::new(0x27, "relations", Hint::Lookup, None, "an event that relates to another, by room, parent ID, position");
pub const ALIASES: Table<String, Alias> = Table::new(0x28, "aliases", Hint::Small, None, "a room alias");
pub const ROOM_ALIASES: Table<(RoomNr, String), ()> =
    Table::new(0x29, "room_aliases", Hint::Small, None, "the aliases of a room, by room and alias");
pub const PUBLIC_ROOMS: Table<RoomNr, ()> =
    Table::new(0x2a, "public_rooms", Hint::Small, Some(|_| topic::directory()), "a room in the room directory");
pub const RECEIPTS: Table<(RoomNr, String, ReceiptKind), Receipt> =
    Table::new(0x2b, "receipts", Hint::Small, None, "how far a user has read, by room, user ID and kind");
pub const RECEIPT_LOG: Table<(RoomNr, Pos), ReceiptKey> = Table::new(
    0x2c,
    "receipt_log",
    Hint::Log,
    Some(|(room, _)| topic::room(room)),
    "which receipt moved last here, by room and position",
);
/// Written by `rooms::write` together with [`THREAD_AT`]; a thread has one row.
pub const THREADS: Table<(RoomNr, Pos), String> =
    Table::new(0x2d, "threads", Hint::Lookup, None, "the root of a thread, by room and position of its newest reply");
pub const THREAD_AT: Table<(RoomNr, String), Pos> =
    Table::new(0x2e, "thread_at", Hint::Lookup, None, "where the newest reply of a thread lies, by room and root");

pub const REPORTS: Table<Pos, Report> =
    Table::new(0x2f, "reports", Hint::Small, None, "what a user told the administrators of");

/// Written by `rooms::search` some time after the events; it can be made anew from them.
pub const SEARCH_WORDS: Table<(RoomNr, String, Pos), Postings> = Table::new(
    0x30,
    "search_words",
    Hint::Bulk,
    None,
    "in which events of a room a word stands, by room, word and position of the last that was looked at",
);
pub const SEARCHED: Table<RoomNr, Pos> =
    Table::new(0x31, "searched", Hint::Small, None, "up to which event the words of a room are known");

pub const BLOCKED_ROOMS: Table<String, Block> = Table::new(
    0x3a,
    "blocked_rooms",
    Hint::Small,
    None,
    "a room that nobody may join, by room ID; it need not be known here",
);

/// Written by `rooms::write` together with [`RELATIONS`], and gone when the annotation is redacted.
pub const ANNOTATIONS: Table<(RoomNr, String, [u8; 16]), Pos> = Table::new(
    0x7e,
    "annotations",
    Hint::Lookup,
    None,
    "where an annotation lies, by room, parent ID, and hash of sender, type and key",
);

// ---- media -------------------------------------------------------------------------------------------------------

pub const MEDIA: Table<String, Media> = Table::new(
    0x40,
    "media",
    Hint::Small,
    Some(|media_id| topic::media(media_id)),
    "an upload, or a place kept for one, by media ID",
);
pub const USER_MEDIA: Table<(String, String), ()> =
    Table::new(0x41, "user_media", Hint::Small, None, "the uploads of a user, by user ID and media ID");
/// A thumbnail counts as an upload whose name is no media ID.
pub const MEDIA_FILES: Table<([u8; 32], String), ()> =
    Table::new(0x42, "media_files", Hint::Lookup, None, "which uploads share a file, by SHA-256 and media ID");
pub const THUMBNAILS: Table<([u8; 32], ThumbnailKey), Thumbnail> = Table::new(
    0x43,
    "thumbnails",
    Hint::Lookup,
    None,
    "a picture made smaller, by the SHA-256 of the picture and size",
);
pub const PENDING_MEDIA: Table<(String, String), u64> =
    Table::new(0x44, "pending_media", Hint::Small, None, "when a kept place is given up, by user ID and media ID");

pub const MEDIA_MARKS: Table<String, MediaMarks> =
    Table::new(0x4a, "media_marks", Hint::Small, None, "what administrators said of an upload, by media ID");

// ---- end-to-end keys and messages to devices ---------------------------------------------------------------------

pub const DEVICE_KEYS: Table<(String, String), DeviceKeys> =
    Table::new(0x50, "device_keys", Hint::Small, None, "the identity keys of a device, by user ID and device ID");
pub const ONE_TIME_KEYS: Table<(String, String, String, Pos, u16), OneTimeKey> = Table::new(
    0x51,
    "one_time_keys",
    Hint::Small,
    None,
    "a one-time key that nobody has claimed yet, by user ID, device ID, algorithm, position of the upload, and index",
);
/// The row outlives the key, for the thousands that were claimed last: a device that uploads a key again, because it missed
/// the answer, does not bring back one that was claimed meanwhile.
pub const ONE_TIME_KEY_IDS: Table<(String, String, String), OneTimeKeyId> = Table::new(
    0x52,
    "one_time_key_ids",
    Hint::Small,
    None,
    "a one-time key that was uploaded, by user ID, device ID and key ID",
);
pub const FALLBACK_KEYS: Table<(String, String, String), FallbackKey> = Table::new(
    0x53,
    "fallback_keys",
    Hint::Small,
    None,
    "the key to give out when no one-time key is left, by user ID, device ID and algorithm",
);
pub const KEY_COUNTS: Table<(String, String), KeyCounts> = Table::new(
    0x54,
    "key_counts",
    Hint::Small,
    Some(|(user, _)| topic::user(user)),
    "how many keys of a device are left, by user ID and device ID",
);
/// Written by [`device_list_changed`] only; a user has one row, the newest.
pub const DEVICE_LIST_LOG: Table<Pos, String> =
    Table::new(0x55, "device_list_log", Hint::Log, None, "whose devices or device keys changed here last");
pub const DEVICE_LIST_AT: Table<String, Pos> =
    Table::new(0x56, "device_list_at", Hint::Small, None, "where a user's devices or device keys changed last");
/// Nobody is told of a row by its own topic, but by that of [`TO_DEVICE_AT`]: deleting is no news.
pub const TO_DEVICE: Table<(String, String, Pos), ToDevice> = Table::new(
    0x57,
    "to_device",
    Hint::Log,
    None,
    "a message that a device has not acknowledged, by user ID, device ID and position",
)
.chunked();
pub const TO_DEVICE_AT: Table<(String, String), Pos> = Table::new(
    0x58,
    "to_device_at",
    Hint::Small,
    Some(|(user, _)| topic::user(user)),
    "where the last message to a device is or was, by user ID and device ID",
);

pub const CROSS_SIGNING_KEYS: Table<(String, String), SigningKey> =
    Table::new(0x59, "cross_signing_keys", Hint::Small, None, "a cross-signing key, by user ID and usage");
pub const USER_SIGNATURES: Table<(String, String), UserSignatures> = Table::new(
    0x5a,
    "user_signatures",
    Hint::Small,
    None,
    "that a user vouches for the master key of another, by the user IDs of both; only the first one sees it",
);
pub const USER_SIGNATURE_LOG: Table<(String, Pos), String> = Table::new(
    0x5b,
    "user_signature_log",
    Hint::Log,
    Some(|(user, _)| topic::user(user)),
    "whom a user vouched for last here, by user ID and position",
);

/// The device itself is one like others.
pub const DEHYDRATED_DEVICES: Table<String, DehydratedDevice> =
    Table::new(0x5c, "dehydrated_devices", Hint::Cold, None, "a device that waits to be brought back, by user ID")
        .chunked();
/// A row outlives its backup: numbers are not used again.
pub const BACKUPS: Table<(String, u64), Backup> =
    Table::new(0x5d, "backups", Hint::Small, None, "a version of a key backup, by user ID and number");
pub const BACKED_UP_KEYS: Table<(String, u64, String, String), BackedUpKey> = Table::new(
    0x5e,
    "backed_up_keys",
    Hint::Cold,
    None,
    "a key in a backup, by user ID, number of the backup, room ID and session ID",
);

// ---- notifications and calls -------------------------------------------------------------------------------------

/// Written by [`put_pusher`] and [`delete_pusher`] only.
pub const PUSHERS: Table<(String, String, String), Pusher> = Table::new(
    0x60,
    "pushers",
    Hint::Small,
    Some(|(user, _, _)| topic::pushers_of(user)),
    "where notifications go, by user ID, app ID and pushkey",
);
pub const PUSHKEYS: Table<(String, String, String), ()> =
    Table::new(0x61, "pushkeys", Hint::Small, None, "who has a pusher, by app ID, pushkey and user ID");
pub const PUSHED: Table<(String, String, String), Pushed> =
    Table::new(0x62, "pushed", Hint::Small, None, "how far a pusher has come, by user ID, app ID and pushkey");
/// Also rows of events that were sent or given up, for some time: the list of a user's shows them.
pub const DELAYED: Table<String, Delayed> =
    Table::new(0x63, "delayed", Hint::Small, Some(|_| topic::delayed()), "an event that is sent later, by delay ID")
        .chunked();
pub const DELAYED_DUE: Table<(u64, String), ()> = Table::new(
    0x64,
    "delayed_due",
    Hint::Small,
    None,
    "when something is to be done about a delayed event, by milliseconds since the epoch and delay ID",
);
pub const DELAYED_OF: Table<(String, String), ()> =
    Table::new(0x65, "delayed_of", Hint::Small, None, "the delayed events of a user, by user ID and delay ID");

// ---- the authorization server -------------------------------------------------------------------------------------

pub const OAUTH_CLIENTS: Table<String, OauthClient> =
    Table::new(0x70, "oauth_clients", Hint::Small, None, "a client that may ask users for access, by client ID");
/// Goes with the tokens of its device.
pub const OAUTH_SESSIONS: Table<(String, String), OauthSession> =
    Table::new(0x71, "oauth_sessions", Hint::Small, None, "that a device logged in by OAuth, by user ID and device ID");

// ---- the user directory ------------------------------------------------------------------------------------------

/// Written by `users::directory` together with [`DIRECTORY_USERS`].
pub const DIRECTORY_WORDS: Table<(String, String), ()> =
    Table::new(0x72, "directory_words", Hint::Lookup, None, "a word by which a user is found, by word and user ID");
pub const DIRECTORY_USERS: Table<String, NameWords> =
    Table::new(0x73, "directory_users", Hint::Lookup, None, "the words by which a user is found, by user ID");

// ---- application services ----------------------------------------------------------------------------------------

/// The names of the followers of the journal that tell application services begin so; the ID of the service comes after it.
pub const SERVICE_FOLLOWERS: &str = "appservice/";
/// Stays after the transaction was acknowledged, without a body: numbers are not used again.
pub const SERVICE_TXNS: Table<String, ServiceTxn> =
    Table::new(0x74, "service_txns", Hint::Small, None, "the last transaction for an application service, by its ID")
        .chunked();
pub const NETWORK_ROOMS: Table<(String, String, RoomNr), ()> = Table::new(
    0x75,
    "network_rooms",
    Hint::Small,
    None,
    "a room in the directory of another network, by the ID of the application service, network ID and room",
);

// ---- rooms that are gone -----------------------------------------------------------------------------------------

/// For so long that the clients of those who were there have come by.
pub const CLOSED_ROOMS: Table<RoomNr, String> =
    Table::new(0x76, "closed_rooms", Hint::Small, None, "the ID of a room that was deleted a while ago");
pub const LAST_EVENTS: Table<(RoomNr, String), StoredEvent> = Table::new(
    0x77,
    "last_events",
    Hint::Small,
    None,
    "what became of a user in a room that was deleted a while ago, by room and user ID",
);

// ---- counts ------------------------------------------------------------------------------------------------------

/// Only of counts that took long: what is read from here need not be counted again.
pub const UNREAD: Table<(String, RoomNr), Unread> =
    Table::new(0x78, "unread", Hint::Cold, None, "what somebody has not read, by user ID and room").chunked();
/// Where an answer could not wait for a count: the room goes into another one.
pub const UNREAD_LOG: Table<(String, Pos), RoomNr> = Table::new(
    0x79,
    "unread_log",
    Hint::Log,
    Some(|(user, _)| topic::user(user)),
    "in which rooms the counts of a user became right, by user ID and position",
);

// ---- what there is much of ---------------------------------------------------------------------------------------

/// Written together with what it counts; what is not counted yet is counted when it is needed. What there is: `media`,
/// `account_data`.
pub const USAGE: Table<(String, String), Usage> =
    Table::new(0x7c, "usage", Hint::Small, None, "how much of something a user has, by user ID and what it is");
/// No more than a guess: what a device acknowledges is not taken off. A queue that looks full is counted.
pub const TO_DEVICE_LOAD: Table<(String, String), Usage> =
    Table::new(0x7d, "to_device_load", Hint::Small, None, "how much may wait for a device, by user ID and device ID");
// ---- administration ----------------------------------------------------------------------------------------------

pub const RATE_OVERRIDES: Table<String, RateOverride> =
    Table::new(0x5f, "rate_overrides", Hint::Small, None, "how often a user may send messages, by user ID");
pub const NOTICE_ROOMS: Table<String, String> =
    Table::new(0x7f, "notice_rooms", Hint::Small, None, "the room of a user's server notices, by user ID");

/// Which pusher: app ID and pushkey.
pub type PusherId<'a> = (&'a str, &'a str);

/// Makes a pusher, or changes it.
pub fn put_pusher(tx: &mut Tx, user_id: &str, (app_id, pushkey): PusherId<'_>, pusher: &Pusher) {
    tx.put(&PUSHERS, (user_id, app_id, pushkey), pusher);
    tx.put(&PUSHKEYS, (app_id, pushkey, user_id), &());
    tx.touch(topic::pushers());
}

/// Deletes a pusher, and what is known of it.
pub fn delete_pusher(tx: &mut Tx, user_id: &str, (app_id, pushkey): PusherId<'_>) {
    tx.delete(&PUSHERS, (user_id, app_id, pushkey));
    tx.delete(&PUSHKEYS, (app_id, pushkey, user_id));
    tx.delete(&PUSHED, (user_id, app_id, pushkey));
    tx.touch(topic::pushers());
}

/// Says that a user's devices or their keys changed: writes the rows, and wakes everybody in a room with the user.
pub fn device_list_changed(tx: &mut Tx, user_id: &str) -> store::Result<()> {
    match tx.get(&DEVICE_LIST_AT, user_id)? {
        // Once in a commit is enough.
        Some(last) if last.is_pending() => return Ok(()),
        Some(last) => tx.delete(&DEVICE_LIST_LOG, last),
        None => {}
    }
    let at = tx.next_pos();
    tx.put(&DEVICE_LIST_LOG, at, &user_id.to_owned());
    tx.put(&DEVICE_LIST_AT, user_id, &at);
    tx.touch(topic::user(user_id));
    // Who joins meanwhile gets the new list because they join.
    let rooms: Vec<(_, Membership)> =
        tx.unchecked().scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id,))).collect::<store::Result<_>>()?;
    for ((_, room), _) in rooms.iter().filter(|(_, member)| member.state == MembershipState::Join) {
        tx.touch(topic::room(*room));
    }
    Ok(())
}

/// All tables, for export, for the documentation and for the test that pins them.
pub fn tables() -> Vec<TableDef> {
    vec![
        SERVER.def(),
        JOBS.def(),
        TASKS.def(),
        USERS.def(),
        PROFILES.def(),
        DEVICES.def(),
        TOKENS.def(),
        DEVICE_TOKENS.def(),
        REGISTRATION_TOKENS.def(),
        ACCOUNT_DATA.def(),
        ACCOUNT_DATA_LOG.def(),
        ACCOUNT_DATA_AT.def(),
        FILTERS.def(),
        DEVICE_SEEN.def(),
        HEADS.def(),
        EVENTS.def(),
        EVENT_IDS.def(),
        STATE_NODES.def(),
        MEMBERSHIPS.def(),
        TXNS.def(),
        RELATIONS.def(),
        ALIASES.def(),
        ROOM_ALIASES.def(),
        PUBLIC_ROOMS.def(),
        RECEIPTS.def(),
        RECEIPT_LOG.def(),
        THREADS.def(),
        THREAD_AT.def(),
        REPORTS.def(),
        SEARCH_WORDS.def(),
        SEARCHED.def(),
        BLOCKED_ROOMS.def(),
        MEDIA.def(),
        USER_MEDIA.def(),
        MEDIA_FILES.def(),
        THUMBNAILS.def(),
        PENDING_MEDIA.def(),
        MEDIA_MARKS.def(),
        DEVICE_KEYS.def(),
        ONE_TIME_KEYS.def(),
        ONE_TIME_KEY_IDS.def(),
        FALLBACK_KEYS.def(),
        KEY_COUNTS.def(),
        DEVICE_LIST_LOG.def(),
        DEVICE_LIST_AT.def(),
        TO_DEVICE.def(),
        TO_DEVICE_AT.def(),
        CROSS_SIGNING_KEYS.def(),
        USER_SIGNATURES.def(),
        USER_SIGNATURE_LOG.def(),
        DEHYDRATED_DEVICES.def(),
        BACKUPS.def(),
        BACKED_UP_KEYS.def(),
        PUSHERS.def(),
        PUSHKEYS.def(),
        PUSHED.def(),
        DELAYED.def(),
        DELAYED_DUE.def(),
        DELAYED_OF.def(),
        OAUTH_CLIENTS.def(),
        OAUTH_SESSIONS.def(),
        DIRECTORY_WORDS.def(),
        DIRECTORY_USERS.def(),
        SERVICE_TXNS.def(),
        NETWORK_ROOMS.def(),
        CLOSED_ROOMS.def(),
        LAST_EVENTS.def(),
        UNREAD.def(),
        UNREAD_LOG.def(),
        USAGE.def(),
        TO_DEVICE_LOAD.def(),
        ANNOTATIONS.def(),
        RATE_OVERRIDES.def(),
        NOTICE_ROOMS.def(),
    ]
}

// ---- values ------------------------------------------------------------------------------------------------------

/// Work that a request decided on and that goes on after its answer, also after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Bring a user's member events up to date with their profile, in the joined rooms from this one on.
    PropagateProfile { user_id: String, from: RoomNr },
    /// Make a deactivated user leave the rooms from this one on, and refuse the invites; before the first one, their keys
    /// are deleted.
    LeaveAll { user_id: String, from: RoomNr },
    /// Delete what is left of a device that had more than fits in one commit.
    ForgetDevice { user_id: String, device_id: String },
    /// Delete the keys of a backup that was deleted.
    ForgetBackup { user_id: String, version: u64 },
    /// Ban from a room whoever is banned from the one that it replaces, by member events after a position.
    CopyBans { from: String, to: String, by: String, after: u64 },
    /// Make guests leave a room that takes none any more.
    LeaveGuests { room_id: String },
    /// Make everybody of this server leave a room, and move on to another one if there is one; then delete the room if
    /// `purge` says so.
    DeleteRoom { task: String, room_id: String, step: DeleteStep, purge: bool, new_room: Option<String> },
    /// Delete the messages of a room after a position and before another; those of this server's users only with `local`.
    PurgeHistory { task: String, room_id: String, after: u64, before: u64, local: bool },
    /// Redact what a user said, and in the first of the rooms what they said before a position.
    RedactUser { task: String, user_id: String, reason: Option<String>, rooms: Rooms, before: u64, left: u64 },
    /// A job that failed so many times, to be tried again at this time (milliseconds since the epoch).
    Later { job: Box<Job>, attempts: u32, due_ts: u64 },
    /// Delete the devices of a user that are of an earlier epoch.
    ForgetDevices { user_id: String },
    /// Delete the backups of a user from this one on.
    ForgetBackups { user_id: String, from: u64 },
    /// Forget who was in a room that was deleted: they have heard of it.
    ForgetClosed { room: RoomNr },
}
postcard_value!(Job, 1);

/// Rooms that a job goes through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rooms {
    /// These, the last of them first.
    Named(Vec<String>),
    /// All that the user is or was in, from this one on.
    From(RoomNr),
}

/// How far the deletion of a room has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeleteStep {
    /// Those whose member event lies after this position have still to leave; what lies after the second one is their
    /// leaving. Zero: up to the last event.
    Leave { after: u64, through: u64 },
    /// Application services have still to be told of what happened up to this position, unless the time is over.
    Tell { through: u64, until_ts: u64 },
    /// The members at or after this place in the room's state are still remembered.
    Forget { from: u64 },
    /// Nobody reaches the room any more; rows are left.
    Purge,
}

/// Work that an administrator asked for, from its beginning to some time after its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub action: TaskAction,
    pub state: TaskState,
    /// The room or user that it is about.
    pub resource: String,
    pub started_ts: u64,
    pub changed_ts: u64,
    /// A JSON object, or empty.
    pub result: String,
    pub error: Option<String>,
}
postcard_value!(Task, 1);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskAction {
    #[default]
    DeleteRoom,
    PurgeHistory,
    RedactUser,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    #[default]
    Scheduled,
    Active,
    Complete,
    Failed,
}

/// Why nobody may join a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The administrator who said so; empty for one at the machine.
    pub user_id: String,
    pub ts: u64,
    /// Only until this task has deleted the room.
    pub task: Option<String>,
}
postcard_value!(Block, 1);

/// What administrators said of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaMarks {
    /// Nobody gets it; who said so (empty for an administrator at the machine).
    pub quarantined_by: Option<String>,
    /// It cannot be quarantined.
    pub protected: bool,
}
postcard_value!(MediaMarks, 1);

/// An account. It is never deleted: a deactivated localpart is not given away again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The argon2id hash; absent for accounts that do not log in by password.
    pub password_hash: Option<String>,
    pub created_ts: u64,
    pub admin: bool,
    pub guest: bool,
    pub deactivated: bool,
    pub locked: bool,
    pub suspended: bool,
    /// The user wished to be forgotten when the account was closed.
    pub erased: bool,
    /// Counts how often all sessions were ended at once: what is of an earlier number is void.
    pub epoch: u64,
}
postcard_value!(User, 2, from UserV1);

/// The first format.
#[derive(Serialize, Deserialize)]
pub struct UserV1 {
    password_hash: Option<String>,
    created_ts: u64,
    admin: bool,
    guest: bool,
    deactivated: bool,
    locked: bool,
    suspended: bool,
    erased: bool,
}
postcard_value!(UserV1, 1);

impl From<UserV1> for User {
    fn from(old: UserV1) -> Self {
        let UserV1 { password_hash, created_ts, admin, guest, deactivated, locked, suspended, erased } = old;
        User { password_hash, created_ts, admin, guest, deactivated, locked, suspended, erased, epoch: 0 }
    }
}

/// What an administrator allowed a user instead of what the settings say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateOverride {
    /// 0: as many as they like.
    pub messages_per_second: u32,
    pub burst_count: u32,
}
postcard_value!(RateOverride, 1);

/// A device. Its keys have tables of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub display_name: Option<String>,
    pub created_ts: u64,
    /// That of its user when it was made, or kept while the others were logged out. One of an earlier epoch is about to be
    /// deleted.
    pub epoch: u64,
    /// An application service opened the session, which therefore is none to administer the server with.
    pub by_service: bool,
}
postcard_value!(Device, 2, from DeviceV1);

/// The first format.
#[derive(Serialize, Deserialize)]
pub struct DeviceV1 {
    display_name: Option<String>,
    created_ts: u64,
}
postcard_value!(DeviceV1, 1);

impl From<DeviceV1> for Device {
    fn from(old: DeviceV1) -> Self {
        Device { display_name: old.display_name, created_ts: old.created_ts, epoch: 0, by_service: false }
    }
}

/// When a device was last used, to within some minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub ts: u64,
    pub ip: Option<String>,
}
postcard_value!(Seen, 1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    Access,
    Refresh,
    /// Logs its user in once.
    Login,
    /// Says who its user is.
    OpenId,
    /// A refresh token of OAuth that was replaced: who shows it has stolen it, or was stolen from.
    Spent,
    /// With it somebody else acts for the user: this administrator, or whoever is at the machine. Listed with their tokens,
    /// too.
    Acting {
        by: Option<String>,
    },
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub kind: TokenKind,
    pub user_id: String,
    pub device_id: String,
    /// When the token ends, in milliseconds since the epoch. Refresh tokens do not.
    pub expires_ts: Option<u64>,
    /// The hash of the other token, for an access and a refresh token that were given out together.
    pub partner: Option<[u8; 32]>,
    /// The pair was got by refreshing, and none of it was used yet: the refresh tokens before it still count.
    pub unconfirmed: bool,
    /// That of its user: a token of an earlier epoch is void.
    pub epoch: u64,
}
postcard_value!(Token, 2, from TokenV1);

/// The first format.
#[derive(Serialize, Deserialize)]
pub struct TokenV1 {
    kind: TokenKind,
    user_id: String,
    device_id: String,
    expires_ts: Option<u64>,
    partner: Option<[u8; 32]>,
    unconfirmed: bool,
}
postcard_value!(TokenV1, 1);

impl From<TokenV1> for Token {
    fn from(old: TokenV1) -> Self {
        let TokenV1 { kind, user_id, device_id, expires_ts, partner, unconfirmed } = old;
        Token { kind, user_id, device_id, expires_ts, partner, unconfirmed, epoch: 0 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationToken {
    /// How many accounts it may make; absent for any number.
    pub uses_allowed: Option<u64>,
    pub completed: u64,
    pub expires_ts: Option<u64>,
}
postcard_value!(RegistrationToken, 1);

/// The content, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountData(pub Bytes);

impl Value for AccountData {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(1);
        out.raw(&self.0);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut bytes = raw.into_bytes();
        if bytes.first() != Some(&1) {
            return Err(Corrupt::new("account data of an unknown format"));
        }
        Ok(AccountData(bytes.split_off(1)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDataKey {
    /// Empty for global account data.
    pub room_id: String,
    pub kind: String,
}
postcard_value!(AccountDataKey, 1);

/// Where an event lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventAt {
    pub room: RoomNr,
    pub at: Pos,
}

impl Value for EventAt {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(1);
        out.u64(self.room);
        out.pos(self.at);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        format_one(r.u8()?)?;
        let found = EventAt { room: r.u64()?, at: r.pos()? };
        r.end().map(|()| found)
    }
}

/// The `membership` of a member event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MembershipState {
    Join = 1,
    Invite = 2,
    Knock = 3,
    Leave = 4,
    Ban = 5,
}

impl MembershipState {
    pub fn parse(membership: &str) -> Option<Self> {
        Some(match membership {
            "join" => Self::Join,
            "invite" => Self::Invite,
            "knock" => Self::Knock,
            "leave" => Self::Leave,
            "ban" => Self::Ban,
            _ => return None,
        })
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

/// What a local user is in a room, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub state: MembershipState,
    /// The member event.
    pub event: Pos,
    /// Where the user last joined (a change of profile does not count), if they ever did.
    pub joined: Option<Pos>,
    /// Where the user stopped being joined, if they did since.
    pub left: Option<Pos>,
    /// Whether the user was ever joined before the present membership, and may still read that part.
    pub was_joined: bool,
    /// The user no longer wants to see the room.
    pub forgotten: bool,
}

impl Value for Membership {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(2);
        out.u8(self.state as u8);
        out.pos(self.event);
        out.pos(self.joined.unwrap_or(Pos::ZERO));
        out.u8(u8::from(self.was_joined) | u8::from(self.forgotten) << 1);
        out.pos(self.left.unwrap_or(Pos::ZERO));
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        let format = r.u8()?;
        if !matches!(format, 1 | 2) {
            return Err(Corrupt::new("a membership of an unknown format"));
        }
        let state = match r.u8()? {
            1 => MembershipState::Join,
            2 => MembershipState::Invite,
            3 => MembershipState::Knock,
            4 => MembershipState::Leave,
            5 => MembershipState::Ban,
            _ => return Err(Corrupt::new("an unknown membership")),
        };
        let event = r.pos()?;
        let joined = Some(r.pos()?).filter(|at| *at != Pos::ZERO);
        let bits = r.u8()?;
        let left = if format == 1 { None } else { Some(r.pos()?).filter(|at| *at != Pos::ZERO) };
        r.end()?;
        Ok(Membership { state, event, joined, left, was_joined: bits & 1 != 0, forgotten: bits & 2 != 0 })
    }
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Empty for transactions whose answer is an empty object.
    pub event_id: String,
    /// The day it was answered on, since the epoch; 0 for those of a time when it was not written down.
    pub day: u32,
}
postcard_value!(Txn, 2, from TxnV1);

impl Txn {
    pub fn new(event_id: impl Into<String>, now_ms: u64) -> Self {
        Txn { event_id: event_id.into(), day: Self::day(now_ms) }
    }

    /// The day that a moment is on.
    pub fn day(now_ms: u64) -> u32 {
        (now_ms / (24 * 60 * 60 * 1000)) as u32
    }
}

/// The first format.
#[derive(Serialize, Deserialize)]
pub struct TxnV1 {
    event_id: String,
}
postcard_value!(TxnV1, 1);

impl From<TxnV1> for Txn {
    fn from(old: TxnV1) -> Self {
        Txn { event_id: old.event_id, day: 0 }
    }
}

/// How an event relates to its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub rel_type: String,
    pub kind: String,
    pub sender: String,
    /// The `key` of an annotation.
    pub key: Option<String>,
}
postcard_value!(Relation, 1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    pub room_id: String,
    pub creator: String,
}
postcard_value!(Alias, 1);

/// `m.read` or `m.read.private`, and the thread: empty for unthreaded receipts, `main`, or a thread root's event ID.
pub type ReceiptKind = (bool, String);

/// How far a user has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its row in [`RECEIPT_LOG`].
    pub at: Pos,
    /// Where the event lies; zero for an event that is not here.
    pub event: Pos,
    pub event_id: String,
    /// When it was sent, in milliseconds since the epoch.
    pub ts: u64,
}

impl Value for Receipt {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(1);
        out.pos(self.at);
        out.pos(self.event);
        out.u64(self.ts);
        out.raw(self.event_id.as_bytes());
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        format_one(r.u8()?)?;
        let (at, event, ts) = (r.pos()?, r.pos()?, r.u64()?);
        let event_id = std::str::from_utf8(r.rest()).map_err(|_| Corrupt::new("an event ID that is not UTF-8"))?;
        Ok(Receipt { at, event, event_id: event_id.to_owned(), ts })
    }
}

/// Points from the log to the receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptKey {
    pub user_id: String,
    /// `m.read.private`: nobody else may see it.
    pub private: bool,
    pub thread: String,
}
postcard_value!(ReceiptKey, 1);

/// In which events a word stands: ascending positions, of which the last is in the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Postings(pub Vec<u64>);

impl Value for Postings {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(1);
        let before = std::iter::once(&0).chain(&self.0);
        let steps: Vec<u64> = self.0.iter().zip(before).map(|(at, before)| at.saturating_sub(*before)).collect();
        out.postcard(&steps);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        format_one(r.u8()?)?;
        let steps: Vec<u64> = r.postcard()?;
        r.end()?;
        let add = |at: &mut u64, step: u64| {
            *at = at.saturating_add(step);
            Some(*at)
        };
        Ok(Postings(steps.into_iter().scan(0, add).collect()))
    }
}

/// What somebody told the administrators of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When, in milliseconds since the epoch.
    pub ts: u64,
    pub reporter: String,
    pub reason: Option<String>,
    pub about: Reported,
}
postcard_value!(Report, 1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reported {
    Event { room_id: String, event_id: String },
    Room { room_id: String },
    User { user_id: String },
}

/// An upload, or a place kept for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Media {
    pub user_id: String,
    /// When the content arrived; for a kept place, when it was asked for.
    pub created_ts: u64,
    /// Absent until the content has arrived; then the name of the file on disk.
    pub sha256: Option<[u8; 32]>,
    pub size_bytes: u64,
    pub content_type: Option<String>,
    pub filename: Option<String>,
    /// When a kept place is given up.
    pub unused_expires_ts: Option<u64>,
}
postcard_value!(Media, 1);

/// Width, height, and two bits: 1 for cropped, 2 for animated.
pub type ThumbnailKey = (u32, u32, u8);

/// Where the smaller picture lies; the picture itself, if it was small enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thumbnail {
    pub sha256: [u8; 32],
    pub size_bytes: u64,
    pub content_type: String,
}
postcard_value!(Thumbnail, 1);

/// JSON in its own words, after one byte of format version.
macro_rules! json_value {
    ($type:ident, $what:literal) => {
        impl $type {
            /// The JSON in the bytes of a row.
            pub fn json_of(row: &[u8]) -> &[u8] {
                row.get(1..).unwrap_or_default()
            }
        }

        impl Value for $type {
            fn encode(&self, out: &mut ValueBuf) {
                out.u8(1);
                out.raw(&self.0);
            }
            fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
                let mut bytes = raw.into_bytes();
                if bytes.first() != Some(&1) {
                    return Err(Corrupt::new(concat!($what, " of an unknown format")));
                }
                Ok($type(bytes.split_off(1)))
            }
        }
    };
}

/// The `device_keys` of an upload as JSON, without `unsigned`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKeys(pub Bytes);
json_value!(DeviceKeys, "device keys");

/// A cross-signing key as JSON, with the signatures of its user that everybody may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey(pub Bytes);
json_value!(SigningKey, "a cross-signing key");

/// What a user signed of another's master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSignatures {
    /// Its row in [`USER_SIGNATURE_LOG`].
    pub at: Pos,
    /// The master key: once the user has another, this counts no more.
    pub master_key: String,
    /// By key ID.
    pub signatures: BTreeMap<String, String>,
}

impl Value for UserSignatures {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(1);
        out.pos(self.at);
        out.postcard(&(&self.master_key, &self.signatures));
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        format_one(r.u8()?)?;
        let at = r.pos()?;
        let (master_key, signatures) = r.postcard()?;
        Ok(UserSignatures { at, master_key, signatures })
    }
}

/// A device that its user left with the server, for one that comes later to take over its messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DehydratedDevice {
    pub device_id: String,
    /// JSON that only devices of the user understand.
    pub data: String,
}
postcard_value!(DehydratedDevice, 1);

/// The words by which a user is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameWords(pub BTreeSet<String>);
postcard_value!(NameWords, 1);

/// A version of a key backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    pub algorithm: String,
    /// JSON.
    pub auth_data: String,
    pub count: u64,
    /// Counts the changes of its keys.
    pub etag: u64,
    pub deleted: bool,
    /// How much its keys take, in bytes.
    pub bytes: u64,
}
postcard_value!(Backup, 2, from BackupV1);

/// The first format.
#[derive(Serialize, Deserialize)]
pub struct BackupV1 {
    algorithm: String,
    auth_data: String,
    count: u64,
    etag: u64,
    deleted: bool,
}
postcard_value!(BackupV1, 1);

impl From<BackupV1> for Backup {
    fn from(old: BackupV1) -> Self {
        /// Of a key, as clients make them, in bytes.
        const USUAL: u64 = 1_024;
        let BackupV1 { algorithm, auth_data, count, etag, deleted } = old;
        Backup { algorithm, auth_data, count, etag, deleted, bytes: count.saturating_mul(USUAL) }
    }
}

/// A key in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUpKey {
    pub first_message_index: u64,
    pub forwarded_count: u64,
    pub is_verified: bool,
    /// JSON that only devices of the user understand.
    pub session_data: String,
}
postcard_value!(BackedUpKey, 1);

/// A message to a device: the event as JSON, as the device gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToDevice(pub Bytes);
json_value!(ToDevice, "a message to a device");

/// A one-time key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimeKey {
    /// With the algorithm in front.
    pub key_id: String,
    pub json: Bytes,
    /// The row of its ID says where it is; that of an older one has to be told that it is gone.
    pub placed: bool,
}

impl Value for OneTimeKey {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(if self.placed { 2 } else { 1 });
        out.str(&self.key_id);
        out.raw(&self.json);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        let version = r.u8()?;
        let placed = version != 1;
        if placed {
            format_two(version)?;
        }
        Ok(OneTimeKey { key_id: r.str()?.to_owned(), json: Bytes::copy_from_slice(r.rest()), placed })
    }
}

/// A one-time key that was uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneTimeKeyId {
    /// The beginning of the SHA-256 of the key: tells whether it is the same key.
    pub digest: [u8; 16],
    /// The upload; zero for those of a time when it was not written down.
    pub at: Pos,
    pub held: Held,
}

/// How it is known whether a one-time key is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// By its row in [`ONE_TIME_KEYS`], with this index.
    AtIndex(u16),
    /// It was claimed, if this is true: of a time when nobody wrote down the index.
    UnlessClaimed(bool),
}

impl Value for OneTimeKeyId {
    fn encode(&self, out: &mut ValueBuf) {
        let (version, claimed) = match self.held {
            Held::AtIndex(_) => (3, false),
            Held::UnlessClaimed(claimed) => (2, claimed),
        };
        out.u8(version);
        out.raw(&self.digest);
        if version == 2 {
            out.u8(u8::from(claimed));
        }
        out.pos(self.at);
        if let Held::AtIndex(index) = self.held {
            out.u16(index);
        }
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        let version = r.u8()?;
        let mut digest = [0; 16];
        digest.copy_from_slice(r.take(16)?);
        let (at, held) = match version {
            1 => (Pos::ZERO, Held::UnlessClaimed(r.u8()? != 0)),
            2 => {
                let held = Held::UnlessClaimed(r.u8()? != 0);
                (r.pos()?, held)
            }
            3 => (r.pos()?, Held::AtIndex(r.u16()?)),
            _ => return Err(Corrupt::new("an unknown format version")),
        };
        r.end()?;
        Ok(OneTimeKeyId { digest, at, held })
    }
}

/// A key that is given out again and again while there is no one-time key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackKey {
    /// With the algorithm in front.
    pub key_id: String,
    /// Somebody has it: the device should upload another one.
    pub used: bool,
    pub json: Bytes,
}

impl Value for FallbackKey {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(1);
        out.u8(u8::from(self.used));
        out.str(&self.key_id);
        out.raw(&self.json);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        format_one(r.u8()?)?;
        let used = r.u8()? != 0;
        Ok(FallbackKey { used, key_id: r.str()?.to_owned(), json: Bytes::copy_from_slice(r.rest()) })
    }
}

/// How many keys of a device are left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// Where that changed last.
    pub changed: Pos,
    /// One-time keys, by algorithm.
    pub one_time: BTreeMap<String, u32>,
    /// The algorithms whose fallback key nobody was given yet.
    pub unused_fallback: BTreeSet<String>,
    /// The place (upload and index) of the one-time key that was given out last, by algorithm: no key is left up to
    /// there, so that nobody has to look past all that were deleted.
    pub given_out: BTreeMap<String, (Pos, u16)>,
    /// How many claimed keys are remembered; `None` if nobody has counted them yet.
    pub claimed: Option<u32>,
}

impl Value for KeyCounts {
    fn encode(&self, out: &mut ValueBuf) {
        // These are places of keys that others can claim: none is of the commit that this is part of.
        let given_out: BTreeMap<&str, (u64, u16)> =
            self.given_out.iter().map(|(algorithm, (at, index))| (algorithm.as_str(), (at.0, *index))).collect();
        out.u8(2);
        out.pos(self.changed);
        out.postcard(&(&self.one_time, &self.unused_fallback, given_out, self.claimed));
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        let version = r.u8()?;
        let changed = r.pos()?;
        if version == 1 {
            let (one_time, unused_fallback) = r.postcard()?;
            return Ok(KeyCounts { changed, one_time, unused_fallback, ..KeyCounts::default() });
        }
        format_two(version)?;
        type Fields = (BTreeMap<String, u32>, BTreeSet<String>, BTreeMap<String, (u64, u16)>, Option<u32>);
        let (one_time, unused_fallback, given_out, claimed): Fields = r.postcard()?;
        let given_out = given_out.into_iter().map(|(algorithm, (at, index))| (algorithm, (Pos(at), index))).collect();
        Ok(KeyCounts { changed, one_time, unused_fallback, given_out, claimed })
    }
}

/// Where notifications go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pusher {
    /// The device that made it, and with which it goes; empty for none.
    pub device_id: String,
    pub kind: String,
    pub app_display_name: String,
    pub device_display_name: String,
    pub profile_tag: Option<String>,
    pub lang: String,
    /// A JSON object.
    pub data: String,
    /// When it was set last.
    pub ts: u64,
}
postcard_value!(Pusher, 1);

/// How far a pusher has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The position of the last event that was sent or given up.
    pub at: u64,
}
postcard_value!(Pushed, 1);

/// What somebody has not read in a room, and on what that rests: where one of these is another, it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Events up to here are counted.
    pub as_of: Pos,
    /// Events were read at this version or later.
    pub began: Pos,
    /// Where the push rules and the ignored users were.
    pub edition: (Pos, Pos),
    /// Up to where everything is read, the main timeline, and threads by root.
    pub read: (Pos, Pos, BTreeMap<String, Pos>),
    /// Notifications and highlights in the main timeline.
    pub main: (u64, u64),
    /// The same in threads, by root.
    pub threads: BTreeMap<String, (u64, u64)>,
}
postcard_value!(Unread, 1);

/// An event that is sent later, unless somebody says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delayed {
    pub user_id: String,
    pub device_id: String,
    pub room_id: String,
    pub kind: String,
    pub state_key: Option<String>,
    /// A JSON object.
    pub content: String,
    pub delay_ms: u64,
    /// When the delay began, or began anew.
    pub since_ts: u64,
    /// What became of it.
    pub end: Option<DelayedEnd>,
}
postcard_value!(Delayed, 1);

/// What became of a delayed event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayedEnd {
    pub ts: u64,
    pub outcome: DelayedOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DelayedOutcome {
    /// As this event.
    Sent(String),
    Cancelled,
    /// The rules did not allow it: error code and message.
    Failed(String, String),
}

/// A client that registered itself. Its ID is the hash of what it said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthClient {
    /// A JSON object.
    pub metadata: String,
    /// When it was registered last, or opened a session.
    pub used_ts: u64,
    /// Whether it ever opened one.
    pub opened: bool,
}
postcard_value!(OauthClient, 2, from OauthClientV1);

/// The first format.
#[derive(Serialize, Deserialize)]
pub struct OauthClientV1 {
    metadata: String,
    used_ts: u64,
}
postcard_value!(OauthClientV1, 1);

impl From<OauthClientV1> for OauthClient {
    fn from(old: OauthClientV1) -> Self {
        // Nobody knows; so it is kept for longer.
        OauthClient { metadata: old.metadata, used_ts: old.used_ts, opened: true }
    }
}

/// How a device logged in by OAuth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthSession {
    pub client_id: String,
    /// As the client was told.
    pub scope: String,
    pub opened_ts: u64,
    /// The hash of the code that opened it.
    pub code: [u8; 32],
}
postcard_value!(OauthSession, 1);

/// A transaction for an application service. It is sent until it is acknowledged, always in the same words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTxn {
    pub number: u64,
    /// JSON; empty once it was acknowledged.
    pub body: String,
    /// The messages to devices that are in it: user ID, device ID, and the position of the last one.
    pub to_device: Vec<(String, String, u64)>,
}
postcard_value!(ServiceTxn, 1);

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub count: u64,
    pub bytes: u64,
}
postcard_value!(Usage, 1);

impl Usage {
    /// One more of so many bytes.
    #[must_use]
    pub fn with(self, bytes: u64) -> Self {
        Usage { count: self.count.saturating_add(1), bytes: self.bytes.saturating_add(bytes) }
    }

    /// One less.
    #[must_use]
    pub fn without(self, bytes: u64) -> Self {
        Usage { count: self.count.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) }
    }
}

fn format_one(version: u8) -> Result<(), Corrupt> {
    if version == 1 { Ok(()) } else { Err(Corrupt::new("an unknown format version")) }
}

/// The only format besides the first one.
fn format_two(version: u8) -> Result<(), Corrupt> {
    if version == 2 { Ok(()) } else { Err(Corrupt::new("an unknown format version")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_devices_and_tokens_of_the_first_format_are_of_the_first_epoch() {
        let encoded = |value: &dyn Fn(&mut ValueBuf)| {
            let mut bytes = ValueBuf::default();
            value(&mut bytes);
            bytes.as_bytes().to_vec()
        };
        let user = UserV1 {
            password_hash: None,
            created_ts: 7,
            admin: true,
            guest: false,
            deactivated: false,
            locked: false,
            suspended: true,
            erased: false,
        };
        let user = User::decode(Raw::Borrowed(&encoded(&|out| user.encode(out)))).unwrap();
        assert_eq!(user, User { created_ts: 7, admin: true, suspended: true, ..User::default() });
        let device = DeviceV1 { display_name: Some("x".to_owned()), created_ts: 7 };
        let device = Device::decode(Raw::Borrowed(&encoded(&|out| device.encode(out)))).unwrap();
        assert_eq!(device, Device { display_name: Some("x".to_owned()), created_ts: 7, epoch: 0, by_service: false });
        let token = TokenV1 {
            kind: TokenKind::Refresh,
            user_id: "@a:x".to_owned(),
            device_id: "D".to_owned(),
            expires_ts: Some(1),
            partner: Some([3; 32]),
            unconfirmed: true,
        };
        let token = Token::decode(Raw::Borrowed(&encoded(&|out| token.encode(out)))).unwrap();
        assert_eq!((token.kind, token.expires_ts, token.epoch), (TokenKind::Refresh, Some(1), 0));
        assert_eq!((token.partner, token.unconfirmed), (Some([3; 32]), true));
    }

    #[test]
    fn one_time_key_ids_of_older_formats_are_read() {
        let mut old = ValueBuf::default();
        old.u8(1);
        old.postcard(&([7u8; 16], true));
        let read = OneTimeKeyId::decode(Raw::Borrowed(old.as_bytes())).unwrap();
        assert_eq!(read, OneTimeKeyId { digest: [7; 16], at: Pos::ZERO, held: Held::UnlessClaimed(true) });
        let mut old = ValueBuf::default();
        old.u8(2);
        old.raw(&[8; 16]);
        old.u8(1);
        old.pos(Pos(9));
        let second = OneTimeKeyId { digest: [8; 16], at: Pos(9), held: Held::UnlessClaimed(true) };
        assert_eq!(OneTimeKeyId::decode(Raw::Borrowed(old.as_bytes())).unwrap(), second);
        for id in [second, OneTimeKeyId { held: Held::AtIndex(300), ..second }] {
            let mut bytes = ValueBuf::default();
            id.encode(&mut bytes);
            assert_eq!(OneTimeKeyId::decode(Raw::Borrowed(bytes.as_bytes())).unwrap(), id);
        }
    }

    #[test]
    fn one_time_keys_of_the_first_format_are_read() {
        for (version, placed) in [(1, false), (2, true)] {
            let mut bytes = ValueBuf::default();
            bytes.u8(version);
            bytes.str("a:b");
            bytes.raw(b"{}");
            let read = OneTimeKey::decode(Raw::Borrowed(bytes.as_bytes())).unwrap();
            assert_eq!(read, OneTimeKey { key_id: "a:b".to_owned(), json: Bytes::from_static(b"{}"), placed });
        }
        assert!(OneTimeKey::decode(Raw::Borrowed(&[3, 0, 1, b'a'])).is_err());
    }

    #[test]
    fn key_counts_of_the_first_format_are_read() {
        let one_time = BTreeMap::from([("signed_curve25519".to_owned(), 50)]);
        let unused_fallback = BTreeSet::from(["signed_curve25519".to_owned()]);
        let mut old = ValueBuf::default();
        old.u8(1);
        old.pos(Pos(9));
        old.postcard(&(&one_time, &unused_fallback));
        let read = KeyCounts::decode(Raw::Borrowed(old.as_bytes())).unwrap();
        let counts = KeyCounts { changed: Pos(9), one_time, unused_fallback, ..KeyCounts::default() };
        assert_eq!(read, counts);
        let given_out = BTreeMap::from([("signed_curve25519".to_owned(), (Pos(7), 3))]);
        let new = KeyCounts { given_out, claimed: Some(12), ..counts };
        let mut bytes = ValueBuf::default();
        new.encode(&mut bytes);
        assert_eq!(KeyCounts::decode(Raw::Borrowed(bytes.as_bytes())).unwrap(), new);
    }

    #[test]
    fn transactions_of_the_first_format_are_read() {
        let mut old = ValueBuf::default();
        TxnV1 { event_id: "$x".to_owned() }.encode(&mut old);
        let read = Txn::decode(Raw::Borrowed(old.as_bytes())).unwrap();
        assert_eq!(read, Txn { event_id: "$x".to_owned(), day: 0 });
        let mut new = ValueBuf::default();
        Txn::new("$y", 1_700_000_000_000).encode(&mut new);
        insta::assert_snapshot!(format!("{:02x?}", new.as_bytes()), @"[02, 02, 24, 79, db, 99, 01]");
    }

    #[test]
    fn memberships_of_the_first_format_are_read() {
        let new = Membership {
            state: MembershipState::Leave,
            event: Pos(9),
            joined: Some(Pos(3)),
            left: Some(Pos(7)),
            was_joined: true,
            forgotten: false,
        };
        let mut bytes = ValueBuf::default();
        new.encode(&mut bytes);
        assert_eq!(Membership::decode(Raw::Borrowed(bytes.as_bytes())).unwrap(), new);
        let old = [&[1][..], &bytes.as_bytes()[1..19]].concat();
        assert_eq!(Membership::decode(Raw::Borrowed(&old)).unwrap(), Membership { left: None, ..new });
    }

    #[test]
    fn the_tables_are_these_and_tags_are_unique() {
        let tables = tables();
        let mut tags: Vec<u8> = tables.iter().map(|t| t.tag).collect();
        tags.dedup();
        assert_eq!(tags.len(), tables.len(), "tags ascend and none is used twice");
        let list: Vec<String> = tables
            .iter()
            .map(|t| format!("{:02x} {} {:?}{}", t.tag, t.name, t.hint, if t.chunked { " chunked" } else { "" }))
            .collect();
        insta::assert_snapshot!(list.join("\n"));
    }

    #[test]
    fn postings_come_back() {
        for block in [vec![], vec![7], vec![1, 2, 900, u64::MAX >> 1]] {
            let mut bytes = ValueBuf::default();
            Postings(block.clone()).encode(&mut bytes);
            assert_eq!(Postings::decode(Raw::Borrowed(bytes.as_bytes())).unwrap().0, block);
        }
    }
}
