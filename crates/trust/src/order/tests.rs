//! Orders through a node, one change at a time.

mod granted;

use super::*;
use crate::{green, policy::tests::policy, sshsig::tests::TestKey};
use bulkhead_core::{
    order::{Rights, ServiceSpec, Tool},
    policy::Key,
    statement::TestResult,
};

const NOW: Timestamp = Timestamp(1_000_000);
const BOOT: BootId = BootId([9; 32]);
/// The seed of `ci`'s key; people are 1 (ada), 2 (bob) and 5 (cleo).
const CI: u8 = 3;
/// The seed of the scale key's, which `zorro` holds.
const SCALE: u8 = 7;

fn target(counter: u64, previous: Option<u8>) -> Target {
    Target::new(counter, previous.map(|byte| OrderId([byte; 32])), BOOT)
}

fn service() -> ServiceSpec {
    ServiceSpec::new("web".parse().unwrap(), vec!["/app".into()])
}

fn run() -> Run {
    Run::new(green::tests::IMAGE, vec![service()])
}

/// For an hour, twice on each node, this service from any image.
fn standing_order(service: ServiceSpec) -> StandingOrder {
    StandingOrder {
        format: 1,
        fleet: "acme".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        app: "notes".parse().unwrap(),
        nodes: BTreeSet::new(),
        services: vec![service],
        issued: NOW,
        not_after: NOW.plus_s(3600),
        uses_max: 2,
    }
}

fn look() -> Action {
    Action::Look(Tool {
        service: "web".parse().unwrap(),
        image: ImageId([8; 32]),
        command: vec!["strace".into()],
        rights: Rights::Trace,
        within_ms: 1000,
    })
}

fn order(action: Action) -> Order {
    Order {
        format: 1,
        fleet: "acme".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        app: "notes".parse().unwrap(),
        targets: [("n1".parse().unwrap(), target(5, Some(5)))].into(),
        issued: NOW,
        not_after: NOW.plus_s(600),
        policy: 1,
        action,
        break_glass: None,
        message: None,
    }
}

/// An order through a node `n1`, with what the case changes.
struct Case {
    order: Order,
    signers: Vec<u8>,
    environment: Environment,
    place: Place,
    now: Timestamp,
    minimum_time: Timestamp,
    boot: BootId,
    namespace: &'static str,
    tamper: fn(&mut Vec<u8>),
    statements: Vec<SignedText>,
    standing: Option<(StandingOrder, Vec<u8>)>,
    /// In the place of that.
    raw_standing: Option<SignedText>,
    grant: Option<SignedText>,
    pool: Option<PoolName>,
    uses: u32,
    revoked: Revoked,
    heartbeat: Option<Heartbeat>,
    offers: BTreeSet<Isolation>,
    policy_revoked: Revoked,
}

fn key(seed: u8) -> TestKey {
    TestKey::new(seed)
}

fn full_policy(environment: &Environment) -> Policy {
    let (ada, bob, cleo, ci) = (key(1), key(2), key(5), key(CI));
    let mut policy = policy(1, &[&ada], 1, &[("ada", &ada), ("bob", &bob), ("cleo", &cleo)], 1);
    let green = Key { key: ci.public.to_openssh(), roles: [Role::Green].into(), verify_user: false };
    policy.keys.insert("ci".parse().unwrap(), green);
    let scale = Key { key: key(SCALE).public.to_openssh(), roles: [Role::Scale].into(), verify_user: false };
    policy.keys.insert("zorro".parse().unwrap(), scale);
    policy.environments.insert("staging".parse().unwrap(), environment.clone());
    policy
}

impl Case {
    fn new(action: Action) -> Self {
        Self {
            order: order(action),
            signers: vec![1],
            environment: Environment::accepting(Demand::release(1)),
            place: Place { counter: 4, previous: Some(OrderId([5; 32])), ..Place::default() },
            now: NOW,
            minimum_time: NOW,
            boot: BOOT,
            namespace: NAMESPACE,
            tamper: |_| {},
            statements: vec![],
            standing: None,
            raw_standing: None,
            grant: None,
            pool: None,
            uses: 0,
            revoked: Revoked::default(),
            heartbeat: None,
            offers: BTreeSet::new(),
            policy_revoked: Revoked::default(),
        }
    }

    fn run(mut self) -> Result<Authorized, Refusal> {
        let mut policy = full_policy(&self.environment);
        policy.revoked = self.policy_revoked;
        let mut bytes = self.order.to_bytes();
        let signatures: Vec<String> = self.signers.iter().map(|seed| key(*seed).sign(self.namespace, &bytes)).collect();
        (self.tamper)(&mut bytes);
        let standing = self.standing.map(|(standing, seeds)| {
            let bytes = standing.to_bytes();
            self.place.uses.insert(StandingOrder::id(&bytes), self.uses);
            let signatures = seeds.iter().map(|seed| key(*seed).sign(STANDING_NAMESPACE, &bytes)).collect();
            SignedText { text: String::from_utf8(bytes).unwrap(), signatures }
        });
        let standing = self.raw_standing.or(standing);
        let context = Context {
            fleet: &"acme".parse().unwrap(),
            environment: &"staging".parse().unwrap(),
            node: &"n1".parse().unwrap(),
            pool: self.pool.as_ref(),
            policy: &policy,
            now: self.now,
            minimum_time: self.minimum_time,
            boot: self.boot,
            revoked: &self.revoked,
            heartbeat: self.heartbeat.as_ref(),
            offers: &self.offers,
        };
        let presented = Presented {
            bytes: &bytes,
            signatures: &signatures,
            statements: &self.statements,
            standing: standing.as_ref(),
            grant: self.grant.as_ref(),
        };
        authorize_order(&presented, &context, |_| self.place)
    }
}

