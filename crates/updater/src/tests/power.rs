//! The power goes after every write and sync of every path, and what was not synced is lost, kept, torn or reordered. Then
//! the boot loader always finds a release whose bytes are the signed ones, waking up leads to rest, nothing that was
//! acknowledged is gone, no release that counts or was armed is lost, and the next installation succeeds. Bugs that are planted are noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Bug;
use super::media::Cut;
use super::paths::ESP;
use super::world::{Health, Recipe, World, bundle_of, version};
use crate::journal::State;

/// What somebody does with a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Installs release 2, restarts, and sees it through.
    Update(Health),
    /// Runs release 2 and installs release 3 over release 1.
    Second(Health),
    /// Goes back from release 2, which closes no hole, to release 1.
    Back,
    /// Installs, thinks again before the restart, and goes on.
    Undo,
    /// Installs release 2, which is of this health; before the restart the server is killed.
    Killed(Health),
    /// Thinks again after the server was killed.
    KilledUndo,
}

/// A box before the path.
fn before(path: Path) -> World {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    match path {
        Path::Second(_) => world.install(bundle_of(2)).unwrap(),
        Path::Back => world.install(&Recipe { security_version: 1, ..Recipe::new(2) }.bundle()).unwrap(),
        Path::Update(_) | Path::Undo => return world,
        Path::Killed(_) | Path::KilledUndo => {
            world.killed = true;
            return world;
        }
    }
    world.settle().unwrap();
    assert_eq!(world.booted, 2);
    world
}

/// Walks the path as far as the power lasts.
fn walk(world: &mut World, path: Path) -> Result<(), crate::updater::Error> {
    match path {
        Path::Update(health) | Path::Killed(health) => {
            world.health = health;
            world.install(bundle_of(2))?;
        }
        Path::Second(health) => {
            (world.sick_from, world.health) = (3, health);
            world.install(bundle_of(3))?;
        }
        Path::Back => {
            world.updater().rollback("me")?;
        }
        Path::Undo | Path::KilledUndo => {
            world.install(bundle_of(2))?;
            world.updater().rollback("me")?;
        }
    }
    world.settle()
}

/// All is lost, all is kept, something was written early, and chance.
fn cuts(after: u64) -> [Cut; 4] {
    let early = if after.is_multiple_of(2) { Cut::AllButTheFirst } else { Cut::OnlyTheLast };
    [Cut::Nothing, Cut::Everything, early, Cut::Some(after)]
}

/// After a cut: the box comes to rest, is well, and takes the next release.
fn recovers(world: &mut World, path: Path, cut: Cut) {
    world.settle().unwrap();
    world.must_be_well();
    world.nothing_was_lost();
    // The next installation is most of the work: once for each write.
    if cut != Cut::Nothing {
        return;
    }
    let next = if world.booted == 1 { 2 } else { 3 };
    if world.booted == 3 {
        return;
    }
    world.health = Health::Good;
    // One that was cut between "staged" and "armed" may be staged anew, and one that is armed is booted by `settle`.
    assert!(matches!(world.state(), State::Idle | State::Staged { .. }));
    world.install(bundle_of(next)).unwrap_or_else(|error| panic!("{path:?}: the next installation: {error}"));
    world.settle().unwrap();
    world.must_be_well();
    assert_eq!(world.booted, next, "{path:?}: {:?}", world.updater().journal().unwrap().failure);
}

/// Every cut of a path, or every `stride`th; how many there were.
fn every_cut(path: Path, plant: fn(&mut World), stride: usize) -> usize {
    let mut world = before(path);
    plant(&mut world);
    let whole = {
        let mut world = world.again();
        world.power.on(None);
        walk(&mut world, path).unwrap();
        world.power.used()
    };
    println!("{path:?}: {whole} writes and syncs");
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    std::thread::scope(|scope| {
        let work = |worker: usize| {
            move || {
                let mut world = before(path);
                plant(&mut world);
                let mut count = 0;
                for after in (0..whole).step_by(stride).skip(worker).step_by(workers) {
                    for cut in cuts(after) {
                        count += 1;
                        if one_cut(&world, path, after, cut) {
                            break;
                        }
                    }
                }
                count
            }
        };
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(work(worker))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    })
}

