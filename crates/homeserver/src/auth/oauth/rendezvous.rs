//! Meeting points: a few bytes that two devices hand to each other before one of them is logged in (MSC4108). What is in
//! them is encrypted between the two; who knows the name of a point reads and writes there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Expiring;
use crate::App;
use crate::error::{Error, Result};
use crate::limits::network;

/// What waits at the meeting points.
pub struct Points(Expiring<String, Point>);

/// The last that was left at a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub text: Arc<str>,
    /// Which writing this is.
    version: u64,
    pub written_ms: u64,
    pub ends_ms: u64,
    by: IpAddr,
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// There is no such point, or no longer.
    Gone,
    /// Somebody else wrote first: that is there now.
    Changed(Point),
}

/// Of one message, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 * 1024;
/// As long as a user needs to compare codes and to log in at a browser.
const LIFETIME_MS: u64 = 10 * 60 * 1000;
const MAX_POINTS: usize = 1_024;
const MAX_PER_NETWORK: usize = 32;
const NAME_LENGTH: usize = 32;

impl Default for Points {
    fn default() -> Self {
        Self(Expiring::new(MAX_POINTS))
    }
}

impl Points {
    /// A new point with a first text; its name. Fails if there are too many, or too many of one network.
    pub fn open(&self, app: &App, text: &str, by: IpAddr) -> Result<(String, Point)> {
        let (now_ms, by) = (app.clock.now_ms(), network(by));
        if self.0.count(now_ms, |point| point.by == by) >= MAX_PER_NETWORK {
            return Err(Error::limit_exceeded(Duration::from_millis(LIFETIME_MS)));
        }
        let name = app.rng.alphanumeric(NAME_LENGTH);
        let ends_ms = now_ms.saturating_add(LIFETIME_MS);
        let point = Point { text: text.into(), version: 1, written_ms: now_ms, ends_ms, by };
        if self.0.add(now_ms, ends_ms, name.clone(), point.clone()) {
            Ok((name, point))
        } else {
            Err(Error::unavailable("There are too many meeting points; try again later"))
        }
    }

    pub fn read(&self, app: &App, name: &str) -> Option<Point> {
        self.0.get(app.clock.now_ms(), &name.to_owned())
    }

    /// Leaves another text, if nobody wrote since the writer looked.
    pub fn write(&self, app: &App, name: &str, seen: &str, text: &str) -> Result<Point, Unwritten> {
        let now_ms = app.clock.now_ms();
        let change = |point: &mut Point| {
            if point.tag() != seen {
                return Err(Unwritten::Changed(point.clone()));
            }
            *point = Point { text: text.into(), version: point.version + 1, written_ms: now_ms, ..point.clone() };
            Ok(point.clone())
        };
        self.0.update(now_ms, &name.to_owned(), change).unwrap_or(Err(Unwritten::Gone))
    }

    /// Whether there was such a point.
    pub fn close(&self, app: &App, name: &str) -> bool {
        self.0.take(app.clock.now_ms(), &name.to_owned()).is_some()
    }
}

impl Point {
    /// The entity tag of what is there.
    pub fn tag(&self) -> String {
        format!("\"{}\"", self.version)
    }
}
