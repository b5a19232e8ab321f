//! The task of one link: bytes between its socket and the sessions on it.

use std::sync::Arc;
use std::time::Duration;

use peerage_proto::link::bundle::LinkId;
use peerage_proto::link::{BATCH_BYTES, Closed};
use peerage_wire::frame::{Code, Encoded};
use tokio::sync::Notify;
use tokio::time;

use super::channel::{Channel, ChannelError, Filled, Opened};
use super::peer::Peer;

/// How long the last words of a link may take to leave. Longer keeps dead sockets, shorter loses the reason on slow paths.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What a link may have sealed when the node's budget is used up, in bytes: two TLS records.
const BATCH_MIN: usize = 32 * 1_024;

/// After so much silence a link gives its buffers back.
const SILENCE: Duration = Duration::from_secs(1);

/// Drives a link until it ends, and returns why.
pub(super) async fn run(peer: Arc<Peer>, id: LinkId, kick: Arc<Notify>, mut channel: Channel) -> Code {
    let result = drive(&peer, id, &kick, &mut channel).await;
    let is_broken = result.is_err();
    let code = match result {
        Ok(closed) => code_of(closed),
        Err(error) => {
            tracing::debug!(peer = ?peer.id, %error, "a link broke");
            // The peer's last words may still be there, although it does not listen any more.
            while matches!(channel.fill(), Ok(Filled::Some)) && receive(&peer, id, &mut channel).is_ok() {}
            closed(&peer, id).map_or(Code::Expired, code_of)
        }
    };
    // From here on its sessions go on elsewhere.
    let ends = peer.act(|state, now| {
        state.bundle.link_lost(id, now);
        state.links.remove(&id)
    });
    if is_broken {
        peer.relay_lost(ends.flatten().and_then(|ends| ends.relay));
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

pub(super) const fn code_of(closed: Closed) -> Code {
    match closed {
        Closed::Here(code) | Closed::ByPeer(code) => code,
        Closed::Violated(violation) => violation.code(),
        Closed::NoHello | Closed::Silent => Code::Expired,
    }
}

pub(super) fn closed(peer: &Arc<Peer>, id: LinkId) -> Option<Closed> {
    // Without a node there are no links.
    peer.act(|state, _| state.bundle.closed(id)).unwrap_or(Some(Closed::Here(Code::Shutdown)))
}

async fn drive(
    peer: &Arc<Peer>,
    id: LinkId,
    kick: &Notify,
    channel: &mut Channel,
) -> Result<Closed, ChannelError> {
    let mut frames: Vec<Encoded> = Vec::new();
    let budget = peer.budget();
    if let Some(budget) = &budget {
        channel.set_budget(budget.clone());
    }
    // Bytes may have come together with the end of the handshake.
    receive(peer, id, channel)?;
    loop {
        let mut has_more = false;
        if channel.is_flushed() {
            // Sealed bytes wait with the link until the socket takes them; without memory for many, there are few.
            let held = budget.as_ref().and_then(|budget| budget.try_hold(BATCH_BYTES as u64));
            let most = if held.is_some() { BATCH_BYTES } else { BATCH_MIN };
            channel.hold(held);
            let more = peer.act(|state, now| state.bundle.poll_output(id, most, now, &mut frames));
            has_more = more.unwrap_or(false);
        }
        let closed = closed(peer, id);
        if !frames.is_empty() {
            channel.seal(&frames)?;
            frames.clear();
        }
        let is_flushed = channel.flush()?;
        if let Some(closed) = closed
            && is_flushed
            && !has_more
        {
            return Ok(closed);
        }
        if channel.fill()? == Filled::Some {
            receive(peer, id, channel)?;
            // One link must not keep a thread for itself.
            tokio::task::yield_now().await;
            continue;
        }
        if is_flushed && has_more {
            tokio::task::yield_now().await;
            continue;
        }
        wait(channel, kick, is_flushed).await?;
    }
}

/// Opens what was read and hands it to the sessions. The lock is free while bytes are deciphered.
fn receive(peer: &Arc<Peer>, id: LinkId, channel: &mut Channel) -> Result<(), ChannelError> {
    loop {
        let Some(mut input) = peer.act(|state, _| state.bundle.take_input(id)) else { return Ok(()) };
        let result = channel.open(&mut input);
        // What came before an error, or before the end, still counts.
        peer.act(|state, now| state.bundle.handle_input(id, input, now));
        if result? == Opened::All {
            return Ok(());
        }
    }
}

async fn wait(channel: &mut Channel, kick: &Notify, is_flushed: bool) -> std::io::Result<()> {
    let quiet = async {
        tokio::select! {
            ready = channel.ready(!is_flushed) => ready,
            () = kick.notified() => Ok(()),
        }
    };
    if let Ok(ready) = time::timeout(SILENCE, quiet).await {
        return ready;
    }
    channel.shrink();
    tokio::select! {
        ready = channel.ready(!is_flushed) => ready,
        () = kick.notified() => Ok(()),
    }
}
