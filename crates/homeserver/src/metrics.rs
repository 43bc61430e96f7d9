//! Figures about the server, in Prometheus' text format. What is counted per request is looked up once, at start.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<RouteLabels, Histogram, fn() -> Histogram>,
    /// Long polls that wait right now.
    pub open_polls: Gauge<i64, AtomicI64>,
    /// Connections that are open right now.
    pub connections: Gauge<i64, AtomicI64>,
    /// Background jobs that failed and are tried again later.
    pub failed_jobs: Counter,
    resident: Gauge<i64, AtomicI64>,
    store: Family<StoreLabels, Gauge<i64, AtomicI64>>,
    panics: Family<TaskLabels, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TaskLabels {
    task: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StoreLabels {
    figure: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    method: String,
    route: String,
}

/// The figures of one endpoint.
pub struct RouteMetrics {
    labels: RouteLabels,
    ok: Counter,
    requests: Family<RequestLabels, Counter>,
    latency: Histogram,
}

/// Seconds. A long poll ends in the last buckets.
const BUCKETS: [f64; 11] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 35.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("skerry");
        let requests = Family::default();
        let latency = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        let (open_polls, connections, resident) = (Gauge::default(), Gauge::default(), Gauge::default());
        let (store, failed_jobs, panics) = (Family::default(), Counter::default(), Family::default());
        registry.register("http_requests", "Requests answered, by route and status", requests.clone());
        registry.register("http_request_seconds", "Time from the head of a request to its answer", latency.clone());
        registry.register("http_open_polls", "Long polls that wait right now", open_polls.clone());
        registry.register("http_connections", "Connections that are open right now", connections.clone());
        registry.register("failed_jobs", "Background jobs that failed and are tried again later", failed_jobs.clone());
        registry.register("memory_resident_bytes", "Memory of the process that is in RAM", resident.clone());
        registry.register("store", "Figures of the store", store.clone());
        registry.register("task_panics", "Faults that ended a piece of background work, by task", panics.clone());
        Self { registry, requests, latency, open_polls, connections, failed_jobs, resident, store, panics }
    }
}

impl Metrics {
    pub fn route(&self, method: &Method, route: &str) -> RouteMetrics {
        let labels = RouteLabels { method: method.to_string(), route: route.to_owned() };
        RouteMetrics {
            ok: self.requests.get_or_create_owned(&labels.with(StatusCode::OK)),
            latency: self.latency.get_or_create_owned(&labels),
            requests: self.requests.clone(),
            labels,
        }
    }

    /// Counts one waiting long poll until the guard is dropped.
    pub fn poll_opened(&self) -> Open {
        Open::new(&self.open_polls)
    }

    /// Counts one connection until the guard is dropped.
    pub fn connection_opened(&self) -> Open {
        Open::new(&self.connections)
    }

    /// A piece of background work ended by a fault of the program.
    pub fn panicked(&self, task: &'static str) {
        self.panics.get_or_create(&TaskLabels { task }).inc();
    }

    /// Brings the figures up to date that nobody counts while they change.
    pub fn refresh(&self, store: &[(&'static str, u64)]) {
        self.resident.set(resident_bytes().unwrap_or(0));
        for (figure, value) in store {
            self.store.get_or_create(&StoreLabels { figure }).set(i64::try_from(*value).unwrap_or(i64::MAX));
        }
    }

    /// The text a monitoring system reads.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// One of the things a gauge counts, while it is there.
pub struct Open(Gauge<i64, AtomicI64>);

impl Open {
    fn new(gauge: &Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

impl RouteMetrics {
    pub fn observe(&self, status: StatusCode, took: Duration) {
        if status == StatusCode::OK {
            self.ok.inc();
        } else {
            self.requests.get_or_create(&self.labels.with(status)).inc();
        }
        self.latency.observe(took.as_secs_f64());
    }
}

impl RouteLabels {
    fn with(&self, status: StatusCode) -> RequestLabels {
        RequestLabels { method: self.method.clone(), route: self.route.clone(), status: status.as_u16() }
    }
}
