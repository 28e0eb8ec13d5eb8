//! What must hold in every simulated life of a pool.

use bulkhead_scale::{Billing, HOUR_MS, Headroom, MINUTE_MS};
use bulkhead_sim::{Demand, Setup, cloud::Faults, run};
use proptest::prelude::*;

fn check(setup: &Setup) {
    if let Err(violation) = run(setup) {
        panic!("{violation}\n{setup:#?}");
    }
}

#[test]
fn a_quiet_month() {
    for demand in [Demand::Steady, Demand::Daily, Demand::Burst] {
        let setup = Setup { demand, faults: Faults::NONE, lifetime_ms: 4 * HOUR_MS, ..Setup::new(20, 10, 1) };
        check(&setup);
    }
}

/// The 24th instance buys one machine, those up to the 46th join it, the 47th buys another.
#[test]
fn the_24th() {
    let trace = |count: u32| Demand::Trace(vec![(bulkhead_scale::Time(0), count)]);
    for (count, machines) in [(1, 1), (23, 1), (24, 2), (46, 2), (47, 3), (230, 10)] {
        let setup = Setup { demand: trace(count), faults: Faults::NONE, ..Setup::new(20, 1, 1) };
        assert_eq!(run(&setup).unwrap().made, machines, "{count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(
        seed in any::<u64>(),
        machines in 1u32..12,
        slots in 1u32..30,
        faults in prop::sample::select(vec![Faults::NONE, Faults::USUAL, Faults::HEAVY]),
        demand in prop::sample::select(vec![Demand::Steady, Demand::Daily, Demand::Burst]),
        crashes_a_day in prop::sample::select(vec![0u32, 3, 40]),
        lifetime_minutes in 5u64..600,
        idle_minutes in 1u64..60,
        headroom in prop::sample::select(vec![
            Headroom::Slots(0), Headroom::Slots(5), Headroom::Arrivals { percentile: 95 },
        ]),
        consolidates in any::<bool>(),
        billing in prop::sample::select(vec![Billing::DIGITALOCEAN, Billing::PerHour]),
    ) {
        let setup = Setup {
            slots,
            faults,
            demand,
            crashes_a_day,
            lifetime_ms: lifetime_minutes * MINUTE_MS,
            idle_ms: idle_minutes * MINUTE_MS,
            headroom,
            consolidates,
            billing,
            ..Setup::new(machines, 2, seed)
        };
        check(&setup);
    }
}
