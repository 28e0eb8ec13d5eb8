//! The client against the fake, and both against the published document.

#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod openapi;

use bulkhead_fake_do::{Fake, Faults, Kind, Options, READ_ONLY, Silence};
use bulkhead_provider::{DigitalOcean, Image, Provider, ProviderError, Settings, Status, Token, UserData, Wanted};
use bulkhead_scale::{CreateAnswer, DeleteAnswer, HOUR_MS, MINUTE_MS, Micros, ServerId};
use openapi::Document;
use std::{sync::Arc, time::Duration};

fn fake(options: Options) -> Fake {
    Fake::start(options).unwrap()
}

fn client_with(fake: &Fake, token: &str) -> DigitalOcean {
    let mut settings = Settings::new(fake.url(), Token::new(token).unwrap());
    settings.timeout = Duration::from_secs(2);
    DigitalOcean::new(settings, &"acme".parse().unwrap()).unwrap()
}

fn client(fake: &Fake) -> DigitalOcean {
    client_with(fake, "dop_v1_any")
}

fn name(id: u64) -> Arc<str> {
    format!("p-t-{id}.acme.bulkhead").into()
}

fn wanted(id: u64) -> Wanted {
    Wanted {
        name: name(id),
        user_data: UserData::new("#cloud-config\n").unwrap(),
        ssh_keys: Vec::new(),
        region: "fra1".into(),
        size: "s-1vcpu-1gb".into(),
        image: Image::Slug("debian-13-x64".into()),
        network: None,
        tags: vec!["bulkhead-acme".into()],
    }
}

fn made(client: &DigitalOcean, id: u64) -> ServerId {
    match client.create(&wanted(id)).answer {
        CreateAnswer::Made(server) => server,
        answer => panic!("{answer:?}"),
    }
}

/// What both sides said fits the published document, and nobody deleted by tag.
fn check_conformance(fake: &Fake) {
    let document = Document::read();
    let exchanges = fake.exchanges();
    assert!(!exchanges.is_empty());
    for exchange in &exchanges {
        let wrong = document.check(exchange);
        assert!(wrong.is_empty(), "{} {}: {wrong:#?}", exchange.method, exchange.path);
    }
    assert_eq!(fake.deletes_by_tag(), 0);
}

#[test]
fn a_life() {
    let fake = fake(Options { quota: 300, ..Options::default() });
    let client = client(&fake);
    let account = client.account().unwrap();
    assert_eq!((account.droplet_limit, &*account.status), (300, "active"));
    let sizes = client.sizes().unwrap();
    let size = sizes.iter().find(|size| size.slug == "s-2vcpu-4gb").unwrap();
    assert_eq!((size.per_hour, size.memory_mib, size.is_available), (Micros(35_710), 4096, true));

    // The firewall is made once, mended where somebody changed it, and else let be.
    let from = ["203.0.113.7".to_owned()];
    for _ in 0..2 {
        client.ensure_firewall("bulkhead-acme", "bulkhead-acme", &from).unwrap();
    }
    client.ensure_firewall("bulkhead-acme", "bulkhead-acme", &["203.0.113.8".to_owned()]).unwrap();
    let changes: Vec<String> = fake
        .exchanges()
        .iter()
        .filter(|one| one.method != "GET")
        .map(|one| format!("{} {}", one.method, one.path))
        .collect();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert_eq!(changes[..2], ["POST /v2/tags", "POST /v2/firewalls"]);
    assert!(changes[2].starts_with("PUT /v2/firewalls/"));

    assert_eq!(client.list().unwrap(), []);
    let one = made(&client, 1);
    let seen = client.get(one).unwrap().unwrap();
    assert_eq!((&*seen.name, seen.status, seen.address()), ("p-t-1.acme.bulkhead", Status::New, None));
    fake.advance(MINUTE_MS);
    fake.set_address(one, "127.0.0.9".parse().unwrap());
    let seen = client.get(one).unwrap().unwrap();
    assert_eq!((seen.status, seen.address()), (Status::Active, Some("127.0.0.9".parse().unwrap())));
    assert!(seen.v6.is_some());

    // More than one page of them, and some of somebody else's.
    let names: Vec<Arc<str>> = (2..=230).map(name).collect();
    let answers = client.create_many(&names, &wanted(0));
    assert!(answers.iter().all(|answer| matches!(answer.answer, CreateAnswer::Made(_))));
    client.create(&Wanted { name: "www.example".into(), ..wanted(0) });
    let mut listed: Vec<Arc<str>> = client.list().unwrap().into_iter().map(|seen| seen.name).collect();
    listed.sort();
    let mut all: Vec<Arc<str>> = (1..=230).map(name).collect();
    all.sort();
    assert_eq!(listed, all);

    assert_eq!(client.delete(one, "p-t-2.acme.bulkhead").answer, DeleteAnswer::Renamed);
    assert_eq!(client.delete(one, &name(1)).answer, DeleteAnswer::Accepted);
    assert_eq!(client.delete(one, &name(1)).answer, DeleteAnswer::Absent);
    assert_eq!(client.get(one).unwrap(), None);
    assert_eq!(client.list().unwrap().len(), 229);
    assert_eq!(fake.existing().len(), 230);
    check_conformance(&fake);
}

