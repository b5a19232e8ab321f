//! Bundles at both ends of links that can be slow, silent and lost, in virtual time.

use bytes::{BufMut as _, BytesMut};
use peerage_wire::id::{DeviceId, Domain, SessionId};

use super::*;
use crate::link::CONSENT_TCP;
use crate::session::{Budget, End, Read, WINDOW_MAX};

#[test]
fn a_session_goes_to_the_best_link_and_back_again_and_no_byte_is_lost() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Relayed);
    let key = world.open();
    for turn in 0..20 {
        world.transfer(key, 3_000);
        let relayed = world.link_in_use(key);
        assert_eq!(world.ends[0].path(relayed), Some(PathKind::Relayed));
        let direct = world.link(Purpose::Shared, PathKind::Direct);
        // The new carrier first, then the old one drains.
        world.transfer(key, 3_000);
        assert_eq!(world.link_in_use(key), direct, "turn {turn}");
        assert_eq!(world.ends[0].streams(relayed), 0);
        world.lose(direct);
        world.transfer(key, 3_000);
        assert_eq!(world.link_in_use(key), relayed);
    }
    let stats = world.ends[0].session(key).unwrap().stats();
    assert_eq!((stats.written_bytes, stats.acked_bytes), (180_000, 180_000));
}

/// Rule 7.30: tunnels need not wait for the peer's first word, and go elsewhere once it is doubted that there will be one.
#[test]
fn a_link_is_of_use_before_the_peer_has_said_anything_on_it() {
    let mut world = World::new();
    let (purpose, path, side) = (Purpose::Shared, PathKind::Direct, Side::Client);
    let standing = Standing { side, purpose, path, consent_interval: CONSENT_TCP };
    let end = &mut world.ends[0];
    let link = end.add_link(standing, world.now);
    assert_eq!((end.poll_event(), end.is_up(link)), (Some(Event::Usable), false));
    assert_eq!(end.best_link(), Some(link));
    end.doubt(link, world.now);
    let events: Vec<_> = std::iter::from_fn(|| end.poll_event()).collect();
    assert_eq!((events, end.best_link()), (vec![Event::Silent(link), Event::Unusable], None));
}

#[test]
fn a_planned_move_sends_nothing_twice() {
    let mut world = World::new();
    let old = world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    world.transfer(key, 50_000);
    world.ends[0].replace(old, world.now);
    let dial = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!((dial.purpose, dial.failures), (Purpose::Shared, 0));
    let new = world.link(Purpose::Shared, PathKind::Direct);
    world.transfer(key, 50_000);
    assert_eq!(world.link_in_use(key), new);
    assert_eq!(world.ends[0].session(key).unwrap().stats().resent_bytes, 0);
    assert_eq!(world.ends[0].poll_dial(world.now), None);
    // The old one is kept for a while, and then closed.
    world.pass(Duration::from_secs(70));
    assert_eq!(world.ends[0].links(), 1);
}

/// Rules 7.23 and 7.26
#[test]
fn a_session_without_a_link_lives_twenty_minutes_and_is_dialled_for_ever_more_rarely() {
    let mut world = World::new();
    let first = world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    world.transfer(key, 1_000);
    world.pass(Duration::from_secs(10));
    world.lose(first);
    let lost_at = world.now;
    let mut pauses: Vec<Duration> = Vec::new();
    let mut last = None;
    while world.now - lost_at < Duration::from_secs(19 * 60) {
        if let Some(dial) = world.ends[0].poll_dial(world.now) {
            last.replace(world.now).inspect(|before| pauses.push(world.now - *before));
            world.ends[0].dial_failed(dial, world.now);
        }
        world.step();
    }
    assert!(pauses[0] < Duration::from_secs(1), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(19)));
    assert!(pauses.len() < 200, "{}", pauses.len());
    assert!(*pauses.last().unwrap() >= Duration::from_secs(15));
    // Networks that change are tried at once.
    world.ends[0].retry(world.now);
    assert!(world.ends[0].poll_dial(world.now).is_some());
    world.link(Purpose::Shared, PathKind::Direct);
    world.transfer(key, 1_000);
    // Without a link for longer, it ends, at both ends.
    let second = world.link_in_use(key);
    world.lose(second);
    world.pass(session::CARRIERLESS_LIFETIME + Duration::from_secs(1));
    assert_eq!(world.ends[0].session(key).unwrap().state(), State::Ended(End::Expired));
    assert_eq!(world.ends[1].session(world.accepted).unwrap().state(), State::Ended(End::Expired));
}

