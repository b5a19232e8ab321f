//! The local API of a node: HTTP and JSON over the Unix socket [`SOCKET_FILE`] in the node's data directory.
//!
//! Only the user who runs the node, and root, may connect. The server refuses a request with an `Origin` header or
//! with a `Host` other than [`HOST`] ([`ProblemKind::ForeignOrigin`](crate::ProblemKind::ForeignOrigin)), so that a
//! web page cannot be made to speak to it.
//!
//! | method and path | request | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/devices` | | list of [`Device`] |
//! | `POST /v1/devices/refresh` | | list of [`Device`], asked of the network now |
//! | `GET /v1/tunnels` | | list of [`Tunnel`] |
//! | `POST /v1/tunnels` | [`OpenTunnel`] | 201 [`Tunnel`] |
//! | `DELETE /v1/tunnels/{id}` | | 204 |
//! | `GET /v1/super` | | [`SuperNode`] |
//! | `POST /v1/super/on` | [`SuperOn`] | [`SuperNode`] |
//! | `POST /v1/super/off` | | [`SuperOff`], once what was held is handed over: up to a minute later |
//! | `GET /v1/events` | query `hold={id}` | server-sent events, each an [`Event`] |
//! | `POST /v1/shutdown` | | 202 |

use crate::route::Route;

mod devices;
mod events;
mod lending;
mod mapping;
mod nat;
mod proxy;
mod status;
mod tunnels;

pub use devices::{Device, DeviceState, ReachableVia};
pub use events::{Event, EventDetail};
pub use lending::{SuperLimits, SuperNode, SuperOff, SuperOn, SuperRange, SuperState};
pub use mapping::{PortMapping, PortMappingState};
pub use nat::{Nat, NatFiltering, NatMapping, NatPorts};
pub use proxy::{Proxy, ProxyState};
pub use status::{
    Attachment, Carrier, CarrierKind, CarrierReason, Clock, Elected, Election, Head, InterfaceKind, Location,
    NodeIdentity, NodeState, Operator, Records, Status,
};
pub use tunnels::{OpenTunnel, Path, PathKind, Privacy, Tunnel, TunnelState};

/// The name of the socket in the node's data directory.
pub const SOCKET_FILE: &str = "api.sock";

/// The `Host` that a request names; a socket has no host of its own.
pub const HOST: &str = "localhost";

/// Every route of the local API, version 1.
pub const ROUTES: &[Route] = &[
    Route::get("/v1/status"),
    Route::get("/v1/devices"),
    Route::post("/v1/devices/refresh"),
    Route::get("/v1/tunnels"),
    Route::post("/v1/tunnels"),
    Route::delete("/v1/tunnels/{id}"),
    Route::get("/v1/super"),
    Route::post("/v1/super/on"),
    Route::post("/v1/super/off"),
    Route::get("/v1/events"),
    Route::post("/v1/shutdown"),
];
