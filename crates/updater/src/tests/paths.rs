//! Whole paths with the power on: a release that is good, ones that are not, going back, approval, a disk that loses a
//! write, real files.

use std::io::Cursor;

use bundle::testing::{root, signed, signed_root, signer, with};
use bundle::{Keep, Store};
use fatfs::FatType;

use super::media::Image;
use super::world::{Health, Recipe, World, bundle_of, version};
use crate::disk::{Disk, FileDisk, SECTOR};
use crate::entry::Entry;
use crate::folder::Folder as _;
use crate::history::Event;
use crate::journal::{Reason, State};
use crate::policy::{Policy, Site};
use crate::slots::EMPTY;
use crate::updater::Error;

pub(super) const ESP: u64 = 256 * 1024;

fn updated(health: Health) -> World {
    let mut world = World::new(ESP);
    world.health = health;
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    assert!(matches!(world.state(), State::Armed { .. }));
    world.settle().unwrap();
    world.must_be_well();
    world
}

fn labels(world: &World) -> [String; 2] {
    let slots = world.updater().slots().unwrap();
    [slots.active.root.label, slots.inactive.root.label]
}

#[test]
fn a_good_release_comes_to_stay() {
    let mut world = updated(Health::Good);
    let journal = world.updater().journal().unwrap();
    assert_eq!((world.booted, journal.floor, journal.failure), (2, 2, None));
    assert_eq!(journal.other.unwrap().version, version(1));
    assert_eq!(labels(&world), ["skerry_1.2.0", "skerry_1.1.0"]);
    // With another release to go to, it has tries again, and each good boot renews them.
    for _ in 0..5 {
        assert_eq!(world.entry_names(), ["skerry_1.1.0.efi", "skerry_1.2.0+3.efi"]);
        world.settle().unwrap();
        world.must_be_well();
    }
    assert_eq!(world.booted, 2);
    assert!(world.server.checkpoint.borrow().is_none(), "the checkpoint is of no use any more");
    // And the next one goes into the other slot.
    world.install(bundle_of(3)).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!((world.booted, labels(&world)), (3, ["skerry_1.3.0".to_owned(), "skerry_1.2.0".to_owned()]));
    let events: Vec<Event> = world.updater().history().unwrap().lines.iter().map(|line| line.event).collect();
    let update = [Event::Staged, Event::Armed, Event::Trial, Event::Committed];
    assert_eq!(events, [update, update].concat());
}

#[test]
fn a_release_that_hangs_is_left_after_its_tries() {
    let mut world = updated(Health::Hangs);
    assert_eq!((world.booted, world.entry_names()), (1, vec!["skerry_1.1.0.efi".to_owned()]));
    let journal = world.updater().journal().unwrap();
    assert_eq!(journal.floor, 1);
    assert_eq!(journal.failure.unwrap(), "release 1.2.0 was left: it did not come up in 3 tries");
    assert_eq!(labels(&world), ["skerry_1.1.0", EMPTY]);
    world.health = Health::Good;
    world.install(bundle_of(2)).unwrap();
    world.settle().unwrap();
    assert_eq!(world.booted, 2);
}

#[test]
fn a_release_that_finds_itself_unfit_is_left_and_the_data_is_put_back() {
    let world = updated(Health::Unfit);
    assert_eq!(world.booted, 1);
    let failure = world.updater().journal().unwrap().failure.unwrap();
    assert_eq!(failure, "release 1.2.0 was left: it came up, but: the disk is full");
    assert!(world.server.store.get().unwrap().changed_by == 0 && !world.server.touched.get());
}

#[test]
fn a_box_that_cannot_put_the_data_back_serves_nobody_until_it_can() {
    let mut world = World::new(ESP);
    world.health = Health::Unfit;
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    world.server.sticks.set(true);
    let why = (0..4).find_map(|_| world.boot().err()).unwrap();
    assert!(why.to_string().contains("read-only"), "{why}");
    // The server starts all the same, on data that a trial has changed. What it says is safe must be.
    let acknowledged = world.server.promised.get();
    world.server.start();
    world.server.send();
    assert_eq!(world.server.promised.get(), acknowledged, "data that is still to be put back is served");
    world.server.sticks.set(false);
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 1);
    assert!(world.server.promised.get() > acknowledged);
}

