//! Polls: answer at once if there is something to say, else wait until there is.
//!
//! A waiting poll holds what it needs for its next look and nothing of its request. It is woken by its user's signal
//! only. A client that hangs up drops the future, and with it everything; a stop of the server answers at once.

use std::sync::Arc;
use std::time::Duration;

use ruma::presence::PresenceState;
use ruma::{OwnedDeviceId, OwnedUserId};
use store::Pos;

use super::assemble::{Dress, StateAfter, assemble};
use super::collect::{Ask, collect};
use super::devices;
use super::filter::Filter;
use super::live::LiveUser;
use super::material::Material;
use super::presence;
use super::token::{Ephemeral, SyncToken};
use crate::App;
use crate::auth;
use crate::blocking;
use crate::error::{Error, Result};

/// No poll waits longer: proxies cut connections that are silent for a minute.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(50);

/// Who polls, and for how long. As long as this is there, the user is present (if the client said so).
pub(super) struct Waiting {
    pub app: App,
    pub user_id: OwnedUserId,
    pub device_id: Option<OwnedDeviceId>,
    pub live: Arc<LiveUser>,
    timeout: Duration,
    /// The poll is why its user is not offline.
    present: bool,
}

impl Waiting {
    pub(super) fn new(
        app: App,
        user_id: OwnedUserId,
        device_id: Option<OwnedDeviceId>,
        timeout: Duration,
        presence: &PresenceState,
    ) -> Self {
        let live = app.sync.live.get(&app.store, &user_id);
        let present = app.config.presence.enabled && *presence != PresenceState::Offline;
        if present {
            presence::poll_begins(&app, &user_id, presence);
        }
        Waiting { app, user_id, device_id, live, timeout: timeout.min(MAX_TIMEOUT), present }
    }

    /// Who was logged out while they waited is told nothing more.
    fn check_open(&self) -> Result<()> {
        let Some(device_id) = &self.device_id else { return Ok(()) };
        let open = auth::devices::is_open(&self.app.store.snapshot(), self.user_id.as_str(), device_id.as_str())?;
        if open { Ok(()) } else { Err(Error::unknown_token()) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.present {
            self.app.sync.presence.poll_ended(&self.user_id, self.app.clock.monotonic());
        }
    }
}

/// A poll of any kind, as the loop that waits sees it.
pub(super) trait Waits {
    fn waiting(&self) -> &Waiting;
    /// Where the client is: what happens after it wakes the poll.
    fn version(&self) -> Pos;
    /// One look at the store: an answer, or the poll moves on to where there is nothing new.
    fn look(&mut self) -> Result<Option<Vec<u8>>>;
    /// The answer when the time is over.
    fn nothing(&self) -> Result<Vec<u8>>;
}

/// Answers, when there is something to say or the time is over.
pub(super) async fn wait(mut poll: Box<impl Waits>) -> Result<Vec<u8>> {
    let started = poll.waiting().app.clock.monotonic();
    loop {
        let nudges = poll.waiting().live.signal.nudges();
        if let Some(answer) = poll.look()? {
            return Ok(answer);
        }
        let Waiting { app, live, timeout, .. } = poll.waiting();
        let waited = app.clock.monotonic().saturating_sub(started);
        let left = timeout.saturating_sub(waited);
        if left.is_zero() || app.shutdown.is_cancelled() {
            return poll.nothing();
        }
        tokio::select! {
            () = live.signal.changed(poll.version(), nudges) => {}
            () = app.clock.sleep(left) => {}
            () = app.shutdown.cancelled() => {}
        }
        poll.waiting().check_open()?;
    }
}

/// Makes an answer that takes its time: elsewhere, and a few at a time.
pub(super) async fn in_turn(app: App, make: impl FnOnce() -> Result<Vec<u8>> + Send + 'static) -> Result<Vec<u8>> {
    let _turn = app.sync.large.acquire().await.map_err(Error::internal)?;
    blocking::run(make).await?
}

/// A client's request, as far as it is needed again.
pub struct Poll {
    waiting: Waiting,
    filter: Arc<Filter>,
    since: Option<SyncToken>,
    full_state: bool,
    state_after: StateAfter,
}

/// What a request says.
pub struct Terms<'a> {
    pub filter: Option<&'a str>,
    pub since: Option<&'a str>,
    pub full_state: bool,
    pub state_after: StateAfter,
    pub timeout: Duration,
    pub presence: PresenceState,
}