type Expected<'a> = Result<&'a [&'a str], (Rule, &'a str)>;

fn compare(found: Result<Authorized, Refusal>, expected: Expected<'_>) {
    match (found, expected) {
        (Ok(authorized), Ok(signers)) => assert_eq!(authorized.order.signers(), signers),
        (Err(refusal), Err((rule, words))) => {
            assert_eq!(refusal.rule, rule, "{refusal}");
            assert!(refusal.message.contains(words), "{refusal}");
        }
        (got, expected) => panic!("{got:?} instead of {expected:?}"),
    }
}

/// An order to stop.
fn check(change: impl FnOnce(&mut Case), expected: Expected<'_>) {
    let mut case = Case::new(Action::Stop { services: vec![] });
    change(&mut case);
    compare(case.run(), expected);
}

/// An order to start.
fn check_start(change: impl FnOnce(&mut Case), expected: Expected<'_>) {
    let mut case = Case::new(Action::Start { services: vec![] });
    change(&mut case);
    compare(case.run(), expected);
}

/// An order to run.
fn check_run(accepts: &[Demand], change: impl FnOnce(&mut Case), expected: Expected<'_>) {
    let mut case = Case::new(Action::Run(run()));
    case.environment.accepts = accepts.to_vec();
    change(&mut case);
    compare(case.run(), expected);
}

fn live(run: RunId) -> Live {
    Live { order: OrderId([4; 32]), run, image: ImageId([5; 32]), broke_glass: false }
}

fn green() -> Vec<SignedText> {
    vec![green::tests::signed(&green::tests::statement(TestResult::Passed), &[&key(CI)])]
}

#[test]
fn an_order_lasts_two_hours_at_most() {
    let last = |seconds: i64, expected| check(|case| case.order.not_after = NOW.plus_s(seconds), expected);
    last(7200, Ok(&["ada"]));
    last(7201, Err((Rule::Expired, "to last until")));
    last(i64::MAX - NOW.0, Err((Rule::Expired, "to last until")));
}

#[test]
fn what_a_node_says_it_accepted() {
    let policy = full_policy(&Environment {
        accepts: vec![Demand::green_and_release(1)],
        break_glass: Some(2),
        ..Environment::accepting(Demand::release(1))
    });
    let (fleet, environment) = ("acme".parse().unwrap(), "staging".parse().unwrap());
    let (node, app) = ("n1".parse().unwrap(), "notes".parse().unwrap());
    let accepted = Accepted { fleet: &fleet, environment: &environment, node: &node, app: &app, counter: 5 };
    let good_order = order(Action::Run(run()));
    let bytes = good_order.to_bytes();
    let signed = |seeds: &[u8], bytes: &[u8]| -> Vec<String> {
        seeds.iter().map(|seed| key(*seed).sign(NAMESPACE, bytes)).collect()
    };
    let check = |bytes: &[u8], signatures: &[String], statements: &[SignedText], accepted: &Accepted<'_>| {
        let presented = Presented { bytes, signatures, statements, standing: None, grant: None };
        verify_accepted(&presented, &policy, accepted).map_err(|refusal| refusal.rule)
    };
    let good = signed(&[1], &bytes);
    // Long after it has expired.
    assert_eq!(check(&bytes, &good, &green(), &accepted).unwrap().order.value(), &good_order);
    assert_eq!(check(&bytes, &good, &[], &accepted), Err(Rule::NotGreen));
    assert_eq!(check(&bytes, &[], &green(), &accepted), Err(Rule::Threshold));
    assert_eq!(check(&bytes, &signed(&[9], &bytes), &green(), &accepted), Err(Rule::Threshold));
    assert_eq!(check(&bytes, &[key(1).sign("file", &bytes)], &green(), &accepted), Err(Rule::Threshold));
    let other = Order { message: Some("altered".into()), ..good_order.clone() }.to_bytes();
    assert_eq!(check(&other, &good, &green(), &accepted), Err(Rule::Threshold));
    assert_eq!(check(&bytes, &good, &green(), &Accepted { counter: 4, ..accepted }), Err(Rule::Counter));
    let (another_node, another_app) = ("n2".parse().unwrap(), "other".parse().unwrap());
    assert_eq!(check(&bytes, &good, &green(), &Accepted { node: &another_node, ..accepted }), Err(Rule::Node));
    assert_eq!(check(&bytes, &good, &green(), &Accepted { app: &another_app, ..accepted }), Err(Rule::Malformed));
    let another_fleet = "evil".parse().unwrap();
    assert_eq!(check(&bytes, &good, &green(), &Accepted { fleet: &another_fleet, ..accepted }), Err(Rule::Fleet));
    let broken = Order { break_glass: Some("CI is down".into()), ..good_order.clone() }.to_bytes();
    let found = check(&broken, &signed(&[1, 2], &broken), &[], &accepted).unwrap();
    assert_eq!(found.grounds, Grounds::BreakGlass);
    assert_eq!(check(&broken, &signed(&[1], &broken), &green(), &accepted), Err(Rule::BreakGlass));
    let stop = order(Action::Stop { services: vec![] }).to_bytes();
    assert_eq!(check(&stop, &signed(&[1], &stop), &[], &accepted).unwrap().grounds, Grounds::People);
    assert_eq!(check(&stop, &signed(&[CI], &stop), &[], &accepted), Err(Rule::Threshold));
    let mut stricter = policy.clone();
    stricter.revoked.images.insert(green::tests::IMAGE);
    let presented = Presented { bytes: &bytes, signatures: &good, statements: &green(), standing: None, grant: None };
    assert_eq!(verify_accepted(&presented, &stricter, &accepted).unwrap_err().rule, Rule::Revoked);
}

