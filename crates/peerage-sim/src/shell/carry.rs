//! Which connection an own tunnel goes on.

use peerage_proto::link::{MAX_STREAMS, Side};
use peerage_proto::node::Input;
use peerage_proto::session::State;
use peerage_wire::frame::Code;
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::{CarrierId, REDIAL_AFTER, Shell, Want};
use crate::app::End;

impl Shell {
    /// Gives every own session that needs one a carrier, or asks for a connection.
    pub(super) fn carry(&mut self, now: Instant) {
        let needy = self.tunnels.iter().filter(|(_, tunnel)| {
            tunnel.end == End::User && tunnel.redial_at <= now && tunnel.session.needs_carrier()
        });
        for id in needy.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { continue };
            let peer = tunnel.peer;
            let usable = self.connections.iter_mut().find(|(_, connection)| {
                let link = &connection.link;
                let is_good = link.closed().is_none() && !link.is_suspect() && link.streams() < MAX_STREAMS;
                connection.peer == peer && connection.side == Side::Client && is_good
            });
            let Some((_, connection)) = usable else {
                tunnel.redial_at = now.after(REDIAL_AFTER);
                self.dial(peer);
                continue;
            };
            let attached = tunnel.session.attach(connection.link.round_trip().unwrap_or_default());
            let stream = connection.link.open_stream();
            if let (Ok(number), Ok(stream)) = (attached, stream) {
                connection.streams.insert(stream, (id, number));
                connection.link.mark_ready(stream);
            } else {
                tunnel.redial_at = now.after(REDIAL_AFTER);
                if let Ok(stream) = stream {
                    connection.link.refuse(stream, Code::Shutdown, now);
                }
            }
        }
    }

    /// Moves all own tunnels through a connection's peer to that connection, while the one that they are on still stands. Returns how
    /// many.
    pub fn move_to(&mut self, carrier: CarrierId, now: Instant) -> u64 {
        let Some(connection) = self.connections.get_mut(&carrier) else { return 0 };
        let mut moved = 0;
        let peer = connection.peer;
        let own = self.tunnels.iter_mut().filter(|(_, tunnel)| {
            let has_carrier = !tunnel.session.needs_carrier() && !tunnel.has_ended;
            tunnel.end == End::User && tunnel.peer == peer && has_carrier
        });
        for (id, tunnel) in own {
            if connection.link.closed().is_some() || connection.link.streams() >= MAX_STREAMS {
                break;
            }
            let round_trip = connection.link.round_trip().unwrap_or_default();
            let Ok(number) = tunnel.session.attach(round_trip) else { continue };
            if let Ok(stream) = connection.link.open_stream() {
                connection.streams.insert(stream, (*id, number));
                connection.link.mark_ready(stream);
                moved += 1;
            } else {
                tunnel.session.detach(number, now);
            }
        }
        self.pump(now);
        moved
    }

    pub(super) fn dial(&mut self, peer: NodeId) {
        let reach = self.reach.entry(peer).or_default();
        // Without candidates it fails at once.
        if !reach.is_dialling {
            reach.is_dialling = true;
            self.wants.push_back(Want::Dial(peer, reach.candidates.clone()));
        }
    }

    /// A dial has come to nothing. Returns the tunnels that have not been opened by then: they are given up.
    pub fn dial_failed(&mut self, peer: NodeId, now: Instant) {
        if let Some(reach) = self.reach.get_mut(&peer) {
            reach.is_dialling = false;
        }
        let mut failed = Vec::new();
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.peer == peer) {
            if tunnel.end == End::User && tunnel.session.state() == State::Opening {
                tunnel.session.reset(Code::DeviceUnreachable);
                failed.push(tunnel.device);
            }
        }
        for device in failed {
            self.tell(Input::RouteFailed { device, peer, code: None });
        }
        self.pump(now);
    }
}