/// Rule 7.26: quickly at first, and as rarely as it is dialled later.
#[test]
fn a_peer_that_is_lost_is_looked_for_within_a_second_again_and_later_ever_more_rarely() {
    let mut world = World::new();
    let first = world.link(Purpose::Shared, PathKind::Relayed);
    let key = world.open();
    world.transfer(key, 1_000);
    world.pass(Duration::from_secs(10));
    assert!(!world.ends[0].poll_seek(world.now), "nothing is missing");
    world.lose(first);
    let lost_at = world.now;
    let mut seeks: Vec<Duration> = Vec::new();
    while world.now - lost_at < Duration::from_secs(600) {
        if world.ends[0].poll_seek(world.now) {
            seeks.push(world.now - lost_at);
        }
        world.step();
    }
    let pauses: Vec<_> = seeks.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect();
    assert_eq!(seeks[0], Duration::ZERO);
    assert!(pauses.iter().take(3).all(|(_, pause)| *pause < Duration::from_millis(600)), "{pauses:?}");
    let early = pauses.iter().filter(|(at, _)| *at < Duration::from_secs(14));
    assert!(early.clone().all(|(_, pause)| *pause <= Duration::from_millis(1_350)), "{pauses:?}");
    assert!((10..25).contains(&early.count()), "{pauses:?}");
    assert!(seeks.len() < 110, "{}", seeks.len());
    // After it was of use again, the next outage is a new one.
    let second = world.link(Purpose::Shared, PathKind::Relayed);
    world.transfer(key, 1_000);
    world.pass(Duration::from_secs(10));
    world.lose(second);
    assert!(world.ends[0].poll_seek(world.now));
}

#[test]
fn a_peer_that_closes_every_link_is_not_dialled_without_a_pause() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Direct);
    world.open();
    let mut dials = 0;
    let began_at = world.now;
    while world.now - began_at < Duration::from_secs(10) {
        let standing = world.ends[1].links.keys().copied().collect::<Vec<_>>();
        for link in standing {
            world.ends[1].close(link, world.now);
        }
        world.settle();
        if world.ends[0].poll_dial(world.now).is_some() {
            dials += 1;
            world.link(Purpose::Shared, PathKind::Direct);
        }
        world.step();
    }
    assert!((5..=25).contains(&dials), "{dials}");
}

#[test]
fn a_silent_link_is_replaced_after_three_seconds_and_a_false_alarm_costs_bytes_only() {
    let mut world = World::new();
    let first = world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    world.transfer(key, 1_000);
    world.silent.insert(first);
    world.write(0, key, 20_000);
    let silent_at = world.now;
    let dial = loop {
        match world.ends[0].poll_dial(world.now) {
            Some(dial) => break dial,
            None => world.step(),
        }
    };
    assert!(world.now - silent_at <= Duration::from_millis(3_100), "{:?}", world.now - silent_at);
    assert_eq!(dial.purpose, Purpose::Shared);
    let second = world.link(Purpose::Shared, PathKind::Direct);
    world.settle();
    assert_eq!(world.link_in_use(key), second);
    // It was slow and not dead: what it still brings is there already.
    world.silent.clear();
    world.settle();
    assert_eq!(world.read(1, world.pairs[&key]), 20_000);
    world.transfer(key, 1_000);
    assert_eq!(world.ends[0].session(key).unwrap().state(), State::Open);
}

