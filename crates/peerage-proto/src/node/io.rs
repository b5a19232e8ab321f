//! Everything that can happen to a node, and everything that it asks of its caller.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use peerage_wire::codec::{Candidate, Protocol, Service};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Domain, LinkId, LocationId, Mac, NodeId, PlacementKey, RecordKey};
use peerage_wire::open::Open;
use peerage_wire::record::{Record, Table};
use peerage_wire::time::UnixTime;

use super::carriers::KnownCarriers;
use super::config::SuperConfig;
use super::legs::{LegNews, LegOrder};
use crate::carrier::{StreamNews, StreamOrder};
use crate::lan::Interface;
use crate::mapping::{Ports, RouterMapping};
use crate::path::Path;
use crate::relay::{self, LegId};

/// Ties an output to the input that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// Names one tunnel on this computer, at either end; given by the shell, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub u64);

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// A deadline given by `poll_timeout` may have passed.
    Timeout,
    /// A datagram arrived.
    Datagram {
        /// Who sent it, as seen here.
        remote: SocketAddr,
        /// What was in it; not checked in any way.
        payload: Bytes,
    },
    /// A datagram arrived at the group in which the nodes of a LAN talk (Rule 6.25).
    Multicast {
        /// The interface on which it came.
        interface: u32,
        /// Who sent it, as seen here.
        from: SocketAddr,
        /// What was in it; not checked in any way.
        payload: Bytes,
    },
    /// What [`Output::Multicast`] asked for cannot be done on this interface, or the group cannot be joined there.
    MulticastFailed {
        /// Which.
        interface: u32,
    },
    /// The program stops, or the computer is about to sleep: other nodes of the LAN are told. [`Input::Networks`] ends this.
    Stopping,
    /// Somebody looks at the status: what is found out for people alone is found out in the next seconds (Rule 6.98).
    Watched,
    /// The computer's networks are these now; also the first input after start.
    Networks(Vec<Interface>),
    /// What came of asking routers to forward ports to this computer, as [`Output::MapPorts`] wants; in place of what was told before.
    Mapped(Vec<RouterMapping>),
    /// Answers [`Output::Store`]: whether it is on disk now.
    Stored {
        /// Which.
        task: TaskId,
        /// False if the disk refused.
        ok: bool,
    },
    /// Answers [`Output::FindDevice`].
    DeviceFound {
        /// Which.
        task: TaskId,
        /// Where the hardware address answers now; `None` if nowhere.
        found: Option<Found>,
    },
    /// Answers [`Output::ProvePin`].
    PinProven {
        /// Which.
        task: TaskId,
        /// What the device showed.
        proof: PinProof,
    },
    /// A node that has proven to be `peer` asks over a link for a tunnel; answered by [`Output::ServeTunnel`] or
    /// [`Output::CloseTunnel`].
    OpenAsked {
        /// How the shell names it from now on.
        tunnel: TunnelId,
        /// Who asks, as TLS and the HELLO frame proved.
        peer: NodeId,
        /// For what.
        open: Open,
    },
    /// This node's own tunnel to a device is open; it is watched from now on.
    TunnelOpened {
        /// How the shell names it.
        tunnel: TunnelId,
        /// The tunnel-node at the other end.
        peer: NodeId,
        /// To which device.
        device: DeviceId,
        /// To which of its services.
        service: String,
    },
    /// A tunnel of either end has ended and need not be watched any more.
    TunnelEnded(TunnelId),
    /// A link to a peer stands, so that a tunnel through it needs no [`Request::TunnelRequest`](peerage_wire::message::Request).
    LinkUp(NodeId),
    /// The link to a peer is gone.
    LinkDown(NodeId),
    /// A link stands on a path of [`Event::PathFound`].
    PathUsed {
        /// With whom.
        peer: NodeId,
        /// Where it is.
        remote: SocketAddr,
    },
    /// A path did not work, or the link that used it is gone.
    PathUnused {
        /// With whom.
        peer: NodeId,
        /// Where it is.
        remote: SocketAddr,
    },
    /// Answers [`Output::BeginHandshake`].
    HandshakeBegun {
        /// Which.
        attempt: LinkId,
        /// The first flight of the TLS client; `None` if there is none that a request can carry.
        hello: Option<Bytes>,
    },
    /// Answers [`Output::AnswerHandshake`].
    HandshakeAnswered {
        /// Which.
        task: TaskId,
        /// The first flight of the TLS server; `None` if it prepares no handshake.
        flight: Option<Bytes>,
    },
    /// Something happened to a leg that this node has made.
    OwnLeg {
        /// Which.
        leg: LegId,
        /// What.
        news: LegNews,
    },
    /// A link over this relay has broken or fallen silent, at either end of it: the relay may have died.
    RelayLost(NodeId),
    /// A peer has sent a Head over a link; it may be anything.
    HeadSeen(Bytes),
    /// A route given in [`Answer::Route`] did not work.
    RouteFailed {
        /// To which device.
        device: DeviceId,
        /// Through which tunnel-node.
        peer: NodeId,
        /// What it said, or `None` if it could not be reached.
        code: Option<Code>,
    },
    /// Answers [`Output::Renew`].
    Renewed {
        /// The Node, DomainKey and OperatorNode records as they came, or nothing if it failed.
        records: Vec<Bytes>,
        /// The operator's time when it answered, if it did.
        time: Option<UnixTime>,
    },
    /// Answers [`Output::Renew`]: an operator has said that this node, or its domain, was revoked.
    Expelled,
    /// Something has happened to a connection that carries messages.
    Stream(StreamNews),
    /// Something has happened to a leg that somebody else has made to this computer, which a super-node relays.
    Leg(relay::Input),
    /// How many bytes were relayed between others since the start.
    Relayed {
        /// In both directions together.
        bytes: u64,
    },
    /// The owner lends more, less, or nothing to the network from now on.
    SuperRole(SuperConfig),
    /// Whether the computer's circumstances let it be a super-node: not on a metered network, not on battery. True until told.
    Fitness {
        /// False if they do not; what is held is handed over then.
        ok: bool,
        /// Why not, for people; empty if they do.
        why: String,
    },
    /// The local application asks for something; answered by [`Output::Answer`].
    Command {
        /// Which.
        task: TaskId,
        /// What.
        command: Command,
    },
}

