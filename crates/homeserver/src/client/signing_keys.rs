//! Cross-signing keys and signatures (spec: Cross-signing).

use http::{Method, StatusCode};
use ruma::api::client::keys::upload_signing_keys::v3 as upload_keys;
use serde_json::json;
use store::Tx;

use crate::auth::{Access, uia};
use crate::e2ee::cross_signing::{self, Outcome, SignedKeys, SigningKey, Usage};
use crate::error::Result;
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};

pub fn routes() -> Routes {
    let signatures = ["/_matrix/client/v3/keys/signatures/upload", "/_matrix/client/unstable/keys/signatures/upload"];
    Routes::default().ruma(upload).raw(Method::POST, &signatures, sign).access(Access::Token)
}

/// The first keys are taken from whoever is logged in; only who replaces some has to prove who they are.
async fn upload(ctx: Ctx<upload_keys::Request>) -> Result<upload_keys::Response> {
    let user_id = ctx.requester.user_id.as_str();
    let upload_keys::Request { master_key, self_signing_key, user_signing_key, .. } = &ctx.request;
    let all =
        [(Usage::Master, master_key), (Usage::SelfSigning, self_signing_key), (Usage::UserSigning, user_signing_key)];
    let given = all.into_iter().filter_map(|(usage, key)| Some((usage, key.as_ref()?)));
    let keys = given.map(|(usage, key)| SigningKey::new(user_id, usage, key.json().get().as_bytes()));
    let keys: Vec<SigningKey> = keys.collect::<Result<_>>()?;
    let store = &ctx.app.store;
    let proven = ctx.requester.appservice.is_some()
        && uia::not_an_administrator(&store.snapshot(), &ctx.requester.user_id).is_ok();
    let outcome = store.transact(|tx| cross_signing::upload(tx, user_id, &keys, proven)).await?.value;
    if outcome == Outcome::ProveYourself {
        let operation = "keys/device_signing/upload".to_owned();
        let passed = uia::check_reset(&ctx.app, &ctx.requester, operation, &ctx.body).await?;
        let replace = |tx: &mut Tx| {
            passed.holds(tx)?;
            cross_signing::upload(tx, user_id, &keys, true)
        };
        store.transact(replace).await?;
        ctx.app.auth.oauth.resets.done(&ctx.app, &ctx.requester.user_id);
    }
    Ok(upload_keys::Response::new())
}

async fn sign(mut ctx: RawCtx) -> Result<Response> {
    let keys: SignedKeys = ctx.read_json().await?;
    let user_id = ctx.requester()?.user_id.as_str();
    let failures = ctx.app.store.transact(|tx| cross_signing::add_signatures(tx, user_id, &keys)).await?.value;
    Ok(json_response(StatusCode::OK, json!({ "failures": failures }).to_string()))
}

#[cfg(test)]
mod tests {
    use ruma::signatures::{Ed25519KeyPair, KeyPair as _, to_canonical_json_string_for_signing};
    use serde_json::{Value, json};
    use store::Read as _;

    use crate::http::Answer;
    use crate::schema::BACKED_UP_KEYS;
    use crate::testing::{Server, User};

    const UPLOAD: &str = "/_matrix/client/v3/keys/device_signing/upload";
    const SIGN: &str = "/_matrix/client/v3/keys/signatures/upload";

    /// A key pair whose name is its public key, or that of a device.
    struct Pair {
        pair: Ed25519KeyPair,
        public: String,
    }

    impl Pair {
        fn new() -> Self {
            let pair = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "x".to_owned()).unwrap();
            let public = ruma::serde::Base64::<ruma::serde::base64::Standard, _>::new(pair.public_key().to_vec());
            Pair { pair, public: public.encode() }
        }

        fn key_id(&self) -> String {
            format!("ed25519:{}", self.public)
        }

        fn key(&self, user: &User, usage: &str) -> Value {
            json!({ "user_id": user.user_id, "usage": [usage], "keys": { (self.key_id()): self.public } })
        }

