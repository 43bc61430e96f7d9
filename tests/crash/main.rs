//! The real server is killed at random moments under load; nothing that it has acknowledged may be lost or doubled.
//!
//! `CRASH_KILLS` (how often) and `CRASH_SEED` (what the accounts do, when it is killed) can be set.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a test on the real clock that tells its progress")]
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "a test")]

mod check;
mod client;
mod full_disk;
mod listener;
mod load;
mod server;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use check::{Shown, Witness};
use client::{Session, part};
use load::{Gate, Worker};
use server::Server;

const WORKERS: usize = 6;
const ROOMS: usize = 4;
const KILLS: u64 = 12;
/// Now and then the whole history is read again, not only what is new.
const WHOLE_EVERY: u64 = 50;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_by_kills() {
    let kills = variable("CRASH_KILLS").unwrap_or(KILLS);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = variable("CRASH_SEED").unwrap_or(now);
    println!("crash test: {kills} kills, CRASH_SEED={seed}");
    let mut world = World::new(seed).await;
    let started = Instant::now();
    let mut down = Duration::ZERO;
    for kill in 1..=kills {
        world.live(kill).await;
        down += world.crash().await;
        world.check(kill == kills || kill % WHOLE_EVERY == 0).await;
        if kill % 10 == 0 || kill == kills {
            println!(
                "crash test: kill {kill}/{kills} after {:.0} s: {}",
                started.elapsed().as_secs_f64(),
                world.tally()
            );
        }
    }
    println!("crash test: a restart took {:.0} ms on average", down.as_millis() as f64 / kills as f64);
    world.end().await;
}

/// The server, the accounts, and what is known about the rooms.
struct World {
    folder: tempfile::TempDir,
    server: Server,
    gate: Arc<Gate>,
    rooms: Arc<Vec<String>>,
    shown: Vec<Shown>,
    witnesses: Vec<Witness>,
    heard: listener::Heard,
    tasks: tokio::task::JoinSet<()>,
    rng: ChaCha8Rng,
}

impl World {
    async fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::new(folder.path(), &folder.path().join("data"));
        server.start().await;
        let mut sessions = Vec::new();
        for n in 0..=WORKERS {
            sessions.push(Session::register(&server.url, &format!("crash{n}")).await);
        }
        let rooms = Arc::new(rooms(&sessions).await);
        let gate = Gate::new();
        let mut tasks = tokio::task::JoinSet::new();
        let heard = listener::Heard::default();
        tasks.spawn(listener::listen(sessions.pop().unwrap(), Arc::clone(&rooms), Arc::clone(&heard)));
        let mut witnesses = Vec::new();
        for (n, session) in sessions.into_iter().enumerate() {
            let name = format!("crash{n}");
            let seed = seed.wrapping_mul(1000).wrapping_add(n as u64);
            let worker = Worker::new(session.clone(), Arc::clone(&gate), Arc::clone(&rooms), name.clone(), seed);
            witnesses.push(Witness { session, name, memory: Arc::clone(&worker.memory) });
            tasks.spawn(worker.run());
        }
        let shown = rooms.iter().map(|_| Shown::default()).collect();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { folder, server, gate, rooms, shown, witnesses, heard, tasks, rng }
    }

    /// Lets everybody work for a random time; sometimes the kill comes at once.
    async fn live(&mut self, kill: u64) {
        self.gate.set(true);
        let longest_ms = if kill.is_multiple_of(4) { 1500 } else { 400 };
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(5..longest_ms))).await;
    }

    /// Kills the server, waits until everybody has noticed, and starts it again.
    async fn crash(&mut self) -> Duration {
        self.server.kill().await;
        self.gate.set(false);
        while !self.gate.all_wait(WORKERS) {
            self.worst_of_tasks().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.server.start().await
    }

    async fn check(&mut self, whole: bool) {
        for (room_id, shown) in self.rooms.iter().zip(&mut self.shown) {
            check::read_on(&self.witnesses[0].session, room_id, shown, whole).await;
        }
        listener::check(&self.heard, &self.shown);
        let mut rngs: Vec<ChaCha8Rng> = self.witnesses.iter().map(|_| ChaCha8Rng::from_rng(&mut self.rng)).collect();
        let checks = self.witnesses.iter().zip(&mut rngs);
        let checks = checks.map(|(witness, rng)| check::witness(witness, &self.rooms, &self.shown, rng));
        futures_util::future::join_all(checks).await;
    }

    /// A worker that has failed fails the test.
    async fn worst_of_tasks(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                println!("{}", self.server.log_tail());
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    fn tally(&self) -> String {
        let (mut events, mut media, mut repeated) = (0, 0, 0);
        for witness in &self.witnesses {
            let memory = witness.memory.lock().unwrap();
            events += memory.sent.len();
            media += memory.media.len();
            repeated += memory.repeated;
        }
        let heard = self.heard.lock().unwrap().len();
        format!(
            "{events} events and {media} uploads acknowledged, {repeated} requests repeated, {heard} events heard, 0 lost"
        )
    }

    async fn end(mut self) {
        self.worst_of_tasks().await;
        self.tasks.shutdown().await;
        self.server.kill().await;
        drop(self.folder);
    }
}

/// Rooms that everybody is in.
async fn rooms(sessions: &[Session]) -> Vec<String> {
    let mut rooms = Vec::new();
    for n in 0..ROOMS {
        // Everybody may set the state that the workers set.
        let power = json!({ "events": { "org.example.crash": 0 } });
        let body =
            json!({ "preset": "public_chat", "name": format!("room {n}"), "power_level_content_override": power });
        let created = sessions[n % sessions.len()].ok("POST", "/v3/createRoom", &body).await;
        let room_id = created["room_id"].as_str().unwrap().to_owned();
        for session in sessions {
            session.ok("POST", &format!("/v3/join/{}", part(&room_id)), &json!({})).await;
        }
        rooms.push(room_id);
    }
    rooms
}
