//! One run: users act while faults come and go, then everything comes to rest and is checked.

use std::collections::BTreeSet;
use std::time::Duration;

use homeserver::http::Answer;
use rand::seq::IteratorRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use store::Faults;

use crate::Check;
use crate::act::{Chooser, Op, Planned, log_in, sync_request};
use crate::model::{Acked, Device, Model, User};
use crate::oracle;
use crate::request::{Request, enc, v3};
use crate::truth::text;
use crate::view::{Gap, View, list};
use crate::world::{InFlight, Sabotage, World};

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub steps: u64,
    /// A bug planted on purpose.
    pub sabotage: Option<Sabotage>,
}

/// A run that found nothing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of everything that was asked and answered.
    pub trace_hash: u64,
    pub events: usize,
    pub crashes: u32,
}

/// A run that found something.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
    /// The last things that happened.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // `{:#}` shows it all.
        let (lines, longest) = if f.alternate() { (usize::MAX, usize::MAX) } else { (60, 400) };
        for line in self.trace.iter().skip(self.trace.len().saturating_sub(lines)) {
            writeln!(f, "{}", line.chars().take(longest).collect::<String>())?;
        }
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

/// Runs one world from its seed.
pub fn run(options: &Options) -> Result<Report, Failure> {
    let failed = |what: String, trace: Vec<String>| Failure { seed: options.seed, what, trace };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| failed(cause.to_string(), Vec::new()))?;
    runtime.block_on(async {
        let world = World::new(options.seed).map_err(|what| failed(what, Vec::new()))?;
        let mut sim = Sim::new(world, options);
        match sim.play().await {
            Ok(report) => Ok(report),
            Err(what) => Err(failed(what, sim.world.trace.tail())),
        }
    })
}

pub(crate) struct Sim {
    pub(crate) world: World,
    pub(crate) model: Model,
    pub(crate) dice: ChaCha8Rng,
    flights: Vec<(InFlight, Op)>,
    now: u64,
    steps: u64,
    weather: Weather,
    crashes: u32,
    full: bool,
}

/// What kind of faults a run has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    Calm,
    /// Conflicts and expired views.
    Contended,
    /// Writes of unknown outcome.
    Doubtful,
    /// Power cuts.
    Crashing,
    /// The disk is full for a while.
    Full,
    Everything,
}

/// At most so many requests at one time.
const MAX_FLIGHTS: usize = 6;

impl Sim {
    fn new(mut world: World, options: &Options) -> Self {
        use Weather::{Calm, Contended, Crashing, Doubtful, Everything, Full};
        let mut dice = ChaCha8Rng::seed_from_u64(options.seed);
        let weathers = [Calm, Contended, Doubtful, Crashing, Full, Everything, Everything];
        let mut weather = weathers[dice.random_range(0..weathers.len())];
        if options.sabotage == Some(Sabotage::LoseDurable) {
            weather = Crashing;
        }
        world.sabotage = options.sabotage;
        let (model, steps) = (Model::default(), options.steps);
        Self { world, model, dice, flights: Vec::new(), now: 1, steps, weather, crashes: 0, full: false }
    }

    async fn play(&mut self) -> Check<Report> {
        self.begin().await?;
        for _ in 0..self.steps {
            self.now += 1;
            self.step().await?;
        }
        self.rest().await?;
        let events = oracle::check(self).await?;
        Ok(Report { trace_hash: self.world.trace.hash(), events, crashes: self.crashes })
    }

    async fn begin(&mut self) -> Check {
        for index in 0..self.dice.random_range(3..=5) {
            let name = format!("user{index}");
            let body = json!({
                "username": name,
                "password": homeserver::testing::PASSWORD,
                "auth": { "type": "m.login.dummy" },
                "inhibit_login": true,
            });
            let answer = self.world.call(Request::post(v3(&["register"]), body)).await?;
            if !answer.status.is_success() {
                return Err(format!("registering: {}", answer.json()));
            }
            self.model.users.push(User { id: text(&answer.json()["user_id"]), name: name.clone() });
            for _ in 0..self.dice.random_range(1..=2) {
                let taste = self.chooser().taste();
                let refresh = self.dice.random_bool(0.3);
                let (request, op) = log_in(&name, index, taste, refresh);
                let answer = self.world.call(request).await?;
                self.judge(op, &answer, 0).await?;
            }
        }
        for index in 0..self.dice.random_range(1..=3) {
            let planned = self.chooser().create(index);
            if let Some((request, op)) = planned {
                let answer = self.world.call(request.with_token(&self.model.devices[index].token)).await?;
                self.judge(op, &answer, 0).await?;
            }
        }
        self.faults();
        Ok(())
    }