#[test]
fn creations_that_go_wrong() {
    let fake = fake(Options { quota: 4, ..Options::default() });
    let client = client(&fake);
    let committed = Faults { commit_then_time_out: 1000, ..Faults::NONE };
    for (id, silence) in [(1, Silence::Closes), (2, Silence::Hangs), (3, Silence::Breaks)] {
        fake.set_silence(silence);
        fake.once(Kind::Create, committed);
        let answer = client.create(&wanted(id));
        assert_eq!(answer.answer, CreateAnswer::Unclear, "{answer:?}");
        // It was bought, once, and a list shows it.
        assert_eq!(fake.existing().iter().filter(|(_, made)| *made == name(id)).count(), 1);
        assert_eq!(client.list().unwrap().iter().filter(|seen| seen.name == name(id)).count(), 1);
    }
    for (faults, expected) in [
        (Faults { time_out: 1000, ..Faults::NONE }, CreateAnswer::Unclear),
        (Faults { transient_refusal: 1000, ..Faults::NONE }, CreateAnswer::Refused),
    ] {
        fake.once(Kind::Create, faults);
        assert_eq!(client.create(&wanted(4)).answer, expected);
    }
    fake.once(Kind::Create, Faults { late_commit: 1000, ..Faults::NONE });
    assert_eq!(client.create(&wanted(4)).answer, CreateAnswer::Unclear);
    assert_eq!(client.list().unwrap().len(), 3, "it is not made yet");
    fake.advance(MINUTE_MS);
    assert_eq!(client.list().unwrap().len(), 4);
    assert_eq!(client.create(&wanted(5)).answer, CreateAnswer::Quota);
    let names: Vec<Arc<str>> = (5..=7).map(name).collect();
    assert!(client.create_many(&names, &wanted(0)).iter().all(|answer| answer.answer == CreateAnswer::Quota));
    assert_eq!(client_with(&fake, READ_ONLY).create(&wanted(5)).answer, CreateAnswer::Forbidden);
    let nowhere = Wanted { region: "mars1".into(), ..wanted(5) };
    assert_eq!(client.create(&nowhere).answer, CreateAnswer::Refused);
    assert_eq!(fake.existing().len(), 4);
    check_conformance(&fake);
}

#[test]
fn too_many_requests() {
    let fake = fake(Options::default());
    let client = client(&fake);
    fake.once(Kind::Create, Faults { too_many: 1000, ..Faults::NONE });
    let answer = client.create(&wanted(1)).answer;
    let CreateAnswer::RateLimited { retry_after_ms } = answer else { panic!("{answer:?}") };
    assert!((1_000..=30_000).contains(&retry_after_ms));
    // Until then nothing is asked.
    let before = fake.exchanges().len();
    assert!(matches!(client.list(), Err(ProviderError::RateLimited { .. })));
    assert_eq!(fake.exchanges().len(), before);
    assert_eq!(fake.exchanges()[0].status, 429);

    // A client keeps the limit by itself: of 251 requests the last is not sent.
    let client = client_with(&fake, "another");
    let refused = (0..260).find(|_| client.get(ServerId(1)).is_err());
    assert_eq!(refused, Some(250), "{:?}", fake.exchanges().last());
    assert!(fake.exchanges().iter().skip(1).all(|exchange| exchange.status == 404));
    check_conformance(&fake);
}

#[test]
fn lists_that_go_wrong() {
    let fake = fake(Options { quota: 300, ..Options::default() });
    let client = client(&fake);
    let names: Vec<Arc<str>> = (1..=210).map(name).collect();
    client.create_many(&names, &wanted(0));
    assert_eq!(client.list().unwrap().len(), 210);
    // The second page slips each time that it is read: a list is whole or an error, never one that lacks a machine.
    fake.set_faults(Faults { slipped: 1000, ..Faults::NONE });
    let mut unsteady = 0;
    for _ in 0..30 {
        match client.list() {
            Ok(seen) => assert_eq!(seen.len(), 210),
            Err(ProviderError::Unsteady { tries: 3, .. }) => unsteady += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..30).contains(&unsteady), "{unsteady}");
    fake.set_faults(Faults::NONE);
    for silence in [Silence::Closes, Silence::Hangs, Silence::Breaks] {
        fake.set_silence(silence);
        fake.once(Kind::List, Faults::NONE);
        fake.once(Kind::List, Faults { broken_list: 1000, ..Faults::NONE });
        assert!(client.list().is_err());
    }
    check_conformance(&fake);
}

