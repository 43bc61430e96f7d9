//! What a box does not take, and that it is as before then: every attack on bundles that lies in the bundle's tests, and
//! what only a box can see.

use std::fs;
use std::io::{Cursor, Read, Seek};
use std::path::Path;

use bundle::{Arch, Digest};

use super::media::Cut;
use super::paths::ESP;
use super::world::{ROOT, Recipe, World, bundle_of, parts};
use crate::journal::State;

fn ready() -> World {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world
}

/// It says this, and nothing but journal and history has changed.
fn check(world: &mut World, bundle: impl Read + Seek, says: &str) {
    let (disk, entries) = (Digest::of(&world.image.borrow().bytes()), world.entry_names());
    let why = world.updater().stage(bundle, "officer", &mut |_, _, _| {}).expect_err(says).to_string();
    assert!(why.contains(says), "{why}");
    world.cut(Cut::Everything);
    assert_eq!((Digest::of(&world.image.borrow().bytes()), world.entry_names()), (disk, entries), "{says}");
    assert_eq!(world.state(), State::Idle);
    let history = world.updater().history().unwrap();
    assert!(history.lines.last().unwrap().text.contains(says), "it is written down");
}

#[test]
fn every_attack_is_refused_by_a_box() {
    let attacks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundle/tests/attacks");
    let born_with = fs::read(attacks.with_file_name("root.json")).unwrap();
    let mut count = 0;
    for attack in fs::read_dir(attacks).unwrap() {
        let (attack, mut world) = (attack.unwrap().path(), ready());
        let mut updater = world.updater();
        updater.settings.trust.clone_from(&born_with);
        // As the attacks expect it: a box that has run security version 2.
        let mut journal = updater.journal().unwrap();
        (journal.floor, journal.running.security_version) = (2, 2);
        journal.store(&world.state).unwrap();
        let file = fs::read(attack.join("update.skerry")).unwrap();
        let says = fs::read_to_string(attack.join("says.txt")).unwrap();
        let why = updater.stage(Cursor::new(file), "officer", &mut |_, _, _| {}).unwrap_err().to_string();
        assert_eq!(why, says.trim_end(), "{}", attack.display());
        world.settle().unwrap();
        world.must_be_well();
        count += 1;
    }
    assert!(count > 30, "{count} attacks");
}

#[test]
fn a_release_that_does_not_fit_is_refused() {
    let mut world = ready();
    let release = |number: u64| Recipe::new(number).bundle();
    check(&mut world, Cursor::new(release(1)), "Release 1.1.0 runs already");
    check(
        &mut world,
        Cursor::new(Recipe { security_version: 0, ..Recipe::new(2) }.bundle()),
        "is older than what this box has run",
    );
    check(
        &mut world,
        Cursor::new(Recipe { arch: Arch::Arm64, ..Recipe::new(2) }.bundle()),
        "no image for this machine (x86_64)",
    );
    let large = || {
        let [root, verity, kernel] = parts(2).0;
        [[root, vec![1; ROOT as usize]].concat(), verity, kernel]
    };
    check(&mut world, Cursor::new(Recipe { parts: large(), ..Recipe::new(2) }.bundle()), "Slot b has 163840 bytes");
    let kernel = || {
        let [root, verity, _] = parts(2).0;
        [root, verity, vec![1; ESP as usize]]
    };
    check(&mut world, Cursor::new(Recipe { parts: kernel(), ..Recipe::new(2) }.bundle()), "The boot partition has");
    world.server.format.set(3);
    check(&mut world, Cursor::new(release(2)), "cannot read the data of this box (format 3");
}

#[test]
fn an_older_version_of_the_same_security_is_refused_with_advice() {
    let mut world = ready();
    world.install(bundle_of(3)).unwrap();
    world.settle().unwrap();
    check(&mut world, Cursor::new(Recipe { security_version: 3, ..Recipe::new(2) }.bundle()), "`rollback` goes back");
}

#[test]
fn nothing_is_installed_while_something_else_goes_on() {
    let mut world = ready();
    world.install(bundle_of(2)).unwrap();
    let nothing = &mut |_, _, _| {};
    let why = world.updater().stage(Cursor::new(bundle_of(3)), "me", nothing).unwrap_err().to_string();
    assert!(why.contains("waits for a restart"), "{why}");
    world.booted = 2;
    world.updater().wake().unwrap();
    let why = world.updater().stage(Cursor::new(bundle_of(3)), "me", nothing).unwrap_err().to_string();
    assert!(why.contains("is on trial"), "{why}");
}

#[test]
fn more_than_two_gibibytes_behind_a_good_file_are_refused() {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bundle_of(2)).unwrap();
    // Sparse: nothing of it is written.
    file.set_len(5 << 30).unwrap();
    check(&mut ready(), &file, "behind its end");
}
