use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time;

use super::serve::{IDLE_TIMEOUT, MAX_MESSAGES_PER_PLACE};
use super::session::{Fault, HOLD, Session};
use super::*;
use crate::carrier::{Intake, Streams};
use crate::clock::Clock;
use crate::connect::Connector;
use crate::relay::{Caps, Legs};
use crate::socket::{Pipe, pipe};

const PORTION_BYTES: usize = 1_000;

/// A session, and the end of its connection that is the server's.
fn session() -> (Arc<Session>, Pipe) {
    let (near, far) = pipe((Ipv4Addr::LOCALHOST, 1).into(), PORTION_BYTES);
    (Arc::new(Session::new(far.into(), PORTION_BYTES)), near)
}

fn portion(follows: Follows, bytes: &'static [u8]) -> Portion {
    Portion { follows, bytes: Bytes::from_static(bytes) }
}

fn more(bytes: &'static [u8]) -> Portion {
    portion(Follows::More, bytes)
}

/// Rule 6.113: the form of bodies.
#[test]
fn bodies_have_the_form_that_the_rule_gives_them() {
    let place = Place { name: Name([7; NAME_SIZE]), offset: 258 };
    let mut body = BytesMut::new();
    place.write(&mut body);
    portion(Follows::Nothing, b"end").write(&mut body);
    assert_eq!(&body[..], [&[7; 16][..], &[0, 0, 0, 0, 0, 0, 1, 2, 1], b"end"].concat());
    let (read, rest) = Place::split(body.freeze()).unwrap();
    assert_eq!((read, Portion::read(rest)), (place, Some(portion(Follows::Nothing, b"end"))));
    assert!(Place::split(Bytes::from_static(&[7; 23])).is_none());
    assert_eq!(Portion::read(Bytes::new()), None);
    assert_eq!(Portion::read(Bytes::from_static(&[3])), None, "a page for browsers, or a later version");
}

/// Rule 6.113: whoever has heard no answer asks again.
#[tokio::test]
async fn what_is_brought_twice_arrives_once() {
    let (session, mut near) = session();
    assert_eq!(session.take(0, more(b"abcd")).await, Ok(4));
    assert_eq!(session.take(0, more(b"abcd")).await, Ok(4));
    assert_eq!(session.take(2, more(b"cdef")).await, Ok(6));
    assert_eq!(session.take(7, more(b"h")).await, Err(Fault::Gap));
    assert_eq!(session.take(6, portion(Follows::Nothing, b"g")).await, Ok(7));
    let mut read = String::new();
    near.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "abcdefg");
}

/// Rule 6.113.
#[tokio::test]
async fn what_is_fetched_is_kept_until_it_has_come() {
    let (session, mut near) = session();
    near.write_all(b"abcd").await.unwrap();
    for _ in 0..2 {
        assert_eq!(session.give(0).await, Ok(more(b"abcd")));
    }
    near.write_all(b"ef").await.unwrap();
    assert_eq!(session.give(4).await, Ok(more(b"ef")));
    assert_eq!(session.give(0).await, Err(Fault::Gap), "that was confirmed");
    assert_eq!(session.give(5).await, Err(Fault::Gap));
    drop(near);
    assert!(!session.is_over());
    assert_eq!(session.give(6).await, Ok(portion(Follows::Nothing, b"")));
    assert_eq!(session.take(0, more(b"x")).await, Err(Fault::Gone));
    assert!(session.is_over());
}

/// Rule 6.113: proxies wait for half a minute.
#[tokio::test(start_paused = true)]
async fn a_request_is_answered_after_a_while_although_there_is_nothing_or_no_room() {
    let (session, mut near) = session();
    let began_at = time::Instant::now();
    assert_eq!(session.give(0).await, Ok(more(b"")));
    assert!(began_at.elapsed() >= HOLD);
    let brought = more(&[7; PORTION_BYTES + 10]);
    assert_eq!(session.take(0, brought.clone()).await, Ok(PORTION_BYTES as u64));
    let mut read = [0; PORTION_BYTES + 10];
    near.read_exact(&mut read[..PORTION_BYTES]).await.unwrap();
    assert_eq!(session.take(0, brought).await, Ok(PORTION_BYTES as u64 + 10));
}

#[tokio::test]
async fn whoever_asks_anew_need_not_wait_for_the_earlier_request() {
    let (session, mut near) = session();
    let earlier = tokio::spawn({
        let session = Arc::clone(&session);
        async move { session.give(0).await }
    });
    tokio::task::yield_now().await;
    let later = tokio::spawn(async move { session.give(0).await });
    assert_eq!(earlier.await.unwrap(), Ok(more(b"")));
    near.write_all(b"ab").await.unwrap();
    assert_eq!(later.await.unwrap(), Ok(more(b"ab")));
}

/// Rule 6.113.
#[tokio::test]
async fn a_break_is_told_from_an_end() {
    let (session, mut near) = session();
    assert_eq!(session.take(0, more(b"ab")).await, Ok(2));
    assert_eq!(session.take(0, portion(Follows::Break, b"")).await, Ok(2));
    assert!(session.is_over());
    assert!(near.read_to_end(&mut Vec::new()).await.is_err());
}

/// Rule 6.113.
#[tokio::test(start_paused = true)]
async fn one_place_has_its_share_of_sessions_and_loses_those_of_which_nothing_is_asked() {
    let (streams, _news) = Streams::new(Connector::default());
    let (legs, _leg_news) = Legs::new(Caps::default(), Clock::new());
    let intake = Intake::new(streams, legs);
    let open = || intake.clone().open(Content::Messages, ([192, 0, 2, 1], 40_000).into()).status();
    for _ in 0..MAX_MESSAGES_PER_PLACE {
        assert_eq!(open(), StatusCode::OK);
    }
    assert_eq!(open(), StatusCode::SERVICE_UNAVAILABLE);
    let elsewhere = intake.clone().open(Content::Messages, ([192, 0, 2, 2], 40_000).into());
    assert_eq!(elsewhere.status(), StatusCode::OK);
    tokio::task::yield_now().await;
    time::advance(IDLE_TIMEOUT * 2).await;
    // Each session has a task, which sees to its end when it is its turn.
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    assert_eq!(open(), StatusCode::OK);
}
