//! Application services are told what happens (spec: Application Service API, Pushing events). One task for each follows
//! the journal; whoever sends an event does not wait for it.
//!
//! - `interest`: which events a service hears of. `transaction`: what is put together for it. `calls`: asking a service.
//! - `queries`: users, aliases and other networks that only a service knows. `waiting`: what a service does not take.
//!
//! A transaction is written down together with the cursor of the journal before it is sent, and is sent in the same
//! words until the service acknowledges it: none is left out, none comes before another, and a service that sees one
//! twice knows it by its number. Only who takes nothing for weeks begins anew, and is not told what it missed.

pub mod calls;
mod interest;
pub mod queries;
#[cfg(test)]
mod tests;
mod transaction;
pub mod waiting;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use store::{Batch, Pos, Read as _, Signal, Tx, journal};

use crate::App;
use crate::background;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::schema::{SERVICE_FOLLOWERS, SERVICE_TXNS, ServiceTxn, USERS, topic};
use crate::users::accounts::{self, NewAccount, Opener};
use interest::Interest;
use transaction::Draft;

/// Entries of the journal that are gone through at a time.
const ENTRIES: usize = 64;
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// After the first failure; twice as long after each one more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A service that shows that it is there is tried again at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// What a service has not taken for so long it is told no more: the journal cannot be kept for ever.
const GIVE_UP_MS: u64 = 14 * 24 * 60 * 60 * 1000;
/// Rows that are deleted in one commit.
const MAX_ROWS: usize = 1_000;

/// Sees to it that the services' own users are there, forgets services that are gone, and begins to tell the others.
pub async fn start(app: &App) -> Result<()> {
    forget_others(app).await?;
    for service in app.appservices.iter() {
        let open = |tx: &mut Tx| -> Result<()> {
            if tx.get(&USERS, service.sender.as_str())?.is_none() {
                // Whoever wrote the registration is an administrator.
                let new = NewAccount { opener: Opener::Administrator, ..NewAccount::default() };
                accounts::open(app, tx, &service.sender, new)?;
            }
            Ok(())
        };
        app.store.transact(open).await?;
        if service.service.is_some() {
            let service = service.clone();
            background::spawn(app, "application service", move |app| run(app, service.clone()));
        }
    }
    Ok(())
}

/// Services that nobody tells anything any more hold up the journal no longer.
async fn forget_others(app: &App) -> Result<()> {
    let mut batch = Batch::new();
    for (follower, _) in journal::cursors(&app.store.snapshot())? {
        let Some(id) = follower.strip_prefix(SERVICE_FOLLOWERS) else { continue };
        if app.appservices.by_id(id).is_none_or(|service| service.service.is_none()) {
            journal::forget(&mut batch, &follower);
            batch.delete(&SERVICE_TXNS, id);
        }
    }
    if !batch.is_empty() {
        app.store.commit(batch)?.durable().await?;
    }
    Ok(())
}

async fn run(app: App, service: Arc<Registration>) {
    let mut failures = 0;
    loop {
        let began = app.clock.monotonic();
        let cause = match Follower::start(&app, &service).await {
            Ok(mut follower) => match follower.follow().await {
                Ok(()) => return,
                Err(cause) => cause,
            },
            Err(cause) => cause,
        };
        // What went well for some time is no row of failures.
        let lasted = app.clock.monotonic().saturating_sub(began) >= LONGEST_PAUSE;
        failures = if lasted { 1 } else { failures + 1 };
        app.troubles.failed(&app, &service, &cause.to_string());
        tracing::warn!(service = service.id, %cause, "an application service has to wait");
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.clock.sleep(pause(failures, app.rng.below(1_000))) => {}
        }
    }
}

struct Follower<'a> {
    app: &'a App,
    service: &'a Registration,
    name: String,
    /// Moves when the service shows that it is there.
    here: Arc<Signal>,
    interest: Interest<'a>,
    /// The transaction under way, or the last one.
    txn: ServiceTxn,
    /// Everything up to here is in transactions, or of no interest.
    done: Pos,
    /// The cursor is behind.
    unsaved: bool,
    saved_when: Duration,
    failures: u32,
}

impl<'a> Follower<'a> {
    async fn start(app: &'a App, service: &'a Registration) -> Result<Self> {
        let here = app.store.hub().signal();
        app.store.hub().attach(topic::appservice(&service.id), &here);
        let snapshot = app.store.snapshot();
        let name = format!("{SERVICE_FOLLOWERS}{}", service.id);
        let done = match journal::cursor(&snapshot, &name)? {
            Some(done) => done,
            None => {
                let mut batch = Batch::new();
                journal::advance(&mut batch, &name, snapshot.version());
                app.store.commit(batch)?.durable().await?;
                snapshot.version()
            }
        };
        Ok(Follower {
            app,
            service,
            name,
            here,
            interest: Interest::load(app, service, &snapshot, done)?,
            txn: snapshot.get(&SERVICE_TXNS, &service.id)?.unwrap_or_default(),
            done,
            unsaved: false,
            saved_when: app.clock.monotonic(),
            failures: 0,
        })
    }

