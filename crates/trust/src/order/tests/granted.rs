//! Orders of a scale key, one change at a time.

use super::*;
use bulkhead_core::order::VolumeMount;

fn grant() -> Grant {
    Grant {
        format: 1,
        fleet: "acme".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        pool: "kernels".parse().unwrap(),
        app: "notes".parse().unwrap(),
        run: run(),
        secrets: BTreeMap::new(),
        scratch: false,
        key: key(SCALE).public.to_openssh(),
        machines: 3,
        instances: 23,
        issued: NOW,
        not_after: NOW.plus_s(3600),
    }
}

fn signed(bytes: Vec<u8>, seeds: &[u8], namespace: &'static str) -> SignedText {
    let signatures = seeds.iter().map(|seed| key(*seed).sign(namespace, &bytes)).collect();
    SignedText { text: String::from_utf8(bytes).unwrap(), signatures }
}

/// What a case begins with: `zorro` runs the third instance on a node of the pool, as ada lets it.
struct Granted {
    case: Case,
    grant: Grant,
    by: Vec<u8>,
    namespace: &'static str,
}

fn check(action: Action, change: impl FnOnce(&mut Granted), expected: Expected<'_>) {
    let mut case = Case::new(action);
    case.order.app = "notes-3".parse().unwrap();
    case.signers = vec![SCALE];
    case.pool = Some("kernels".parse().unwrap());
    let mut granted = Granted { case, grant: grant(), by: vec![1], namespace: GRANT_NAMESPACE };
    change(&mut granted);
    let Granted { mut case, grant, by, namespace } = granted;
    case.grant = case.grant.or_else(|| Some(signed(grant.to_bytes(), &by, namespace)));
    compare(case.run(), expected);
}

fn check_run(change: impl FnOnce(&mut Granted), expected: Expected<'_>) {
    check(Action::Run(run()), change, expected);
}

const ZORRO: Expected<'_> = Ok(&["zorro"]);

#[test]
fn a_scale_key_runs_and_stops_what_it_was_granted() {
    check_run(|_| {}, ZORRO);
    check(Action::Stop { services: vec![] }, |_| {}, ZORRO);
    check(Action::Remove { volumes: false }, |_| {}, ZORRO);
    for app in ["notes-1", "notes-23"] {
        check_run(|granted| granted.case.order.app = app.parse().unwrap(), ZORRO);
    }
    check_run(|granted| granted.case.place.live = Some(live(run().id())), ZORRO);
    check(Action::Remove { volumes: true }, |granted| granted.grant.scratch = true, ZORRO);
}

#[test]
fn and_nothing_else() {
    let granted = |words| Err((Rule::Grant, words));
    check(Action::Start { services: vec![] }, |_| {}, granted("not to start"));
    check(Action::Restart { services: vec![] }, |_| {}, granted("not to restart"));
    check(look(), |_| {}, granted("not to look"));
    check(Action::Remove { volumes: true }, |_| {}, granted("not to delete volumes"));
    check(Action::Run(Run::new(ImageId([8; 32]), vec![service()])), |_| {}, granted("something else"));
    let mut other = service();
    other.env.insert("A".into(), "b".into());
    check(Action::Run(Run::new(green::tests::IMAGE, vec![other])), |_| {}, granted("something else"));
    let fallback = Run { fallback: [RunId([1; 32])].into(), ..run() };
    check(Action::Run(fallback), |_| {}, granted("something else"));
    let origin = Run { origin: Some("promoted from staging".into()), ..run() };
    check(Action::Run(origin), |_| {}, granted("something else"));
    let scratch = |granted: &mut Granted| granted.grant.scratch = true;
    check(Action::Remove { volumes: false }, scratch, granted("delete volumes too"));
    for app in ["notes", "notes-0", "notes-24", "notes-03", "other-3", "notes-3-3"] {
        check_run(|granted| granted.case.order.app = app.parse().unwrap(), granted("`notes-1` to `notes-23`"));
    }
    check_run(|granted| granted.case.order.break_glass = Some("why".into()), granted("break glass"));
    check_run(
        |granted| {
            for target in granted.case.order.targets.values_mut() {
                target.floor = Some(9);
            }
        },
        granted("counters"),
    );
    check_run(
        |granted| {
            for number in 2..=4 {
                let node = format!("n{number}").parse().unwrap();
                granted.case.order.targets.insert(node, target(1, None));
            }
        },
        granted("3 machines, the order for 4"),
    );
}