/// Rule 7.11: as a camera's, whose pictures all go one way.
#[test]
fn a_path_cut_without_a_word_is_left_although_only_the_peer_sends() {
    let mut world = World::new();
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    world.transfer(key, 1_000);
    world.pass(Duration::from_secs(60));
    let (mut written, mut read, mut dialled_after) = (0, 0, None);
    for picture in 0..200_u32 {
        if picture == 100 {
            world.silent.insert(direct);
        }
        world.write(1, key, 300);
        written += 300;
        world.step();
        if world.ends[0].poll_dial(world.now).is_some_and(|dial| dial.is_awaited) {
            dialled_after = Some(picture - 100);
            world.link(Purpose::Shared, PathKind::Relayed);
        }
        read += world.read(0, key);
        world.settle();
    }
    assert!(dialled_after.is_some_and(|steps| steps <= 31), "{dialled_after:?} tenths of a second");
    read += world.read(0, key);
    assert_eq!(read, written);
}

/// Rule 7.11: the shared link has nothing to say meanwhile, and is as dead as the own one.
#[test]
fn what_ends_one_path_silently_is_asked_of_the_others_before_they_are_used() {
    for shared_is_dead in [false, true] {
        let mut world = World::new();
        let relayed = world.link(Purpose::Shared, PathKind::Relayed);
        let key = world.open();
        let shared = world.link(Purpose::Shared, PathKind::Direct);
        world.transfer(key, 300_000);
        let own = world.link(Purpose::Own(key), PathKind::Direct);
        world.transfer(key, 1_000);
        assert_eq!(world.link_in_use(key), own);
        world.pass(Duration::from_secs(5));
        world.silent.insert(own);
        if shared_is_dead {
            world.silent.insert(shared);
        }
        world.write(1, key, 300);
        world.pass(Duration::from_millis(3_100));
        assert_eq!(world.link_in_use(key), if shared_is_dead { relayed } else { shared });
        world.settle();
        assert_eq!(world.read(0, key), 300);
    }
}

/// Rule 7.20: what the peer sends again may arrive seconds before what this side does.
#[test]
fn a_session_returns_to_a_link_that_was_silent_when_that_works_in_both_directions() {
    let mut world = World::new();
    let relayed = world.link(Purpose::Shared, PathKind::Relayed);
    let key = world.open();
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    world.transfer(key, 1_000);
    world.silent.insert(direct);
    world.write(1, key, 300);
    world.pass(Duration::from_millis(3_100));
    assert_eq!((world.link_in_use(key), world.read(0, key)), (relayed, 300));
    world.silent.clear();
    world.deaf.insert((direct, 1));
    world.settle();
    assert!(world.ends[0].links[&direct].is_healthy(), "bytes come from there");
    world.transfer(key, 1_000);
    assert_eq!(world.link_in_use(key), relayed);
    world.deaf.clear();
    world.settle();
    world.transfer(key, 1_000);
    assert_eq!(world.link_in_use(key), direct);
}

/// Rule 7.19: the acceptor has moved, and nothing of that arrives.
#[test]
fn a_move_whose_path_dies_before_its_answer_comes_is_taken_back_by_another_one() {
    for end in [0, 1] {
        let mut world = World::new();
        let relayed = world.link(Purpose::Shared, PathKind::Relayed);
        let key = world.open();
        world.transfer(key, 1_000);
        // Either the answer does not arrive, or RESUME itself does not.
        world.deaf.insert((LinkId(relayed.0 + 1), end));
        let direct = world.link(Purpose::Shared, PathKind::Direct);
        assert_eq!(world.link_in_use(key), direct);
        world.silent.insert(direct);
        let (mut written, mut read) = (0, 0);
        // More than the acceptor may send without being told that there is room.
        for _step in 0..36 {
            world.write(1, key, 3_000);
            written += 3_000;
            world.step();
            read += world.read(0, key);
            world.settle();
        }
        assert_eq!((world.link_in_use(key), read), (relayed, written), "deaf: {end}");
        world.transfer(key, 1_000);
    }
}