#[test]
fn accepted() {
    check(|_| {}, Ok(&["ada"]));
    check(|case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
    check(|case| case.signers = vec![2, 1, 1, CI], Ok(&["ada", "bob", "ci"]));
    check(|case| case.now = NOW.plus_s(599), Ok(&["ada"]));
    check(|case| case.order.issued = NOW.plus_s(CLOCK_SKEW_S), Ok(&["ada"]));
    check(
        |case| {
            case.place = Place::default();
            case.order.targets.insert("n1".parse().unwrap(), target(1, None));
        },
        Ok(&["ada"]),
    );
}

#[test]
fn signatures() {
    check(|case| case.signers.clear(), Err((Rule::Threshold, "presented: no signature")));
    check(|case| case.signers = vec![9], Err((Rule::Threshold, "has no such role here")));
    check(|case| case.namespace = "policy@bulkhead", Err((Rule::Threshold, "documents of kind")));
    check(|case| case.tamper = |bytes| bytes.push(b' '), Err((Rule::Threshold, "does not match the document")));
    check(|case| case.tamper = |bytes| bytes.resize(ORDER_MAX_BYTES + 1, 0), Err((Rule::Malformed, "longer than")));
    check(|case| case.tamper = |bytes| bytes.resize(ORDER_MAX_BYTES, 0), Err((Rule::Threshold, "does not match")));
}

#[test]
fn whom_it_is_for() {
    check(|case| case.order.fleet = "other".parse().unwrap(), Err((Rule::Fleet, "fleet `other`")));
    check(|case| case.order.environment = "production".parse().unwrap(), Err((Rule::Environment, "`production`")));
    check(
        |case| {
            let target = case.order.targets.pop_first().unwrap().1;
            case.order.targets.insert("n2".parse().unwrap(), target);
        },
        Err((Rule::Node, "for n2; this node is `n1`")),
    );
}

#[test]
fn an_environment_that_the_policy_has_not() {
    let policy = policy(1, &[&key(1)], 1, &[("ada", &key(1))], 1);
    let bytes = order(Action::Stop { services: vec![] }).to_bytes();
    let signatures = [key(1).sign(NAMESPACE, &bytes)];
    let presented = Presented { bytes: &bytes, signatures: &signatures, statements: &[], standing: None, grant: None };
    let refusal = Signed::of(&presented, &policy, &"production".parse().unwrap()).map(|_| ()).unwrap_err();
    assert_eq!(refusal.rule, Rule::Environment);
}

#[test]
fn who_may_do_what_without_an_image() {
    let strict = Environment {
        accepts: vec![Demand::green_and_release(2)],
        look: Some(3),
        ..Environment::accepting(Demand::release(1))
    };
    let services = vec![];
    for (action, needed) in [
        (Action::Stop { services: services.clone() }, 1),
        (Action::Restart { services: services.clone() }, 1),
        (Action::Start { services }, 2),
        (Action::Remove { volumes: true }, 2),
        (look(), 3),
    ] {
        for (signers, count) in [(vec![CI], 0), (vec![1], 1), (vec![1, 1, CI], 1), (vec![1, 2], 2), (vec![1, 2, 5], 3)]
        {
            let mut case = Case::new(action.clone());
            case.environment = strict.clone();
            case.signers = signers.clone();
            let found = case.run();
            assert_eq!(found.is_ok(), count >= needed, "{} by {signers:?}: {found:?}", action.verb());
            if let Ok(found) = found {
                assert_eq!(found.grounds, Grounds::People);
            }
        }
    }
}

#[test]
fn tools_where_all_must_be_green() {
    let check = |environment: Environment, signers: &[u8], expected: Expected<'_>| {
        let mut case = Case::new(look());
        (case.environment, case.signers) = (environment, signers.to_vec());
        compare(case.run(), expected);
    };
    let green = Environment::accepting(Demand::green_and_release(1));
    check(green.clone(), &[1, 2, 5], Err((Rule::Threshold, "a tool can change what runs")));
    check(
        Environment { look: Some(2), ..green.clone() },
        &[1],
        Err((Rule::Threshold, "2 distinct release keys to look")),
    );
    check(Environment { look: Some(2), ..green }, &[1, 2], Ok(&["ada", "bob"]));
    check(Environment::accepting(Demand::release(1)), &[1], Ok(&["ada"]));
}

