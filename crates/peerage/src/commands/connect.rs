//! `peerage connect`.

use crate::{
    Context,
    args::Connect,
    failure::{Failure, Result},
    output::Output,
    signals::EndSignals,
};
use peerage_client::{
    Client, Events, Protocol,
    local::{EventDetail, OpenTunnel, Path, Privacy, Tunnel, TunnelState},
};
use serde::Serialize;
use std::{net::SocketAddr, time::Duration};
use tokio::time::timeout;

/// How long the node may take to confirm that the tunnel is closed. It closes it in any case when this process ends, so a longer
/// wait only keeps whoever has pressed Ctrl-C.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// What is told of the tunnel, in JSON one object a line.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Told<'a> {
    /// Always the first: applications can connect.
    Listening {
        id: &'a str,
        local: SocketAddr,
        device: &'a str,
        service: &'a str,
        protocol: Protocol,
        path: Option<&'a Path>,
        privacy: Privacy,
    },
    /// The state or the path is another.
    Changed { state: TunnelState, path: Option<&'a Path>, privacy: Privacy },
    /// Always the last, after Ctrl-C.
    Closed,
}

pub(crate) async fn run(args: Connect, context: &Context) -> Result {
    let client = Client::new(&context.data);
    let mut signals = EndSignals::catch()?;
    let request = OpenTunnel {
        device: args.target.device,
        service: args.target.service,
        listen: args.listen,
        expose: args.expose,
    };
    let opened = async {
        let tunnel = client.open_tunnel(&request).await?;
        // From here on the node closes it when this process ends, however it ends.
        match client.hold_tunnel(&tunnel.id).await {
            Ok(events) => Ok((tunnel, events)),
            Err(error) => {
                _ = client.close_tunnel(&tunnel.id).await;
                Err(error)
            }
        }
    };
    let (tunnel, mut events) = tokio::select! {
        () = signals.received() => return Err(Failure::new("interrupted before the tunnel was open")),
        opened = opened => opened?,
    };
    tell_listening(&tunnel, context.output)?;
    tokio::select! {
        () = signals.received() => {}
        result = follow(&tunnel, &mut events, context.output) => return result,
    }
    // While the stream of events still holds it: afterwards the node would have closed it already.
    timeout(CLOSE_TIMEOUT, client.close_tunnel(&tunnel.id)).await.unwrap_or(Ok(()))?;
    drop(events);
    context.output.result(&Told::Closed, |_| "Closed.".to_owned())
}

fn tell_listening(tunnel: &Tunnel, output: Output) -> Result {
    let told = Told::Listening {
        id: &tunnel.id,
        local: tunnel.local,
        device: &tunnel.device,
        service: &tunnel.service,
        protocol: tunnel.protocol,
        path: tunnel.path.as_ref(),
        privacy: tunnel.privacy,
    };
    output.result(&told, |_| {
        format!(
            "{}:{} is at {} ({}) until Ctrl-C.\n  path: {}\n  privacy: {}",
            tunnel.device,
            tunnel.service,
            tunnel.local,
            tunnel.protocol,
            path_text(tunnel.path.as_ref()),
            tunnel.privacy
        )
    })
}

/// Tells what becomes of the tunnel; returns when it is gone.
async fn follow(tunnel: &Tunnel, events: &mut Events, output: Output) -> Result {
    let mut last = (tunnel.state, tunnel.path.clone(), tunnel.privacy);
    while let Some(event) = events.next().await {
        let detail = event?.detail;
        if let EventDetail::TunnelClosed { id, reason } = detail {
            if id == tunnel.id {
                return Err(Failure::new("the node has closed the tunnel").why(reason));
            }
        } else if let EventDetail::TunnelChanged { tunnel: now } = detail
            && now.id == tunnel.id
        {
            let new = (now.state, now.path, now.privacy);
            if new != last {
                tell_changed(&new, output)?;
                last = new;
            }
        }
    }
    Err(Failure::new("the node has ended, and the tunnel with it"))
}

fn tell_changed((state, path, privacy): &(TunnelState, Option<Path>, Privacy), output: Output) -> Result {
    output.result(&Told::Changed { state: *state, path: path.as_ref(), privacy: *privacy }, |_| {
        format!("  now {state}, path: {}, privacy: {privacy}", path_text(path.as_ref()))
    })
}

fn path_text(path: Option<&Path>) -> String {
    path.map_or_else(|| "none proven yet".to_owned(), |path| format!("{} to {}", path.kind, path.remote))
}
