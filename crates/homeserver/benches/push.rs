//! The cost of push rules: what an event does to a thousand members who never changed a rule, as those who tell gateways
//! see it (all at once) and as those who sync do (each by themselves).
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use homeserver::error::Result;
use homeserver::push::pattern::Fuel;
use homeserver::push::rules::{Facts, Outcome, RoomFacts, Rules};
use homeserver::stored::{NewEvent, StoredEvent};
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{Action, NewPatternedPushRule, NewPushRule, Ruleset};
use ruma::{OwnedUserId, UserId};
use serde_json::json;

const MEMBERS: u64 = 1_000;

struct Member(OwnedUserId);

impl RoomFacts for Member {
    fn user_id(&self) -> &UserId {
        &self.0
    }
    fn room_id(&self) -> &str {
        "!room:hs"
    }
    fn joined_members(&self) -> u64 {
        MEMBERS
    }
    fn may_notify(&self, _: &str, _: &NotificationPowerLevelsKey) -> Result<bool> {
        Ok(false)
    }
    fn display_name(&self) -> Result<String> {
        Ok(self.0.localpart().to_owned())
    }
}

fn event() -> StoredEvent {
    let mentions = json!({"user_ids": ["@u7:hs", "@u8:hs"]});
    let content = json!({"msgtype": "m.text", "body": "lorem ipsum dolor ".repeat(10), "m.mentions": mentions});
    let sender = "@sender:hs";
    let client =
        json!({"content": content, "origin_server_ts": 1, "sender": sender, "type": "m.room.message"}).to_string();
    let client = &client.as_bytes()[1..client.len() - 1];
    NewEvent::plain("m.room.message", None, sender, client).stored().unwrap()
}

/// The default rules and a hundred words.
fn with_words(user_id: &UserId) -> Rules {
    let mut rules = Ruleset::server_default(user_id);
    for n in 0..100 {
        let rule = NewPatternedPushRule::new(format!("w{n}"), format!("word{n}"), vec![Action::Notify]);
        rules.insert(NewPushRule::Content(rule), None, None).unwrap();
    }
    Rules::new(rules)
}

fn benches(c: &mut Criterion) {
    let event = event();
    let members: Vec<Member> =
        (0..MEMBERS).map(|n| Member(OwnedUserId::try_from(format!("@u{n}:hs")).unwrap())).collect();
    let (rules, fuel) = (Rules::default(), Fuel::default());
    let highlights = |outcomes: &mut dyn Iterator<Item = Outcome>| outcomes.filter(|outcome| outcome.highlight).count();
    let mut group = c.benchmark_group("push rules, one event, 1,000 members");
    group.throughput(Throughput::Elements(MEMBERS));
    group.bench_function("default rules, together", |b| {
        b.iter(|| {
            let facts = Facts::new(black_box(&event));
            let mut outcomes = members.iter().map(|member| rules.decide(&facts, member, &fuel).unwrap());
            assert_eq!(highlights(&mut outcomes), 2);
        });
    });
    group.bench_function("default rules, each alone", |b| {
        b.iter(|| {
            let event = black_box(&event);
            let mut outcomes = members.iter().map(|member| rules.decide(&Facts::new(event), member, &fuel).unwrap());
            assert_eq!(highlights(&mut outcomes), 2);
        });
    });
    let own: Vec<Rules> = members.iter().map(|member| with_words(&member.0)).collect();
    group.bench_function("default rules and 100 words each, together", |b| {
        b.iter(|| {
            let facts = Facts::new(black_box(&event));
            let all = members.iter().zip(&own);
            let mut outcomes = all.map(|(member, rules)| rules.decide(&facts, member, &fuel).unwrap());
            assert_eq!(highlights(&mut outcomes), 2);
        });
    });
    group.finish();
}

criterion_group!(push, benches);
criterion_main!(push);