#[test]
fn on_nodes_of_the_pool_alone() {
    check_run(|granted| granted.case.pool = None, Err((Rule::Grant, "this node is of none")));
    check_run(
        |granted| granted.case.pool = Some("other".parse().unwrap()),
        Err((Rule::Grant, "this node is of `other`")),
    );
    check_run(|granted| granted.grant.fleet = "evil".parse().unwrap(), Err((Rule::Grant, "of fleet `evil`")));
    check_run(
        |granted| granted.grant.environment = "production".parse().unwrap(),
        Err((Rule::Grant, "for `production`")),
    );
    // What people put there stays theirs.
    for action in [Action::Run(run()), Action::Stop { services: vec![] }, Action::Remove { volumes: false }] {
        check(action, |granted| granted.case.place.is_of_people = true, Err((Rule::Grant, "by an order of people")));
    }
}

#[test]
fn by_the_key_that_it_is_for() {
    let threshold = Err((Rule::Threshold, "needs a scale key"));
    check_run(|granted| granted.case.signers.clear(), threshold);
    check_run(|granted| granted.case.signers = vec![9], threshold);
    // Whoever brings a grant is judged by it.
    check_run(|granted| granted.case.signers = vec![1], threshold);
    check_run(|granted| granted.case.signers = vec![CI], threshold);
    check_run(|granted| granted.case.namespace = GRANT_NAMESPACE, Err((Rule::Threshold, "documents of kind")));
    let other = "for another key than those that signed";
    check_run(|granted| granted.grant.key = key(1).public.to_openssh(), Err((Rule::Grant, other)));
    check_run(|granted| granted.grant.key = "rubbish".into(), Err((Rule::Grant, other)));
    // Alone a scale key has no say.
    let mut case = Case::new(Action::Stop { services: vec![] });
    (case.signers, case.pool) = (vec![SCALE], Some("kernels".parse().unwrap()));
    compare(case.run(), Err((Rule::Threshold, "no such role here")));
}

#[test]
fn as_people_let_it() {
    let needs = |words| Err((Rule::Grant, words));
    check_run(|granted| granted.by.clear(), needs("needs 1 release key; presented: no signature"));
    check_run(|granted| granted.by = vec![SCALE], needs("no such role here"));
    check_run(|granted| granted.by = vec![CI], needs("no such role here"));
    check_run(|granted| granted.namespace = NAMESPACE, needs("documents of kind"));
    check_run(|granted| granted.namespace = STANDING_NAMESPACE, needs("documents of kind"));
    check_run(
        |granted| {
            let mut raw = signed(granted.grant.to_bytes(), &[1], GRANT_NAMESPACE);
            raw.text.push(' ');
            granted.case.grant = Some(raw);
        },
        needs("does not match the document"),
    );
    let long = " ".repeat(GRANT_MAX_BYTES + 1).into_bytes();
    check_run(|granted| granted.case.grant = Some(signed(long, &[1], GRANT_NAMESPACE)), needs("longer than 256 KiB"));
    let rubbish = || signed(b"{}".to_vec(), &[1], GRANT_NAMESPACE);
    check_run(|granted| granted.case.grant = Some(rubbish()), needs("not a scale grant"));
}