#[test]
fn a_server_that_dies_behind_the_checkpoint_serves_nobody_before_the_start() {
    for health in [Health::Good, Health::Unfit] {
        let mut world = World::new(ESP);
        (world.health, world.killed) = (health, true);
        world.settle().unwrap();
        world.install(bundle_of(2)).unwrap();
        assert!(world.server.frozen.get());
        world.settle().unwrap();
        world.must_be_well();
    }
    // Taken back: the data is put back with no server over it.
    let mut world = World::new(ESP);
    world.killed = true;
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    assert!(world.updater().rollback("me").unwrap(), "a start is needed");
    assert!(world.server.checkpoint.borrow().is_some() && world.server.frozen.get());
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!((world.booted, world.entry_names()), (1, vec!["skerry_1.1.0.efi".to_owned()]));
}

#[test]
fn a_journal_that_a_later_release_has_written_is_understood_by_the_one_before() {
    let mut world = World::new(ESP);
    world.health = Health::Unfit;
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    assert!(!world.boot().unwrap());
    let mut journal: serde_json::Value =
        serde_json::from_slice(&world.state.load("state.json", 1 << 20).unwrap().unwrap()).unwrap();
    for place in ["", "/state/trial", "/state/trial/to", "/running"] {
        let object = journal.pointer_mut(place).and_then(serde_json::Value::as_object_mut).expect(place);
        object.insert("what_release_2_adds".into(), true.into());
    }
    world.state.replace("state.json", journal.to_string().as_bytes()).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 1);
    let failure = world.updater().journal().unwrap().failure.unwrap();
    assert!(failure.contains("the disk is full"), "{failure}");
}

#[test]
fn a_release_that_is_to_be_left_serves_nobody() {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    world.booted = 2;
    world.updater().wake().unwrap();
    assert!(world.updater().rollback("me").unwrap());
    assert!(world.updater().wake().unwrap().reboot);
    assert!(world.server.silent.get());
}

#[test]
fn a_box_that_fails_with_nothing_to_put_back_serves() {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    // Both copies of the partition table are gone: no update is possible, but everything else.
    for at in [0, world.disk.size().unwrap() - 64 * 512] {
        world.disk.write_at(at, &[0; 64 * 512]).unwrap();
    }
    world.server.silent.set(true);
    world.updater().wake().unwrap_err();
    assert!(!world.server.silent.get());
}

/// Runs release 2, which is of this security version, beside release 1.
fn beside(security_version: u64) -> World {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.install(&Recipe { security_version, ..Recipe::new(2) }.bundle()).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 2);
    world
}

/// Changes a byte of the root that runs.
fn damage(world: &World) {
    let at = world.updater().slots().unwrap().active.root.at + 50_000;
    let mut byte = [0];
    world.disk.read_at(at, &mut byte).unwrap();
    world.disk.write_at(at, &[byte[0] ^ 1]).unwrap();
    world.disk.sync().unwrap();
}

fn failure(world: &World) -> String {
    world.updater().journal().unwrap().failure.unwrap_or_default()
}

#[test]
fn an_active_slot_that_is_damaged_gives_way_to_the_other() {
    let mut world = beside(1);
    damage(&world);
    world.settle().unwrap();
    assert_eq!(world.booted, 1);
    world.must_be_well();
    assert!(failure(&world).contains("did not come up in 3 tries"), "{}", failure(&world));
    // It stays there, also if somebody asks for what is damaged; the slot can be written anew.
    let why = world.updater().rollback("me").unwrap_err().to_string();
    assert!(why.contains("cannot be booted"), "{why}");
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 2);
}

