//! An account that only listens: what a sync has shown was durable, whatever happened to the server a moment later.

use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::check::Shown;
use crate::client::{Session, part};

/// Room and event in the order in which the syncs brought them.
pub type Heard = Arc<Mutex<Vec<(usize, String)>>>;

/// Long-polls for ever, across crashes, with the token it was given last.
pub async fn listen(session: Session, rooms: Arc<Vec<String>>, heard: Heard) {
    let filter = part(r#"{"room":{"timeline":{"limit":100},"state":{"lazy_load_members":true}}}"#);
    let mut since = String::new();
    loop {
        let path = format!("/v3/sync?timeout=5000&filter={filter}{since}");
        let Ok(reply) = session.call("GET", &path, &Value::Null).await else {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        assert_eq!(reply.status, 200, "sync: {}", String::from_utf8_lossy(&reply.body));
        let sync = reply.json();
        since = format!("&since={}", part(sync["next_batch"].as_str().unwrap()));
        let mut heard = heard.lock().unwrap();
        for (index, room_id) in rooms.iter().enumerate() {
            let events = sync["rooms"]["join"][room_id]["timeline"]["events"].as_array();
            let ids = events.into_iter().flatten().map(|event| event["event_id"].as_str().unwrap().to_owned());
            heard.extend(ids.map(|id| (index, id)));
        }
    }
}

/// Everything heard is in its room, and came once and in the room's order.
pub fn check(heard: &Heard, shown: &[Shown]) {
    let heard = heard.lock().unwrap();
    let mut last = vec![None; shown.len()];
    for (room, event_id) in heard.iter() {
        let at = shown[*room].knows(event_id);
        assert!(at.is_some(), "a sync has shown {event_id}, and now it is gone");
        assert!(last[*room] < at, "a sync has shown {event_id} twice or out of order");
        last[*room] = at;
    }
}
