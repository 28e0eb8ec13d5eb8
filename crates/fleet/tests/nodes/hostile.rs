//! Nodes that answer anything but what they should.

use bulkhead_fleet::{Conversation, NodeError};
use bulkhead_wire::{Done, Event, Kind, write_frame};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A node that has said this and says no more; `ends` hangs up.
async fn node(said: &[u8], ends: bool) -> Conversation {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let said = said.to_vec();
    tokio::spawn(async move {
        far.write_all(&said).await.ok();
        if ends {
            far.shutdown().await.ok();
        }
        tokio::io::copy(&mut far, &mut tokio::io::sink()).await
    });
    let (reader, writer) = tokio::io::split(near);
    Conversation::over("n", reader, writer, Duration::from_millis(200))
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, kind, payload).unwrap();
    bytes
}

#[tokio::test]
async fn every_bad_answer_is_an_error() {
    let message = |text: &str| frame(Kind::Message, text.as_bytes());
    let huge = [&u32::MAX.to_le_bytes()[..], &[1]].concat();
    let claims = [&(4u32 << 20).to_le_bytes()[..], &[1], b"{"].concat();
    for (said, ends, expected) in [
        (huge, false, "broke"),
        (vec![1, 0, 0, 0, 9], false, "broke"),
        (vec![0, 0, 0, 0, 2, 1], false, "broke"),
        (claims.clone(), true, "broke"),
        (claims, false, "broke"),
        (vec![1, 0], true, "broke"),
        (vec![], false, "broke"),
        (message("[[[[[[[["), false, "broke"),
        (message(&"[".repeat(1 << 20)), false, "broke"),
        (message("{\"event\":\"later\"}"), false, "broke"),
        (frame(Kind::Data, b"x"), false, "not announced"),
        (frame(Kind::End, b""), false, "not announced"),
    ] {
        let error = node(&said, ends).await.next_event().await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(node(&[], true).await.next_event().await.unwrap().is_none());
    assert!(matches!(node(&[], true).await.next_data().await, Err(NodeError::Ended { .. })));
    let done = message(r#"{"event":"done","release":null,"order":null}"#);
    assert!(matches!(node(&done, false).await.next_data().await, Err(NodeError::Unexpected { .. })));
}

#[tokio::test]
async fn a_final_answer_ends_the_sending() {
    let done = serde_json::to_vec(&Event::Done(Done::default())).unwrap();
    let mut conversation = node(&frame(Kind::Message, &done), false).await;
    let sent = conversation.send_stream(tokio::io::repeat(1).take(1 << 40)).await.unwrap();
    assert!(sent < 1 << 30);
    assert_eq!(conversation.next_event().await.unwrap(), Some(Event::Done(Done::default())));
}

#[tokio::test]
async fn a_node_that_reads_nothing_does_not_hold_the_sender() {
    let (near, _far) = tokio::io::duplex(1 << 10);
    let (reader, writer) = tokio::io::split(near);
    let mut conversation = Conversation::over("n", reader, writer, Duration::from_millis(100));
    let error = conversation.send_stream(tokio::io::repeat(1).take(1 << 30)).await.unwrap_err();
    assert!(error.to_string().contains("broke"), "{error}");
}

#[tokio::test]
async fn a_node_that_talks_while_it_is_talked_to_fills_no_memory() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let piece = frame(Kind::Data, &vec![0; 200_000]);
    let talking = tokio::spawn(async move {
        let mut written = 0u64;
        while tokio::time::timeout(Duration::from_millis(150), far.write_all(&piece)).await.is_ok_and(|r| r.is_ok()) {
            written += piece.len() as u64;
        }
        written
    });
    let (reader, writer) = tokio::io::split(near);
    let mut conversation = Conversation::over("n", reader, writer, Duration::from_secs(2));
    assert!(conversation.send_stream(tokio::io::repeat(1).take(1 << 30)).await.is_err());
    assert!(talking.await.unwrap() < 16 << 20);
}

#[test]
fn what_reaches_a_terminal() {
    for (text, shown) in [
        ("plain äöü 漢字\t.", "plain äöü 漢字\t."),
        ("\u{1b}[2Jx\u{7}\u{0}", "^[[2Jx^G^@"),
        ("a\r\nb", "a\\r\\nb"),
        ("\u{9b}31m\u{202e}\u{2066}\u{200b}\u{feff}", "\\u{9b}31m\\u{202e}\\u{2066}\\u{200b}\\u{feff}"),
        ("\u{7f}", "^?"),
    ] {
        assert_eq!(bulkhead_fleet::printable(text), shown);
    }
    assert_eq!(bulkhead_fleet::client::printable_lines("a\r\nb\u{1b}\n"), "a\nb^[\n");
}
