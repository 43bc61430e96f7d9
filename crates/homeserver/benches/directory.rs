//! The cost of finding somebody among 100,000 users, on RocksDB. It is bounded, and does not grow with their number.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use homeserver::App;
use homeserver::client::user_directory::find;
use homeserver::config::{Config, RegistrationMode};
use homeserver::error::Result;
use homeserver::http::Local;
use homeserver::schema::{MEMBERSHIPS, Membership, MembershipState, PROFILES, USERS, User};
use homeserver::users::directory;
use homeserver::{clock::Clock, rng::Rng, signing};
use ruma::{OwnedUserId, UserId};
use serde_json::json;
use store::{Disk, Pos, Store, Tx};

const USERS_IN_ALL: usize = 100_000;
/// Nobody else is in them: who looks for people has to go through them in vain.
const ROOMS_EACH: u64 = 8;
/// So many users have each first name.
const NAMESAKES: usize = 2_000;

fn user(n: usize) -> OwnedUserId {
    UserId::parse(format!("@u{n:06}:hs.test")).unwrap()
}

/// Everybody, in rooms of their own.
async fn people(app: &App) {
    for start in (0..USERS_IN_ALL).step_by(500) {
        let open = |tx: &mut Tx| -> Result<()> {
            for n in start..start + 500 {
                let user_id = user(n);
                let name = json!(format!("First{} Last{n}", n / NAMESAKES)).to_string();
                tx.put(&USERS, user_id.as_str(), &User::default());
                tx.put(&PROFILES, (user_id.as_str(), "displayname"), &Bytes::from(name));
                for room in 0..ROOMS_EACH {
                    let joined = Membership {
                        state: MembershipState::Join,
                        event: Pos(1),
                        joined: Some(Pos(1)),
                        left: None,
                        was_joined: false,
                        forgotten: false,
                    };
                    tx.put(&MEMBERSHIPS, (user_id.as_str(), n as u64 * ROOMS_EACH + room + 1), &joined);
                }
                directory::update(tx, &user_id)?;
            }
            Ok(())
        };
        app.store.transact(open).await.unwrap();
    }
    app.store.compact().unwrap();
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for all in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Disk::at(dir.path())).unwrap();
        let rng = Rng::seeded(1);
        let key = signing::generate(&rng).unwrap().key_pair().unwrap();
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        config.registration.mode = RegistrationMode::Open;
        config.user_directory.search_all_users = all;
        let app = App::new(config, store, key, Clock::system(), rng);
        runtime.block_on(people(&app));
        let client = Local::new(app.router());
        let register = json!({"username": "seeker", "password": "correct horse", "auth": {"type": "m.login.dummy"}});
        runtime.block_on(client.post("/_matrix/client/v3/register", register));
        let me = UserId::parse("@seeker:hs.test").unwrap();
        let mut group = c.benchmark_group(if all { "everybody is found" } else { "strangers are not found" });
        for (name, term) in
            [("2,000 namesakes", "first7"), ("one letter", "l"), ("both names", "first7 last140"), ("nobody", "xyz")]
        {
            group.bench_function(name, |b| b.iter(|| find(&app, &me, term, 10).unwrap().users.len()));
        }
    }
}

criterion_group!(directory_benches, benches);
criterion_main!(directory_benches);
