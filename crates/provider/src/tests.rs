//! Every kind of answer, from a server that misbehaves byte by byte.

use super::*;
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

const NAME: &str = "p-t-1.acme.bulkhead";
const TOKEN: &str = "dop_v1_never-to-be-shown";

pub(crate) fn wanted(name: &str) -> Wanted {
    Wanted {
        name: name.into(),
        user_data: UserData::new("#cloud-config\n").unwrap(),
        ssh_keys: vec!["ab:cd".into(), "7".into()],
        region: "fra1".into(),
        size: "s-1vcpu-1gb".into(),
        image: Image::Slug("debian-13-x64".into()),
        network: None,
        tags: vec!["bulkhead-acme".into()],
    }
}

/// What is done with one connection.
enum Does {
    /// Closed before a byte is read.
    HangsUp,
    /// Closed once the request is there.
    Nothing,
    /// Nothing, for as long as the client waits.
    Waits,
    /// These bytes, and then closed.
    Sends(String),
    /// These bytes, and then nothing for as long as the client waits.
    Stalls(String),
}

/// An answer as it should be.
fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn sends(status: u16, body: &str) -> Does {
    Does::Sends(answer(status, "content-type: application/json\r\n", body))
}

struct Server {
    url: String,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<String>>,
}

impl Server {
    /// Takes one connection after another, and then closes each at once.
    fn start(script: Vec<Does>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut requests = Vec::new();
            let mut script = script.into_iter();
            loop {
                let (stream, _) = listener.accept().unwrap();
                if stopped.try_recv().is_ok() {
                    return requests;
                }
                requests.push(serve(stream, script.next().unwrap_or(Does::HangsUp)));
            }
        });
        Self { url, stop, thread }
    }

    /// All requests that came, each as its first line and its body.
    fn requests(self) -> Vec<String> {
        self.stop.send(()).unwrap();
        drop(TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap());
        self.thread.join().unwrap()
    }
}

fn serve(mut stream: TcpStream, does: Does) -> String {
    if matches!(does, Does::HangsUp) {
        return String::new();
    }
    let request = read_request(&mut stream);
    match does {
        Does::Sends(bytes) => stream.write_all(bytes.as_bytes()).unwrap(),
        Does::Stalls(bytes) => {
            stream.write_all(bytes.as_bytes()).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap_or_default();
        }
        Does::Waits => drop(stream.read_to_end(&mut Vec::new())),
        Does::HangsUp | Does::Nothing => {}
    }
    request
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                assert!(
                    head.to_lowercase().contains(&format!("authorization: bearer {TOKEN}").to_lowercase()),
                    "{head}"
                );
                return format!("{}\n{body}", head.lines().next().unwrap());
            }
        }
        match stream.read(&mut buffer).unwrap() {
            0 => return text,
            count => bytes.extend(&buffer[..count]),
        }
    }
}

fn settings(url: &str) -> Settings {
    let mut settings = Settings::new(url, Token::new(TOKEN).unwrap());
    settings.timeout = Duration::from_secs(1);
    settings
}

fn digitalocean(url: &str) -> DigitalOcean {
    DigitalOcean::new(settings(url), &"acme".parse().unwrap()).unwrap()
}

fn hetzner(url: &str) -> Hetzner {
    Hetzner::new(settings(url), "acme".parse().unwrap()).unwrap()
}

fn shown(answer: &Answer<impl fmt::Debug>) -> String {
    let mut text = format!("{answer:?}");
    let mut error: Option<&dyn std::error::Error> = answer.why.as_ref().map(|why| why as _);
    while let Some(cause) = error {
        text = format!("{text}: {cause}");
        error = cause.source();
    }
    text
}

#[track_caller]
fn check_create(make: impl Fn(&str) -> Box<dyn Provider>, script: Vec<Does>, expected: CreateAnswer) {
    let (server, connections) = (Server::start(script), 1);
    let provider = make(&server.url);
    let answer = provider.create(&wanted(NAME));
    assert_eq!(answer.answer, expected, "{}", shown(&answer));
    assert!(!shown(&answer).contains("never-to-be-shown") && !format!("{provider:?}").contains("never-to-be-shown"));
    let posts = server.requests().iter().filter(|request| request.is_empty() || request.starts_with("POST")).count();
    assert_eq!(posts, connections, "a request to create is sent once");
}