#[test]
fn an_older_release_that_takes_over_serves_nobody_where_it_opens_holes_again() {
    let mut world = beside(2);
    damage(&world);
    let promised = world.server.promised.get();
    world.settle().unwrap();
    assert_eq!((world.booted, world.server.promised.get()), (1, promised));
    world.must_be_well();
    assert!(failure(&world).contains("it has security version 1, and this box has run 2"), "{}", failure(&world));
    // So it is after each start, until something is installed that may serve.
    world.settle().unwrap();
    assert_eq!((world.booted, world.server.promised.get()), (1, promised));
    assert!(!world.updater().commit().unwrap() && world.server.frozen.get());
    world.server.refuses.set(true);
    assert!(matches!(world.install(bundle_of(2)), Err(Error::Host(_))));
    world.server.refuses.set(false);
    assert!(!world.updater().rollback("me").unwrap());
    assert!(world.server.frozen.get() && world.server.silent.get());
    let refused = world.install(&Recipe { security_version: 1, ..Recipe::new(3) }.bundle()).unwrap_err();
    assert!(refused.to_string().contains("is older than what this box has run"), "{refused}");
    world.install(bundle_of(2)).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!((world.booted, world.server.frozen.get()), (2, false));
}

#[test]
fn power_that_comes_and_goes_does_not_leave_the_box_with_a_release_that_may_not_serve() {
    let short_starts = |world: &mut World| {
        world.health = Health::Hangs;
        for _ in 0..3 {
            assert!(!world.boot().unwrap());
        }
        world.health = Health::Good;
    };
    // It would open holes again.
    let mut world = beside(2);
    for _ in 0..3 {
        short_starts(&mut world);
        world.settle().unwrap();
        world.must_be_well();
        assert_eq!((world.booted, world.updater().journal().unwrap().returns), (2, 0));
    }
    // It cannot read the data any more.
    let mut world = World::new(ESP);
    world.settle().unwrap();
    let store = Store { oldest: 1, newest: 2 };
    world.install(&Recipe { security_version: 1, store, ..Recipe::new(2) }.bundle()).unwrap();
    world.settle().unwrap();
    world.server.format.set(2);
    short_starts(&mut world);
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 2);
    // Where the other one may serve, it does; and people can have the one above back.
    let mut world = beside(1);
    short_starts(&mut world);
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 1);
    assert!(world.updater().rollback("me").unwrap());
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!((world.booted, world.entry_names().len()), (2, 2));
}

#[test]
fn a_release_that_never_comes_up_again_is_not_tried_for_ever() {
    let mut world = beside(2);
    world.health = Health::Hangs;
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!((world.booted, world.server.frozen.get()), (1, true));
    // It was mended elsewhere (a device that was unplugged), and somebody asks for it.
    world.health = Health::Good;
    assert!(world.updater().rollback("me").unwrap());
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!((world.booted, world.server.frozen.get()), (2, false));
}

#[test]
fn going_back_on_request() {
    // What is staged, armed or on trial.
    let mut world = World::new(ESP);
    world.settle().unwrap();
    assert!(
        matches!(world.updater().rollback("me"), Err(Error::Not(why)) if why.contains("other slot holds no release"))
    );
    world.install(bundle_of(2)).unwrap();
    assert!(!world.updater().rollback("me").unwrap());
    world.must_be_well();
    assert_eq!(world.entry_names(), ["skerry_1.1.0.efi"]);
    world.settle().unwrap();
    assert_eq!(world.booted, 1);
    // The one before, if that opens no hole.
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.install(&Recipe { security_version: 1, ..Recipe::new(2) }.bundle()).unwrap();
    world.settle().unwrap();
    assert_eq!(world.booted, 2);
    assert!(world.updater().rollback("me").unwrap());
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 1);
    assert_eq!(world.updater().journal().unwrap().failure.unwrap(), "release 1.2.0 was left: me asked for it");
    let world = updated(Health::Good);
    let why = world.updater().rollback("me").unwrap_err().to_string();
    assert!(why.contains("would bring back holes"), "{why}");
    // Nor if it cannot read the data.
    let mut world = World::new(ESP);
    world.settle().unwrap();
    let reads = Store { oldest: 1, newest: 2 };
    world.install(&Recipe { security_version: 1, store: reads, ..Recipe::new(2) }.bundle()).unwrap();
    world.settle().unwrap();
    world.server.format.set(2);
    assert!(world.updater().rollback("me").unwrap_err().to_string().contains("cannot read the data"));
}

