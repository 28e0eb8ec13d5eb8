//! Everything on real nodes: `systemd-nspawn` machines with real systemd, journald and OpenSSH.
//!
//! One fleet of three nodes serves most tests, each with an app of its own; a
//! test that cuts a node's power or fills its disk has a fleet of its own. The harness is
//! `libtest-mimic`, so that the fleets are taken down after the last test,
//! whatever came of it.

mod attack;
mod audit;
mod broken;
mod cases;
mod deploying;
mod dropbox;
mod escapes;
mod granted;
mod hostile;
mod left;
mod lives;
mod mishaps;
mod older;
mod orders;
mod pooled;
mod promoting;
mod recovering;
mod releasing;
mod runbooks;
mod sealed;
mod secrets;
mod security_keys;
mod stock;
mod tools;
mod transport;
mod trust;

use bulkhead_testkit::world::World;
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

type Test = fn(&World) -> anyhow::Result<()>;
type Shared = Arc<Mutex<Option<Arc<World>>>>;

/// The fleet, booted by the first test that wants it.
fn shared(world: &Shared, nodes: &str) -> anyhow::Result<Arc<World>> {
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    match &*world {
        Some(world) => Ok(Arc::clone(world)),
        None => Ok(Arc::clone(world.insert(Arc::new(World::start(nodes)?)))),
    }
}

fn trials(prefix: &'static str, nodes: &'static str, tests: &[(&'static str, Test)], world: &Shared) -> Vec<Trial> {
    let trial = |(name, test): &(&'static str, Test)| {
        let (test, world) = (*test, Arc::clone(world));
        Trial::test(format!("{prefix}::{name}"), move || {
            shared(&world, nodes).and_then(|world| test(&world)).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    tests.iter().map(trial).collect()
}

/// Tests that each have a fleet of their own, for as long as they take.
fn alone(prefix: &'static str, nodes: &'static str, tests: &[(&'static str, Test)]) -> Vec<Trial> {
    let trial = |(name, test): &(&'static str, Test)| {
        let test = *test;
        Trial::test(format!("{prefix}::{name}"), move || {
            World::start(nodes).and_then(|world| test(&world)).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    tests.iter().map(trial).collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Machines and their deploys share two cores; more at once only makes each slower.
    arguments.test_threads.get_or_insert(2);
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0);
    if !root || std::env::var("BULKHEAD_TEST_NODES").is_ok_and(|value| value == "skip") {
        return skip(if root { "BULKHEAD_TEST_NODES=skip" } else { "not root" });
    }
    let [steady, doomed, filled, orphaned, dark] = std::array::from_fn(|_| Shared::default());
    let three = "stage-1=staging,prod-1=production,prod-2=production";
    let mut all = Vec::new();
    all.extend(trials("deploying", three, deploying::TESTS, &steady));
    all.extend(trials("cases", three, cases::TESTS, &steady));
    all.extend(trials("broken", three, broken::TESTS, &steady));
    all.extend(trials("dropbox", three, dropbox::TESTS, &steady));
    all.extend(trials("mishaps", three, mishaps::TESTS, &steady));
    all.extend(trials("promoting", three, promoting::TESTS, &steady));
    all.extend(trials("left", three, left::TESTS, &steady));
    all.extend(trials("orders", three, orders::TESTS, &steady));
    all.extend(trials("sealed", three, sealed::TESTS, &steady));
    all.extend(trials("transport", three, transport::TESTS, &steady));
    all.extend(trials("escapes", three, escapes::TESTS, &steady));
    all.extend(trials("hostile", three, hostile::TESTS, &steady));
    all.extend(trials("tools", three, tools::TESTS, &steady));
    all.extend(trials("lives", "stage-1=staging", &lives::TESTS[..1], &doomed));
    all.extend(trials("lives", "stage-1=staging", &lives::TESTS[1..2], &filled));
    all.extend(trials("lives", "stage-1=staging", &lives::TESTS[2..], &dark));
    all.extend(trials("recovering", "stage-1=staging", &recovering::TESTS[..1], &orphaned));
    all.extend(trials("recovering", "stage-1=staging", &recovering::TESTS[1..], &filled));
    all.push(Trial::test("pooled::a_pool_from_nothing_to_nothing", || {
        World::without_nodes()
            .and_then(|world| pooled::life(&world))
            .map_err(|error| Failed::from(format!("{error:#}")))
    }));
    all.extend(alone("granted", "stage-1=staging", granted::TESTS));
    all.extend(alone("trust", "stage-1=staging,prod-1=production", trust::TESTS));
    all.push(Trial::test("older::a_node_that_isolates_less_says_so_and_serves", || {
        World::of_suite("stage-1=staging", "bookworm")
            .and_then(|world| older::bookworm(&world))
            .map_err(|error| Failed::from(format!("{error:#}")))
    }));
    all.extend(alone("releasing", "stage-1=staging,prod-1=production", releasing::TESTS));
    all.extend(alone("attack", "stage-1=staging,prod-1=production", attack::TESTS));
    all.extend(alone("security_keys", "stage-1=staging", security_keys::TESTS));
    all.extend(alone("stock", "stage-1=staging", stock::TESTS));
    all.extend(alone("runbooks", "prod-1=production", runbooks::TESTS));
    all.extend(alone("audit", "stage-1=staging", audit::TESTS));
    all.extend(alone("dropbox", "stage-1=staging", dropbox::QUOTA_TESTS));
    all.extend(alone("secrets", "stage-1=staging,prod-1=production", secrets::TESTS));
    let conclusion = libtest_mimic::run(&arguments, all);
    for world in [&steady, &doomed, &filled, &orphaned, &dark] {
        world.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
    conclusion.exit_code()
}

#[expect(clippy::print_stderr, reason = "the one line that says why nothing was tested")]
fn skip(why: &str) -> ExitCode {
    eprintln!("tests on real nodes skipped: {why}");
    ExitCode::SUCCESS
}
