//! Numbers that are good for one request, soon.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::App;

#[derive(Default)]
pub struct Nonces(Mutex<HashMap<String, u64>>);

const LIFETIME_MS: u64 = 60 * 1000;
const MAX: usize = 1_024;

impl Nonces {
    pub fn make(&self, app: &App) -> String {
        let (nonce, now) = (app.rng.alphanumeric(32), app.clock.now_ms());
        let mut nonces = self.0.lock();
        if nonces.len() >= MAX {
            nonces.retain(|_, expires_ms| *expires_ms > now);
        }
        if nonces.len() >= MAX {
            nonces.clear();
        }
        nonces.insert(nonce.clone(), now.saturating_add(LIFETIME_MS));
        nonce
    }

    /// Whether this is one of ours. It will not be a second time.
    pub fn take(&self, app: &App, nonce: &str) -> bool {
        self.0.lock().remove(nonce).is_some_and(|expires_ms| expires_ms > app.clock.now_ms())
    }
}