    fn chooser(&mut self) -> Chooser<'_> {
        Chooser { dice: &mut self.dice, world: &self.world, model: &mut self.model, now: self.now }
    }

    fn has(&self, weather: Weather) -> bool {
        self.weather == weather || self.weather == Weather::Everything
    }

    fn faults(&mut self) {
        let seed = self.dice.random();
        let contended = self.has(Weather::Contended);
        let doubtful = self.has(Weather::Doubtful);
        self.world.set_faults(Faults {
            seed,
            conflict: if contended { 0.2 } else { 0.0 },
            expired: if contended { 0.02 } else { 0.0 },
            unknown_written: if doubtful { 0.03 } else { 0.0 },
            unknown_lost: if doubtful { 0.03 } else { 0.0 },
            delay: Duration::ZERO,
        });
    }

    async fn step(&mut self) -> Check {
        self.weather_changes().await?;
        if self.flights.len() < MAX_FLIGHTS
            && let Some(planned) = self.chooser().plan()
        {
            self.start(planned);
        }
        self.world.settle().await;
        self.land().await?;
        // Most of the time the disk is fast. When it is not, decisions are made on what is not yet written.
        if self.dice.random_bool(0.7) {
            self.world.write();
            self.world.settle().await;
            self.land().await?;
        }
        Ok(())
    }

    async fn weather_changes(&mut self) -> Check {
        if self.dice.random_bool(0.05) {
            let by = Duration::from_millis(self.dice.random_range(1..20_000));
            self.world.advance(by);
        }
        if self.has(Weather::Full) && self.dice.random_bool(if self.full { 0.2 } else { 0.03 }) {
            self.full = !self.full;
            self.world.set_full(self.full);
        }
        if self.has(Weather::Crashing) && self.dice.random_bool(0.02) {
            self.crash().await?;
        }
        Ok(())
    }

    async fn crash(&mut self) -> Check {
        self.crashes += 1;
        self.world.crash().await?;
        for (_, op) in std::mem::take(&mut self.flights) {
            self.lost(&op);
        }
        Ok(())
    }

    fn start(&mut self, planned: Planned) {
        let Planned { device, request, op } = planned;
        let mut asks = device;
        if self.world.sabotage == Some(Sabotage::MistakeUser) && matches!(op, Op::Look { .. }) {
            asks = self.model.alive().into_iter().choose(&mut self.dice).unwrap_or(device);
        }
        let request = request.with_token(&self.model.devices[asks].token);
        let flight = self.world.send(request, self.now);
        self.flights.push((flight, op));
    }

    /// Judges the answers that are there.
    async fn land(&mut self) -> Check {
        let mut still = Vec::new();
        for (flight, op) in std::mem::take(&mut self.flights) {
            let (token, began) = (flight.request.token.clone(), flight.began);
            if self.world.sabotage == Some(Sabotage::SleepThrough) && flight.request.path.contains("timeout=30000") {
                still.push((flight, op));
                continue;
            }
            match self.world.answer(flight).await? {
                Ok(answer) if answer.status == 401 => self.unauthorized(&op, token.as_deref(), &answer)?,
                Ok(answer) => self.judge(op, &answer, began).await?,
                Err(flight) => still.push((flight, op)),
            }
        }
        // Judging may have sent more requests, but none of these is left.
        still.append(&mut self.flights);
        self.flights = still;
        Ok(())
    }

    // ---- judging -------------------------------------------------------------------------------------------------

    /// No answer, or none that says anything.
    fn lost(&mut self, op: &Op) {
        match op {
            Op::Sync { device, .. } => self.model.devices[*device].syncing = false,
            Op::Slide { device, .. } => self.model.devices[*device].sliding = false,
            Op::Refresh { device, .. } => self.model.devices[*device].refreshing = false,
            Op::Data { key, .. } => self.model.data_ends(key, None),
            _ => {}
        }
    }

    fn unauthorized(&mut self, op: &Op, token: Option<&str>, answer: &Answer) -> Check {
        self.lost(op);
        let Some(index) = self.model.devices.iter().position(|device| Some(device.token.as_str()) == token) else {
            return Ok(());
        };
        let device = &mut self.model.devices[index];
        if device.uncertain {
            device.alive = false;
            return Ok(());
        }
        if matches!(op, Op::Refresh { .. }) || device.refresh.is_none() {
            return Err(format!("device {index} was logged out by nobody: {}", answer.json()));
        }
        device.expired = true;
        Ok(())
    }

    async fn judge(&mut self, op: Op, answer: &Answer, began: u64) -> Check {
        if !answer.status.is_success() {
            self.lost(&op);
            return self.refused(&op, answer);
        }
        let json = answer.json();
        let tip = self.world.app.store.tip().0;
        match op {
            Op::Send(index) => self.sent(index, &json, began)?,
            Op::Note(index) => self.model.notes[index].acked = true,
            Op::Create => self.model.learn_room(&text(&json["room_id"])),
            Op::Member { room, user, membership } => self.model.memberships.push(Acked { room, user, membership, tip }),
            Op::Sync { lose: true, device, .. } => self.model.devices[device].syncing = false,
            Op::Sync { device, since, .. } => self.synced(device, since.as_deref(), &json).await?,
            Op::Slide { device, pos, lose } => self.slid(device, &pos, lose, &json, tip),
            Op::Look { device, state } => self.looked(device, &json, tip, state),
            Op::Data { key, value } => self.model.data_ends(&key, Some(value)),
            Op::Receipt { user, room, event } => self.model.receipts.push((user, room, event)),
            Op::LogIn { user, taste } => {
                self.model.devices.push(Device {
                    user,
                    id: text(&json["device_id"]),
                    pos: None,
                    sliding: false,
                    notes: BTreeSet::new(),
                    token: text(&json["access_token"]),
                    refresh: json["refresh_token"].as_str().map(str::to_owned),
                    taste,
                    since: None,
                    view: View::default(),
                    alive: true,
                    uncertain: false,
                    syncing: false,
                    refreshing: false,
                    expired: false,
                });
                self.label(self.model.devices.len() - 1);
            }
            Op::LogOut { device } => self.model.devices[device].alive = false,
            Op::Refresh { device: index, with } => {
                let device = &mut self.model.devices[index];
                device.refreshing = false;
                if device.refresh.as_deref() == Some(&with) {
                    device.token = text(&json["access_token"]);
                    device.refresh = json["refresh_token"].as_str().map(str::to_owned).or(Some(with));
                    device.expired = false;
                    self.label(index);
                }
            }
            Op::Other => {}
        }
        Ok(())
    }

    /// From now on the trace tells whose requests these are.
    fn label(&mut self, device: usize) {
        let label = format!("{} (device {device})", self.model.users[self.model.devices[device].user].name);
        self.world.names.insert(self.model.devices[device].token.clone(), label);
    }

    fn refused(&mut self, op: &Op, answer: &Answer) -> Check {
        if let Op::Send(index) = op
            && let Some(id) = &self.model.sent[*index].event_id
            && !answer.status.is_server_error()
            && self.model.sent[*index].txn
        {
            return Err(format!("a retry of what became {id} is answered {}", answer.json()));
        }
        if let Op::Slide { device, pos, .. } = op
            && answer.status.is_client_error()
        {
            // What is known of a window is kept in memory.
            let forgotten = answer.json()["errcode"] == "M_UNKNOWN_POS";
            if !forgotten || pos.as_ref().is_none_or(|(_, crashes)| *crashes == self.crashes) {
                return Err(format!("a sliding sync from {pos:?} is refused: {}", answer.json()));
            }
            self.model.devices[*device].pos = None;
        }
        if matches!(op, Op::Sync { .. }) && answer.status.is_client_error() {
            return Err(format!("a sync is refused: {}", answer.json()));
        }
        Ok(())
    }

    fn sent(&mut self, index: usize, json: &Value, began: u64) -> Check {
        let id = text(&json["event_id"]);
        let sent = &mut self.model.sent[index];
        match &sent.event_id {
            Some(known) if *known != id => return Err(format!("one transaction is answered {known} and then {id}")),
            Some(_) => {}
            None => {
                sent.event_id = Some(id);
                sent.acked = Some(self.now);
                sent.began = sent.began.min(began);
            }
        }
        Ok(())
    }

    fn slid(&mut self, index: usize, pos: &Option<(String, u32)>, lose: bool, json: &Value, tip: u64) {
        self.model.devices[index].sliding = false;
        if !lose && self.model.devices[index].pos == *pos {
            self.model.devices[index].pos = Some((text(&json["pos"]), self.crashes));
            self.looked(index, json, tip, false);
        }
    }

    pub(crate) fn looked(&mut self, device: usize, json: &Value, tip: u64, state: bool) {
        let mut seen = Vec::new();
        sightings(json, state, &mut seen);
        let user = self.model.user_of(device).to_owned();
        for (event, in_state) in seen {
            self.model.saw(&user, &event, tip, in_state, "a look");
        }
    }

    /// Applies a sync. An answer that comes late, when another one has been applied, is thrown away.
    pub(crate) async fn synced(&mut self, index: usize, since: Option<&str>, json: &Value) -> Check {
        let device = &mut self.model.devices[index];
        device.syncing = false;
        if device.since.as_deref() != since {
            return Ok(());
        }
        let mut json = json.clone();
        sabotage(self.world.sabotage, &mut json, &mut self.dice);
        let device = &mut self.model.devices[index];
        device.since = Some(text(&json["next_batch"]));
        let applied = device.view.apply(&json, device.taste);
        let user = self.model.user_of(index).to_owned();
        let tip = self.world.app.store.tip().0;
        for (event, in_state) in applied.seen {
            self.model.saw(&user, &event, tip, in_state, "sync");
        }
        for note in list(&json["to_device"]["events"]) {
            let marker = text(&note["content"]["org.example.marker"]);
            if !self.model.devices[index].notes.insert(marker.clone()) {
                return Err(format!("device {index} is sent the note {marker} twice"));
            }
        }
        if let Some((room, stranger)) = applied.strangers.first() {
            return Err(format!("{user} (device {index}) sees {stranger} write in {room}, but not who that is"));
        }
        for gap in applied.gaps {
            self.close(index, gap).await?;
        }
        Ok(())
    }

    /// Pages backwards until the timeline has no gap any more.
    async fn close(&mut self, index: usize, gap: Gap) -> Check {
        let user = self.model.user_of(index).to_owned();
        let mut missed: Vec<String> = Vec::new();
        let mut from = gap.from.clone();
        let mut closed = false;
        while !closed {
            let path = format!("{}?dir=b&limit=4&from={}", v3(&["rooms", &gap.room, "messages"]), enc(&from));
            let token = self.model.devices[index].token.clone();
            let answer = self.world.call(Request::get(path).with_token(&token)).await?;
            if !answer.status.is_success() {
                break;
            }
            let json = answer.json();
            let tip = self.world.app.store.tip().0;
            self.looked(index, &json, tip, false);
            let known = &self.timeline(index, &gap).timeline;
            for event in list(&json["chunk"]) {
                let id = text(&event["event_id"]);
                closed = closed || known.contains(&id);
                if !closed {
                    missed.push(id);
                }
            }
            match json["end"].as_str() {
                Some(end) if end != from => from = end.to_owned(),
                _ => closed = true,
            }
        }
        missed.reverse();
        self.world.trace.say(format!("{user} missed {} events in {}", missed.len(), gap.room));
        let view = self.timeline(index, &gap);
        view.broken |= !closed;
        view.timeline.extend(missed);
        view.timeline.extend(gap.after);
        Ok(())
    }

    fn timeline(&mut self, index: usize, gap: &Gap) -> &mut crate::view::RoomView {
        let view = &mut self.model.devices[index].view;
        let rooms = if gap.left { &mut view.left } else { &mut view.joined };
        rooms.entry(gap.room.clone()).or_default()
    }

    // ---- coming to rest ------------------------------------------------------------------------------------------

    /// Faults end, requests are answered, and every client learns what there is to learn.
    async fn rest(&mut self) -> Check {
        self.world.trace.say("** rest");
        if self.full {
            self.full = false;
            self.world.set_full(false);
        }
        self.world.set_faults(Faults::default());
        self.world.quiesce().await?;
        self.land().await?;
        self.woken().await?;
        // Polls end, and whoever types stops.
        self.world.advance(Duration::from_secs(70));
        self.world.quiesce().await?;
        self.land().await?;
        if let Some((flight, _)) = self.flights.first() {
            return Err(format!("{} {} is never answered", flight.request.method, flight.request.path));
        }
        for index in self.model.alive() {
            self.revive(index).await?;
            if self.model.devices[index].alive {
                self.catch_up(index).await?;
            }
        }
        Ok(())
    }

    /// A poll that still waits has nothing to tell.
    async fn woken(&mut self) -> Check {
        let waiting: Vec<usize> = self
            .flights
            .iter()
            .filter_map(|(_, op)| match op {
                Op::Sync { device, .. } => Some(*device),
                _ => None,
            })
            .collect();
        for index in waiting {
            let device = &self.model.devices[index];
            let (request, token) = (sync_request(device.taste, device.since.as_deref(), 0), device.token.clone());
            let answer = self.world.call(request.with_token(&token)).await?;
            if answer.status.is_success() && says_something(&answer.json()) {
                return Err(format!("a poll of device {index} sleeps on {}", answer.json()));
            }
        }
        Ok(())
    }

    /// Makes sure that a device is logged in, if it is.
    async fn revive(&mut self, index: usize) -> Check {
        let token = self.model.devices[index].token.clone();
        let answer = self.world.call(Request::get(v3(&["account", "whoami"])).with_token(&token)).await?;
        if answer.status.is_success() {
            return Ok(());
        }
        self.unauthorized(&Op::Other, Some(&token), &answer)?;
        if let (true, Some(with)) = (self.model.devices[index].alive, self.model.devices[index].refresh.clone()) {
            let request = Request::post(v3(&["refresh"]), json!({ "refresh_token": with }));
            let answer = self.world.call(request).await?;
            if !answer.status.is_success() {
                return Err(format!("device {index} cannot refresh: {}", answer.json()));
            }
            self.judge(Op::Refresh { device: index, with }, &answer, 0).await?;
        }
        Ok(())
    }

    /// Syncs until there is nothing new.
    pub(crate) async fn catch_up(&mut self, index: usize) -> Check {
        for _ in 0..10 {
            let device = &self.model.devices[index];
            let since = device.since.clone();
            let request = sync_request(device.taste, since.as_deref(), 0).with_token(&device.token);
            let answer = self.world.call(request).await?;
            if !answer.status.is_success() {
                return Err(format!("a sync at rest fails: {}", answer.json()));
            }
            let quiet = since.is_some() && !says_something(&answer.json());
            self.synced(index, since.as_deref(), &answer.json()).await?;
            if quiet {
                return Ok(());
            }
        }
        Err(format!("device {index} never stops being told things"))
    }
}