#[test]
fn so_many_release_keys() {
    let two = [Demand::release(2)];
    check_run(&two, |case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
    check_run(
        &two,
        |case| case.signers = vec![1],
        Err((Rule::Threshold, "needs 2 release keys; presented: a good signature by ada")),
    );
    check_run(&two, |case| case.signers = vec![1, 1], Err((Rule::Threshold, "2 release keys")));
    check_run(&two, |case| case.signers = vec![1, 9], Err((Rule::Threshold, "2 release keys")));
    check_run(&two, |case| case.signers = vec![1, CI], Err((Rule::Threshold, "2 release keys")));
}

/// A refusal says who could provide what is missing, and names the rule that is nearest to being met.
#[test]
fn a_refusal_names_who_could() {
    let refusal = |accepts: &[Demand], signers: Vec<u8>, statements| {
        let mut case = Case::new(Action::Run(run()));
        case.environment.accepts = accepts.to_vec();
        (case.signers, case.statements) = (signers, statements);
        case.run().unwrap_err()
    };
    let by = "release keys are held by ada, bob, cleo; green keys by ci";
    let found = refusal(&[Demand::release(2)], vec![1], vec![]);
    assert_eq!((found.rule, found.hint.as_deref()), (Rule::Threshold, Some(by)));
    let found = refusal(&[Demand::green_and_release(1)], vec![1], vec![]);
    let with_command = format!("{by}; CI states an image green with `bulkhead ci mark`");
    assert_eq!((found.rule, found.hint), (Rule::NotGreen, Some(with_command)));
    // Of several ways the standing order is asked for where that alone is missing, whichever comes first.
    let ways = [Demand::green_and_release(1), Demand { release: 0, green: 1, standing: true }];
    for accepts in [ways.clone(), [ways[1].clone(), ways[0].clone()]] {
        assert_eq!(refusal(&accepts, vec![CI], green()).rule, Rule::Standing);
        assert_eq!(refusal(&accepts, vec![1], vec![]).rule, Rule::NotGreen);
    }
    let ways = [Demand::green_and_release(1), Demand { release: 1, green: 0, standing: true }];
    for accepts in [ways.clone(), [ways[1].clone(), ways[0].clone()]] {
        assert_eq!(refusal(&accepts, vec![1], vec![]).rule, Rule::Standing);
    }
}

/// Green is on the record where it was demanded, and nowhere else.
#[test]
fn grounds() {
    let granted = |demand: Demand| {
        let mut case = Case::new(Action::Run(run()));
        (case.environment.accepts, case.statements) = (vec![demand], green());
        case.run().unwrap().green
    };
    assert_eq!(granted(Demand::green_and_release(1)), ["ci".to_owned()].into());
    assert_eq!(granted(Demand::release(1)), BTreeSet::new());
}

#[test]
fn a_standing_order_that_is_too_long_is_not_read() {
    let long = |length| {
        let mut case = Case::new(Action::Run(run()));
        case.environment.accepts = vec![Demand { release: 0, green: 1, standing: true }];
        (case.signers, case.statements) = (vec![CI], green());
        let text = " ".repeat(length);
        let signatures = vec![key(1).sign(STANDING_NAMESPACE, text.as_bytes())];
        case.raw_standing = Some(SignedText { text, signatures });
        case.run().unwrap_err()
    };
    let refusal = long(STANDING_MAX_BYTES + 1);
    assert!(refusal.message.contains("longer than 256 KiB"), "{refusal}");
    let refusal = long(STANDING_MAX_BYTES);
    assert!(refusal.message.contains("not a standing order"), "{refusal}");
}

#[test]
fn green_and_a_release_key() {
    let both = [Demand::green_and_release(1)];
    check_run(&both, |case| case.statements = green(), Ok(&["ada"]));
    check_run(&both, |_| {}, Err((Rule::NotGreen, "is stated green by nobody")));
    check_run(
        &both,
        |case| (case.statements, case.signers) = (green(), vec![CI]),
        Err((Rule::Threshold, "green and 1 release key")),
    );
    let red = green::tests::signed(&green::tests::statement(TestResult::Failed), &[&key(CI)]);
    check_run(
        &both,
        |case| case.statements = [green(), vec![red.clone()]].concat(),
        Err((Rule::NotGreen, "marked red by ci")),
    );
    // What the node was brought before counts as well, and a red mark however much else comes.
    check_run(&both, |case| case.place.statements = green(), Ok(&["ada"]));
    check_run(
        &both,
        |case| (case.place.statements, case.statements) = (vec![red.clone()], green()),
        Err((Rule::NotGreen, "marked red by ci")),
    );
    // Where green is not asked for, red is not either.
    check_run(&[Demand::release(1)], |case| case.statements = vec![red.clone()], Ok(&["ada"]));
    let forged = green::tests::signed(&green::tests::statement(TestResult::Passed), &[&key(1)]);
    check_run(&both, |case| case.statements = vec![forged], Err((Rule::NotGreen, "needs a green key")));
    let id = bulkhead_core::StatementId::of(green()[0].text.as_bytes());
    for by_policy in [false, true] {
        check_run(
            &both,
            |case| {
                case.statements = green();
                let revoked = if by_policy { &mut case.policy_revoked } else { &mut case.revoked };
                revoked.statements.insert(id);
            },
            Err((Rule::NotGreen, "was revoked")),
        );
    }
    check_run(
        &[Demand { release: 1, green: 2, standing: false }],
        |case| case.statements = [green(), green()].concat(),
        Err((Rule::NotGreen, "green by 2")),
    );
}

#[test]
fn one_way_or_the_other() {
    let accepts = [Demand::release(2), Demand { release: 0, green: 1, standing: false }];
    check_run(&accepts, |case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
    check_run(&accepts, |case| (case.signers, case.statements) = (vec![CI], green()), Ok(&["ci"]));
    check_run(&accepts, |case| case.signers = vec![CI], Err((Rule::NotGreen, "2 release keys, or green")));
    // Whoever brings a green image must not choose how it runs: the order itself needs a key that counts.
    check_run(
        &accepts,
        |case| (case.signers, case.statements) = (vec![1], green()),
        Err((Rule::Threshold, "presented")),
    );
    check_run(
        &accepts,
        |case| (case.signers, case.statements) = (vec![9], green()),
        Err((Rule::Threshold, "presented")),
    );
}

#[test]
fn standing_orders() {
    let accepts = [Demand { release: 0, green: 1, standing: true }];
    let standing = standing_order(service());
    let id = StandingOrder::id(&standing.to_bytes());
    let check = |change: fn(&mut Case), expected: Expected<'_>| {
        check_run(
            &accepts,
            |case| {
                (case.signers, case.statements) = (vec![CI], green());
                case.standing = Some((standing.clone(), vec![1]));
                change(case);
            },
            expected,
        );
    };
    check(|_| {}, Ok(&["ci"]));
    check(|case| case.uses = 1, Ok(&["ci"]));
    check(|case| case.uses = 2, Err((Rule::Standing, "used 2 times here")));
    check(|case| case.standing = None, Err((Rule::Standing, "no standing order")));
    check(|case| case.statements.clear(), Err((Rule::NotGreen, "by nobody")));
    check(|case| case.standing.as_mut().unwrap().1 = vec![CI], Err((Rule::Standing, "needs 1 release key")));
    check(|case| case.standing.as_mut().unwrap().1 = vec![], Err((Rule::Standing, "no signature")));
    check(|case| case.standing.as_mut().unwrap().0.uses_max = 0, Err((Rule::Standing, "no order at all")));
    check(
        |case| {
            let Action::Run(run) = &mut case.order.action else { return };
            run.services[0].env.insert("A".into(), "b".into());
        },
        Err((Rule::Standing, "other settings")),
    );
    check_run(
        &accepts,
        |case| {
            (case.signers, case.statements) = (vec![CI], green());
            case.standing = Some((standing.clone(), vec![1]));
            case.revoked.orders.insert(id);
        },
        Err((Rule::Standing, "was revoked")),
    );
    // A person who signs the order needs one all the same, where that is the only way.
    check_run(&[Demand { release: 1, green: 0, standing: true }], |_| {}, Err((Rule::Standing, "no standing order")));
    let mut case = Case::new(Action::Run(run()));
    case.environment.accepts = accepts.to_vec();
    (case.signers, case.statements) = (vec![CI], green());
    case.standing = Some((standing, vec![1]));
    let found = case.run().unwrap();
    assert_eq!((found.standing, found.green), (Some(id), ["ci".to_owned()].into()));
}

#[test]
fn a_standing_order_needs_as_many_as_it_stands_for() {
    let accepts = [Demand { release: 0, green: 1, standing: true }, Demand::green_and_release(2)];
    // One key is enough for the easiest way's own count.
    let standing = |seeds: Vec<u8>| {
        let standing = standing_order(service());
        Some((standing, seeds))
    };
    check_run(
        &accepts,
        |case| {
            (case.signers, case.statements) = (vec![CI], green());
            case.standing = standing(vec![1]);
        },
        Err((Rule::Standing, "needs 2 release key(s)")),
    );
    check_run(
        &accepts,
        |case| {
            (case.signers, case.statements) = (vec![CI], green());
            case.standing = standing(vec![1, 2]);
        },
        Ok(&["ci"]),
    );
}

#[test]
fn going_back() {
    let strict = [Demand::green_and_release(2)];
    let with = |case: &mut Case| case.place.fallback.extend([run().id()]);
    check_run(&strict, with, Ok(&["ada"]));
    check_run(&strict, |_| {}, Err((Rule::Threshold, "green and 2 release keys")));
    check_run(
        &strict,
        |case| {
            with(case);
            case.signers = vec![CI];
        },
        Err((Rule::Threshold, "1 release key to run")),
    );
    // The very image with other settings is something else.
    check_run(
        &strict,
        |case| {
            with(case);
            let Action::Run(run) = &mut case.order.action else { return };
            run.services[0].env.insert("A".into(), "b".into());
        },
        Err((Rule::Threshold, "green and 2")),
    );
    for by_policy in [false, true] {
        check_run(
            &strict,
            |case| {
                with(case);
                let revoked = if by_policy { &mut case.policy_revoked } else { &mut case.revoked };
                revoked.images.insert(green::tests::IMAGE);
            },
            Err((Rule::Revoked, "was revoked")),
        );
    }
    let mut case = Case::new(Action::Run(run()));
    with(&mut case);
    assert_eq!(case.run().unwrap().grounds, Grounds::Fallback);
}

#[test]
fn what_is_listed_to_go_back_to_is_signed_in_full() {
    let evil = RunId([6; 32]);
    let list = |case: &mut Case, id: RunId| {
        let Action::Run(run) = &mut case.order.action else { return };
        run.fallback = [id].into();
    };
    let going_back = |case: &mut Case| case.place.fallback.extend([run().id()]);
    let strict = [Demand::green_and_release(2)];
    let new = Err((Rule::Threshold, "neither is live here nor was listed"));
    check_run(&strict, |case| (going_back(case), list(case, evil)).1, new);
    check_run(&strict, |case| (going_back(case), list(case, run().id())).1, Ok(&["ada"]));
    check_run(
        &strict,
        |case| {
            going_back(case);
            case.place.live = Some(live(evil));
            list(case, evil);
        },
        Ok(&["ada"]),
    );
    let ci = |case: &mut Case| (case.signers, case.statements) = (vec![CI], green());
    check_run(&[Demand { release: 0, green: 1, standing: false }], |case| (ci(case), list(case, evil)).1, new);
    let full = |case: &mut Case| (case.signers, case.statements) = (vec![1, 2], green());
    // A green image says nothing of what else is listed, however many sign.
    check_run(&strict, |case| (full(case), list(case, evil)).1, new);
    let green_and_one = |case: &mut Case| case.statements = green();
    check_run(&[Demand::green_and_release(1)], |case| (green_and_one(case), list(case, evil)).1, new);
    check_run(&[Demand::release(2)], |case| (full(case), list(case, evil)).1, Ok(&["ada", "bob"]));
    check_run(
        &strict,
        |case| {
            full(case);
            case.place.live = Some(Live { broke_glass: true, ..live(evil) });
            list(case, evil);
        },
        new,
    );
    let mut case = Case::new(Action::Run(run()));
    (case.environment.break_glass, case.order.break_glass) = (Some(1), Some("why".into()));
    list(&mut case, evil);
    compare(case.run(), new);
}

#[test]
fn what_is_revoked_is_not_started_again() {
    for (action, refused) in [
        (Action::Start { services: vec![] }, true),
        (Action::Restart { services: vec![] }, true),
        (Action::Stop { services: vec![] }, false),
        (Action::Remove { volumes: false }, false),
    ] {
        let mut case = Case::new(action);
        case.place.live = Some(Live { image: green::tests::IMAGE, ..live(RunId([1; 32])) });
        case.revoked.images.extend([green::tests::IMAGE]);
        let found = case.run().map_err(|refusal| refusal.rule);
        assert_eq!(found.is_err(), refused, "{found:?}");
    }
}

#[test]
fn what_a_revoked_order_brought_is_not_started_again() {
    let run = |action, revoked: u8| {
        let mut case = Case::new(action);
        case.place.live = Some(live(RunId([1; 32])));
        case.revoked.orders.extend([OrderId([revoked; 32])]);
        case.run().map_err(|refusal| refusal.rule).map(|_| ())
    };
    for action in [Action::Start { services: vec![] }, Action::Restart { services: vec![] }] {
        assert_eq!(run(action.clone(), 4), Err(Rule::Revoked));
        assert_eq!(run(action, 3), Ok(()));
    }
    assert_eq!(run(Action::Stop { services: vec![] }, 4), Ok(()));
}

#[test]
fn secrets_are_nothing_to_go_back_to() {
    let name = || "token".parse::<SecretName>().unwrap();
    let mut service = service();
    service.secrets.insert(name());
    let run = Run { services: vec![service], ..run() };
    let case = |known: Option<u8>| {
        let mut case = Case::new(Action::Run(run.clone()));
        case.environment.accepts = vec![Demand::green_and_release(2)];
        case.place.fallback.extend([run.id()]);
        case.place.secrets.extend(known.map(|byte| (name(), SecretDigest([byte; 32]))));
        at(&mut case, |target| target.secrets.extend([(name(), SecretDigest([7; 32]))]));
        case.run()
    };
    compare(case(Some(7)), Ok(&["ada"]));
    compare(case(Some(8)), Err((Rule::Threshold, "green and 2 release keys")));
    compare(case(None), Err((Rule::Threshold, "green and 2 release keys")));
}

#[test]
fn a_standing_order_covers_no_new_secrets() {
    let name = || "token".parse::<SecretName>().unwrap();
    let mut service = service();
    service.secrets.insert(name());
    let run = Run { services: vec![service.clone()], ..run() };
    let case = |known: Option<u8>| {
        let mut case = Case::new(Action::Run(run.clone()));
        case.environment.accepts = vec![Demand { release: 0, green: 1, standing: true }];
        (case.signers, case.statements) = (vec![CI], green());
        let standing = standing_order(service.clone());
        case.standing = Some((standing, vec![1]));
        case.place.secrets.extend(known.map(|byte| (name(), SecretDigest([byte; 32]))));
        at(&mut case, |target| target.secrets.extend([(name(), SecretDigest([7; 32]))]));
        case.run()
    };
    compare(case(Some(7)), Ok(&["ci"]));
    compare(case(Some(8)), Err((Rule::Standing, "no secrets other than")));
    compare(case(None), Err((Rule::Standing, "no secrets other than")));
}

/// A node saw to it that the secrets were those that ran; who checks afterwards takes them as the order has them.
#[test]
fn what_a_node_accepted_under_a_standing_order() {
    let name = || "token".parse::<SecretName>().unwrap();
    let mut service = service();
    service.secrets.insert(name());
    let environment = Environment::accepting(Demand { release: 0, green: 1, standing: true });
    let policy = full_policy(&environment);
    let mut order = order(Action::Run(Run { services: vec![service.clone()], ..run() }));
    for target in order.targets.values_mut() {
        target.secrets.insert(name(), SecretDigest([7; 32]));
    }
    let standing = standing_order(service).to_bytes();
    let signatures = vec![key(1).sign(STANDING_NAMESPACE, &standing)];
    let standing = SignedText { text: String::from_utf8(standing).unwrap(), signatures };
    let bytes = order.to_bytes();
    let signatures = [key(CI).sign(NAMESPACE, &bytes)];
    let presented = Presented {
        bytes: &bytes,
        signatures: &signatures,
        statements: &green(),
        standing: Some(&standing),
        grant: None,
    };
    let node = "n1".parse().unwrap();
    let accepted =
        Accepted { fleet: &order.fleet, environment: &order.environment, node: &node, app: &order.app, counter: 5 };
    assert!(verify_accepted(&presented, &policy, &accepted).unwrap().standing.is_some());
}

#[test]
fn breaking_glass() {
    let check = |allowed: Option<u32>, signers: &[u8], expected: Expected<'_>| {
        check_run(
            &[Demand::green_and_release(1)],
            |case| {
                case.environment.break_glass = allowed;
                case.order.break_glass = Some("CI is down and so are we".into());
                case.signers = signers.to_vec();
            },
            expected,
        );
    };
    check(Some(2), &[1, 2], Ok(&["ada", "bob"]));
    check(Some(2), &[1], Err((Rule::BreakGlass, "2 distinct release keys to break glass")));
    check(Some(2), &[1, CI], Err((Rule::BreakGlass, "2 distinct release keys")));
    check(None, &[1, 2, 5], Err((Rule::BreakGlass, "allows no breaking of glass")));
    let mut case = Case::new(Action::Run(run()));
    case.environment.break_glass = Some(1);
    case.order.break_glass = Some("why".into());
    case.place.fallback.insert(run().id());
    assert_eq!(case.run().unwrap().grounds, Grounds::BreakGlass, "said is said");
}