/// Where a device is on the LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its address now.
    pub address: IpAddr,
    /// The interface behind which it is.
    pub interface: u32,
}

/// What a device's TLS handshake showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinProof {
    /// A certificate whose hash is one of the pins.
    Matches,
    /// Another certificate, with this SHA-256.
    Differs([u8; 32]),
    /// It did not answer, or not with TLS.
    NoAnswer,
}

/// What a local application asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The domain's devices, asked from the network now.
    RefreshDevices,
    /// The way to a service of a device, by names that people use; the device's first service if none is named.
    Route {
        /// Name or id.
        device: String,
        /// Name or port.
        service: Option<String>,
    },
    /// The way to a tunnel-node that serves an open tunnel: its links are lost, and it may be somewhere else now.
    Path {
        /// The tunnel-node.
        peer: NodeId,
        /// The device of the tunnel.
        device: DeviceId,
        /// The service of the tunnel.
        service: String,
    },
    /// That the operator forgets this node.
    Leave,
    /// That the super-node hands over what it holds and stops, as before the computer is shut down; it asks for no part
    /// of the table again until [`Input::SuperRole`].
    SuperOff,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The devices are as new as the network has them.
    Refreshed,
    /// How to reach the service.
    Route(Box<Route>),
    /// The operator has forgotten this node, or could not be reached and will when its record expires.
    Left {
        /// Whether it has said so.
        confirmed: bool,
    },
    /// The node is no super-node any more.
    SuperOff {
        /// Whether an operator has said that others hold what it held. If not, they fetch it from other holders.
        handed_over: bool,
    },
    /// It cannot be done.
    Failed(Failure),
}

/// A way to a service of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub name: String,
    /// The service.
    pub service: Service,
    /// SHA-256 of the certificates that the device may show; the user-node verifies them itself, through the tunnel.
    pub pins: Vec<[u8; 32]>,
    /// Which way.
    pub way: Way,
}

/// The kinds of ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// This computer stands on the device's LAN, with proof: no tunnel.
    Local(SocketAddr),
    /// Through a tunnel-node.
    Tunnel {
        /// Which.
        peer: NodeId,
        /// Its identity key, to be pinned in TLS.
        identity: [u8; 32],
        /// Where to dial it, best first of each transport; empty if a link to it stands.
        candidates: Vec<Candidate>,
        /// The attempt for which a leg to a relay is under way since before this answer.
        relayed: Option<LinkId>,
        /// The handshake that was begun since before this answer.
        begun: Option<Begun>,
    },
}