/// Whether a sync tells anything.
fn says_something(sync: &Value) -> bool {
    sync.get("rooms").is_some() || sync.get("account_data").is_some() || sync.pointer("/to_device/events/0").is_some()
}

/// Every event in an answer, wherever it stands.
fn sightings(value: &Value, in_state: bool, seen: &mut Vec<(String, bool)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| sightings(item, in_state, seen)),
        Value::Object(fields) => {
            if let (Some(id), true, true) = (
                fields.get("event_id").and_then(Value::as_str),
                fields.contains_key("type"),
                fields.contains_key("sender"),
            ) {
                seen.push((id.to_owned(), in_state));
            }
            for (name, value) in fields.iter().filter(|(name, _)| *name != "content" && *name != "redacted_because") {
                sightings(value, in_state || name.contains("state"), seen);
            }
        }
        _ => {}
    }
}

/// Breaks a sync answer on purpose.
fn sabotage(how: Option<Sabotage>, sync: &mut Value, dice: &mut ChaCha8Rng) {
    if let (Some(Sabotage::DropNote), true, Some(notes)) =
        (how, dice.random_bool(0.3), sync.pointer_mut("/to_device/events").and_then(Value::as_array_mut))
    {
        notes.pop();
    }
    let Some(how) = how.filter(|_| sync.get("rooms").is_some()) else { return };
    if how == Sabotage::DropLeave && dice.random_bool(0.3) {
        sync["rooms"]["leave"] = json!({});
    }
    let Some(rooms) = sync["rooms"]["join"].as_object_mut() else { return };
    for room in rooms.values_mut().filter(|_| dice.random_bool(0.3)) {
        sabotage_room(how, room);
    }
}

fn sabotage_room(how: Sabotage, room: &mut Value) {
    if how == Sabotage::MiscountUnread
        && let Some(count) = room.pointer_mut("/unread_notifications/notification_count")
    {
        *count = json!(count.as_u64().unwrap_or_default() + 1);
    }
    let events = match how {
        Sabotage::DropTimelineEvent | Sabotage::SwapTimelineEvents => room.pointer_mut("/timeline/events"),
        Sabotage::DropStateEvent => room.pointer_mut("/state/events"),
        Sabotage::DropReceipt => room.pointer_mut("/ephemeral/events"),
        Sabotage::DropAccountData => room.pointer_mut("/account_data/events"),
        _ => None,
    };
    let Some(events) = events.and_then(Value::as_array_mut) else { return };
    match events.len() {
        n @ 2.. if how == Sabotage::SwapTimelineEvents => events.swap(n - 1, n - 2),
        _ if how == Sabotage::SwapTimelineEvents => {}
        _ => drop(events.pop()),
    }
}