#[test]
fn what_lags() {
    let fake = fake(Options { late_tags_ms: MINUTE_MS, ..Options::default() });
    let client = client(&fake);
    fake.set_faults(Faults { list_lag_ms: 50_000, read_lag_ms: 5_000, ..Faults::NONE });
    let one = made(&client, 1);
    assert_eq!(client.get(one).unwrap(), None, "not by its number yet");
    assert_eq!(client.list().unwrap(), []);
    fake.advance(6_000);
    assert!(client.get(one).unwrap().is_some());
    let tags = || fake.exchanges().last().unwrap().answer.clone().unwrap()["droplet"]["tags"].clone();
    assert_eq!(tags(), serde_json::json!([]), "not tagged yet");
    fake.advance(MINUTE_MS);
    assert_eq!(client.list().unwrap().len(), 1);
    assert!(client.get(one).unwrap().is_some());
    assert_eq!(tags(), serde_json::json!(["bulkhead-acme"]));
    assert_eq!(client.delete(one, &name(1)).answer, DeleteAnswer::Accepted);
    check_conformance(&fake);
}

#[test]
fn deletions_that_go_wrong() {
    let fake = fake(Options::default());
    fake.set_silence(Silence::Closes);
    let client = client(&fake);
    let one = made(&client, 1);
    let delete = || client.delete(one, &name(1)).answer;
    fake.once(Kind::Delete, Faults { pending_event: 1000, ..Faults::NONE });
    assert_eq!(delete(), DeleteAnswer::Busy);
    fake.once(Kind::Delete, Faults { failed_delete: 1000, ..Faults::NONE });
    assert_eq!(delete(), DeleteAnswer::Accepted);
    assert_eq!(client.list().unwrap().len(), 1, "it was not done");
    assert_eq!(client_with(&fake, READ_ONLY).delete(one, &name(1)).answer, DeleteAnswer::Forbidden);
    fake.once(Kind::Delete, Faults { failed_delete: 1000, unclear_delete: 1000, ..Faults::NONE });
    assert_eq!(delete(), DeleteAnswer::Unclear);
    fake.once(Kind::Delete, Faults { resurrection: 1000, ..Faults::NONE });
    assert_eq!(delete(), DeleteAnswer::Accepted);
    assert_eq!(client.get(one).unwrap(), None);
    fake.advance(7 * HOUR_MS);
    assert_eq!(client.list().unwrap().len(), 1, "it is there again");
    assert_eq!(delete(), DeleteAnswer::Accepted);
    assert_eq!(delete(), DeleteAnswer::Absent);
    assert!(fake.bill() > Micros(0));
    check_conformance(&fake);
}

/// Under everything at once: what is said to be made exists, what is said to be refused does not, and a list that is
/// had is whole.
#[test]
fn nothing_is_guessed() {
    let fake = fake(Options { seed: 7, quota: 1000, silence: Some(Silence::Closes), ..Options::default() });
    let client = client(&fake);
    fake.set_faults(Faults { too_many: 0, list_lag_ms: 0, read_lag_ms: 0, ..Faults::HEAVY });
    let mut unclear = 0;
    for id in 0..80 {
        let answer = client.create(&wanted(id)).answer;
        let there: Vec<ServerId> =
            fake.existing().into_iter().filter(|(_, made)| *made == name(id)).map(|(server, _)| server).collect();
        match answer {
            CreateAnswer::Made(server) => assert_eq!(there, [server]),
            CreateAnswer::Refused => assert!(there.is_empty()),
            CreateAnswer::Unclear => unclear += 1,
            answer => panic!("{answer:?}"),
        }
        if let Ok(listed) = client.list() {
            let mut existing = fake.existing();
            existing.sort();
            let mut listed: Vec<_> = listed.into_iter().map(|seen| (seen.id, seen.name)).collect();
            listed.sort();
            assert_eq!(listed, existing);
        }
    }
    assert!((5..60).contains(&unclear), "{unclear}");
    check_conformance(&fake);
}

/// What the client cannot send.
#[test]
fn without_a_token_and_by_tag() {
    use std::io::{Read as _, Write as _};
    let fake = fake(Options::default());
    let one = made(&client(&fake), 1);
    let send = |line: &str, token: &str| {
        let mut stream = std::net::TcpStream::connect(fake.url().strip_prefix("http://").unwrap()).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nhost: fake\r\n{token}connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let token = "authorization: Bearer any\r\n";
    for (line, token, expected) in [
        ("GET /v2/droplets", "", "HTTP/1.1 401"),
        ("GET /v2/droplets", "authorization: Bearer \r\n", "HTTP/1.1 401"),
        ("GET /v2/droplets", token, "HTTP/1.1 200"),
        ("GET /v2/droplets?per_page=201", token, "HTTP/1.1 422"),
        ("GET /v2/droplets?name=a&tag_name=b", token, "HTTP/1.1 422"),
        ("GET /v2/nothing", token, "HTTP/1.1 404"),
        ("DELETE /v2/droplets?tag_name=bulkhead-acme", token, "HTTP/1.1 500"),
    ] {
        let answer = send(line, token);
        assert!(answer.starts_with(expected), "{line}: {answer}");
    }
    assert_eq!(fake.deletes_by_tag(), 1);
    assert_eq!(fake.existing(), [(one, name(1))]);
}
