//! What people are shown of updates; the same as JSON lines for programs.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;
use serde_json::json;
use updater::{History, Plan, Policy, State, Step, Updater};

pub(super) fn status(updater: &Updater<'_>, json: bool) -> Result<String> {
    let (journal, history) = (updater.journal()?, updater.history()?);
    let slot = updater.slots().map(|slots| slots.active.name.to_string());
    let slot = slot.unwrap_or_else(|why| format!("not known: {why}"));
    let needs = match &journal.state {
        State::Staged { whole: true, approved_by: None, .. } if updater.policy(&journal).second_approval => "approval",
        State::Armed { .. } => "restart",
        _ => "nothing",
    };
    if json {
        let status = json!({
            "state": journal.state.word(),
            "needs": needs,
            "runs": updater.booted.version,
            "slot": slot,
            "release": journal.state.release().map(|release| &release.version),
            "other": journal.other.as_ref().map(|other| &other.version),
            "floor": updater.floor(&journal),
            "newest_seen": journal.newest.as_ref().map(|newest| &newest.version),
            "failure": journal.failure,
            "history_broken": history.broken,
        });
        return Ok(format!("{status}\n"));
    }
    let floor = updater.floor(&journal);
    let mut text = format!("runs              release {} in slot {slot}\n", updater.booted.version);
    let going_on = match journal.state.release() {
        None => "nothing is going on".to_owned(),
        Some(release) => format!("release {}: {}", release.version, in_words(&journal.state, needs)),
    };
    let _ = writeln!(text, "state             {going_on}");
    match &journal.other {
        Some(other) => writeln!(text, "other slot        release {}", other.version)?,
        None => writeln!(text, "other slot        nothing that could be started")?,
    }
    let _ = writeln!(text, "security version  at least {floor} is needed");
    text.push_str(&asked(&updater.policy(&journal)));
    if let Some(newest) = journal.newest.filter(|newest| newest.version != updater.booted.version) {
        let _ = writeln!(text, "newest seen       release {}", newest.version);
    }
    if let Some(failure) = journal.failure {
        let _ = writeln!(text, "last failure      {failure}");
    }
    if let Some(broken) = history.broken {
        let _ = writeln!(text, "HISTORY CHANGED   {broken}");
    }
    Ok(text)
}

/// What is asked of releases here besides their makers' signatures.
pub(super) fn policy(updater: &Updater<'_>, json: bool) -> Result<String> {
    let policy = updater.policy(&updater.journal()?);
    if json {
        return Ok(format!("{}\n", json!({ "policy": policy })));
    }
    let mut text = asked(&policy);
    if text.is_empty() {
        text.push_str("the signatures of the makers are enough\n");
    }
    if policy != updater.settings.policy {
        text.push_str("kept from an image before this one; skerry update policy --forget takes it back\n");
    }
    Ok(text)
}

fn asked(policy: &Policy) -> String {
    let mut text = String::new();
    if let Some(site) = &policy.site {
        let _ = writeln!(text, "the site signs    {} of its {} keys", site.threshold, site.keys.len());
    }
    if policy.second_approval {
        let _ = writeln!(text, "second person     has to approve an update");
    }
    text
}

fn in_words(state: &State, needs: &str) -> &'static str {
    match state {
        State::Idle => "nothing is going on",
        State::Staged { whole: false, .. } => "it is being written, or that was cut: restart, or install again",
        State::Staged { .. } if needs == "approval" => "it waits for the approval of a second person",
        State::Staged { .. } => "it is written, and not armed: install it again",
        State::Armed { .. } => "it is tried at the next start; clients wait",
        State::Trial { .. } => "it is on trial",
        State::Fallback { .. } => "it is being left",
    }
}

pub(super) fn plan(plan: &Plan, json: bool) -> String {
    if json {
        let plan = json!({
            "outcome": "plan",
            "from": plan.from.version,
            "to": plan.to.version,
            "security_version": plan.to.security_version,
            "slot": plan.slot.to_string(),
            "bytes": plan.bytes,
            "gives_up": plan.gives_up,
            "newer_seen": plan.stale.as_ref().map(|(version, days)| json!({ "version": version, "days": days })),
            "needs_approval": plan.needs_approval,
            "signers": plan.signers,
            "notes": plan.notes,
        });
        return format!("{plan}\n");
    }
    let mut text = format!("release {} takes the place of release {}\n", plan.to.version, plan.from.version);
    let _ = writeln!(text, "  security version  {} (now {})", plan.to.security_version, plan.from.security_version);
    let _ = writeln!(text, "  signed by         {}", plan.signers.join(", "));
    let _ = writeln!(text, "  is written        {} bytes, into slot {}", plan.bytes, plan.slot);
    if let Some(version) = &plan.gives_up {
        let _ = writeln!(text, "  is given up       release {version}, which lies there");
    }
    if let Some((version, days)) = &plan.stale {
        let _ = writeln!(text, "  NOT THE NEWEST    {days} days older than release {version}, which this box has seen");
    }
    if plan.needs_approval {
        let _ = writeln!(text, "  needs             the approval of a second person");
    }
    for line in plan.notes.lines() {
        let _ = writeln!(text, "  | {line}");
    }
    text
}

pub(super) fn history(history: &History, json: bool) -> String {
    let mut text = String::new();
    for line in &history.lines {
        if json {
            let _ = writeln!(text, "{}", json!(line));
        } else {
            let _ = writeln!(text, "{:>4}  {}  {}", line.number, crate::bundle::moment(line.at_s), line.text);
        }
    }
    match (&history.broken, json) {
        (Some(broken), true) => text += &format!("{}\n", json!({ "broken": broken })),
        (Some(broken), false) => text += &format!("CHANGED BY SOMEBODY: {broken}\n"),
        (None, true) => {}
        (None, false) => text += "every line is signed by this box, and none is missing\n",
    }
    text
}

/// Says something, if there is somebody who hears it: a terminal that hung up stops nothing.
pub(super) fn tell(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A bar on a terminal, a line of JSON for each percent on request, nothing elsewhere.
pub(super) struct Progress {
    shown: Option<(Step, u64)>,
    json: bool,
    bar: bool,
}

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        Self { shown: None, json, bar: !json && std::io::stderr().is_terminal() }
    }

    pub(super) fn reached(&mut self, step: Step, done: u64, whole: u64) {
        let percent = done.min(whole) * 100 / whole.max(1);
        if self.shown == Some((step, percent)) {
            return;
        }
        self.shown = Some((step, percent));
        let (word, text) = match step {
            Step::Check => ("check", "checking the file"),
            Step::Write => ("write", "writing the other slot"),
            Step::ReadBack => ("read_back", "reading it back"),
            Step::Arm => ("arm", "stopping writes, taking a checkpoint"),
        };
        if self.json {
            tell(&format!("{}\n", json!({ "step": word, "percent": percent })));
        } else if self.bar {
            let full = "#".repeat(percent as usize / 4);
            let _ = write!(std::io::stderr(), "\r{text:<38} [{full:<25}] {percent:>3} %");
        }
    }

    pub(super) fn end(&self) {
        if self.bar {
            let _ = write!(std::io::stderr(), "\r{:76}\r", "");
        }
    }
}
