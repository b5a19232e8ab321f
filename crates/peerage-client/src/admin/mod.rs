//! The admin API of an operator: HTTP and JSON over TCP on a loopback address, with a bearer token.
//!
//! The operator writes where it listens, and a token made anew at each start, into [`ADMIN_FILE`] in its data
//! directory (mode 0600); whoever can read that file may administer. Every request carries
//! `Authorization: Bearer TOKEN`. The server refuses a request with an `Origin` header or with a `Host` that is not
//! its own address ([`ProblemKind::ForeignOrigin`](crate::ProblemKind::ForeignOrigin)).
//!
//! In paths, `{domain}` is a domain's name or number, `{device}` a device's name or id, `{node}` a node's id, the
//! beginning of an id that fits only one node, or its name if that is unique; `{token}` is a token's id (not the
//! secret token itself). All are percent-encoded.
//!
//! | method and path | request | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`OperatorStatus`] |
//! | `GET /v1/domains` | | list of [`Domain`] |
//! | `POST /v1/domains` | [`AddDomain`] | 201 [`Domain`] |
//! | `GET /v1/domains/{domain}` | | [`Domain`], with refusals |
//! | `POST /v1/domains/{domain}/revoke` | [`RevokeDomain`] | [`Domain`], now revoked |
//! | `GET /v1/domains/{domain}/tokens` | | list of [`Token`] |
//! | `POST /v1/domains/{domain}/tokens` | [`AddToken`] | 201 [`NewToken`] |
//! | `POST /v1/domains/{domain}/tokens/{token}/revoke` | [`RevokeToken`] | [`RevokedToken`] |
//! | `GET /v1/domains/{domain}/devices` | | list of [`Device`] |
//! | `POST /v1/domains/{domain}/devices` | [`AddDevice`] | 201 [`Device`] |
//! | `DELETE /v1/domains/{domain}/devices/{device}` | | [`Device`], now removed |
//! | `POST /v1/domains/{domain}/push` | [`Push`] | [`Pushed`] |
//! | `GET /v1/domains/{domain}/nodes` | | list of [`Node`] |
//! | `GET /v1/domains/{domain}/nodes/{node}` | | [`Node`] |
//! | `POST /v1/domains/{domain}/nodes/{node}/approve` | | [`Node`], now valid |
//! | `POST /v1/domains/{domain}/nodes/{node}/revoke` | [`RevokeNode`] | [`Node`], now revoked |
//! | `GET /v1/super-nodes` | | list of [`SuperNode`] |
//! | `POST /v1/super-nodes/{node}/quarantine` | [`QuarantineSuperNode`] | [`SuperNode`] |
//! | `POST /v1/super-nodes/{node}/release` | | [`SuperNode`] |
//! | `GET /v1/segments` | | [`SegmentMap`] |
//!
//! Lists are ordered by name, then id; super-nodes by domain first. `{node}` of a super-node is looked for in all domains.

mod super_nodes;
mod types;

pub use super_nodes::{
    PlaceRange, Quarantine, QuarantineSuperNode, Segment, SegmentHolder, SegmentMap, Spied, SuperNode,
    SuperNodeLoad, SuperNodeState,
};
pub use types::{
    AddDevice, AddDomain, AddToken, AdminFile, Device, DeviceState, Domain, NewToken, Node, NodeState,
    OperatorStatus, Push, Pushed, RevocationReason, RevokeDomain, RevokeNode, RevokeToken, RevokedToken,
    Token, TokenState,
};

use crate::route::Route;

/// The file in the operator's data directory that says where the admin API is; its content is an [`AdminFile`].
pub const ADMIN_FILE: &str = "admin.json";

/// The largest body of a request, in bytes, that an admin server reads.
///
/// A device with 64 services, 16 pins and 256 allowed nodes takes some 30 KiB; a higher limit only lets a mistaken
/// client occupy more memory.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Every route of the admin API, version 1.
pub const ROUTES: &[Route] = &[
    Route::get("/v1/status"),
    Route::get("/v1/domains"),
    Route::post("/v1/domains"),
    Route::get("/v1/domains/{domain}"),
    Route::post("/v1/domains/{domain}/revoke"),
    Route::get("/v1/domains/{domain}/tokens"),
    Route::post("/v1/domains/{domain}/tokens"),
    Route::post("/v1/domains/{domain}/tokens/{token}/revoke"),
    Route::get("/v1/domains/{domain}/devices"),
    Route::post("/v1/domains/{domain}/devices"),
    Route::delete("/v1/domains/{domain}/devices/{device}"),
    Route::post("/v1/domains/{domain}/push"),
    Route::get("/v1/domains/{domain}/nodes"),
    Route::get("/v1/domains/{domain}/nodes/{node}"),
    Route::post("/v1/domains/{domain}/nodes/{node}/approve"),
    Route::post("/v1/domains/{domain}/nodes/{node}/revoke"),
    Route::get("/v1/super-nodes"),
    Route::post("/v1/super-nodes/{node}/quarantine"),
    Route::post("/v1/super-nodes/{node}/release"),
    Route::get("/v1/segments"),
];