fn made(id: u64, name: &str) -> String {
    format!(r#"{{"droplet": {{"id": {id}, "name": "{name}", "new_field": [1]}}, "links": {{}}}}"#)
}

fn error(id: &str, message: &str) -> String {
    format!(r#"{{"id": "{id}", "message": "{message}", "request_id": "4d9d8375"}}"#)
}

#[test]
fn digitalocean_creates() {
    use CreateAnswer::{Forbidden, Made, Quota, RateLimited, Refused, Unclear};
    let make = |url: &str| -> Box<dyn Provider> { Box::new(digitalocean(url)) };
    let whole = answer(202, "", &made(7, NAME));
    let limit = "creating this/these droplet(s) will exceed your droplet limit";
    for (does, expected) in [
        (Does::Sends(whole.clone()), Made(ServerId(7))),
        (sends(201, &made(7, NAME)), Made(ServerId(7))),
        (Does::HangsUp, Unclear),
        (Does::Nothing, Unclear),
        (Does::Waits, Unclear),
        (Does::Stalls("HTTP/1.1 202 Acc".into()), Unclear),
        (Does::Stalls(whole[..whole.len() - 9].into()), Unclear),
        (Does::Sends(whole[..20].into()), Unclear),
        (Does::Sends(whole[..whole.len() - 9].into()), Unclear),
        (Does::Sends("HTTP/1.1 422 No\r\ncontent-length: 900\r\n\r\n{}".into()), Unclear),
        (Does::Sends("HTTP/1.1 202 Accepted\r\ncontent-length: 4\r\n\r\n{\"droplet\": {}}".into()), Unclear),
        (Does::Sends("220 mail.example ESMTP\r\n".into()), Unclear),
        (sends(202, "{}"), Unclear),
        (sends(202, "<html>"), Unclear),
        (sends(202, &made(7, "another")), Unclear),
        (sends(204, ""), Unclear),
        (Does::Sends(answer(307, "location: /v2/droplets\r\n", "")), Unclear),
        (Does::Sends(answer(302, "location: /v2/droplets\r\n", "")), Unclear),
        (sends(500, &error("server_error", "Unexpected")), Unclear),
        (sends(503, ""), Unclear),
        (sends(408, ""), Unclear),
        (sends(401, &error("unauthorized", "Unable to authenticate you")), Forbidden),
        (sends(403, &error("forbidden", "You are not authorized")), Forbidden),
        (sends(403, &error("forbidden", limit)), Quota),
        (sends(422, &error("unprocessable_entity", limit)), Quota),
        (sends(422, &error("unprocessable_entity", "Region is not available")), Refused),
        (sends(422, "<html>"), Refused),
        (sends(404, &error("not_found", "no")), Refused),
        (Does::Sends(answer(429, "retry-after: 7\r\n", "")), RateLimited { retry_after_ms: 7_000 }),
        (Does::Sends(answer(429, "ratelimit-reset: 0\r\n", "")), RateLimited { retry_after_ms: 1_000 }),
        (Does::Sends(answer(429, "", "{")), RateLimited { retry_after_ms: 60_000 }),
    ] {
        check_create(make, vec![does], expected);
    }
}

#[test]
fn hetzner_creates() {
    use CreateAnswer::{Forbidden, Made, Quota, Refused, Unclear};
    let make = |url: &str| -> Box<dyn Provider> { Box::new(hetzner(url)) };
    let said = |code: &str| format!(r#"{{"error": {{"code": "{code}", "message": "m", "details": null}}}}"#);
    let list = |count: u64| {
        let body = format!(
            r#"{{"id": 42, "name": "{NAME}", "created": "2026-01-30T23:55:00+00:00", "status": "running", "public_net": {{"ipv4": {{"ip": "192.0.2.4"}}, "ipv6": {{"ip": "2001:db8::/64"}}}}}}"#
        );
        let servers = if count == 0 { String::new() } else { body };
        format!(r#"{{"servers": [{servers}], "meta": {{"pagination": {{"total_entries": {count}}}}}}}"#)
    };
    let created = format!(r#"{{"server": {{"id": 42, "name": "{NAME}"}}, "action": {{}}, "root_password": null}}"#);
    for (script, expected) in [
        (vec![sends(201, &created)], Made(ServerId(42))),
        (vec![sends(201, &created.replace(NAME, "another"))], Unclear),
        (vec![sends(409, &said("uniqueness_error")), sends(200, &list(1))], Made(ServerId(42))),
        (vec![sends(409, &said("uniqueness_error")), sends(200, &list(0))], Unclear),
        (vec![sends(409, &said("uniqueness_error")), Does::Nothing], Unclear),
        (vec![sends(409, &said("conflict"))], Refused),
        (vec![sends(403, &said("resource_limit_exceeded"))], Quota),
        (vec![sends(403, &said("forbidden"))], Forbidden),
        (vec![sends(422, &said("invalid_input"))], Refused),
        (vec![sends(412, &said("resource_unavailable"))], Refused),
        (vec![sends(503, &said("unavailable"))], Unclear),
        (vec![Does::Nothing], Unclear),
        (vec![Does::Waits], Unclear),
    ] {
        check_create(make, script, expected);
    }

    let server = Server::start(vec![sends(200, &list(1))]);
    let seen = hetzner(&server.url).list().unwrap();
    assert_eq!(seen[0].address(), Some("192.0.2.4".parse().unwrap()));
    assert_eq!(seen[0].v6, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(seen[0].status, Status::Active);
    assert_eq!(
        server.requests(),
        ["GET /v1/servers?label_selector=bulkhead-fleet%3Dacme&page=1&per_page=50 HTTP/1.1\n"]
    );
}

#[test]
fn what_was_not_sent() {
    // A port that nobody listens on any more.
    let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let away = digitalocean(&url);
    let answer = away.create(&wanted(NAME));
    assert_eq!(answer.answer, CreateAnswer::Refused);
    assert!(matches!(answer.why, Some(ProviderError::Unreached { .. })), "{answer:?}");
    assert_eq!(away.delete(ServerId(1), NAME).answer, DeleteAnswer::Busy);
    assert!(matches!(away.list(), Err(ProviderError::Unreached { .. })));

    // Hetzner takes less user data, and numbers for networks.
    let long = Wanted { user_data: UserData::new(&"x".repeat(40_000)).unwrap(), ..wanted(NAME) };
    let named = Wanted { network: Some("default".into()), ..wanted(NAME) };
    for wanted in [long, named] {
        assert_eq!(hetzner(&url).create(&wanted).answer, CreateAnswer::Refused);
    }
    assert!(matches!(UserData::new(&"x".repeat(65_537)), Err(ProviderError::UserData { size_bytes: 65_537, .. })));
    assert_eq!(format!("{:?}", wanted(NAME).user_data), "UserData(14 bytes)");
}

#[test]
fn what_is_not_used() {
    for url in ["http://api.digitalocean.com", "https://api.digitalocean.com/", "api", "", "http://127.0.0.1.example"] {
        let refused = DigitalOcean::new(settings(url), &"acme".parse().unwrap());
        assert!(matches!(refused, Err(ProviderError::Address(_))), "{url}");
    }
    for token in ["", " \n", "a b", "a\r\nx: y", "ä"] {
        assert!(matches!(Token::new(token), Err(ProviderError::Token)), "{token}");
    }
}

#[test]
fn many_at_once() {
    let names: Vec<Arc<str>> = (1..=12).map(|id| format!("p-t-{id}.acme.bulkhead").into()).collect();
    // Of the first ten, the answer lacks the third.
    let droplets: Vec<String> = [1, 2, 4, 5, 6, 7, 8, 9, 10]
        .iter()
        .map(|id| format!(r#"{{"id": {id}00, "name": "p-t-{id}.acme.bulkhead"}}"#))
        .collect();
    let first = format!(r#"{{"droplets": [{}], "links": {{"actions": []}}}}"#, droplets.join(", "));
    let server = Server::start(vec![sends(202, &first), Does::Nothing]);
    let answers: Vec<CreateAnswer> =
        digitalocean(&server.url).create_many(&names, &wanted("")).iter().map(|answer| answer.answer).collect();
    assert_eq!(answers[0], CreateAnswer::Made(ServerId(100)));
    assert_eq!(answers[9], CreateAnswer::Made(ServerId(1000)));
    assert_eq!([answers[2], answers[10], answers[11]], [CreateAnswer::Unclear; 3]);
    assert_eq!(answers.len(), 12);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].contains(r#""names":["p-t-11.acme.bulkhead","p-t-12.acme.bulkhead"]"#), "{}", requests[1]);
    assert!(requests[0].contains(r#""ssh_keys":["ab:cd",7]"#), "{}", requests[0]);
}

fn droplet(id: u64, name: &str) -> String {
    format!(
        r#"{{"id": {id}, "name": "{name}", "created_at": "2026-11-23T10:49:56Z", "status": "active", "networks": {{"v4": [{{"ip_address": "10.0.0.2", "type": "private"}}, {{"ip_address": "192.0.2.7", "type": "public"}}], "v6": []}}}}"#
    )
}

fn page(total: u64, ids: impl IntoIterator<Item = u64>) -> Does {
    let droplets: Vec<String> = ids.into_iter().map(|id| droplet(id, &format!("p-t-{id}.acme.bulkhead"))).collect();
    sends(200, &format!(r#"{{"droplets": [{}], "meta": {{"total": {total}}}, "links": {{}}}}"#, droplets.join(", ")))
}

#[test]
fn lists_are_whole_or_errors() {
    let check = |script: Vec<Does>, expected: Result<u64, &str>| {
        let server = Server::start(script);
        let listed = digitalocean(&server.url).list();
        match (&listed, expected) {
            (Ok(seen), Ok(count)) => assert_eq!(seen.len() as u64, count),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (_, expected) => panic!("{listed:?} is not {expected:?}"),
        }
        server.requests().len()
    };
    assert_eq!(check(vec![page(0, [])], Ok(0)), 1);
    assert_eq!(check(vec![page(201, 1..=200), page(201, [201])], Ok(201)), 2);
    // Another one came while it was read.
    assert_eq!(
        check(vec![page(201, 1..=200), page(202, [201, 202]), page(202, 1..=200), page(202, [201, 202])], Ok(202)),
        4
    );
    // Another one came, and as many were read as the first page said.
    assert_eq!(
        check(vec![page(201, 1..=200), page(202, [202]), page(202, 1..=200), page(202, [201, 202])], Ok(202)),
        4
    );
    // One went and one came, and the totals agree.
    assert_eq!(check(vec![page(202, 1..=200), page(202, [202]), page(202, 1..=200), page(202, 201..=202)], Ok(202)), 4);
    assert_eq!(check(vec![page(201, 1..=200), page(201, [200]), page(201, 1..=200), page(201, [201])], Ok(201)), 4);
    assert_eq!(
        check(vec![page(3, [1, 2]), page(3, [1, 2]), page(3, [2, 2, 1])], Err("changed while it was read, 3")),
        3
    );
    assert_eq!(check(vec![page(201, 1..=200), Does::Nothing], Err("was not answered whole")), 2);
    assert_eq!(check(vec![page(u64::MAX, [1])], Err("is not believed")), 1);
    assert_eq!(check(vec![sends(200, "{\"meta\": {\"total\": 0}}")], Err("cannot be read")), 1);
    assert_eq!(check(vec![sends(500, "")], Err("was answered 500")), 1);

    // Other people's machines are not listed.
    let mixed = [droplet(1, NAME), droplet(2, "p-t-1.other.bulkhead"), droplet(3, "www")].join(", ");
    let server = Server::start(vec![sends(200, &format!(r#"{{"droplets": [{mixed}], "meta": {{"total": 3}}}}"#))]);
    let seen = digitalocean(&server.url).list().unwrap();
    let [one] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((one.id, &*one.name, one.created), (ServerId(1), NAME, Time(1_795_430_996_000)));
    assert_eq!(one.address(), Some("192.0.2.7".parse().unwrap()));
}

#[test]
fn deletions() {
    use DeleteAnswer::{Absent, Accepted, Busy, Forbidden, RateLimited, Renamed, Unclear};
    let shown_as = |name: &str| sends(200, &format!(r#"{{"droplet": {}}}"#, droplet(7, name)));
    let there = || shown_as(NAME);
    let not_found = || sends(404, &error("not_found", "The resource you were accessing could not be found."));
    let pending = error("unprocessable_entity", "Droplet already has a pending event.");
    for (script, expected) in [
        (vec![there(), sends(204, "")], Accepted),
        (vec![not_found()], Absent),
        (vec![there(), not_found()], Absent),
        (vec![shown_as("another")], Renamed),
        (vec![there(), sends(422, &pending)], Busy),
        (vec![there(), Does::Nothing], Unclear),
        (vec![there(), Does::Waits], Unclear),
        (vec![there(), sends(500, "")], Unclear),
        (vec![there(), sends(403, "")], Forbidden),
        (vec![there(), Does::Sends(answer(429, "retry-after: 3\r\n", ""))], RateLimited { retry_after_ms: 3_000 }),
        (vec![sends(401, "")], Forbidden),
        // Nothing was deleted: it could not be read.
        (vec![Does::Nothing], Busy),
        (vec![sends(502, "")], Busy),
        (vec![sends(200, "{}")], Busy),
    ] {
        let most = script.len();
        let server = Server::start(script);
        let answer = digitalocean(&server.url).delete(ServerId(7), NAME);
        assert_eq!(answer.answer, expected, "{}", shown(&answer));
        let requests = server.requests();
        assert_eq!(requests.len(), most, "{requests:?}");
        assert!(requests[0].starts_with("GET /v2/droplets/7 "));
        assert!(requests[1..].iter().all(|request| request.starts_with("DELETE /v2/droplets/7 ")), "{requests:?}");
    }
    // An answer about another machine is none.
    let server = Server::start(vec![there()]);
    let answer = digitalocean(&server.url).delete(ServerId(8), NAME);
    assert!(matches!(answer, Answer { answer: Busy, why: Some(ProviderError::Astray { .. }) }), "{answer:?}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn limits_are_kept() {
    // The provider says that this was the last for a while: the next is not sent.
    let reset = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 100;
    let headers = format!("ratelimit-limit: 5000\r\nratelimit-remaining: 0\r\nratelimit-reset: {reset}\r\n");
    let server = Server::start(vec![Does::Sends(answer(202, &headers, &made(7, NAME)))]);
    let provider = digitalocean(&server.url);
    assert_eq!(provider.create(&wanted(NAME)).answer, CreateAnswer::Made(ServerId(7)));
    let second = provider.create(&wanted(NAME)).answer;
    assert!(matches!(second, CreateAnswer::RateLimited { retry_after_ms: 90_000..=100_000 }), "{second:?}");
    assert!(matches!(provider.delete(ServerId(7), NAME).answer, DeleteAnswer::RateLimited { .. }));
    assert!(matches!(provider.list(), Err(ProviderError::RateLimited { .. })));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn prices_are_exact() {
    let size = |price: &str| {
        format!(
            r#"{{"sizes": [{{"slug": "s", "price_hourly": {price}, "price_monthly": 5.0, "memory": 1024, "vcpus": 1, "disk": 25, "available": true, "regions": ["fra1"], "transfer": 1.0}}], "meta": {{"total": 1}}}}"#
        )
    };
    let server = Server::start(vec![sends(200, &size("0.00743999984115362")), sends(200, &size("\"4\""))]);
    let provider = digitalocean(&server.url);
    assert_eq!(provider.sizes().unwrap()[0].per_hour, bulkhead_scale::Micros(7_440));
    assert!(matches!(provider.sizes(), Err(ProviderError::Price { size, .. }) if size == "s"));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn what_an_error_says() {
    let server = Server::start(vec![sends(422, &error("unprocessable_entity", "no\\u001b[2Jne"))]);
    let answer = digitalocean(&server.url).create(&wanted(NAME));
    assert_eq!(
        answer.why.unwrap().to_string(),
        "POST /v2/droplets was answered 422, unprocessable_entity: no[2Jne (request 4d9d8375)"
    );
    drop(server.requests());
}