#[test]
fn what_was_revoked() {
    check_run(
        &[Demand::release(1)],
        |case| case.revoked.images.extend([green::tests::IMAGE]),
        Err((Rule::Revoked, "image 070707")),
    );
    let id = OrderId::of(&order(Action::Run(run())).to_bytes());
    check_run(&[Demand::release(1)], |case| case.revoked.orders.extend([id]), Err((Rule::Revoked, "order")));
    check_run(&[Demand::release(1)], |case| case.revoked.orders.extend([OrderId([1; 32])]), Ok(&["ada"]));
    let mut case = Case::new(look());
    case.revoked.images.insert(ImageId([8; 32]));
    compare(case.run(), Err((Rule::Revoked, "image 080808")));
}

#[test]
fn nothing_new_starts_where_nothing_is_heard() {
    let heartbeat = |age: i64, policy| {
        Some(Heartbeat { format: 1, fleet: "acme".parse().unwrap(), issued: NOW.plus_s(-age), policy })
    };
    let demand = [Demand::release(1)];
    let stale = Err((Rule::Stale, "demands a heartbeat every 3600 seconds"));
    let period = |case: &mut Case| case.environment.heartbeat_s = Some(3600);
    check_run(&demand, period, Err((Rule::Stale, "heard one never")));
    check_run(&demand, |case| (period(case), case.heartbeat = heartbeat(3600, 1)).1, Ok(&["ada"]));
    check_run(&demand, |case| (period(case), case.heartbeat = heartbeat(3601, 1)).1, stale);
    check_run(&demand, |case| case.order.policy = 2, Err((Rule::Stale, "this node has version 1")));
    check_run(&demand, |case| case.order.policy = 0, Ok(&["ada"]));
    // What runs goes on, and can be stopped and started again.
    check(|case| (period(case), case.order.policy = 2).1, Ok(&["ada"]));
    for (action, expected) in [
        (Action::Restart { services: vec![] }, Ok(&["ada"][..])),
        (Action::Remove { volumes: false }, Ok(&["ada"])),
        (Action::Start { services: vec![] }, Err((Rule::Stale, "heartbeat"))),
        (look(), Err((Rule::Stale, "heartbeat"))),
    ] {
        let mut case = Case::new(action);
        period(&mut case);
        compare(case.run(), expected);
    }
}