/// Says whether there was nothing that could be lost: then all cuts are the same.
fn one_cut(world: &World, path: Path, after: u64, cut: Cut) -> bool {
    let mut world = world.again();
    world.power.on(Some(after));
    let walked = walk(&mut world, path);
    assert!(walked.is_err() && world.power.is_off(), "{path:?}: it went on without power: {walked:?}");
    let settled = world.is_settled();
    world.cut(cut);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.what_is_armed_is_whole();
        recovers(&mut world, path, cut);
    }));
    if let Err(panic) = outcome {
        let said =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        panic!("{path:?}, cut after {after} ({cut:?}): {}", said.unwrap_or_default());
    }
    settled
}

#[test]
fn a_cut_anywhere_while_a_good_release_comes() {
    let count = every_cut(Path::Update(Health::Good), |_| {}, 1);
    assert!(count > 500, "{count} cuts");
    println!("{count} cuts");
}

#[test]
fn a_cut_anywhere_while_a_release_goes_into_the_slot_of_another() {
    let count = every_cut(Path::Second(Health::Good), |_| {}, 1);
    println!("{count} cuts");
}

#[test]
fn a_cut_anywhere_while_a_bad_release_comes_and_goes() {
    let count = every_cut(Path::Update(Health::Unfit), |_| {}, 1) + every_cut(Path::Second(Health::Hangs), |_| {}, 1);
    println!("{count} cuts");
}

#[test]
fn a_cut_anywhere_while_somebody_goes_back() {
    let count = every_cut(Path::Back, |_| {}, 1) + every_cut(Path::Undo, |_| {}, 1);
    println!("{count} cuts");
}

#[test]
fn a_cut_anywhere_while_the_server_dies_too() {
    // What is the same without it was cut everywhere already.
    let paths = [Path::Killed(Health::Good), Path::Killed(Health::Unfit), Path::KilledUndo];
    let count: usize = paths.into_iter().map(|path| every_cut(path, |_| {}, 2)).sum();
    println!("{count} cuts");
}

/// Whether the cuts of a path notice a bug.
fn noticed(path: Path, plant: fn(&mut World)) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let noticed = catch_unwind(AssertUnwindSafe(|| every_cut(path, plant, 3))).is_err();
    std::panic::set_hook(hook);
    noticed
}

#[test]
fn bugs_that_are_planted_are_noticed() {
    let update = Path::Update(Health::Good);
    // Syncs that somebody forgot: of the partitions, of the ESP, of the journal.
    assert!(noticed(update, |world| world.disk.lies.set(true)), "the slot is not synced");
    assert!(noticed(update, |world| world.esp.media.lies.set(true)), "the kernel is not synced before the rename");
    assert!(noticed(update, |world| world.state.lies.set(true)), "the journal is not synced before the rename");
    // The boot partition mounted as it was before a machine lost a release: renamed files not synced, or the folder.
    let careless = |world: &mut World| {
        world.esp.dirsync.set(false);
        world.esp.forgets.set(true);
    };
    assert!(noticed(update, careless), "a renamed file is not synced");
    assert!(noticed(update, |world| world.esp.dirsync.set(false)), "the boot partition is mounted without dirsync");
    // Steps in the wrong order, or left out.
    assert!(noticed(Path::Second(Health::Good), |world| world.planted = Some(Bug::KeepOldEntry)));
    assert!(noticed(update, |world| world.planted = Some(Bug::SwitchBeforeJournal)));
    assert!(noticed(Path::Update(Health::Unfit), |world| world.planted = Some(Bug::NoRestore)));
    assert!(noticed(Path::Killed(Health::Unfit), |world| world.planted = Some(Bug::StartsOpen)));
}

#[test]
fn without_reading_back_a_lost_write_is_armed() {
    let mut world = World::new(ESP);
    world.settle().unwrap();
    let at = world.updater().slots().unwrap().inactive.root.at;
    world.disk.loses.set(Some(at / 512 + 3));
    world.planted = Some(Bug::NoReadBack);
    world.install(bundle_of(2)).unwrap();
    assert!(matches!(world.state(), State::Armed { .. }), "the bug does nothing");
    // The boot loader's tries save the box all the same.
    world.settle().unwrap();
    assert_eq!(world.updater().journal().unwrap().running.version, version(1));
}
