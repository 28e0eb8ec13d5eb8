//! Connections and channels.

use crate::{Agent, Sshd, make_key, program, timeouts};
use bulkhead_core::fleet::FleetNode;
use bulkhead_fleet::{ConnectError, Timeouts, connect};
use std::{
    fs,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn several_channels_at_once() {
    let Some(sshd) = Sshd::start("cat; echo trouble >&2; exit 7") else { return };
    let connection = connect(&sshd.target(), &sshd.identities(), timeouts()).await.unwrap();
    let talk = |n: u8| {
        let connection = connection.clone();
        async move {
            let mut channel = connection.open("anything").await.unwrap();
            let sent = vec![n; 3_000_000];
            let writing = async {
                channel.writer.write_all(&sent).await.unwrap();
                channel.writer.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let (_, read) = tokio::join!(writing, channel.reader.read_to_end(&mut received));
            read.unwrap();
            assert!(received == sent);
            let ending = channel.reader.ending();
            assert_eq!((ending.exit_status, ending.stderr.as_str()), (Some(7), "trouble\n"));
        }
    };
    tokio::join!(talk(1), talk(2), talk(3));
    let (sent, received) = connection.traffic();
    assert!(sent > 9_000_000 && received > 9_000_000);
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_ends_early_breaks_its_writer() {
    let Some(sshd) = Sshd::start("true") else { return };
    let connection = connect(&sshd.target(), &sshd.identities(), timeouts()).await.unwrap();
    let channel = connection.open("anything").await.unwrap();
    let mut talk = bulkhead_fleet::Conversation::over("n", channel.reader, channel.writer, Duration::from_secs(20));
    // Far more than any window: it must end because the channel did, not because all was sent.
    let sent = talk.send_stream(tokio::io::repeat(7).take(1 << 40)).await.unwrap_or_default();
    assert!(sent < 1 << 30);
    assert!(talk.next_event().await.is_ok_and(|event| event.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn host_keys() {
    let Some(sshd) = Sshd::start("cat") else { return };
    make_key(&sshd.path("other"), "");
    let other = fs::read_to_string(sshd.path("other.pub")).unwrap();
    let place = format!("[127.0.0.1]:{}", sshd.port);
    let pinned = FleetNode { host_key: Some(other.clone()), ..sshd.fleet_node() };
    let error = connect(&sshd.target_with("n", &pinned, ""), &sshd.identities(), timeouts()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::HostKeyChanged { expected, shown, .. } if expected != shown), "{error}");
    let unpinned = FleetNode { host_key: None, ..sshd.fleet_node() };
    let known = sshd.path("known");
    let config = format!("UserKnownHostsFile {}\nGlobalKnownHostsFile none", known.display());
    for (lines, expected) in [
        (String::new(), "not known"),
        (format!("{place} {}", sshd.host_key()), ""),
        (format!("{place} {}{place} {other}", sshd.host_key()), ""),
        (format!("{place} {other}"), "HAS CHANGED"),
        (format!("{place} {}@revoked {place} {}", sshd.host_key(), sshd.host_key()), "revoked"),
        (format!("{place} ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ=="), "unsupported types"),
    ] {
        fs::write(&known, &lines).unwrap();
        let target = sshd.target_with("n", &unpinned, &config);
        let result = connect(&target, &sshd.identities(), timeouts()).await;
        match (result, expected) {
            (Ok(_), "") => {}
            (Err(error), expected) if !expected.is_empty() => {
                assert!(error.to_string().contains(expected), "{error}");
                if expected == "not known" {
                    assert!(error.to_string().contains(sshd.host_key().split(' ').nth(1).unwrap()), "{error}");
                }
            }
            (result, _) => panic!("{lines}: {result:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_tried_two_to_a_connection() {
    let Some(sshd) = Sshd::start("cat") else { return };
    for name in ["w1", "w2", "w3"] {
        make_key(&sshd.path(name), "");
    }
    let wrong = ["w1", "w2", "w3"].iter().fold(sshd.no_identities(), |all, name| all.with_file(sshd.path(name)));
    let error = connect(&sshd.target(), &wrong, timeouts()).await.unwrap_err();
    let ConnectError::Authentication { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 3);
    // The right one comes fourth, so on the second connection.
    connect(&sshd.target(), &wrong.with_file(sshd.path("user")), timeouts()).await.unwrap();
    let none = connect(&sshd.target(), &sshd.no_identities(), timeouts()).await.unwrap_err();
    assert!(matches!(none, ConnectError::NoKeys { .. }), "{none}");
    let missing = sshd.no_identities().with_file(sshd.path("missing"));
    let missing = connect(&sshd.target(), &missing, timeouts()).await.unwrap_err();
    assert!(matches!(missing, ConnectError::Identity { .. }), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wanted_key_goes_first() {
    let Some(sshd) = Sshd::start("cat") else { return };
    make_key(&sshd.path("wrong"), "");
    let Some(agent) = Agent::start(&[sshd.path("wrong"), sshd.path("user")]) else { return };
    let wanted = fs::read_to_string(sshd.path("user.pub")).unwrap();
    let mut identities = sshd.no_identities().preferring([wanted.as_str()]);
    identities.agent = Some(agent.address());
    let connection = connect(&sshd.target(), &identities, timeouts()).await.unwrap();
    assert!(connection.key().contains("ssh-agent"), "{}", connection.key());
    // `IdentitiesOnly` with the public half alone: the agent signs, and its other keys are not shown.
    fs::rename(sshd.path("user.pub"), sshd.path("public.pub")).unwrap();
    let config = format!("IdentitiesOnly yes\nIdentityFile {}", sshd.path("public").display());
    identities.preferred.clear();
    connect(&sshd.target_with("n", &sshd.fleet_node(), &config), &identities, timeouts()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_is_asked_for_once() {
    let Some(sshd) = Sshd::start("cat") else { return };
    make_key(&sshd.path("secret"), "open sesame");
    fs::copy(sshd.path("secret.pub"), sshd.path("authorized")).unwrap();
    let identities = sshd.no_identities().with_file(sshd.path("secret"));
    let refused = connect(&sshd.target(), &identities, timeouts()).await.unwrap_err();
    assert!(refused.to_string().contains("passphrase"), "{refused}");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let identities = identities.asking(Arc::new(move |_| {
        // The first answer is wrong.
        let answers = ["sesame", "open sesame"];
        answers.get(count.fetch_add(1, Ordering::Relaxed)).map(|text| (*text).to_owned())
    }));
    let target = sshd.target();
    let (one, two) =
        tokio::join!(connect(&target, &identities, timeouts()), connect(&target, &identities, timeouts()),);
    one.unwrap();
    two.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_do_not_answer() {
    let Some(sshd) = Sshd::start("cat") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = FleetNode { port: Some(listener.local_addr().unwrap().port()), ..sshd.fleet_node() };
    let short = Timeouts { connect: Duration::from_millis(300), ..timeouts() };
    let error = connect(&sshd.target_with("n", &silent, ""), &sshd.identities(), short).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    drop(listener);
    let error = connect(&sshd.target_with("n", &silent, ""), &sshd.identities(), short).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    let chatty = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = FleetNode { port: Some(chatty.local_addr().unwrap().port()), ..sshd.fleet_node() };
    let answering = std::thread::spawn(move || {
        use std::io::Write as _;
        chatty.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = connect(&sshd.target_with("n", &http, ""), &sshd.identities(), timeouts()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");
    answering.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_jump_host_and_a_proxy_command() {
    let Some(sshd) = Sshd::start("cat") else { return };
    let known = sshd.path("known");
    fs::write(&known, format!("jump {}", sshd.host_key())).unwrap();
    let config = format!(
        "ProxyJump jump\nHost jump\nHostName 127.0.0.1\nHostKeyAlias jump\nPort {}\nProxyJump none\nUserKnownHostsFile {}",
        sshd.port,
        known.display()
    );
    let config = format!("Host 127.0.0.1\n{config}");
    let target = sshd.target_with("n", &sshd.fleet_node(), &config);
    assert_eq!(target.via.len(), 1);
    let connection = connect(&target, &sshd.identities(), timeouts()).await.unwrap();
    let mut channel = connection.open("x").await.unwrap();
    channel.writer.write_all(b"through").await.unwrap();
    channel.writer.shutdown().await.unwrap();
    let mut text = String::new();
    channel.reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through");

    let inetd =
        format!("ProxyCommand {} -i -f {}", program("sshd").unwrap().display(), sshd.path("sshd_config").display());
    let target = sshd.target_with("n", &sshd.fleet_node(), &inetd);
    connect(&target, &sshd.identities(), timeouts()).await.unwrap();
    let target = sshd.target_with("n", &sshd.fleet_node(), "ProxyCommand false");
    assert!(connect(&target, &sshd.identities(), timeouts()).await.is_err());
}