#[test]
fn what_a_node_must_offer() {
    let demand = [Demand::release(1)];
    let requires = |case: &mut Case| case.environment.requires = [Isolation::FsVerity, Isolation::PrivatePids].into();
    check_run(&demand, requires, Err((Rule::Isolation, "demands fs-verity, private-pids")));
    check_run(
        &demand,
        |case| {
            requires(case);
            case.offers.insert(Isolation::PrivatePids);
        },
        Err((Rule::Isolation, "demands fs-verity of")),
    );
    check_run(
        &demand,
        |case| {
            requires(case);
            case.offers = [Isolation::FsVerity, Isolation::PrivatePids, Isolation::LimitCpu].into();
        },
        Ok(&["ada"]),
    );
    check(requires, Ok(&["ada"]));
}

#[test]
fn replays_and_forks() {
    check(|case| case.place.counter = 5, Err((Rule::Counter, "number 5")));
    check(|case| case.place.counter = 6, Err((Rule::Counter, "last accepted was 6")));
    check(|case| case.place.counter = u64::MAX, Err((Rule::Counter, "number 5")));
    check(|case| case.place.previous = Some(OrderId([6; 32])), Err((Rule::Previous, "follows order 0505")));
    check(|case| case.place.previous = None, Err((Rule::Previous, "was none")));
    check(|case| case.boot = BootId([8; 32]), Err((Rule::Boot, "earlier boot")));
}