#[test]
fn a_boot_loader_that_cannot_count_does_not_try_for_ever() {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.counts = false;
    (world.health, world.sick_from) = (Health::Unfit, 2);
    world.install(bundle_of(2)).unwrap();
    world.settle().unwrap();
    assert_eq!((world.booted, world.state()), (1, State::Idle));
    let failure = world.updater().journal().unwrap().failure.unwrap();
    assert!(failure.contains("the disk is full"), "{failure}");
}

#[test]
fn a_second_person_has_to_approve() {
    let mut world = World::new(ESP);
    world.policy.second_approval = true;
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    let says = |what: Result<(), Error>, words: &str| {
        let why = what.unwrap_err().to_string();
        assert!(why.contains(words), "{why}");
    };
    let nothing = &mut |_, _, _| {};
    says(world.updater().arm(true, nothing), "waits for the approval");
    // Waiting survives a restart.
    world.settle().unwrap();
    assert_eq!(world.booted, 1);
    says(world.updater().approve("1.3.0", "colonel"), "Release 1.2.0 waits");
    says(world.updater().approve("1.2.0", "officer"), "somebody else");
    world.updater().approve("1.2.0", "colonel").unwrap();
    // What lies there is read once more before it is armed.
    let at = world.updater().slots().unwrap().inactive.root.at;
    let mut byte = [0];
    world.disk.read_at(at, &mut byte).unwrap();
    world.disk.write_at(at, &[byte[0] ^ 1]).unwrap();
    says(world.updater().arm(false, nothing), "does not give back");
    world.disk.write_at(at, &byte).unwrap();
    world.updater().arm(false, nothing).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 2);
}

#[test]
fn a_disk_that_loses_a_write_is_noticed_before_anything_is_bootable() {
    for sector in [0, 77, 127] {
        let mut world = World::new(ESP);
        world.settle().unwrap();
        let at = world.updater().slots().unwrap().inactive.root.at;
        world.disk.loses.set(Some(at / SECTOR + sector));
        let why = world.install(bundle_of(2)).unwrap_err().to_string();
        assert!(why.contains("the disk may be failing"), "{why}");
        world.settle().unwrap();
        world.must_be_well();
        assert_eq!(world.booted, 1);
    }
}

#[test]
fn a_server_that_does_not_go_along_leaves_everything_as_it_is() {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.server.refuses.set(true);
    assert!(matches!(world.install(bundle_of(2)), Err(Error::Host(_))));
    assert!(!world.server.frozen.get() && !world.server.silent.get(), "clients wait for nothing");
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 1);
    world.server.refuses.set(false);
    world.updater().arm(false, &mut |_, _, _| {}).unwrap();
    world.settle().unwrap();
    assert_eq!(world.booted, 2);
}

#[test]
fn an_installation_that_was_killed_behind_the_checkpoint_leaves_nobody_waiting_for_ever() {
    let killed = || {
        let mut world = World::new(ESP);
        world.settle().unwrap();
        let updater = world.updater();
        updater.stage(Cursor::new(bundle_of(2)), "officer", &mut |_, _, _| {}).unwrap();
        updater.host.start_silent(true).unwrap();
        updater.host.freeze("update-1").unwrap();
        world
    };
    let serves = |world: &World| !world.server.frozen.get() && !world.server.silent.get();
    let world = killed();
    assert!(!world.updater().rollback("me").unwrap() && serves(&world));
    world.must_be_well();
    let mut world = killed();
    world.policy.second_approval = true;
    world.install(bundle_of(2)).unwrap();
    assert!(serves(&world));
    let mut world = killed();
    world.settle().unwrap();
    world.must_be_well();
}

#[test]
fn a_release_that_stays_is_served_also_if_the_server_heard_of_it_late() {
    let trial = || {
        let mut world = World::new(ESP);
        world.settle().unwrap();
        world.install(bundle_of(2)).unwrap();
        world.server.deaf.set(true);
        assert!(world.boot().unwrap_err().to_string().contains("no answer"));
        assert!(world.server.frozen.get() && !world.server.silent.get());
        world
    };
    // The unit tries again.
    let world = trial();
    world.server.deaf.set(false);
    assert!(!world.updater().commit().unwrap(), "it stays already");
    world.must_be_well();
    assert!(world.server.checkpoint.borrow().is_none() && !world.server.touched.get());
    assert_eq!(world.entry_names(), ["skerry_1.1.0.efi", "skerry_1.2.0+3.efi"]);
    // The server was just starting again.
    let world = trial();
    world.server.start();
    world.must_be_well();
}