impl Poll {
    /// Boxed: a future has room for each place that it is passed through.
    pub fn new(
        app: App,
        user_id: OwnedUserId,
        device_id: Option<OwnedDeviceId>,
        terms: &Terms<'_>,
    ) -> Result<Box<Self>> {
        let since: Option<SyncToken> = terms.since.map(str::parse).transpose()?;
        let snapshot = app.store.snapshot();
        if since.is_some_and(|since| since.version > app.store.tip()) {
            return Err(Error::invalid_param("This token is of a time that has not come"));
        }
        if let (Some(since), Some(device_id)) = (since, &device_id) {
            app.sync.unacknowledged.acknowledge(&app, &user_id, device_id, since.messages())?;
        }
        let filter = app.sync.filters.find(&snapshot, &user_id, terms.filter)?;
        let waiting = Waiting::new(app, user_id, device_id, terms.timeout, &terms.presence);
        let Terms { full_state, state_after, .. } = *terms;
        Ok(Box::new(Poll { waiting, filter, since, full_state, state_after }))
    }

    /// Answers, when there is something to say or the time is over.
    pub async fn answer(self: Box<Self>) -> Result<Vec<u8>> {
        if self.since.is_none() || self.full_state {
            // This is about everything.
            return in_turn(self.waiting.app.clone(), move || Ok(self.dressed(&collect(&self.ask())?))).await;
        }
        wait(self).await
    }

    /// Where the client is. Without a token it is before everything.
    fn here(&self) -> SyncToken {
        self.since.unwrap_or(SyncToken { version: Pos::ZERO, ephemeral: Ephemeral::default(), to_device: None })
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            app: &self.waiting.app,
            user_id: &self.waiting.user_id,
            device_id: self.waiting.device_id.as_deref(),
            live: &self.waiting.live,
            filter: &self.filter,
            since: self.since,
            full_state: self.full_state,
            state_after: self.state_after,
        }
    }

    fn dressed(&self, material: &Material) -> Vec<u8> {
        let dress = Dress {
            now_ms: self.waiting.app.clock.now_ms(),
            device_id: self.waiting.device_id.as_deref().map(|device| device.as_str()),
            federation: self.filter.federation,
            fields: self.filter.fields.as_ref(),
            state_after: self.state_after,
            thread_counts: self.filter.thread_counts,
        };
        assemble(material, &dress)
    }
}

impl Waits for Poll {
    fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn version(&self) -> Pos {
        self.here().version
    }

    fn look(&mut self) -> Result<Option<Vec<u8>>> {
        let here = self.here();
        let quiet = here.to_device.is_none()
            && here.ephemeral.boot == self.waiting.app.sync.boot
            && here.ephemeral.serial == self.waiting.app.sync.serial();
        if quiet && let Some(version) = self.waiting.live.idle_since(&self.waiting.app.store, here.version) {
            self.since = Some(SyncToken { version: version.max(here.version), ..here });
            return Ok(None);
        }
        let material = collect(&self.ask())?;
        if !material.is_empty() {
            return Ok(Some(self.dressed(&material)));
        }
        self.since = Some(material.next);
        Ok(None)
    }

    /// An answer that says only how many keys there are.
    fn nothing(&self) -> Result<Vec<u8>> {
        let mut material = Material::nothing(self.here());
        let snapshot = self.waiting.app.store.snapshot();
        material.devices.key_counts =
            devices::key_counts(&snapshot, &self.waiting.user_id, self.waiting.device_id.as_deref())?;
        Ok(self.dressed(&material))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F: Future>(_: impl FnOnce(Box<Poll>) -> F) -> usize {
        std::mem::size_of::<F>() + std::mem::size_of::<Poll>()
    }

    #[test]
    fn a_waiting_poll_is_small() {
        let size = size_of_future(Poll::answer);
        assert!(size <= 640, "thousands of polls wait, with {size} bytes each");
    }
}
