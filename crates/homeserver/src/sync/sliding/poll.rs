//! Polls of one connection: answer at once if there is something to say, else wait until there is.
//!
//! Polls of different connections share nothing but short looks at their user's rooms.

use std::sync::Arc;
use std::time::Duration;

use ruma::presence::PresenceState;
use ruma::{OwnedDeviceId, OwnedUserId};
use store::Pos;

use super::answer::{Ask, answer, style};
use super::assemble::{Dialect, Frame, Prefixed, assemble};
use super::config::{Config, Messages};
use super::connection::{Connection, Device, Key, State};
use super::extensions::{device_news, messages_wait};
use super::material::Material;
use crate::App;
use crate::error::{Error, Result};
use crate::sync::token::ConnectionToken;
use crate::sync::wait::{Waiting, Waits, in_turn, wait};

/// A client's request, as far as it is needed again.
pub struct Poll {
    waiting: Waiting,
    key: Key,
    connection: Arc<Connection>,
    /// What the client has; moves on while there is nothing to say.
    state: State,
    /// It moved on in another way than by time.
    moved: bool,
    /// With this it came.
    pos: Option<ConnectionToken>,
    config: Arc<Config>,
    messages: Option<Messages>,
    txn_id: Option<String>,
    dialect: Dialect,
    prefixed: Prefixed,
}

/// What a request says.
pub struct Terms {
    pub pos: Option<String>,
    pub conn_id: String,
    pub config: Config,
    pub messages: Option<Messages>,
    pub txn_id: Option<String>,
    pub timeout: Duration,
    pub presence: PresenceState,
    pub dialect: Dialect,
    pub prefixed: Prefixed,
}

impl Poll {
    /// Boxed: a future has room for each place that it is passed through.
    pub fn new(app: App, user_id: OwnedUserId, device_id: Option<OwnedDeviceId>, terms: Terms) -> Result<Box<Self>> {
        let device = Device {
            user_id: user_id.to_string(),
            device_id: device_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let key = Key { device, conn_id: terms.conn_id };
        let (pos, connection, state) = match terms.pos {
            None => (None, app.sync.sliding.connections.begin(&key), State::default()),
            Some(pos) => {
                let unknown = || Error::unknown_pos("This position is not known; begin anew");
                let pos: ConnectionToken = pos.parse().map_err(|_| unknown())?;
                let known = app.sync.sliding.connections.resume(&key, pos.number).filter(|_| pos.boot == app.sync.boot);
                let (connection, state) = known.ok_or_else(unknown)?;
                (Some(pos), connection, (*state).clone())
            }
        };
        // Who asks for the same as before is told by that, and not by comparing it again.
        let config = match &state.config {
            Some(before) if **before == terms.config => before.clone(),
            _ => Arc::new(terms.config),
        };
        if let (Some(Messages { since: Some(since), .. }), Some(device_id)) = (terms.messages, &device_id) {
            app.sync.unacknowledged.acknowledge(&app, &user_id, device_id, since)?;
        }
        let waiting = Waiting::new(app, user_id, device_id, terms.timeout, &terms.presence);
        let Terms { messages, txn_id, dialect, prefixed, .. } = terms;
        let moved = false;
        let poll = Poll { waiting, key, connection, state, moved, pos, config, messages, txn_id, dialect, prefixed };
        Ok(Box::new(poll))
    }

    /// Answers, when there is something to say or the time is over.
    pub async fn answer(mut self: Box<Self>) -> Result<Vec<u8>> {
        if self.pos.is_some() {
            return wait(self).await;
        }
        let app = self.waiting.app.clone();
        let make = move || {
            let (next, material) = answer(self.ask())?;
            self.state = next;
            Ok(self.told(&material))
        };
        in_turn(app, make).await
    }

    fn ask(&self) -> Ask<'_> {
        let Poll { waiting: Waiting { app, user_id, live, .. }, config, messages, state, .. } = self;
        Ask { app, user_id, device_id: self.waiting.device_id.as_deref(), live, config, messages: *messages, state }
    }

    /// An answer that the client may come back with.
    fn told(&self, material: &Material) -> Vec<u8> {
        let connections = &self.waiting.app.sync.sliding.connections;
        let number = connections.put(&self.key, &self.connection, self.state.clone());
        let pos = ConnectionToken { version: self.state.version, boot: self.waiting.app.sync.boot, number };
        self.dressed(material, pos)
    }

    fn dressed(&self, material: &Material, pos: ConnectionToken) -> Vec<u8> {
        let frame = Frame {
            pos: &pos.to_string(),
            txn_id: self.txn_id.as_deref(),
            config: &self.config,
            marks: &self.state.marks,
            style: style(&self.waiting.app, self.waiting.device_id.as_deref()),
            dialect: self.dialect,
            prefixed: self.prefixed,
        };
        assemble(material, &frame)
    }
}

impl Waits for Poll {
    fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn version(&self) -> Pos {
        self.state.version
    }

    fn look(&mut self) -> Result<Option<Vec<u8>>> {
        let same = self.state.config.as_ref().is_some_and(|before| Arc::ptr_eq(before, &self.config));
        let quiet = same && self.state.serial == self.waiting.app.sync.serial();
        if quiet
            && let Some(version) = self.waiting.live.idle_since(&self.waiting.app.store, self.state.version)
            && !messages_wait(self.ask(), &self.waiting.app.store.snapshot())?
        {
            self.state.version = version.max(self.state.version);
            return Ok(None);
        }
        let (next, material) = answer(self.ask())?;
        (self.state, self.moved) = (next, true);
        // A client that asks for something else hears how many rooms there are at once.
        Ok((!same || !material.is_empty()).then(|| self.told(&material)))
    }

    /// The time is over. As long as nothing concerned the user at all, the client stays where it was.
    fn nothing(&self) -> Result<Vec<u8>> {
        let mut material = Material::default();
        device_news(self.ask(), &self.waiting.app.store.snapshot(), &mut material)?;
        let here = self.pos.filter(|pos| !self.moved && self.waiting.live.signal.last() <= pos.version);
        Ok(match here {
            Some(pos) => self.dressed(&material, pos),
            None => self.told(&material),
        })
    }
}