#[test]
fn flapping_beyond_the_limit_of_carriers_gives_the_oldest_up() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    for _flap in 0..10 {
        // Each falls silent, without an end, while the ones before are still in doubt.
        let in_use = world.link_in_use(key);
        world.silent.insert(in_use);
        world.ends[0].doubt(in_use, world.now);
        assert!(world.ends[0].poll_dial(world.now).is_some() || world.ends[0].redial.due_at().is_some());
        world.link(Purpose::Shared, PathKind::Direct);
        world.transfer(key, 2_000);
        world.pass(Duration::from_secs(1));
    }
}

#[test]
fn a_relayed_link_that_comes_after_a_direct_one_is_closed_when_nobody_fell_back_on_it() {
    let mut world = World::new();
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    world.link(Purpose::Shared, PathKind::Relayed);
    world.transfer(key, 1_000);
    assert_eq!((world.link_in_use(key), world.ends[0].links()), (direct, 2));
    world.pass(Duration::from_secs(40));
    assert_eq!((world.link_in_use(key), world.ends[0].links()), (direct, 1));
}

/// Rule 7.26
#[test]
fn a_relayed_tunnel_looks_for_a_direct_path_ever_more_rarely_and_takes_it() {
    let mut world = World::new();
    let relayed = world.link(Purpose::Shared, PathKind::Relayed);
    let key = world.open();
    let (began_at, mut looks) = (world.now, Vec::new());
    while world.now - began_at < Duration::from_secs(600) {
        if let Some(dial) = world.ends[0].poll_dial(world.now) {
            assert!(!world.ends[0].poll_seek(world.now), "the relay serves");
            looks.push((world.now - began_at).as_secs());
            world.ends[0].dial_failed(dial, world.now);
        }
        world.step();
    }
    assert_eq!(looks.first(), Some(&2));
    assert!((10..=16).contains(&looks.len()), "{looks:?}");
    assert_eq!(world.link_in_use(key), relayed);
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    world.transfer(key, 1_000);
    assert_eq!(world.link_in_use(key), direct);
    world.pass(Duration::from_secs(100));
    assert_eq!((world.ends[0].poll_dial(world.now), world.ends[0].links()), (None, 1));
}

/// Rule 7.26: a page that is made of many short connections.
#[test]
fn tunnels_that_are_soon_over_look_for_a_direct_path_as_one_that_lasts_does() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Relayed);
    let (began_at, mut looks) = (world.now, Vec::new());
    for _tunnel in 0..40 {
        let key = world.open();
        for is_open in [true, false] {
            if !is_open {
                world.ends[0].with(key, world.now, |session, _| session.reset(Code::ApplicationReset));
                world.settle();
            }
            world.pass(Duration::from_millis(500));
            if let Some(dial) = world.ends[0].poll_dial(world.now) {
                assert!(is_open, "nobody needs a path");
                looks.push((world.now - began_at).as_secs());
                world.ends[0].dial_failed(dial, world.now);
            }
        }
    }
    assert_eq!(looks, [2, 6, 14, 30]);
}

/// A session that a relay has taken over from a direct link that fell silent, and that works again now.
fn relayed_instead() -> (World, SessionKey, [LinkId; 2]) {
    let mut world = World::new();
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    let key = world.open();
    world.transfer(key, 1_000);
    world.silent.insert(direct);
    world.write(1, key, 300);
    world.pass(Duration::from_millis(3_100));
    let relayed = world.link(Purpose::Shared, PathKind::Relayed);
    assert_eq!((world.link_in_use(key), world.read(0, key)), (relayed, 300));
    world.silent.clear();
    (world, key, [direct, relayed])
}

/// Rules 7.25 and 7.26: it was silent when the relay's link came, and so was to be left for it.
#[test]
fn a_direct_link_that_works_again_after_a_relay_has_taken_its_place_takes_the_sessions_back() {
    let (mut world, key, [direct, _relayed]) = relayed_instead();
    world.pass(Duration::from_secs(2));
    world.transfer(key, 1_000);
    assert_eq!((world.link_in_use(key), world.ends[0].serving()), (direct, Some(PathKind::Direct)));
    // The relay's is the one that is left now.
    world.pass(Duration::from_secs(40));
    assert_eq!((world.link_in_use(key), world.ends[0].links()), (direct, 1));
}

