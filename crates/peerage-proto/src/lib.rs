//! The state machines of a Peerage node and operator, without any I/O.
//!
//! A machine is a value that takes inputs together with the time and gives outputs back. It opens no socket,
//! reads no clock, draws no randomness but from its seed, and spawns nothing; the same code runs in the node, in
//! a simulation with thousands of nodes, and under a fuzzer.
//!
//! [`endpoint`] turns datagrams into requests of members and back. [`operator`] and [`node`] are the two roles on top of
//! it; [`responder`] answers reads from the [`table`] for both. Tunnelled bytes never pass through them: they are the business of
//! [`session`] and [`link`].

pub mod base64;
pub mod carrier;
pub mod dial;
pub mod discard;
pub mod election;
pub mod endpoint;
pub mod forward;
mod indexed;
pub mod lan;
pub mod limiter;
pub mod link;
pub mod mapping;
pub mod node;
pub mod operator;
pub mod path;
pub mod proxy;
pub mod reconcile;
pub mod relay;
pub mod responder;
pub mod segments;
pub mod session;
pub mod sizes;
pub mod table;
pub mod trust;
pub mod wall;
