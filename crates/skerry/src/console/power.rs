//! Power that is cut, for tests: everything that lasts counts as a step, and one of them is never come to.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Cut;

/// Before something lasts: ends here when the power is gone.
pub(crate) fn step() {
    match LEFT.get() {
        Some(0) => resume_unwind(Box::new(Cut)),
        left => LEFT.set(left.map(|left| left - 1)),
    }
}

/// Does so many steps of this. What came of it, if that was all of it.
pub(crate) fn cut_after<T>(steps: u32, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(steps));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    match outcome {
        Ok(done) => Some(done),
        Err(why) if why.is::<Cut>() => None,
        Err(why) => resume_unwind(why),
    }
}