/// Rule 7.26: what cannot take the sessions is no reason not to look for what can.
#[test]
fn a_better_path_is_looked_for_beside_a_direct_link_from_which_alone_something_arrives() {
    let (mut world, key, [direct, relayed]) = relayed_instead();
    world.deaf.insert((direct, 1));
    world.settle();
    assert!(world.ends[0].links[&direct].is_healthy(), "bytes come from there");
    let mut dialled = None;
    for _step in 0..25 {
        dialled = dialled.or(world.ends[0].poll_dial(world.now));
        world.step();
    }
    assert_eq!(world.link_in_use(key), relayed);
    assert_eq!(dialled.and_then(|dial| dial.serving), Some(PathKind::Relayed));
}

/// Rule 7.26: as many links as there may be, all over relays.
#[test]
fn a_better_path_is_looked_for_however_many_links_go_over_relays() {
    let mut world = World::new();
    for _link in 0..MAX_SHARED {
        world.link(Purpose::Shared, PathKind::Relayed);
    }
    let key = world.open();
    world.pass(LOOK_PAUSE);
    assert!(!world.ends[0].may_dial());
    let dial = world.ends[0].poll_dial(world.now);
    assert_eq!(dial.map(|dial| (dial.is_awaited, dial.serving)), Some((false, Some(PathKind::Relayed))));
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    world.transfer(key, 1_000);
    assert_eq!(world.link_in_use(key), direct);
    world.pass(Duration::from_secs(40));
    assert_eq!(world.ends[0].links(), 1);
}

/// Rule 7.25
#[test]
fn sessions_move_from_a_relay_to_quic_and_on_to_tcp_and_back_as_each_is_lost() {
    let mut world = World::new();
    let relayed = world.link(Purpose::Shared, PathKind::Relayed);
    let key = world.open();
    let quic = world.link(Purpose::Shared, PathKind::Quic);
    world.transfer(key, 3_000);
    assert_eq!(world.link_in_use(key), quic);
    let tcp = world.link(Purpose::Shared, PathKind::Direct);
    world.transfer(key, 3_000);
    assert_eq!(world.link_in_use(key), tcp);
    world.lose(tcp);
    world.transfer(key, 3_000);
    assert_eq!(world.link_in_use(key), quic);
    world.lose(quic);
    world.transfer(key, 3_000);
    assert_eq!(world.link_in_use(key), relayed);
    let stats = world.ends[0].session(key).unwrap().stats();
    assert_eq!((stats.written_bytes, stats.acked_bytes), (12_000, 12_000));
}

/// Rule 7.26
#[test]
fn while_quic_serves_only_what_is_better_is_looked_for_and_while_nothing_does_everything() {
    let mut world = World::new();
    let quic = world.link(Purpose::Shared, PathKind::Quic);
    let key = world.open();
    world.transfer(key, 1_000);
    assert_eq!(world.ends[0].poll_dial(world.now), None);
    world.pass(Duration::from_secs(3));
    let look = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!((look.is_awaited, look.serving), (false, Some(PathKind::Quic)));
    world.ends[0].dial_failed(look, world.now);
    assert_eq!(world.link_in_use(key), quic);
    world.pass(Duration::from_secs(1));
    world.lose(quic);
    let dial = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!((dial.is_awaited, dial.serving), (true, None));
}

/// Rule 7.26
#[test]
fn a_better_path_is_looked_for_at_once_when_the_networks_or_the_peer_s_places_have_changed() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Relayed);
    let key = world.open();
    world.transfer(key, 1_000);
    let looks = |world: &mut World, span: Duration, has_news: bool| {
        let (mut looks, until) = (0, world.now.after(span));
        while world.now < until {
            if has_news {
                world.ends[0].retry(world.now);
                world.ends[0].handle_timeout(world.now);
            }
            if let Some(dial) = world.ends[0].poll_dial(world.now) {
                looks += 1;
                world.ends[0].dial_failed(dial, world.now);
            }
            world.step();
        }
        looks
    };
    assert_eq!(looks(&mut world, Duration::from_secs(33), false), 4, "after 2, 6, 14 and 30 s");
    assert_eq!(looks(&mut world, Duration::from_secs(20), false), 0);
    world.ends[0].retry(world.now);
    assert!(world.ends[0].poll_timeout().is_some_and(|at| at <= world.now));
    assert_eq!(looks(&mut world, Duration::from_secs(7), false), 3, "at once, and after 2 and 6 s");
    // A peer that is somewhere else all the time is not dialled all the time.
    assert_eq!(looks(&mut world, Duration::from_secs(20), true), 10);
}