/// The order's own target, changed.
fn at(case: &mut Case, change: impl FnOnce(&mut Target)) {
    change(case.order.targets.values_mut().next().unwrap());
}

#[test]
fn counters_cannot_be_used_up() {
    for (counter, words) in [(u64::MAX, "number"), (5 + FLOOR_STEP_MAX + 1, "number")] {
        check(|case| at(case, |target| target.counter = counter), Err((Rule::Counter, words)));
    }
    check(
        |case| at(case, |target| target.floor = Some(4 + FLOOR_STEP_MAX + 1)),
        Err((Rule::Counter, "more than 1000000")),
    );
    check(|case| at(case, |target| target.floor = Some(u64::MAX)), Err((Rule::Counter, "more than 1000000")));
    let lifted = 4 + FLOOR_STEP_MAX;
    check(|case| at(case, |target| (target.floor, target.counter) = (Some(lifted), lifted + 1)), Ok(&["ada"]));
    // At the very end, which nobody reaches.
    check(
        |case| {
            case.place.counter = u64::MAX;
            at(case, |target| target.counter = 0);
        },
        Err((Rule::Malformed, "counters start at 1")),
    );
}

#[test]
fn a_node_that_was_put_back() {
    let ahead = |case: Case| {
        let refusal = case.run().unwrap_err();
        (refusal.rule, refusal.ahead)
    };
    let case = |change: fn(&mut Case)| {
        let mut case = Case::new(Action::Run(run()));
        change(&mut case);
        case
    };
    // An order beyond what it knows is proof, whatever boot it was meant for.
    assert_eq!(ahead(case(|case| case.place.counter = 3)), (Rule::Restored, Some(4)));
    assert_eq!(
        ahead(case(|case| {
            case.place.counter = 3;
            case.boot = BootId([8; 32]);
        })),
        (Rule::Restored, Some(4))
    );
    assert_eq!(
        ahead(case(|case| at(case, |t| t.counter = 4 + FLOOR_STEP_MAX + 1))),
        (Rule::Restored, Some(4 + FLOOR_STEP_MAX))
    );
    // One that is not signed well enough proves nothing.
    assert_eq!(
        ahead(case(|case| {
            case.place.counter = 3;
            case.signers = vec![CI];
        })),
        (Rule::Threshold, None)
    );
    // Nor does what one release key may where running something new takes more: the client that signed it knows better.
    let by_one_of_two = |action: Action| {
        let mut case = Case::new(action);
        case.environment.accepts = vec![Demand::release(2), Demand::green_and_release(1)];
        case.place.fallback = [run().id()].into();
        case.place.counter = 3;
        ahead(case)
    };
    for action in [
        Action::Run(run()),
        Action::Start { services: vec![] },
        Action::Restart { services: vec![] },
        Action::Remove { volumes: false },
    ] {
        assert_eq!(by_one_of_two(action.clone()), (Rule::Counter, None), "{action:?}");
    }
    let glass = case(|case| {
        case.environment.accepts = vec![Demand::green_and_release(1)];
        case.environment.break_glass = Some(1);
        case.order.break_glass = Some("on fire".into());
        case.place.counter = 3;
    });
    assert_eq!(ahead(glass), (Rule::Restored, Some(4)));
    // From then on only an order that knows of it is accepted.
    assert_eq!(ahead(case(|case| case.place.seen = 7)), (Rule::Restored, None));
    let seen = |case: &mut Case, floor: u64, counter: u64| {
        case.place.seen = 7;
        at(case, |t| (t.floor, t.counter) = (Some(floor), counter));
    };
    check_start(|case| seen(case, 6, 7), Err((Rule::Restored, "knows of 4 orders for `notes`, and 7 were accepted")));
    check_start(|case| seen(case, 7, 8), Ok(&["ada"]));
    check_start(|case| seen(case, 7, 7), Err((Rule::Counter, "last accepted was 7")));
    check_run(
        &[Demand::release(1)],
        |case| seen(case, 7, 9),
        Err((Rule::Restored, "knows of 4 orders for `notes`, and 8 were accepted")),
    );
    check_start(|case| case.place.seen = 4, Ok(&["ada"]));
    // A floor below where it stands lifts nothing.
    check_start(|case| at(case, |t| t.floor = Some(2)), Ok(&["ada"]));
    // To stop is not kept from anybody by it.
    check(|case| case.place.seen = 7, Ok(&["ada"]));
}

