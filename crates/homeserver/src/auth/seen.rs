//! When a device was last seen. Written rarely, and no request waits for it.

use std::net::IpAddr;

use quick_cache::sync::Cache;
use store::{Batch, Read};

use crate::App;
use crate::auth::tokens::{Hash, NO_DEVICE};
use crate::schema::{DEVICE_SEEN, DEVICES, Seen, Token};

/// When each token was last noted. Forgetting one costs a write more.
pub(super) struct LastSeen(Cache<u64, u64>);

/// A device is noted at most once in this time.
const INTERVAL_MS: u64 = 10 * 60 * 1000;

impl Default for LastSeen {
    fn default() -> Self {
        Self(Cache::new(64 * 1024))
    }
}

impl LastSeen {
    /// Notes a request, unless one was noted lately.
    pub(super) fn note(&self, app: &App, read: &impl Read, hash: &Hash, token: &Token, ip: IpAddr) {
        if token.device_id == NO_DEVICE {
            return;
        }
        let now = app.clock.now_ms();
        let (key, _) = hash.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let key = u64::from_le_bytes(*key);
        if self.0.get(&key).is_some_and(|noted| now.saturating_sub(noted) < INTERVAL_MS) {
            return;
        }
        self.0.insert(key, now);
        let device = (token.user_id.as_str(), token.device_id.as_str());
        let mut batch = Batch::new();
        // A device that is deleted at this moment stays deleted.
        batch.check_unchanged(&DEVICES, device, read.version());
        batch.put(&DEVICE_SEEN, device, &Seen { ts: now, ip: Some(ip.to_string()) });
        if let Err(cause) = app.store.commit(batch) {
            tracing::debug!(%cause, "the time a device was last seen is not noted");
        }
    }
}
