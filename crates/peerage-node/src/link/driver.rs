//! The task of one link: bytes between its socket and its sessions.

use std::sync::Arc;
use std::time::Duration;

use peerage_proto::link::{BATCH_BYTES, Closed, Event};
use peerage_wire::frame::{Code, Encoded};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;
use tokio::time;

use super::channel::{Channel, ChannelError, Filled};
use super::stream::{Shared, Table};
use super::{LinkEvent, Notifier};

/// How long the last words of a link may take to leave. Longer keeps dead sockets, shorter loses the reason on slow paths.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Sleeps are cut to this, because timers of the runtime stand still while the computer sleeps.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// Drives a link until it ends, and returns why.
pub(super) async fn run(shared: Arc<Shared>, mut channel: Channel, notifier: Notifier) -> Code {
    let code = match drive(&shared, &mut channel, &notifier).await {
        Ok(closed) => code_of(closed),
        Err(error) => {
            tracing::debug!(peer = ?shared.peer, %error, "a link broke");
            // The peer's last words may still be there, although it does not listen any more.
            while matches!(channel.fill(), Ok(Filled::Some))
                && receive(&shared, &mut channel, &notifier).is_ok()
            {}
            shared.lock().link.closed().map_or(Code::Expired, code_of)
        }
    };
    {
        let mut table = shared.lock();
        table.link.close(code);
        table.end_all(code, shared.clock.mono());
    }
    let farewell = async {
        channel.finish();
        while !channel.flush()? {
            channel.socket().writable().await?;
        }
        // Closing while something is unread would be a reset, which can overtake the last words.
        channel.end_and_discard().await
    };
    // The peer may be gone long since.
    let _ = time::timeout(FAREWELL_TIMEOUT, farewell).await;
    code
}

const fn code_of(closed: Closed) -> Code {
    match closed {
        Closed::Here(code) | Closed::ByPeer(code) => code,
        Closed::Violated(violation) => violation.code(),
        Closed::NoHello | Closed::Silent => Code::Expired,
    }
}

async fn drive(
    shared: &Arc<Shared>,
    channel: &mut Channel,
    notifier: &Notifier,
) -> Result<Closed, ChannelError> {
    let mut frames: Vec<Encoded> = Vec::new();
    // Bytes may have come together with the end of the handshake.
    receive(shared, channel, notifier)?;
    loop {
        let turn = prepare(shared, channel.is_flushed(), &mut frames);
        if !frames.is_empty() {
            channel.seal(&frames)?;
            frames.clear();
        }
        let is_flushed = channel.flush()?;
        if let Some(closed) = turn.closed
            && is_flushed
        {
            return Ok(closed);
        }
        if channel.fill()? == Filled::Some {
            receive(shared, channel, notifier)?;
            // One link must not keep a thread for itself.
            tokio::task::yield_now().await;
            continue;
        }
        if is_flushed && turn.has_more {
            tokio::task::yield_now().await;
            continue;
        }
        wait(shared, channel, is_flushed, turn.wakes_at).await?;
    }
}

/// What a turn found.
struct Turn {
    closed: Option<Closed>,
    has_more: bool,
    wakes_at: Option<Instant>,
}

/// Does what is due and takes the next batch of frames.
fn prepare(shared: &Shared, is_flushed: bool, frames: &mut Vec<Encoded>) -> Turn {
    let now = shared.clock.mono();
    let mut table = shared.lock();
    table.handle_timeout(now);
    table.settle();
    if is_flushed {
        table.poll_output(BATCH_BYTES, now, frames);
        table.settle();
    }
    // Timeouts make events too: suspicion, and the end.
    while let Some(event) = table.link.poll_event(now) {
        table.handle_event(event, now);
    }
    Turn { closed: table.link.closed(), has_more: table.link.wants_output(), wakes_at: table.poll_timeout() }
}

/// Opens what was read and hands it to the sessions.
fn receive(shared: &Arc<Shared>, channel: &mut Channel, notifier: &Notifier) -> Result<(), ChannelError> {
    let now = shared.clock.mono();
    let mut guard = shared.lock();
    let table = &mut *guard;
    let result = channel.open(table.link.read_buffer());
    // What came before an error, or before the end, still counts.
    table.link.handle_read(now);
    while let Some(event) = table.link.poll_event(now) {
        match table.handle_event(event, now) {
            Some(Event::OpenAsked { stream, limit, request }) => {
                let Ok(open) = Open::decode(&request) else {
                    table.link.refuse(stream, Code::BadRequest, now);
                    continue;
                };
                on_open(shared, table, notifier, (stream, limit, open), now);
            }
            Some(Event::Up) if shared.is_client() => notifier.notify(LinkEvent::Up(shared.peer)),
            Some(Event::Head(record)) => notifier.notify(LinkEvent::Head(record)),
            _ => {}
        }
    }
    table.settle();
    result
}

fn on_open(
    shared: &Arc<Shared>,
    table: &mut Table,
    notifier: &Notifier,
    (id, limit, open): (peerage_wire::frame::StreamId, u64, Open),
    now: Instant,
) {
    let Some(permit) = notifier.reserve() else {
        table.link.refuse(id, Code::Limit, now);
        return;
    };
    let stream = shared.accept(table, id, limit, &open);
    permit.send(LinkEvent::OpenAsked { stream, open });
}

async fn wait(
    shared: &Shared,
    channel: &mut Channel,
    is_flushed: bool,
    wakes_at: Option<Instant>,
) -> std::io::Result<()> {
    let left = wakes_at.map_or(MAX_SLEEP, |at| at - shared.clock.mono());
    if left > Duration::from_secs(1) {
        channel.shrink();
    }
    let socket = channel.socket();
    tokio::select! {
        ready = socket.readable() => ready,
        ready = socket.writable(), if !is_flushed => ready,
        () = shared.kick.notified() => Ok(()),
        () = time::sleep(left.min(MAX_SLEEP)) => Ok(()),
    }
}