/// A grant is no way around what an environment demands.
#[test]
fn worth_what_an_order_would_be() {
    let two = || vec![Demand::release(2)];
    let (stop, remove) = (Action::Stop { services: vec![] }, Action::Remove { volumes: false });
    for action in [Action::Run(run()), stop.clone(), remove] {
        check(
            action.clone(),
            |granted| granted.case.environment.accepts = two(),
            Err((Rule::Grant, "needs 2 release keys")),
        );
        check(action, |granted| (granted.case.environment.accepts, granted.by) = (two(), vec![1, 2]), ZORRO);
    }
    let with = |granted: &mut Granted, statements| {
        granted.case.environment.accepts = vec![Demand::green_and_release(1)];
        granted.case.statements = statements;
    };
    check_run(|granted| with(granted, vec![]), Err((Rule::NotGreen, "stated green by nobody")));
    check_run(|granted| with(granted, green()), ZORRO);
    let red = || vec![green::tests::signed(&green::tests::statement(TestResult::Failed), &[&key(CI)])];
    check_run(|granted| with(granted, red()), Err((Rule::NotGreen, "marked red by ci")));
    check_run(
        |granted| {
            with(granted, green());
            granted.case.place.statements = red();
        },
        Err((Rule::NotGreen, "marked red by ci")),
    );
    // It may be stopped all the same.
    check(stop.clone(), |granted| with(granted, red()), ZORRO);
    check_run(
        |granted| {
            with(granted, green());
            granted.by.clear();
        },
        Err((Rule::Grant, "needs 1 release key")),
    );
    // What CI may order by itself no single person grants: the sandbox would be signed by nobody who counts.
    let green_alone = || Demand { release: 0, green: 1, standing: false };
    check_run(
        |granted| (granted.case.environment.accepts, granted.case.statements) = (vec![green_alone()], green()),
        Err((Rule::Grant, "takes orders of CI alone")),
    );
    check_run(
        |granted| {
            granted.case.environment.accepts = vec![Demand::release(2), green_alone()];
            granted.case.statements = green();
        },
        Err((Rule::Grant, "needs 2 release keys")),
    );
    // Standing orders are for green keys.
    let standing = Demand { release: 0, green: 1, standing: true };
    check_run(
        |granted| (granted.case.environment.accepts, granted.case.statements) = (vec![standing], green()),
        Err((Rule::Grant, "takes orders of CI alone")),
    );
}

#[test]
fn until_it_ends() {
    check_run(|granted| granted.grant.not_after = NOW, Err((Rule::Grant, "lasts at most a year")));
    let late = |granted: &mut Granted| {
        granted.grant.issued = NOW.plus_s(-100);
        granted.grant.not_after = NOW;
    };
    check_run(late, Err((Rule::Grant, "ended at")));
    // What runs can be ended by whoever began it.
    check(Action::Stop { services: vec![] }, late, ZORRO);
    check(Action::Remove { volumes: false }, late, ZORRO);
    check_run(
        |granted| granted.case.revoked.orders.extend([Grant::id(&granted.grant.to_bytes())]),
        Err((Rule::Revoked, "scale grant")),
    );
    check(
        Action::Remove { volumes: false },
        |granted| granted.case.revoked.orders.extend([Grant::id(&granted.grant.to_bytes())]),
        ZORRO,
    );
    check_run(
        |granted| granted.case.policy_revoked.orders.extend([Grant::id(&granted.grant.to_bytes())]),
        Err((Rule::Revoked, "scale grant")),
    );
    check_run(|granted| granted.case.revoked.images.extend([green::tests::IMAGE]), Err((Rule::Revoked, "image")));
    check_run(|granted| granted.case.boot = BootId([1; 32]), Err((Rule::Boot, "earlier boot")));
    check_run(|granted| granted.case.place.counter = 5, Err((Rule::Counter, "number 5")));
    // One key that may start and stop must not make a node believe that it has forgotten something.
    check_run(|granted| granted.case.place.counter = 2, Err((Rule::Counter, "number 5")));
}

#[test]
fn what_no_grant_says() {
    let check = |change: fn(&mut Grant), words: &str| {
        check_run(|granted| change(&mut granted.grant), Err((Rule::Grant, words)));
    };
    check(|grant| grant.format = 2, "format 2");
    check(|grant| grant.machines = 0, "at least one machine");
    check(|grant| grant.instances = 0, "1 to 1000 instances");
    check(|grant| grant.instances = 1001, "1 to 1000 instances");
    check(|grant| grant.not_after = NOW.plus_s(367 * 24 * 3600), "at most a year");
    check(|grant| grant.run.services.clear(), "1 to 64 services");
    check(
        |grant| {
            let mut other = service();
            other.name = "worker".parse().unwrap();
            grant.run.services.push(other);
        },
        "one service",
    );
    check(
        |grant| {
            let volume = VolumeMount { name: "data".parse().unwrap(), path: "/data".into() };
            grant.run.services[0].volumes.push(volume);
        },
        "has volume `data`",
    );
    fn name() -> SecretName {
        "token".parse().unwrap()
    }
    check(|grant| grant.run.services[0].secrets.extend([name()]), "secret `token`, for which no value is granted");
    check(|grant| grant.secrets.extend([(name(), SecretDigest([7; 32]))]), "service `web` has none");
    check(|grant| grant.run.fallback = [RunId([1; 32])].into(), "fallbacks");
}