#[test]
fn times() {
    check(|case| case.now = NOW.plus_s(600), Err((Rule::Expired, "expired at")));
    check(|case| case.order.issued = NOW.plus_s(CLOCK_SKEW_S + 1), Err((Rule::Expired, "issued at")));
    check(|case| case.minimum_time = NOW.plus_s(1), Err((Rule::Clock, "has known")));
    // A year back, and ten years forward.
    check(|case| case.now = NOW.plus_s(-31_536_000), Err((Rule::Clock, "has known")));
    check(|case| case.now = NOW.plus_s(315_360_000), Err((Rule::Expired, "expired at")));
}

#[test]
fn a_key_that_must_verify_its_user() {
    let sk = TestKey::security_key(6);
    let mut policy = full_policy(&Environment::accepting(Demand::release(1)));
    let entry = Key { key: sk.public.to_openssh(), roles: [Role::Release].into(), verify_user: true };
    policy.keys.insert("dora".parse().unwrap(), entry);
    let bytes = order(Action::Stop { services: vec![] }).to_bytes();
    let sign = |flags| vec![sk.sign_as_security_key(NAMESPACE, &bytes, flags)];
    let check = |signatures: &[String]| {
        let presented = Presented { bytes: &bytes, signatures, statements: &[], standing: None, grant: None };
        Signed::of(&presented, &policy, &"staging".parse().unwrap())
            .map(|signed| signed.names())
            .map_err(|refusal| refusal.message)
    };
    assert_eq!(check(&sign(5)).unwrap(), ["dora"]);
    assert!(check(&sign(1)).unwrap_err().contains("asked no PIN"));
    assert!(check(&sign(4)).unwrap_err().contains("without touching"));
}