/// Rule 7.25
#[test]
fn what_moves_much_stays_on_quic_and_leaves_its_own_link_for_a_better_path() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Relayed);
    let bulk = world.open();
    world.transfer(bulk, 300_000);
    let dial = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!(dial.purpose, Purpose::Own(bulk));
    assert_eq!(dial.serving, Some(PathKind::Relayed), "the shell meets the peer there once more");
    let own = world.link(dial.purpose, PathKind::Relayed);
    world.transfer(bulk, 1_000);
    assert_eq!(world.link_in_use(bulk), own);
    // Whoever has left the shared link still does without the best path.
    world.pass(Duration::from_secs(3));
    let look = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!((look.purpose, look.serving), (Purpose::Shared, Some(PathKind::Relayed)));
    let quic = world.link(Purpose::Shared, PathKind::Quic);
    world.transfer(bulk, 10_000_000);
    assert_eq!(world.link_in_use(bulk), quic);
    // Only a better path is dialled, and for all.
    world.pass(Duration::from_secs(3));
    while let Some(dial) = world.ends[0].poll_dial(world.now) {
        assert_eq!((dial.purpose, dial.serving), (Purpose::Shared, Some(PathKind::Quic)));
    }
}

/// Rule 7.25
#[test]
fn links_of_single_sessions_are_dialled_one_after_the_other_and_only_used_on_the_best_path() {
    let mut world = World::new();
    world.link(Purpose::Shared, PathKind::Relayed);
    let sessions = [world.open(), world.open()];
    sessions.iter().for_each(|key| world.transfer(*key, 300_000));
    let first = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!(world.ends[0].poll_dial(world.now), None);
    assert!(world.ends[0].poll_timeout() > Some(world.now), "nothing is due meanwhile");
    let own = world.link(first.purpose, PathKind::Relayed);
    world.transfer(sessions[0], 1_000);
    assert_eq!(world.link_in_use(sessions[0]), own);
    let second = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!(second.purpose, Purpose::Own(sessions[1]));
    let direct = world.link(Purpose::Shared, PathKind::Direct);
    world.link(second.purpose, PathKind::Relayed);
    world.transfer(sessions[1], 1_000);
    assert_eq!(world.link_in_use(sessions[1]), direct);
    assert_eq!(world.ends[0].count(|carrier| !carrier.is_shared() && carrier.is_healthy()), 0);
}

/// Rule 7.25
#[test]
fn what_moves_much_gets_a_link_of_its_own_and_closes_it_behind_itself() {
    let mut world = World::new();
    let shared = world.link(Purpose::Shared, PathKind::Direct);
    let small = world.open();
    let bulk = world.open();
    world.transfer(small, 100_000);
    assert_eq!(world.ends[0].poll_dial(world.now), None);
    world.transfer(bulk, 200_000);
    world.transfer(bulk, 100_000);
    let dial = world.ends[0].poll_dial(world.now).unwrap();
    assert_eq!(dial.purpose, Purpose::Own(bulk));
    assert_eq!(world.ends[0].poll_dial(world.now), None, "once");
    let own = world.link(dial.purpose, PathKind::Direct);
    world.transfer(bulk, 100_000);
    world.transfer(small, 10_000);
    assert_eq!((world.link_in_use(small), world.link_in_use(bulk)), (shared, own));
    // New tunnels open on the warm link.
    let another = world.open();
    assert_eq!(world.link_in_use(another), shared);
    world.ends[0].with(bulk, world.now, |session, _| session.reset(Code::ApplicationReset));
    world.ends[0].release(bulk, world.now);
    world.settle();
    assert_eq!(world.ends[0].links(), 1);
    assert!(world.ends[0].session(bulk).is_none());
}

