//! What is safe to do when the box wakes up: a function from what is written down and what was booted. Pure.

use crate::entry::Tries;
use crate::journal::{Journal, Reason, Release, State};

/// What is seen of the box when it wakes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The version that runs.
    pub booted: String,
    /// The boot entry of the release that is on its way (or, if none is, of the one that should run): not there, or with
    /// its tries.
    pub entry: Option<Option<Tries>>,
    /// Why the last trial found itself unfit, if it said so.
    pub complaint: Option<String>,
}

/// The one safe thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Serve as usual.
    Serve,
    /// Serve as usual; what was begun is thrown away.
    Discard,
    /// What runs is not what should run, and no update says why: stay with it.
    Adopt(Reason),
    /// Serve nobody yet, change nothing that cannot be undone, and see whether the release is good.
    Try,
    /// It was found good: it stays.
    Commit,
    /// Put everything back to the release that runs.
    FallBack(Reason),
    /// The release that is to be left still runs: throw away its boot entry and boot again.
    Leave,
}

/// See [`Decision`].
pub fn decide(journal: &Journal, facts: &Facts) -> Decision {
    let runs = |release: &Release| release.version == facts.booted;
    match &journal.state {
        State::Idle | State::Staged { .. } if !runs(&journal.running) => Decision::Adopt(why(facts)),
        State::Idle | State::Staged { whole: true, .. } => Decision::Serve,
        State::Staged { .. } => Decision::Discard,
        State::Armed { to, .. } | State::Trial { to, .. } if runs(to) => match facts.entry {
            // Only a release that has proven itself has an entry without a counter.
            Some(None) => Decision::Commit,
            _ => Decision::Try,
        },
        State::Armed { .. } if facts.entry.is_none() => Decision::FallBack(Reason::Interrupted),
        State::Armed { .. } | State::Trial { .. } => Decision::FallBack(why(facts)),
        State::Fallback { from, .. } if runs(from) => Decision::Leave,
        State::Fallback { reason, .. } => Decision::FallBack(reason.clone()),
    }
}

fn why(facts: &Facts) -> Reason {
    if let Some(what) = &facts.complaint {
        return Reason::Unfit { what: what.clone() };
    }
    match facts.entry {
        Some(Some(Tries { done, .. })) if done > 0 => Reason::DidNotStart { tries: done },
        _ => Reason::NotChosen,
    }
}

#[cfg(test)]
mod tests {
    use bundle::Store;

    use super::*;

    fn release(version: &str) -> Release {
        Release { version: version.into(), security_version: 1, store: Store { oldest: 1, newest: 1 }, image: None }
    }

    fn check(state: State, booted: &str, entry: Option<Option<(u32, u32)>>, expected: Decision) {
        let entry = entry.map(|tries| tries.map(|(left, done)| Tries { left, done }));
        let journal = Journal { state: state.clone(), ..Journal::new(release("1")) };
        let facts = Facts { booted: booted.into(), entry, complaint: None };
        assert_eq!(decide(&journal, &facts), expected, "{state:?} {booted} {entry:?}");
    }

    #[test]
    fn each_state_has_one_safe_thing() {
        let staged = |whole| State::Staged { to: release("2"), whole, by: "me".into(), approved_by: None };
        let armed = || State::Armed { to: release("2"), checkpoint: "c".into() };
        let trial = || State::Trial { to: release("2"), checkpoint: "c".into(), starts: 1 };
        let reason = Reason::NotChosen;
        let fallback = || State::Fallback { from: release("2"), checkpoint: None, reason: Reason::NotChosen };
        check(State::Idle, "1", Some(None), Decision::Serve);
        check(State::Idle, "0", Some(None), Decision::Adopt(reason.clone()));
        check(State::Idle, "0", Some(Some((0, 3))), Decision::Adopt(Reason::DidNotStart { tries: 3 }));
        check(staged(false), "1", None, Decision::Discard);
        check(staged(true), "1", None, Decision::Serve);
        check(staged(true), "2", None, Decision::Adopt(reason.clone()));
        check(staged(false), "0", None, Decision::Adopt(reason.clone()));
        check(armed(), "1", None, Decision::FallBack(Reason::Interrupted));
        check(armed(), "1", Some(Some((3, 0))), Decision::FallBack(reason.clone()));
        check(armed(), "1", Some(Some((0, 3))), Decision::FallBack(Reason::DidNotStart { tries: 3 }));
        check(armed(), "2", Some(Some((2, 1))), Decision::Try);
        check(armed(), "2", None, Decision::Try);
        check(armed(), "2", Some(None), Decision::Commit);
        check(trial(), "2", Some(Some((1, 2))), Decision::Try);
        check(trial(), "2", Some(None), Decision::Commit);
        check(trial(), "1", Some(Some((0, 3))), Decision::FallBack(Reason::DidNotStart { tries: 3 }));
        check(trial(), "1", None, Decision::FallBack(reason.clone()));
        check(fallback(), "1", None, Decision::FallBack(reason));
        check(fallback(), "2", Some(Some((1, 2))), Decision::Leave);
    }

    #[test]
    fn a_complaint_is_the_reason() {
        let journal = Journal {
            state: State::Trial { to: release("2"), checkpoint: "c".into(), starts: 1 },
            ..Journal::new(release("1"))
        };
        let facts = Facts { booted: "1".into(), entry: None, complaint: Some("the disk is full".into()) };
        assert_eq!(decide(&journal, &facts), Decision::FallBack(Reason::Unfit { what: "the disk is full".into() }));
    }
}