/// A handshake that was begun while the tunnel-node was asked for a path (Rule 7.29).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// As [`Output::BeginHandshake`] has named it.
    pub attempt: LinkId,
    /// The first flight of the TLS server, if the tunnel-node has prepared the handshake.
    pub flight: Option<Bytes>,
}

/// Why a command failed, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No device of the domain has this name or id.
    #[error("no device of your organisation has this name; `peerage devices --refresh` lists them")]
    UnknownDevice,
    /// The device has no such service.
    #[error("this device has no service of this name or port; `peerage devices` lists them")]
    UnknownService,
    /// The device's record needs a newer version, or was sealed in an epoch whose key has not arrived.
    #[error("this device cannot be used by this version or with this computer's keys; try again in a minute")]
    UnusableDevice,
    /// An administrator has not allowed this node.
    #[error("the administrator has not allowed this computer to use the device")]
    NotAllowed,
    /// No tunnel-node has announced itself at the device's site.
    #[error("no computer at the device's site is online; one there must be on and running Peerage")]
    NoTunnelNode,
    /// Tunnel-nodes are there, but none answered.
    #[error("the computers at the device's site did not answer")]
    TunnelNodesSilent,
    /// Nobody answers: neither operators nor super-nodes.
    #[error("no operator or super-node answers; check this computer's Internet connection")]
    Offline,
    /// The last statement of the operator is too old, and the domain forbids to go on without.
    #[error("no operator has answered for longer than your organisation allows")]
    Stale,
    /// This node was revoked.
    #[error("this computer was revoked by the administrator")]
    Revoked,
    /// This node's record has expired.
    #[error(
        "this computer's membership has expired; `peerage up` renews it while an operator can be reached"
    )]
    Expired,
    /// Too much is going on already.
    #[error("too many requests at once; try again in a few seconds")]
    Busy,
}

/// Everything that a node asks of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram.
    Transmit {
        /// Where to.
        remote: SocketAddr,
        /// What.
        payload: Bytes,
    },
    /// Send a datagram from each of the next so many ports that are there for this place alone, to be opened if they are not yet
    /// (Rule 6.99). What comes to one of them from there is taken like any other datagram; from then on all that goes there leaves from that
    /// port, and the others are closed. Without an answer they are closed after [`WIDE_LIFETIME`](crate::path::WIDE_LIFETIME).
    TransmitWidely {
        /// Where to.
        remote: SocketAddr,
        /// What.
        payload: Bytes,
        /// From how many ports.
        ports: usize,
    },
    /// Send a datagram to the group in which the nodes of a LAN talk (Rule 6.25); it must not leave the link.
    Multicast {
        /// On which interface.
        interface: u32,
        /// What.
        payload: Bytes,
    },
    /// Write to disk, all or nothing, and answer by [`Input::Stored`] once it is safe.
    Store {
        /// Which.
        task: TaskId,
        /// What.
        changes: Vec<Change>,
    },
    /// Find a hardware address on the LAN and answer by [`Input::DeviceFound`].
    FindDevice {
        /// Which.
        task: TaskId,
        /// The hardware address.
        mac: Mac,
        /// Where it was last, if known.
        last: Option<IpAddr>,
        /// The interfaces on which to look.
        interfaces: Vec<u32>,
    },
    /// Ask a device for its certificate by a TLS handshake and answer by [`Input::PinProven`].
    ProvePin {
        /// Which.
        task: TaskId,
        /// Where; already checked to be a place that may be dialled.
        address: SocketAddr,
        /// SHA-256 of the certificates that it may show.
        pins: Vec<[u8; 32]>,
    },
    /// Connect a tunnel that was asked for to this place, and accept it once that stands.
    ServeTunnel {
        /// Which.
        tunnel: TunnelId,
        /// Where the device is; already checked to be a place that may be dialled.
        address: SocketAddr,
        /// Stream or datagrams.
        protocol: Protocol,
    },
    /// Close a tunnel of either end, or refuse one that was asked for.
    CloseTunnel {
        /// Which.
        tunnel: TunnelId,
        /// Why.
        code: Code,
    },
    /// Begin a handshake with whoever holds `identity`, connect to these places meanwhile, and answer at once by
    /// [`Input::HandshakeBegun`]. [`Way::Tunnel`] says how it goes on; if nothing does within half a minute, it is dropped.
    BeginHandshake {
        /// Which.
        attempt: LinkId,
        /// The peer's identity key, to be pinned in TLS.
        identity: [u8; 32],
        /// Where its signed announcement says that links are received, best first; already checked to be places that may be
        /// dialled. All are of TCP, and nothing is said there before the tunnel-node has answered.
        places: Vec<Candidate>,
    },
    /// Prepare the other side of a handshake that a peer has begun, as far as there is room, keep it for a connection to come, and
    /// answer at once by [`Input::HandshakeAnswered`]. The same hello is answered with the same flight.
    AnswerHandshake {
        /// Which.
        task: TaskId,
        /// Who has sealed the request.
        peer: NodeId,
        /// Its identity key, to be pinned in TLS.
        identity: [u8; 32],
        /// The first flight of the TLS client; not checked in any way.
        hello: Bytes,
    },
    /// Do something with a leg of this node's own.
    OwnLeg {
        /// Which.
        leg: LegId,
        /// What.
        order: LegOrder,
    },
    /// A command has come to an end.
    Answer {
        /// Which.
        task: TaskId,
        /// How.
        answer: Answer,
    },
    /// Ask the routers to forward these ports to this node, and give back others that they gave; told by [`Input::Mapped`].
    MapPorts(Ports),
    /// Renew the membership over HTTPS and answer by [`Input::Renewed`] or [`Input::Expelled`].
    Renew,
    /// A newer Head is known: peers on links should have it too (Rule 7.9).
    HeadChanged(Bytes),
    /// Write to disk what has worked in networks without UDP, in place of what was told before. Nothing answers.
    KeepCarriers(KnownCarriers),
    /// Something is to be done with connections that carry messages.
    Stream(StreamOrder),
    /// Something is to be done with legs that others have made to this computer.
    Leg(relay::Output),
    /// Tell whoever wants to know.
    Event(Event),
}