/// Rule 7.27
#[test]
fn a_head_is_passed_on_once_and_a_flood_of_them_is_not() {
    let mut world = World::new();
    world.ends[0].send_head(&Bytes::from_static(b"one"), world.now);
    world.link(Purpose::Shared, PathKind::Direct);
    world.settle();
    assert_eq!(world.heads, [Bytes::from_static(b"one")]);
    for number in 0..100_u8 {
        world.ends[0].send_head(&Bytes::from(vec![number]), world.now);
        world.settle();
    }
    assert_eq!(world.heads.len(), 1);
    world.pass(Duration::from_secs(2));
    world.ends[0].send_head(&Bytes::from_static(b"two"), world.now);
    world.settle();
    assert_eq!(world.heads.last(), Some(&Bytes::from_static(b"two")));
}

#[test]
fn sessions_are_limited_and_the_next_is_refused_alone() {
    let mut world = World::new();
    for _link in 0..MAX_SHARED {
        world.link(Purpose::Shared, PathKind::Direct);
    }
    let keys: Vec<_> = (0..MAX_SESSIONS).map(|_| world.open()).collect();
    let result = world.ends[0].open(&opening(99_999), world.now);
    assert_eq!(result, Err(OpenError::TooMany));
    world.transfer(keys[0], 1_000);
}

/// A user-node's bundle and a tunnel-node's.
struct World {
    ends: [Bundle; 2],
    now: Instant,
    /// Links whose bytes do not arrive for now; they wait in the wire.
    silent: BTreeSet<LinkId>,
    /// The same of one direction: bytes towards this end.
    deaf: BTreeSet<(LinkId, usize)>,
    /// The links of one end and of the other: they have the same numbers, because both are made at once.
    wires: BTreeMap<LinkId, [BytesMut; 2]>,
    opened: u32,
    accepted: SessionKey,
    pairs: BTreeMap<SessionKey, SessionKey>,
    heads: Vec<Bytes>,
}

fn opening(number: u32) -> Open {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    Open { session: SessionId(id), device: DeviceId([1; 32]), service: "raw".to_owned() }
}

impl World {
    fn new() -> Self {
        let node = |byte| NodeId { domain: Domain(9), hash: [byte; 32] };
        let session = session::Config { max_window: WINDOW_MAX, budget: Budget::new(1 << 30) };
        let bundle = |local, remote| Bundle::new(Config { local, remote, session: session.clone() });
        Self {
            ends: [bundle(node(1), node(2)), bundle(node(2), node(1))],
            now: Instant::from_micros(1_000_000),
            silent: BTreeSet::new(),
            deaf: BTreeSet::new(),
            wires: BTreeMap::new(),
            opened: 0,
            accepted: SessionKey(0),
            pairs: BTreeMap::new(),
            heads: Vec::new(),
        }
    }

    fn link(&mut self, purpose: Purpose, path: PathKind) -> LinkId {
        let standing = |side, purpose| Standing { side, purpose, path, consent_interval: CONSENT_TCP };
        let id = self.ends[0].add_link(standing(Side::Client, purpose), self.now);
        assert_eq!(self.ends[1].add_link(standing(Side::Server, Purpose::Shared), self.now), id);
        self.wires.insert(id, Default::default());
        self.settle();
        id
    }

    fn lose(&mut self, id: LinkId) {
        for end in &mut self.ends {
            end.link_lost(id, self.now);
        }
        self.wires.remove(&id);
        self.settle();
    }

    fn open(&mut self) -> SessionKey {
        self.opened += 1;
        let key = self.ends[0].open(&opening(self.opened), self.now).unwrap();
        self.settle();
        assert_eq!(self.ends[0].session(key).unwrap().state(), State::Open);
        self.pairs.insert(key, self.accepted);
        key
    }