#[test]
fn a_thin_bundle_takes_from_the_slot_that_runs_what_it_leaves_out() {
    let mut world = updated(Health::Good);
    let chunks = |number: u64| {
        let bytes = super::world::parts(number).0;
        bytes.into_iter().flat_map(|part| bundle::cut(Cursor::new(part)).map(Result::unwrap).collect::<Vec<_>>())
    };
    let without = chunks(2).map(|chunk| bundle::Digest::of(&chunk)).collect();
    let thin = with(bundle_of(3), &Keep { without, ..Keep::default() }, |_, _| {});
    assert!(thin.len() + 20_000 < bundle_of(3).len(), "{} of {}", thin.len(), bundle_of(3).len());
    world.install(&thin).unwrap();
    world.settle().unwrap();
    assert_eq!(world.booted, 3);
    // The kernel's chunks count, too: one that is the same needs not be in the file.
    let same = Recipe {
        parts: [
            super::world::parts(3).0[0].clone(),
            super::world::parts(3).0[1].clone(),
            super::world::parts(3).0[2].clone(),
        ],
        ..Recipe::new(4)
    };
    let without = chunks(3).map(|chunk| bundle::Digest::of(&chunk)).collect();
    let nearly_nothing = with(&same.bundle(), &Keep { without, ..Keep::default() }, |_, _| {});
    world.updater().plan(Cursor::new(&nearly_nothing), &mut |_, _, _| {}).unwrap();
}

#[test]
fn roots_grow_with_good_files_and_stay() {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    // Root 2 gives up key 11; a file that is too old to be installed brings it.
    let mut second = root(2);
    let gone = signer(11).public().unwrap().id();
    second.keys.remove(&gone);
    second.release.keys.remove(&gone);
    second.revoked.insert(gone);
    let roots = vec![signed_root(&root(1), &[1, 2]), signed_root(&second, &[2, 3])];
    let old = Recipe { roots: roots.clone(), by: vec![12, 13], security_version: 0, ..Recipe::new(2) }.bundle();
    assert!(world.install(&old).unwrap_err().to_string().contains("is older"));
    let why = world.install(bundle_of(2)).unwrap_err().to_string();
    assert!(why.contains("signed by 1 of the 2 keys"), "{why}");
    let revoked = Recipe { roots: roots.clone(), ..Recipe::new(2) }.bundle();
    let why = world.install(&revoked).unwrap_err().to_string();
    assert!(why.contains("which was revoked"), "{why}");
    world.install(&Recipe { roots, by: vec![12, 13], ..Recipe::new(2) }.bundle()).unwrap();
    world.settle().unwrap();
    assert_eq!(world.booted, 2);
}

#[test]
fn a_site_may_want_a_say() {
    let mut world = World::new(ESP);
    let key = signer(31).public().unwrap();
    world.policy.site = Some(Site { keys: vec![key], threshold: 1 });
    world.settle().unwrap();
    let why = world.install(bundle_of(2)).unwrap_err().to_string();
    assert!(why.contains("asks for signatures of its own: 0 of 1"), "{why}");
    world.install(&signed(bundle_of(2), &[31])).unwrap();
}

#[test]
fn an_update_does_not_take_away_what_the_site_asks_for() {
    let mut world = World::new(ESP);
    let key = signer(31).public().unwrap();
    world.policy = Policy { second_approval: true, site: Some(Site { keys: vec![key], threshold: 1 }) };
    world.settle().unwrap();
    world.install(&signed(bundle_of(2), &[31])).unwrap();
    world.updater().approve("1.2.0", "colonel").unwrap();
    world.updater().arm(false, &mut |_, _, _| {}).unwrap();
    world.settle().unwrap();
    assert_eq!(world.booted, 2);
    // The image of the makers' next release knows nothing of it.
    world.policy = Policy::default();
    let why = world.install(bundle_of(3)).unwrap_err().to_string();
    assert!(why.contains("asks for signatures of its own: 0 of 1"), "{why}");
    assert!(world.updater().plan(Cursor::new(bundle_of(3)), &mut |_, _, _| {}).is_err());
    world.updater().forget_policy("general").unwrap();
    assert!(!world.updater().plan(Cursor::new(bundle_of(3)), &mut |_, _, _| {}).unwrap().needs_approval);
    assert!(world.updater().history().unwrap().lines.last().unwrap().text.starts_with("general took back"));
}

