//! The server under simulation: its disk, its clock, its crashes, and the requests that are under way.

use std::collections::BTreeMap;
use std::time::Duration;

use homeserver::App;
use homeserver::clock::Clock;
use homeserver::config::Config;
use homeserver::http::{Answer, Body, Local};
use homeserver::rng::Rng;
use homeserver::{jobs, signing, testing};
use serde_json::Value;
use store::{Committer, Faults, MemoryDisk, Store};
use tokio::task::JoinHandle;

use crate::Check;
use crate::request::{Request, dec};
use crate::trace::Trace;

/// So often everybody gets a turn before the simulation goes on: more than any chain of wake-ups is long.
const TURNS: usize = 24;
/// A request that is not answered after so many writes never will be.
const PATIENCE: usize = 2_000;

pub(crate) struct World {
    pub(crate) app: App,
    pub(crate) clock: Clock,
    pub(crate) disk: MemoryDisk,
    pub(crate) trace: Trace,
    /// Counts what may fail requests through no fault of the server.
    pub(crate) trouble: u64,
    pub(crate) sabotage: Option<Sabotage>,
    /// Whose token is whose, to be read in the trace.
    pub(crate) names: BTreeMap<String, String>,
    writes: u64,
    /// What the disk was some writes ago: where [`Sabotage::LoseDurable`] goes back to.
    forgotten: Option<MemoryDisk>,
    committer: Committer,
    client: Local,
    config: Config,
    rng: Rng,
    seed: u64,
}

/// A bug planted on purpose, to see that somebody notices. What is broken is broken now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Sync answers lose their last timeline event.
    DropTimelineEvent,
    /// The last two events of a timeline change places.
    SwapTimelineEvents,
    /// Sync answers lose a state event.
    DropStateEvent,
    /// A receipt is lost.
    DropReceipt,
    /// A piece of account data is lost.
    DropAccountData,
    /// A message to a device is lost.
    DropNote,
    /// That a user left a room is not told.
    DropLeave,
    /// One more event is unread than there is.
    MiscountUnread,
    /// An endpoint answers with what another user may see.
    MistakeUser,
    /// A poll that waits is woken by its timeout only.
    SleepThrough,
    /// The transaction ID of a request is another one when it is retried.
    ForgetTransaction,
    /// When the power fails, the disk forgets its last writes, although it said that they are safe.
    LoseDurable,
}

impl Sabotage {
    pub const ALL: [Sabotage; 12] = [
        Sabotage::DropTimelineEvent,
        Sabotage::SwapTimelineEvents,
        Sabotage::DropStateEvent,
        Sabotage::DropReceipt,
        Sabotage::DropAccountData,
        Sabotage::DropNote,
        Sabotage::DropLeave,
        Sabotage::MiscountUnread,
        Sabotage::MistakeUser,
        Sabotage::SleepThrough,
        Sabotage::ForgetTransaction,
        Sabotage::LoseDurable,
    ];
}

/// A request that is under way.
pub(crate) struct InFlight {
    pub(crate) request: Request,
    pub(crate) trouble: u64,
    pub(crate) began: u64,
    task: JoinHandle<Answer>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Check<Self> {
        let disk = MemoryDisk::new();
        let clock = Clock::manual(1_750_000_000_000);
        let rng = Rng::seeded(seed);
        let mut config = testing::config();
        config.memory_budget = homeserver::config::Size::mib(64);
        let (app, committer) = start(&disk, &config, &clock, &rng, seed)?;
        let client = Local::new(app.router());
        Ok(Self {
            app,
            clock,
            disk,
            trace: Trace::default(),
            trouble: 0,
            sabotage: None,
            names: BTreeMap::new(),
            writes: 0,
            forgotten: None,
            committer,
            client,
            config,
            rng,
            seed,
        })
    }

    /// Sends a request; nothing happens before everybody gets a turn.
    pub(crate) fn send(&mut self, request: Request, now: u64) -> InFlight {
        let client = match &request.token {
            Some(token) => self.client.with_token(token.clone()),
            None => self.client.clone(),
        };
        let (method, path) = (request.method.clone(), request.path.clone());
        let body = request.body.as_ref().map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let trouble = if self.app.store.health().is_err() { u64::MAX } else { self.trouble };
        let task = tokio::spawn(async move { client.send(method, &path, body).await });
        InFlight { request, trouble, began: now, task }
    }