    /// Goes on until the server stops.
    async fn follow(&mut self) -> Result<()> {
        let mut tip = self.app.store.hub().watch_tip();
        loop {
            tip.mark_unchanged();
            let nudges = self.interest.signal().nudges();
            if !self.deliver().await? {
                return self.save().await;
            }
            if self.step().await? {
                tokio::task::yield_now().await;
                continue;
            }
            if self.unsaved && self.until_save().is_zero() {
                self.save().await?;
            }
            tokio::select! {
                changed = tip.changed() => if changed.is_err() { return Ok(()) },
                // Only what is not stored: the rest moves the tip.
                () = self.interest.signal().changed(Pos(u64::MAX), nudges) => {}
                () = self.app.clock.sleep(self.until_save()), if self.unsaved => {}
                () = self.app.shutdown.cancelled() => return self.save().await,
            }
        }
    }

    /// Goes through a stretch of the journal, and writes down what the service is to be told. Says whether there may be
    /// more to do.
    async fn step(&mut self) -> Result<bool> {
        let snapshot = self.app.store.snapshot();
        let entries = journal::read(&snapshot, self.done, ENTRIES)?;
        let end = match entries.last() {
            Some(last) if entries.len() == ENTRIES => last.version,
            _ => snapshot.version(),
        };
        let mut draft = Draft::new(self.app, self.service);
        let through = self.interest.gather(&snapshot, &entries, (self.done, end.max(self.done)), &mut draft)?;
        self.done = through;
        self.unsaved |= !entries.is_empty();
        if draft.is_empty() {
            return Ok(entries.len() == ENTRIES);
        }
        let number = self.app.clock.now_ms().max(self.txn.number + 1);
        self.txn = draft.finish(number);
        let mut batch = Batch::new();
        batch.put(&SERVICE_TXNS, &self.service.id, &self.txn);
        journal::advance(&mut batch, &self.name, self.done);
        self.app.store.commit(batch)?.durable().await?;
        (self.unsaved, self.saved_when) = (false, self.app.clock.monotonic());
        Ok(true)
    }

    /// Sends the transaction under way until it is acknowledged. `false`: the server stops.
    async fn deliver(&mut self) -> Result<bool> {
        while !self.txn.body.is_empty() {
            // Their numbers are the times at which they were made.
            if self.app.clock.now_ms().saturating_sub(self.txn.number) > GIVE_UP_MS {
                self.give_up().await?;
            }
            let nudges = self.here.nudges();
            if self.failures > 0 && self.is_skipped()? {
                (self.txn.body, self.failures) = (String::new(), 0);
                self.txn.to_device.clear();
                continue;
            }
            let path = format!("transactions/{}", self.txn.number);
            let sent = tokio::select! {
                sent = calls::call(self.app, self.service, Method::PUT, &path, Some(self.txn.body.clone().into())) => sent,
                () = self.app.shutdown.cancelled() => return Ok(false),
            };
            let cause = match sent {
                Ok((status, _)) if status.is_success() => {
                    self.failures = 0;
                    self.app.troubles.over(self.service);
                    self.acknowledged().await?;
                    continue;
                }
                Ok((status, _)) => format!("it answers {status}"),
                Err(cause) => cause.to_string(),
            };
            self.failures = self.failures.saturating_add(1);
            self.app.troubles.failed(self.app, self.service, &cause);
            if self.failures == 1 {
                tracing::warn!(service = self.service.id, cause, "an application service does not take a transaction");
            }
            tokio::select! {
                () = self.app.clock.sleep(pause(self.failures, self.app.rng.below(1_000))) => {}
                () = self.here.changed(Pos(u64::MAX), nudges) => {}
                () = self.app.shutdown.cancelled() => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Goes on with what happens from now on, by beginning anew.
    async fn give_up(&mut self) -> Result<()> {
        let done = ServiceTxn { number: self.txn.number, ..ServiceTxn::default() };
        let mut batch = Batch::new();
        batch.put(&SERVICE_TXNS, &self.service.id, &done);
        journal::advance(&mut batch, &self.name, self.app.store.tip());
        self.app.store.commit(batch)?.durable().await?;
        let service = &self.service.id;
        tracing::error!(
            service,
            "an application service was away for too long: what happened up to now it is not told"
        );
        Err(Error::unavailable("the service was away for too long"))
    }

    /// The service has it: the messages to devices in it are delivered.
    async fn acknowledged(&mut self) -> Result<()> {
        let service = self.service;
        let txn = std::mem::take(&mut self.txn);
        self.txn = self.app.store.transact(|tx| waiting::done_with(tx, &service.id, &txn)).await?.value;
        Ok(())
    }

    /// Whether an administrator decided to go on without the transaction under way.
    fn is_skipped(&self) -> Result<bool> {
        let row = self.app.store.snapshot().get(&SERVICE_TXNS, &self.service.id)?;
        Ok(row.is_some_and(|row| row.number == self.txn.number && row.body.is_empty()))
    }

    fn until_save(&self) -> Duration {
        (self.saved_when + SAVE_EVERY).saturating_sub(self.app.clock.monotonic())
    }

    /// Writes down how far the journal was gone through.
    async fn save(&mut self) -> Result<()> {
        self.saved_when = self.app.clock.monotonic();
        if !std::mem::take(&mut self.unsaved) {
            return Ok(());
        }
        let mut batch = Batch::new();
        journal::advance(&mut batch, &self.name, self.done);
        self.app.store.commit(batch)?.durable().await?;
        Ok(())
    }
}

/// How long to wait after so many failures: up to a quarter more by chance, so that not all come back together.
fn pause(failures: u32, chance_of_thousand: u64) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(12)).min(LONGEST_PAUSE);
    pause + pause / 4 * chance_of_thousand as u32 / 1_000
}