/// A change of the durable store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Keep a record, in place of the one with the same table, domain and key.
    Put(Record),
    /// Forget a record.
    Delete {
        /// Its header's table.
        table: Table,
        /// Its domain.
        domain: Domain,
        /// Its key.
        key: RecordKey,
    },
}

/// What others may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An operator or super-node answered after a silence.
    Online,
    /// Nobody answers any more.
    Offline,
    /// The clock's offset was learned or has changed, in milliseconds to be added to the computer's clock.
    ClockLearned(i64),
    /// The computer's locations are these now.
    Locations(Vec<LocationId>),
    /// The domain's devices have changed.
    DevicesChanged,
    /// This node now serves these devices as tunnel-node.
    Serving(Vec<DeviceId>),
    /// The network has confirmed that it knows where this node is; it can be found from now on.
    Announced(Vec<DeviceId>),
    /// A device was seen at a new location and reported.
    DeviceReported(DeviceId),
    /// A tunnel was refused.
    TunnelRefused {
        /// To whom.
        peer: NodeId,
        /// Why.
        code: Code,
    },
    /// This node was revoked, or its domain.
    Revoked,
    /// The membership ends within a week.
    ExpiresSoon(UnixTime),
    /// The limit of the operator's offline time is reached or left behind.
    Stale(bool),
    /// There is a direct path to a peer: a user-node may dial it there over UDP, a tunnel-node should expect to be dialled from
    /// there. The same may come again. [`Input::PathUsed`] within 15 s keeps it.
    PathFound(Path),
    /// A path that was found is none any more.
    PathLost(Path),
    /// Others can reach this node at new places: peers to whom only a relay leads are worth a path anew.
    Reachable,
    /// The node's part as a super-node is this now.
    SuperRole(SuperState),
}

/// What a node is as a super-node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperState {
    /// The owner does not lend anything.
    Off,
    /// The owner would, but the administrator does not permit it.
    NotPermitted,
    /// It has offered itself, and holds nothing.
    Asking,
    /// The operator is finding out whether anybody reaches it.
    Checking,
    /// The operator does not reach it over both UDP and TCP.
    Unreachable,
    /// It holds the places from one to the other, both included.
    Serving {
        /// The first.
        from: PlacementKey,
        /// The last.
        to: PlacementKey,
    },
    /// It goes on serving until others hold what it holds.
    HandingOver,
    /// The network is metered, or the computer runs on battery.
    Unfit,
}

/// A tunnel that is watched: checked again at each Head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The node at the other end.
    pub peer: NodeId,
    /// The device.
    pub device: DeviceId,
    /// The service.
    pub service: String,
    /// Whether this node is the tunnel-node of it.
    pub serving: bool,
}
