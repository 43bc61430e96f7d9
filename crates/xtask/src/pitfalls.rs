//! Which of the traps for authors of homeservers have a test: one whose name starts with `pitfall_` and the number.
//!
//! Lives here: how many there are, and those that are about talking to other servers, with what they are about. All
//! others have a test, or the check fails. Not here: the traps themselves.

use std::collections::BTreeSet;

/// They are numbered from one.
const LAST: u16 = 110;

/// Traps that a server does not meet while it talks to no other. They get their tests with federation.
const FEDERATION: &[(u16, &str)] = &[
    (63, "an invite from elsewhere is declined, also when the other server does not answer"),
    (81, "device lists of users elsewhere"),
    (82, "signed requests between servers"),
    (83, "finding the address of a server"),
    (84, "keys of other servers"),
    (85, "events with several signatures"),
    (86, "transactions that come in"),
    (87, "queues of what goes out"),
    (92, "events that are missing"),
    (93, "which server may read what"),
    (94, "lists of servers that are kept out"),
    (95, "what servers may say in the name of users"),
    (96, "joining by way of another server"),
    (98, "state resolution: a room of one server never forks"),
    (101, "policy servers"),
    (102, "media of other servers"),
];

/// What must not be, a sentence each, given the sources of all tests.
pub(crate) fn check<'a>(sources: impl Iterator<Item = &'a str>) -> Vec<String> {
    let tested = tested(sources);
    let mut wrong = Vec::new();
    for number in 1..=LAST {
        let federation = FEDERATION.iter().any(|(known, _)| *known == number);
        if !federation && !tested.contains(&number) {
            wrong.push(format!("pitfall {number:03} has no test (`fn pitfall_{number:03}_...`)"));
        }
        if federation && tested.contains(&number) {
            wrong.push(format!("pitfall {number:03} has a test: it is no longer to be listed as left for federation"));
        }
    }
    wrong.extend(
        tested
            .iter()
            .filter(|number| !(1..=LAST).contains(*number))
            .map(|number| format!("there is no pitfall {number:03}")),
    );
    wrong
}

/// The list, for people.
pub(crate) fn list<'a>(sources: impl Iterator<Item = &'a str>) -> String {
    let tested: Vec<String> = tested(sources).iter().map(|number| format!("{number:03}")).collect();
    let mut list = format!("pitfalls with a test ({} of {LAST}): {}\n", tested.len(), tested.join(" "));
    for (number, about) in FEDERATION {
        list.push_str(&format!("pitfall {number:03} waits for federation: {about}\n"));
    }
    list
}

/// The numbers in the names of tests.
fn tested<'a>(sources: impl Iterator<Item = &'a str>) -> BTreeSet<u16> {
    let mut tested = BTreeSet::new();
    for source in sources {
        let names = source.match_indices("fn pitfall_").filter_map(|(at, start)| source.get(at + start.len()..));
        tested.extend(names.filter_map(|name| name.get(..4)?.strip_suffix('_')?.parse::<u16>().ok()));
    }
    tested
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_noticed() {
        let name = |number: u16| format!("    fn pitfall_{number:03}_it_holds() {{}}\n");
        let federation = |number: &u16| FEDERATION.iter().any(|(known, _)| known == number);
        let all: String = (1..=LAST).filter(|number| !federation(number)).map(name).collect();
        assert_eq!(check([&*all].into_iter()), Vec::<String>::new());
        let one_less = all.replace("pitfall_072_", "pitfall_071_");
        assert!(check([&*one_less].into_iter()).iter().any(|wrong| wrong.starts_with("pitfall 072 has no test")));
        let one_more = all.clone() + &name(82);
        assert!(check([&*one_more].into_iter()).iter().any(|wrong| wrong.contains("no longer")));
        let unknown = all + &name(LAST + 1);
        assert_eq!(check([&*unknown].into_iter()), ["there is no pitfall 111"]);
    }
}