    /// Gives everybody their turns.
    pub(crate) async fn settle(&mut self) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        if self.app.store.health().is_err() {
            self.trouble += 1;
        }
    }

    /// Lets the disk write what is queued, once.
    pub(crate) fn write(&mut self) -> bool {
        if self.sabotage == Some(Sabotage::LoseDurable) && self.writes.is_multiple_of(8) {
            self.forgotten = Some(self.disk.copy());
        }
        self.writes += 1;
        let done = self.committer.step();
        if self.app.store.health().is_err() {
            self.trouble += 1;
        }
        done
    }

    /// The answer, if it is there.
    pub(crate) async fn answer(&mut self, flight: InFlight) -> Check<Result<Answer, InFlight>> {
        if !flight.task.is_finished() {
            return Ok(Err(flight));
        }
        let Request { method, path, body, token } = &flight.request;
        let told = body.as_ref().map(Value::to_string).unwrap_or_default();
        let who = token.as_ref().and_then(|token| self.names.get(token)).map_or("somebody", String::as_str);
        let answer =
            flight.task.await.map_err(|cause| format!("{method} {path} {told}: the router failed: {cause}"))?;
        let shown = String::from_utf8_lossy(&answer.body[..answer.body.len().min(8_000)]).into_owned();
        let status = answer.status.as_u16();
        self.trace.add(format!("{who}: {method} {} {told} -> {status} {shown}", dec(path)), &answer.body);
        let (code, json) = (answer.status.as_u16(), answer.json());
        if code >= 500 && flight.trouble == self.trouble {
            return Err(format!("{method} {path} {told}: {code} {json} although nothing was wrong"));
        }
        if code >= 400 && !json["errcode"].as_str().is_some_and(|code| code.starts_with("M_")) && code != 401 {
            return Err(format!("{method} {path} {told}: {code} without an errcode: {json}"));
        }
        if json["errcode"] == "M_UNRECOGNIZED" || code == 405 {
            return Err(format!("{method} {path}: there is no such endpoint"));
        }
        Ok(Ok(answer))
    }

    /// Sends a request and waits for its answer, with the disk writing.
    pub(crate) async fn call(&mut self, request: Request) -> Check<Answer> {
        let mut flight = self.send(request, 0);
        for _ in 0..PATIENCE {
            self.settle().await;
            match self.answer(flight).await? {
                Ok(answer) => return Ok(answer),
                Err(still) => flight = still,
            }
            self.write();
        }
        Err(format!("{} {} is never answered", flight.request.method, flight.request.path))
    }

    /// Everything that is queued gets to the disk, and everybody who waits for that goes on.
    pub(crate) async fn quiesce(&mut self) -> Check {
        for _ in 0..PATIENCE {
            self.settle().await;
            if !self.write() {
                return Ok(());
            }
        }
        Err("the server does not come to rest".to_owned())
    }

    pub(crate) fn set_faults(&mut self, faults: Faults) {
        self.trace.say(format!("** {faults:?}"));
        self.disk.set_faults(faults);
    }

    pub(crate) fn set_full(&mut self, full: bool) {
        self.trace.say(format!("** the disk is {}", if full { "full" } else { "no longer full" }));
        self.disk.set_full(full);
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.trace.say(format!("** {} ms go by", by.as_millis()));
        self.clock.advance(by);
    }

    /// The power fails: what is not on the disk is lost, and the server starts again.
    pub(crate) async fn crash(&mut self) -> Check {
        self.trace.say("** crash");
        self.trouble += 1;
        self.disk.crash();
        self.app.shutdown.cancel();
        self.committer.step();
        self.settle().await;
        if let Some(disk) = self.forgotten.take() {
            self.disk = disk;
        }
        (self.app, self.committer) = start(&self.disk, &self.config, &self.clock, &self.rng, self.seed)?;
        self.client = Local::new(self.app.router());
        self.settle().await;
        Ok(())
    }
}

fn start(disk: &MemoryDisk, config: &Config, clock: &Clock, rng: &Rng, seed: u64) -> Check<(App, Committer)> {
    let (store, committer) = Store::open_manual(disk.clone()).map_err(|cause| format!("opening the store: {cause}"))?;
    let key =
        signing::generate(&Rng::seeded(seed)).and_then(|key| key.key_pair()).map_err(|cause| cause.to_string())?;
    let app = App::new(config.clone(), store, key, clock.clone(), rng.clone());
    app.tasks.spawn(jobs::run(app.clone()));
    Ok((app, committer))
}