        /// The signature of an object.
        fn sign(&self, object: &Value) -> String {
            let object = serde_json::from_value(object.clone()).unwrap();
            self.pair.sign(to_canonical_json_string_for_signing(&object).unwrap().as_bytes()).base64()
        }
    }

    fn signed(mut object: Value, by: &User, key_id: &str, pair: &Pair) -> Value {
        let signature = pair.sign(&object);
        object["signatures"][&by.user_id][key_id] = json!(signature);
        object
    }

    /// Somebody with cross-signing keys and a device with keys.
    struct Person {
        user: User,
        master: Pair,
        own: Pair,
        others: Pair,
        device: Pair,
    }

    impl Person {
        async fn new(server: &Server, name: &str) -> Self {
            let person = Self::of(server.user(name).await);
            person.upload_device().await;
            ok(&post(&person.user, UPLOAD, person.keys()).await);
            person
        }

        fn of(user: User) -> Self {
            let [master, own, others, device] = std::array::from_fn(|_| Pair::new());
            Person { user, master, own, others, device }
        }

        fn keys(&self) -> Value {
            let sub = |pair: &Pair, usage| {
                signed(pair.key(&self.user, usage), &self.user, &self.master.key_id(), &self.master)
            };
            json!({
                "master_key": self.master.key(&self.user, "master"),
                "self_signing_key": sub(&self.own, "self_signing"),
                "user_signing_key": sub(&self.others, "user_signing"),
            })
        }

        fn device_key_id(&self) -> String {
            format!("ed25519:{}", self.user.device_id)
        }

        fn device_keys(&self) -> Value {
            let keys = json!({
                "user_id": self.user.user_id, "device_id": self.user.device_id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
                "keys": { (self.device_key_id()): self.device.public },
            });
            signed(keys, &self.user, &self.device_key_id(), &self.device)
        }

        async fn upload_device(&self) {
            let body = json!({ "device_keys": self.device_keys() });
            ok(&post(&self.user, "/_matrix/client/v3/keys/upload", body).await);
        }

        /// Signs its own device.
        fn signed_device(&self) -> Value {
            let mut keys = self.device_keys();
            keys["signatures"] = json!({});
            signed(keys, &self.user, &self.own.key_id(), &self.own)
        }

        async fn sign(&self, of: &User, name: &str, object: Value) -> Value {
            let body = json!({ (of.user_id.clone()): { (name): object } });
            let failures = ok(&post(&self.user, SIGN, body).await)["failures"].clone();
            failures.get(&of.user_id).map_or(Value::Null, |failures| failures[name]["errcode"].clone())
        }
    }

    async fn post(user: &User, path: &str, body: Value) -> Answer {
        user.client.post(path, body).await
    }

    fn ok(answer: &Answer) -> Value {
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json()
    }

    fn outcome(answer: &Answer) -> (u16, String) {
        (answer.status.as_u16(), answer.errcode())
    }

    async fn query(user: &User, of: &User) -> Value {
        let body = json!({ "device_keys": { (of.user_id.clone()): [] } });
        ok(&post(user, "/_matrix/client/v3/keys/query", body).await)
    }

    /// Who signed a key, by key ID.
    fn signers(key: &Value, user: &User) -> Vec<String> {
        let signatures = key["signatures"][&user.user_id].as_object();
        let mut signers: Vec<String> = signatures.into_iter().flatten().map(|(key_id, _)| key_id.clone()).collect();
        signers.sort_unstable();
        signers
    }

    async fn sync(user: &User, since: Option<&str>) -> (Vec<String>, String) {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let body = ok(&user.client.get(&format!("/_matrix/client/v3/sync?timeout=0{since}")).await);
        let changed = body["device_lists"]["changed"].as_array();
        let changed = changed.into_iter().flatten().map(|user| user.as_str().unwrap().to_owned()).collect();
        (changed, body["next_batch"].as_str().unwrap().to_owned())
    }

    async fn share_a_room(one: &User, two: &User) {
        let room = ok(&post(one, "/_matrix/client/v3/createRoom", json!({ "preset": "public_chat" })).await);
        let path = format!("/_matrix/client/v3/rooms/{}/join", room["room_id"].as_str().unwrap());
        ok(&post(two, &path, json!({})).await);
    }

    #[tokio::test]
    async fn pitfall_014_the_first_keys_and_the_same_keys_need_no_proof() {
        let server = Server::default();
        let person = Person::of(server.user("alice").await);
        let (user, keys) = (&person.user, person.keys());
        assert_eq!(outcome(&post(user, UPLOAD, json!({})).await), (400, "M_MISSING_PARAM".to_owned()));
        ok(&post(user, UPLOAD, keys.clone()).await);
        ok(&post(user, UPLOAD, keys.clone()).await);
        ok(&post(user, UPLOAD, json!({ "self_signing_key": keys["self_signing_key"] })).await);
        // Others, or one of another name: that is somebody who may have stolen a token.
        let other = Person { user: user.clone(), ..Person::of(user.clone()) };
        let asked = post(user, UPLOAD, other.keys()).await;
        assert_eq!((asked.status.as_u16(), &asked.json()["flows"][0]["stages"]), (401, &json!(["m.login.password"])));
        let part = signed(other.own.key(user, "self_signing"), user, &person.master.key_id(), &person.master);
        assert_eq!(post(user, UPLOAD, json!({ "self_signing_key": part })).await.status, 401);
        assert_eq!(
            query(user, user).await["master_keys"][&user.user_id],
            with_no_signatures(&keys["master_key"], user)
        );
        let mut proven = other.keys();
        proven["auth"] = user.auth();
        proven["auth"]["session"] = asked.json()["session"].clone();
        ok(&post(user, UPLOAD, proven).await);
        let found = query(user, user).await;
        assert_eq!(found["master_keys"][&user.user_id]["keys"], other.keys()["master_key"]["keys"]);
    }

    fn with_no_signatures(key: &Value, user: &User) -> Value {
        let mut key = key.clone();
        key["signatures"] = json!({ (user.user_id.clone()): {} });
        key
    }

    #[tokio::test]
    async fn two_first_uploads_at_a_time_do_not_replace_each_other() {
        let server = Server::default();
        let user = server.user("alice").await;
        let (one, two) = (Person::of(user.clone()), Person::of(user.clone()));
        let answers = tokio::join!(post(&user, UPLOAD, one.keys()), post(&user, UPLOAD, two.keys()));
        let mut statuses = [answers.0.status.as_u16(), answers.1.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401]);
    }

    #[tokio::test]
    async fn pitfall_079_keys_have_to_be_signed_and_well_formed() {
        let server = Server::default();
        let (alice, bob) = (Person::of(server.user("alice").await), Person::of(server.user("bob").await));
        let user = &alice.user;
        let mut wrong = alice.keys();
        wrong["self_signing_key"]["signatures"] = bob.keys()["self_signing_key"]["signatures"].clone();
        assert_eq!(outcome(&post(user, UPLOAD, wrong).await), (400, "M_INVALID_SIGNATURE".to_owned()));
        let mut wrong = alice.keys();
        wrong["user_signing_key"]["more"] = json!("that was not signed");
        assert_eq!(outcome(&post(user, UPLOAD, wrong).await), (400, "M_INVALID_SIGNATURE".to_owned()));
        let mut two_keys = alice.master.key(user, "master");
        two_keys["keys"][&bob.master.key_id()] = json!(bob.master.public);
        let mut other_name = alice.master.key(user, "master");
        other_name["keys"] = json!({ "ed25519:name": alice.master.public });
        let short = json!({ "user_id": user.user_id, "usage": ["master"], "keys": { "ed25519:abcd": "abcd" } });
        for master in
            [alice.master.key(&bob.user, "master"), alice.master.key(user, "self_signing"), two_keys, other_name, short]
        {
            let answer = post(user, UPLOAD, json!({ "master_key": master })).await;
            assert_eq!(outcome(&answer), (400, "M_INVALID_PARAM".to_owned()), "{master}");
        }
        assert_eq!(post(user, UPLOAD, json!({ "master_key": {} })).await.status, 400);
        assert_eq!(query(user, user).await["master_keys"], json!({}));
    }

    #[tokio::test]
    async fn devices_and_keys_do_not_share_names() {
        let server = Server::default();
        let person = Person::new(&server, "alice").await;
        let named = json!({ "device_id": person.own.public });
        assert_eq!(server.try_log_in("alice", crate::testing::PASSWORD, named).await.status, 400);
        let other = Person::of(server.user("bob").await);
        server.log_in_with("bob", json!({ "device_id": other.own.public })).await;
        assert_eq!(outcome(&post(&other.user, UPLOAD, other.keys()).await), (403, "M_FORBIDDEN".to_owned()));
    }

    #[tokio::test]
    async fn pitfall_078_who_sees_which_keys_and_signatures() {
        let server = Server::default();
        let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
        let carol = server.user("carol").await;
        let (a, b) = (&alice.user, &bob.user);
        let vouched = signed(bob.master.key(b, "master"), a, &alice.others.key_id(), &alice.others);
        assert_eq!(alice.sign(b, &bob.master.public, vouched).await, Value::Null);
        let master = async |user: &User| query(user, b).await["master_keys"]["@bob:hs.test"].clone();
        assert_eq!(signers(&master(a).await, a), [alice.others.key_id()]);
        for user in [b, &carol] {
            assert_eq!(signers(&master(user).await, a), [""; 0], "only alice sees whom she trusts");
        }
        assert_eq!(query(b, b).await["user_signing_keys"][&b.user_id], bob.keys()["user_signing_key"]);
        let found = query(a, b).await;
        assert_eq!(found["user_signing_keys"], json!({}));
        assert_eq!(found["self_signing_keys"][&b.user_id], bob.keys()["self_signing_key"]);
        // What is signed by the user's own keys everybody sees.
        assert_eq!(bob.sign(b, &b.device_id, bob.signed_device()).await, Value::Null);
        let of_device = signed(bob.master.key(b, "master"), b, &bob.device_key_id(), &bob.device);
        assert_eq!(bob.sign(b, &bob.master.public, of_device).await, Value::Null);
        let device = query(&carol, b).await["device_keys"][&b.user_id][&b.device_id].clone();
        let mut expected = [bob.device_key_id(), bob.own.key_id()];
        expected.sort_unstable();
        assert_eq!(signers(&device, b), expected);
        assert_eq!(signers(&master(&carol).await, b), [bob.device_key_id()]);
        // Both kinds of signatures stand side by side.
        assert_eq!(signers(&master(a).await, a), [alice.others.key_id()]);
        assert_eq!(signers(&master(a).await, b), [bob.device_key_id()]);
    }

    #[tokio::test]
    async fn pitfall_079_signatures_are_checked_one_by_one() {
        let server = Server::default();
        let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
        let (a, b) = (&alice.user, &bob.user);
        let bad = || json!("M_INVALID_SIGNATURE");
        // By a wrong key, by a key that may not sign this, of something else, of nothing.
        let mut forged = alice.signed_device();
        forged["signatures"][&a.user_id][alice.own.key_id()] = json!(bob.own.sign(&alice.device_keys()));
        assert_eq!(alice.sign(a, &a.device_id, forged).await, bad());
        let by_master = signed(alice.device_keys(), a, &alice.master.key_id(), &alice.master);
        assert_eq!(alice.sign(a, &a.device_id, by_master).await, bad());
        let mut other = alice.device_keys();
        other["keys"][alice.device_key_id()] = json!("other");
        let other = signed(other, a, &alice.own.key_id(), &alice.own);
        assert_eq!(alice.sign(a, &a.device_id, other).await, "M_INVALID_PARAM");
        assert_eq!(alice.sign(a, "NOSUCH", alice.signed_device()).await, "M_NOT_FOUND");
        let self_signed = signed(bob.master.key(b, "master"), a, &alice.own.key_id(), &alice.own);
        assert_eq!(alice.sign(b, &bob.master.public, self_signed).await, bad());
        let vouched = signed(bob.master.key(b, "master"), a, &alice.others.key_id(), &alice.others);
        assert_eq!(alice.sign(b, &alice.master.public, vouched.clone()).await, "M_NOT_FOUND");
        assert_eq!(bob.sign(b, &bob.master.public, vouched.clone()).await, bad(), "not by a device of bob");
        // One failure does not hold up the others.
        let body = json!({
            (a.user_id.clone()): { (a.device_id.clone()): alice.signed_device(), "NOSUCH": {} },
            (b.user_id.clone()): { (bob.master.public.clone()): vouched },
            "@nobody:hs.test": { "KEY": {} },
        });
        let failures = ok(&post(a, SIGN, body).await)["failures"].clone();
        assert_eq!(failures["@alice:hs.test"].as_object().unwrap().keys().collect::<Vec<_>>(), ["NOSUCH"]);
        assert_eq!(failures.as_object().unwrap().keys().collect::<Vec<_>>(), ["@alice:hs.test", "@nobody:hs.test"]);
        let device = query(b, a).await["device_keys"][&a.user_id][&a.device_id].clone();
        assert!(signers(&device, a).contains(&alice.own.key_id()));
    }

    #[tokio::test]
    async fn pitfall_079_a_device_that_comes_again_keeps_its_signatures() {
        let server = Server::default();
        let person = Person::new(&server, "alice").await;
        let user = &person.user;
        assert_eq!(person.sign(user, &user.device_id, person.signed_device()).await, Value::Null);
        let (_, since) = sync(user, None).await;
        person.upload_device().await;
        assert_eq!(sync(user, Some(&since)).await.0, [""; 0], "nothing is new");
        let device = query(user, user).await["device_keys"][&user.user_id][&user.device_id].clone();
        assert_eq!(signers(&device, user).len(), 2);
        // Other keys under the same name are not signed.
        let changed = Person { device: Pair::new(), ..person };
        changed.upload_device().await;
        let user = &changed.user;
        let device = query(user, user).await["device_keys"][&user.user_id][&user.device_id].clone();
        assert_eq!(signers(&device, user), [changed.device_key_id()]);
    }

    #[tokio::test]
    async fn pitfall_079_new_keys_void_what_the_old_ones_signed() {
        let server = Server::default();
        let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
        let (a, b) = (&alice.user, &bob.user);
        assert_eq!(alice.sign(a, &a.device_id, alice.signed_device()).await, Value::Null);
        let vouched = signed(bob.master.key(b, "master"), a, &alice.others.key_id(), &alice.others);
        assert_eq!(alice.sign(b, &bob.master.public, vouched).await, Value::Null);
        // Bob begins anew: what alice signed was another key.
        let fresh = Person { user: b.clone(), ..Person::of(b.clone()) };
        let mut keys = fresh.keys();
        keys["auth"] = b.auth();
        ok(&post(b, UPLOAD, keys).await);
        assert_eq!(signers(&query(a, b).await["master_keys"][&b.user_id], a), [""; 0]);
        // Alice begins anew with a master key alone: the keys under the old one go, and their signatures.
        let fresh = Person { user: a.clone(), ..Person::of(a.clone()) };
        let keys = json!({ "master_key": fresh.master.key(a, "master"), "auth": a.auth() });
        ok(&post(a, UPLOAD, keys).await);
        let found = query(a, a).await;
        assert_eq!((&found["self_signing_keys"], &found["user_signing_keys"]), (&json!({}), &json!({})));
        let device = &found["device_keys"][&a.user_id][&a.device_id];
        assert_eq!(signers(device, a), [alice.device_key_id()]);
    }

    #[tokio::test]
    async fn pitfall_033_changes_of_keys_and_signatures_are_told() {
        let server = Server::default();
        let (alice, bob) = (Person::new(&server, "alice").await, Person::of(server.user("bob").await));
        let (a, b) = (&alice.user, &bob.user);
        share_a_room(a, b).await;
        let (mut a_since, mut b_since) = (sync(a, None).await.1, sync(b, None).await.1);
        bob.upload_device().await;
        ok(&post(b, UPLOAD, bob.keys()).await);
        let mut told = async || {
            let (one, two) = (sync(a, Some(&a_since)).await, sync(b, Some(&b_since)).await);
            (a_since, b_since) = (one.1, two.1);
            (one.0, two.0)
        };
        let bob_changed = || vec![b.user_id.clone()];
        assert_eq!(told().await, (bob_changed(), bob_changed()));
        assert_eq!(bob.sign(b, &b.device_id, bob.signed_device()).await, Value::Null);
        assert_eq!(told().await, (bob_changed(), bob_changed()));
        assert_eq!(bob.sign(b, &b.device_id, bob.signed_device()).await, Value::Null);
        assert_eq!(told().await, (vec![], vec![]), "the same again");
        // Whom alice trusts is nobody's business but her own devices'.
        let vouched = signed(bob.master.key(b, "master"), a, &alice.others.key_id(), &alice.others);
        assert_eq!(alice.sign(b, &bob.master.public, vouched.clone()).await, Value::Null);
        assert_eq!(told().await, (bob_changed(), vec![]));
        assert_eq!(alice.sign(b, &bob.master.public, vouched).await, Value::Null);
        assert_eq!(told().await, (vec![], vec![]));
    }

    #[tokio::test]
    async fn pitfall_016_who_is_gone_leaves_no_keys() {
        let server = Server::default();
        let (alice, bob) = (Person::new(&server, "alice").await, server.user("bob").await);
        let a = &alice.user;
        let backup = json!({ "algorithm": "a", "auth_data": {} });
        ok(&post(a, "/_matrix/client/v3/room_keys/version", backup).await);
        let key = json!({ "first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": {} });
        let path = "/_matrix/client/v3/room_keys/keys/!r:hs.test/s?version=1";
        ok(&a.client.put(path, key).await);
        ok(&post(a, "/_matrix/client/v3/account/deactivate", json!({ "auth": a.auth() })).await);
        crate::jobs::drain(&server.app).await.unwrap();
        let found = query(&bob, a).await;
        for kind in ["master_keys", "self_signing_keys"] {
            assert_eq!(found[kind], json!({}), "{kind}");
        }
        assert_eq!(found["device_keys"][&a.user_id], json!({}));
        let left = server.app.store.latest().count(&BACKED_UP_KEYS, BACKED_UP_KEYS.all());
        assert_eq!(left.unwrap(), 0);
    }

    #[tokio::test]
    async fn secrets_are_kept_as_they_are() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let secret = json!({ "encrypted": { "key": { "iv": "i", "ciphertext": "c".repeat(100_000), "mac": "m" } } });
        for kind in ["m.cross_signing.master", "m.megolm_backup.v1", "m.secret_storage.key.K"] {
            let path = format!("/_matrix/client/v3/user/{}/account_data/{kind}", alice.user_id);
            ok(&alice.client.put(&path, secret.clone()).await);
            assert_eq!(ok(&alice.client.get(&path).await), secret);
        }
    }

    #[tokio::test]
    async fn requests_that_make_no_sense_are_refused() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for wrong in [json!({ "alice": {} }), json!({ "@alice:hs.test": [] })] {
            assert_eq!(post(&alice, SIGN, wrong).await.status, 400);
        }
        let many: serde_json::Map<String, Value> = (0..300).map(|n| (format!("D{n}"), json!({}))).collect();
        assert_eq!(post(&alice, SIGN, json!({ "@alice:hs.test": many })).await.status, 400);
        assert_eq!(outcome(&server.client.post(UPLOAD, json!({})).await).0, 401);
        assert_eq!(outcome(&server.client.post(SIGN, json!({})).await).0, 401);
    }
}