#[test]
fn the_clock_does_not_matter_and_what_is_old_is_said() {
    for now_s in [0, 4_102_444_800] {
        let mut world = World::new(ESP);
        world.now_s = now_s;
        world.settle().unwrap();
        world.install(bundle_of(2)).unwrap();
        world.settle().unwrap();
        world.must_be_well();
        assert_eq!(world.booted, 2, "{now_s}");
    }
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.install(&Recipe { built_s: 2_000_000_000, security_version: 0, ..Recipe::new(3) }.bundle()).unwrap_err();
    let plan = world.updater().plan(Cursor::new(bundle_of(2)), &mut |_, _, _| {}).unwrap();
    assert_eq!(plan.stale, Some(("1.3.0".to_owned(), 2_428)));
    assert_eq!((plan.slot, plan.gives_up, plan.to.version.as_str()), ('b', None, "1.2.0"));
}

#[test]
fn a_real_disk_file_with_a_real_fat32() {
    let mut world = World::new(34 << 20);
    assert_eq!(world.esp.kind(), FatType::Fat32);
    world.settle().unwrap();
    world.install(bundle_of(2)).unwrap();
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 2);
    // The disk as a file: what others find in it is what lies there.
    let bytes = world.image.borrow().bytes();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let disk = FileDisk::open(file.path(), false).unwrap();
    let there = crate::gpt::Table::read(&disk).unwrap();
    let names: Vec<String> = there.partitions().into_iter().map(|partition| partition.label).collect();
    assert_eq!(names, ["ESP", "skerry_1.1.0", "skerry_1.1.0_verity", "skerry_1.2.0", "skerry_1.2.0_verity"]);
    assert_eq!(Image::new(bytes).bytes().len() as u64, disk.size().unwrap());
}

#[test]
fn what_was_asked_for_is_written_down() {
    let mut world = updated(Health::Good);
    let journal = world.updater().journal().unwrap();
    assert_eq!(journal.state, State::Idle);
    world.install(bundle_of(3)).unwrap();
    // On trial, and somebody wants the old one.
    (world.sick_from, world.health) = (3, Health::Hangs);
    assert!(!world.boot().unwrap());
    world.booted = 3;
    let woken = world.updater().wake().unwrap();
    assert!(woken.trial && !woken.reboot);
    assert!(world.updater().rollback("me").unwrap());
    let State::Fallback { reason, .. } = world.state() else { panic!("{:?}", world.state()) };
    assert_eq!(reason, Reason::Asked { by: "me".into() });
    assert!(world.entry_names().iter().filter_map(|name| Entry::parse(name)).all(|entry| entry.version != version(3)));
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, 2);
}

#[test]
fn the_floor_is_the_highest_that_disk_or_firmware_knows() {
    // It rises when a release stays, and not before.
    let mut world = updated(Health::Unfit);
    assert_eq!(world.server.kept_floor.get(), 0);
    world.health = Health::Good;
    world.install(bundle_of(2)).unwrap();
    assert_eq!(world.server.kept_floor.get(), 0);
    world.settle().unwrap();
    assert_eq!(world.server.kept_floor.get(), 2);
    // A data partition that is made anew knows nothing; the firmware does.
    let mut world = World::new(ESP);
    world.settle().unwrap();
    world.server.kept_floor.set(3);
    let why = world.install(bundle_of(2)).unwrap_err().to_string();
    assert!(why.contains("security version 2, at least 3 is needed"), "{why}");
    world.install(bundle_of(3)).unwrap();
    // Nor does a firmware that forgets open anything.
    let mut world = updated(Health::Good);
    world.server.kept_floor.set(0);
    assert!(world.updater().rollback("me").unwrap_err().to_string().contains("would bring back holes"));
    world.settle().unwrap();
    assert_eq!(world.server.kept_floor.get(), 2, "it is told again at each good start");
}