    fn link_in_use(&self, key: SessionKey) -> LinkId {
        self.ends[0].link_of(key).unwrap()
    }

    fn write(&mut self, end: usize, key: SessionKey, bytes: usize) {
        let key = if end == 0 { key } else { self.pairs[&key] };
        let mut left = Bytes::from(vec![7; bytes]);
        self.ends[end].with(key, self.now, |session, _| session.write(&mut left).unwrap());
        assert!(left.is_empty());
    }

    /// Moves bytes both ways, and checks that they arrive.
    fn transfer(&mut self, key: SessionKey, bytes: usize) {
        for end in [0, 1] {
            let (from, to) = (end, 1 - end);
            let (sender, receiver) =
                if from == 0 { (key, self.pairs[&key]) } else { (self.pairs[&key], key) };
            let mut left = Bytes::from(vec![7; bytes]);
            let mut received = 0;
            for _round in 0..1_000 {
                self.ends[from].with(sender, self.now, |session, _| session.write(&mut left).unwrap());
                self.settle();
                received += self.read(to, receiver);
                self.settle();
                let acked = self.ends[from].session(sender).unwrap().stats();
                if received == bytes && acked.acked_bytes == acked.written_bytes {
                    break;
                }
                self.step();
            }
            assert_eq!(received, bytes);
        }
    }

    fn read(&mut self, end: usize, key: SessionKey) -> usize {
        let reading = self.ends[end].with(key, self.now, |session, now| {
            let pieces = std::iter::from_fn(|| match session.read(now) {
                Read::Bytes(piece) => Some(piece.len()),
                Read::Pending | Read::Finished | Read::Reset(_) => None,
            });
            pieces.sum()
        });
        reading.unwrap()
    }

    /// Lets a tenth of a second pass.
    fn step(&mut self) {
        self.now = self.now.after(Duration::from_millis(100));
        for end in &mut self.ends {
            end.handle_timeout(self.now);
        }
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now < until {
            self.step();
        }
    }

    /// Moves bytes until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for end in [0, 1] {
                while self.ends[end].poll_woken().is_some() {}
                while let Some(event) = self.ends[end].poll_event() {
                    match event {
                        Event::OpenAsked { session, .. } => {
                            self.accepted = session;
                            self.ends[end].with(session, self.now, |session, _| session.confirm());
                        }
                        Event::Head(record) => self.heads.push(record),
                        Event::Usable | Event::Unusable | Event::Silent(_) | Event::Moved { .. } => {}
                    }
                }
                while let Some(link) = self.ends[end].poll_writable() {
                    moved |= self.send(end, link);
                }
            }
            for link in self.wires.keys().copied().collect::<Vec<_>>() {
                moved |= self.deliver(link);
            }
            if !moved {
                return;
            }
        }
    }

    fn send(&mut self, end: usize, link: LinkId) -> bool {
        let mut frames = Vec::new();
        while self.ends[end].poll_output(link, 1 << 20, self.now, &mut frames) {}
        if let Some(wire) = self.wires.get_mut(&link) {
            for frame in &frames {
                wire[1 - end].put_slice(&frame.header);
                wire[1 - end].put_slice(&frame.payload);
            }
        }
        !frames.is_empty()
    }

    fn deliver(&mut self, link: LinkId) -> bool {
        if self.silent.contains(&link) {
            return false;
        }
        let mut moved = false;
        for end in [0, 1] {
            if self.deaf.contains(&(link, end)) {
                continue;
            }
            let Some(bytes) = self.wires.get_mut(&link).map(|wire| wire[end].split()) else { continue };
            if !bytes.is_empty() {
                moved = true;
                let mut input = self.ends[end].take_input(link);
                input.unsplit(bytes);
                self.ends[end].handle_input(link, input, self.now);
            }
        }
        let is_over =
            |end: &Bundle| end.links.get(&link).is_none_or(|carrier| carrier.link.closed().is_some());
        if self.ends.iter().all(is_over) {
            for end in &mut self.ends {
                end.link_lost(link, self.now);
            }
            self.wires.remove(&link);
        }
        moved
    }
}
